//! Getting items.

use std::sync::Arc;

use super::error::StoreError;
use super::item::{Content, Item, Win};
use super::key::{Key, Kind};
use super::request::GetRequest;
use super::state::{Gone, State};
use super::table::{self, FETCHED, PLACEHOLDER, TOKEN};
use super::time::{Expires, Now};
use super::write::Filled;
use super::{Cache, Held};
use crate::index::IndexKey;
use crate::node::slab::Class;

/// How many keys are looked up before others get their turn.
const KEYS_AT_ONCE: usize = 1024;

impl State {
    fn count_get(&mut self, key: &Key, found: Result<u32, Gone>) {
        let counts = &mut self.counts;
        match found {
            Ok(id) => {
                let record = self.table.record(id);
                let kind = Kind::from_flags(record.flags);
                *counts.hits.get_mut(kind) += 1;
                *counts.hit_bytes.get_mut(kind) += record.length() as u64;
            }
            Err(gone) => {
                *counts.misses.get_mut(key.kind()) += 1;
                counts.get_expired += u64::from(gone == Gone::Expired);
                counts.get_flushed += u64::from(gone == Gone::Flushed);
            }
        }
    }

    /// Sets when a record expires.
    pub fn set_expires(&mut self, id: u32, expires: Expires, now: Now) {
        self.table.record_mut(id).expires = expires;
        if expires.is_past(now) {
            self.reclaim(id);
        } else {
            self.publish(id);
        }
    }

    fn get(&mut self, key: &Key, request: &GetRequest, now: Now) -> Option<Item> {
        let found = self.find(key.index(), now);
        if !request.quiet {
            self.count_get(key, found);
        }
        let touched = request.touch.is_some();
        let Ok(id) = found else {
            self.counts.touch_misses += u64::from(touched);
            return None;
        };
        let mut item = self.item(id)?;
        let left = item.expires.remaining(now);
        let due = left.is_some_and(|left| request.recache.is_some_and(|limit| left < limit));
        if (item.stale || due) && item.win == Win::Nobody && !request.no_win {
            item.win = Win::Won;
            self.table.record_mut(id).set(TOKEN, true);
        }
        if !request.quiet {
            self.bump(id, now);
        }
        if let Some(expires) = request.touch {
            self.counts.touch_hits += 1;
            item.expires = expires;
            self.set_expires(id, expires, now);
        }
        Some(item)
    }

    /// Puts an item without content at `key`, which only who asks here sees.
    fn vivify(
        &mut self,
        key: &Key,
        expires: Expires,
        request: &GetRequest,
        now: Now,
    ) -> Result<Option<Item>, StoreError> {
        let Some(class) = Class::for_length(0) else { return Ok(None) };
        let content = Arc::new(Content::from(Filled::new(self.reserve(class, 0, now)?)));
        let mut record = table::fresh(key.index(), content, now, self.epoch);
        record.cas = self.next_cas(request.cas);
        record.expires = expires;
        record.set(PLACEHOLDER | TOKEN, true);
        // Being made counts as being fetched, which is told from the next get on.
        record.set(FETCHED, !request.quiet);
        let id = self.put(record)?;
        Ok(self.item(id).map(|item| Item {
            win: Win::Won,
            fetched: false,
            // Flags in front of the one that made it see an item that never expires.
            previous_expires: Expires::NEVER,
            ..item
        }))
    }
}

impl Cache {
    /// The item of `key`.
    pub fn get(&self, key: &Key, now: Now) -> Option<Item> {
        let request = GetRequest { no_win: true, ..GetRequest::default() };
        self.lock().get(key, &request, now)
    }

    /// The item of `key`, with what meta gets do beside. An item that wins because little time is
    /// left is judged by the time before it is touched.
    ///
    /// # Errors
    /// There is no room for a placeholder that was to be made.
    pub fn get_with(
        &self,
        key: &Key,
        request: &GetRequest,
        now: Now,
    ) -> Result<Option<Item>, StoreError> {
        let mut state = self.lock();
        match (state.get(key, request, now), request.vivify) {
            (None, Some(expires)) => state.vivify(key, expires, request, now),
            (item, _) => Ok(item),
        }
    }

    /// Sets when the item of `key` expires. Returns whether there is one.
    pub fn touch(&self, key: &Key, expires: Expires, now: Now) -> bool {
        let mut state = self.lock();
        let found = state.find(key.index(), now);
        match found {
            Ok(id) => {
                state.counts.touch_hits += 1;
                state.bump(id, now);
                state.set_expires(id, expires, now);
            }
            Err(_) => state.counts.touch_misses += 1,
        }
        found.is_ok()
    }

    /// Sets when the item of `key` expires, and gets it.
    pub fn get_and_touch(&self, key: &Key, expires: Expires, now: Now) -> Option<Item> {
        let request = GetRequest { touch: Some(expires), no_win: true, ..GetRequest::default() };
        self.lock().get(key, &request, now)
    }

    /// The items whose flags say that they are names of images. Counts as no access.
    pub fn images(&self, now: Now) -> Vec<Item> {
        let mut state = self.lock();
        state.tick(now);
        let live =
            state.names.iter().filter(|id| state.gone(state.table.record(**id), now).is_none());
        live.filter_map(|id| state.item(*id)).collect()
    }

    /// How many of the items of `keys` are here. Counts as no access.
    pub fn held(&self, keys: &[IndexKey], now: Now) -> Held {
        let mut held = Held::default();
        for keys in keys.chunks(KEYS_AT_ONCE) {
            let mut state = self.lock();
            for key in keys {
                match state.find(*key, now) {
                    Ok(id) => {
                        held.items += 1;
                        held.bytes += state.table.record(id).length() as u64;
                    }
                    Err(_) => held.missing += 1,
                }
            }
        }
        held
    }

    /// The contents of those of `keys` that are here; `used` if they are about to be read, from afar
    /// perhaps, which nobody sees.
    pub(super) fn contents(&self, keys: &[IndexKey], used: bool, now: Now) -> Vec<Arc<Content>> {
        let mut contents = Vec::new();
        for keys in keys.chunks(KEYS_AT_ONCE) {
            let mut state = self.lock();
            contents.extend(keys.iter().filter_map(|key| state.peek(*key, used, now)));
        }
        contents
    }
}
