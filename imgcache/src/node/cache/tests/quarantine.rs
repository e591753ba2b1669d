//! Memory that rests after its item was removed.

use super::super::{DeleteRequest, ReserveError, StoreError};
use super::pressure::{LARGE, fill, large, present};
use super::reader::lookup;
use super::*;
use crate::index::entry::Entry;
use crate::index::reader::Lookup;

#[test]
fn removed_content_stays_untouched_in_the_quarantine() {
    let config = CacheConfig { quarantine: Duration::from_secs(2), ..config(8) };
    let cache = Cache::open(&config).unwrap().0;
    let clock = set_clock(&cache, at(0));
    fill(&cache, 8, LARGE, at(0));
    let entries: Vec<Entry> = (0..8)
        .map(|n| match lookup(&cache, key(large(n)).index()) {
            Lookup::Found(entry) => entry,
            other => panic!("{other:?}"),
        })
        .collect();
    // Whether what a reader from afar reads at its place now is still the content.
    let is_untouched = |n: u64| {
        let entry = entries[usize::try_from(n).unwrap()];
        let offset = usize::try_from(entry.offset).unwrap();
        // Nobody has it any more, so this test can.
        let slot = cache.arena.claim(offset, LARGE, LARGE).unwrap();
        slot.bytes() == content(n, LARGE)
    };
    // Two at a time are removed to be free later; more would not help.
    for _ in 0..5 {
        assert!(cache.reserve(LARGE, at(0)).is_err());
    }
    assert_eq!(cache.counters().quarantined, 2 << 20);
    assert_eq!(present(&cache, 8, at(1)).len(), 6);
    put_clock(&clock, at(1));
    assert!(cache.reserve(LARGE, at(1)).is_err());
    let removed: Vec<u64> = (0..8).filter(|n| !present(&cache, 8, at(1)).contains(n)).collect();
    assert_eq!(removed.len(), 2);
    assert!(removed.iter().all(|n| is_untouched(*n)));
    put_clock(&clock, at(2));
    let two: Vec<_> = (0..2).map(|_| cache.reserve(LARGE, at(2)).unwrap()).collect();
    assert_eq!(cache.counters().quarantined, 0);
    let places: Vec<usize> = two.iter().map(|one| one.block.slot.offset()).collect();
    assert!(removed.iter().all(|n| {
        places.contains(&usize::try_from(entries[usize::try_from(*n).unwrap()].offset).unwrap())
    }));
    // What was never published need not wait.
    drop(two);
    assert!(cache.reserve(LARGE, at(2)).is_ok());
}

#[test]
fn a_full_cache_with_a_quarantine_takes_what_it_took_before() {
    const CHUNK: usize = 64 << 10;
    let config = CacheConfig { quarantine: Duration::from_secs(2), ..config(64) };
    let cache = Cache::open(&config).unwrap().0;
    let clock = set_clock(&cache, at(0));
    fill(&cache, 1024, CHUNK, at(0));
    // 4 MiB a second, 12 % of all in each quarantine.
    let (mut stored, mut put_off) = (0, 0);
    for second in 1..30 {
        put_clock(&clock, at(second));
        cache.maintenance(at(second));
        for n in 0..64 {
            let name = large(u64::from(second) * 1000 + n);
            let content = content(n, CHUNK);
            match cache.store_bytes(
                &key(name),
                StoreMode::Set,
                &content,
                &Attributes::default(),
                at(second),
            ) {
                Ok(_) => stored += 1,
                Err(StoreError::Reserve(ReserveError::Waiting { retry_after, .. })) => {
                    assert!(retry_after <= Duration::from_secs(2));
                    put_off += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    // Only while it had not seen yet how much is written.
    assert!(put_off <= 3 * 64, "{put_off} of {} were put off", stored + put_off);
    let counters = cache.counters();
    assert!(counters.items >= 1024 * 3 / 4, "{} items are left", counters.items);
    assert_eq!((counters.counts.quarantine_refusals, counters.counts.out_of_memory), (put_off, 0));
}

#[test]
fn a_slab_that_is_emptied_for_another_class_is_waited_for() {
    let config = CacheConfig { quarantine: Duration::from_secs(2), ..config(64) };
    let cache = Cache::open(&config).unwrap().0;
    let clock = set_clock(&cache, at(0));
    fill(&cache, 64, LARGE, at(0));
    for second in [0, 1] {
        put_clock(&clock, at(second));
        let refused = cache.reserve(10, at(second));
        let retry_after = Duration::from_secs(2 - u64::from(second));
        let waiting = ReserveError::Waiting { length: 10, retry_after };
        assert_eq!(refused.map(|_| ()), Err(waiting));
        assert_eq!(present(&cache, 64, at(second)).len(), 62, "one slab is enough");
    }
    // What is asked for meanwhile does not get that slab's places, so that it gets free.
    let others = cache.reserve(LARGE, at(1));
    assert!(matches!(others, Err(ReserveError::Waiting { .. })), "{others:?}");
    put_clock(&clock, at(2));
    assert!(cache.reserve(10, at(2)).is_ok());
}

#[test]
fn the_quarantine_goes_by_the_clock_and_not_by_the_time_of_an_operation() {
    let config = CacheConfig { quarantine: Duration::from_secs(2), ..config(8) };
    let cache = Cache::open(&config).unwrap().0;
    let clock = set_clock(&cache, at(0));
    set(&cache, "k", b"x", at(0));
    let reader = cache.get(&key("k"), at(0)).unwrap();
    cache.delete(&key("k"), &DeleteRequest::default(), at(0)).unwrap();
    put_clock(&clock, at(10));
    drop(reader);
    // An operation that began ten seconds ago finds what came back just now.
    cache.maintenance(at(0));
    assert_eq!(cache.counters().quarantined, 256);
    put_clock(&clock, at(11));
    assert_eq!(cache.maintenance(at(11)).released, 0);
    put_clock(&clock, at(12));
    assert_eq!(cache.maintenance(at(12)).released, 256);
}

#[test]
fn exported_memory_has_a_quarantine_and_what_was_not_published_does_not_wait() {
    let config = CacheConfig { exported: true, index_entries: Some(8), ..config(4) };
    let cache = Cache::open(&config).unwrap().0;
    let clock = set_clock(&cache, at(0));
    fill(&cache, 8, 10, at(0));
    let items: Vec<Item> = (0..8).map(|n| cache.get(&key(large(n)), at(1)).unwrap()).collect();
    let refused = cache.store_bytes(&key("k"), StoreMode::Set, b"x", &Attributes::default(), at(2));
    assert_eq!(refused, Err(StoreError::TableFull { entries: 16 }));
    cache.maintenance(at(2));
    assert_eq!(cache.counters().quarantined, 0, "its place was never told");
    drop(items);
    cache.delete(&key(large(0)), &DeleteRequest::default(), at(2)).unwrap();
    cache.maintenance(at(2));
    put_clock(&clock, at(1));
    assert_eq!(cache.maintenance(at(3)).released, 0);
    put_clock(&clock, at(2));
    assert_eq!(cache.maintenance(at(4)).released, 256);
}
