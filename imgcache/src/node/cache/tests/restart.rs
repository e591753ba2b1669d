//! A node that is started again with its file.

use std::fs::{self, File, OpenOptions};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::super::{CacheError, Expires, GetRequest, OpenReport, OpenStep, Progress};
use super::*;
use crate::index::reader::Lookup;
use crate::node::arena::ArenaError;

fn with_file(path: &Path) -> CacheConfig {
    let file = Some(path.to_owned());
    CacheConfig { file, index_entries: Some(256), ..config(8) }
}

fn open(path: &Path, seconds: u32) -> (Cache, OpenReport) {
    Cache::open_at(&with_file(path), at(seconds)).unwrap()
}

fn length(n: u32) -> usize {
    [100, 500, 4000, 1_000_000][usize::try_from(n % 4).unwrap()]
}

/// A file with ten items of four sizes, of which the last expires at second 50.
fn filled(folder: &Path) -> PathBuf {
    let path = folder.join("arena");
    let (cache, report) = open(&path, 0);
    assert_eq!((report.restored, report.damaged), (0, 0));
    for n in 0..10 {
        let expires = if n == 9 { Expires::at(START + 50) } else { Expires::NEVER };
        let attributes = Attributes { flags: 100 + n, expires, ..Attributes::default() };
        let content = content(n.into(), length(n));
        cache
            .store_bytes(
                &key([u8::try_from(n).unwrap()]),
                StoreMode::Set,
                &content,
                &attributes,
                at(0),
            )
            .unwrap();
    }
    path
}

fn found(cache: &Cache, now: Now) -> Vec<u8> {
    let quiet = GetRequest { quiet: true, ..GetRequest::default() };
    let there = (0..10_u8).filter(|n| {
        let item = cache.get_with(&key([*n]), &quiet, now).unwrap();
        if let Some(item) = &item {
            assert!(item.bytes() == content((*n).into(), length((*n).into())), "content of {n}");
            assert_eq!(item.flags(), 100 + u32::from(*n));
            assert!(matches!(reader::lookup(cache, key([*n]).index()), Lookup::Found(_)));
        }
        item.is_some()
    });
    there.collect()
}

#[test]
fn items_are_there_again_under_another_boot_id() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path());
    let (cache, first) = open(&path, 1);
    assert_eq!((first.restored, first.expired, first.damaged), (10, 0, 0));
    assert_eq!(found(&cache, at(1)), (0..10).collect::<Vec<_>>());
    let counters = cache.counters();
    assert_eq!((counters.items, counters.restored), (10, 10));
    let newest = cache.get(&key([9]), at(1)).unwrap().cas();
    assert!(set(&cache, "new", b"x", at(1)) > newest);
    cache.delete(&key([3]), &super::super::DeleteRequest::default(), at(1)).unwrap();
    drop(cache);
    let (cache, second) = open(&path, 60);
    assert_ne!(first.boot_id, second.boot_id);
    assert_eq!((second.restored, second.expired, second.damaged), (9, 1, 0));
    assert_eq!(found(&cache, at(60)), [0, 1, 2, 4, 5, 6, 7, 8]);
    // All memory can be used: none was lost, none is used twice.
    cache.flush_all(0, at(60));
    cache.maintenance(at(60));
    assert_eq!((cache.counters().used, cache.counters().free_slabs), (0, 4));
}

#[test]
fn a_taking_over_that_was_ended_twice_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path());
    // As if it had been killed: after eight entries, after four, and before the first.
    for batches in [2, 1, 0] {
        let mut left = batches;
        let mut watch = |progress: Progress| match progress.step {
            OpenStep::Verify if left == 0 => ControlFlow::Break(()),
            OpenStep::Verify => {
                left -= 1;
                ControlFlow::Continue(())
            }
            OpenStep::Scan => ControlFlow::Continue(()),
        };
        let ended = Cache::open_watched(&with_file(&path), at(0), &mut watch).map(|_| ());
        assert!(matches!(ended, Err(CacheError::Stopped)), "{ended:?}");
    }
    let (cache, report) = open(&path, 1);
    assert_eq!((report.restored, report.damaged), (10, 0));
    assert_eq!(found(&cache, at(1)), (0..10).collect::<Vec<_>>());
    drop(cache);
    // This time it served, so the next start has an id of its own.
    assert_ne!(open(&path, 1).1.boot_id, report.boot_id);
}

#[test]
fn no_cas_value_is_given_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path());
    let chosen = |cas| Attributes { cas: Some(cas), ..Attributes::default() };
    let mut given = 0;
    for _ in 0..3 {
        let (cache, _) = open(&path, 0);
        let first = set(&cache, "k", b"x", at(0));
        assert!(first > given, "{first} after {given}");
        // The largest one is given to what is removed, and others choose larger ones.
        for (name, cas) in [("wrap", u64::MAX), ("half", 1 << 63)] {
            let mode = StoreMode::Set;
            cache.store_bytes(&key(name), mode, b"x", &chosen(cas), at(0)).unwrap();
        }
        given = set(&cache, "gone", b"x", at(0));
        cache.delete(&key("gone"), &super::super::DeleteRequest::default(), at(0)).unwrap();
    }
    // Of some there is no trace at all.
    let (cache, _) = open(&path, 0);
    for n in 0..100 {
        given = set(&cache, "k", &content(n, 10), at(0));
    }
    cache.store_bytes(&key("k"), StoreMode::Set, b"x", &chosen(5), at(0)).unwrap();
    drop(cache);
    assert!(set(&open(&path, 0).0, "k", b"x", at(0)) > given);
}

#[test]
fn a_file_is_one_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path());
    let first = open(&path, 0);
    let second = Cache::open(&with_file(&path)).map(|_| ());
    assert!(matches!(second, Err(CacheError::Arena(ArenaError::InUse(_)))), "{second:?}");
    drop(first);
    open(&path, 0);
}

/// Where in the file a content is.
fn position(path: &Path, content: &[u8]) -> u64 {
    let bytes = fs::read(path).unwrap();
    bytes.windows(content.len()).position(|window| window == content).unwrap() as u64
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
}

#[test]
fn what_is_damaged_is_dropped_and_the_rest_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path());
    flip(&path, position(&path, &content(5, 500)) + 50);
    let entry = position(&path, &key([7]).index().0);
    flip(&path, entry + 33);
    let (cache, report) = open(&path, 0);
    assert_eq!((report.restored, report.damaged), (8, 2));
    assert_eq!(found(&cache, at(0)), [0, 1, 2, 3, 4, 6, 8, 9]);
    drop(cache);
    let (_, report) = open(&path, 0);
    assert_eq!((report.restored, report.damaged), (8, 0), "damage is counted once");
}

#[test]
fn a_file_of_something_else_is_refused_and_both_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path());
    let refused = |config: &CacheConfig| match Cache::open(config) {
        Err(CacheError::Arena(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let larger = CacheConfig { memory_bytes: 16 << 20, ..with_file(&path) };
    let text = refused(&larger);
    assert!(text.contains("holds 8 MiB in 256") && text.contains("16 MiB in 256"), "{text}");
    let finer = CacheConfig { index_entries: Some(512), ..with_file(&path) };
    assert!(refused(&finer).contains("8 MiB in 512"));
    OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    let text = refused(&with_file(&path));
    assert!(text.contains("has 1048576 bytes") && text.contains("10485760"), "{text}");
    fs::write(&path, vec![7; 10_000]).unwrap();
    assert!(refused(&with_file(&path)).contains("is not an arena"));
    // Zeros, but not of a size that this node would have made.
    fs::write(&path, vec![0; 10_000]).unwrap();
    assert!(refused(&with_file(&path)).contains("is not an arena"));
    File::create(&path).unwrap();
    assert_eq!(open(&path, 0).1.restored, 0);
    let text = refused(&with_file(&folder.path().join("no/arena")));
    assert!(text.contains("cannot open") && text.contains("no/arena"), "{text}");
}

#[test]
fn another_version_is_refused() {
    use crate::node::arena::header::{HEADER_BYTES, Header};
    use std::sync::atomic::{AtomicU64, Ordering};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("arena");
    let page: Vec<AtomicU64> = (0..HEADER_BYTES / 8).map(|_| AtomicU64::new(0)).collect();
    Header { version: 9, sequence: 1, boot_id: 1, previous: 0, buckets: 32, slabs: 4 }.write(&page);
    let bytes: Vec<u8> =
        page.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
    fs::write(&path, bytes).unwrap();
    let refused = Cache::open(&with_file(&path)).unwrap_err().to_string();
    assert!(refused.contains("has version 9") && refused.contains("writes 1"), "{refused}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Bytes changed anywhere: what is still found is whole, and the memory is all there.
    #[test]
    fn garbage_never_panics_and_is_never_served(
        changes in prop::collection::vec((0..40_000_u64, any::<u64>()), 1..40),
        content in prop::collection::vec((0..4_u64, 0..20_000_u64), 0..10),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = filled(folder.path());
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        for (offset, word) in changes {
            // Behind the header.
            file.write_all_at(&word.to_le_bytes(), 4096 + offset % 16_384).unwrap();
        }
        for (slab, offset) in content {
            file.write_all_at(&[1], ((slab + 1) << 21) + offset).unwrap();
        }
        let (cache, report) = open(&path, 0);
        prop_assert_eq!(found(&cache, at(0)).len() as u64, report.restored);
        cache.flush_all(0, at(0));
        cache.maintenance(at(0));
        prop_assert_eq!(cache.counters().used, 0);
    }
}
