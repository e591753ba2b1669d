//! The inner half: the process of a VM, with all that it needs open, gives up the rest.

use std::fmt;
use std::fs;
use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::landlock::{self, Enforced};
use super::namespaces;
use super::privileges::{self, ResourceLimits};
use super::root::{self, Folder, RootError};
use super::seccomp::{self, Features, Mode};
use crate::host::own;

/// Files that a VM may have open at a time, unless said otherwise: a few for each device and processor,
/// and the connections of a vsock device.
pub const FILES: u64 = 1024;
/// Bytes of a file that a VM may write, unless said otherwise: disks have overlays.
pub const FILE_BYTES: u64 = 1 << 40;

/// How long threads may take to leave the kernel.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a process gives up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confinement {
    /// The user and group that it becomes; none: it stays who it is.
    pub user: Option<(u32, u32)>,
    /// Whether it is in the host's network, and has to leave it.
    pub leave_network: bool,
    /// What its filters do.
    pub seccomp: Mode,
    /// Limits of resources.
    pub files: u64,
    /// Bytes of a file that it may write.
    pub file_bytes: u64,
    /// The signal that it gets when the thread that started it ends: becoming somebody else forgets it.
    pub ends_by: Option<i32>,
}

impl Default for Confinement {
    fn default() -> Self {
        Self {
            user: None,
            leave_network: false,
            seccomp: Mode::Kill,
            files: FILES,
            file_bytes: FILE_BYTES,
            ends_by: None,
        }
    }
}

/// Why a process is not confined. It must not run a guest.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Threads that would keep what this one gives up.
    #[error("a process of {0} threads cannot confine itself: it must have one")]
    Threads(usize),
    /// The empty root.
    #[error("jail: {source}; {hint}")]
    Root {
        /// What failed.
        source: RootError,
        /// What to do.
        hint: String,
    },
    /// A kernel that has Landlock and refuses.
    #[error("jail: Landlock: {0}")]
    Landlock(#[from] ::landlock::RulesetError),
    /// Anything else.
    #[error("jail: cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// Whether this process has confined itself.
static CONFINED: AtomicBool = AtomicBool::new(false);

/// Whether this process has confined itself: then there are no files, no network and no programs.
pub fn is_confined() -> bool {
    CONFINED.load(Ordering::Acquire)
}

impl Confinement {
    /// Gives up everything but what is open and the folders in `folders`. Threads that are started from
    /// now on seal themselves ([`seccomp::seal`]) for a machine with `features`, and so must this one
    /// before it serves a guest.
    ///
    /// # Errors
    /// A process of several threads, or the kernel's refusal. Part of it may have happened by then.
    pub fn enter(&self, features: Features, folders: Vec<Folder>) -> Result<(), ConfineError> {
        let system = |what| move |source| ConfineError::System { what, source };
        let threads = threads().map_err(system("count threads"))?;
        if threads != 1 {
            return Err(ConfineError::Threads(threads));
        }
        own::keep().map_err(system("keep what the kernel tells of memory"))?;
        let limits = ResourceLimits { files: self.files, file_bytes: self.file_bytes };
        privileges::limit(limits).map_err(system("limit resources"))?;
        if self.leave_network {
            namespaces::leave_network().map_err(system("leave the host's network"))?;
        }
        root::enter(folders)
            .map_err(|source| ConfineError::Root { source, hint: namespaces::hint() })?;
        privileges::drop_all(self.user).map_err(system("give up privileges"))?;
        if let Some(signal) = self.ends_by.and_then(rustix::process::Signal::from_named_raw) {
            rustix::process::set_parent_process_death_signal(Some(signal))
                .map_err(|error| system("end with who started it")(error.into()))?;
        }
        if landlock::forbid_all()? == Enforced::Not {
            log::info!(
                "jail: this kernel has no Landlock; namespaces and filters stand without it"
            );
        }
        seccomp::switch_on(self.seccomp, features);
        CONFINED.store(true, Ordering::Release);
        Ok(())
    }
}

/// How many threads this process has. Those that have been waited for may still be on their way out of
/// the kernel, and are given the time for it.
fn threads() -> io::Result<usize> {
    let begun = Instant::now();
    loop {
        let threads = fs::read_dir("/proc/self/task")?.count();
        if threads == 1 || begun.elapsed() > PATIENCE {
            return Ok(threads);
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, leave_network, seccomp, files, file_bytes, ends_by } = self;
        write!(f, "seccomp={seccomp},files={files},file-bytes={file_bytes}")?;
        if let Some((user, group)) = user {
            write!(f, ",user={user},group={group}")?;
        }
        if let Some(signal) = ends_by {
            write!(f, ",ends-by={signal}")?;
        }
        if *leave_network { f.write_str(",leave-network") } else { Ok(()) }
    }
}

impl FromStr for Confinement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Self::default();
        let (mut user, mut group) = (None, None);
        for word in text.split(',').filter(|word| !word.is_empty()) {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let wrong = |_| format!("'{word}' is no part of a confinement");
            match name {
                "seccomp" => all.seccomp = value.parse()?,
                "files" => all.files = value.parse().map_err(wrong)?,
                "file-bytes" => all.file_bytes = value.parse().map_err(wrong)?,
                "user" => user = Some(value.parse().map_err(wrong)?),
                "group" => group = Some(value.parse().map_err(wrong)?),
                "ends-by" => all.ends_by = Some(value.parse().map_err(wrong)?),
                "leave-network" => all.leave_network = true,
                _ => return Err(format!("'{word}' is no part of a confinement")),
            }
        }
        all.user = match (user, group) {
            (None, None) => None,
            (Some(user), Some(group)) => Some((user, group)),
            _ => return Err("a confinement has both a user and a group, or neither".into()),
        };
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confinements_are_written_as_they_are_read() {
        let all = Confinement {
            user: Some((1, 2)),
            leave_network: true,
            seccomp: Mode::Log,
            files: 7,
            file_bytes: 9,
            ends_by: Some(15),
        };
        for confinement in [Confinement::default(), all] {
            assert_eq!(confinement.to_string().parse(), Ok(confinement));
        }
        for wrong in ["user=1", "seccomp=maybe", "files=x", "wings"] {
            assert!(wrong.parse::<Confinement>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_process_of_several_threads_is_left_alone() {
        let (stay, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        let error = Confinement::default().enter(Features::default(), Vec::new()).unwrap_err();
        assert!(matches!(error, ConfineError::Threads(2..)), "{error}");
        assert!(!is_confined());
        drop(stay);
        assert!(other.join().unwrap().is_err());
    }
}
