//! What memcached's classic commands need.

use super::super::{
    Arithmetic, ArithmeticOutcome, DeleteOutcome, DeleteRequest, Direction, Expires, Kind,
    ReserveError, StoreError,
};
use super::*;
use crate::key::ChunkKey;

fn store(cache: &Cache, mode: StoreMode, content: &[u8]) -> StoreOutcome {
    let attributes = Attributes { flags: 9, ..Attributes::default() };
    cache.store_bytes(&key("k"), mode, content, &attributes, at(0)).unwrap()
}

#[test]
fn modes_are_memcacheds() {
    use StoreOutcome::{Exists, NotFound, NotStored, Stored};
    let cache = cache(4);
    for mode in [StoreMode::Replace, StoreMode::Append, StoreMode::Prepend] {
        assert_eq!(store(&cache, mode, b"x"), NotStored);
    }
    assert_eq!(store(&cache, StoreMode::Cas(1), b"x"), NotFound);
    let Stored { cas } = store(&cache, StoreMode::Add, b"one") else { panic!() };
    assert_eq!(store(&cache, StoreMode::Add, b"two"), NotStored);
    assert_eq!(store(&cache, StoreMode::Cas(cas + 1), b"two"), Exists);
    let Stored { cas: second } = store(&cache, StoreMode::Cas(cas), b"two") else { panic!() };
    assert!(second > cas);
    assert!(matches!(store(&cache, StoreMode::Replace, b"middle"), Stored { .. }));
    let attributes = Attributes { flags: 77, ..Attributes::default() };
    for (mode, content) in [(StoreMode::Append, "-end"), (StoreMode::Prepend, "start-")] {
        let content = content.as_bytes();
        let stored = cache.store_bytes(&key("k"), mode, content, &attributes, at(0)).unwrap();
        assert!(matches!(stored, Stored { .. }));
    }
    let item = cache.get(&key("k"), at(0)).unwrap();
    assert_eq!((item.bytes(), item.flags()), (&b"start-middle-end"[..], 9));
    let counts = cache.counters().counts;
    assert_eq!((counts.cas_hits, counts.cas_mismatches, counts.cas_misses), (1, 1, 1));
}

#[test]
fn items_expire_and_are_touched() {
    let cache = cache(4);
    let expiring = |exptime, now| Attributes {
        expires: Expires::from_exptime(exptime, now),
        ..Attributes::default()
    };
    let put = |name: &str, exptime| {
        let attributes = expiring(exptime, at(0));
        cache.store_bytes(&key(name), StoreMode::Set, b"x", &attributes, at(0)).unwrap();
    };
    put("ten", 10);
    put("ever", 0);
    put("gone", -1);
    assert_eq!(get(&cache, "gone", at(0)), None);
    assert!(get(&cache, "ten", at(9)).is_some());
    assert!(cache.touch(&key("ten"), Expires::from_exptime(100, at(9)), at(9)));
    assert!(get(&cache, "ten", at(108)).is_some());
    let touched = cache.get_and_touch(&key("ten"), Expires::from_exptime(1, at(108)), at(108));
    assert_eq!(touched.unwrap().expires().remaining(at(108)), Some(1));
    assert_eq!(get(&cache, "ten", at(109)), None);
    assert!(!cache.touch(&key("ten"), Expires::NEVER, at(109)));
    assert!(get(&cache, "ever", at(1_000_000)).is_some());
    // A set that expires at once takes the place of what was there.
    cache.store_bytes(&key("ever"), StoreMode::Set, b"y", &expiring(-1, at(0)), at(0)).unwrap();
    assert_eq!(get(&cache, "ever", at(0)), None);
    let counters = cache.counters();
    assert_eq!((counters.items, counters.content_bytes.total()), (0, 0));
    assert_eq!((counters.counts.get_expired, counters.counts.touch_hits), (1, 2));
}

#[test]
fn maintenance_removes_what_expired_and_gives_memory_back() {
    let cache = cache(4);
    let attributes = Attributes { expires: Expires::at(START + 5), ..Attributes::default() };
    for n in 0..100 {
        cache
            .store_bytes(&key(format!("{n}")), StoreMode::Set, &[1; 300], &attributes, at(0))
            .unwrap();
    }
    assert_eq!(cache.counters().used, 100 * 512);
    assert_eq!(cache.maintenance(at(4)).reclaimed, 0);
    assert_eq!(cache.maintenance(at(5)).reclaimed, 100);
    assert_eq!(cache.counters().used, 0);
    assert_eq!(cache.counters().free_slabs, 2);
    assert_eq!(cache.counters().counts.expired_unfetched, 100);
}

#[test]
fn numbers_wrap_up_and_stop_at_zero() {
    use Direction::{Decrement, Increment};
    let cache = cache(4);
    let arithmetic = |direction, delta| {
        let request =
            Arithmetic { direction, delta, initial: None, touch: None, compare: None, cas: None };
        match cache.arithmetic(&key("n"), &request, at(0)).unwrap() {
            ArithmeticOutcome::Value { value, item, .. } => {
                assert_eq!(item.bytes(), value.to_string().as_bytes());
                Some(value)
            }
            ArithmeticOutcome::NotFound | ArithmeticOutcome::NonNumeric => None,
            ArithmeticOutcome::Exists => panic!("nothing was compared"),
        }
    };
    assert_eq!(arithmetic(Increment, 1), None);
    set(&cache, "n", b"99", at(0));
    let cas = cache.get(&key("n"), at(0)).unwrap().cas();
    assert_eq!(arithmetic(Increment, 1), Some(100));
    assert!(cache.get(&key("n"), at(0)).unwrap().cas() > cas);
    assert_eq!(arithmetic(Decrement, 1), Some(99));
    assert_eq!(arithmetic(Decrement, 100), Some(0));
    assert_eq!(arithmetic(Increment, u64::MAX), Some(u64::MAX));
    assert_eq!(arithmetic(Increment, 5), Some(4));
    set(&cache, "n", b"a number", at(0));
    assert_eq!(arithmetic(Increment, 1), None);
    assert_eq!(cache.counters().counts.increment_misses, 1);
}

#[test]
fn a_flush_takes_what_there_is_then_and_nothing_later() {
    let cache = cache(4);
    for n in 0..50 {
        set(&cache, format!("old {n}"), b"x", at(0));
    }
    let reader = cache.get(&key("old 1"), at(0)).unwrap();
    cache.flush_all(0, at(0));
    set(&cache, "new", b"y", at(0));
    assert_eq!(get(&cache, "old 1", at(0)), None);
    assert_eq!(reader.bytes(), b"x");
    assert_eq!((cache.counters().items, get(&cache, "new", at(0)).is_some()), (1, true));
    cache.flush_all(10, at(0));
    set(&cache, "between", b"z", at(5));
    assert!(get(&cache, "between", at(9)).is_some());
    assert_eq!(get(&cache, "between", at(10)), None);
    assert_eq!(cache.maintenance(at(10)).reclaimed, 1, "the other one");
    set(&cache, "after", b"z", at(10));
    assert!(get(&cache, "after", at(30)).is_some());
    assert_eq!(cache.counters().counts.flushes, 2);
}

#[test]
fn a_delete_compares_and_removes() {
    let cache = cache(4);
    let cas = set(&cache, "k", b"x", at(0));
    let delete = |compare| {
        let request = DeleteRequest { compare, ..DeleteRequest::default() };
        cache.delete(&key("k"), &request, at(0)).unwrap()
    };
    assert_eq!(delete(Some(cas + 1)), DeleteOutcome::Exists);
    assert_eq!(delete(Some(cas)), DeleteOutcome::Deleted);
    assert_eq!(delete(None), DeleteOutcome::NotFound);
    assert_eq!(cache.maintenance(at(0)).reclaimed, 0);
    assert_eq!(cache.counters().used, 0);
}

#[test]
fn a_chunk_must_be_what_its_key_says() {
    let cache = cache(4);
    let content = content(1, 4096);
    let name = format!("c/{}", ChunkKey::of(&content));
    let flagged = Attributes { flags: Kind::Chunk.flags(), ..Attributes::default() };
    let store = |content: &[u8], attributes: &Attributes| {
        cache.store_bytes(&key(&name), StoreMode::Set, content, attributes, at(0))
    };
    assert!(matches!(store(&content, &flagged), Ok(StoreOutcome::Stored { .. })));
    let refused = store(b"something else", &flagged);
    assert!(matches!(refused, Err(StoreError::HashMismatch { .. })), "{refused:?}");
    assert_eq!(get(&cache, &name, at(0)), Some(content.clone()), "what was there stays");
    let counters = cache.counters();
    assert_eq!(
        (counters.counts.hash_mismatches, counters.items_by_kind.get(Some(Kind::Chunk))),
        (1, 1)
    );
    assert_eq!(counters.counts.hits.get(Some(Kind::Chunk)), 1);
    // Without the flags it is an item like any other.
    assert!(store(b"something else", &Attributes::default()).is_ok());
}

#[test]
fn the_same_content_keeps_its_place() {
    let cache = cache(4);
    let first = set(&cache, "k", &[7; 5000], at(0));
    let place = |now| cache.get(&key("k"), now).unwrap().bytes().as_ptr();
    let before = place(at(0));
    let second = set(&cache, "k", &[7; 5000], at(9));
    assert!(second > first);
    assert_eq!((place(at(9)), cache.counters().counts.stored_same), (before, 1));
    set(&cache, "k", &[8; 5000], at(9));
    assert_ne!(place(at(9)), before);
}

#[test]
fn limits_are_checked_before_memory_is_taken() {
    let small = CacheConfig { max_item_bytes: 1000, ..config(4) };
    let cache = Cache::open(&small).unwrap().0;
    let refused = cache.reserve(1001, at(0)).map(|_| ());
    assert_eq!(refused, Err(ReserveError::TooLarge { length: 1001, limit: 1000 }));
    assert_eq!(cache.counters().used, 0);
    set(&cache, "k", &[1; 1000], at(0));
    let joined =
        cache.store_bytes(&key("k"), StoreMode::Append, b"x", &Attributes::default(), at(0));
    assert!(matches!(joined, Err(StoreError::Reserve(ReserveError::TooLarge { .. }))));
    assert!(cache.get(&key("k"), at(0)).is_some());
    for bad in [
        CacheConfig { max_item_bytes: 0, ..config(4) },
        CacheConfig { max_item_bytes: (1 << 20) + 1, ..config(4) },
        CacheConfig { max_leased_permille: 1001, ..config(4) },
        CacheConfig { index_entries: Some(u64::MAX), ..config(4) },
        CacheConfig { memory_bytes: u64::MAX, ..config(4) },
        CacheConfig { memory_bytes: 1 << 47, index_entries: Some(8), ..config(4) },
    ] {
        assert!(Cache::open(&bad).is_err(), "{bad:?}");
    }
}

#[test]
fn names_are_listed_and_items_counted() {
    let cache = cache(4);
    let named = Attributes { flags: Kind::Name.flags(), ..Attributes::default() };
    for name in ["n/a", "n/b"] {
        cache.store_bytes(&key(name), StoreMode::Set, name.as_bytes(), &named, at(0)).unwrap();
    }
    set(&cache, "other", b"x", at(0));
    let images = cache.images(at(0));
    let mut names: Vec<_> = images.iter().map(Item::bytes).collect();
    names.sort_unstable();
    assert_eq!(names, [b"n/a", b"n/b"]);
    cache.delete(&key("n/a"), &DeleteRequest::default(), at(0)).unwrap();
    assert_eq!(cache.images(at(0)).len(), 1);
    let held = cache.held(&[key("n/a").index(), key("n/b").index(), key("other").index()], at(0));
    assert_eq!((held.items, held.bytes, held.missing), (2, 4, 1));
}
