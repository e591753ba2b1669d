//! Remote readers' rule on the live index, while it is written.

use std::collections::HashSet;
use std::convert::Infallible;
use std::hint;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use super::super::DeleteRequest;
use super::*;
use crate::index::IndexKey;
use crate::index::reader::{Bucket, BucketSource, Lookup};
use crate::index::words::IndexWords;

/// Reads the words one by one, as they are just then.
struct Live<'a>(IndexWords<'a>);

impl BucketSource for Live<'_> {
    type Error = Infallible;

    fn read(&mut self, buckets: [u64; 2], out: &mut [Bucket; 2]) -> Result<(), Infallible> {
        BucketSource::read(&mut self.0, buckets, out)
    }

    /// A tenth of it: a sleep takes far longer than asked for, and a million are needed.
    fn pause(&mut self, time: Duration) {
        let until = Instant::now() + time / 10;
        while Instant::now() < until {
            hint::spin_loop();
        }
    }
}

pub(super) fn lookup(cache: &Cache, key: IndexKey) -> Lookup {
    let Ok(found) = cache.exported().lookup(&mut Live(cache.arena.index()), key);
    found
}

const KEYS: u64 = 48;
const VERSIONS: u64 = 4;
const LOOKUPS: u64 = if cfg!(debug_assertions) { 200_000 } else { 1_500_000 };

fn name(n: u64) -> String {
    format!("key {n}")
}

/// Of a length of its own class for each version, so that items move in memory too.
fn version(n: u64, version: u64) -> Vec<u8> {
    content(n << 8 | version, 200 << version)
}

fn hash(content: &[u8]) -> u128 {
    twox_hash::XxHash3_128::oneshot(content)
}

#[test]
fn no_wrong_entry_is_accepted_and_none_that_only_moves_is_missed() {
    // Eight buckets: crowded, so entries are written over often.
    let config = CacheConfig { index_entries: Some(64), ..config(8) };
    let cache = Cache::open(&config).unwrap().0;
    let known: Vec<HashSet<(u128, u32)>> = (0..KEYS)
        .map(|n| {
            let versions = (0..VERSIONS).map(|v| version(n, v));
            versions.map(|c| (hash(&c), u32::try_from(c.len()).unwrap())).collect()
        })
        .collect();
    // A third is only ever replaced; the others are deleted too.
    let stays = |n: u64| n.is_multiple_of(3);
    for n in 0..KEYS {
        set(&cache, name(n), &version(n, 0), at(0));
    }
    let stop = AtomicBool::new(false);
    let [mut found, mut absent, mut asked] = [0_u64; 3];
    thread::scope(|scope| {
        scope.spawn(|| {
            let contents: Vec<Vec<u8>> =
                (0..KEYS * VERSIONS).map(|n| version(n / VERSIONS, n % VERSIONS)).collect();
            for round in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let n = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
                let (k, v) = (n % KEYS, n / KEYS % VERSIONS);
                let content = &contents[usize::try_from(k * VERSIONS + v).unwrap()];
                if stays(k) || n & 1 << 40 == 0 {
                    set(&cache, name(k), content, at(0));
                } else {
                    cache.delete(&key(name(k)), &DeleteRequest::default(), at(0)).unwrap();
                }
                if round.is_multiple_of(7) {
                    cache.touch(&key(name(k)), super::super::Expires::at(START + 99), at(0));
                }
            }
        });
        let keys: Vec<IndexKey> = (0..KEYS).map(|n| key(name(n)).index()).collect();
        for round in 0..LOOKUPS {
            let n = round * 7 % KEYS;
            let at_key = usize::try_from(n).unwrap();
            match lookup(&cache, keys[at_key]) {
                Lookup::Found(entry) => {
                    found += 1;
                    assert_eq!(entry.key, keys[at_key]);
                    assert!(known[at_key].contains(&(entry.hash, entry.length)), "{entry:?}");
                    assert!(cache.exported().holds(&entry));
                }
                Lookup::Absent => {
                    absent += 1;
                    assert!(!stays(n), "key {n} was always there");
                }
                Lookup::AskNode => {
                    asked += 1;
                    assert!(!stays(n) || get(&cache, name(n), at(0)).is_some());
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{found} found, {absent} absent, {asked} asked");
    assert!(found > LOOKUPS / 2);
    assert_eq!(cache.counters().counts.table_evictions, 0, "the test needs all keys to fit");
}

/// A reader from afar finds an entry and then reads the content where it says, while the node writes
/// over what was removed as soon as it may, by the real clock.
#[test]
fn what_was_found_can_be_read_for_as_long_as_the_quarantine() {
    const QUARANTINE: Duration = Duration::from_millis(200);
    const READS: usize = 2000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("arena");
    let file = Some(path.clone());
    let config = CacheConfig { quarantine: QUARANTINE, file, ..config(4) };
    let cache = Cache::open(&config).unwrap().0;
    // As a device reads: not through this process's mapping.
    let afar = std::fs::File::open(path).unwrap();
    let (stop, stored) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut read, mut torn) = (0, None);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let attributes = Attributes::default();
                let bytes = content(round, 100_000);
                let (key, now) = (key(name(round % 8)), Now::system());
                if cache.store_bytes(&key, StoreMode::Set, &bytes, &attributes, now).is_ok() {
                    stored.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let mut bytes = Vec::new();
        for round in 0_u64.. {
            if read == READS && stored.load(Ordering::Relaxed) > 200 {
                break;
            }
            let began = Instant::now();
            let Lookup::Found(entry) = lookup(&cache, key(name(round % 8)).index()) else {
                continue;
            };
            // Long enough for the node to come by if it did not wait.
            thread::sleep(Duration::from_micros(300));
            bytes.resize(usize::try_from(entry.length).unwrap(), 0);
            afar.read_exact_at(&mut bytes, entry.offset).unwrap();
            // Who was held up for longer was promised nothing.
            if began.elapsed() < QUARANTINE {
                if hash(&bytes) != entry.hash {
                    torn = Some((read, entry));
                    break;
                }
                read = (read + 1).min(READS);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(torn, None);
}

#[test]
fn what_is_removed_is_not_found_and_its_entry_is_used_again() {
    let cache = cache(4);
    set(&cache, "k", b"x", at(0));
    let Lookup::Found(entry) = lookup(&cache, key("k").index()) else { panic!() };
    assert_eq!((entry.length, entry.hash), (1, hash(b"x")));
    cache.delete(&key("k"), &DeleteRequest::default(), at(0)).unwrap();
    assert_eq!(lookup(&cache, key("k").index()), Lookup::AskNode);
    set(&cache, "k", b"y", at(0));
    assert!(matches!(lookup(&cache, key("k").index()), Lookup::Found(_)));
    cache.flush_all(0, at(0));
    assert_eq!(lookup(&cache, key("k").index()), Lookup::AskNode);
    assert_eq!(lookup(&cache, key("never").index()), Lookup::Absent);
}
