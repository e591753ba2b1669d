//! Random operations against a map: with room for all, the cache is the map; without, it may forget
//! but never err.

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::{DeleteRequest, Expires, GetRequest};
use super::*;

#[derive(Debug, Clone)]
enum Step {
    Store(StoreMode, usize, u32),
    CasRight,
    Get,
    Touch(u32),
    Delete,
    Flush(u32),
    Wait(u32),
    Maintain,
}

fn steps() -> impl Strategy<Value = Vec<(u8, Step)>> {
    let mode = prop_oneof![
        4 => Just(StoreMode::Set),
        1 => Just(StoreMode::Add),
        1 => Just(StoreMode::Replace),
        1 => Just(StoreMode::Append),
        1 => Just(StoreMode::Prepend),
        1 => (0..50_u64).prop_map(StoreMode::Cas),
    ];
    let length = prop_oneof![0..600_usize, Just(4096_usize), Just(70_000_usize), Just(300_000)];
    let step = prop_oneof![
        8 => (mode, length, prop_oneof![Just(0_u32), 1..20_u32])
            .prop_map(|(mode, length, ttl)| Step::Store(mode, length, ttl)),
        2 => Just(Step::CasRight),
        8 => Just(Step::Get),
        2 => (0..20_u32).prop_map(Step::Touch),
        2 => Just(Step::Delete),
        1 => (0..3_u32).prop_map(Step::Flush),
        2 => (1..9_u32).prop_map(Step::Wait),
        1 => Just(Step::Maintain),
    ];
    prop::collection::vec((0..24_u8, step), 1..150)
}

#[derive(Debug, Clone)]
struct Known {
    content: Vec<u8>,
    expires: Expires,
    cas: u64,
}

fn expires(ttl: u32, now: Now) -> Expires {
    Expires::from_exptime(ttl.into(), now)
}

struct Run {
    cache: Cache,
    known: HashMap<u8, Known>,
    /// Whether the cache may forget.
    forgets: bool,
    clock: u32,
    flush: Option<u32>,
    count: u64,
}

impl Run {
    fn new(cache: Cache, forgets: bool) -> Self {
        Self { cache, known: HashMap::new(), forgets, clock: 0, flush: None, count: 0 }
    }

    fn tick(&mut self) -> Now {
        let now = at(self.clock);
        if self.flush.is_some_and(|at| at <= self.clock) {
            self.flush = None;
            self.known.clear();
        }
        self.known.retain(|_, known| !known.expires.is_past(now));
        now
    }

    /// What was expected but is not there is forgotten, if that may be.
    fn check(&mut self, name: u8, now: Now) -> Result<(), TestCaseError> {
        let quiet = GetRequest { quiet: true, ..GetRequest::default() };
        let item = self.cache.get_with(&key([name]), &quiet, now).unwrap();
        if item.is_none() && self.forgets {
            self.known.remove(&name);
        }
        let found = item.map(|item| (item.bytes().to_vec(), item.expires(), item.cas()));
        let known =
            self.known.get(&name).map(|known| (known.content.clone(), known.expires, known.cas));
        prop_assert_eq!(found, known);
        Ok(())
    }

    fn store(&mut self, name: u8, mode: StoreMode, length: usize, ttl: u32, now: Now) {
        self.count += 1;
        let content = content(self.count, length);
        let attributes = Attributes { expires: expires(ttl, now), ..Attributes::default() };
        let stored = self.cache.store_bytes(&key([name]), mode, &content, &attributes, now);
        let old = self.known.get(&name);
        let fresh = Known { content, expires: attributes.expires, cas: 0 };
        let (outcome, known) = match (mode, old) {
            (StoreMode::Set, _) | (StoreMode::Add, None) | (StoreMode::Replace, Some(_)) => {
                (None, Some(fresh))
            }
            (StoreMode::Cas(cas), Some(old)) if cas == old.cas => (None, Some(fresh)),
            (StoreMode::Cas(_), Some(_)) => (Some(StoreOutcome::Exists), None),
            (StoreMode::Cas(_), None) => (Some(StoreOutcome::NotFound), None),
            (StoreMode::Append, Some(old)) => (
                None,
                Some(Known { content: [&old.content[..], &fresh.content].concat(), ..old.clone() }),
            ),
            (StoreMode::Prepend, Some(old)) => (
                None,
                Some(Known { content: [&fresh.content[..], &old.content].concat(), ..old.clone() }),
            ),
            _ => (Some(StoreOutcome::NotStored), None),
        };
        match (stored, outcome, known) {
            (Ok(StoreOutcome::Stored { cas }), None, Some(known)) => {
                self.known.insert(name, Known { cas, ..known });
            }
            (Ok(stored), Some(outcome), _) if stored == outcome => (),
            // Too long by appending, or forgotten while room was made for the new content.
            (Err(_), ..) => (),
            // Forgotten while room was made.
            (Ok(StoreOutcome::Stored { cas }), ..) if self.forgets && mode == StoreMode::Add => {
                let known = Known {
                    content: self::content(self.count, length),
                    expires: expires(ttl, now),
                    cas,
                };
                self.known.insert(name, known);
            }
            (Ok(StoreOutcome::NotStored | StoreOutcome::NotFound), ..) if self.forgets => {
                self.known.remove(&name);
            }
            (stored, outcome, _) => panic!("{stored:?}, expected {outcome:?}"),
        }
    }

    fn step(&mut self, name: u8, step: &Step) -> Result<(), TestCaseError> {
        let now = self.tick();
        self.check(name, now)?;
        match *step {
            Step::Store(mode, length, ttl) => self.store(name, mode, length, ttl, now),
            Step::CasRight => {
                if let Some(cas) = self.known.get(&name).map(|known| known.cas) {
                    self.store(name, StoreMode::Cas(cas), 100, 0, now);
                }
            }
            Step::Get => {
                let found = self.cache.get(&key([name]), now).is_some();
                prop_assert_eq!(found, self.known.contains_key(&name));
            }
            Step::Touch(ttl) => {
                let found = self.cache.touch(&key([name]), expires(ttl, now), now);
                prop_assert_eq!(found, self.known.contains_key(&name));
                if let Some(known) = self.known.get_mut(&name) {
                    known.expires = expires(ttl, now);
                }
            }
            Step::Delete => {
                self.cache.delete(&key([name]), &DeleteRequest::default(), now).unwrap();
                self.known.remove(&name);
            }
            Step::Flush(delay) => {
                self.cache.flush_all(delay, now);
                self.flush = Some(self.clock + delay);
            }
            Step::Wait(seconds) => self.clock += seconds,
            Step::Maintain => {
                self.cache.maintenance(now);
            }
        }
        let now = self.tick();
        self.check(name, now)?;
        // What is counted is what there is.
        self.cache.maintenance(now);
        let counters = self.cache.counters();
        let classes = self.cache.class_stats(now);
        let in_classes: u64 = classes.iter().map(|class| class.items).sum();
        prop_assert_eq!(in_classes, counters.items);
        prop_assert_eq!(classes.iter().map(|class| class.used_slots).sum::<u64>(), counters.items);
        if !self.forgets {
            let bytes: usize = self.known.values().map(|known| known.content.len()).sum();
            prop_assert_eq!(counters.items, self.known.len() as u64);
            prop_assert_eq!(counters.content_bytes.total(), bytes as u64);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn with_room_for_all_it_is_a_map(steps in steps()) {
        let mut run = Run::new(cache(64), false);
        for (name, step) in steps {
            run.step(name, &step)?;
        }
        let now = run.tick();
        for name in 0..24 {
            run.check(name, now)?;
        }
    }

    #[test]
    fn without_room_it_forgets_and_never_errs(steps in steps(), entries in 8..64_u64) {
        let config = CacheConfig { index_entries: Some(entries), ..config(4) };
        let mut run = Run::new(Cache::open(&config).unwrap().0, true);
        for (name, step) in steps {
            run.step(name, &step)?;
        }
    }
}
