//! `vmm boot`: from a name to a running guest.

mod guest;
mod jailed;
mod remote;
mod table;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use clap::Args;
use devices::virtio::VirtioDevice;
use imgcache::client::{Image, ImageClient};
use imgcache::lazy::ImageSource;

use self::guest::{Around, GuestOptions};
use self::jailed::JailOptions;
use self::remote::{Boot, RemoteOptions};
use super::cache::{self, CacheOptions};
use super::progress::Progress;
use super::{CliError, StoreOptions, print_json, print_text, say};
use crate::boot;
use crate::boot::console_file::ConsoleFile;
use crate::boot::report::{GuestReport, Report};
use crate::boot::stopwatch::{Stopwatch, milliseconds};
use crate::boot::vsock::{self, SocketFile, VsockEnd};
use crate::control::images::Opener;
use crate::control::{self, Control};
use crate::disk::{self, Counters, Disk};
use crate::exit::{self, Exit};
use crate::host;
use crate::jail::root::Folder;
use crate::jail::seccomp::Features;
use crate::jail::{ThreadKind, seal};
use crate::loader::handed::Handed;
use crate::machine::processors::queue_counts;
use crate::machine::{self, Console, Keyboard, Life, MachineError};
use crate::net;
use crate::size;
use crate::spec::VmSpec;
use crate::spec::disk::DiskSpec;

/// Boot a microVM from an image, with the console on this terminal.
///
/// The guest has the keyboard, Ctrl-C included. Ctrl-A x ends the VM, Ctrl-A Ctrl-A types one
/// Ctrl-A, Ctrl-A ? tells so.
///
/// The image comes from the store of this host, or with --cache from the nodes of a cache, all at
/// once and straight into guest memory; what they lack is fetched from the store and put there.
#[derive(Debug, Args)]
#[command(after_long_help = exit::TABLE)]
pub struct BootCommand {
    #[command(flatten)]
    vm: VmSpec,

    /// Do everything up to starting the processors, report, and end. Works on every kind of KVM.
    #[arg(long)]
    ready_only: bool,

    /// Print how long each phase took, on standard error.
    #[arg(long)]
    timings: bool,

    /// Print a report as one line of JSON: with --ready-only on standard output, else, since the
    /// console is there, on standard error at the end.
    #[arg(long)]
    json: bool,

    /// Write the report, as JSON, to this file at the end.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Write the console to this file, the first MiB of it, instead of standard output; it has no
    /// keyboard then.
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,

    /// Take the image's chunks from this socket, where a manager hands them over.
    #[arg(long, value_name = "SOCKET", hide = true)]
    chunks_from: Option<PathBuf>,

    #[command(flatten)]
    guest: GuestOptions,

    #[command(flatten)]
    jail: JailOptions,

    #[command(flatten)]
    remote: RemoteOptions,

    #[command(flatten)]
    cache: CacheOptions,

    #[command(flatten)]
    load: cache::LoadOptions,
}

/// The socket of a socket device with what is left of the device, and the folders of it that a jail is to
/// keep.
type OpenVsock = ((SocketFile, VsockEnd), Vec<Folder>);

/// An image that is being closed on a thread of its own; waits for that when dropped.
struct Closing(Option<JoinHandle<()>>);

impl Closing {
    fn begin(image: Arc<Image>) -> Self {
        // Without a thread it is closed at once.
        Self(thread::Builder::new().name("close".into()).spawn(move || drop(image)).ok())
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // It never panics, and if it did, it has said so.
            let _ = thread.join();
        }
    }
}

impl BootCommand {
    pub fn run(&self, store: &StoreOptions) -> Result<Exit, CliError> {
        if self.remote.is_wanted() {
            let (spec, name) = (&self.vm, self.guest.name());
            let boot = Boot { spec, name, timings: self.timings, json: self.json };
            return self.remote.run(&boot);
        }
        let mut watch = Stopwatch::start();
        self.guest.check(self.jail.is_jailed())?;
        if self.jail.is_outside() {
            let by_network = !self.cache.arguments().is_empty();
            let attachment = net::open(&self.vm.net, &self.guest.vm_name())?;
            return self.jail.start(&self.vm, attachment, by_network);
        }
        self.jail.begin();
        if !self.ready_only {
            host::kvm::require_stock_kernels()?;
        }
        let kvm = host::kvm::open()?;
        let image = Arc::new(self.client(store)?.open(&self.vm.image)?);
        // Before memory is made for a kernel that cannot be entered so.
        boot::entry(&image, &self.vm)?;
        watch.phase("resolve");

        // The interface goes with this process, also if it is killed.
        let attachment = if self.jail.is_jailed() {
            self.jail.attachment()
        } else {
            net::open(&self.vm.net, &self.guest.vm_name())?
        };
        let network = attachment.as_ref().map(|attachment| attachment.network().clone());
        let mut vm = self.vm.clone();
        let (mut devices, mut net_counters) = (Vec::new(), None);
        if let Some(attachment) = attachment {
            vm.cmdline_append =
                attachment.network().command_line_with(vm.cmdline_append.as_deref());
            let made = attachment.into_device()?;
            devices.push(made.device);
            net_counters = Some(made.counters);
            watch.phase("network");
        }
        let (vsock, vsock_folder) = self.vsock(&mut devices)?.unzip();
        let disk = self.disk_spec(&image)?;
        let overlay = disk::open_overlay(&disk)?;
        let has_disk = !matches!(disk, DiskSpec::None {});
        let mut virtio = machine::virtio_devices(devices);
        let mut queues = queue_counts(&virtio);
        queues.extend(has_disk.then_some(disk::QUEUES));
        let loaded = {
            let progress = Progress::new("loading", image.manifest().loaded_bytes());
            let add = |bytes| progress.add(bytes);
            boot::load(&kvm, &image, &vm, &queues, Some(&add), &mut watch)?
        };
        let (setup, console) = (self.setup(&image, store)?, self.console()?);
        let (mut image, mut report_file) = (Some(image), None);
        if let Some(confinement) = &self.jail.confinement {
            report_file = self.report.as_deref().map(create_report).transpose()?;
            if has_disk && !self.cache.arguments().is_empty() {
                return Err(CliError::Rights(
                    "a disk out of a cache is not for a jail, which has no network: pull the image \
                     to this host's store, or leave the disk out (--disk none)"
                        .into(),
                ));
            }
            if !has_disk {
                // With its threads: a process that confines itself has none.
                image = None;
            }
            let features = Features {
                net: network.is_some(),
                disk: has_disk,
                vsock: vsock.is_some(),
                ..Features::default()
            };
            confinement.enter(features, vsock_folder.unwrap_or_default())?;
            watch.phase("jail");
        }
        // Its threads are started in the jail.
        let disk = image.as_ref().map(|image| self.disk(image, overlay)).transpose()?.flatten();
        let disk_counters = disk.as_ref().map(|disk| Arc::clone(&disk.counters));
        virtio.extend(disk.map(|disk| disk.device));
        let (control, end) = Control::start(setup)
            .map_err(MachineError::system("start what is behind the control device"))?;
        let around = machine::Around { console, control: end, virtio, identifiers: None };
        let (machine, mut report) = loaded.assemble(&vm, around, self.wants_report(), watch)?;
        report.network = network;
        // What an image from a cache still has to do, it does while the guest starts.
        let _closing = image.map(Closing::begin);
        if self.ready_only {
            seal(ThreadKind::EventLoop).map_err(MachineError::from)?;
            self.publish(&report, report_file)?;
            return Ok(Exit::Success);
        }
        if !self.json {
            say(&table::announcement(&report));
        }
        let lived = machine.run(false);
        // Whatever ended it, what the guest has said is written.
        let said = control.end();
        let Life { outcome, ran, kvm, settled, control: counters, overhead_bytes } = lived?;
        let exit = Exit::from(&outcome);
        if exit != Exit::Success {
            say(&format!("vmm: {outcome}\n"));
        }
        let run_ms = milliseconds(ran);
        let control = counters.into();
        let guest = GuestReport {
            outcome,
            run_ms,
            kvm,
            settled,
            disk: disk_counters.as_deref().map(Counters::report),
            said,
            control,
            network: net_counters.map(|counters| counters.read()),
            vsock: vsock.map(|(_, end)| end.report()),
            overhead_bytes,
        };
        report.guest = Some(guest);
        match self.publish(&report, report_file) {
            // How the guest ended matters more than who was told.
            Err(error) if exit != Exit::Success => {
                say(&format!("vmm: {error}\n"));
                Ok(exit)
            }
            published => published.map(|()| exit),
        }
    }

    /// Where the image comes from.
    fn client(&self, store: &StoreOptions) -> Result<ImageClient, CliError> {
        let transport = cache::image_transport(&self.cache, &self.load, store)?;
        let Some(socket) = &self.chunks_from else { return Ok(ImageClient::new(transport)) };
        let handed = Handed::connect(socket, transport);
        let handed =
            handed.map_err(|source| CliError::HandOver { socket: socket.clone(), source })?;
        Ok(ImageClient::new(Box::new(handed)))
    }

    /// The image's disk, if the guest is to have it.
    fn disk(&self, image: &Arc<Image>, overlay: Option<File>) -> Result<Option<Disk>, CliError> {
        let spec = self.disk_spec(image)?;
        let source = ImageSource::new(Arc::clone(image), self.vm.verify());
        Ok(disk::device(&spec, &image.id(), Arc::new(source), overlay)?)
    }

    /// What the guest has of the image's disk.
    fn disk_spec(&self, image: &Image) -> Result<DiskSpec, CliError> {
        // A manager hands over what is loaded, and then nothing more.
        if self.chunks_from.is_some() {
            return Ok(DiskSpec::None {});
        }
        Ok(disk::wanted(self.vm.disk.as_ref(), image.manifest())?)
    }

    /// Makes the socket device, if there is to be one, and opens its socket; with the folder that a jailed
    /// VM has to keep of it.
    fn vsock(
        &self,
        devices: &mut Vec<Box<dyn VirtioDevice>>,
    ) -> Result<Option<OpenVsock>, CliError> {
        let Some(spec) = &self.vm.vsock else { return Ok(None) };
        let socket = spec.socket();
        let error = |source| CliError::Vsock { socket: socket.clone(), source };
        let (file, listener) = SocketFile::listen(&socket).map_err(error)?;
        let (seen, folders) = if self.jail.confinement.is_some() {
            let (seen, folder) = vsock::in_jail(&socket).map_err(error)?;
            (seen, vec![folder])
        } else {
            (socket.clone(), Vec::new())
        };
        let (device, end) = vsock::device(spec.cid, listener, seen).map_err(error)?;
        devices.push(device);
        Ok(Some(((file, end), folders)))
    }

    /// What is behind the control device.
    fn setup(&self, image: &Image, store: &StoreOptions) -> Result<control::Setup, CliError> {
        let around = Around {
            image,
            cpus: self.vm.cpus,
            memory: self.vm.memory,
            global: store.arguments(),
            load: [self.cache.arguments(), self.load.arguments()].concat(),
        };
        let (cache, load, store) = (self.cache.clone(), self.load.clone(), store.clone());
        let opener = move || {
            cache::image_transport(&cache, &load, &store)
                .map(ImageClient::new)
                .map_err(|error| error.to_string())
        };
        // In a jail there is neither a store nor a network.
        let opener: Option<Opener> =
            if self.jail.confinement.is_some() { None } else { Some(Box::new(opener)) };
        self.guest.setup(around, opener)
    }

    fn console(&self) -> Result<Console, CliError> {
        let Some(file) = &self.console else {
            return Ok(Console {
                output: Box::new(unbuffered_stdout()?),
                keyboard: Keyboard::Terminal,
            });
        };
        let source = |source| CliError::Output { what: file.display().to_string(), source };
        let output = ConsoleFile::new(File::create(file).map_err(source)?);
        Ok(Console { output: Box::new(output), keyboard: Keyboard::None })
    }

    fn wants_report(&self) -> bool {
        self.json || self.timings || self.report.is_some()
    }

    /// Shows the report in the ways that were asked for; `created` is its file, if that is open.
    fn publish(&self, report: &Report, created: Option<File>) -> Result<(), CliError> {
        if self.timings {
            say(&table::table(report));
        }
        let text = || serde_json::to_string(report).map_err(std::io::Error::from);
        if let Some(file) = &self.report {
            let mut created = created.map_or_else(|| create_report(file), Ok)?;
            let mut write = || created.write_all((text()? + "\n").as_bytes());
            write().map_err(report_error(file))?;
        }
        if self.json && report.guest.is_some() {
            let output = |source| CliError::Output { what: "the report".into(), source };
            say(&(text().map_err(output)? + "\n"));
        } else if self.json {
            print_json(report)?;
        }
        if self.ready_only && !self.json && !self.timings {
            print_text(&format!(
                "{} is ready to boot after {:.1} ms: {} fetched, {} mapped, RAM in {}\n",
                report.image,
                report.ready_ms,
                size::show(report.load.bytes_fetched),
                size::show(report.load.bytes_mapped),
                report.memory_backing
            ))?;
        }
        Ok(())
    }
}

/// Makes the file of a report.
fn create_report(file: &Path) -> Result<File, CliError> {
    File::create(file).map_err(report_error(file))
}

fn report_error(file: &Path) -> impl FnOnce(std::io::Error) -> CliError {
    let what = format!("the report to {}", file.display());
    move |source| CliError::Output { what, source }
}

/// Standard output without a buffer: a console's prompt has no newline.
fn unbuffered_stdout() -> Result<File, CliError> {
    std::io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map(File::from)
        .map_err(|source| CliError::Output { what: "to standard output".into(), source })
}
