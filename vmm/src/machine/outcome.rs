//! How a VM's life ended.

use serde::{Deserialize, Serialize};

/// How a VM's life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The guest switched itself off.
    PoweredOff,
    /// The guest restarted itself in an orderly way.
    Reset,
    /// The guest's kernel panicked.
    Panicked,
    /// A vCPU shut down on a fault while handling a fault.
    TripleFault,
    /// This process was asked to end by this signal.
    Signal(i32),
    /// The person at the console asked for it.
    Quit,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest restarted"),
            Self::Panicked => f.write_str("the guest's kernel panicked"),
            Self::TripleFault => f.write_str("the guest died of a triple fault"),
            Self::Signal(signal) => write!(f, "ended by signal {signal}"),
            Self::Quit => f.write_str("ended at the console"),
        }
    }
}
