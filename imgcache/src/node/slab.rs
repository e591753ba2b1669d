//! Which part of the memory belongs to which size of item: slabs of 2 MiB, each cut into slots of
//! one size class. Pure bookkeeping; nothing here touches the memory.

use std::collections::BTreeSet;
use std::ops::Bound;

use crate::node::arena::{GRANULE, SLAB_BYTES};

/// How many size classes there are: 256 bytes to 1 MiB, in powers of two.
pub const CLASSES: usize = 13;
/// No owner.
const NONE: u32 = u32::MAX;

/// A size class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class(u8);

impl Class {
    /// All classes, by size.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..13).map(Self)
    }

    /// The smallest class whose slots hold `length` bytes; none above 1 MiB.
    pub fn for_length(length: usize) -> Option<Self> {
        Self::all().find(|class| length <= class.slot_bytes())
    }

    /// Its number, from 0 on.
    pub fn number(self) -> usize {
        self.0.into()
    }

    /// Its number for people, from 1 on.
    pub fn id(self) -> u8 {
        self.0 + 1
    }

    /// Bytes of a slot.
    pub fn slot_bytes(self) -> usize {
        GRANULE << self.0
    }

    /// Slots of a slab.
    pub fn slots(self) -> usize {
        SLAB_BYTES / self.slot_bytes()
    }
}

/// A slot of a slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The slab's number.
    pub slab: u32,
    /// The slot's number in it.
    pub slot: u16,
}

/// A slab that belongs to a class.
#[derive(Debug)]
struct Slab {
    class: Class,
    used: usize,
    /// No slot is given out any more.
    is_emptied: bool,
    /// A bit for each slot, set when it is in use.
    map: Box<[u64]>,
    /// Who owns each slot, [`NONE`] for reservations and for what waits to be free.
    owners: Box<[u32]>,
}

impl Slab {
    fn new(class: Class) -> Self {
        let slots = class.slots();
        Self {
            class,
            used: 0,
            is_emptied: false,
            map: vec![0; slots.div_ceil(64)].into(),
            owners: vec![NONE; slots].into(),
        }
    }

    fn is_used(&self, slot: usize) -> bool {
        self.map.get(slot / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    fn first_free(&self) -> Option<usize> {
        let word = self.map.iter().position(|word| *word != u64::MAX)?;
        let slot = word * 64 + self.map[word].trailing_ones() as usize;
        (slot < self.owners.len()).then_some(slot)
    }
}

/// What there is of a class.
#[derive(Debug, Default)]
struct OfClass {
    /// Slabs with a free slot. The first is filled first, so that the others get empty.
    partial: BTreeSet<u32>,
    slabs: BTreeSet<u32>,
    used: usize,
}

/// All slabs.
#[derive(Debug)]
pub struct Slabs {
    all: Vec<Option<Slab>>,
    free: BTreeSet<u32>,
    emptied: usize,
    classes: [OfClass; CLASSES],
}

impl Slabs {
    /// `count` slabs, all free.
    pub fn new(count: u32) -> Self {
        Self {
            all: (0..count).map(|_| None).collect(),
            free: (0..count).collect(),
            emptied: 0,
            classes: Default::default(),
        }
    }

    fn slab(&self, number: u32) -> Option<&Slab> {
        self.all.get(usize::try_from(number).ok()?)?.as_ref()
    }

    fn slab_mut(&mut self, number: u32) -> Option<&mut Slab> {
        self.all.get_mut(usize::try_from(number).ok()?)?.as_mut()
    }

    /// Takes a slot, from a free slab if those of the class are full; none if there is neither.
    pub fn allocate(&mut self, class: Class) -> Option<Place> {
        let number = match self.classes[class.number()].partial.first() {
            Some(number) => *number,
            None => self.assign(*self.free.first()?, class)?,
        };
        let slot = self.slab(number)?.first_free()?;
        self.take(number, slot)
    }

    /// Takes this very slot of this class; none if it is taken or its slab is another class's.
    pub fn adopt(&mut self, place: Place, class: Class) -> Option<Place> {
        let slot = usize::from(place.slot);
        if slot >= class.slots() {
            return None;
        }
        if self.free.contains(&place.slab) {
            self.assign(place.slab, class)?;
        }
        let slab = self.slab(place.slab)?;
        if slab.class != class || slab.is_used(slot) || slab.is_emptied {
            return None;
        }
        self.take(place.slab, slot)
    }

    /// Gives a free slab to a class.
    fn assign(&mut self, number: u32, class: Class) -> Option<u32> {
        *self.all.get_mut(usize::try_from(number).ok()?)? = Some(Slab::new(class));
        self.free.remove(&number);
        let of_class = &mut self.classes[class.number()];
        of_class.partial.insert(number);
        of_class.slabs.insert(number);
        Some(number)
    }

    fn take(&mut self, number: u32, slot: usize) -> Option<Place> {
        let place = Place { slab: number, slot: u16::try_from(slot).ok()? };
        let slab = self.slab_mut(number)?;
        slab.map[slot / 64] |= 1 << (slot % 64);
        slab.used += 1;
        let (class, full) = (slab.class, slab.used == slab.owners.len());
        let of_class = &mut self.classes[class.number()];
        of_class.used += 1;
        if full {
            of_class.partial.remove(&number);
        }
        Some(place)
    }

    /// Gives a slot back, and its slab when it was the last one. Returns whether it was in use.
    pub fn release(&mut self, place: Place) -> bool {
        let slot = usize::from(place.slot);
        let Some(slab) = self.slab_mut(place.slab).filter(|slab| slab.is_used(slot)) else {
            return false;
        };
        slab.map[slot / 64] &= !(1 << (slot % 64));
        slab.owners[slot] = NONE;
        slab.used -= 1;
        let (class, empty, is_emptied) = (slab.class, slab.used == 0, slab.is_emptied);
        let of_class = &mut self.classes[class.number()];
        of_class.used -= 1;
        if !is_emptied {
            of_class.partial.insert(place.slab);
        }
        if empty {
            self.emptied -= usize::from(is_emptied);
            of_class.partial.remove(&place.slab);
            of_class.slabs.remove(&place.slab);
            self.free.insert(place.slab);
            if let Some(slab) =
                usize::try_from(place.slab).ok().and_then(|number| self.all.get_mut(number))
            {
                *slab = None;
            }
        }
        true
    }

    /// From now on no slot of this slab is given out, until the last one in use is given back. To be
    /// said of a slab with slots in use.
    pub fn set_emptied(&mut self, number: u32) {
        let Some(slab) = self.slab_mut(number).filter(|slab| !slab.is_emptied) else { return };
        slab.is_emptied = true;
        let class = slab.class;
        self.classes[class.number()].partial.remove(&number);
        self.emptied += 1;
    }

    /// Whether a slab is on its way to be free.
    pub fn is_emptied(&self, number: u32) -> bool {
        self.slab(number).is_some_and(|slab| slab.is_emptied)
    }

    /// How many slabs are on their way to be free.
    pub fn emptied(&self) -> usize {
        self.emptied
    }

    /// Says whose a slot is, or that it is nobody's.
    pub fn set_owner(&mut self, place: Place, owner: Option<u32>) {
        let slot = usize::from(place.slot);
        if let Some(slab) = self.slab_mut(place.slab).filter(|slab| slab.is_used(slot)) {
            slab.owners[slot] = owner.unwrap_or(NONE);
        }
    }

    /// The owners of the slots in use of a slab, none for slots without one.
    pub fn owners(&self, slab: u32) -> impl Iterator<Item = Option<u32>> {
        self.slab(slab).into_iter().flat_map(|slab| {
            let used = slab.owners.iter().enumerate().filter(|(slot, _)| slab.is_used(*slot));
            used.map(|(_, owner)| Some(*owner).filter(|owner| *owner != NONE))
        })
    }

    /// The class of a slab; none if it is free.
    pub fn class(&self, slab: u32) -> Option<Class> {
        self.slab(slab).map(|slab| slab.class)
    }

    /// Where a slot begins, in bytes from the first slab on.
    pub fn offset(place: Place, class: Class) -> usize {
        let slab = usize::try_from(place.slab).unwrap_or(usize::MAX);
        slab.saturating_mul(SLAB_BYTES).saturating_add(usize::from(place.slot) * class.slot_bytes())
    }

    /// The slot of `class` that begins at `offset` bytes from the first slab on; none if none does.
    pub fn locate(offset: usize, class: Class) -> Option<Place> {
        let within = offset % SLAB_BYTES;
        within.is_multiple_of(class.slot_bytes()).then_some(())?;
        Some(Place {
            slab: u32::try_from(offset / SLAB_BYTES).ok()?,
            slot: u16::try_from(within / class.slot_bytes()).ok()?,
        })
    }

    /// How many slabs there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// How many slabs belong to no class.
    pub fn free_slabs(&self) -> usize {
        self.free.len()
    }

    /// How many slabs a class has.
    pub fn slabs_of(&self, class: Class) -> usize {
        self.classes[class.number()].slabs.len()
    }

    /// The slabs of a class, each once, from the first one behind `after` on and round.
    pub fn slabs_after(&self, class: Class, after: u32) -> impl Iterator<Item = u32> {
        let slabs = &self.classes[class.number()].slabs;
        let behind = slabs.range((Bound::Excluded(after), Bound::Unbounded));
        behind.chain(slabs.range(..=after)).copied()
    }

    /// How many slots of a class are in use.
    pub fn used_of(&self, class: Class) -> usize {
        self.classes[class.number()].used
    }

    /// How many slots of a class's slabs are free.
    pub fn free_of(&self, class: Class) -> usize {
        self.slabs_of(class) * class.slots() - self.used_of(class)
    }

    /// Bytes of slots in use.
    pub fn used_bytes(&self) -> u64 {
        Class::all().map(|class| (self.used_of(class) * class.slot_bytes()) as u64).sum()
    }

    /// Bytes that the bookkeeping of slots takes.
    pub fn overhead(&self) -> usize {
        let slabs = self.all.iter().flatten();
        let tables = slabs.map(|slab| slab.map.len() * 8 + slab.owners.len() * 4);
        self.all.len() * (size_of::<Option<Slab>>() + 8) + tables.sum::<usize>()
    }
}

#[cfg(test)]
mod tests;
