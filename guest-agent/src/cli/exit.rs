//! Exit codes: one for each class of ends that a caller may want to tell apart.

/// How this program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Success,
    /// The device refused.
    Refused,
    /// A command line that makes no sense.
    Usage,
    /// This VM has no control device.
    NoDevice,
    /// It has one that cannot be used from here.
    Closed,
    /// The device gave no answer, or a wrong one.
    NoAnswer,
    /// A file, a network interface, or a command to run, cannot be used.
    File,
    /// A VM that was waited for has failed.
    VmFailed,
    /// Ended by a signal, between two commands.
    Interrupted,
    /// Of `run`: as the command ended.
    Command(u8),
}

/// Codes and meanings for `--help`.
pub const TABLE: &str = "\
Exit codes:
  0  done
  1  the device refused; what it said is on standard error
  2  a command line that makes no sense
  3  there is no control device
  4  the device cannot be used from here: no root, a locked-down kernel, no memory to be had
  5  the device gave no answer, or a wrong one
  6  a file, a network interface, or the command to run, cannot be used
  7  a VM that was waited for has failed
  8  ended by a signal, once no command was on its way
  'run' with a command ends as the command does, 128+N if by signal N";

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Refused => 1,
            Self::Usage => 2,
            Self::NoDevice => 3,
            Self::Closed => 4,
            Self::NoAnswer => 5,
            Self::File => 6,
            Self::VmFailed => 7,
            Self::Interrupted => 8,
            Self::Command(code) => code,
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
            Exit::Refused,
            Exit::Usage,
            Exit::NoDevice,
            Exit::Closed,
            Exit::NoAnswer,
            Exit::File,
            Exit::VmFailed,
            Exit::Interrupted,
        ] {
            assert!(TABLE.contains(&format!("\n  {}  ", exit.code())), "{exit:?}");
        }
    }
}
