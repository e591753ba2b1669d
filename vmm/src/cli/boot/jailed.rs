//! `vmm boot --jail`: the VM in a process of its own, in a jail.
//!
//! This process stays outside and waits: it passes signals on, restores the terminal whatever happens,
//! removes the control group, and ends as the VM does.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::str::FromStr;

use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::cli::{CliError, say};
use crate::exit::Exit;
use crate::jail::cgroup::{self, Cgroup, CgroupError, Limits};
use crate::jail::confine::Confinement;
use crate::jail::first;
use crate::jail::identity::Identity;
use crate::jail::launch::{End, Jail, JailSpec, JailedProcess, LaunchError, Program};
use crate::jail::seccomp::Mode;
use crate::net::{Attachment, Network};
use crate::spec::VmSpec;

/// The group of those of VMs that are started by hand.
const GROUP: &str = "vmm";

/// Whether and how a VM is in a jail.
#[derive(Debug, Args)]
#[command(next_help_heading = "Jail")]
pub struct JailOptions {
    /// Run the VM in a process that has given up what it does not need: in namespaces and, where there
    /// is cgroup v2, a control group of its own, with an empty root, no network, no privileges, and
    /// few system calls. As root it is a user of its own as well. 'vmm check' says what this host has
    /// for it.
    #[arg(long)]
    jail: bool,

    /// What becomes of a system call that a jailed VM has no use for: it kills the VM, or the kernel
    /// notes it in its log, or nothing looks.
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Mode::Kill, requires = "jail", hide = true)]
    seccomp: Mode,

    /// What the process inside gives up; said by the one outside.
    #[arg(long, value_name = "WORDS", requires = "jail", hide = true)]
    pub confinement: Option<Confinement>,

    /// The network that descriptor 3 is a connection to; said by the one outside.
    #[arg(long, value_name = "JSON", requires = "confinement", hide = true)]
    attached: Option<Attached>,
}

/// Where the process inside finds its TAP: behind its standard files.
const TAP: i32 = 3;

/// A network, as JSON.
#[derive(Debug, Clone)]
struct Attached(Network);

impl FromStr for Attached {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map(Self).map_err(|error| error.to_string())
    }
}

impl JailOptions {
    /// Whether the VM is, or is to be, in a jail.
    pub fn is_jailed(&self) -> bool {
        self.jail
    }

    /// Whether this process is to start one in a jail.
    pub fn is_outside(&self) -> bool {
        self.jail && self.confinement.is_none()
    }

    /// In the jail: before anything else.
    pub fn begin(&self) {
        if self.confinement.is_some() && first::is_first() {
            first::begin();
        }
    }

    /// In the jail: the connection to the network that the process outside has made.
    pub fn attachment(&self) -> Option<Attachment> {
        let Attached(network) = self.attached.clone()?;
        // SAFETY: who said so put a descriptor there, which nobody else knows of (`run`).
        let tap = unsafe { OwnedFd::from_raw_fd(TAP) };
        Some(Attachment::from_parts(tap, network))
    }

    /// Starts the VM in a jail and waits for its end.
    ///
    /// # Errors
    /// What the host refused.
    pub fn start(
        &self,
        vm: &VmSpec,
        attachment: Option<Attachment>,
        by_network: bool,
    ) -> Result<Exit, CliError> {
        let number = std::process::id();
        let cgroup = group(&format!("vm-{number}"), vm)?;
        let ended = self.run(number, cgroup.as_ref(), attachment, by_network);
        let out_of_memory = cgroup
            .as_ref()
            .is_some_and(|cgroup| cgroup.memory_events().is_ok_and(|events| events.oom_kill > 0));
        if let Some(cgroup) = cgroup
            && let Err(error) = cgroup.remove()
        {
            log::warn!("{error}");
        }
        Ok(exit(ended?, out_of_memory))
    }

    fn run(
        &self,
        number: u32,
        cgroup: Option<&Cgroup>,
        attachment: Option<Attachment>,
        by_network: bool,
    ) -> Result<End, CliError> {
        let jail = Jail::prepare(JailSpec {
            identity: Identity::best(number),
            cgroup,
            loads_by_network: by_network,
            own_session: false,
            ends_by: Some(SIGTERM),
        })?;
        let confinement = Confinement {
            user: jail.user(),
            leave_network: jail.has_network(),
            seccomp: self.seccomp,
            ends_by: Some(SIGTERM),
            ..Confinement::default()
        };
        let mut arguments: Vec<_> = std::env::args_os().collect();
        arguments.extend(["--confinement".into(), confinement.to_string().into()]);
        let (tap, network) = attachment.map(Attachment::into_parts).unzip();
        if let Some(network) = network {
            let text = serde_json::to_string(&network).map_err(std::io::Error::from);
            let text = text.map_err(LaunchError::Process)?;
            arguments.extend(["--attached".into(), text.into()]);
        }
        let environment = std::env::vars_os().map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            name
        });
        let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let program = Program {
            arguments,
            environment: environment.collect(),
            standard: [input.as_fd(), output.as_fd(), error.as_fd()],
            files: tap.iter().map(AsFd::as_fd).collect(),
        };
        let signals = Signals::new().map_err(LaunchError::Process)?;
        let terminal = SavedTerminal::of(input.as_fd());
        let process = jail.spawn(&program)?;
        let end = signals.pass_on(&process).map_err(LaunchError::Process)?;
        drop(terminal);
        Ok(end)
    }
}

/// The VM's control group, where this host has what its limits need. Where nobody asked for limits, a VM
/// runs without a group as well.
fn group(name: &str, vm: &VmSpec) -> Result<Option<Cgroup>, CgroupError> {
    let limits = Limits::new(&vm.limits, vm.memory, vm.cpus, &[]);
    let made = cgroup::Parent::create(Path::new(GROUP)).and_then(|parent| {
        if parent.controllers().is_empty() {
            let missing = cgroup::CONTROLLERS.join(", ");
            // Made in vain.
            let _ = cgroup::remove_parent(&parent);
            return Err(CgroupError::NoControllers { group: parent.path().into(), missing });
        }
        parent.vm(name, &limits)
    });
    match made {
        Ok(cgroup) => Ok(Some(cgroup)),
        Err(error) if vm.limits.is_empty() => {
            log::info!("jail: no limits: {error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// How this process ends after that of the VM.
fn exit(end: End, out_of_memory: bool) -> Exit {
    match end {
        End::Exited(code) => Exit::Jailed(code),
        end if end.is_forbidden_call() => {
            say(
                "vmm: the VM's process made a system call that is forbidden to it, and was killed; the \
                 kernel's log says which (type=1326)\n",
            );
            Exit::ForbiddenCall
        }
        End::Killed(signal) => {
            if out_of_memory {
                say("vmm: the VM's process was killed: it took more memory than its limit; see \
                     memory-overhead of --limits\n");
            } else {
                say(&format!("vmm: the VM's process was killed by signal {signal}\n"));
            }
            Exit::Signal(u8::try_from(signal).unwrap_or(0))
        }
    }
}

/// The terminal as it was, which it is again when this is dropped.
struct SavedTerminal<'a>(BorrowedFd<'a>, Termios);

impl<'a> SavedTerminal<'a> {
    fn of(input: BorrowedFd<'a>) -> Option<Self> {
        isatty(input).then(|| tcgetattr(input).ok()).flatten().map(|before| Self(input, before))
    }
}

impl Drop for SavedTerminal<'_> {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(self.0, OptionalActions::Now, &self.1) {
            log::error!("the terminal cannot be restored: {error}; type 'reset'");
        }
    }
}

/// Signals that are the VM's.
struct Signals(Vec<(Signal, UnixStream)>);

impl Signals {
    fn new() -> std::io::Result<Self> {
        let pipes = [(SIGINT, Signal::INT), (SIGTERM, Signal::TERM), (SIGHUP, Signal::HUP)];
        let register = |(number, signal)| {
            let (read, write) = UnixStream::pair()?;
            read.set_nonblocking(true)?;
            signal_hook::low_level::pipe::register(number, write)?;
            Ok((signal, read))
        };
        pipes.into_iter().map(register).collect::<std::io::Result<_>>().map(Self)
    }

    /// Passes signals on to `process` until that ends.
    fn pass_on(&self, process: &JailedProcess) -> std::io::Result<End> {
        loop {
            let of = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
            let pipes = self.0.iter().map(|(_, pipe)| of(pipe.as_fd()));
            let mut waited: Vec<_> = std::iter::once(of(process.as_fd())).chain(pipes).collect();
            match poll(&mut waited, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for (signal, pipe) in &self.0 {
                if rustix::io::read(pipe, &mut [0; 64]).is_ok_and(|count| count > 0) {
                    // If it has ended just now, that is what is waited for.
                    let _ = process.signal(*signal);
                }
            }
            if let Some(end) = process.try_wait()? {
                return Ok(end);
            }
        }
    }
}
