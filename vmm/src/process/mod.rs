//! The process of a VM that the node agent has started.
//!
//! It opens nothing: all files that it needs come over its [`link`], the image as a file of the host's
//! pool. So it needs no path, no network and no privilege. When it is ready it says so, and needs the
//! agent no more: it lives on if that ends, and its socket and files are there for the next.

pub mod link;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::Arc;

use control_abi::register::feature;
use devices::control::Identity;
use devices::virtio::VirtioDevice;
use devices::virtio::net::counters::Counters as NetCounters;
use imgcache::client::{ImageClient, LoadError};
use imgcache::image::manifest::{Manifest, ManifestError};
use imgcache::key::ManifestId;
use imgcache::lazy::served::ServedSource;
use imgcache::transport::prepared::Prepared;
use kvm_ioctls::Kvm;

use self::link::{Given, Link, Start, Told, ToldPhase};
use crate::boot::console_file::ConsoleFile;
use crate::boot::report::{GuestReport, Report};
use crate::boot::stopwatch::{Stopwatch, milliseconds};
use crate::boot::vsock::{self, VsockEnd};
use crate::boot::{self, ReadyError};
use crate::cli::CliError;
use crate::control::images::Images;
use crate::control::{BOOT_RATE, Control, Setup, TENANT_RATE};
use crate::disk::{self, Counters as DiskCounters, Disk, DiskError};
use crate::exit::Exit;
use crate::jail::confine::ConfineError;
use crate::jail::root::Folder;
use crate::jail::seccomp::Features;
use crate::jail::{Confinement, first};
use crate::machine::attach::Socket;
use crate::machine::processors::queue_counts;
use crate::machine::{self, Console, Keyboard, Life, MachineError};
use crate::net::{Attachment, NetError};
use crate::spec::disk::DiskSpec;
use crate::spec::endpoint::EndpointSpec;

/// The argument with which the agent starts this program as the process of a VM.
pub const ARGUMENT: &str = "vm-process";

/// The largest manifest that is read, in bytes.
const MAX_MANIFEST: u64 = 64 << 20;

/// Why a VM did not become ready, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Not started by an agent.
    #[error("this is the process of a VM, which a node agent starts: see 'vmm node --help': {0}")]
    Link(std::io::Error),
    /// The agent has not given all that is needed.
    #[error("the agent has not given the VM its {0:?}")]
    Missing(Given),
    /// A file could not be read or written.
    #[error("cannot {what}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The reason.
        source: std::io::Error,
    },
    /// The manifest is none.
    #[error("the image's manifest: {0}")]
    Manifest(#[from] ManifestError),
    /// The id of the manifest is none.
    #[error("'{0}' is no id of a manifest")]
    Id(String),
    /// Its disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The image.
    #[error(transparent)]
    Image(#[from] LoadError),
    /// The machine could not be made.
    #[error(transparent)]
    Ready(#[from] ReadyError),
    /// The network device.
    #[error(transparent)]
    Net(#[from] NetError),
    /// What it is to give up makes no sense.
    #[error("{0}")]
    Confinement(String),
    /// It could not give it up.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// The machine could not go on.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

impl ProcessError {
    fn file(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::File { what, source }
    }

    /// The exit code for it.
    fn exit(self) -> (Exit, String) {
        let message = self.to_string();
        let exit = match self {
            Self::Link(_) | Self::Confinement(_) => Exit::Usage,
            Self::Confine(error) => CliError::from(error).exit(),
            Self::Disk(error) => CliError::from(error).exit(),
            Self::Missing(_) | Self::File { .. } | Self::Id(_) => Exit::Failure,
            Self::Manifest(_) => Exit::ImageDamaged,
            Self::Image(error) => CliError::from(error).exit(),
            Self::Ready(error) => CliError::from(error).exit(),
            Self::Net(error) => CliError::from(error).exit(),
            Self::Machine(error) => CliError::from(error).exit(),
        };
        (exit, message)
    }
}

/// The files that a VM was given.
#[derive(Debug)]
struct Files(Vec<(Given, OwnedFd)>);

impl Files {
    fn take(&mut self, what: Given) -> Result<OwnedFd, ProcessError> {
        let at = self.0.iter().position(|(given, _)| *given == what);
        at.map(|at| self.0.swap_remove(at).1).ok_or(ProcessError::Missing(what))
    }
}

/// All of the process.
pub fn main() -> ExitCode {
    let watch = Stopwatch::start();
    if first::is_first() {
        first::begin();
    }
    let ended = match rustix::io::dup(std::io::stdin()) {
        Ok(end) => run(&Link::new(end), watch),
        Err(error) => Err(ProcessError::Link(error.into())),
    };
    let exit = ended.unwrap_or_else(|error| {
        let (exit, message) = error.exit();
        crate::cli::say(&format!("vmm: {message}\n"));
        exit
    });
    ExitCode::from(exit.code())
}

fn run(link: &Link, watch: Stopwatch) -> Result<Exit, ProcessError> {
    let received = link.receive::<Start>().map_err(ProcessError::Link)?;
    let gone = || ProcessError::Link(std::io::ErrorKind::UnexpectedEof.into());
    let (start, files) = received.ok_or_else(gone)?;
    let files = Files(start.given.iter().copied().zip(files).collect());
    match Vm::ready(&start, files, watch) {
        Ok(vm) => {
            // An agent that has ended finds this one again by its folder.
            let _ = link.send(&vm.told()?, &[]);
            vm.run(start.hold)
        }
        Err(error) => {
            let (exit, message) = error.exit();
            let told = Told::Failed { code: exit.code(), message: message.clone() };
            let _ = link.send(&told, &[]);
            crate::cli::say(&format!("vmm: {message}\n"));
            Ok(exit)
        }
    }
}

/// A VM that is ready to boot.
struct Vm {
    machine: machine::Machine,
    control: Control,
    /// What its network device counts.
    network: Option<Arc<NetCounters>>,
    vsock: Option<VsockEnd>,
    report: Report,
    report_file: File,
    /// What its disk counts.
    disk: Option<Arc<DiskCounters>>,
    /// Held for as long as the VM lives.
    _lock: OwnedFd,
}

impl Vm {
    fn ready(start: &Start, mut files: Files, mut watch: Stopwatch) -> Result<Self, ProcessError> {
        let lock = files.take(Given::Lock)?;
        let kvm = kvm(files.take(Given::Kvm)?);
        let (manifest, pooled) = pooled(start, &mut files)?;
        let has_disk = disk::wanted(start.spec.disk.as_ref(), &manifest)? != (DiskSpec::None {});
        let id = pooled.id();
        let image = ImageClient::new(Box::new(pooled.clone()))
            .open_exactly(&start.spec.image, pooled.id())?;
        let file = ConsoleFile::new(files.take(Given::Console)?.into());
        let listener = UnixListener::from(files.take(Given::Socket)?);
        let (socket, output) = Socket::new(listener, Box::new(file))
            .map_err(ProcessError::file("listen at the VM's socket"))?;
        let setup = setup(start, pooled, files.take(Given::Events)?.into());
        let report_file = files.take(Given::Report)?.into();
        watch.phase("given");

        let spec = &start.spec;
        let (mut devices, mut network, mut identifiers) = (Vec::new(), None, None);
        if let Some(described) = start.network.clone() {
            let attachment = Attachment::from_parts(files.take(Given::Tap)?, described);
            let made = attachment.into_device()?;
            devices.push(made.device);
            network = Some(made.counters);
            identifiers = Some(made.identifiers);
        }
        let (vsock, folders) = vsock(start, &mut files, &mut devices)?.unzip();
        let mut virtio = machine::virtio_devices(devices);
        let mut queues = queue_counts(&virtio);
        queues.extend(has_disk.then_some(disk::QUEUES));
        let loaded = boot::load(&kvm, &image, spec, &queues, None, &mut watch)?;
        if let Some(words) = &start.confinement {
            let confinement: Confinement = words.parse().map_err(ProcessError::Confinement)?;
            let features = Features {
                net: network.is_some(),
                disk: has_disk,
                vsock: vsock.is_some(),
                attach: true,
                images: true,
            };
            confinement.enter(features, folders.unwrap_or_default())?;
            watch.phase("jail");
        }
        // Its threads are started in the jail.
        let disk = disk(start, manifest, id, &mut files)?;
        let disk_counters = disk.as_ref().map(|disk| Arc::clone(&disk.counters));
        virtio.extend(disk.map(|disk| disk.device));
        let (control, end) = Control::start(setup)
            .map_err(MachineError::system("start what is behind the control device"))?;
        let console = Console { output: Box::new(output), keyboard: Keyboard::Socket(socket) };
        let around = machine::Around { console, control: end, virtio, identifiers };
        let (machine, mut report) = loaded.assemble(spec, around, false, watch)?;
        report.network.clone_from(&start.network);
        let disk = disk_counters;
        Ok(Self { machine, control, network, vsock, report, report_file, disk, _lock: lock })
    }

    fn told(&self) -> Result<Told, ProcessError> {
        let phases = self.report.phases.iter().map(ToldPhase::from).collect();
        let report = serde_json::to_value(&self.report)
            .map_err(|error| ProcessError::file("write the report")(error.into()))?;
        Ok(Told::Ready { phases, report })
    }

    fn run(self, hold: bool) -> Result<Exit, ProcessError> {
        let Self { machine, control, network, vsock, mut report, mut report_file, disk, _lock } =
            self;
        let lived = machine.run(hold);
        // Whatever ended it, what the guest has said is written.
        let said = control.end();
        let Life { outcome, ran, kvm, settled, control, overhead_bytes } = lived?;
        let (exit, run_ms, control) = (Exit::from(&outcome), milliseconds(ran), control.into());
        let guest = GuestReport {
            outcome,
            run_ms,
            kvm,
            settled,
            disk: disk.as_deref().map(DiskCounters::report),
            said,
            control,
            network: network.map(|counters| counters.read()),
            vsock: vsock.map(|end| end.report()),
            overhead_bytes,
        };
        report.guest = Some(guest);
        let text = serde_json::to_vec(&report).map_err(std::io::Error::from);
        text.and_then(|text| report_file.write_all(&text))
            .map_err(ProcessError::file("write the report"))?;
        Ok(exit)
    }
}

/// KVM, as it was opened by the agent.
fn kvm(file: OwnedFd) -> Kvm {
    // SAFETY: an open descriptor of /dev/kvm, which is this one's alone from here on.
    unsafe { Kvm::from_raw_fd(file.into_raw_fd()) }
}

/// The image, as the agent's pool has it.
fn pooled(start: &Start, files: &mut Files) -> Result<(Arc<Manifest>, Prepared), ProcessError> {
    let id: ManifestId =
        start.manifest.parse().map_err(|_| ProcessError::Id(start.manifest.clone()))?;
    let mut bytes = Vec::new();
    File::from(files.take(Given::Manifest)?)
        .take(MAX_MANIFEST)
        .read_to_end(&mut bytes)
        .map_err(ProcessError::file("read the image's manifest"))?;
    let manifest = Arc::new(Manifest::decode_as(&id, &bytes)?);
    let file = Arc::new(File::from(files.take(Given::Image)?));
    let image = start.spec.image.clone();
    let pooled = Prepared::new(image, id, Arc::clone(&manifest), file, start.huge_pages);
    Ok((manifest, pooled))
}

/// The image's disk, if the guest is to have it: not out of the pool, but from who serves it.
fn disk(
    start: &Start,
    manifest: Arc<Manifest>,
    id: ManifestId,
    files: &mut Files,
) -> Result<Option<Disk>, ProcessError> {
    let spec = disk::wanted(start.spec.disk.as_ref(), &manifest)?;
    if spec == (DiskSpec::None {}) {
        return Ok(None);
    }
    let overlay = match spec {
        DiskSpec::Overlay { .. } => Some(files.take(Given::Overlay)?.into()),
        DiskSpec::None {} | DiskSpec::Ro {} => None,
    };
    let stream = UnixStream::from(files.take(Given::Chunks)?);
    let source = Arc::new(ServedSource::new(manifest, stream));
    Ok(disk::device(&spec, &id, source, overlay)?)
}

/// Makes the socket device, if there is to be one; with what a jailed VM has to keep of its folder.
fn vsock(
    start: &Start,
    files: &mut Files,
    devices: &mut Vec<Box<dyn VirtioDevice>>,
) -> Result<Option<(VsockEnd, Vec<Folder>)>, ProcessError> {
    let (Some(spec), Some(socket)) = (&start.spec.vsock, &start.vsock) else { return Ok(None) };
    let listener = UnixListener::from(files.take(Given::Vsock)?);
    let failed = || ProcessError::file("make the socket device");
    let (seen, folders) = if start.confinement.is_some() {
        let (seen, folder) = vsock::in_jail(socket).map_err(failed())?;
        (seen, vec![folder])
    } else {
        (socket.clone(), Vec::new())
    };
    let (device, end) = vsock::device(spec.cid, listener, seen).map_err(failed())?;
    devices.push(device);
    Ok(Some((end, folders)))
}

/// What is behind the control device.
fn setup(start: &Start, pooled: Prepared, events: File) -> Setup {
    let spec = &start.spec;
    let endpoints = if spec.endpoint.is_some() { feature::ENDPOINTS } else { 0 };
    let identity = Identity {
        name: start.name.to_string(),
        image: spec.image.to_string(),
        manifest: pooled.id().0,
        cpus: spec.cpus.into(),
        memory_bytes: spec.memory,
        rights: spec.endpoint.as_ref().map_or(0, EndpointSpec::device_rights),
        features: feature::IMAGES | feature::EVENTS | feature::EVENT_LINE | endpoints,
        commands: TENANT_RATE,
        boots: BOOT_RATE,
    };
    let own = (spec.image.clone(), pooled.id());
    // Its own, and no other.
    let opener = move || Ok(ImageClient::new(Box::new(pooled.clone())));
    let images = Images::new(Some(Box::new(opener)), own, Vec::new());
    Setup { identity, images, manager: None, events: Some(events) }
}
