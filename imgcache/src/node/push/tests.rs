//! Pushes in any order, over queues that are none.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::Range;
use std::rc::Rc;

use proptest::prelude::*;

use super::table::{Begun, NotAdmitted, Place, PushError, Pushes, Wanted, Writers, Written};
use super::*;
use crate::key::ChunkKey;
use crate::node::cache::{
    Attributes, BackingChoice, CacheConfig, Exposed, Key, Kind, StoreMode, WritesEnded,
};
use crate::record::ItemKey;
use crate::transport::verbs::Remote;

const CAPACITY: u64 = 32 << 20; // so that nothing is evicted
const EXPOSED: u64 = 256 << 10;
const TIME: Duration = Duration::from_secs(60);

/// What the device would do.
#[derive(Debug, Default)]
struct Device {
    /// Where somebody can write, in bytes of the memory.
    open: Vec<Range<usize>>,
    refuses: bool,
    never_ends: bool,
}

#[derive(Debug, Clone, Default)]
struct Fake(Rc<RefCell<Device>>);

fn place(slot: &Exposed) -> Range<usize> {
    slot.offset()..slot.offset() + slot.capacity()
}

impl Device {
    fn is_open(&self, place: &Range<usize>) -> bool {
        self.open.iter().any(|open| open.start < place.end && place.start < open.end)
    }

    fn bytes(&self) -> u64 {
        self.open.iter().map(|open| open.len() as u64).sum()
    }
}

impl Writers for Fake {
    type Queue = Vec<Exposed>;

    fn admit(
        &mut self,
        peer: &Endpoint,
        slots: Vec<Exposed>,
    ) -> Result<(Vec<Exposed>, Endpoint, Vec<Remote>), NotAdmitted> {
        let mut device = self.0.borrow_mut();
        if device.refuses {
            return Err(NotAdmitted { reason: "no queue".into(), slots });
        }
        for slot in &slots {
            assert!(!device.is_open(&place(slot)), "a slot with two owners");
            device.open.push(place(slot));
        }
        let remote = |slot: &Exposed| Remote { address: slot.offset() as u64, key: 1 };
        let remotes = slots.iter().map(remote).collect();
        Ok((slots, *peer, remotes))
    }

    fn end(&mut self, mut queue: Vec<Exposed>) -> Result<Vec<Exposed>, String> {
        let mut device = self.0.borrow_mut();
        if device.never_ends {
            std::mem::forget(queue);
            return Err("it does not answer".into());
        }
        device.open.retain(|open| queue.iter().all(|slot| place(slot) != *open));
        queue.reverse(); // in any order
        Ok(queue)
    }
}

fn peer() -> Endpoint {
    "gid=00000000000000000000ffff0a630001 lid=0 qpn=17 psn=9 mtu=4096 reads=16".parse().unwrap()
}

fn at(seconds: u64) -> Now {
    Now { monotonic: Duration::from_secs(seconds), ..Now::system() }
}

/// The content of chunk `number`.
fn content(number: usize) -> Vec<u8> {
    let length = [1, 300, 4096, 5000, 65_536, 100_000][number];
    (0..length).map(|at| u8::try_from((at * 7 + number) % 251).unwrap()).collect()
}

fn wanted(number: usize) -> Wanted {
    let content = content(number);
    Wanted { key: ChunkKey::of(&content), length: u32::try_from(content.len()).unwrap() }
}

struct Bench {
    device: Fake,
    cache: Arc<Cache>,
    counters: Arc<PushCounters>,
    pushes: Pushes<Fake>,
    seconds: u64,
    /// Chunks that were published.
    there: HashSet<usize>,
    /// What is open, by connection: id, chunks of its slots, and since when.
    open: Vec<Option<(u64, Vec<usize>, u64)>>,
}

impl Bench {
    fn new() -> Self {
        let config = CacheConfig {
            memory_bytes: CAPACITY,
            backing: BackingChoice::Small,
            populate: false,
            ..CacheConfig::default()
        };
        let cache = Arc::new(Cache::open(&config).unwrap().0);
        let (device, counters) = (Fake::default(), Arc::new(PushCounters::default()));
        let limits = Limits { pushes: 3, exposed: EXPOSED, time: TIME };
        let pushes = Pushes::new(device.clone(), Arc::clone(&cache), limits, Arc::clone(&counters));
        let open = (0..4).map(|_| None).collect();
        Self { device, cache, counters, pushes, seconds: 1, there: HashSet::new(), open }
    }

    fn begin(&mut self, connection: usize, chunks: &[usize]) -> Option<Begun> {
        let list: Vec<Wanted> = chunks.iter().map(|number| wanted(*number)).collect();
        let open = self.open.iter().flatten().count();
        let begun = self.pushes.begin(connection as u64, &peer(), &list, at(self.seconds));
        let begun = match begun {
            Ok(begun) => begun,
            Err(PushError::StillOpen(id)) => {
                assert_eq!(self.open[connection].as_ref().unwrap().0, id);
                return None;
            }
            Err(PushError::TooMany(3)) => {
                assert_eq!(open, 3);
                return None;
            }
            Err(error) => {
                assert!(self.device.0.borrow().refuses, "{error}");
                return None;
            }
        };
        assert!(self.open[connection].is_none());
        assert_eq!(begun.places.len(), chunks.len());
        let mut slots = Vec::new();
        for (number, place) in chunks.iter().zip(&begun.places) {
            match place {
                Place::Have => assert!(self.there.contains(number)),
                Place::Slot(_) => slots.push(*number),
                Place::Full(why) => assert!(!why.is_empty()),
            }
        }
        assert_eq!(begun.endpoint.is_some(), !slots.is_empty());
        if !slots.is_empty() {
            self.open[connection] = Some((begun.id, slots, self.seconds));
        }
        Some(begun)
    }

    /// Ends a push of which the first `written` slots were written, those in `wrong` not as they should be.
    fn end(&mut self, connection: usize, id: u64, written: usize, wrong: &[usize]) {
        let ended = self.pushes.end(connection as u64, id, written);
        let Some((_, slots, _)) = self.open[connection].take_if(|open| open.0 == id) else {
            assert!(matches!(ended, Err(PushError::Unknown)));
            return;
        };
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => {
                assert!(matches!(error, PushError::NotEnded(_)), "{error}");
                assert!(self.device.0.borrow().never_ends);
                return;
            }
        };
        assert_eq!(ended.len(), slots.len().min(written));
        for (number, Written { key, content: mut slot }) in slots.into_iter().zip(ended) {
            assert_eq!(key, wanted(number).key);
            // As the device would have, before the end.
            slot.copy_from_slice(&content(number));
            if wrong.contains(&number) {
                slot[0] ^= 1;
            }
            let attributes = Attributes { flags: Kind::Chunk.flags(), ..Attributes::default() };
            let name = Key::new(ItemKey::chunk(&key).as_bytes());
            let stored =
                self.cache.store(&name, StoreMode::Set, slot, &attributes, at(self.seconds));
            assert_eq!(stored.is_ok(), !wrong.contains(&number), "{stored:?}");
            if stored.is_ok() {
                self.there.insert(number);
            }
        }
    }

    fn expire(&mut self) {
        self.pushes.expire(at(self.seconds));
        for open in &mut self.open {
            open.take_if(|(_, _, since)| since.saturating_add(TIME.as_secs()) <= self.seconds);
        }
    }

    /// What always holds.
    fn check(&self) {
        let device = self.device.0.borrow();
        let exposed = self.counters.exposed.load(Ordering::Relaxed);
        assert_eq!(exposed, device.bytes());
        assert!(exposed <= EXPOSED);
        let open = self.open.iter().flatten().count() as u64;
        assert_eq!(self.counters.open.load(Ordering::Relaxed), open);
        assert_eq!(self.pushes.next_deadline().is_some(), open > 0);
        // Exactly what was verified can be seen.
        for number in 0..6 {
            let name = Key::new(ItemKey::chunk(&wanted(number).key).as_bytes());
            let item = self.cache.get(&name, at(self.seconds));
            assert_eq!(item.is_some(), self.there.contains(&number));
            assert!(item.is_none_or(|item| item.bytes() == content(number)));
        }
        // What others are given is open to nobody.
        let slots: Vec<Exposed> = (0..8)
            .map(|_| self.cache.reserve(65_536, at(self.seconds)).unwrap().expose())
            .collect();
        for slot in slots {
            assert!(!device.is_open(&place(&slot)), "memory was used that can still be written");
            let proof = WritesEnded::of(slot.id());
            slot.take_back(proof).unwrap();
        }
        assert_eq!(self.cache.counters().parked, 0);
    }
}

#[test]
fn what_was_written_is_published_and_nothing_else() {
    let mut bench = Bench::new();
    let begun = bench.begin(0, &[0, 4, 0]).unwrap();
    bench.check();
    bench.end(0, begun.id, 2, &[4]);
    bench.check();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!((bench.there.len(), count(&bench.counters.abandoned)), (1, 1));
    let begun = bench.begin(0, &[0, 4]).unwrap();
    assert_eq!(begun.places[0], Place::Have);
    assert!(matches!(begun.places[1], Place::Slot(_)));
    bench.seconds += TIME.as_secs();
    bench.expire();
    bench.check();
    assert_eq!(count(&bench.counters.expired), 1);
    // The client did not hear of it.
    bench.end(0, begun.id, 1, &[]);
    bench.check();
    assert!(!bench.there.contains(&4));
}

#[test]
fn no_more_is_exposed_than_may_be() {
    let mut bench = Bench::new();
    // 128 KiB of memory each.
    let begun = bench.begin(0, &[5, 5, 5]).unwrap();
    assert!(matches!(begun.places[..], [Place::Slot(_), Place::Slot(_), Place::Full(_)]));
    bench.check();
    assert!(matches!(bench.begin(1, &[0]).unwrap().places[0], Place::Full(_)));
    bench.pushes.close(0);
    bench.open[0] = None;
    bench.check();
    assert!(matches!(bench.begin(1, &[0]).unwrap().places[0], Place::Slot(_)));
    // Neither is what could not be a chunk.
    for length in [0, u32::MAX] {
        let wanted = [Wanted { length, ..wanted(1) }];
        let begun = bench.pushes.begin(2, &peer(), &wanted, at(1)).unwrap();
        assert!(matches!(begun.places[0], Place::Full(_)) && begun.endpoint.is_none());
    }
}

#[test]
fn two_writers_of_one_chunk_both_succeed() {
    let mut bench = Bench::new();
    let ids = [0, 1].map(|connection| bench.begin(connection, &[3]).unwrap().id);
    bench.check();
    for (connection, id) in ids.into_iter().enumerate() {
        bench.end(connection, id, 1, &[]);
        bench.check();
    }
    assert_eq!(bench.cache.counters().items, 1);
}

#[derive(Debug, Clone)]
enum Step {
    Begin(usize, Vec<usize>),
    End { connection: usize, is_own: bool, written: usize, wrong: Vec<usize> },
    Close(usize),
    Later(u64),
    Refuses(bool),
    NeverEnds(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let numbers = || prop::collection::vec(0..6_usize, 0..5);
    prop_oneof![
        6 => (0..4_usize, numbers()).prop_map(|(c, chunks)| Step::Begin(c, chunks)),
        6 => (0..4_usize, prop::bool::weighted(0.9), 0..6_usize, numbers()).prop_map(
            |(connection, is_own, written, wrong)| Step::End { connection, is_own, written, wrong }
        ),
        2 => (0..4_usize).prop_map(Step::Close),
        2 => (0..90_u64).prop_map(Step::Later),
        1 => prop::bool::weighted(0.3).prop_map(Step::Refuses),
        1 => prop::bool::weighted(0.2).prop_map(Step::NeverEnds),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn in_any_order_no_slot_has_two_owners_and_only_what_is_verified_is_seen(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut bench = Bench::new();
        for step in steps {
            match step {
                Step::Begin(connection, chunks) => drop(bench.begin(connection, &chunks)),
                Step::End { connection, is_own, written, wrong } => {
                    let open = bench.open[connection].as_ref();
                    let id = open.filter(|_| is_own).map_or(u64::MAX, |open| open.0);
                    bench.end(connection, id, written, &wrong);
                }
                Step::Close(connection) => {
                    bench.pushes.close(connection as u64);
                    bench.open[connection] = None;
                }
                Step::Later(seconds) => {
                    bench.seconds += seconds;
                    bench.expire();
                }
                Step::Refuses(refuses) => bench.device.0.borrow_mut().refuses = refuses,
                Step::NeverEnds(never) => bench.device.0.borrow_mut().never_ends = never,
            }
            bench.check();
        }
        let lost = bench.counters.lost.load(Ordering::Relaxed);
        let Bench { device, cache, pushes, counters, .. } = bench;
        device.0.borrow_mut().never_ends = false;
        drop(pushes);
        let exposed = counters.exposed.load(Ordering::Relaxed);
        prop_assert_eq!(exposed, device.0.borrow().bytes());
        prop_assert_eq!(exposed == 0, lost == 0);
        prop_assert_eq!(cache.counters().reserved, exposed);
    }
}
