//! Removing items: one, or all.

use super::Cache;
use super::error::StoreError;
use super::key::{Key, Kind};
use super::request::{Attributes, DeleteOutcome, DeleteRequest};
use super::state::State;
use super::table::{STALE, TOKEN};
use super::time::Now;
use super::write::Filled;
use crate::node::slab::Class;

/// How many records are looked at before others get their turn.
const RECORDS_AT_ONCE: u32 = 4096;

impl State {
    fn delete(
        &mut self,
        key: &Key,
        request: &DeleteRequest,
        now: Now,
    ) -> Result<DeleteOutcome, StoreError> {
        let Ok(id) = self.find(key.index(), now) else {
            self.counts.delete_misses += 1;
            return Ok(DeleteOutcome::NotFound);
        };
        let record = self.table.record(id);
        if request.compare.is_some_and(|compare| compare != record.cas) {
            self.counts.cas_mismatches += 1;
            return Ok(DeleteOutcome::Exists);
        }
        self.counts.delete_hits += 1;
        if !request.invalidate && !request.clear {
            self.remove(id);
            return Ok(DeleteOutcome::Deleted);
        }
        let id = if request.clear { self.clear(key, id, now)? } else { Some(id) };
        if let Some(id) = id {
            let cas = self.next_cas(request.cas);
            let record = self.table.record_mut(id);
            record.cas = cas;
            if request.invalidate {
                record.set(STALE, true);
                // The next who gets it is told to renew it.
                record.set(TOKEN, false);
            }
            let expires = request.expires.filter(|_| request.invalidate);
            let expires = expires.unwrap_or(record.expires);
            self.set_expires(id, expires, now);
        }
        Ok(DeleteOutcome::Deleted)
    }

    /// Stores nothing, with no flags, in place of an item's content.
    fn clear(&mut self, key: &Key, id: u32, now: Now) -> Result<Option<u32>, StoreError> {
        // Held, so that making room does not evict it.
        let Some(old) = self.item(id) else { return Ok(None) };
        let bits = self.table.record(id).bits & (STALE | TOKEN);
        let Some(class) = Class::for_length(0) else { return Ok(None) };
        let empty = Filled::new(self.reserve(class, 0, now)?);
        let attributes = Attributes { expires: old.expires, ..Attributes::default() };
        self.commit(key, empty, &attributes, bits, now)?;
        Ok(self.table.find(key.index()))
    }

    /// Removes what has expired or was flushed among the next records. Returns how many it removed,
    /// and whether it came to the end of the table.
    fn sweep(&mut self, now: Now) -> (u64, bool) {
        let entries = u32::try_from(self.table.entries()).unwrap_or(u32::MAX);
        let end = self.cursor.saturating_add(RECORDS_AT_ONCE).min(entries);
        let mut removed = 0;
        for id in self.cursor..end {
            if self.table.is_used(id) && self.gone(self.table.record(id), now).is_some() {
                self.reclaim(id);
                removed += 1;
            }
        }
        self.cursor = if end == entries { 0 } else { end };
        (removed, end == entries)
    }
}

impl Cache {
    /// Removes the item of `key`, or marks it stale, or empties it. Who uses or holds its content
    /// keeps it.
    ///
    /// # Errors
    /// There is no room for the emptied item.
    pub fn delete(
        &self,
        key: &Key,
        request: &DeleteRequest,
        now: Now,
    ) -> Result<DeleteOutcome, StoreError> {
        self.lock().delete(key, request, now)
    }

    /// Removes the item of `key`, whose new value could not be taken: what was to be replaced is not to
    /// stay. But the items of images do: what a chunk or a manifest holds follows from its key, and an
    /// image that lost its name for want of memory for the new one would be gone.
    pub fn forget(&self, key: &Key, now: Now) {
        let mut state = self.lock();
        let Ok(id) = state.find(key.index(), now) else { return };
        if Kind::from_flags(state.table.record(id).flags).is_none() {
            state.remove(id);
        }
    }

    /// Removes all items that there are now, or `delay` seconds from now; one order replaces the
    /// other. Nobody who asks finds them from then on; remote readers may until the index has been
    /// gone through, which for a flush without delay is done when this returns.
    pub fn flush_all(&self, delay: u32, now: Now) {
        let mut state = self.lock();
        if delay > 0 {
            state.flush_at = Some(now.unix.saturating_add(delay));
            return;
        }
        state.flush_at = None;
        state.flush();
        drop(state);
        self.sweep_all(now);
    }

    /// Goes through all records, so that nothing is left that was flushed.
    pub(super) fn sweep_all(&self, now: Now) -> u64 {
        let mut state = self.lock();
        state.flushing = false;
        let rounds = state.table.entries().div_ceil(RECORDS_AT_ONCE as usize);
        drop(state);
        // As many parts as there are, from wherever others left off.
        (0..=rounds).map(|_| self.lock().sweep(now).0).sum()
    }

    /// Goes through a part of the records.
    pub(super) fn sweep_some(&self, now: Now, parts: usize) -> u64 {
        let mut removed = 0;
        for _ in 0..parts {
            let (more, end) = self.lock().sweep(now);
            removed += more;
            if end {
                break;
            }
        }
        removed
    }
}
