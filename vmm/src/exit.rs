//! Exit codes: one for each class of ends that a caller may want to tell apart.

use crate::machine::outcome::Outcome;

/// How this program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done; for `boot`: the guest powered off.
    Success,
    /// An error that has no code of its own.
    Failure,
    /// A command line that makes no sense.
    Usage,
    /// There is no image of that name.
    ImageNotFound,
    /// The image is there, but not as it was pushed.
    ImageDamaged,
    /// This host cannot do it.
    HostNotAble,
    /// A kernel or ramdisk file that cannot be used.
    BadInput,
    /// The image does not fit the machine that was asked for.
    DoesNotFit,
    /// The distributed cache cannot be reached, or cannot supply what it should have.
    CacheUnavailable,
    /// No node agent answers.
    NodeUnavailable,
    /// The VM's process made a system call that is forbidden to it, and was killed.
    ForbiddenCall,
    /// The move of an endpoint has gone back.
    MoveAborted,
    /// The guest's kernel panicked.
    GuestPanicked,
    /// The guest died of a triple fault.
    GuestTripleFault,
    /// The guest restarted instead of powering off.
    GuestReset,
    /// Ended by a signal, or at the console (as by SIGINT).
    Signal(u8),
    /// As the process of the VM ended, in its jail.
    Jailed(u8),
}

/// Codes and meanings for `--help` and the manual page.
pub const TABLE: &str = "\
Exit codes:
  0    done; the guest powered off
  1    an error that has no code of its own
  2    a command line that makes no sense
  3    there is no image of that name
  4    the image is damaged
  5    this host cannot do it (see 'vmm check')
  6    a kernel or ramdisk file that cannot be used
  7    the image does not fit the machine that was asked for
  8    the cache cannot be reached, or cannot supply all of the image
  9    no node agent answers
  10   the guest's kernel panicked
  11   the guest died of a triple fault
  12   the guest restarted itself
  13   the VM's process made a system call that is forbidden in its jail
  14   the move of an endpoint has gone back: the endpoint is where it was
  128+N  ended by signal N; 130 also at the console (Ctrl-A x)";

impl Exit {
    /// What a code means, as the table says it; nothing for one that is not in it.
    pub fn meaning(code: u8) -> Option<&'static str> {
        let line = |line: &'static str| {
            let (number, meaning) = line.trim_start().split_once("  ")?;
            (number.parse() == Ok(code)).then_some(meaning.trim_start())
        };
        TABLE.lines().find_map(line)
    }

    /// The end that this code stands for; nothing for one that is none of the table's.
    pub fn of_code(code: u8) -> Option<Self> {
        const ALL: [Exit; 15] = [
            Exit::Success,
            Exit::Failure,
            Exit::Usage,
            Exit::ImageNotFound,
            Exit::ImageDamaged,
            Exit::HostNotAble,
            Exit::BadInput,
            Exit::DoesNotFit,
            Exit::CacheUnavailable,
            Exit::NodeUnavailable,
            Exit::GuestPanicked,
            Exit::GuestTripleFault,
            Exit::GuestReset,
            Exit::ForbiddenCall,
            Exit::MoveAborted,
        ];
        let signal = || code.checked_sub(128).filter(|signal| *signal > 0).map(Self::Signal);
        ALL.into_iter().find(|exit| exit.code() == code).or_else(signal)
    }

    /// The code for an error of the node agent, by its kind
    /// ([`ErrorBody`](crate::api::ErrorBody)).
    pub fn of_kind(kind: &str) -> Self {
        match kind {
            "bad_request" | "invalid" => Self::Usage,
            "image_not_found" => Self::ImageNotFound,
            "image_damaged" => Self::ImageDamaged,
            "image_does_not_fit" => Self::DoesNotFit,
            "cache_unavailable" => Self::CacheUnavailable,
            "aborted" => Self::MoveAborted,
            "host" | "capacity" | "draining" => Self::HostNotAble,
            _ => Self::Failure,
        }
    }

    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::ImageNotFound => 3,
            Self::ImageDamaged => 4,
            Self::HostNotAble => 5,
            Self::BadInput => 6,
            Self::DoesNotFit => 7,
            Self::CacheUnavailable => 8,
            Self::NodeUnavailable => 9,
            Self::ForbiddenCall => 13,
            Self::MoveAborted => 14,
            Self::GuestPanicked => 10,
            Self::GuestTripleFault => 11,
            Self::GuestReset => 12,
            Self::Signal(signal) => 128u8.saturating_add(signal),
            Self::Jailed(code) => code,
        }
    }
}

impl From<&Outcome> for Exit {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::PoweredOff => Self::Success,
            Outcome::Reset => Self::GuestReset,
            Outcome::Panicked => Self::GuestPanicked,
            Outcome::TripleFault => Self::GuestTripleFault,
            Outcome::Signal(signal) => Self::Signal(u8::try_from(*signal).unwrap_or(0)),
            Outcome::Quit => Self::Signal(2),
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
            Exit::ImageNotFound,
            Exit::ImageDamaged,
            Exit::HostNotAble,
            Exit::BadInput,
            Exit::DoesNotFit,
            Exit::CacheUnavailable,
            Exit::NodeUnavailable,
            Exit::ForbiddenCall,
            Exit::MoveAborted,
            Exit::GuestPanicked,
            Exit::GuestTripleFault,
            Exit::GuestReset,
        ] {
            let line = format!("\n  {:<4} ", exit.code());
            assert!(TABLE.contains(&line), "{exit:?}");
        }
        assert_eq!(Exit::from(&Outcome::Quit).code(), 130);
        assert_eq!(Exit::meaning(12), Some("the guest restarted itself"));
        assert_eq!(Exit::meaning(99), None);
    }
}
