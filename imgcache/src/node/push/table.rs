//! Which pushes are open, and the way of a slot through one:
//!
//! ```text
//! reserved -> exposed -> writes ended -> hashed -> published
//!    |           |            '-------------+-> free
//!    '-> free    '-> (the device does not end the queue) -> lost: never used again
//! ```
//! The types keep the order: what is [`Exposed`] shows no bytes, and comes back only by the proof of the end
//! of its writes, which is made here, of what [`Writers::end`] returns; only what came back can be stored.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Limits, PushCounters, count};
use crate::key::ChunkKey;
use crate::node::cache::{
    Cache, Exposed, ExposureId, GetRequest, Key, Kind, Now, Reservation, WritesEnded,
};
use crate::record::ItemKey;
use crate::transport::verbs::{Endpoint, Remote};

/// A chunk that a client wants to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its key.
    pub key: ChunkKey,
    /// Its length in bytes.
    pub length: u32,
}

/// What a client is told of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// It is there already.
    Have,
    /// It goes there.
    Slot(Remote),
    /// There is no place for it now: why.
    Full(String),
}

/// A push that has begun.
#[derive(Debug)]
pub struct Begun {
    /// By which its client ends it.
    pub id: u64,
    /// How long it may take.
    pub time: Duration,
    /// This side's queue; none if there is nothing to be written, and so nothing is open.
    pub endpoint: Option<Endpoint>,
    /// Of each chunk, in order.
    pub places: Vec<Place>,
}

/// A chunk that was written: nobody writes there any more, and nobody has looked at it yet.
#[derive(Debug)]
pub struct Written {
    /// What it should be.
    pub key: ChunkKey,
    /// What it is.
    pub content: Reservation,
}

/// Why a push is not begun, or not ended.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The memory is being registered.
    #[error("the memory is not registered yet")]
    NotReady,
    /// It could not be.
    #[error("the memory is not registered: {0}")]
    Unregistered(String),
    /// A connection has one push at a time.
    #[error("push {0:016x} of this connection is still open")]
    StillOpen(u64),
    /// As many as there may be.
    #[error("{0} pushes are open, and no more may be")]
    TooMany(usize),
    /// No queue, or no window.
    #[error("{0}")]
    Refused(String),
    /// The device does not end the queue, so its slots are never used again.
    #[error("the end of the writes could not be had: {0}")]
    NotEnded(String),
    /// The client has no such push, or its time was up.
    #[error("there is no such push, or its time was up")]
    Unknown,
    /// The node ends.
    #[error("the node ends")]
    Ended,
}

/// What a client writes through.
pub trait Writers {
    /// One client's.
    type Queue: fmt::Debug;

    /// Connects the client at `peer`, and lets it write to each of `slots`. Returns where, in order.
    ///
    /// # Errors
    /// It cannot; the slots come back but for those that the client might write to all the same.
    fn admit(
        &mut self,
        peer: &Endpoint,
        slots: Vec<Exposed>,
    ) -> Result<(Self::Queue, Endpoint, Vec<Remote>), NotAdmitted>;

    /// Ends it: on return its client writes nothing more, whatever was under way. Returns its slots, in any
    /// order.
    ///
    /// # Errors
    /// It may go on; the slots are kept from everybody else, for good.
    fn end(&mut self, queue: Self::Queue) -> Result<Vec<Exposed>, String>;
}

/// A client that could not be admitted.
#[derive(Debug)]
pub struct NotAdmitted {
    /// Why.
    pub reason: String,
    /// Slots to which nobody can write.
    pub slots: Vec<Exposed>,
}

/// A push that is open.
#[derive(Debug)]
struct Open<Q> {
    id: u64,
    queue: Q,
    /// In the order in which the client was told of them.
    slots: Vec<(ExposureId, ChunkKey)>,
    until: Duration,
    /// Bytes of memory that it exposes.
    bytes: u64,
}

/// All pushes of a node.
#[derive(Debug)]
pub struct Pushes<W: Writers> {
    writers: W,
    cache: Arc<Cache>,
    limits: Limits,
    counters: Arc<PushCounters>,
    /// By connection.
    open: HashMap<u64, Open<W::Queue>>,
    /// The last push's id.
    last: u64,
}

impl<W: Writers> Pushes<W> {
    /// None yet.
    pub fn new(writers: W, cache: Arc<Cache>, limits: Limits, counters: Arc<PushCounters>) -> Self {
        Self { writers, cache, limits, counters, open: HashMap::new(), last: 0 }
    }

    /// When the time of a push is up next, by the monotonic clock.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.open.values().map(|open| open.until).min()
    }

    /// Begins a push.
    ///
    /// # Errors
    /// The connection has one, there are too many, or the client cannot be connected.
    pub fn begin(
        &mut self,
        connection: u64,
        peer: &Endpoint,
        wanted: &[Wanted],
        now: Now,
    ) -> Result<Begun, PushError> {
        if let Some(open) = self.open.get(&connection) {
            return Err(PushError::StillOpen(open.id));
        }
        if self.open.len() >= self.limits.pushes {
            return Err(PushError::TooMany(self.limits.pushes));
        }
        count(&self.counters.begun, 1);
        let mut places = Vec::with_capacity(wanted.len());
        let (mut exposed, mut slots, mut bytes) = (Vec::new(), Vec::new(), 0);
        for wanted in wanted {
            places.push(match self.place(wanted, bytes, now) {
                Ok(slot) => {
                    bytes += slot.capacity() as u64;
                    slots.push((slot.id(), wanted.key));
                    exposed.push(slot);
                    None
                }
                Err(place) => Some(place),
            });
        }
        let time = self.limits.time;
        if exposed.is_empty() {
            let places = places.into_iter().flatten().collect();
            return Ok(Begun { id: 0, time, endpoint: None, places });
        }
        count(&self.counters.exposed, bytes);
        let (queue, endpoint, remotes) = match self.writers.admit(peer, exposed) {
            Ok(admitted) => admitted,
            Err(NotAdmitted { reason, slots: back }) => {
                let back = take_back(back);
                self.uncount(bytes, slots.len(), back.len());
                return Err(PushError::Refused(reason));
            }
        };
        self.last += 1;
        let id = self.last;
        let until = now.monotonic.saturating_add(time);
        self.open.insert(connection, Open { id, queue, slots, until, bytes });
        self.counters.open.store(self.open.len() as u64, Ordering::Relaxed);
        let mut remotes = remotes.into_iter();
        let places = places
            .into_iter()
            .map(|place| place.or_else(|| remotes.next().map(Place::Slot)))
            .map(|place| place.unwrap_or_else(|| Place::Full("no window for it".into())))
            .collect();
        Ok(Begun { id, time, endpoint: Some(endpoint), places })
    }

    /// Memory for a chunk, beside the `taken` bytes of its push.
    fn place(&self, wanted: &Wanted, taken: u64, now: Now) -> Result<Exposed, Place> {
        let key = Key::new(ItemKey::chunk(&wanted.key).as_bytes());
        let quiet = GetRequest { quiet: true, no_win: true, ..GetRequest::default() };
        let length = usize::try_from(wanted.length).unwrap_or(usize::MAX);
        // A placeholder has no content, and so another length.
        if let Ok(Some(item)) = self.cache.get_with(&key, &quiet, now)
            && item.flags() == Kind::Chunk.flags()
            && item.bytes().len() == length
        {
            count(&self.counters.kept, 1);
            return Err(Place::Have);
        }
        let full = |reason| {
            count(&self.counters.full, 1);
            Err(Place::Full(reason))
        };
        if length == 0 {
            return full("a chunk has at least one byte".into());
        }
        let limit = self.limits.exposed;
        let left = limit
            .saturating_sub(self.counters.exposed.load(Ordering::Relaxed))
            .saturating_sub(taken);
        let too_much =
            || format!("the node exposes {limit} bytes of its memory at once, and no more");
        if u64::from(wanted.length) > left {
            return full(too_much());
        }
        match self.cache.reserve(length, now).map(Reservation::expose) {
            Ok(slot) if slot.capacity() as u64 <= left => Ok(slot),
            Ok(slot) => {
                drop(take_back(vec![slot]));
                full(too_much())
            }
            Err(error) => full(error.to_string()),
        }
    }

    /// Ends push `id` of `connection`, of whose slots the client says that it has written the first
    /// `written`. Returns these.
    ///
    /// # Errors
    /// There is no such push, or its writes cannot be ended.
    pub fn end(
        &mut self,
        connection: u64,
        id: u64,
        written: usize,
    ) -> Result<Vec<Written>, PushError> {
        if self.open.get(&connection).is_none_or(|open| open.id != id) {
            return Err(PushError::Unknown);
        }
        let open = self.open.remove(&connection).ok_or(PushError::Unknown)?;
        let keys: Vec<_> = open.slots.iter().take(written).copied().collect();
        let abandoned = open.slots.len() - keys.len();
        let mut back = self.finish(open)?;
        count(&self.counters.abandoned, abandoned as u64);
        let written = keys
            .into_iter()
            .filter_map(|(id, key)| back.remove(&id).map(|content| Written { key, content }));
        Ok(written.collect())
    }

    /// The connection is gone, and its push with it.
    pub fn close(&mut self, connection: u64) {
        let Some(open) = self.open.remove(&connection) else { return };
        if let Ok(back) = self.finish(open) {
            count(&self.counters.abandoned, back.len() as u64);
        }
    }

    /// Ends the pushes whose time is up at `now`.
    pub fn expire(&mut self, now: Now) {
        let over: Vec<_> = self
            .open
            .extract_if(|_, open| open.until <= now.monotonic)
            .map(|(_, open)| open)
            .collect();
        for open in over {
            if let Ok(back) = self.finish(open) {
                count(&self.counters.expired, back.len() as u64);
            }
        }
    }

    /// Ends the writes of a push that is no longer in the list.
    fn finish(
        &mut self,
        Open { queue, slots, bytes, .. }: Open<W::Queue>,
    ) -> Result<HashMap<ExposureId, Reservation>, PushError> {
        self.counters.open.store(self.open.len() as u64, Ordering::Relaxed);
        match self.writers.end(queue) {
            Ok(ended) => {
                let back = take_back(ended);
                self.uncount(bytes, slots.len(), back.len());
                Ok(back)
            }
            Err(reason) => {
                tracing::error!("a push could not be ended, its memory is lost: {reason}");
                count(&self.counters.lost, slots.len() as u64);
                Err(PushError::NotEnded(reason))
            }
        }
    }

    /// `back` of the `slots` slots with `bytes` are no longer exposed.
    fn uncount(&self, bytes: u64, slots: usize, back: usize) {
        let lost = slots.saturating_sub(back) as u64;
        count(&self.counters.lost, lost);
        // What is lost stays exposed.
        if lost == 0 {
            self.counters.exposed.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl<W: Writers> Drop for Pushes<W> {
    fn drop(&mut self) {
        let left: Vec<u64> = self.open.keys().copied().collect();
        for connection in left {
            self.close(connection);
        }
    }
}

/// Takes slots back to which nobody can write.
fn take_back(slots: Vec<Exposed>) -> HashMap<ExposureId, Reservation> {
    let mut back = HashMap::with_capacity(slots.len());
    for slot in slots {
        let id = slot.id();
        match slot.take_back(WritesEnded::of(id)) {
            Ok(reservation) => drop(back.insert(id, reservation)),
            Err(slot) => tracing::error!(offset = slot.offset(), "a slot does not come back"),
        }
    }
    back
}
