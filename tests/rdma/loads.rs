//! Loads that go well.

use std::collections::HashMap;
use std::sync::Mutex;

use imgcache::transport::ChunkRead;

use crate::cache::{Cache, chunks, queues, resources, wait};
use crate::common::guest::boot;
use crate::common::is_long;
use crate::loading::{RDMA, chunks_of, length, session};

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn all_chunks_come_by_rdma_from_both_nodes_and_nothing_is_left_behind() {
    let cache = Cache::new(2);
    cache.load(&[]);
    wait("all queues to end", || cache.nodes.iter().all(|node| queues(node) == 0));
    let before = resources();
    for _ in 0..5 {
        let report = cache.load(&["--transport", "rdma"]);
        let all = report["chunks_from_nodes"].as_u64().unwrap();
        let by_rdma: u64 = cache.nodes.iter().map(|node| chunks(&report, node, "rdma")).sum();
        assert_eq!(by_rdma, all, "{report}");
        assert!(cache.nodes.iter().all(|node| chunks(&report, node, "rdma") > 0), "{report}");
        assert_eq!((&report["misses"], &report["damaged"]), (&0.into(), &0.into()), "{report}");
    }
    wait("all queues to end", || cache.nodes.iter().all(|node| queues(node) == 0));
    wait("the device to be as before", || resources() == before);
    // All leases were given back, and all that was read was told.
    for node in &cache.nodes {
        assert_eq!(node.number("placement", "leased"), 0);
    }
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn a_guest_boots_from_memory_that_was_filled_by_rdma() {
    let cache = Cache::new(2);
    std::fs::remove_dir_all(cache.bench.store()).unwrap();
    // Its self-test compares its ramdisk with the digest that it was made with, each time.
    for _ in 0..if is_long() { 20 } else { 2 } {
        let booted = boot(&cache.bench, "guest", &["--cache", &cache.url(), "--transport", "rdma"]);
        assert_eq!(booted.code, Some(0), "{booted:#?}");
        booted.self_test();
    }
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn memory_of_the_same_host_is_read_in_place_and_without_it_by_rdma() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("node").to_str().unwrap().to_owned();
    let cache = Cache::with(1, &["--rdma", crate::cache::DEVICE, "--unix", &socket]);
    let report = cache.load(&[]);
    assert!(chunks(&report, &cache.nodes[0], "shared") > 0, "{report}");
    std::fs::remove_file(&socket).unwrap();
    let report = cache.load(&[]);
    assert!(chunks(&report, &cache.nodes[0], "rdma") > 0, "{report}");
    let reason = report["nodes"][0]["link_reason"].as_str().unwrap();
    assert!(reason.contains("shared:"), "{reason}");
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn chunks_are_verified_where_they_stay_and_no_copy_of_them_passes_through_a_socket() {
    let cache = Cache::new(1);
    let session = session(&cache.url(), RDMA);
    let manifest = session.manifest().clone();
    let chunks = chunks_of(&*session);
    let bytes: usize = chunks.iter().map(length).sum();
    let mut memory = vec![0_u8; bytes];
    let mut places = HashMap::new();
    let mut rest = &mut memory[..];
    let mut reads = Vec::new();
    for chunk in &chunks {
        let (buffer, behind) = std::mem::take(&mut rest).split_at_mut(length(chunk));
        places.insert(chunk.index, buffer.as_ptr().addr());
        reads.push(ChunkRead { index: chunk.index, key: chunk.entry.key, buffer });
        rest = behind;
    }
    let sent = cache.nodes[0].number("", "bytes_written");
    let seen = Mutex::new(0);
    session
        .fetch(reads, &|index, content| {
            // What is verified is not moved afterwards, and was not moved before: the device has put
            // it there.
            assert_eq!(places[&index], content.as_ptr().addr());
            *seen.lock().unwrap() += content.len();
            manifest.chunk(index).is_some_and(|chunk| chunk.entry.has_key(content))
        })
        .unwrap();
    assert_eq!(*seen.lock().unwrap(), bytes);
    let report = session.cache_report().unwrap();
    assert_eq!(report.nodes[0].by.rdma, u64::try_from(chunks.len()).unwrap());
    let sent = cache.nodes[0].number("", "bytes_written") - sent;
    assert!(sent < 64 << 10, "the node has sent {sent} bytes by TCP");
    let mut rest = &memory[..];
    for chunk in &chunks {
        let (content, behind) = rest.split_at(length(chunk));
        assert!(chunk.entry.has_key(content));
        rest = behind;
    }
}
