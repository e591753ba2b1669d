//! Exit codes: one for each class of ends that a caller may want to tell apart.

use imgcache::node::arena::ArenaError;
use imgcache::node::cache::CacheError;
use imgcache::node::server::{Drained, ServerError};

use crate::Failed;

/// How this program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Ended as told, with nothing cut off.
    Success,
    /// An error that has no code of its own.
    Failure,
    /// A command line that makes no sense.
    Usage,
    /// An address or socket that cannot be listened on.
    Listen,
    /// This host does not give the memory or the open files.
    HostNotAble,
    /// The arena's file cannot be used.
    ArenaFile,
    /// Certificates or keys cannot be used.
    Tls,
    /// Ended as told, but leases or requests were cut off.
    CutOff,
    /// Ended at once, by a second signal.
    Signal(u8),
}

/// Codes and meanings for `--help`.
pub const TABLE: &str = "\
Exit codes:
  0    ended as told; all leases and requests had ended
  1    an error that has no code of its own
  2    a command line that makes no sense
  3    an address or socket cannot be listened on
  4    this host does not give the memory or the open files
  5    the arena's file cannot be used
  6    certificates or keys cannot be used
  7    ended as told, but leases or requests were cut off (see --drain-timeout)
  128+N  ended at once by a second signal N";

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::Listen => 3,
            Self::HostNotAble => 4,
            Self::ArenaFile => 5,
            Self::Tls => 6,
            Self::CutOff => 7,
            Self::Signal(signal) => 128_u8.saturating_add(signal),
        }
    }
}

impl From<Drained> for Exit {
    fn from(drained: Drained) -> Self {
        match drained {
            Drained::Whole => Self::Success,
            Drained::TimedOut { .. } => Self::CutOff,
        }
    }
}

impl From<&Failed> for Exit {
    fn from(failed: &Failed) -> Self {
        match failed {
            Failed::Cache(CacheError::Arena(ArenaError::Memory { .. })) => Self::HostNotAble,
            Failed::Cache(CacheError::Arena(_)) => Self::ArenaFile,
            Failed::Cache(_) => Self::Usage,
            Failed::Server(ServerError::Tls(_)) => Self::Tls,
            Failed::Server(ServerError::OpenFiles { .. } | ServerError::Threads(_)) => {
                Self::HostNotAble
            }
            Failed::Server(ServerError::NothingToListenOn) => Self::Usage,
            Failed::Server(_) => Self::Listen,
            Failed::Runtime(_) | Failed::Signals(_) | Failed::Output(_) => Self::Failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lists_every_code() {
        for exit in [
            Exit::Success,
            Exit::Failure,
            Exit::Usage,
            Exit::Listen,
            Exit::HostNotAble,
            Exit::ArenaFile,
            Exit::Tls,
            Exit::CutOff,
        ] {
            let line = format!("\n  {:<4} ", exit.code());
            assert!(TABLE.contains(&line), "{exit:?}");
        }
        assert_eq!(Exit::Signal(15).code(), 143);
    }
}
