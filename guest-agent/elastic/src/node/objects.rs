//! The objects of a server, and the last write of each session.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::range::{Key, Range};

/// Sessions that are remembered; each takes some 100 bytes.
pub const SESSIONS_MAX: usize = 65_536;
/// A session that wrote nothing for so long may be forgotten, in milliseconds. Clients give up much sooner,
/// and the network keeps no message for so long.
pub const SESSION_IDLE: u64 = 600_000;

/// The last write of a session: a client that makes one request at a time.
///
/// A write that arrives again is answered again and not done again: between the two another client may have
/// written, and that write would be lost. This is known where the written object is, and goes with it. Where it
/// is not, all that is known is that what the session asked before is over: who answered for a write that is only
/// in a copy elsewhere would answer for one that may be lost with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// The client's number for itself.
    pub id: u64,
    /// Its number for the write.
    pub seq: u64,
    /// Whether the object existed before it: the answer.
    pub existed: bool,
    /// The identifier of what it wrote; none if that is elsewhere, and `seq` is the last request that is over.
    pub wrote: Option<u64>,
}

impl Session {
    /// What of it is known where `range` is, and nothing else.
    #[must_use]
    pub(super) fn with(self, range: Range) -> Self {
        match self.wrote {
            Some(id) if !range.contains(id) => self.without(),
            _ => self,
        }
    }

    /// What of it is known where the written object is not.
    fn without(self) -> Self {
        // It asks one thing after the other.
        Self { seq: self.seq.saturating_sub(1), existed: false, wrote: None, ..self }
    }

    /// Whether nobody waits any more for the answer to request `seq`.
    pub(super) fn is_past(&self, seq: u64) -> bool {
        seq < self.seq || seq == self.seq && self.wrote.is_none()
    }
}

/// Objects with their keys, and sessions.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    by_key: BTreeMap<Key, Bytes>,
    /// With the time of the write, in milliseconds.
    sessions: BTreeMap<u64, (Session, u64)>,
    /// When it was last tried to forget sessions.
    swept: u64,
}

impl Objects {
    /// The object of this key.
    pub fn get(&self, key: &Key) -> Option<&Bytes> {
        self.by_key.get(key)
    }

    /// Sets or removes an object; whether it existed.
    pub fn set(&mut self, key: Key, value: Option<Bytes>) -> bool {
        match value {
            Some(value) => self.by_key.insert(key, value).is_some(),
            None => self.by_key.remove(&key).is_some(),
        }
    }

    /// The first key of `range` behind `after`.
    pub(super) fn next(&self, range: Range, after: Option<&Key>) -> Option<&Key> {
        let lowest = Key::lowest(range.first());
        let start = after.map_or(Bound::Included(&lowest), Bound::Excluded);
        let (key, _) = self.by_key.range((start, Bound::Unbounded)).next()?;
        range.contains(key.id()).then_some(key)
    }

    /// The last write of a session.
    pub fn session(&self, id: u64) -> Option<Session> {
        self.sessions.get(&id).map(|(session, _)| *session)
    }

    /// All sessions.
    pub fn sessions(&self) -> impl Iterator<Item = Session> {
        self.sessions.values().map(|(session, _)| *session)
    }

    /// Keeps the later write of a session.
    pub fn remember(&mut self, session: Session, now: u64) {
        let kept = self.sessions.entry(session.id).or_insert((session, now));
        if (session.seq, session.wrote.is_some()) >= (kept.0.seq, kept.0.wrote.is_some()) {
            *kept = (session, now);
        }
    }

    /// Whether a write of session `id` can be remembered.
    pub(super) fn admits(&mut self, id: u64, now: u64) -> bool {
        if self.sessions.len() < SESSIONS_MAX || self.sessions.contains_key(&id) {
            return true;
        }
        if now >= self.swept + 1000 {
            self.swept = now;
            self.sessions.retain(|_, (_, at)| *at + SESSION_IDLE > now);
        }
        self.sessions.len() < SESSIONS_MAX
    }

    /// Removes and returns what is in `range`.
    fn take(&mut self, range: Range) -> BTreeMap<Key, Bytes> {
        let mut taken = self.by_key.split_off(&Key::lowest(range.first()));
        if let Some(next) = range.last().checked_add(1) {
            let mut rest = taken.split_off(&Key::lowest(next));
            self.by_key.append(&mut rest);
        }
        taken
    }

    /// Removes what is in `range`, because it is another's; whether there was anything.
    pub fn leave(&mut self, range: Range) -> bool {
        let mut any = !self.take(range).is_empty();
        for (session, _) in self.sessions.values_mut() {
            if session.wrote.is_some_and(|id| range.contains(id)) {
                *session = session.without();
                any = true;
            }
        }
        any
    }

    /// Adds what was received of a range of which there is nothing here.
    pub fn adopt(&mut self, mut other: Self, now: u64) {
        for session in other.sessions() {
            self.remember(session, now);
        }
        self.by_key.append(&mut other.by_key);
    }

    /// How many objects there are in `range`, and the bytes of their values.
    pub fn size(&self, range: Range) -> (u64, u64) {
        let mine = self
            .by_key
            .range(Key::lowest(range.first())..)
            .take_while(|(key, _)| range.contains(key.id()));
        mine.fold((0, 0), |(count, bytes), (_, value)| (count + 1, bytes + value.len() as u64))
    }

    /// All objects.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Bytes)> {
        self.by_key.iter()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_write_is_known_where_its_object_is() {
        let (low, high) = Range::ALL.halves().unwrap();
        let mut objects = Objects::default();
        let written = Session { id: 1, seq: 7, existed: true, wrote: Some(low.first()) };
        objects.remember(written, 0);
        assert_eq!(written.with(low), written);
        let elsewhere = written.with(high);
        assert!(elsewhere.is_past(6) && !elsewhere.is_past(7), "7 may be lost with its object");
        assert_eq!(elsewhere.with(low), elsewhere, "what is over stays over");

        assert!(!objects.leave(high));
        assert_eq!(objects.session(1), Some(written));
        assert!(objects.leave(low));
        assert_eq!(objects.session(1), Some(elsewhere));
        objects.remember(Session { seq: 6, wrote: Some(0), ..written }, 0);
        assert_eq!(objects.session(1).unwrap().wrote, Some(0), "an answer is more than none");
        objects.remember(elsewhere, 0);
        assert_eq!(objects.session(1).unwrap().wrote, Some(0));
    }
}
