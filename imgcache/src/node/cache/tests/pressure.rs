//! When there is not enough room.

use super::super::{DeleteRequest, HoldError, ReserveError, StoreError};
use super::*;
use crate::index::IndexKey;
use crate::node::lease::{Closing, Rights};

pub(super) const LARGE: usize = 1 << 20;

pub(super) fn large(n: u64) -> String {
    format!("large {n}")
}

pub(super) fn fill(cache: &Cache, count: u64, length: usize, now: Now) {
    for n in 0..count {
        set(cache, large(n), &content(n, length), now);
    }
}

pub(super) fn present(cache: &Cache, count: u64, now: Now) -> Vec<u64> {
    (0..count).filter(|n| cache.held(&[key(large(*n)).index()], now).items == 1).collect()
}

#[test]
fn what_was_not_visited_goes_first() {
    let cache = cache(8);
    fill(&cache, 8, LARGE, at(0));
    for n in [0, 1, 4] {
        assert!(get(&cache, large(n), at(1)).is_some());
    }
    for n in 8..12 {
        set(&cache, large(n), &content(n, LARGE), at(50));
    }
    assert_eq!(present(&cache, 12, at(50)), [0, 1, 4, 7, 8, 9, 10, 11]);
    let counters = cache.counters();
    assert_eq!((counters.counts.evictions, counters.counts.evicted_unfetched), (4, 4));
    assert_eq!((counters.counts.last_eviction_age, counters.counts.evicted_age_seconds), (50, 200));
    assert_eq!((counters.used, counters.free_slabs), (8 << 20, 0));
}

#[test]
fn a_reader_keeps_what_is_evicted_deleted_or_replaced() {
    let cache = cache(4);
    fill(&cache, 4, LARGE, at(0));
    let items: Vec<Item> = (0..3).map(|n| cache.get(&key(large(n)), at(0)).unwrap()).collect();
    cache.delete(&key(large(0)), &DeleteRequest::default(), at(0)).unwrap();
    let clone = items[1].clone();
    // Only one place is left for others.
    for n in 10..20 {
        set(&cache, large(n), &content(n, LARGE), at(0));
    }
    for (item, n) in items.iter().zip(0..) {
        assert!(item.bytes() == content(n, LARGE));
    }
    drop(items);
    assert!(clone.bytes() == content(1, LARGE));
    fill(&cache, 3, LARGE, at(0));
    assert!(clone.bytes() == content(1, LARGE));
}

#[test]
fn when_all_is_in_use_it_says_so() {
    let cache = cache(2);
    let held: Vec<_> = (0..2).map(|_| cache.reserve(LARGE, at(0)).unwrap()).collect();
    let refused = cache.store_bytes(&key("k"), StoreMode::Set, b"x", &Attributes::default(), at(0));
    assert!(
        matches!(refused, Err(StoreError::Reserve(ReserveError::NoMemory { length: 1, .. }))),
        "{refused:?}"
    );
    drop(held);
    set(&cache, "k", b"x", at(0));
    assert_eq!(cache.counters().counts.out_of_memory, 1);
}

#[test]
fn no_more_than_a_part_is_reserved_at_once() {
    let config = CacheConfig { max_reserved_permille: 500, ..config(8) };
    let cache = Cache::open(&config).unwrap().0;
    fill(&cache, 8, LARGE, at(0));
    let mut held: Vec<_> = (0..4).map(|_| cache.reserve(LARGE, at(0)).unwrap()).collect();
    let refused = cache.reserve(1, at(0)).map(|_| ());
    assert!(
        matches!(
            refused,
            Err(ReserveError::Reserved { reserved: 0x40_0000, limit: 0x40_0000, .. })
        ),
        "{refused:?}"
    );
    // One is given up, one becomes an item, one is refused for what is in it.
    held.pop();
    let store = |name, content, flags| {
        let attributes = Attributes { flags, ..Attributes::default() };
        cache.store(&key(name), StoreMode::Set, content, &attributes, at(0))
    };
    store("k".to_owned(), held.pop().unwrap(), 0).unwrap();
    let chunk = format!("c/{}", "ab".repeat(32));
    store(chunk, held.pop().unwrap(), super::super::Kind::Chunk.flags()).unwrap_err();
    assert_eq!(cache.counters().reserved, 1 << 20);
    held.extend((0..3).map(|_| cache.reserve(LARGE, at(0)).unwrap()));
    drop(held);
    assert_eq!((cache.counters().reserved, cache.counters().counts.reservations_refused), (0, 1));
}

#[test]
fn a_class_without_anything_takes_a_slab_that_nobody_uses() {
    let cache = cache(4);
    fill(&cache, 4, LARGE, at(0));
    let reader = cache.get(&key(large(0)), at(0)).unwrap();
    // The slab of the oldest is in use: the other one goes.
    set(&cache, "small", b"x", at(0));
    assert_eq!(present(&cache, 4, at(0)).len(), 2);
    assert!(get(&cache, large(0), at(0)).is_some() && reader.bytes() == content(0, LARGE));
    assert_eq!(cache.counters().counts.slabs_moved, 1);
    // Now each class has one slab, and gives it up when it is much older.
    for n in 0..8192 {
        set(&cache, format!("small {n}"), b"x", at(0));
    }
    drop(reader);
    for n in 10..13 {
        set(&cache, large(n), &content(n, LARGE), at(50));
        set(&cache, large(n), &content(n + 9, LARGE), at(50));
    }
    assert_eq!(cache.counters().counts.slabs_moved, 1, "as old as the others");
    set(&cache, large(20), &content(1, LARGE), at(900));
    set(&cache, large(21), &content(1, LARGE), at(900));
    set(&cache, large(22), &content(1, LARGE), at(901));
    assert_eq!(cache.counters().counts.slabs_moved, 2);
}

#[test]
fn a_few_held_items_do_not_stand_before_the_rest() {
    const CHUNK: usize = 256 << 10;
    let cache = cache(48);
    fill(&cache, 192, CHUNK, at(0));
    // One of the eight of a slab is pinned, in each slab but the last: whoever takes a slab has to
    // look behind them.
    let keys: Vec<IndexKey> = (0..184).step_by(8).map(|n| key(large(n)).index()).collect();
    cache.pin([1; 32], &keys, at(0)).unwrap();
    set(&cache, "small", b"x", at(0));
    assert_eq!((cache.counters().counts.slabs_moved, present(&cache, 192, at(0)).len()), (1, 184));
    assert_eq!(cache.held(&keys, at(0)).missing, 0);
    // None is left that could be taken, in whatever order they are looked at.
    let _small = cache.get(&key("small"), at(0)).unwrap();
    for _ in 0..3 {
        assert!(cache.reserve(4096, at(0)).is_err());
    }
    assert!(cache.unpin([1; 32]));
    assert!(cache.reserve(4096, at(0)).is_ok());
}

#[test]
fn a_long_run_of_held_items_is_searched_to_its_end() {
    let count = 3 * super::super::evict::LOOKS as u64;
    let config = CacheConfig { index_entries: Some(1 << 17), ..config(12) };
    let config = CacheConfig { max_pinned_permille: 1000, ..config };
    let cache = Cache::open(&config).unwrap().0;
    fill(&cache, count, 4, at(0));
    let keys: Vec<IndexKey> = (0..count - 1).map(|n| key(large(n)).index()).collect();
    cache.pin([1; 32], &keys, at(0)).unwrap();
    assert_eq!((cache.counters().free_slabs, cache.counters().used), (0, 12 << 20));
    set(&cache, "small", b"x", at(0));
    assert_eq!(cache.held(&[key(large(count - 1)).index()], at(0)).items, 0);
    let held = cache.get(&key("small"), at(0)).unwrap();
    assert!(cache.reserve(4, at(0)).is_err());
    assert_eq!(held.bytes(), b"x");
}

#[test]
fn leases_and_pins_keep_items_until_they_end() {
    let cache = cache(8);
    fill(&cache, 8, LARGE, at(0));
    let keys = |range: std::ops::Range<u64>| -> Vec<IndexKey> {
        range.map(|n| key(large(n)).index()).collect()
    };
    let leased = cache.lease(&lease(5, Duration::from_secs(10)), &keys(0..2), at(0)).unwrap();
    assert_eq!((leased.held, leased.missing, leased.busy_permille), (2, 0, 500));
    let pin = cache.pin([1; 32], &keys(2..4), at(0)).unwrap();
    assert_eq!((pin.items, pin.bytes), (2, 2 << 20));
    // As much as others can get.
    let room = |now| {
        let others: Vec<_> = (0..9).map_while(|_| cache.reserve(LARGE, now).ok()).collect();
        others.len()
    };
    assert_eq!((room(at(9)), present(&cache, 8, at(9))), (4, vec![0, 1, 2, 3]));
    assert_eq!((cache.counters().leased, cache.counters().pinned), (2 << 20, 2 << 20));
    // A read is no renewal.
    assert!(get(&cache, large(0), at(9)).is_some());
    assert_eq!(cache.maintenance(at(10)).leases_ended, 1);
    assert_eq!((room(at(10)), present(&cache, 8, at(10))), (6, vec![2, 3]));
    assert!(cache.unpin([1; 32]));
    assert_eq!((room(at(11)), present(&cache, 8, at(11))), (8, vec![]));
    let counters = cache.counters();
    assert_eq!((counters.leased, counters.pinned, counters.counts.leases_expired), (0, 0, 1));
}

#[test]
fn a_lease_counts_as_an_access() {
    let cache = cache(8);
    fill(&cache, 8, LARGE, at(0));
    // Who reads from afar is never seen reading.
    cache.lease(&lease(1, Duration::from_secs(5)), &[key(large(0)).index()], at(1)).unwrap();
    cache.pin([1; 32], &[key(large(1)).index()], at(1)).unwrap();
    assert!(cache.release(1, 0) && cache.unpin([1; 32]));
    set(&cache, large(8), &content(8, LARGE), at(2));
    assert_eq!(present(&cache, 9, at(2)), [0, 2, 3, 4, 5, 6, 7, 8]);
}

/// Keeps what it is to close.
#[derive(Debug, Default)]
struct Windows(std::sync::Mutex<Vec<Closing>>);

impl Rights for Windows {
    fn close(&self, closing: Closing) {
        self.0.lock().unwrap().push(closing);
    }
}

#[test]
fn memory_on_which_others_have_rights_is_nobody_elses() {
    let config = CacheConfig { max_leased_permille: 1000, ..config(2) };
    let cache = Cache::open(&config).unwrap().0;
    fill(&cache, 2, LARGE, at(0));
    let keys = [key(large(0)).index(), key(large(1)).index()];
    cache.lease(&lease(1, Duration::from_secs(5)), &keys, at(0)).unwrap();
    let windows = Arc::new(Windows::default());
    assert!(cache.grant(1, windows.clone()));
    cache.flush_all(0, at(0));
    // The time of the lease is up, and the store that needs its memory finds that.
    assert!(cache.reserve(LARGE, at(6)).is_err());
    let counters = cache.counters();
    assert_eq!((counters.leases, counters.closing_leases, counters.leased), (0, 1, 2 << 20));
    assert_eq!(counters.used, 2 << 20);
    let closing = windows.0.lock().unwrap().pop().unwrap();
    closing.closed();
    let counters = cache.counters();
    assert_eq!((counters.closing_leases, counters.leased), (0, 0));
    assert!(cache.reserve(LARGE, at(6)).is_ok());
}

#[test]
fn a_lease_that_nobody_ended_ends_where_memory_is_needed() {
    let config = CacheConfig { max_leased_permille: 1000, ..config(2) };
    let cache = Cache::open(&config).unwrap().0;
    fill(&cache, 2, LARGE, at(0));
    let keys = [key(large(0)).index(), key(large(1)).index(), key("none").index()];
    let granted = cache.lease(&lease(1, Duration::from_secs(5)), &keys, at(0)).unwrap();
    assert_eq!((granted.held, granted.missing), (2, 1));
    assert!(cache.reserve(1, at(4)).is_err());
    assert!(cache.reserve(1, at(5)).is_ok());
    cache.set_draining(true);
    assert_eq!(cache.lease(&lease(2, Duration::ZERO), &[], at(5)), Err(HoldError::Draining));
    assert!(!cache.release(1, 0));
    cache.set_draining(false);
    cache.lease(&lease(2, Duration::ZERO), &[], at(5)).unwrap();
    assert!(cache.release(2, 12345));
    assert_eq!(cache.counters().counts.leased_bytes_read, 12345);
}

#[test]
fn a_full_index_evicts_the_least_valuable_and_never_what_is_in_use() {
    let config = CacheConfig { index_entries: Some(8), ..config(4) };
    let cache = Cache::open(&config).unwrap().0;
    fill(&cache, 8, 10, at(0));
    let items: Vec<Item> =
        (0..8).filter(|n| *n != 3).map(|n| cache.get(&key(large(n)), at(1)).unwrap()).collect();
    set(&cache, large(9), b"x", at(2));
    assert_eq!(present(&cache, 10, at(2)), [0, 1, 2, 4, 5, 6, 7, 9]);
    let last = cache.get(&key(large(9)), at(2)).unwrap();
    let refused = cache.store_bytes(&key("k"), StoreMode::Set, b"x", &Attributes::default(), at(2));
    assert_eq!(refused, Err(StoreError::TableFull { entries: 16 }));
    // In its own place there is room, even if it is in use.
    set(&cache, large(9), b"y", at(2));
    assert_eq!(last.bytes(), b"x");
    drop((items, last));
    set(&cache, "k", b"x", at(3));
    let counters = cache.counters();
    assert_eq!((counters.counts.table_evictions, counters.counts.table_full), (2, 1));
    assert_eq!(counters.table_load_permille(), 1000);
}

#[test]
fn memory_is_kept_free_ahead() {
    let config = CacheConfig { index_entries: Some(1 << 14), ..config(8) };
    let cache = Cache::open(&config).unwrap().0;
    fill(&cache, 8 << 8, 4096, at(0));
    assert_eq!(cache.counters().free_slabs, 0);
    let done = cache.maintenance(at(1));
    // 2 % of 2048 slots.
    assert_eq!(done.evicted, 40);
    assert_eq!(cache.maintenance(at(2)).evicted, 0);
    assert_eq!(cache.class_stats(at(2))[0].free_slots, 40);
    assert!(cache.counters().overhead_bytes < (1 << 14) * 80 + 2048 * 200);
}
