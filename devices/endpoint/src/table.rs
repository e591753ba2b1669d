//! A directory's records in memory: H, which gives the home of an identifier, and its inverse, the ranges at
//! a home (Kulkarni et al., section III).

use std::collections::{BTreeMap, BTreeSet};

use crate::name::Pattern;
use crate::range::{Form, Range};
use crate::record::{Entry, Home, Owner, Record};
use crate::vid::Vid;

/// Where a record is in the order of ranges: form, service and first request.
pub type Key = (Form, u32, u32);

/// The key of the record of `range`.
pub fn key(range: Range) -> Key {
    (range.form(), range.service(), range.lo())
}

/// Records whose ranges do not overlap, and the owners that are alive.
#[derive(Debug, Clone, Default)]
pub struct Table {
    records: BTreeMap<Key, Record>,
    /// Keys of the records at each home.
    at: BTreeMap<Home, BTreeSet<Key>>,
    owners: BTreeSet<Owner>,
}

impl Table {
    /// One of these records and owners.
    pub fn new(records: Vec<Record>, owners: Vec<Owner>) -> Self {
        let mut table = Self { owners: owners.into_iter().collect(), ..Self::default() };
        for record in records {
            table.put(record);
        }
        table
    }

    /// `record` instead of what begins where it does.
    pub fn put(&mut self, record: Record) {
        let key = key(record.range);
        self.remove(key);
        self.at.entry(record.home.clone()).or_default().insert(key);
        self.records.insert(key, record);
    }

    /// There is no record at `key` any more.
    pub fn remove(&mut self, key: Key) -> Option<Record> {
        let old = self.records.remove(&key)?;
        if let Some(keys) = self.at.get_mut(&old.home) {
            keys.remove(&key);
            if keys.is_empty() {
                self.at.remove(&old.home);
            }
        }
        Some(old)
    }

    /// `owner` is alive, or not.
    pub fn set_alive(&mut self, owner: &Owner, is_alive: bool) {
        if is_alive {
            self.owners.insert(owner.clone());
        } else {
            self.owners.remove(owner);
        }
    }

    /// Whether `owner` is alive.
    pub fn is_alive(&self, owner: &Owner) -> bool {
        self.owners.contains(owner)
    }

    /// The owners that are alive.
    pub fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.owners.iter()
    }

    /// The record at `key`.
    pub fn get(&self, key: Key) -> Option<&Record> {
        self.records.get(&key)
    }

    /// All records, in the order of their ranges.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// What is known of `vid`.
    pub fn find(&self, vid: Vid) -> Option<&Record> {
        Form::ALL.into_iter().find_map(|form| {
            let (service, request) = form.parts(vid)?;
            let (_, record) = self.records.range(..=(form, service, request)).next_back()?;
            record.range.contains(vid).then_some(record)
        })
    }

    /// H: where `vid` is.
    pub fn home_of(&self, vid: Vid) -> Option<&Home> {
        self.find(vid).map(|record| &record.home)
    }

    /// The inverse of H: the ranges that are at `home`.
    pub fn ranges_at(&self, home: &Home) -> impl Iterator<Item = Range> {
        let keys = self.at.get(home).into_iter().flatten();
        keys.filter_map(|key| self.records.get(key)).map(|record| record.range)
    }

    /// The records of services that `pattern` stands for.
    pub fn services(&self, pattern: &Pattern) -> impl Iterator<Item = &Record> {
        Form::ALL
            .into_iter()
            .flat_map(|form| {
                let region = form.region(pattern);
                self.records.range((form, *region.start(), 0)..=(form, *region.end(), u32::MAX))
            })
            .map(|(_, record)| record)
            .filter(|record| pattern.matches(&record.service))
    }

    /// The records that `range` has identifiers of.
    pub fn overlapping(&self, range: Range) -> impl Iterator<Item = &Record> {
        let (form, service) = (range.form(), range.service());
        let other = if form == Form::Prefix { Form::Suffix } else { Form::Prefix };
        // Those of the same form do not overlap each other, so their ends are in the order of their beginnings.
        let before = self.records.range((form, service, 0)..=(form, service, range.hi())).rev();
        let same = before.take_while(move |(_, record)| record.range.overlaps(range));
        let others = self.records.range((other, 0, 0)..=(other, u32::MAX, u32::MAX));
        let others = others.filter(move |(_, record)| record.range.overlaps(range));
        same.chain(others).map(|(_, record)| record)
    }

    /// The records of services with the bits of that of `range`.
    pub fn namesakes(&self, range: Range) -> impl Iterator<Item = &Record> {
        let (form, service) = (range.form(), range.service());
        let same = self.records.range((form, service, 0)..=(form, service, u32::MAX));
        same.map(|(_, record)| record)
    }

    /// `record` with whether its owner is alive.
    pub fn entry(&self, record: &Record) -> Entry {
        Entry { record: record.clone(), is_orphan: !self.owners.contains(&record.owner) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn home(number: u8) -> Home {
        Home::new("h", &number.to_string()).unwrap()
    }

    #[derive(Debug, Clone)]
    enum Step {
        Split(usize, u32),
        Merge(usize),
        Move(usize, u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (any::<usize>(), any::<u32>()).prop_map(|(which, at)| Step::Split(which, at)),
            any::<usize>().prop_map(Step::Merge),
            (any::<usize>(), 0..5u8).prop_map(|(which, to)| Step::Move(which, to)),
        ]
    }

    proptest! {
        /// Whatever is split, merged and moved: each identifier has one home, and is in one range of that
        /// home and in none of another.
        #[test]
        fn the_inverse_of_h_is_its_inverse(
            is_suffix: bool,
            steps in vec(step(), 0..60),
            probes in vec(any::<u64>(), 1..40),
        ) {
            let form = if is_suffix { Form::Suffix } else { Form::Prefix };
            let name: crate::name::Name = "kv.store".parse().unwrap();
            let whole = Range::whole(form, &name);
            let owner: Owner = "o".parse().unwrap();
            let mut table = Table::new(vec![Record::new(whole, name, home(0), owner)], Vec::new());
            for step in steps {
                let all: Vec<_> = table.records().cloned().collect();
                let pick = |which: usize| (which % all.len(), all[which % all.len()].clone());
                match step {
                    Step::Split(which, at) => {
                        let (_, record) = pick(which);
                        let at = record.range.lo() + u32::try_from(u64::from(at) % record.range.count()).unwrap();
                        let Ok((first, second)) = record.range.split(at) else { continue };
                        table.put(record.with_range(first));
                        table.put(record.with_range(second));
                    }
                    Step::Merge(which) => {
                        let (index, record) = pick(which);
                        let Some(next) = all.get(index + 1) else { continue };
                        let merged = record.range.merge(next.range).unwrap();
                        table.remove(key(next.range));
                        table.put(record.with_range(merged));
                    }
                    Step::Move(which, to) => {
                        let (_, record) = pick(which);
                        table.put(record.at(home(to), record.owner.clone()));
                    }
                }
            }
            let total: u64 = (0..5).flat_map(|number| table.ranges_at(&home(number)).collect::<Vec<_>>())
                .map(Range::count).sum();
            prop_assert_eq!(total, whole.count());
            for probe in probes {
                let vid = whole.pick(probe);
                let at = table.home_of(vid).unwrap();
                for number in 0..5 {
                    let is_there = table.ranges_at(&home(number)).filter(|range| range.contains(vid)).count();
                    prop_assert_eq!(is_there, usize::from(*at == home(number)));
                }
            }
        }
    }
}
