//! A whole move: connections leave one machine and go on at another.
//!
//! The two sides speak over any stream of bytes. Until the source decides to commit, whatever fails leaves the
//! connections running at the source; after it, they run at the destination or nowhere, never at both. A stream
//! that breaks in between is replaced by another: each side knows a move by its number, and what is asked twice
//! is done once.
//!
//! The network is led by a [`Route`], from the source. The steps, as they are proven to lose and double nothing:
//! hold frames, drain what is on its way to the old home, freeze, seal the old home's port behind all that it
//! has sent, ship and restore, lead the network to the new home, commit (the new home speaks), release what was
//! held.

mod destination;
mod message;
mod source;

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use thiserror::Error;

pub use destination::{Arrived, Destination, Limits, Policy};
pub use message::Id;
pub use source::Source;

use crate::repair::Frozen;

/// Leads an endpoint's frames in a move. What it holds has an owner and a deadline, so that a source that dies
/// leaves nothing held.
pub trait Route {
    /// From now on frames for the endpoint are kept, in order.
    ///
    /// # Errors
    /// They are not.
    fn hold(&mut self) -> io::Result<()>;

    /// Returns when the old home has processed all that was sent to it before the hold (the first END-MARK).
    ///
    /// # Errors
    /// It is not known that it has.
    fn drain(&mut self) -> io::Result<()>;

    /// Returns when all that the old home had sent has passed (the second END-MARK); it can send no more then.
    ///
    /// # Errors
    /// It is not known.
    fn seal(&mut self) -> io::Result<()>;

    /// Leads to the new home, which can send from now on.
    ///
    /// # Errors
    /// It does not.
    fn point(&mut self) -> io::Result<()>;

    /// Hands on what was kept, in order, and keeps no more.
    ///
    /// # Errors
    /// It does not.
    fn release(&mut self) -> io::Result<()>;

    /// All is as it was before the hold; what was kept goes to the old home.
    ///
    /// # Errors
    /// It is not; the hold's deadline will do it.
    fn revert(&mut self) -> io::Result<()>;
}

/// Where a move was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// Frames are to be kept.
    Hold,
    /// What is on its way is to arrive.
    Drain,
    /// Connections are frozen and read.
    Freeze,
    /// The old home is to be cut off.
    Seal,
    /// The state is sent and restored.
    Offer,
    /// The network is to lead to the new home.
    Point,
    /// The new home is to go on.
    Commit,
    /// What was kept is to be handed on.
    Release,
}

/// Why a side does not go on.
#[derive(Debug, Error)]
pub enum MoverError {
    /// The stream between the sides.
    #[error(
        "the stream to the other side is broken: {0}; connect again, and repeat with the same move"
    )]
    Stream(#[from] io::Error),
    /// The other side does not speak this protocol.
    #[error("the other side sent {0}, which has no place here; bring both sides to one version")]
    Unexpected(String),
    /// The other side will not have it.
    #[error("the destination refuses: {0}")]
    Refused(String),
    /// The destination has forgotten a move that may have been committed.
    #[error(
        "the destination knows the move {0} no more, and may have started it; the connections are lost"
    )]
    Forgotten(Id),
}

/// How long the steps took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Times(pub Vec<(Step, Duration)>);

impl Times {
    /// All steps together.
    pub fn total(&self) -> Duration {
        self.0.iter().map(|(_, time)| *time).sum()
    }
}

/// What a failed move has left.
#[derive(Debug)]
pub enum Left<S: AsFd> {
    /// The connections run at the source.
    Source(Vec<S>),
    /// They may run at the destination: only [`Source::commit`], over a new stream, can tell. Then the network
    /// is to be released.
    Undecided(Source<S>),
    /// They run at the destination; the network did not hand on what it holds.
    Destination,
}

/// A move that failed.
#[derive(Debug, Error)]
#[error("the move failed in its step {step:?}: {cause}")]
pub struct Failure<S: AsFd> {
    /// Where.
    pub step: Step,
    /// Why.
    pub cause: Box<dyn std::error::Error + Send + Sync>,
    /// What is left.
    pub left: Left<S>,
}

/// A connection that stands still, with what its service has exported.
pub type Still<S> = (Frozen<S>, Vec<u8>);

/// Moves connections, whose programs wait already, at a safe point. `freeze` freezes one, or gives it back:
/// [`crate::service::Continuation::freeze`], or [`crate::repair::freeze`] for those without a continuation.
///
/// # Errors
/// Where and why it failed, and what has become of the connections.
pub fn carry_out<S, F, E, C>(
    connections: Vec<S>,
    freeze: F,
    route: &mut dyn Route,
    channel: &mut C,
) -> Result<Times, Failure<S>>
where
    S: AsFd,
    F: FnMut(S) -> Result<Still<S>, (S, E)>,
    E: std::error::Error + Send + Sync + 'static,
    C: io::Read + io::Write + ?Sized,
{
    let mut times = Times::default();
    let mut since = Instant::now();
    let mut done = |step| {
        let now = Instant::now();
        times.0.push((step, now.duration_since(since)));
        since = now;
    };
    for step in [Step::Hold, Step::Drain] {
        let result = if step == Step::Hold { route.hold() } else { route.drain() };
        if let Err(error) = result {
            let _ = route.revert();
            return Err(Failure { step, cause: error.into(), left: Left::Source(connections) });
        }
        done(step);
    }
    let mut source = match freeze_all(connections, freeze) {
        Ok(frozen) => Source::new(frozen),
        Err((left, error)) => {
            let _ = route.revert();
            let (step, cause) = (Step::Freeze, Box::new(error));
            return Err(Failure { step, cause, left: Left::Source(left) });
        }
    };
    done(Step::Freeze);
    for step in [Step::Seal, Step::Offer, Step::Point] {
        let result = match step {
            Step::Seal => route.seal().map_err(Into::into),
            Step::Offer => source.offer(channel).map_err(Into::into),
            _ => route.point().map_err(Into::into),
        };
        if let Err(cause) = result {
            let left = Left::Source(source.abort(channel));
            let _ = route.revert(); // the hold's deadline does it otherwise
            return Err(Failure { step, cause, left });
        }
        done(step);
    }
    if let Err(error) = source.commit(channel) {
        let (step, cause) = (Step::Commit, error.into());
        let left = if source.is_undecided() {
            Left::Undecided(source)
        } else {
            let left = Left::Source(source.abort(channel));
            let _ = route.revert();
            left
        };
        return Err(Failure { step, cause, left });
    }
    done(Step::Commit);
    if let Err(error) = route.release() {
        let (step, cause) = (Step::Release, error.into());
        return Err(Failure { step, cause, left: Left::Destination });
    }
    done(Step::Release);
    Ok(times)
}

/// All, or none: then they are given back, in no order.
fn freeze_all<S: AsFd, E>(
    connections: Vec<S>,
    mut freeze: impl FnMut(S) -> Result<Still<S>, (S, E)>,
) -> Result<Vec<Still<S>>, (Vec<S>, E)> {
    let mut frozen = Vec::with_capacity(connections.len());
    let mut rest = connections.into_iter();
    while let Some(one) = rest.next() {
        match freeze(one) {
            Ok(still) => frozen.push(still),
            Err((one, error)) => {
                let mut left: Vec<S> = source::thaw_all(frozen);
                left.push(one);
                left.extend(rest);
                return Err((left, error));
            }
        }
    }
    Ok(frozen)
}
