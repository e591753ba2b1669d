//! Memory on its way through the cache: reserved, filled, published, read, given back.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::expose::ExposureId;
use super::time::{Expires, Now};
use super::write::Filled;
use crate::node::arena::Slot;
use crate::node::lease::Holdable;
use crate::node::slab::Place;
use crate::parallel::lock;

/// Places whose last user is gone, until the allocator looks. A lock of its own, held for one push,
/// so that an item can be dropped anywhere, also where the cache is locked.
#[derive(Debug, Default)]
pub(super) struct Returns {
    places: Mutex<Vec<Returned>>,
    parked: Mutex<HashMap<ExposureId, Place>>,
    /// Bytes of the slots of all reservations.
    reserved: AtomicU64,
}

/// A place that came back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Returned {
    pub place: Place,
    pub seen: Seen,
}

/// Who of those who reach memory by themselves may know of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Seen {
    /// It can be used again at once.
    Nobody,
    /// After the quarantine.
    Readers,
    /// Not before it is proved that they are gone; never because of any time.
    Writers,
}

impl Returns {
    /// Takes what came back, in exchange for an empty vector.
    pub fn take(&self, into: &mut Vec<Returned>) {
        into.clear();
        std::mem::swap(&mut *lock(&self.places), into);
    }

    /// Leaves what `give_back` was for alone until [`Returns::unpark`]. Its slot is gone already: whoever
    /// frees it must find its bytes free.
    pub fn park(&self, id: ExposureId, give_back: &GiveBack) {
        lock(&self.parked).insert(id, give_back.place);
    }

    /// Gives back what was parked. Returns whether there was anything.
    pub fn unpark(&self, id: ExposureId) -> bool {
        let place = lock(&self.parked).remove(&id);
        if let Some(place) = place {
            lock(&self.places).push(Returned { place, seen: Seen::Nobody });
        }
        place.is_some()
    }

    /// How many places are parked.
    pub fn parked(&self) -> u64 {
        lock(&self.parked).len() as u64
    }

    /// Bytes of slots that are reserved: they hold nothing yet, and nobody can take them.
    pub fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }
}

/// Hands a place back when it is dropped.
#[derive(Debug)]
pub(super) struct GiveBack {
    pub place: Place,
    pub returns: Arc<Returns>,
    /// Bytes of the slot while it is a reservation's, else 0.
    reserved: u32,
    seen: AtomicU8,
}

impl GiveBack {
    /// For an item's place.
    pub fn new(place: Place, returns: &Arc<Returns>) -> Self {
        let seen = AtomicU8::new(Seen::Nobody as u8);
        Self { place, returns: Arc::clone(returns), reserved: 0, seen }
    }

    /// For a place with a slot of so many bytes that is being filled.
    pub fn reserved(place: Place, bytes: usize, returns: &Arc<Returns>) -> Self {
        let reserved = u32::try_from(bytes).unwrap_or(u32::MAX);
        returns.reserved.fetch_add(reserved.into(), Ordering::Relaxed);
        let mut give_back = Self::new(place, returns);
        give_back.reserved = reserved;
        give_back
    }

    /// From now on `seen` may know of the place.
    pub fn set_seen(&self, seen: Seen) {
        self.seen.store(seen as u8, Ordering::Relaxed);
    }

    fn seen(&self) -> Seen {
        let seen = self.seen.load(Ordering::Relaxed);
        let all = [Seen::Nobody, Seen::Readers, Seen::Writers];
        all.into_iter().find(|known| *known as u8 == seen).unwrap_or(Seen::Writers)
    }

    /// It is not being filled any more.
    fn end_reservation(&mut self) {
        let reserved = std::mem::take(&mut self.reserved);
        self.returns.reserved.fetch_sub(reserved.into(), Ordering::Relaxed);
    }
}

impl Drop for GiveBack {
    fn drop(&mut self) {
        self.end_reservation();
        match self.seen() {
            // It is parked, by [`Exposed`](super::Exposed).
            Seen::Writers => (),
            seen => lock(&self.returns.places).push(Returned { place: self.place, seen }),
        }
    }
}

/// A slot and the promise to hand its place back. The slot is the first field, because fields are
/// dropped in order: the place must not come back before its bytes are free.
#[derive(Debug)]
pub(super) struct Block {
    pub slot: Slot,
    pub give_back: GiveBack,
}

/// Memory for the content of one item, exactly as long as asked for, to be filled and stored. Given
/// back when dropped instead. What it holds at first is left from earlier items.
#[derive(Debug)]
pub struct Reservation {
    pub(super) block: Block,
}

impl Deref for Reservation {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.block.slot.bytes()
    }
}

impl DerefMut for Reservation {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.block.slot.bytes_mut()
    }
}

/// The content of an item; never changed. Its memory is given back when the last user drops it.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) block: Block,
    /// XXH3-128 of the bytes.
    pub(super) hash: u128,
    /// How many leases hold it; changed under the cache's lock.
    leases: AtomicU32,
    /// How many images' pins hold it; changed under the cache's lock.
    pins: AtomicU32,
}

impl Content {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.block.slot.bytes()
    }

    /// From now on remote readers may know where it is.
    pub fn set_published(&self) {
        self.block.give_back.set_seen(Seen::Readers);
    }

    /// Where they are.
    pub fn place(&self) -> Place {
        self.block.give_back.place
    }
}

impl From<Filled> for Content {
    fn from(filled: Filled) -> Self {
        let Filled { reservation: Reservation { mut block }, hash } = filled;
        block.give_back.end_reservation();
        Self { block, hash, leases: AtomicU32::new(0), pins: AtomicU32::new(0) }
    }
}

impl Holdable for Content {
    fn offset(&self) -> usize {
        self.block.slot.offset()
    }

    fn capacity(&self) -> u64 {
        self.block.slot.capacity() as u64
    }

    fn leases(&self) -> &AtomicU32 {
        &self.leases
    }

    fn pins(&self) -> &AtomicU32 {
        &self.pins
    }
}

/// Who may renew a stale item, or one that is about to expire (meta protocol `W` and `Z`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Win {
    /// Nobody needs to.
    #[default]
    Nobody,
    /// This caller: it was the first.
    Won,
    /// Somebody else, who was told before.
    Taken,
}

/// An item as it was found. Its content stays what it is, in its place, for as long as any clone
/// lives, whatever happens to the item meanwhile.
#[derive(Debug, Clone)]
pub struct Item {
    pub(super) content: Arc<Content>,
    pub(super) flags: u32,
    pub(super) cas: u64,
    pub(super) expires: Expires,
    pub(super) previous_expires: Expires,
    pub(super) last_access: u32,
    pub(super) fetched: bool,
    pub(super) stale: bool,
    pub(super) win: Win,
}

impl Item {
    /// The content.
    pub fn bytes(&self) -> &[u8] {
        self.content.bytes()
    }

    /// Client flags.
    pub fn flags(&self) -> u32 {
        self.flags
    }

    /// The CAS value.
    pub fn cas(&self) -> u64 {
        self.cas
    }

    /// When it expires, after what this operation did to it.
    pub fn expires(&self) -> Expires {
        self.expires
    }

    /// When it was to expire before this operation.
    pub fn previous_expires(&self) -> Expires {
        self.previous_expires
    }

    /// The unix second of the access before this one, or of the storing.
    pub fn last_access(&self) -> u32 {
        self.last_access
    }

    /// Seconds since the access before this one.
    pub fn idle(&self, now: Now) -> u32 {
        now.unix.saturating_sub(self.last_access)
    }

    /// Whether it had been fetched before this.
    pub fn fetched(&self) -> bool {
        self.fetched
    }

    /// Whether it is marked stale.
    pub fn stale(&self) -> bool {
        self.stale
    }

    /// Who may renew it.
    pub fn win(&self) -> Win {
        self.win
    }

    /// XXH3-128 of the content.
    pub fn hash(&self) -> u128 {
        self.content.hash
    }

    /// Bytes of memory that the content takes.
    pub fn capacity(&self) -> usize {
        self.content.block.slot.capacity()
    }
}

impl AsRef<[u8]> for Item {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}
