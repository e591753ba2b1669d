//! The table itself: disjoint ranges with their homes, mirrors and epochs.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Ask, Reply};
use crate::Peer;
use crate::range::Range;

/// A range that has a home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The identifiers.
    pub range: Range,
    /// Who answers for them.
    pub home: Peer,
    /// When that was last changed, as the table counts.
    pub epoch: u64,
    /// Who has everything that the home acknowledged.
    pub mirrors: BTreeSet<Peer>,
}

/// Who has what.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Table {
    /// The last epoch that was given.
    epoch: u64,
    /// By the first identifier; none overlaps another.
    entries: Vec<Entry>,
    /// With which epoch the last life of each peer began.
    #[serde(default)]
    lives: BTreeMap<Peer, u64>,
    /// Where peers listen.
    pub(super) addresses: BTreeMap<Peer, String>,
}

impl Table {
    /// All ranges that have a home, in their order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Who is home of `id`, with the epoch.
    pub fn home(&self, id: u64) -> Option<(Peer, u64)> {
        let after = self.entries.partition_point(|entry| entry.range.first() <= id);
        let entry = self.entries.get(after.checked_sub(1)?)?;
        entry.range.contains(id).then_some((entry.home, entry.epoch))
    }

    /// What `peer` is home of.
    pub fn ranges(&self, peer: Peer) -> Vec<Range> {
        self.entries.iter().filter(|entry| entry.home == peer).map(|entry| entry.range).collect()
    }

    /// Gives what nobody has to `peer`.
    ///
    /// # Errors
    /// When any of it has a home.
    pub fn announce(&mut self, range: Range, peer: Peer) -> Result<u64, Reply> {
        if self.entries.iter().any(|entry| entry.range.overlaps(range)) {
            return Err(self.is(range));
        }
        self.epoch += 1;
        self.entries.push(Entry { range, home: peer, epoch: self.epoch, mirrors: BTreeSet::new() });
        self.tidy();
        Ok(self.epoch)
    }

    /// New epochs for all that `peer` is home of.
    pub fn fence_all(&mut self, peer: Peer) -> (u64, Vec<(Range, u64)>) {
        self.epoch += 1;
        let epoch = self.epoch;
        self.lives.insert(peer, epoch);
        let mut owned = Vec::new();
        for entry in self.entries.iter_mut().filter(|entry| entry.home == peer) {
            entry.epoch = epoch;
            // What they have is not kept up to date by the new life.
            entry.mirrors.clear();
            owned.push((entry.range, epoch));
        }
        (epoch, owned)
    }

    /// Does what is asked, or answers.
    pub fn ask(&mut self, ask: &Ask) -> Reply {
        match *ask {
            Ask::Commit { range, from, to, life, epoch, .. } => {
                let expected = Reply::Is { home: Some(from), epoch };
                if self.is(range) != expected || !self.lives_still(to, life) {
                    return self.is(range);
                }
                self.set(range, |entry| {
                    entry.home = to;
                    entry.mirrors.clear();
                })
            }
            Ask::Fence { range, home, epoch, .. } => {
                if self.is(range) != (Reply::Is { home: Some(home), epoch }) {
                    return self.is(range);
                }
                self.set(range, |entry| entry.mirrors.clear())
            }
            // Every table is this one.
            Ask::Settled { epoch, .. } => Reply::Done(epoch),
            Ask::Lookup { range, .. } => self.is(range),
            Ask::Mirror { range, home, epoch, mirror, complete, .. } => {
                if self.is(range) != (Reply::Is { home: Some(home), epoch }) {
                    return self.is(range);
                }
                if !complete {
                    // With a new epoch, so that no listing that is late comes after it.
                    return self.set(range, |entry| {
                        entry.mirrors.remove(&mirror);
                    });
                }
                for entry in self.cut(range) {
                    entry.mirrors.insert(mirror);
                }
                self.tidy();
                Reply::Done(epoch)
            }
            Ask::Promote { range, from, to, life, .. } => {
                let complete = self.lives_still(to, life)
                    && self
                        .pieces(range)
                        .all(|entry| entry.home == from && entry.mirrors.contains(&to));
                match self.is(range) {
                    Reply::Is { home: Some(_), .. } if complete => self.set(range, |entry| {
                        entry.home = to;
                        entry.mirrors.clear();
                    }),
                    is => is,
                }
            }
        }
    }

    fn lives_still(&self, peer: Peer, life: u64) -> bool {
        self.lives.get(&peer) == Some(&life)
    }

    fn pieces(&self, range: Range) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.range.overlaps(range))
    }

    /// Who has all of `range`, and its highest epoch.
    fn is(&self, range: Range) -> Reply {
        let epoch = self.pieces(range).map(|entry| entry.epoch).max().unwrap_or(0);
        let mut rest = Some(range);
        let mut home = None;
        for entry in self.pieces(range) {
            let Some(left) = rest else { break };
            if !entry.range.contains(left.first()) || home.is_some_and(|home| home != entry.home) {
                return Reply::Is { home: None, epoch };
            }
            home = Some(entry.home);
            rest = left.without(entry.range).1;
        }
        Reply::Is { home: home.filter(|_| rest.is_none()), epoch }
    }

    /// Changes all of `range`, with a new epoch.
    fn set(&mut self, range: Range, change: impl Fn(&mut Entry)) -> Reply {
        self.epoch += 1;
        let epoch = self.epoch;
        for entry in self.cut(range) {
            entry.epoch = epoch;
            change(entry);
        }
        self.tidy();
        Reply::Done(epoch)
    }

    /// The entries of `range`, cut where it begins and ends.
    fn cut(&mut self, range: Range) -> impl Iterator<Item = &mut Entry> {
        let mut pieces = Vec::with_capacity(self.entries.len() + 2);
        for entry in self.entries.drain(..) {
            let (below, above) = entry.range.without(range);
            for part in [below, entry.range.common(range), above].into_iter().flatten() {
                pieces.push(Entry { range: part, ..entry.clone() });
            }
        }
        self.entries = pieces;
        self.entries.iter_mut().filter(move |entry| range.covers(entry.range))
    }

    /// In order, and as few as possible: neighbours that are alike in all are one entry. Those of different
    /// epochs are not, as their home knows each by its own.
    fn tidy(&mut self) {
        self.entries.sort_by_key(|entry| entry.range);
        self.entries.dedup_by(|next, last| {
            let whole = last.range.joined(next.range);
            let same =
                last.home == next.home && last.mirrors == next.mirrors && last.epoch == next.epoch;
            let Some(whole) = whole.filter(|_| same) else { return false };
            last.range = whole;
            true
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;
    use crate::TransferId;

    const ID: TransferId = TransferId { source: Peer(1), life: 1, number: 0 };

    /// Four peers, whose lives began with the epochs 1 to 4.
    fn table() -> Table {
        let mut table = Table::default();
        for peer in 0..4 {
            table.fence_all(Peer(peer));
        }
        table
    }

    fn commit(range: Range, from: u32, to: u32, epoch: u64) -> Ask {
        Ask::Commit {
            transfer: ID,
            range,
            from: Peer(from),
            to: Peer(to),
            life: u64::from(to) + 1,
            epoch,
        }
    }

    #[test]
    fn late_and_repeated_commits_are_refused() {
        let mut table = table();
        let epoch = table.announce(Range::ALL, Peer(1)).unwrap();
        assert!(table.announce(Range::new(5, 6).unwrap(), Peer(2)).is_err());
        let (low, high) = Range::ALL.halves().unwrap();
        let Reply::Done(later) = table.ask(&commit(high, 1, 2, epoch)) else { panic!("refused") };
        assert!(later > epoch);
        assert_eq!(
            table.ask(&commit(high, 1, 2, epoch)),
            Reply::Is { home: Some(Peer(2)), epoch: later }
        );
        assert_eq!(
            table.ask(&commit(Range::ALL, 1, 2, epoch)),
            Reply::Is { home: None, epoch: later }
        );

        let fence = Ask::Fence { transfer: ID, range: low, home: Peer(1), epoch };
        assert!(matches!(table.ask(&fence), Reply::Done(_)));
        assert!(matches!(
            table.ask(&commit(low, 1, 2, epoch)),
            Reply::Is { home: Some(Peer(1)), .. }
        ));
    }

    #[test]
    fn nothing_is_handed_to_a_life_that_is_over() {
        let mut table = table();
        let epoch = table.announce(Range::ALL, Peer(1)).unwrap();
        table.fence_all(Peer(2));
        let is = Reply::Is { home: Some(Peer(1)), epoch };
        assert_eq!(table.ask(&commit(Range::ALL, 1, 2, epoch)), is);
        assert!(matches!(table.ask(&commit(Range::ALL, 1, 3, epoch)), Reply::Done(_)));
    }

    #[test]
    fn only_complete_mirrors_are_promoted() {
        let mut table = table();
        let epoch = table.announce(Range::ALL, Peer(1)).unwrap();
        let (range, from, to) = (Range::ALL, Peer(1), Peer(2));
        let promote = Ask::Promote { transfer: ID, range, from, to, life: 3 };
        assert!(matches!(table.ask(&promote), Reply::Is { .. }));
        let mirror = |complete, epoch| {
            let (range, home, mirror) = (Range::ALL, Peer(1), Peer(2));
            Ask::Mirror { transfer: ID, range, home, epoch, mirror, complete }
        };
        table.ask(&mirror(true, epoch));
        let Reply::Done(later) = table.ask(&mirror(false, epoch)) else { panic!("refused") };
        assert!(
            matches!(table.ask(&mirror(true, epoch)), Reply::Is { .. }),
            "a listing that is late"
        );
        assert!(matches!(table.ask(&promote), Reply::Is { .. }));
        table.ask(&mirror(true, later));
        table.clone().fence_all(Peer(1));
        assert!(matches!(table.ask(&promote), Reply::Done(_)));
        assert!(matches!(table.ask(&mirror(false, later)), Reply::Is { home: Some(Peer(2)), .. }));
    }

    proptest! {
        /// H and its inverse agree, whatever was split and merged (research note, 6.0: the home function).
        #[test]
        fn homes_and_ranges_agree(changes in proptest::collection::vec((any::<u8>(), any::<u8>(), 0..4_u32), 1..40)) {
            let mut table = table();
            table.announce(Range::ALL, Peer(0)).unwrap();
            let mut last = 0;
            for (a, b, to) in changes {
                let ends = [u64::from(a) << 56, u64::from(b) << 56 | 0xff];
                let range = Range::new(ends[0].min(ends[1]), ends[0].max(ends[1])).unwrap();
                if let Reply::Is { home: Some(home), epoch } = table.is(range) {
                    let Reply::Done(epoch) = table.ask(&commit(range, home.0, to, epoch)) else { panic!("refused") };
                    prop_assert!(epoch > last);
                    last = epoch;
                    prop_assert_eq!(table.home(range.first()), Some((Peer(to), epoch)));
                }
                for id in [0, u64::MAX, ends[0], ends[1], ends[0].wrapping_add(1), ends[1].wrapping_sub(1)] {
                    let owners: Vec<_> = (0..4).map(Peer)
                        .filter(|&peer| table.ranges(peer).iter().any(|range| range.contains(id))).collect();
                    prop_assert_eq!(owners, vec![table.home(id).unwrap().0]);
                }
            }
        }
    }
}
