//! Many threads at once; each content tells whether it is whole.

use std::thread;

use super::super::{
    Arithmetic, ArithmeticOutcome, DeleteRequest, Direction, Expires, GetRequest, StoreError,
};
use super::*;

const THREADS: u64 = 8;
const ROUNDS: u64 = if cfg!(debug_assertions) { 3_000 } else { 30_000 };

/// The key's number, the length, and bytes made of both.
fn fill(bytes: &mut [u8], n: u64, salt: u64) {
    let seed = n.wrapping_mul(31).wrapping_add(salt);
    let [byte, ..] = seed.to_le_bytes();
    bytes.fill(byte);
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    bytes[8..16].copy_from_slice(&salt.to_le_bytes());
}

fn check(bytes: &[u8], n: u64) {
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(number(0), n);
    let [byte, ..] = n.wrapping_mul(31).wrapping_add(number(8)).to_le_bytes();
    assert!(bytes[16..].iter().all(|b| *b == byte), "content of key {n} is of several");
}

fn run(config: &CacheConfig) {
    let cache = Cache::open(config).unwrap().0;
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let cache = &cache;
            scope.spawn(move || {
                let mut kept: Vec<(u64, Item)> = Vec::new();
                for round in 0..ROUNDS {
                    let random = (round * THREADS + thread + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    let (n, action) = ((random >> 24) % 200, (random >> 50) % 16);
                    let now = at(u32::try_from(round / 100).unwrap());
                    let key = key(n.to_le_bytes());
                    match action {
                        0..5 => {
                            let length =
                                16 + usize::try_from((random >> 32) % (20 << (n % 12))).unwrap();
                            let Ok(mut content) = cache.reserve(length, now) else { continue };
                            fill(&mut content, n, random);
                            let attributes = Attributes {
                                expires: Expires::at(now.unix + 1 + u32::from(action == 0) * 100),
                                ..Attributes::default()
                            };
                            match cache.store(&key, StoreMode::Set, content, &attributes, now) {
                                Ok(StoreOutcome::Stored { .. })
                                | Err(StoreError::TableFull { .. }) => (),
                                other => panic!("{other:?}"),
                            }
                        }
                        5 => {
                            cache.delete(&key, &DeleteRequest::default(), now).unwrap();
                        }
                        6 => {
                            let keys: Vec<_> = (0..20_u64)
                                .map(|k| Key::new(&(n + k).to_le_bytes()).index())
                                .collect();
                            let _ =
                                cache.lease(&lease(thread, Duration::from_millis(500)), &keys, now);
                        }
                        7 => {
                            cache.release(thread, 0);
                            cache.maintenance(now);
                        }
                        8 => {
                            let touch = Some(Expires::at(now.unix + 50));
                            let request = GetRequest { touch, ..GetRequest::default() };
                            if let Some(item) = cache.get_with(&key, &request, now).unwrap() {
                                check(item.bytes(), n);
                            }
                        }
                        _ => {
                            if let Some(item) = cache.get(&key, now) {
                                check(item.bytes(), n);
                                kept.push((n, item));
                            }
                        }
                    }
                    if kept.len() > 3 {
                        let (n, item) = kept.remove(0);
                        check(item.bytes(), n);
                    }
                }
            });
        }
    });
    cache.flush_all(0, at(100_000));
    let mut released = cache.maintenance(at(200_000)).released;
    // The quarantine goes by the system's clock.
    thread::sleep(config.quarantine);
    released += cache.maintenance(at(200_001)).released;
    assert_eq!(released > 0, !config.quarantine.is_zero(), "{released} bytes had waited");
    let counters = cache.counters();
    assert_eq!((counters.items, counters.used, counters.leased), (0, 0, 0), "{counters:?}");
    assert_eq!(counters.free_slabs, counters.slabs);
}

#[test]
fn content_is_always_whole() {
    run(&config(8));
}

#[test]
fn content_is_always_whole_in_a_crowded_index_with_quarantine() {
    let quarantine = Duration::from_millis(1);
    run(&CacheConfig { index_entries: Some(64), quarantine, ..config(8) });
}

#[test]
fn no_change_is_lost() {
    let cache = cache(8);
    set(&cache, "sum", b"0", at(0));
    set(&cache, "text", b"", at(0));
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let cache = &cache;
            scope.spawn(move || {
                let request = Arithmetic {
                    direction: Direction::Increment,
                    delta: 3,
                    initial: None,
                    touch: None,
                    compare: None,
                    cas: None,
                };
                for _ in 0..200 {
                    let sum = cache.arithmetic(&key("sum"), &request, at(0)).unwrap();
                    assert!(matches!(sum, ArithmeticOutcome::Value { .. }));
                    let part = thread.to_string();
                    let attributes = Attributes::default();
                    cache
                        .store_bytes(
                            &key("text"),
                            StoreMode::Append,
                            part.as_bytes(),
                            &attributes,
                            at(0),
                        )
                        .unwrap();
                }
            });
        }
    });
    assert_eq!(get(&cache, "sum", at(0)).unwrap(), (THREADS * 600).to_string().as_bytes());
    let text = get(&cache, "text", at(0)).unwrap();
    for thread in b'0'..b'8' {
        let parts = text.iter().filter(|byte| **byte == thread);
        assert_eq!(parts.map(|_| 1).sum::<u32>(), 200);
    }
}
