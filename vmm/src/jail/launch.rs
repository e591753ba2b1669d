//! The outer half: starts the process of a VM, directly in namespaces and a control group of its own.
//!
//! One `clone3` makes the process with all of them: no thread of this process has to be anywhere else
//! first, and a process that is made in its group need not be moved there, which waits for all
//! processors of the host. The process is a copy of this one for as long as it takes to execute the
//! program, and does nothing in between that a copy of a process with threads may not
//! ([`child`](super::child)).
//!
//! Users: inside, number 0 is who started it, since what it opens before it confines itself is opened
//! as they could; and number 1, which it then becomes, is a number of the host that nobody else has.

use std::ffi::{CString, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::OnceLock;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getegid, geteuid, pidfd_open,
    pidfd_send_signal, waitid,
};

use super::cgroup::Cgroup;
use super::child::{self, Plan, Stage};
use super::identity::Identity;
use super::namespaces;

/// The user and the group that a process becomes in a user namespace, if they are others than those of
/// who started it.
const INSIDE: u32 = 1;

/// Why the process of a VM was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No user namespaces, without which only root has others.
    #[error("a jail needs namespaces, which this host refuses ({source}); {hint}")]
    Namespaces {
        /// The kernel's reason.
        source: io::Error,
        /// What to do.
        hint: String,
    },
    /// The numbers of users and groups inside could not be set.
    #[error("cannot map users into the jail ({map} '{content}'): {source}")]
    Map {
        /// The file.
        map: &'static str,
        /// What was to be in it.
        content: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// An argument with a zero byte.
    #[error("an argument of the VM's process has a zero byte in it")]
    Argument,
    /// The host refused a process or a pipe.
    #[error("cannot start the process of a VM: {0}")]
    Process(io::Error),
    /// The new process could not become what it was to be.
    #[error("the process of a VM cannot {stage}: {source}")]
    Child {
        /// What it was at.
        stage: Stage,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// How the process of a VM is separated from others.
#[derive(Debug)]
pub struct JailSpec<'a> {
    /// Who it is when it has confined itself.
    pub identity: Identity,
    /// Its control group; that of this process if there is none.
    pub cgroup: Option<&'a Cgroup>,
    /// Whether it loads over the host's network: then it leaves that when it confines itself, and not
    /// before.
    pub loads_by_network: bool,
    /// Whether it is out of reach of the terminal's signals.
    pub own_session: bool,
    /// The signal that it gets when the thread that starts it ends.
    pub ends_by: Option<i32>,
}

/// What runs in a jail: this program.
#[derive(Debug)]
pub struct Program<'a> {
    /// Its words; the first is its name.
    pub arguments: Vec<OsString>,
    /// Its environment, as NAME=VALUE.
    pub environment: Vec<OsString>,
    /// Its standard input, output and error.
    pub standard: [BorrowedFd<'a>; 3],
    /// Other files that it has: descriptors 3 and on.
    pub files: Vec<BorrowedFd<'a>>,
}

/// A jail that can be entered.
#[derive(Debug)]
pub struct Jail<'a> {
    spec: JailSpec<'a>,
    /// Whether users have a namespace, too.
    users: bool,
}

impl<'a> Jail<'a> {
    /// Looks whether this host can make it.
    ///
    /// # Errors
    /// [`LaunchError::Namespaces`].
    pub fn prepare(spec: JailSpec<'a>) -> Result<Self, LaunchError> {
        match user_namespaces() {
            Ok(()) => Ok(Self { spec, users: true }),
            Err(error) if geteuid().is_root() => {
                log::info!("jail: no user namespaces ({error}), going on as root without");
                Ok(Self { spec, users: false })
            }
            Err(source) => Err(LaunchError::Namespaces { source, hint: namespaces::hint() }),
        }
    }

    /// The user and group that the process is to become, as it knows them; none: it stays who it is.
    pub fn user(&self) -> Option<(u32, u32)> {
        let Identity::Number(number) = self.spec.identity else { return None };
        let number = if self.users { INSIDE } else { number };
        Some((number, number))
    }

    /// Whether the process has still to leave the host's network.
    pub fn has_network(&self) -> bool {
        self.spec.loads_by_network
    }

    /// Starts `program` in it.
    ///
    /// # Errors
    /// The host's refusal; then nothing runs.
    pub fn spawn(&self, program: &Program<'_>) -> Result<JailedProcess, LaunchError> {
        let (gate, open) = pipe()?;
        let (failure, report) = pipe()?;
        let strings = |words: &[OsString]| {
            let bytes = words.iter().map(|word| CString::new(word.clone().into_vec()));
            bytes.collect::<Result<Vec<_>, _>>().map_err(|_| LaunchError::Argument)
        };
        let (arguments, environment) =
            (strings(&program.arguments)?, strings(&program.environment)?);
        let files = program.standard.iter().chain(&program.files).map(AsRawFd::as_raw_fd);
        let plan = Plan::new(&arguments, &environment, files.collect())
            .gate(gate.as_raw_fd(), open.as_raw_fd(), report.as_raw_fd())
            .own_session(self.spec.own_session)
            .ends_by(self.spec.ends_by);
        let (pid, process) = self.clone(&plan)?;
        // Its ends of the pipes.
        drop((gate, report));
        let started = JailedProcess { pid, process };
        match self.let_go(pid, open, failure) {
            Ok(()) => Ok(started),
            Err(error) => {
                // It waits for a word that does not come, or has ended.
                let _ = started.signal(Signal::KILL);
                let _ = started.wait();
                Err(error)
            }
        }
    }

    fn clone(&self, plan: &Plan) -> Result<(Pid, OwnedFd), LaunchError> {
        let mut flags = namespaces::AT_START;
        if self.users {
            flags |= libc::CLONE_NEWUSER;
        }
        if !self.spec.loads_by_network {
            flags |= libc::CLONE_NEWNET;
        }
        let mut pidfd = -1;
        let mut arguments = CloneArguments::new(flags, &mut pidfd);
        if let Some(cgroup) = self.spec.cgroup {
            arguments.flags |= CLONE_INTO_CGROUP;
            arguments.cgroup = u64::try_from(cgroup.as_fd().as_raw_fd()).unwrap_or(u64::MAX);
        }
        // SAFETY: what goes on in the new process, on a copy of this stack and memory, calls nothing but
        // the kernel until it executes a program or ends.
        let pid = unsafe { clone(&arguments) };
        match pid {
            // SAFETY: this is the new process, whose plan says where what it needs is.
            Ok(0) => unsafe { child::run(plan) },
            Ok(pid) => {
                // SAFETY: the kernel has made it for this process alone.
                let process = unsafe { OwnedFd::from_raw_fd(pidfd) };
                let pid = Pid::from_raw(pid).ok_or_else(|| {
                    LaunchError::Process(io::Error::other("a process without a number"))
                })?;
                Ok((pid, process))
            }
            Err(source) if source.raw_os_error() == Some(libc::EPERM) => {
                Err(LaunchError::Namespaces { source, hint: namespaces::hint() })
            }
            Err(source) => Err(LaunchError::Process(source)),
        }
    }

    /// Says who the new process is, and lets it go on.
    fn let_go(&self, pid: Pid, open: OwnedFd, failure: OwnedFd) -> Result<(), LaunchError> {
        if self.users {
            self.map(pid)?;
        }
        rustix::io::write(&open, &[child::GO])
            .map_err(|error| LaunchError::Process(error.into()))?;
        drop(open);
        // Nothing comes, since it is closed as the program is executed; or what went wrong.
        let mut words = Vec::new();
        fs::File::from(failure).read_to_end(&mut words).map_err(LaunchError::Process)?;
        match Stage::parse(&words) {
            None => Ok(()),
            Some((stage, source)) => Err(LaunchError::Child { stage, source }),
        }
    }

    fn map(&self, pid: Pid) -> Result<(), LaunchError> {
        let write = |map: &'static str, content: String| {
            fs::write(format!("/proc/{}/{map}", pid.as_raw_nonzero()), &content)
                .map_err(|source| LaunchError::Map { map, content, source })
        };
        let lines = |own: u32| match self.spec.identity {
            Identity::Own => format!("0 {own} 1\n"),
            Identity::Number(number) => format!("0 {own} 1\n{INSIDE} {number} 1\n"),
        };
        if !geteuid().is_root() {
            // Or who was kept out of something as a member of a group could leave the group.
            write("setgroups", "deny".into())?;
        }
        write("gid_map", lines(getegid().as_raw()))?;
        write("uid_map", lines(geteuid().as_raw()))
    }
}

/// The process of a VM; goes on when this is dropped.
#[derive(Debug)]
pub struct JailedProcess {
    pid: Pid,
    process: OwnedFd,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code.
    Exited(u8),
    /// By this signal.
    Killed(i32),
}

impl End {
    /// Whether it was killed because of a system call that is forbidden to it.
    pub fn is_forbidden_call(self) -> bool {
        self == Self::Killed(libc::SIGSYS)
    }
}

impl JailedProcess {
    /// A process that another one started, as the one of before did when this is a node agent that was
    /// started again; how it ends is then known to nobody.
    ///
    /// # Errors
    /// It is gone.
    pub fn find(pid: Pid) -> io::Result<Self> {
        Ok(Self { pid, process: pidfd_open(pid, PidfdFlags::empty())? })
    }

    /// The descriptor alone.
    pub fn into_fd(self) -> OwnedFd {
        self.process
    }

    /// Its number, here.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.process, signal)?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It is not this process' child.
    pub fn wait(&self) -> io::Result<End> {
        loop {
            match self.look(WaitIdOptions::EXITED) {
                Ok(Some(end)) => return Ok(end),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// How it ended, if it has. (The descriptor of this is readable then.)
    ///
    /// # Errors
    /// It is not this process' child.
    pub fn try_wait(&self) -> io::Result<Option<End>> {
        self.look(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    fn look(&self, options: WaitIdOptions) -> io::Result<Option<End>> {
        let status = waitid(WaitId::PidFd(self.process.as_fd()), options)?;
        Ok(status.and_then(|status| {
            let exited = status.exit_status().and_then(|code| u8::try_from(code).ok());
            exited.map(End::Exited).or_else(|| status.terminating_signal().map(End::Killed))
        }))
    }
}

impl AsFd for JailedProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), LaunchError> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| LaunchError::Process(error.into()))
}

/// Whether this process may make user namespaces; asked of the kernel once.
///
/// # Errors
/// The kernel's reason.
pub fn user_namespaces() -> io::Result<()> {
    static ANSWER: OnceLock<Option<i32>> = OnceLock::new();
    let answer = ANSWER.get_or_init(|| {
        let mut pidfd = -1;
        let arguments = CloneArguments::new(libc::CLONE_NEWUSER, &mut pidfd);
        // SAFETY: the new process ends at once.
        match unsafe { clone(&arguments) } {
            // SAFETY: this is the new process, and it does nothing else.
            Ok(0) => unsafe { libc::_exit(0) },
            Ok(_) => {
                // SAFETY: the kernel has made it for this process alone.
                let process = unsafe { OwnedFd::from_raw_fd(pidfd) };
                let _ = waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED);
                None
            }
            Err(error) => error.raw_os_error().or(Some(libc::EPERM)),
        }
    });
    answer.map_or(Ok(()), |number| Err(io::Error::from_raw_os_error(number)))
}

/// Linux 5.7.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args`, as of Linux 5.7.
#[repr(C)]
#[derive(Debug, Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

impl CloneArguments {
    fn new(flags: libc::c_int, pidfd: &mut libc::c_int) -> Self {
        Self {
            flags: u64::from((flags | libc::CLONE_PIDFD).cast_unsigned()),
            pidfd: std::ptr::from_mut(pidfd) as u64,
            exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
            ..Self::default()
        }
    }
}

/// Makes a copy of this process; 0 in the copy, its number here.
///
/// # Safety
/// The copy has one thread, while others may have held locks: until it executes a program or ends, it
/// calls the kernel and nothing else.
unsafe fn clone(arguments: &CloneArguments) -> io::Result<i32> {
    // SAFETY: the kernel reads a structure of this size and writes the descriptor to where it says. With
    // a memory of its own, the copy goes on on its own stack.
    let result = unsafe {
        libc::syscall(libc::SYS_clone3, std::ptr::from_ref(arguments), size_of_val(arguments))
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}
