//! Memory that others write into by themselves.

use super::super::WritesEnded;
use super::*;

const LARGE: usize = 1 << 20;

#[test]
fn what_is_exposed_comes_back_by_proof_and_never_by_time() {
    let config = CacheConfig { exported: true, ..config(2) };
    let cache = Cache::open(&config).unwrap().0;
    let clock = set_clock(&cache, at(0));
    let mut exposed: Vec<_> =
        (0..2).map(|_| cache.reserve(LARGE, at(0)).unwrap().expose()).collect();
    let counters = cache.counters();
    assert_eq!((counters.reserved, counters.parked), (2 << 20, 0));
    assert_eq!((exposed[0].length(), exposed[1].length()), (LARGE, LARGE));
    assert_ne!(exposed[0].offset(), exposed[1].offset());
    let (first, second) = (exposed[0].id(), exposed[1].id());

    // The client is gone: nobody waits for its writes any more, but they may come.
    drop(exposed.remove(0));
    put_clock(&clock, at(1_000_000));
    cache.maintenance(at(1_000_000));
    assert!(cache.reserve(1, at(1_000_000)).is_err());
    let counters = cache.counters();
    assert_eq!((counters.used, counters.reserved, counters.parked), (2 << 20, 1 << 20, 1));
    // Not for the proof of another one, of which there is still the exposure.
    assert!(!cache.free_exposed(WritesEnded::of(second)));
    assert!(cache.reserve(1, at(1_000_000)).is_err());
    assert!(cache.free_exposed(WritesEnded::of(first)));
    assert!(!cache.free_exposed(WritesEnded::of(first)), "once only");
    // It was never published, so it need not wait.
    let other = cache.reserve(LARGE, at(1_000_000)).unwrap();
    assert_eq!(cache.counters().parked, 0);

    let exposed = exposed.remove(0).take_back(WritesEnded::of(first)).unwrap_err();
    let mut back = exposed.take_back(WritesEnded::of(second)).unwrap();
    back.fill(7);
    cache.store(&key("k"), StoreMode::Set, back, &Attributes::default(), at(1_000_000)).unwrap();
    assert!(get(&cache, "k", at(1_000_000)).unwrap() == vec![7; LARGE]);
    drop(other);
    assert_eq!((cache.counters().reserved, cache.counters().parked), (0, 0));
}
