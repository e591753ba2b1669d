//! VMs that a manager guest boots: each a process of its own, in a process group of its own, which
//! lives on when the manager's ends. What is known of them is in [`folder`]s, so that a manager that
//! was started again under its name finds its VMs.

pub mod folder;
mod hand_over;
pub mod launch;
pub mod quota;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::process::Child;
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use control_abi::field::{Arguments, Encoder, Tag};
use control_abi::operation::Operation;
use control_abi::status::Error;
use imgcache::cluster::address::{CacheUrl, NodeAddress};
use imgcache::image::name::ImageName;
use rustix::process::{Signal, pidfd_send_signal};

use self::folder::{Record, State, VmFolder, Vms};
use self::hand_over::HandOver;
use self::launch::{Launcher, Wish};
use self::quota::BootQuota;
use super::Job;
use crate::machine::layout::{HUGE_PAGE, MAX_CPUS, MAX_RAM, MIN_RAM};

/// RAM of a VM, unless said otherwise: what `vmm boot` takes.
const DEFAULT_MEMORY: u64 = 512 << 20;
/// VMs of one manager that have ended and are still known.
const MAX_ENDED: usize = 64;
/// Bytes of a console that a guest is shown.
const CONSOLE_HEAD: u64 = 2048;
/// How long a VM that was told to end may take, before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// What a manager guest has of its host.
#[derive(Debug)]
pub struct Manager {
    /// The manager's name; VMs are those of a name.
    pub name: String,
    /// How much it may boot.
    pub quota: BootQuota,
    /// Where what is known of VMs is.
    pub vms: Vms,
    /// How they are started.
    pub launcher: Launcher,
    /// The cache that the manager has named.
    cache: Option<String>,
    /// VMs that wait for their chunks.
    waiting: Vec<HandOver>,
    /// That of its name.
    lock: Option<File>,
    /// VMs that were told to end.
    stopping: BTreeSet<u64>,
    /// Who is told when a VM ends.
    endings: Option<SyncSender<Job>>,
}

impl Manager {
    /// A manager that has named no cache yet.
    pub fn new(name: String, quota: BootQuota, vms: Vms, launcher: Launcher) -> Self {
        let (waiting, stopping) = (Vec::new(), BTreeSet::new());
        Self {
            name,
            quota,
            vms,
            launcher,
            cache: None,
            waiting,
            lock: None,
            stopping,
            endings: None,
        }
    }

    /// Keeps a file for as long as the manager lives.
    #[must_use]
    pub fn holding(mut self, lock: File) -> Self {
        self.lock = Some(lock);
        self
    }

    pub(super) fn with_endings(mut self, endings: SyncSender<Job>) -> Self {
        self.endings = Some(endings);
        self
    }

    pub(super) fn call(
        &mut self,
        operation: Operation,
        arguments: &Arguments<'_>,
        room: u32,
    ) -> Result<Vec<u8>, Error> {
        match operation {
            Operation::VmBoot => self.boot(arguments, room),
            Operation::VmPrepare => self.prepare(arguments, room),
            Operation::VmStatus => self.status(arguments, room),
            Operation::VmStop => self.stop(arguments).map(|()| Vec::new()),
            Operation::VmList => self.list(arguments, room),
            Operation::CacheConfig => self.configure(arguments, room),
            _ => Err(Error::NotSupported),
        }
    }

    fn boot(&mut self, arguments: &Arguments<'_>, room: u32) -> Result<Vec<u8>, Error> {
        let count = arguments.u32(Tag::Count).unwrap_or(1);
        let wanted = self.wanted(arguments, count)?;
        Output::new(room).reserve(count)?;
        let mut output = Output::new(room);
        for index in 0..count {
            let mut record = wanted.clone();
            if count > 1 {
                record.name = format!("{}-{}", record.name, index + 1);
            }
            let wish = self.wish(arguments);
            match self.start(record, &wish) {
                Ok((record, _)) => output.add(|fields| {
                    fields.u64(Tag::Vm, record.number)?.text(Tag::VmName, &record.name).map(drop)
                })?,
                // Some is better than none, and the manager sees how many.
                Err(error) if index > 0 => {
                    log::warn!("{index} of {count} VMs were started: {error}");
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(output.end())
    }

    fn prepare(&mut self, arguments: &Arguments<'_>, room: u32) -> Result<Vec<u8>, Error> {
        let wanted = self.wanted(arguments, 1)?;
        Output::new(room).reserve(1)?;
        let listening = hand_over::listen(self.vms.path());
        let (path, listener) = listening.map_err(|error| failed(&error))?;
        let wish = Wish { chunks_from: Some(path.clone()), ..self.wish(arguments) };
        let started = self.start(wanted, &wish);
        let (record, folder) = match started {
            Ok(started) => started,
            Err(error) => {
                let _ = fs::remove_file(path);
                return Err(error);
            }
        };
        let accepted = hand_over::accept(&path, &listener, || folder.state() != State::Ended);
        let stream = accepted.map_err(|error| {
            log::warn!("VM {} does not take chunks: {error}", record.number);
            Error::Timeout
        })?;
        let waits = |vm: &HandOver| {
            let folder = self.vms.folder(vm.vm());
            vm.is_open() && folder.state() == State::Loading
        };
        self.waiting.retain(waits);
        self.waiting.push(HandOver::new(record.number, stream));
        let mut output = Output::new(room);
        output.add(|fields| {
            fields.u64(Tag::Vm, record.number)?.text(Tag::VmName, &record.name).map(drop)
        })?;
        Ok(output.end())
    }

    /// Hands a chunk over to a VM that waits for it.
    pub(super) fn load(&mut self, vm: u64, chunk: u32, data: &[u8]) -> Result<(), Error> {
        let waiting = self.waiting.iter_mut().find(|waiting| waiting.vm() == vm);
        let waiting = waiting.ok_or(Error::NoSuchVm)?;
        waiting.send(chunk, data).map_err(|error| {
            log::debug!("chunk {chunk} for VM {vm}: {error}");
            if error.kind() == io::ErrorKind::WouldBlock { Error::Timeout } else { Error::BadState }
        })
    }

    /// What is to be started, if the operator allows it.
    fn wanted(&self, arguments: &Arguments<'_>, count: u32) -> Result<Record, Error> {
        let image = arguments.text(Tag::Image).ok_or(Error::BadField)?;
        image.parse::<ImageName>().map_err(|_| Error::NoImage)?;
        if !self.quota.allows(image) {
            return Err(Error::NotPermitted);
        }
        let memory_bytes = arguments.u64(Tag::Memory).unwrap_or(DEFAULT_MEMORY);
        let cpus = arguments.u32(Tag::Cpus).unwrap_or(1);
        let size = (MIN_RAM..=MAX_RAM).contains(&memory_bytes);
        if !size
            || !memory_bytes.is_multiple_of(HUGE_PAGE)
            || !(1..=u32::from(MAX_CPUS)).contains(&cpus)
        {
            return Err(Error::BadField);
        }
        let name = arguments.text(Tag::VmName).unwrap_or("vm");
        if count == 0 || !is_vm_name(name) {
            return Err(Error::BadField);
        }
        let running: Vec<Record> = self
            .own()?
            .into_iter()
            .filter(|(folder, _)| folder.state() != State::Ended)
            .map(|(_, record)| record)
            .collect();
        let in_use: u64 = running.iter().map(|record| record.memory_bytes).sum();
        let more = memory_bytes.checked_mul(u64::from(count)).ok_or(Error::NoMemory)?;
        let vms = u64::try_from(running.len()).unwrap_or(u64::MAX).saturating_add(count.into());
        if vms > u64::from(self.quota.count) || in_use.saturating_add(more) > self.quota.memory {
            log::info!(
                "{count} more VMs of {memory_bytes} bytes are beyond the quota; {} run",
                running.len()
            );
            return Err(Error::NoMemory);
        }
        Ok(Record {
            number: 0,
            name: name.to_owned(),
            image: image.to_owned(),
            manager: self.name.clone(),
            memory_bytes,
            cpus,
            started_ms: now_ms(),
        })
    }

    fn wish(&self, arguments: &Arguments<'_>) -> Wish {
        let command_line = arguments.text(Tag::CommandLine).map(str::to_owned);
        Wish { command_line, cache: self.cache.clone(), chunks_from: None }
    }

    fn start(&self, record: Record, wish: &Wish) -> Result<(Record, VmFolder), Error> {
        self.forget_old();
        let started = self.vms.add(record).and_then(|(folder, record, lock)| {
            match self.launcher.start(&folder, &record, wish, lock) {
                Ok(child) => Ok((folder, record, child)),
                Err(error) => {
                    folder.remove();
                    Err(error)
                }
            }
        });
        let (folder, record, child) = started.map_err(|error| failed(&error))?;
        log::info!("VM {} ({}) is process {}", record.number, record.name, child.id());
        watch(child, &folder, record.number, self.endings.clone());
        Ok((record, folder))
    }

    /// VMs of this manager, by number.
    fn own(&self) -> Result<Vec<(VmFolder, Record)>, Error> {
        let numbers = self.vms.all().map_err(|error| failed(&error))?;
        let folders = numbers.into_iter().map(|number| self.vms.folder(number));
        let records = folders.filter_map(|folder| folder.record().map(|record| (folder, record)));
        Ok(records.filter(|(_, record)| record.manager == self.name).collect())
    }

    fn forget_old(&self) {
        let Ok(own) = self.own() else { return };
        let mut ended: Vec<_> =
            own.into_iter().filter(|(folder, _)| folder.state() == State::Ended).collect();
        ended.truncate(ended.len().saturating_sub(MAX_ENDED));
        for (folder, _) in ended {
            folder.remove();
        }
    }

    fn find(&self, arguments: &Arguments<'_>) -> Result<(VmFolder, Record), Error> {
        let number = arguments.u64(Tag::Vm).ok_or(Error::BadField)?;
        let folder = self.vms.folder(number);
        let record = folder.record().filter(|record| record.manager == self.name);
        Ok((folder, record.ok_or(Error::NoSuchVm)?))
    }

    fn status(&self, arguments: &Arguments<'_>, room: u32) -> Result<Vec<u8>, Error> {
        let (folder, record) = self.find(arguments)?;
        let state = folder.state();
        let mut output = Output::new(room);
        output.add(|fields| {
            fields
                .u64(Tag::Vm, record.number)?
                .text(Tag::VmName, &record.name)?
                .text(Tag::Image, &record.image)?
                .u32(Tag::State, state.number())?
                .u64(Tag::Memory, record.memory_bytes)?
                .u32(Tag::Cpus, record.cpus)?
                .u64(Tag::Milliseconds, now_ms().saturating_sub(record.started_ms))?;
            if let Some(ms) = folder.event("ready") {
                // Whole milliseconds are what guests are told.
                let ms = Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default().as_millis();
                fields.u64(Tag::ReadyMilliseconds, u64::try_from(ms).unwrap_or(u64::MAX))?;
            }
            if state == State::Ended {
                if let Some(code) = folder.exit_code() {
                    fields.u32(Tag::ExitCode, code)?;
                }
                fields.text(Tag::Outcome, &outcome(&folder))?;
            }
            Ok(())
        })?;
        // The console as far as there is room.
        let mut console = folder.read("console", CONSOLE_HEAD).unwrap_or_default();
        console.truncate(output.room().saturating_sub(8));
        output.add(|fields| fields.bytes(Tag::Console, &console).map(drop))?;
        Ok(output.end())
    }

    fn stop(&mut self, arguments: &Arguments<'_>) -> Result<(), Error> {
        let (folder, record) = self.find(arguments)?;
        let process = folder.process().map_err(|error| failed(&error))?;
        let Some(process) = process else { return Err(Error::BadState) };
        pidfd_send_signal(&process, Signal::TERM).map_err(|error| failed(&error.into()))?;
        self.stopping.retain(|number| self.vms.folder(*number).state() != State::Ended);
        if !self.stopping.insert(record.number) {
            return Ok(()); // somebody is impatient already
        }
        let impatient = move || {
            thread::sleep(END_PATIENCE);
            if pidfd_send_signal(&process, Signal::KILL).is_ok() {
                log::warn!("VM {} did not end by itself", record.number);
            }
        };
        // Without a thread it ends when it wants.
        let _ = thread::Builder::new().name("stop".into()).stack_size(128 << 10).spawn(impatient);
        Ok(())
    }

    fn list(&self, arguments: &Arguments<'_>, room: u32) -> Result<Vec<u8>, Error> {
        let after = arguments.u64(Tag::After).unwrap_or(0);
        let mut output = Output::new(room);
        for (folder, record) in self.own()? {
            if record.number <= after {
                continue;
            }
            let added = output.add(|fields| {
                fields
                    .u64(Tag::Vm, record.number)?
                    .text(Tag::VmName, &record.name)?
                    .text(Tag::Image, &record.image)?
                    .u32(Tag::State, folder.state().number())?;
                folder.exit_code().map_or(Ok(()), |code| fields.u32(Tag::ExitCode, code).map(drop))
            });
            match added {
                Ok(()) => {}
                // The rest at the next call.
                Err(Error::BadLength) if !output.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(output.end())
    }

    fn configure(&mut self, arguments: &Arguments<'_>, room: u32) -> Result<Vec<u8>, Error> {
        let servers = arguments.text(Tag::Servers).filter(|servers| !servers.is_empty());
        let url = servers.map(|servers| format!("memcached://{servers}"));
        if let Some(url) = &url {
            // Nodes, and nothing of this host: no socket, no file.
            let elsewhere = |address: &NodeAddress| matches!(address, NodeAddress::Tcp { .. });
            match url.parse::<CacheUrl>() {
                Ok(CacheUrl::Nodes { addresses, .. }) if addresses.iter().all(elsewhere) => {}
                Ok(_) | Err(_) => return Err(Error::BadField),
            }
        }
        let mut output = Output::new(room);
        output.add(|fields| fields.text(Tag::Servers, servers.unwrap_or_default()).map(drop))?;
        self.cache = url;
        Ok(output.end())
    }
}

/// Whether a guest may call a VM so: it becomes a word of a command line.
fn is_vm_name(name: &str) -> bool {
    let first = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    let rest = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    first && name.len() <= 48 && name.chars().all(rest)
}

/// How a VM ended, in words.
fn outcome(folder: &VmFolder) -> String {
    let report = folder.read("report", 4 << 20);
    let report: Option<serde_json::Value> =
        report.and_then(|report| serde_json::from_slice(&report).ok());
    if let Some(outcome) = report.as_ref().and_then(|report| report["guest"]["outcome"].as_str()) {
        return outcome.chars().take(60).collect();
    }
    // The last line that its process said is why there is no report.
    let said = folder.read("stderr", 4 << 20).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    // What its guest said is no word of its own.
    let own = |line: &&str| !line.is_empty() && !line.contains(": guest: ");
    let line = said.lines().map(str::trim).rfind(own);
    let words = line.map_or("its process was killed", |line| line.trim_start_matches("vmm: "));
    // Of four bytes each at most.
    words.chars().filter(|letter| !letter.is_control()).take(255 / 4).collect()
}

/// Waits for a process' end, on a thread of its own, and notes it.
fn watch(mut child: Child, folder: &VmFolder, number: u64, endings: Option<SyncSender<Job>>) {
    let file = folder.file("exit");
    let wait = move || {
        let code = child.wait().map(|status| {
            use std::os::unix::process::ExitStatusExt;
            status.code().or_else(|| status.signal().map(|signal| 128 + signal))
        });
        if let Ok(Some(code)) = code {
            // Nobody has removed the folder: it is not that old.
            let _ = fs::write(file, code.to_string());
        }
        if let Some(endings) = endings {
            // If nobody listens, the manager has ended before.
            let _ = endings.send(Job::VmEnded(number));
        }
    };
    let thread = thread::Builder::new().name("watch".into()).stack_size(128 << 10).spawn(wait);
    if let Err(error) = thread {
        log::warn!("VM {number} will end without notice: {error}");
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn failed(error: &io::Error) -> Error {
    log::info!("VMs of the guest: {error}");
    Error::Host
}

/// Fields for a guest, as many as there is room for.
struct Output {
    bytes: Vec<u8>,
    length: usize,
}

impl Output {
    fn new(room: u32) -> Self {
        Self { bytes: vec![0; usize::try_from(room).unwrap_or(usize::MAX)], length: 0 }
    }

    /// Whether so many VMs can be told of: nobody could stop one whose number was not.
    fn reserve(mut self, vms: u32) -> Result<(), Error> {
        for _ in 0..vms {
            self.add(|fields| {
                fields.u64(Tag::Vm, u64::MAX)?.text(Tag::VmName, &"n".repeat(63)).map(drop)
            })?;
        }
        Ok(())
    }

    fn room(&self) -> usize {
        self.bytes.len() - self.length
    }

    fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Adds fields; all of them or none.
    fn add(
        &mut self,
        fill: impl FnOnce(&mut Encoder<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let rest = self.bytes.get_mut(self.length..).unwrap_or_default();
        let mut fields = Encoder::new(rest);
        fill(&mut fields)?;
        self.length += fields.length();
        Ok(())
    }

    fn end(mut self) -> Vec<u8> {
        self.bytes.truncate(self.length);
        self.bytes
    }
}
