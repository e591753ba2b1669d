//! A queue of requests to one peer: posted in any number at once, completed in any order of reading.
//!
//! Memory that a request names belongs to the queue until the request's [`Completion`] gives it back, or
//! [`Queue::close`] does. A queue that is dropped, or forgotten, keeps it for good: what it was borrowed
//! from comes back when the borrow ends, which [`super::Scope`] makes sure is after the device is done.
//!
//! After a request has failed the queue does nothing more; all that it had left completes as
//! [`Status::Flushed`]. Go on with a new queue.
#![expect(unsafe_code, reason = "requests that name memory by its address")]

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdma_mummy_sys::{ibv_qp_state, ibv_send_wr, ibv_sge, ibv_wc};

use super::endpoint::Endpoint;
use super::error::{Refused, VerbsError};
use super::fabric::Domain;
use super::pair::{Pair, Path, TAKEN};
use super::request::Work;
use super::settings::Settings;
use super::status::Status;

pub(super) mod sealed {
    use super::Status;

    /// What a queue is for: [`super::super::Loading`] or [`super::super::Serving`].
    pub trait Purpose: std::fmt::Debug {
        /// What the queue keeps for a request.
        type Posted: std::fmt::Debug;
        /// What the caller gets back of it.
        type Done: std::fmt::Debug;

        /// A request has completed.
        fn finish(&mut self, posted: Self::Posted, status: Status) -> Self::Done;

        /// Takes the rights back that `posted` was to give, before the queue is destroyed.
        fn revoke(&mut self, posted: &mut Self::Posted);

        /// Takes those back that it keeps itself.
        fn revoke_all(&mut self);

        /// Never drops what it keeps itself: the device may still use it.
        fn keep_for_good(&mut self);
    }
}

/// A connection to one peer.
pub struct Queue<P: sealed::Purpose> {
    pair: Arc<Pair>,
    purpose: P,
    /// By the number that the device knows them by.
    posted: Vec<Option<Posted<P::Posted>>>,
    free: Vec<usize>,
    psn: u32,
    reads_answered: u8,
    connected: bool,
}

#[derive(Debug)]
struct Posted<T> {
    id: u64,
    item: T,
}

/// What became of a request.
#[derive(Debug)]
pub struct Completion<T> {
    /// The caller's number of it.
    pub id: u64,
    /// What became of it.
    pub status: Status,
    /// What the queue had for it.
    pub item: T,
}

/// The state of a queue, as its device has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueState {
    /// Not connected yet.
    Initialised,
    /// Connected.
    Ready,
    /// It has failed, and does nothing more.
    Failed,
}

impl<P: sealed::Purpose> fmt::Debug for Queue<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("number", &self.pair.number())
            .field("outstanding", &self.outstanding())
            .field("purpose", &self.purpose)
            .finish_non_exhaustive()
    }
}

impl<P: sealed::Purpose> Queue<P> {
    pub(super) fn new(pair: Arc<Pair>, purpose: P, depth: u32) -> Result<Self, VerbsError> {
        let mut random = [0; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).map_err(
            |error| VerbsError::Call {
                call: "getrandom",
                device: pair.domain().fabric().device().name.clone(),
                source: error.into(),
            },
        )?;
        let depth = usize::try_from(depth).unwrap_or(0);
        let limits = pair.domain().fabric().device().limits;
        Ok(Self {
            pair,
            purpose,
            posted: std::iter::repeat_with(|| None).take(depth).collect(),
            free: (0..depth).rev().collect(),
            psn: u32::from_le_bytes(random) >> 8,
            reads_answered: limits.reads_answered.clamp(1, super::settings::READS),
            connected: false,
        })
    }

    /// What to tell the peer of this queue.
    pub fn endpoint(&self) -> Endpoint {
        self.pair.domain().endpoint(self.pair.number(), self.psn, self.reads_answered)
    }

    /// Connects it to the peer's queue, which can send as soon as this side has returned from here.
    ///
    /// # Errors
    /// It is connected already, the endpoint or a setting is out of range, or the device cannot.
    pub fn connect(&mut self, remote: &Endpoint, settings: &Settings) -> Result<(), VerbsError> {
        if self.connected {
            return Err(VerbsError::State("connected already"));
        }
        remote.check()?;
        settings.check()?;
        let outstanding = self.pair.domain().fabric().device().limits.reads_outstanding;
        let path = Path {
            timeout: settings.timeout,
            retry: settings.retry,
            reads_outstanding: settings.reads.min(remote.reads).min(outstanding).max(1),
            reads_answered: self.reads_answered,
            psn: self.psn,
        };
        self.pair.connect(remote, path)?;
        self.connected = true;
        Ok(())
    }

    /// The domain that it is in.
    pub fn domain(&self) -> &Domain {
        self.pair.domain()
    }

    /// Its state.
    ///
    /// # Errors
    /// The device's.
    pub fn state(&self) -> Result<QueueState, VerbsError> {
        Ok(match self.pair.state()? {
            ibv_qp_state::IBV_QPS_RESET | ibv_qp_state::IBV_QPS_INIT => QueueState::Initialised,
            ibv_qp_state::IBV_QPS_RTR | ibv_qp_state::IBV_QPS_RTS => QueueState::Ready,
            _ => QueueState::Failed,
        })
    }

    /// Requests that are posted and whose completion was not polled yet.
    pub fn outstanding(&self) -> usize {
        self.posted.len() - self.free.len()
    }

    /// How many requests can be posted now.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Posts requests with one call of the device; what it does not take comes back, in order.
    ///
    /// # Safety
    /// What each `operation` names of this host's memory is what its `item` owns, or what harms nobody
    /// for as long as the queue keeps `item`.
    pub(super) unsafe fn post_work(
        &mut self,
        mut work: Vec<Work<P::Posted>>,
    ) -> Result<(), Refused<Work<P::Posted>>> {
        if !self.connected {
            return Err(Refused::new(VerbsError::State("not connected yet"), work));
        }
        if work.len() > self.room() {
            let (wanted, room, depth) = (work.len(), self.room(), self.posted.len());
            return Err(Refused::new(VerbsError::Full { wanted, room, depth }, work));
        }
        let mut parts: Vec<ibv_sge> = work.iter().map(|one| one.operation.part()).collect();
        let mut list: Vec<ibv_send_wr> = Vec::with_capacity(work.len());
        for ((one, part), place) in work.iter().zip(&mut parts).zip(self.free.iter().rev()) {
            list.push(one.operation.request(*place as u64, part));
        }
        for place in 1..list.len() {
            let (before, rest) = list.split_at_mut(place);
            before[place - 1].next = &raw mut rest[0];
        }
        // SAFETY: whole requests, each with a place that is free; the rest was promised.
        let posted = unsafe { self.pair.post(&mut list) };
        let (taken, error) = match posted {
            Ok(()) => (work.len(), None),
            Err((taken, error)) => (taken, Some(error)),
        };
        let rest = work.split_off(taken);
        for Work { id, item, .. } in work {
            if let Some(place) = self.free.pop() {
                self.posted[place] = Some(Posted { id, item });
            }
        }
        error.map_or(Ok(()), |error| Err(Refused::new(error, rest)))
    }

    /// Appends what has completed to `completions`; returns how many that were. Does not wait.
    ///
    /// # Errors
    /// The device's.
    pub fn poll(
        &mut self,
        completions: &mut Vec<Completion<P::Done>>,
    ) -> Result<usize, VerbsError> {
        let before = completions.len();
        // SAFETY: numbers only, of which 0 is one.
        let mut taken: [ibv_wc; TAKEN] = unsafe { std::mem::zeroed() };
        while self.outstanding() > 0 {
            let count = self.pair.completions(&mut taken)?;
            for one in &taken[..count] {
                let place = usize::try_from(one.wr_id).unwrap_or(usize::MAX);
                let Some(Posted { id, item }) = self.posted.get_mut(place).and_then(Option::take)
                else {
                    log::error!("an RDMA completion of {place}, which was not posted");
                    continue;
                };
                self.free.push(place);
                let status = Status::from_number(one.status);
                completions.push(Completion {
                    id,
                    status,
                    item: self.purpose.finish(item, status),
                });
            }
            if count < TAKEN {
                break;
            }
        }
        Ok(completions.len() - before)
    }

    /// As [`Queue::poll`], but waits until there is one, for `timeout` at most. Without anything
    /// outstanding it does not wait.
    ///
    /// # Errors
    /// The device's.
    pub fn wait(
        &mut self,
        completions: &mut Vec<Completion<P::Done>>,
        timeout: Duration,
    ) -> Result<usize, VerbsError> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let count = self.poll(completions)?;
            if count > 0 || self.outstanding() == 0 {
                return Ok(count);
            }
            // What completed before it was armed would not be told of.
            self.arm()?;
            let count = self.poll(completions)?;
            let left =
                deadline.map_or(timeout, |end| end.saturating_duration_since(Instant::now()));
            if count > 0 || left.is_zero() {
                return Ok(count);
            }
            self.pair.readable(left)?;
        }
    }

    /// Makes the descriptor ([`AsFd`]) readable when the next request completes, for waiting for it
    /// together with others. To be followed by one more [`Queue::poll`], because what completed before
    /// is not told of. What an earlier arming told is taken back.
    ///
    /// # Errors
    /// The device's.
    pub fn arm(&mut self) -> Result<(), VerbsError> {
        self.pair.acknowledge()?;
        self.pair.arm()
    }

    /// Ends the connection and gives back all that was outstanding, as [`Status::Flushed`]; what had
    /// completed and was not polled is among it, because nobody knows any more what became of it.
    ///
    /// # Errors
    /// The device cannot end it; then what was outstanding is lost, as the device may still use it.
    pub fn close(mut self) -> Result<Vec<Completion<P::Done>>, VerbsError> {
        self.end()?;
        let mut completions = Vec::new();
        for place in 0..self.posted.len() {
            if let Some(Posted { id, item }) = self.posted[place].take() {
                let status = Status::Flushed;
                completions.push(Completion {
                    id,
                    status,
                    item: self.purpose.finish(item, status),
                });
            }
        }
        Ok(completions)
    }

    /// Takes back all rights and destroys the pair. If that fails all that was outstanding is forgotten.
    pub(super) fn end(&mut self) -> Result<(), VerbsError> {
        self.purpose.revoke_all();
        for posted in self.posted.iter_mut().flatten() {
            self.purpose.revoke(&mut posted.item);
        }
        // SAFETY: called by `close`, which takes the queue, and `drop`; a scope does it only when
        // nobody can have the queue any more.
        unsafe { self.pair.destroy() }.inspect_err(|_| {
            self.posted.iter_mut().for_each(|posted| std::mem::forget(posted.take()));
            self.purpose.keep_for_good();
        })
    }

    /// All that was outstanding, of a queue that has ended.
    pub(super) fn take_posted(&mut self) -> Vec<P::Posted> {
        self.posted.iter_mut().filter_map(Option::take).map(|posted| posted.item).collect()
    }

    pub(super) fn purpose(&self) -> &P {
        &self.purpose
    }

    pub(super) fn purpose_mut(&mut self) -> &mut P {
        &mut self.purpose
    }

    /// Whether the port can make a transfer of `length` bytes.
    pub(super) fn check_length(&self, length: usize) -> Result<u32, VerbsError> {
        let most = self.pair.domain().fabric().port().max_transfer.min(1 << 30);
        let fits = u32::try_from(length).ok().filter(|length| (1..=most).contains(length));
        fits.ok_or(VerbsError::Length { length, most })
    }
}

impl<P: sealed::Purpose> AsFd for Queue<P> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pair.descriptor()
    }
}

impl<P: sealed::Purpose> Drop for Queue<P> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            log::error!("{error}");
        }
    }
}
