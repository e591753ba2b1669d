//! What a snapshot keeps of the device.

use control_abi::event::ALL_KINDS;
use serde::{Deserialize, Serialize};

/// Version of the state's form.
pub const VERSION: u32 = 1;

/// The device's state. Who the guest is and what it may do is not in it: its VMM says so anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlState {
    /// [`VERSION`].
    pub version: u32,
    /// Generation of the guest when the state was taken.
    pub generation: u32,
    /// The ticket that the next accepted command gets.
    pub next_ticket: u64,
    /// `COMMAND_HI`.
    pub command_high: u32,
    /// `RING_HI`.
    pub ring_high: u32,
    /// `EVENT_ENABLE`.
    pub event_enable: u32,
}

/// Why a state is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// It was written by another version.
    #[error("the control device's state has version {0}, not {VERSION}")]
    Version(u32),
    /// It has kinds of events that there are not.
    #[error("the control device's state enables events {0:#x}, of which there are {ALL_KINDS:#x}")]
    Events(u32),
    /// There is no number for the next generation.
    #[error("the control device's state is of a generation that has none after it")]
    Generation,
}

impl ControlState {
    pub(super) fn check(&self) -> Result<(), StateError> {
        if self.version != VERSION {
            return Err(StateError::Version(self.version));
        }
        if self.event_enable & !ALL_KINDS != 0 {
            return Err(StateError::Events(self.event_enable));
        }
        Ok(())
    }
}
