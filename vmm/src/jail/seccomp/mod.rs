//! Filters of system calls: what each kind of thread needs once a VM is loaded, and nothing else.
//!
//! The rules are data ([`rules`]): a list for each kind of thread and for each part that a machine may
//! have. A thread seals itself at its start, before it serves a guest: filters are inherited, so a
//! thread that was sealed could start only threads that may do less than it, and none is allowed to
//! start any. What is not in its list kills the whole VM, and whoever started the VM sees that it died
//! of SIGSYS.
//!
//! Whether threads are sealed is said once for the process ([`switch_on`]), when it has confined itself.

pub mod rule;
pub mod rules;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use clap::ValueEnum;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use serde::{Deserialize, Serialize};

use self::rule::Rule;

/// What a thread does, and so what it may ask of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ThreadKind {
    /// The main thread: the event loop, and the end of everything.
    EventLoop,
    /// A virtual processor.
    Vcpu,
    /// Carries out what the guest asks for by the control device.
    Control,
    /// Copies a mapped ramdisk.
    Settle,
    /// Carries out what the guest asks of its disk, in the overlay's file.
    Disk,
    /// Brings the chunks of a disk.
    Fetch,
}

impl ThreadKind {
    /// All there are.
    pub const ALL: [Self; 6] =
        [Self::EventLoop, Self::Vcpu, Self::Control, Self::Settle, Self::Disk, Self::Fetch];
}

impl fmt::Display for ThreadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EventLoop => "event loop",
            Self::Vcpu => "vCPU",
            Self::Control => "control",
            Self::Settle => "settle",
            Self::Disk => "disk",
            Self::Fetch => "fetch",
        })
    }
}

/// What a filter does with a system call that is not in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It kills the VM.
    #[default]
    Kill,
    /// The kernel notes it in its log, and lets it be: to find out what a VM that was killed had wanted.
    Log,
    /// There are no filters.
    Off,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill",
            Self::Log => "log",
            Self::Off => "off",
        })
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        <Self as ValueEnum>::from_str(text, false)
    }
}

/// Parts that a machine may have; what they need of the kernel, no other machine may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// A network device.
    pub net: bool,
    /// A vsock device.
    pub vsock: bool,
    /// Disks.
    pub disk: bool,
    /// A console that is watched over a socket.
    pub attach: bool,
    /// Images that the guest may read, out of files that are open.
    pub images: bool,
}

/// Why a thread is not sealed. It must not go on.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The rules make no filter.
    #[error("no filter of system calls for the {kind} thread: {source}")]
    Compile {
        /// The thread.
        kind: ThreadKind,
        /// Why not.
        source: seccompiler::BackendError,
    },
    /// The kernel took no filter.
    #[error("this kernel takes no filter of system calls for the {kind} thread: {source}")]
    Apply {
        /// The thread.
        kind: ThreadKind,
        /// Why not.
        source: seccompiler::Error,
    },
}

/// How this process seals its threads; not set: not at all.
static SEALING: OnceLock<(Mode, Features)> = OnceLock::new();

/// From now on, [`seal`] seals.
pub(super) fn switch_on(mode: Mode, features: Features) {
    // Said twice, the first counts.
    let _ = SEALING.set((mode, features));
}

/// Leaves the calling thread, for good, the system calls of its kind; if this process confined itself,
/// and with filters.
///
/// # Errors
/// There is no filter: the thread must not go on.
pub fn seal(kind: ThreadKind) -> Result<(), SealError> {
    let Some((mode, features)) = SEALING.get() else { return Ok(()) };
    let Some(program) = compile(kind, *features, *mode)? else { return Ok(()) };
    seccompiler::apply_filter(&program).map_err(|source| SealError::Apply { kind, source })
}

/// The same for a thread that has nobody to tell: the process ends if it cannot be sealed.
pub fn seal_or_end(kind: ThreadKind) {
    if let Err(error) = seal(kind) {
        log::error!("{error}");
        std::process::exit(crate::exit::Exit::HostNotAble.code().into());
    }
}

/// The filter for a thread.
///
/// # Errors
/// Rules that make none; never for those of [`rules`].
pub fn compile(
    kind: ThreadKind,
    features: Features,
    mode: Mode,
) -> Result<Option<BpfProgram>, SealError> {
    let mismatch = match mode {
        Mode::Kill => SeccompAction::KillProcess,
        Mode::Log => SeccompAction::Log,
        Mode::Off => return Ok(None),
    };
    let failed = |source| SealError::Compile { kind, source };
    let mut map = BTreeMap::<i64, Vec<_>>::new();
    for rule in rules::of(kind, features) {
        let chain = map.entry(rule.number).or_default();
        chain.extend(rule.condition().map_err(failed)?);
    }
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(failed)?;
    let filter = SeccompFilter::new(map, mismatch, SeccompAction::Allow, architecture);
    filter.and_then(BpfProgram::try_from).map(Some).map_err(failed)
}

/// Whether a rule of a thread of this kind allows the call.
pub fn allowing(
    kind: ThreadKind,
    features: Features,
    number: i64,
    arguments: &[u64; 6],
) -> Option<&'static Rule> {
    rules::of(kind, features).find(|rule| rule.allows(number, arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Features =
        Features { net: true, vsock: true, disk: true, attach: true, images: true };

    #[test]
    fn all_rules_make_filters() {
        for kind in ThreadKind::ALL {
            for features in [Features::default(), ALL] {
                let filter = compile(kind, features, Mode::Kill).unwrap().unwrap();
                // What the kernel takes at most.
                assert!(filter.len() < 4096, "{kind}: {}", filter.len());
                assert!(compile(kind, features, Mode::Off).unwrap().is_none());
            }
        }
    }

    #[test]
    fn a_call_is_either_allowed_as_it_is_or_by_its_arguments() {
        for kind in ThreadKind::ALL {
            let rules: Vec<_> = rules::of(kind, ALL).collect();
            for (at, rule) in rules.iter().enumerate() {
                let others = || rules[at + 1..].iter().filter(|other| other.number == rule.number);
                // A rule beside one without conditions would be ignored, and so would a second of a kind.
                assert!(
                    others().all(|other| {
                        !rule.arguments.is_empty()
                            && !other.arguments.is_empty()
                            && rule.arguments != other.arguments
                    }),
                    "{kind}: {rule:?}"
                );
            }
        }
    }

    #[test]
    fn nobody_opens_runs_starts_or_connects_anything_by_default() {
        for kind in ThreadKind::ALL {
            for number in [
                libc::SYS_open,
                libc::SYS_openat,
                libc::SYS_openat2,
                libc::SYS_execve,
                libc::SYS_execveat,
                libc::SYS_clone,
                libc::SYS_clone3,
                libc::SYS_fork,
                libc::SYS_vfork,
                libc::SYS_socket,
                libc::SYS_connect,
                libc::SYS_ptrace,
                libc::SYS_process_vm_writev,
                libc::SYS_io_uring_setup,
                libc::SYS_bpf,
                libc::SYS_mount,
                libc::SYS_unshare,
                libc::SYS_setns,
                libc::SYS_prctl,
                libc::SYS_rt_sigaction,
            ] {
                assert!(allowing(kind, Features::default(), number, &[0; 6]).is_none(), "{kind}");
            }
            let executable = [0, 4096, libc::PROT_EXEC as u64, 0, 0, 0];
            for number in [libc::SYS_mmap, libc::SYS_mprotect] {
                assert!(allowing(kind, ALL, number, &executable).is_none(), "{kind}");
            }
        }
    }

    #[test]
    fn modes_are_written_as_they_are_read() {
        for mode in [Mode::Kill, Mode::Log, Mode::Off] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
    }
}
