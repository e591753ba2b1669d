//! Outcomes: the status word of a command, and of the register `RESULT`.

/// A command that was not submitted yet, or not looked at.
pub const PENDING: u32 = 0;
/// It is done; what it gave is in its output.
pub const DONE: u32 = 1;
/// It is being worked at; the status word changes again, and an event tells when.
pub const ACCEPTED: u32 = 2;
/// What all error numbers have in common.
pub const ERROR_BASE: u32 = 0xe000_0000;

macro_rules! errors {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $label:literal;)+) => {
        /// Why a command was not carried out.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Error {
            $($(#[doc = $doc])+ $name = ERROR_BASE | $code,)+
        }

        /// All errors, by number.
        pub const ERRORS: &[Error] = &[$(Error::$name),+];

        impl Error {
            /// The error with this number.
            pub const fn from_status(status: u32) -> Option<Self> {
                $(if status == Self::$name.status() { return Some(Self::$name); })+
                None
            }

            /// Its number, as it stands in a status word.
            pub const fn status(self) -> u32 {
                match self { $(Self::$name => ERROR_BASE | $code,)+ }
            }

            /// Its name, the same wherever it is shown.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// What it means, in one line of Markdown.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+),)+ }
            }
        }
    };
}

errors! {
    /// There is no such operation.
    BadOperation = 0x01, "bad-operation";
    /// The command, its input or its output is not in RAM, crosses the end of a piece of RAM, or is not aligned. What cannot be written to is told by `RESULT` alone.
    BadAddress = 0x02, "bad-address";
    /// The command does not begin with "DCRC". Told by `RESULT` alone: it may be no command.
    BadMagic = 0x03, "bad-magic";
    /// The command is of another version, or its header has another length. Told by `RESULT` alone.
    BadVersion = 0x04, "bad-version";
    /// Input or output is too long, or too short for what is in it.
    BadLength = 0x05, "bad-length";
    /// The guest has no right to do that.
    NotPermitted = 0x06, "not-permitted";
    /// Too many commands in a short time; `CREDIT` says when there can be more.
    RateLimited = 0x07, "rate-limited";
    /// Too many commands are being worked at; submit again when one is done.
    Busy = 0x08, "busy";
    /// There is no such endpoint.
    NoSuchEndpoint = 0x09, "no-such-endpoint";
    /// Somebody else has changed the endpoint meanwhile.
    StaleEpoch = 0x0a, "stale-epoch";
    /// There is no such image, or it has no such chunk.
    NoImage = 0x0b, "no-image";
    /// The host has no memory for it, or the operator's limit is reached.
    NoMemory = 0x0c, "no-memory";
    /// It took longer than it may.
    Timeout = 0x0d, "timeout";
    /// It was given up.
    Aborted = 0x0e, "aborted";
    /// What it is about is in a state in which that cannot be done.
    BadState = 0x0f, "bad-state";
    /// A reserved bit, flag or word is not zero.
    BadFlags = 0x10, "bad-flags";
    /// The operation is known, and this device does not have it.
    NotSupported = 0x11, "not-supported";
    /// The input is no list of fields, or a field of the operation is missing, unknown, twice there or has a value that it cannot have.
    BadField = 0x12, "bad-field";
    /// There is no such VM.
    NoSuchVm = 0x13, "no-such-vm";
    /// The host failed; its log says how.
    Host = 0x14, "host-failed";
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} ({:08X})", self.label(), self.status())
    }
}

impl core::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_is_found_by_its_number() {
        for error in ERRORS {
            assert_eq!(Error::from_status(error.status()), Some(*error));
            assert_eq!(error.status() & 0xffff_0000, ERROR_BASE);
        }
        for status in [PENDING, DONE, ACCEPTED, ERROR_BASE, u32::MAX] {
            assert_eq!(Error::from_status(status), None);
        }
    }
}
