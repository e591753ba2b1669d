//! What the node knows of its items beside the index: a record for each of its entries.
//!
//! It takes 66 bytes for each entry of the index, used or not, and about 110 on the heap for each
//! item ([`Content`] behind an `Arc`, and the owner of its slot).

use std::sync::Arc;

use super::item::Content;
use super::time::{Expires, Now};
use crate::index::IndexKey;
use crate::index::table::{BUCKET_ENTRIES, TableGeometry};
use crate::node::sieve::{Links, Nodes};

/// Accessed since the hand of its queue came by.
pub(super) const VISITED: u8 = 1;
/// Fetched since it was stored.
pub(super) const FETCHED: u8 = 2;
/// Marked stale.
pub(super) const STALE: u8 = 4;
/// Somebody was told to renew it.
pub(super) const TOKEN: u8 = 8;
/// Made by a get, without content yet.
pub(super) const PLACEHOLDER: u8 = 16;
/// The entry of the index says that it is here.
pub(super) const PUBLISHED: u8 = 32;

/// An item.
#[derive(Debug)]
pub(super) struct Record {
    pub key: IndexKey,
    /// None for a record that is not in use.
    pub content: Option<Arc<Content>>,
    pub cas: u64,
    pub expires: Expires,
    pub flags: u32,
    /// Unix second of the last access, or of the storing.
    pub accessed: u32,
    /// Unix second of the storing.
    pub stored: u32,
    /// How many flushes there had been when it was stored.
    pub epoch: u32,
    pub bits: u8,
    links: Links,
}

impl Record {
    const UNUSED: Self = Self {
        key: IndexKey([0; 16]),
        content: None,
        cas: 0,
        expires: Expires::NEVER,
        flags: 0,
        accessed: 0,
        stored: 0,
        epoch: 0,
        bits: 0,
        links: Links::ALONE,
    };

    pub fn has(&self, bits: u8) -> bool {
        self.bits & bits != 0
    }

    pub fn set(&mut self, bits: u8, on: bool) {
        self.bits = if on { self.bits | bits } else { self.bits & !bits };
    }

    /// Whether nobody but the record has the content. Under the cache's lock this stays so, because
    /// all other references come from here.
    pub fn evictable(&self) -> bool {
        self.content.as_ref().is_some_and(|content| Arc::strong_count(content) == 1)
    }

    /// Bytes of content.
    pub fn length(&self) -> usize {
        self.content.as_ref().map_or(0, |content| content.bytes().len())
    }
}

/// All records, each with the number of its entry.
#[derive(Debug)]
pub(super) struct Table {
    geometry: TableGeometry,
    /// 16 bits of the key of each, 0 for those not in use: most lookups touch no other record.
    tags: Box<[u16]>,
    records: Box<[Record]>,
    used: usize,
}

impl Table {
    pub fn new(geometry: TableGeometry) -> Self {
        let entries = usize::try_from(geometry.entries()).unwrap_or(0);
        Self {
            geometry,
            tags: vec![0; entries].into(),
            records: (0..entries).map(|_| Record::UNUSED).collect(),
            used: 0,
        }
    }

    /// Entries in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Entries.
    pub fn entries(&self) -> usize {
        self.records.len()
    }

    /// Bytes that it takes.
    pub fn overhead(&self) -> usize {
        self.records.len() * (size_of::<Record>() + size_of::<u16>())
    }

    pub fn record(&self, id: u32) -> &Record {
        &self.records[position(id)]
    }

    pub fn record_mut(&mut self, id: u32) -> &mut Record {
        &mut self.records[position(id)]
    }

    /// Whether a record is in use.
    pub fn is_used(&self, id: u32) -> bool {
        self.tags.get(position(id)).is_some_and(|tag| *tag != 0)
    }

    /// The numbers of the entries where `key` can be.
    pub fn candidates(&self, key: IndexKey) -> impl Iterator<Item = u32> + use<> {
        let [first, second] = self.geometry.candidates(key);
        let of = |bucket: u64| {
            (0..BUCKET_ENTRIES)
                .filter_map(move |place| u32::try_from(TableGeometry::slot(bucket, place)).ok())
        };
        of(first).chain(of(second).filter(move |_| first != second))
    }

    /// The record of `key`.
    pub fn find(&self, key: IndexKey) -> Option<u32> {
        let tag = tag(key);
        self.candidates(key).find(|id| {
            let at = position(*id);
            self.tags[at] == tag && self.records[at].key == key
        })
    }

    /// A free record for `key`, in the emptier of its buckets.
    pub fn free(&self, key: IndexKey) -> Option<u32> {
        let [first, second] = self.geometry.candidates(key).map(|bucket| {
            let start = TableGeometry::slot(bucket, 0);
            let ids = (0..BUCKET_ENTRIES as u64).filter_map(move |n| u32::try_from(start + n).ok());
            let mut free = ids.filter(|id| self.tags[position(*id)] == 0);
            (free.next(), free.count())
        });
        if first.1 >= second.1 { first.0.or(second.0) } else { second.0.or(first.0) }
    }

    /// Puts `record` at a free place.
    pub fn put(&mut self, id: u32, record: Record) {
        let at = position(id);
        self.used += usize::from(self.tags[at] == 0);
        self.tags[at] = tag(record.key);
        self.records[at] = record;
    }

    /// Takes a record out.
    pub fn take(&mut self, id: u32) -> Record {
        let at = position(id);
        self.used -= usize::from(self.tags[at] != 0);
        self.tags[at] = 0;
        std::mem::replace(&mut self.records[at], Record::UNUSED)
    }
}

/// The words of a record that was stored just now.
pub(super) fn fresh(key: IndexKey, content: Arc<Content>, now: Now, epoch: u32) -> Record {
    Record {
        key,
        content: Some(content),
        accessed: now.unix,
        stored: now.unix,
        epoch,
        ..Record::UNUSED
    }
}

impl Nodes for Table {
    fn links(&mut self, id: u32) -> &mut Links {
        &mut self.record_mut(id).links
    }

    fn take_visited(&mut self, id: u32) -> bool {
        let record = self.record_mut(id);
        let visited = record.has(VISITED);
        record.set(VISITED, false);
        visited
    }

    fn evictable(&self, id: u32) -> bool {
        self.record(id).evictable()
    }
}

fn position(id: u32) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX)
}

/// From the upper bits of the first half, of which buckets are numbered by the lower ones.
fn tag(key: IndexKey) -> u16 {
    let [.., low, high] = key.halves().0.to_le_bytes();
    u16::from_le_bytes([low, high]).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_a_cache_line() {
        assert_eq!(size_of::<Record>(), 64);
    }
}
