//! Why a command was not done.

use std::time::Duration;

use control_abi::operation::Operation;
use control_abi::status::Error;

use crate::lock::LockError;
use crate::pinned::PinError;

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The device says no.
    #[error("{}: {error}: {}", .operation.label(), .error.description().trim())]
    Refused {
        /// What was asked for.
        operation: Operation,
        /// What the device said.
        error: Error,
    },
    /// The device did not see the command: it is not where the kernel says.
    #[error(
        "{}: the device did not see the command at {address:#x}; its register RESULT is \
         {result:#010x}",
        .operation.label()
    )]
    Unseen {
        /// What was asked for.
        operation: Operation,
        /// The command's guest-physical address.
        address: u64,
        /// The register.
        result: u32,
    },
    /// The device answered something that has no meaning.
    #[error("{}: the device's answer makes no sense: {what}", .operation.label())]
    Malformed {
        /// What was asked for.
        operation: Operation,
        /// What is wrong.
        what: String,
    },
    /// The echo of a ping is not what was sent: the device writes to other memory than this.
    #[error("the device echoed other bytes than were sent")]
    Echo,
    /// The guest was copied, restored or moved while the command was on its way.
    #[error(
        "{}: lost, as this VM was copied, restored or moved meanwhile (generation {generation})",
        .operation.label()
    )]
    Lost {
        /// What was asked for.
        operation: Operation,
        /// The generation now.
        generation: u32,
    },
    /// An accepted command did not end.
    #[error("{}: no answer for {} seconds", .operation.label(), .waited.as_secs())]
    NoAnswer {
        /// What was asked for.
        operation: Operation,
        /// How long was waited.
        waited: Duration,
    },
    /// The device may still write to this driver's memory, for a command that was given up.
    #[error(
        "this driver has given up a command that the device may still carry out; make a new one"
    )]
    GivenUp,
    /// The argument of an operation that it cannot have.
    #[error("{}: {what} cannot be '{value}': {error}", .operation.label())]
    Argument {
        /// What was asked for.
        operation: Operation,
        /// Which argument.
        what: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        error: Error,
    },
    /// A buffer that cannot be had in one piece.
    #[error("a buffer of {bytes} bytes is needed in one piece: {}", show(source.as_deref()))]
    NoBuffer {
        /// Its size.
        bytes: usize,
        /// Why not; nothing if it is more than a command can have.
        source: Option<Box<PinError>>,
    },
    /// No memory for commands.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// No lock.
    #[error(transparent)]
    Lock(#[from] LockError),
}

fn show(source: Option<&PinError>) -> String {
    source.map_or_else(|| "that is more than a command can have".to_owned(), PinError::to_string)
}
