//! What the process of a VM does between being made and executing its program.
//!
//! It is a copy of a process whose other threads were not copied, and may have held any lock: so nothing
//! here allocates, formats or locks. All it needs was laid out before ([`Plan`]).

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::RawFd;

/// The word with which it may go on.
pub(super) const GO: u8 = b'.';
/// The program: the one that this process runs, whatever has become of its file.
const PROGRAM: &[u8] = b"/proc/self/exe\0";
/// The name of the machine, in a namespace of its own.
const HOST_NAME: &[u8] = b"vm";

/// What it was at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for its users.
    Gate = 1,
    /// A view of its own of control groups.
    Groups,
    /// A session of its own.
    Session,
    /// Its end with that of who started it.
    EndsBy,
    /// Its files.
    Files,
    /// The program.
    Execute,
}

impl Stage {
    const ALL: [Self; 6] =
        [Self::Gate, Self::Groups, Self::Session, Self::EndsBy, Self::Files, Self::Execute];

    /// What went wrong, out of what [`fail`] wrote.
    pub(super) fn parse(words: &[u8]) -> Option<(Self, io::Error)> {
        let (stage, number) = (words.first()?, words.get(1..5)?.try_into().ok()?);
        let stage = Self::ALL.into_iter().find(|known| *known as u8 == *stage)?;
        Some((stage, io::Error::from_raw_os_error(i32::from_ne_bytes(number))))
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gate => "go on",
            Self::Groups => "have its own view of control groups",
            Self::Session => "have a session of its own",
            Self::EndsBy => "end with who started it",
            Self::Files => "have its files",
            Self::Execute => "execute the program",
        })
    }
}

/// All that the new process needs.
#[derive(Debug)]
pub(super) struct Plan {
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    /// What becomes descriptor 0, 1, 2 and on.
    files: Vec<RawFd>,
    /// The same while they are put in their places.
    moved: std::cell::UnsafeCell<Vec<RawFd>>,
    gate: RawFd,
    /// The other end of the gate, its parent's.
    opener: RawFd,
    report: RawFd,
    own_session: bool,
    ends_by: Option<i32>,
}

impl Plan {
    /// For a program; `arguments` and `environment` outlive this.
    pub fn new(arguments: &[CString], environment: &[CString], files: Vec<RawFd>) -> Self {
        let pointers = |strings: &[CString]| {
            let each = strings.iter().map(|string| string.as_ptr());
            each.chain([std::ptr::null()]).collect()
        };
        Self {
            arguments: pointers(arguments),
            environment: pointers(environment),
            moved: vec![-1; files.len()].into(),
            files,
            gate: -1,
            opener: -1,
            report: -1,
            own_session: false,
            ends_by: None,
        }
    }

    /// It waits at `gate` for a word, which comes by `opener`, and writes to `report` what goes wrong.
    pub fn gate(self, gate: RawFd, opener: RawFd, report: RawFd) -> Self {
        Self { gate, opener, report, ..self }
    }

    /// Whether it has a session of its own.
    pub fn own_session(self, own_session: bool) -> Self {
        Self { own_session, ..self }
    }

    /// The signal that it gets when the thread that made it ends.
    pub fn ends_by(self, ends_by: Option<i32>) -> Self {
        Self { ends_by, ..self }
    }
}

/// Executes the program of `plan`, or reports why not.
///
/// # Safety
/// This is a new process of one thread, in a copy of the memory of the one that made `plan`.
pub(super) unsafe fn run(plan: &Plan) -> ! {
    // Or it would wait for ever, with all that is open in its parent, should that die now: a process that is being
    // started beside it has a copy of the other end of the gate, too.
    // SAFETY: a system call.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // Should it have died before this: nobody else has that end for long, since of those beside it only the younger
    // have it, and nobody has the youngest's.
    // SAFETY: a system call, on a descriptor of which this process has a copy of its own.
    unsafe { libc::close(plan.opener) };
    let mut word = 0u8;
    // SAFETY: a system call on this process' own memory and descriptors, by a function of the C library
    // that does nothing else.
    let read = unsafe { libc::read(plan.gate, (&raw mut word).cast(), 1) };
    if read != 1 || word != GO {
        fail(plan, Stage::Gate);
    }
    // SAFETY: as above.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        // A host may call it something else, or refuse: the name is a courtesy.
        libc::sethostname(HOST_NAME.as_ptr().cast(), HOST_NAME.len());
    }
    // Made now, since its root is where this process is: in its own group.
    // SAFETY: as above.
    if unsafe { libc::unshare(libc::CLONE_NEWCGROUP) } < 0 {
        fail(plan, Stage::Groups);
    }
    // SAFETY: as above.
    if plan.own_session && unsafe { libc::setsid() } < 0 {
        fail(plan, Stage::Session);
    }
    let ends_by = plan.ends_by.unwrap_or(0);
    // SAFETY: as above.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, ends_by) } < 0 {
        fail(plan, Stage::EndsBy);
    }
    // SAFETY: as above.
    if !unsafe { place_files(plan) } {
        fail(plan, Stage::Files);
    }
    // SAFETY: as above; the words and the lists of them end with zeros.
    unsafe {
        libc::execve(PROGRAM.as_ptr().cast(), plan.arguments.as_ptr(), plan.environment.as_ptr());
    }
    fail(plan, Stage::Execute)
}

/// Puts the files in their places: first all out of the way, then each where it belongs. What else is
/// open is closed by the execution.
///
/// # Safety
/// As for [`run`].
unsafe fn place_files(plan: &Plan) -> bool {
    // SAFETY: nobody else refers to it: this process has one thread.
    let moved = unsafe { &mut *plan.moved.get() };
    let Ok(count) = libc::c_int::try_from(plan.files.len()) else { return false };
    for (to, from) in moved.iter_mut().zip(&plan.files) {
        // SAFETY: a system call; above all that there is to be, and above the pipes, which may be there
        // already: they are closed by no `dup2` then.
        *to = unsafe { libc::fcntl(*from, libc::F_DUPFD_CLOEXEC, count.max(3)) };
        if *to < 0 {
            return false;
        }
    }
    // SAFETY: as above.
    let report = unsafe { libc::fcntl(plan.report, libc::F_DUPFD_CLOEXEC, count.max(3)) };
    if report < 0 {
        return false;
    }
    for (place, from) in (0..count).zip(moved.iter()) {
        // SAFETY: as above.
        if unsafe { libc::dup2(*from, place) } < 0 {
            // Where the report goes may be closed by now.
            fail_at(report, Stage::Files);
        }
    }
    // Of kernels before 5.11, whatever was opened without the flag stays open.
    // SAFETY: a system call.
    unsafe {
        libc::syscall(libc::SYS_close_range, count, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
    true
}

fn fail(plan: &Plan, stage: Stage) -> ! {
    fail_at(plan.report, stage)
}

/// Says what went wrong, and ends.
fn fail_at(report: RawFd, stage: Stage) -> ! {
    // SAFETY: the C library's own place for it, of this thread.
    let number = unsafe { *libc::__errno_location() }.to_ne_bytes();
    let words = [stage as u8, number[0], number[1], number[2], number[3]];
    // SAFETY: as many bytes as there are; and the end of this process.
    unsafe {
        libc::write(report, words.as_ptr().cast(), words.len());
        libc::_exit(127)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_read_as_they_are_written() {
        for stage in Stage::ALL {
            let mut words = vec![stage as u8];
            words.extend(libc::ENOENT.to_ne_bytes());
            let (read, source) = Stage::parse(&words).unwrap();
            assert_eq!((read, source.raw_os_error()), (stage, Some(libc::ENOENT)));
        }
        assert!(Stage::parse(&[]).is_none());
        assert!(Stage::parse(&[99, 0, 0, 0, 0]).is_none());
    }
}
