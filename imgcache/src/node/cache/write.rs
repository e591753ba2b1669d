//! Storing items.

use std::sync::Arc;

use super::Cache;
use super::error::StoreError;
use super::item::{Content, Reservation};
use super::key::{Key, Kind};
use super::request::{Attributes, StoreMode, StoreOutcome};
use super::state::State;
use super::table::{self, FETCHED, PLACEHOLDER, STALE, TOKEN, VISITED};
use super::time::Now;
use crate::key::ChunkKey;

/// How often a change that depends on the item there is, is tried again because others were faster.
const ATTEMPTS: u32 = 1000;

/// Content that is filled in and hashed, on its way into the cache.
pub(super) struct Filled {
    pub reservation: Reservation,
    pub hash: u128,
}

impl Filled {
    pub fn new(reservation: Reservation) -> Self {
        let hash = twox_hash::XxHash3_128::oneshot(&reservation);
        Self { reservation, hash }
    }
}

/// What is to be done with an item that may be stored.
enum Verdict {
    /// Stored as it is, in place of the record if there is one.
    Store(Option<u32>),
    /// Stored as a stale item that expires as the one there is.
    StoreStale(u32),
    /// Joined with that of this record.
    Join(u32),
    /// Not stored.
    Refuse(StoreOutcome),
}

impl State {
    /// What memcached does (`do_store_item`) for this mode and this CAS value to be compared.
    fn judge(&mut self, key: &Key, mode: StoreMode, attributes: &Attributes, now: Now) -> Verdict {
        let compare = match mode {
            StoreMode::Cas(cas) => Some(cas),
            _ => attributes.compare,
        };
        let found = self.find(key.index(), now).ok();
        let Some(id) = found else {
            return match (mode, compare) {
                (StoreMode::Add, _) | (StoreMode::Set, None) => Verdict::Store(None),
                (StoreMode::Append | StoreMode::Prepend, _) if attributes.vivify.is_some() => {
                    Verdict::Store(None)
                }
                (StoreMode::Append | StoreMode::Prepend, _) | (StoreMode::Replace, None) => {
                    Verdict::Refuse(StoreOutcome::NotStored)
                }
                _ => {
                    self.counts.cas_misses += 1;
                    Verdict::Refuse(StoreOutcome::NotFound)
                }
            };
        };
        if mode == StoreMode::Add {
            // Somebody wants it to be there.
            self.table.record_mut(id).set(VISITED, true);
            return Verdict::Refuse(StoreOutcome::NotStored);
        }
        let join = matches!(mode, StoreMode::Append | StoreMode::Prepend);
        let cas = self.table.record(id).cas;
        match compare {
            Some(wanted) if wanted == cas => self.counts.cas_hits += 1,
            Some(wanted) if attributes.invalidate && wanted < cas && !join => {
                return Verdict::StoreStale(id);
            }
            Some(_) => {
                self.counts.cas_mismatches += 1;
                return Verdict::Refuse(StoreOutcome::Exists);
            }
            None => (),
        }
        if join { Verdict::Join(id) } else { Verdict::Store(Some(id)) }
    }

    /// Stores content in place of what `key` has. Returns the CAS value.
    pub fn commit(
        &mut self,
        key: &Key,
        filled: Filled,
        attributes: &Attributes,
        bits: u8,
        now: Now,
    ) -> Result<u64, StoreError> {
        let cas = self.next_cas(attributes.cas);
        self.count_stored(attributes.flags, filled.reservation.len());
        if attributes.expires.is_past(now) {
            // As if it had expired in the moment after.
            if let Some(old) = self.table.find(key.index()) {
                self.remove(old);
            }
            return Ok(cas);
        }
        let content = Arc::new(Content::from(filled));
        let mut record = table::fresh(key.index(), content, now, self.epoch);
        record.cas = cas;
        record.flags = attributes.flags;
        record.expires = attributes.expires;
        record.bits = bits;
        self.put(record)?;
        Ok(cas)
    }

    /// Stores what is there already: everything is as if it was new, but for the place.
    fn commit_same(&mut self, id: u32, attributes: &Attributes, now: Now) -> u64 {
        let cas = self.next_cas(attributes.cas);
        self.count_stored(attributes.flags, self.table.record(id).length());
        self.counts.stored_same += 1;
        let record = self.table.record_mut(id);
        record.cas = cas;
        record.accessed = now.unix;
        record.stored = now.unix;
        record.set(STALE | TOKEN | PLACEHOLDER | FETCHED, false);
        record.set(VISITED, true);
        self.set_expires(id, attributes.expires, now);
        cas
    }

    fn count_stored(&mut self, flags: u32, length: usize) {
        let kind = Kind::from_flags(flags);
        *self.counts.stored.get_mut(kind) += 1;
        *self.counts.stored_bytes.get_mut(kind) += length as u64;
    }
}

impl Cache {
    /// Stores what was filled in. The content of an item with the flags and the key of a chunk must
    /// have the BLAKE3 hash that its key says.
    ///
    /// If the same content is there already, it stays in its place, with all leases and pins on it.
    ///
    /// # Errors
    /// No room, or the content of a chunk is not what its key says; then nothing is stored, and what
    /// there was stays.
    pub fn store(
        &self,
        key: &Key,
        mode: StoreMode,
        content: Reservation,
        attributes: &Attributes,
        now: Now,
    ) -> Result<StoreOutcome, StoreError> {
        if matches!(mode, StoreMode::Append | StoreMode::Prepend) {
            return self.join(key, mode, &content, attributes, now);
        }
        self.check_chunk(key, &content, attributes.flags)?;
        let filled = Filled::new(content);
        // The content there is with which this was compared, and whether it is the same.
        let mut compared: Option<(Arc<Content>, bool)> = None;
        for _ in 0..ATTEMPTS {
            let mut state = self.lock();
            let (found, attributes, bits) = match state.judge(key, mode, attributes, now) {
                Verdict::Refuse(outcome) => return Ok(outcome),
                Verdict::Join(id) | Verdict::Store(Some(id)) => (Some(id), *attributes, 0),
                Verdict::Store(None) => (None, *attributes, 0),
                Verdict::StoreStale(id) => {
                    let old = state.table.record(id);
                    let attributes = Attributes { expires: old.expires, ..*attributes };
                    (None, attributes, STALE | old.bits & TOKEN)
                }
            };
            let same = found.and_then(|id| {
                let record = state.table.record(id);
                let content = record.content.as_ref()?;
                let equal = content.hash == filled.hash
                    && content.bytes().len() == filled.reservation.len()
                    && record.flags == attributes.flags;
                equal.then(|| (id, Arc::clone(content)))
            });
            let Some((id, there)) = same else {
                let cas = state.commit(key, filled, &attributes, bits, now)?;
                return Ok(StoreOutcome::Stored { cas });
            };
            match &compared {
                Some((with, true)) if Arc::ptr_eq(with, &there) => {
                    let cas = state.commit_same(id, &attributes, now);
                    return Ok(StoreOutcome::Stored { cas });
                }
                Some((with, false)) if Arc::ptr_eq(with, &there) => {
                    drop(there);
                    let cas = state.commit(key, filled, &attributes, bits, now)?;
                    return Ok(StoreOutcome::Stored { cas });
                }
                _ => {
                    // Equal hashes are no proof; and others need not wait for it.
                    drop(state);
                    let equal = there.bytes() == &*filled.reservation;
                    compared = Some((there, equal));
                }
            }
        }
        Err(StoreError::Contended { attempts: ATTEMPTS })
    }

    /// Stores a copy of `content`.
    ///
    /// # Errors
    /// As [`Cache::reserve`] and [`Cache::store`].
    pub fn store_bytes(
        &self,
        key: &Key,
        mode: StoreMode,
        content: &[u8],
        attributes: &Attributes,
        now: Now,
    ) -> Result<StoreOutcome, StoreError> {
        let mut reservation = self.reserve(content.len(), now)?;
        reservation.copy_from_slice(content);
        self.store(key, mode, reservation, attributes, now)
    }

    /// Refuses a chunk that is not what its key says.
    fn check_chunk(&self, key: &Key, content: &[u8], flags: u32) -> Result<(), StoreError> {
        let Some(key) = key.chunk().filter(|_| flags == Kind::Chunk.flags()) else { return Ok(()) };
        let found = ChunkKey::of(content);
        if found == key {
            return Ok(());
        }
        self.lock().counts.hash_mismatches += 1;
        Err(StoreError::HashMismatch { key, found })
    }

    /// Appends or prepends.
    fn join(
        &self,
        key: &Key,
        mode: StoreMode,
        content: &[u8],
        attributes: &Attributes,
        now: Now,
    ) -> Result<StoreOutcome, StoreError> {
        for _ in 0..ATTEMPTS {
            let mut state = self.lock();
            let id = match state.judge(key, mode, attributes, now) {
                Verdict::Refuse(outcome) => return Ok(outcome),
                Verdict::Join(id) | Verdict::StoreStale(id) | Verdict::Store(Some(id)) => id,
                Verdict::Store(None) => {
                    drop(state);
                    let expires = attributes.vivify.unwrap_or_default();
                    let fresh = Attributes { expires, vivify: None, compare: None, ..*attributes };
                    // Somebody else may have made it meanwhile; then it is joined with theirs.
                    let mut copy = self.reserve(content.len(), now)?;
                    copy.copy_from_slice(content);
                    match self.store(key, StoreMode::Add, copy, &fresh, now)? {
                        StoreOutcome::NotStored => continue,
                        outcome => return Ok(outcome),
                    }
                }
            };
            let Some(old) = state.item(id) else { continue };
            drop(state);
            let mut joined = self.reserve(old.bytes().len().saturating_add(content.len()), now)?;
            let (first, second) = match mode {
                StoreMode::Prepend => (content, old.bytes()),
                _ => (old.bytes(), content),
            };
            joined[..first.len()].copy_from_slice(first);
            joined[first.len()..].copy_from_slice(second);
            self.check_chunk(key, &joined, old.flags)?;
            let filled = Filled::new(joined);
            let mut state = self.lock();
            let unchanged = state.find(key.index(), now).ok().filter(|id| {
                let record = state.table.record(*id);
                let same = record.content.as_ref().is_some_and(|c| Arc::ptr_eq(c, &old.content));
                same && record.cas == old.cas
            });
            if let Some(id) = unchanged {
                // It may have been touched meanwhile.
                let expires = state.table.record(id).expires;
                let attributes =
                    Attributes { flags: old.flags, expires, cas: attributes.cas, ..*attributes };
                let cas = state.commit(key, filled, &attributes, 0, now)?;
                return Ok(StoreOutcome::Stored { cas });
            }
        }
        Err(StoreError::Contended { attempts: ATTEMPTS })
    }
}
