//! What a change must be, the same for every backend.

use crate::record::{Owner, Record};
use crate::table::{Table, key};
use crate::vid::Vid;

use super::{Change, DirectoryError, MOST_CHANGES};

/// The records that `change` by `by` puts, with their epochs. `known` has at least the records that it changes, all
/// that it could overlap, and who of their owners is alive; `floor` is the highest epoch of what was withdrawn.
pub(super) fn check(
    change: &Change,
    by: &Owner,
    known: &Table,
    floor: u64,
    reserved: &[Vid],
) -> Result<Vec<Record>, DirectoryError> {
    let size = change.from.len() + change.to.len();
    if size == 0 || change.from.len().max(change.to.len()) > MOST_CHANGES {
        return Err(DirectoryError::Size(size));
    }
    let mut old: Vec<Record> = Vec::new();
    for seen in &change.from {
        let current = known.get(key(seen.range)).filter(|record| record.range == seen.range);
        let revision = current.map_or(0, |record| record.revision);
        let is_twice = old.iter().any(|other| other.range == seen.range);
        let Some(current) = current.filter(|_| revision == seen.revision && !is_twice) else {
            return Err(DirectoryError::Stale {
                range: seen.range,
                seen: seen.revision,
                current: revision,
            });
        };
        may_change(current, by, known)?;
        old.push(current.clone());
    }
    let stays = |record: &&Record| !old.iter().any(|old| old.range == record.range);
    let mut new: Vec<Record> = Vec::new();
    for wanted in &change.to {
        let range = wanted.range;
        if range.form().service(&wanted.service) != range.service() {
            return Err(DirectoryError::Foreign { range, name: wanted.service.clone() });
        }
        // The name first: that ranges overlap may follow from it. All records of these bits have one name.
        if let Some(other) =
            known.namesakes(range).find(stays).filter(|other| other.service != wanted.service)
        {
            let (name, other) = (wanted.service.clone(), other.service.clone());
            return Err(DirectoryError::Collision { name, other });
        }
        let of_this_change = new.iter().find(|other| other.range.overlaps(range));
        if let Some(held) = known.overlapping(range).find(stays).or(of_this_change) {
            return Err(DirectoryError::Overlap { range, held: Box::new(held.clone()) });
        }
        if let Some(&address) = reserved.iter().find(|address| range.contains(**address)) {
            return Err(DirectoryError::Reserved { range, address });
        }
        may_give(wanted, by, &old)?;
        new.push(Record { epoch: epoch(wanted, &old, floor), ..wanted.clone() });
    }
    Ok(new)
}

/// The highest epoch of what `change` may have withdrawn, if it is above `floor`.
pub(super) fn floor(change: &Change, floor: u64) -> u64 {
    change.from.iter().map(|record| record.epoch).fold(floor, u64::max)
}

/// Only its owner changes a record, who is to get it, and anybody once its owner is dead.
fn may_change(record: &Record, by: &Owner, known: &Table) -> Result<(), DirectoryError> {
    let is_heir = record.phase.heir().is_some_and(|(_, heir)| heir == by);
    if record.owner == *by || is_heir || !known.is_alive(&record.owner) {
        return Ok(());
    }
    let (range, owner, by) = (record.range, record.owner.clone(), by.clone());
    Err(DirectoryError::NotOwner { range, owner, by })
}

/// Nobody makes another the owner of what that did not have: it would have to keep alive, and count in its
/// quota, what it never asked for. An heir has asked.
fn may_give(wanted: &Record, by: &Owner, old: &[Record]) -> Result<(), DirectoryError> {
    let knows = |record: &Record| {
        record.owner == wanted.owner
            || record.phase.heir().is_some_and(|(_, heir)| *heir == wanted.owner)
    };
    if wanted.owner == *by
        || old.iter().any(|record| record.range.overlaps(wanted.range) && knows(record))
    {
        return Ok(());
    }
    let (range, owner, by) = (wanted.range, wanted.owner.clone(), by.clone());
    Err(DirectoryError::NotOwner { range, owner, by })
}

/// One above all that any of its identifiers had, if frames of some are to go elsewhere.
fn epoch(wanted: &Record, old: &[Record], floor: u64) -> u64 {
    let mut before = old.iter().filter(|record| record.range.overlaps(wanted.range)).peekable();
    if before.peek().is_none() {
        return old.iter().map(|record| record.epoch).fold(floor, u64::max) + 1;
    }
    let (mut highest, mut covered, mut is_same) = (0, 0, true);
    for record in before {
        highest = highest.max(record.epoch);
        if record.range.form() == wanted.range.form() {
            let lo = record.range.lo().max(wanted.range.lo());
            covered += u64::from(record.range.hi().min(wanted.range.hi()).saturating_sub(lo)) + 1;
        }
        is_same &= record.route() == wanted.route();
    }
    // Some of its identifiers were nobody's: those may have been withdrawn.
    if covered < wanted.range.count() {
        return highest.max(floor) + 1;
    }
    if is_same { highest } else { highest + 1 }
}
