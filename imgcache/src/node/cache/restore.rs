//! What a file holds from before: each entry is verified, and its content, and listed again under the
//! boot id of this start.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::config::{OpenStep, Progress, Watch};
use super::error::CacheError;
use super::item::{Block, GiveBack, Reservation};
use super::state::State;
use super::table;
use super::time::{Expires, Now};
use super::write::Filled;
use crate::index::entry::{EMPTY, Entry, EntryWords, State as EntryState};
use crate::node::arena::{Arena, Slot};
use crate::node::slab::{Class, Place, Slabs};
use crate::parallel::{each, lock};

/// How many entries are verified before what was found is listed and progress is told.
const BATCH: usize = if cfg!(test) { 4 } else { 4096 };
/// After how many entries of the index progress is told.
const SCANNED: u32 = 1 << 20;
/// How many entries a thread takes at a time.
const PART: usize = 64;

/// Tells how far it is.
pub(super) fn tell(watch: Watch<'_>, progress: Progress) -> Result<(), CacheError> {
    match watch(progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(CacheError::Stopped),
    }
}

/// What was found.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Restored {
    /// Items that are there again.
    pub whole: u64,
    /// Items that had expired.
    pub expired: u64,
    /// Entries that were not whole, or whose content was not.
    pub damaged: u64,
    /// The largest CAS value that is known to have been given.
    generation: u64,
}

/// CAS values from here on were chosen by clients (meta flag `E`): no node gives so many.
const FOREIGN_CAS: u64 = 1 << 63;
/// How far the CAS values of a start are from those of the one before: some of those that it gave are
/// in no entry any more.
const CAS_STEP: u64 = 1 << 32;

/// An entry whose words and content are whole.
struct Whole {
    entry: Entry,
    class: Class,
    place: Place,
    slot: Slot,
}

/// Lists again what `state.arena` holds from starts of the node with these boot ids. Entries that are
/// not taken over are emptied.
///
/// # Errors
/// `watch` stopped it; another start goes on.
pub(super) fn restore(
    state: &mut State,
    boots: &[u64],
    now: Now,
    watch: Watch<'_>,
) -> Result<Restored, CacheError> {
    let started = Instant::now();
    let arena = Arc::clone(&state.arena);
    let mut restored = Restored::default();
    let mut live = candidates(&arena, boots, now, &mut restored, watch)?;
    // Oldest first: the queues are then in the order of before, and of two entries of a key, which
    // there are if the node was killed while it moved one, the newer one stays.
    live.sort_unstable();
    for (number, batch) in live.chunks(BATCH).enumerate() {
        let done = number as u64 * BATCH as u64;
        tell(watch, Progress { step: OpenStep::Verify, done, all: live.len() as u64 })?;
        let whole: Mutex<Vec<(usize, u32, Whole)>> = Mutex::default();
        let parts: Vec<(usize, &[(u64, u32)])> = batch.chunks(PART).enumerate().collect();
        let never: Result<(), std::convert::Infallible> = each(parts, |(part, ids)| {
            for (_, id) in ids {
                match verify(&arena, *id, boots) {
                    Some(found) => lock(&whole).push((part, *id, found)),
                    None => arena.index().clear((*id).into()),
                }
            }
            Ok(())
        });
        let Ok(()) = never;
        let mut whole = whole.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        whole.sort_unstable_by_key(|(part, id, found)| (*part, found.entry.generation, *id));
        for (_, id, found) in whole {
            if state.adopt(id, found, now) {
                restored.whole += 1;
            } else {
                arena.index().clear(id.into());
            }
        }
    }
    state.generation = restored.generation.saturating_add(CAS_STEP);
    // What is listed now, without those of which there was a newer one.
    let listed = state.table.used() as u64;
    let superseded = restored.whole - listed;
    restored.damaged += live.len() as u64 - restored.whole;
    restored.whole = listed;
    tracing::info!(
        items = restored.whole,
        expired = restored.expired,
        damaged = restored.damaged,
        superseded,
        milliseconds = started.elapsed().as_millis(),
        "verified what was kept from before"
    );
    Ok(restored)
}

/// The generation and number of each live entry; all others are emptied.
fn candidates(
    arena: &Arena,
    boots: &[u64],
    now: Now,
    restored: &mut Restored,
    watch: Watch<'_>,
) -> Result<Vec<(u64, u32)>, CacheError> {
    let mut live = Vec::new();
    let entries = u32::try_from(arena.layout().table.entries()).unwrap_or(u32::MAX);
    for id in 0..entries {
        if id.is_multiple_of(SCANNED) {
            tell(watch, Progress { step: OpenStep::Scan, done: id.into(), all: entries.into() })?;
        }
        let Some(words) = arena.index().read(id.into()) else { break };
        if words == EMPTY {
            continue;
        }
        let entry = decode(&words, id, boots);
        let generation = entry.map_or(0, |entry| entry.generation);
        if generation < FOREIGN_CAS {
            restored.generation = restored.generation.max(generation);
        }
        match entry {
            Some(entry) if entry.state == EntryState::Tombstone => (),
            Some(entry) if Expires::at(entry.expires).is_past(now) => restored.expired += 1,
            Some(entry) => {
                live.push((entry.generation, id));
                continue;
            }
            None => restored.damaged += 1,
        }
        arena.index().clear(id.into());
    }
    Ok(live)
}

fn decode(words: &EntryWords, id: u32, boots: &[u64]) -> Option<Entry> {
    boots.iter().find_map(|boot| Entry::verify(words, *boot, id.into()).ok().flatten())
}

/// The entry and its content, if the content is in a slot of its own and has the entry's hash.
fn verify(arena: &Arena, id: u32, boots: &[u64]) -> Option<Whole> {
    let entry = decode(&arena.index().read(id.into())?, id, boots)?;
    if !arena.exported().holds(&entry) {
        return None;
    }
    let length = usize::try_from(entry.length).ok()?;
    let class = Class::for_length(length)?;
    let offset = usize::try_from(entry.offset).ok()?;
    let place = Slabs::locate(offset.checked_sub(arena.layout().content)?, class)?;
    let slot = arena.claim(offset, class.slot_bytes(), length)?;
    let whole = twox_hash::XxHash3_128::oneshot(slot.bytes()) == entry.hash;
    whole.then_some(Whole { entry, class, place, slot })
}

impl State {
    /// Lists an entry again, at its place.
    fn adopt(&mut self, id: u32, found: Whole, now: Now) -> bool {
        let Whole { entry, class, place, slot } = found;
        if !self.table.candidates(entry.key).any(|candidate| candidate == id)
            || self.slabs.adopt(place, class).is_none()
        {
            return false;
        }
        if let Some(older) = self.table.find(entry.key) {
            self.remove(older);
        }
        let give_back = GiveBack::new(place, &self.returns);
        let reservation = Reservation { block: Block { slot, give_back } };
        let content = Arc::new(Filled { reservation, hash: entry.hash }.into());
        let mut record = table::fresh(entry.key, content, now, self.epoch);
        record.cas = entry.generation;
        record.flags = entry.flags;
        record.expires = Expires::at(entry.expires);
        // Written with the boot id of this start.
        self.insert(id, record);
        true
    }
}
