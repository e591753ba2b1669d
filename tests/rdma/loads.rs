//! Loads that go well.

use crate::cache::{Cache, chunks, queues, resources, wait};
use crate::common::guest::boot;

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
    for _ in 0..2 {
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
