//! What carries the frames, below a [`Controller`](crate::Controller).

use std::fmt;
use std::io;
use std::time::Duration;

use endpoint::vid::Vid;

use crate::bridge::netlink::NetlinkError;
use crate::switch::{Limit, Port, Statistics};

/// Why a plane did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// There is no such port.
    #[error("{0} is not of this switch: add it first, or look up its number")]
    NoPort(Port),
    /// The plane cannot.
    #[error("a {plane} cannot {what}")]
    Unsupported {
        /// Which one.
        plane: &'static str,
        /// What it was to do.
        what: String,
    },
    /// The kernel's network did not do as asked.
    #[error("cannot {what}: {source}")]
    Kernel {
        /// What was tried.
        what: String,
        /// The reason.
        source: NetlinkError,
    },
    /// A file or socket.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The reason.
        source: io::Error,
    },
    /// The thread that carries the frames has ended.
    #[error("the switch has been stopped: start another")]
    Stopped,
    /// Another switch, over a connection.
    #[error("{what}: {why}")]
    Remote {
        /// What was tried.
        what: String,
        /// What came back.
        why: String,
    },
}

impl PlaneError {
    /// Of the kernel's refusal to do `what` with its network.
    pub fn kernel(what: impl Into<String>) -> impl FnOnce(NetlinkError) -> Self {
        move |source| Self::Kernel { what: what.into(), source }
    }

    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what: what.into(), source }
    }
}

/// One identifier that goes from a home, or none, to another, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The identifier.
    pub vid: Vid,
    /// Its home until now.
    pub from: Option<Port>,
    /// Its home from now on.
    pub to: Option<Port>,
}

impl Step {
    /// What undoes it.
    #[must_use]
    pub fn inverse(self) -> Self {
        Self { from: self.to, to: self.from, ..self }
    }
}

/// Why a list of steps was not applied.
#[derive(Debug)]
pub struct ApplyError {
    /// The step that failed.
    pub index: usize,
    /// Why.
    pub source: PlaneError,
    /// Steps that could not be undone.
    pub unrestored: Vec<usize>,
}

/// A move that is underway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The identifier.
    pub vid: Vid,
    /// Where it was.
    pub home: Port,
    /// Where it is to be.
    pub to: Port,
    /// How much is held.
    pub limit: Limit,
}

/// Waits for the answer to a marker.
pub trait Waiter: fmt::Debug + Send {
    /// Waits up to `patience`; whether the answer has come.
    ///
    /// # Errors
    /// The port, or who carries its frames, is gone.
    fn wait(&mut self, patience: Duration) -> Result<bool, PlaneError>;
}

/// A marker has been sent; the answer is waited for by this.
pub type Seen = Box<dyn Waiter>;

/// What carries the frames. Its [`Controller`](crate::Controller) calls it from one thread at a time, with
/// what fits what was asked before.
pub trait Plane: Send {
    /// Whether there can be such a port. That there is one is seen at the latest when something is pointed
    /// there.
    ///
    /// # Errors
    /// There is none.
    fn check(&mut self, port: Port) -> Result<(), PlaneError>;

    /// Changes one identifier's home.
    ///
    /// # Errors
    /// It is where it was.
    fn point(&mut self, step: Step) -> Result<(), PlaneError>;

    /// Makes all of `steps`, or none.
    ///
    /// # Errors
    /// Which failed; those before it have been undone.
    fn apply(&mut self, steps: &[Step]) -> Result<(), ApplyError> {
        for (index, step) in steps.iter().enumerate() {
            let Err(source) = self.point(*step) else { continue };
            let done = steps.iter().enumerate().take(index).rev();
            let unrestored = done
                .filter(|(_, step)| self.point(step.inverse()).is_err())
                .map(|(index, _)| index)
                .collect();
            return Err(ApplyError { index, source, unrestored });
        }
        Ok(())
    }

    /// Points an identifier to where it moves, and holds its frames.
    ///
    /// # Errors
    /// Nothing has changed.
    fn hold(&mut self, held: &Held) -> Result<(), PlaneError>;

    /// Ends a hold: what was held goes to the destination (`commit`), or to where the identifier was.
    ///
    /// # Errors
    /// The hold goes on.
    fn release(&mut self, held: &Held, commit: bool) -> Result<(), PlaneError>;

    /// Lets nothing through that comes from a port, or again.
    ///
    /// # Errors
    /// It is as it was.
    fn mute(&mut self, port: Port, muted: bool) -> Result<(), PlaneError>;

    /// Sends a marker with `nonce` through `port`.
    ///
    /// # Errors
    /// None was sent.
    fn mark(&mut self, port: Port, nonce: u64) -> Result<Seen, PlaneError>;

    /// Floods frames to unknown identifiers, or drops and counts them.
    ///
    /// # Errors
    /// The plane's.
    fn flood_unknown(&mut self, flood: bool) -> Result<(), PlaneError>;

    /// What it has counted; what a controller counts is 0.
    ///
    /// # Errors
    /// The plane's.
    fn statistics(&mut self) -> Result<Statistics, PlaneError>;
}
