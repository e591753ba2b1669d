//! Starts the process of a VM, and gives it all that it needs.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

use super::group;
use super::pool::Held;
use crate::api::VmNetwork;
use crate::cli::chunk_server;
use crate::control::vms::folder::VmFolder;
use crate::disk;
use crate::jail::Confinement;
use crate::jail::cgroup::{Cgroup, CgroupError};
use crate::jail::identity::Identity;
use crate::jail::launch::{Jail, JailSpec, Program};
use crate::net::{self, Attachment};
use crate::process;
use crate::process::link::{Given, Link, Start};
use crate::spec::VmSpec;
use crate::spec::disk::DiskSpec;
use crate::spec::name::VmName;

/// Starts processes.
#[derive(Debug)]
pub struct Launcher {
    /// Whether VMs are in jails.
    jailed: bool,
    kvm: File,
    /// The words of the command that serves chunks of disks.
    chunk_server: OnceLock<Vec<OsString>>,
}

/// A process that was started.
#[derive(Debug)]
pub struct Launched {
    /// A handle of it.
    pub process: OwnedFd,
    /// The agent's end of its link.
    pub link: Link,
}

/// What a VM is started as.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Its number.
    pub number: u64,
    /// Its name.
    pub name: &'a VmName,
    /// What it is to be.
    pub spec: &'a VmSpec,
    /// Whether it waits when it is ready.
    pub hold: bool,
    /// Its image.
    pub image: &'a Held,
    /// Its folder.
    pub folder: &'a VmFolder,
    /// The lock of the folder, which the process holds for as long as it lives.
    pub lock: File,
}

/// The name of a VM's socket in its folder.
pub const SOCKET: &str = "socket";
/// The socket of its socket device, in a folder of its own: the one thing of the host's files that a jailed
/// VM sees.
pub const VSOCK: &str = "vsock/socket";
/// The name of its console's file.
pub const CONSOLE: &str = "console";
/// The name of the file with what the guest says of itself.
pub const EVENTS: &str = "events";
/// The name of the file of its report.
pub const REPORT: &str = "report";

/// Waits for the end of a server of chunks, which comes with that of its VM, so that nothing of it is left.
fn reap(mut server: Child) -> io::Result<()> {
    const STACK: usize = 64 << 10;
    let id = server.id();
    let wait = move || {
        if let Err(error) = server.wait() {
            log::warn!("process {id}, which served the chunks of a disk: {error}");
        }
    };
    thread::Builder::new().name("chunk-server".into()).stack_size(STACK).spawn(wait).map(drop)
}

/// The jail of a VM.
fn jail(number: u64, cgroup: Option<&Cgroup>) -> JailSpec<'_> {
    // Of as many VMs as there are numbers, none lives as long as the next one of its number.
    let user = u32::try_from(number % u64::from(u32::MAX)).unwrap_or_default();
    JailSpec {
        identity: Identity::best(user),
        cgroup,
        loads_by_network: false,
        own_session: true,
        ends_by: None,
    }
}

impl Launcher {
    /// Starts this program, with this `/dev/kvm`.
    ///
    /// # Errors
    /// There are to be jails, and this host has none.
    pub fn new(kvm: File, jailed: bool) -> io::Result<Self> {
        if jailed {
            Jail::prepare(jail(0, None)).map_err(|error| {
                io::Error::other(format!("{error}; or do without jails (--no-jail)"))
            })?;
        }
        Ok(Self { jailed, kvm, chunk_server: OnceLock::new() })
    }

    /// The words by which chunks of disks are served; the first that are said count.
    pub fn serve_chunks_by(&self, words: Vec<OsString>) {
        let _ = self.chunk_server.set(words);
    }

    /// Starts who serves the chunks of the image's disk to its VM, in a process of its own, since it has
    /// to outlive the agent as the VM does; it ends when the VM's end of the stream is closed.
    fn serve_chunks(&self, image: &Held, spec: &VmSpec, log: File) -> io::Result<OwnedFd> {
        let (here, there) = UnixStream::pair()?;
        let child = Command::new("/proc/self/exe")
            .arg0("vmm")
            .args(self.chunk_server.get_or_init(chunk_server::default_words))
            .arg("--image")
            .arg(spec.image.to_string())
            .arg("--manifest")
            .arg(image.id().to_string())
            .stdin(Stdio::from(OwnedFd::from(there)))
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()?;
        reap(child)?;
        Ok(here.into())
    }

    /// Starts the process of a VM. It is of a process group of its own, so that what ends the agent at a
    /// terminal does not end it.
    ///
    /// `known` is told its number and where it is on the network, before it is given anything: what it notes
    /// then, an agent that comes after this one finds. Until it is given what it needs, the process ends
    /// with this one.
    ///
    /// # Errors
    /// The system's, and that of `known`.
    pub fn start(
        &self,
        wanted: Wanted<'_>,
        known: impl FnOnce(u32, Option<VmNetwork>) -> io::Result<()>,
    ) -> io::Result<Launched> {
        let Wanted { number, name, spec, hold, image, folder, lock } = wanted;
        let make = |name: &str| File::create(folder.file(name));
        let (console, events, report) = (make(CONSOLE)?, make(EVENTS)?, make(REPORT)?);
        let socket = UnixListener::bind(folder.file(SOCKET))?;
        let vsock = spec.vsock.as_ref().map(|_| folder.file(VSOCK));
        if let Some(parent) = vsock.as_ref().and_then(|socket| socket.parent()) {
            fs::create_dir(parent)?;
        }
        let vsock_socket = vsock.as_ref().map(UnixListener::bind).transpose()?;
        let manifest = image.manifest()?;
        let attachment = net::open(&spec.net, name.as_str()).map_err(io::Error::other)?;
        let mut spec = spec.clone();
        let (tap, network) = attachment.map(Attachment::into_parts).unzip();
        if let Some(network) = &network {
            spec.cmdline_append = network.command_line_with(spec.cmdline_append.as_deref());
        }
        let (mut chunks, mut overlay) = (None, None);
        if image.has_disk() && !matches!(spec.disk, Some(DiskSpec::None {})) {
            if let Some(DiskSpec::Overlay { file: Some(file), .. }) = &spec.disk {
                // Who may boot VMs may not for that reason write to any file that the agent can.
                return Err(io::Error::other(format!(
                    "an agent's VMs have no overlays that are kept: leave out the file '{}'",
                    file.display()
                )));
            }
            if let Some(disk) = &spec.disk {
                overlay = disk::open_overlay(disk).map_err(io::Error::other)?;
            }
            chunks = Some(self.serve_chunks(image, &spec, make("chunk-server")?)?);
        }
        let (here, there) = Link::pair()?;
        let (pid, process, confinement) =
            self.execute(number, &spec, there.into_inner(), make("stderr")?)?;
        let mut given = vec![
            (Given::Lock, lock.as_fd()),
            (Given::Kvm, self.kvm.as_fd()),
            (Given::Image, image.file()),
            (Given::Manifest, manifest.as_fd()),
            (Given::Console, console.as_fd()),
            (Given::Events, events.as_fd()),
            (Given::Report, report.as_fd()),
            (Given::Socket, socket.as_fd()),
        ];
        given.extend(tap.as_ref().map(|tap| (Given::Tap, tap.as_fd())));
        given.extend(chunks.as_ref().map(|chunks| (Given::Chunks, chunks.as_fd())));
        given.extend(overlay.as_ref().map(|overlay| (Given::Overlay, overlay.as_fd())));
        given.extend(vsock_socket.as_ref().map(|socket| (Given::Vsock, socket.as_fd())));
        let (names, files): (Vec<_>, Vec<_>) = given.into_iter().unzip();
        let placed = network.as_ref().map(VmNetwork::from);
        let start = Start {
            number,
            name: name.clone(),
            spec,
            network,
            confinement,
            hold,
            manifest: image.id().to_string(),
            huge_pages: image.huge_pages(),
            vsock,
            given: names,
        };
        let given = fs::write(folder.file("pid"), pid.to_string())
            .and_then(|()| known(pid, placed))
            .and_then(|()| here.send(&start, &files));
        if let Err(error) = given {
            // Nobody watches it yet.
            let _ = pidfd_send_signal(&process, Signal::KILL);
            let _ = waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED);
            group::remove(number);
            return Err(error);
        }
        Ok(Launched { process, link: here })
    }

    /// Starts this program, with `input` and `errors`, in a jail or not; its number, a handle of it, and
    /// how it is to confine itself.
    fn execute(
        &self,
        number: u64,
        spec: &VmSpec,
        input: OwnedFd,
        errors: File,
    ) -> io::Result<(u32, OwnedFd, Option<String>)> {
        if !self.jailed {
            let child = Command::new("/proc/self/exe")
                .arg0("vmm")
                .arg(process::ARGUMENT)
                .stdin(Stdio::from(input))
                .stdout(Stdio::null())
                .stderr(errors)
                .process_group(0)
                .spawn()?;
            let pid = child.id();
            // Nobody else waits for it, so the number is still its own.
            let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let raw = raw.ok_or(io::ErrorKind::InvalidData)?;
            return Ok((pid, pidfd_open(raw, PidfdFlags::empty())?, None));
        }
        // What the host has not is no failure of the agent's.
        let refused = |error: CgroupError| match error {
            CgroupError::NoHierarchy | CgroupError::NoControllers { .. } => {
                io::Error::new(io::ErrorKind::Unsupported, error)
            }
            error => io::Error::other(error),
        };
        let group = group::make(number, spec).map_err(refused)?;
        let jail = Jail::prepare(jail(number, group.as_ref())).map_err(io::Error::other)?;
        let nothing = File::options().write(true).open("/dev/null")?;
        let program = Program {
            arguments: vec!["vmm".into(), process::ARGUMENT.into()],
            environment: Vec::new(),
            standard: [input.as_fd(), nothing.as_fd(), errors.as_fd()],
            files: Vec::new(),
        };
        let started = jail.spawn(&program).map_err(|error| {
            group::remove(number);
            io::Error::other(error)
        })?;
        let confinement = Confinement { user: jail.user(), ..Confinement::default() };
        let pid = u32::try_from(started.pid().as_raw_nonzero().get()).unwrap_or_default();
        Ok((pid, started.into_fd(), Some(confinement.to_string())))
    }
}
