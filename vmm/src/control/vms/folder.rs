//! The folders of running VMs: what is known of a VM, for whoever asks, whether or not those live that
//! started it.
//!
//! ```text
//! vms/next        the number that the next VM gets
//! vms/17/record   what it was started as (JSON)
//!        lock     locked by its process for as long as that lives
//!        pid      of its process
//!        console  the first bytes that its guest printed
//!        events   what its guest said of itself, a line of JSON each
//!        report   how it fared, when it has ended (JSON)
//!        exit     the exit code of its process, if who started it saw its end
//!        stderr   what its process said
//! vms/load-N      the socket of a VM that waits for its chunks, until it has connected
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Bytes of a file that are read, at most.
const MAX_READ: u64 = 4 << 20;

/// What a VM was started as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number on this host; never used again.
    pub number: u64,
    /// Its name.
    pub name: String,
    /// The image that it was booted from.
    pub image: String,
    /// The name of the manager that asked for it.
    pub manager: String,
    /// Bytes of RAM.
    pub memory_bytes: u64,
    /// Processors.
    pub cpus: u32,
    /// When it was started, in milliseconds since 1970.
    pub started_ms: u64,
}

/// What there is of a VM that is or was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its image is being loaded.
    Loading,
    /// Its guest runs.
    Running,
    /// Its process has ended.
    Ended,
}

impl State {
    /// As guests see it.
    pub fn number(self) -> u32 {
        match self {
            Self::Loading => 1,
            Self::Running => 2,
            Self::Ended => 3,
        }
    }
}

/// A line of the events that matters here.
#[derive(Deserialize)]
struct Line {
    ms: f64,
    event: String,
}

/// The folder of all VMs.
#[derive(Debug, Clone)]
pub struct Vms(PathBuf);

/// The folder of one VM.
#[derive(Debug, Clone)]
pub struct VmFolder(PathBuf);

impl Vms {
    /// The folder, made if it is not there.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(path: PathBuf) -> io::Result<Self> {
        // What guests print is for nobody else, and nobody else is to connect to the sockets there.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A lock that one manager of this name has at a time, while it keeps the file.
    ///
    /// # Errors
    /// The file system's; `WouldBlock` if another one has it.
    pub fn manage(&self, name: &str) -> io::Result<File> {
        let lock = File::create(self.0.join(format!("manager-{name}")))?;
        lock.try_lock().map_err(io::Error::from)?;
        Ok(lock)
    }

    /// A new VM's folder, with its record written and its lock taken: by the file that is returned,
    /// which is to be the process'.
    ///
    /// # Errors
    /// The file system's; then there is no such VM.
    pub fn add(&self, mut record: Record) -> io::Result<(VmFolder, Record, File)> {
        record.number = self.next_number()?;
        let folder = self.folder(record.number);
        let lock = folder.create()?;
        let begin = || {
            let text = serde_json::to_vec(&record)?;
            fs::write(folder.file("record"), text)?;
            Ok(lock)
        };
        match begin() {
            Ok(lock) => Ok((folder, record, lock)),
            Err(error) => {
                folder.remove();
                Err(error)
            }
        }
    }

    fn next_number(&self) -> io::Result<u64> {
        let path = self.0.join("next");
        let mut options = File::options();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        file.lock()?;
        let mut text = String::new();
        (&mut file).take(32).read_to_string(&mut text)?;
        let number = text.trim().parse().unwrap_or(1).max(1);
        // Were the file lost, the folders would still tell.
        let number = self.all()?.last().map_or(number, |last| number.max(last + 1));
        file.rewind()?;
        file.set_len(0)?;
        write!(file, "{}", number + 1)?;
        Ok(number)
    }

    /// The folder of this number, whether or not it is there.
    pub fn folder(&self, number: u64) -> VmFolder {
        VmFolder(self.0.join(number.to_string()))
    }

    /// The numbers of all VMs, ascending.
    ///
    /// # Errors
    /// The file system's.
    pub fn all(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

impl VmFolder {
    /// Makes the folder; returns its lock, which is to be that of the VM's process.
    ///
    /// # Errors
    /// The file system's; then there is no folder.
    pub fn create(&self) -> io::Result<File> {
        fs::create_dir(&self.0)?;
        let take = || {
            let lock = File::create(self.file("lock"))?;
            lock.try_lock().map_err(io::Error::from)?;
            Ok(lock)
        };
        take().inspect_err(|_| self.remove())
    }

    /// A file of it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What the VM was started as; `None` if there is none.
    pub fn record(&self) -> Option<Record> {
        serde_json::from_slice(&self.read("record", MAX_READ)?).ok()
    }

    /// Whether its process lives, and how far it is.
    pub fn state(&self) -> State {
        if !self.lives() {
            State::Ended
        } else if self.event("entry").is_some() {
            State::Running
        } else {
            State::Loading
        }
    }

    fn lives(&self) -> bool {
        match File::open(self.file("lock")) {
            Ok(lock) => lock.try_lock_shared().is_err(),
            // What is not there does not live. Of what cannot be looked at, that is not known.
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Milliseconds until its guest first said this.
    pub fn event(&self, event: &str) -> Option<f64> {
        let text = self.read("events", MAX_READ)?;
        text.split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice::<Line>(line).ok())
            .find(|line| line.event == event)
            .map(|line| line.ms)
    }

    /// The first bytes of a file of it.
    pub fn read(&self, name: &str, most: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.file(name)).ok()?.take(most).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// The exit code of its process, if somebody saw its end.
    pub fn exit_code(&self) -> Option<u32> {
        String::from_utf8(self.read("exit", 32)?).ok()?.trim().parse().ok()
    }

    /// The id of its process while that lives, with a handle of it: so it is that one's still when it
    /// is used.
    ///
    /// # Errors
    /// The kernel's.
    pub fn process(&self) -> io::Result<Option<std::os::fd::OwnedFd>> {
        use rustix::process::{Pid, PidfdFlags, pidfd_open};
        let pid = self.read("pid", 32).and_then(|text| String::from_utf8(text).ok());
        let pid = pid.and_then(|text| Pid::from_raw(text.trim().parse().ok()?));
        let Some(pid) = pid else { return Ok(None) };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // The lock is held now, so the process has lived all the time since its number was noted.
        Ok(self.lives().then_some(handle))
    }

    /// Removes all that there is of it.
    pub fn remove(&self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            log::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            number: 0,
            name: "web".into(),
            image: "debian:12".into(),
            manager: "boss".into(),
            memory_bytes: 1 << 28,
            cpus: 1,
            started_ms: 7,
        }
    }

    #[test]
    fn numbers_are_never_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let vms = Vms::create(folder.path().join("vms")).unwrap();
        let (first, record, _) = vms.add(record()).unwrap();
        assert_eq!(record.number, 1);
        assert_eq!(first.record(), Some(record.clone()));
        first.remove();
        let (_, second, _) = vms.add(record.clone()).unwrap();
        assert_eq!(second.number, 2);
        // Even if the count is lost, or nonsense.
        for content in ["", "x", "0", "-4"] {
            fs::write(folder.path().join("vms/next"), content).unwrap();
            let (_, next, _) = vms.add(record.clone()).unwrap();
            assert_eq!(vms.all().unwrap().last(), Some(&next.number));
        }
        assert_eq!(vms.all().unwrap(), [2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_vm_lives_as_long_as_its_lock_is_held() {
        let folder = tempfile::tempdir().unwrap();
        let vms = Vms::create(folder.path().to_owned()).unwrap();
        let (vm, _, lock) = vms.add(record()).unwrap();
        assert_eq!(vm.state(), State::Loading);
        fs::write(
            vm.file("events"),
            "{\"ms\":0.0,\"event\":\"entry\"}\n{\"ms\":5.5,\"event\":\"ready\"}\n{",
        )
        .unwrap();
        assert_eq!(vm.state(), State::Running);
        assert_eq!(vm.event("ready"), Some(5.5));
        assert_eq!(vm.event("heartbeat"), None);
        fs::write(vm.file("pid"), std::process::id().to_string()).unwrap();
        assert!(vm.process().unwrap().is_some());
        drop(lock);
        assert_eq!(vm.state(), State::Ended);
        assert!(vm.process().unwrap().is_none());
        assert_eq!(vms.folder(99).state(), State::Ended);
        assert_eq!(vms.folder(99).record(), None);
    }
}
