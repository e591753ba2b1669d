//! What the cache's lock guards: the records, the slots, the queues, the words of the index.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::counters::Counts;
use super::error::StoreError;
use super::item::{Content, Item, Returned, Returns, Win};
use super::key::{Kind, PerKind};
use super::quarantine::Quarantine;
use super::table::{FETCHED, PLACEHOLDER, PUBLISHED, Record, STALE, TOKEN, Table, VISITED};
use super::time::Now;
use crate::index::IndexKey;
use crate::index::entry::{Entry, State as EntryState};
use crate::index::table::BUCKET_ENTRIES;
use crate::node::arena::Arena;
use crate::node::lease::Holds;
use crate::node::sieve::Queue;
use crate::node::slab::{CLASSES, Class, Slabs};

/// Counts of one size class.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ClassCounts {
    pub content_bytes: u64,
    pub evicted: u64,
    pub evicted_unfetched: u64,
    pub evicted_idle: u32,
    pub reclaimed: u64,
    pub out_of_memory: u64,
}

/// Everything behind the lock.
#[derive(Debug)]
pub(super) struct State {
    pub arena: Arc<Arena>,
    pub returns: Arc<Returns>,
    pub table: Table,
    pub slabs: Slabs,
    pub queues: [Queue; CLASSES],
    /// The slab of each class that was looked at last for being emptied.
    pub slab_cursors: [u32; CLASSES],
    pub class_counts: [ClassCounts; CLASSES],
    pub counts: Counts,
    pub items_by_kind: PerKind,
    pub content_bytes: PerKind,
    /// Records whose flags say that they are names of images.
    pub names: BTreeSet<u32>,
    /// Not guarded by this lock, and never asked for anything but figures under it.
    pub holds: Arc<Holds<Content>>,
    /// The CAS value that was given last.
    pub generation: u64,
    /// How many flushes there were.
    pub epoch: u32,
    /// When a flush that was ordered ahead is due.
    pub flush_at: Option<u32>,
    /// Whether records of before the last flush may still be there.
    pub flushing: bool,
    /// The next record to be looked at for having expired.
    pub cursor: u32,
    pub quarantine: Quarantine,
    pub scratch: Vec<Returned>,
}

/// Why there is no item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    Absent,
    Expired,
    Flushed,
}

impl State {
    /// What is due: a flush that was ordered ahead.
    pub fn tick(&mut self, now: Now) {
        if self.flush_at.is_some_and(|at| at <= now.unix) {
            self.flush_at = None;
            self.flush();
        }
    }

    /// From now on, all items that there are, are gone.
    pub fn flush(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        self.flushing = true;
        self.counts.flushes += 1;
    }

    /// Whether a record counts as gone.
    pub fn gone(&self, record: &Record, now: Now) -> Option<Gone> {
        if record.epoch != self.epoch {
            Some(Gone::Flushed)
        } else if record.expires.is_past(now) {
            Some(Gone::Expired)
        } else {
            None
        }
    }

    /// The record of `key`; one that is found gone is removed.
    pub fn find(&mut self, key: IndexKey, now: Now) -> Result<u32, Gone> {
        self.tick(now);
        let id = self.table.find(key).ok_or(Gone::Absent)?;
        match self.gone(self.table.record(id), now) {
            None => Ok(id),
            Some(gone) => {
                self.reclaim(id);
                Err(gone)
            }
        }
    }

    /// Removes what has expired or was flushed.
    pub fn reclaim(&mut self, id: u32) {
        let record = self.table.record(id);
        let unfetched = u64::from(!record.has(FETCHED));
        self.counts.reclaimed += 1;
        self.counts.expired_unfetched += unfetched;
        if let Some(class) = self.class(id) {
            self.class_counts[class.number()].reclaimed += 1;
        }
        self.remove(id);
    }

    /// The next CAS value, or the one that was asked for.
    pub fn next_cas(&mut self, wanted: Option<u64>) -> u64 {
        wanted.unwrap_or_else(|| {
            self.generation = self.generation.checked_add(1).unwrap_or(1);
            self.generation
        })
    }

    /// The class of a record's content.
    pub fn class(&self, id: u32) -> Option<Class> {
        let content = self.table.record(id).content.as_ref()?;
        self.slabs.class(content.place().slab)
    }

    /// Puts a record in place of the one of the same key, or as a new one. A record that is replaced
    /// leaves its entry only after the new one has its own, if there is room for both.
    ///
    /// # Errors
    /// All entries where it can be are in use.
    pub fn put(&mut self, record: Record) -> Result<u32, StoreError> {
        let key = record.key;
        let old = self.table.find(key);
        let id = match (self.table.free(key), old) {
            (Some(free), old) => {
                self.insert(free, record);
                if let Some(old) = old {
                    self.remove(old);
                }
                free
            }
            (None, Some(old)) => {
                let published = self.table.record(old).has(PUBLISHED);
                self.unlist(old);
                self.insert(old, record);
                if published && !self.table.record(old).has(PUBLISHED) {
                    self.bury(old);
                }
                old
            }
            (None, None) => {
                let Some(victim) = self.least_valuable(key) else {
                    self.counts.table_full += 1;
                    return Err(StoreError::TableFull { entries: 2 * BUCKET_ENTRIES });
                };
                self.evict(victim, record.stored, true);
                self.insert(victim, record);
                victim
            }
        };
        Ok(id)
    }

    /// Which of the records that are in the way of `key` is to go.
    fn least_valuable(&self, key: IndexKey) -> Option<u32> {
        let candidates = self.table.candidates(key).filter(|id| self.table.record(*id).evictable());
        candidates.min_by_key(|id| {
            let record = self.table.record(*id);
            (record.epoch == self.epoch, record.has(VISITED), record.accessed)
        })
    }

    /// Lists a record at a free place.
    pub fn insert(&mut self, id: u32, record: Record) {
        let kind = Kind::from_flags(record.flags);
        let length = record.length() as u64;
        let place = record.content.as_ref().map(|content| content.place());
        self.table.put(id, record);
        if let Some(place) = place {
            self.slabs.set_owner(place, Some(id));
            if let Some(class) = self.slabs.class(place.slab) {
                self.queues[class.number()].push(&mut self.table, id);
                self.class_counts[class.number()].content_bytes += length;
            }
        }
        *self.items_by_kind.get_mut(kind) += 1;
        *self.content_bytes.get_mut(kind) += length;
        if kind == Some(Kind::Name) {
            self.names.insert(id);
        }
        self.publish(id);
    }

    /// Takes a record out of everything but the index.
    fn unlist(&mut self, id: u32) {
        let class = self.class(id);
        if let Some(class) = class {
            self.queues[class.number()].remove(&mut self.table, id);
        }
        let record = self.table.take(id);
        let kind = Kind::from_flags(record.flags);
        let length = record.length() as u64;
        *self.items_by_kind.get_mut(kind) -= 1;
        *self.content_bytes.get_mut(kind) -= length;
        if let Some(class) = class {
            self.class_counts[class.number()].content_bytes -= length;
        }
        self.names.remove(&id);
        if let Some(content) = record.content {
            self.slabs.set_owner(content.place(), None);
        }
    }

    /// Removes a record. Its content stays for as long as somebody uses it.
    pub fn remove(&mut self, id: u32) {
        if self.table.record(id).has(PUBLISHED) {
            // Before the content can be given back.
            self.bury(id);
        }
        self.unlist(id);
    }

    /// Brings the entry of a record up to date.
    pub fn publish(&mut self, id: u32) {
        let record = self.table.record(id);
        let Some(entry) = self.entry(id) else { return };
        let visible = !record.has(STALE | PLACEHOLDER);
        if visible {
            if let Some(content) = &record.content {
                content.set_published();
            }
            self.write(id, &entry);
        } else if record.has(PUBLISHED) {
            self.bury(id);
        }
        self.table.record_mut(id).set(PUBLISHED, visible);
    }

    /// Writes a tombstone of the record's key over its entry.
    fn bury(&mut self, id: u32) {
        if let Some(entry) = self.entry(id) {
            self.write(id, &entry.tombstone());
        }
    }

    fn write(&self, id: u32, entry: &Entry) {
        self.arena.index().write(id.into(), &entry.encode(self.arena.boot_id(), id.into()));
    }

    /// What the index is to say of a record; none if the record is not in use.
    fn entry(&self, id: u32) -> Option<Entry> {
        let record = self.table.record(id);
        let content = record.content.as_ref()?;
        let slot = &content.block.slot;
        Some(Entry {
            key: record.key,
            state: EntryState::Live,
            region: 0,
            offset: slot.offset() as u64,
            length: u32::try_from(slot.bytes().len()).unwrap_or(u32::MAX),
            expires: record.expires.unix(),
            generation: record.cas,
            hash: content.hash,
            flags: record.flags,
        })
    }

    /// The item of a record as it is; none if the record is not in use.
    pub fn item(&self, id: u32) -> Option<Item> {
        let record = self.table.record(id);
        Some(Item {
            content: Arc::clone(record.content.as_ref()?),
            flags: record.flags,
            cas: record.cas,
            expires: record.expires,
            previous_expires: record.expires,
            last_access: record.accessed,
            fetched: record.has(FETCHED),
            stale: record.has(STALE),
            win: if record.has(TOKEN) { Win::Taken } else { Win::Nobody },
        })
    }

    /// Notes an access.
    pub fn bump(&mut self, id: u32, now: Now) {
        let record = self.table.record_mut(id);
        record.set(VISITED | FETCHED, true);
        record.accessed = now.unix;
    }

    /// Bytes taken beside the arena: by the records, by the bookkeeping of slots, on the heap for each
    /// item, and for what nobody may use twice.
    pub fn overhead(&self) -> u64 {
        let content = size_of::<Content>() + 2 * size_of::<usize>();
        let items = self.table.used() * content;
        (self.table.overhead() + self.slabs.overhead() + items) as u64 + self.arena.overhead()
    }

    /// The content of `key`, without noting an access that is counted; `used` if it is about to be
    /// read.
    pub fn peek(&mut self, key: IndexKey, used: bool, now: Now) -> Option<Arc<Content>> {
        let id = self.find(key, now).ok()?;
        if used {
            let record = self.table.record_mut(id);
            record.set(VISITED, true);
            record.accessed = now.unix;
        }
        let record = self.table.record(id);
        if record.has(STALE | PLACEHOLDER) { None } else { record.content.clone() }
    }
}
