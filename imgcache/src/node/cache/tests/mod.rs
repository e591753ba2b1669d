//! Tests of the cache as a whole.

mod expose;
mod meta;
mod model;
mod pressure;
mod quarantine;
mod reader;
mod restart;
mod semantics;
mod stress;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::time::Clock;
use super::{
    Attributes, BackingChoice, Cache, CacheConfig, Item, Key, Now, StoreMode, StoreOutcome,
};
use crate::node::lease::Asked;

const START: u32 = 1_700_000_000;

/// So many seconds after the start of a test.
fn at(seconds: u32) -> Now {
    Now { unix: START + seconds, monotonic: Duration::from_secs(1000 + u64::from(seconds)) }
}

fn config(mebibytes: u64) -> CacheConfig {
    CacheConfig {
        memory_bytes: mebibytes << 20,
        backing: BackingChoice::Small,
        populate: false,
        ..CacheConfig::default()
    }
}

fn cache(mebibytes: u64) -> Cache {
    Cache::open(&config(mebibytes)).unwrap().0
}

/// A clock for a cache with a quarantine, which else goes by the system's.
fn set_clock(cache: &Cache, now: Now) -> Arc<AtomicU64> {
    let clock = Arc::new(AtomicU64::new(0));
    put_clock(&clock, now);
    cache.lock().quarantine.set_clock(Clock::Set(Arc::clone(&clock)));
    clock
}

fn put_clock(clock: &AtomicU64, now: Now) {
    clock.store(u64::try_from(now.monotonic.as_nanos()).unwrap(), Ordering::Relaxed);
}

/// A lease to ask for.
fn lease(id: u64, ttl: Duration) -> Asked<'static> {
    Asked { id, ttl, owner: "test" }
}

fn key(name: impl AsRef<[u8]>) -> Key {
    Key::new(name.as_ref())
}

fn set(cache: &Cache, name: impl AsRef<[u8]>, content: &[u8], now: Now) -> u64 {
    let attributes = Attributes::default();
    match cache.store_bytes(&key(name), StoreMode::Set, content, &attributes, now) {
        Ok(StoreOutcome::Stored { cas }) => cas,
        other => panic!("{other:?}"),
    }
}

fn get(cache: &Cache, name: impl AsRef<[u8]>, now: Now) -> Option<Vec<u8>> {
    cache.get(&key(name), now).map(|item: Item| item.bytes().to_vec())
}

/// Content of which each part says what it is of.
fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
