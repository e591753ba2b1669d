//! Hosts with several RDMA devices. Of those of `scripts/lib/rxe.sh 2` neither reaches the other, so that whoever
//! takes the wrong one reads nothing.

use crate::cache::{Cache, chunks};

#[test]
#[ignore = "needs two RDMA devices: scripts/test runs it in the lab"]
fn the_device_is_used_that_leads_to_the_node() {
    for (address, device) in [("10.98.1.1:0", "rxe1"), ("10.98.0.1:0", "rxe0")] {
        let cache = Cache::with(1, &["--listen", address, "--rdma", "auto"]);
        let stats = cache.nodes[0].stats("rdma");
        assert!(stats.contains(&("device".into(), device.into())), "{stats:?}");
        let report = cache.load(&["--transport", "rdma"]);
        assert!(chunks(&report, &cache.nodes[0], "rdma") > 0, "{report}");
        assert_eq!(report["nodes"][0]["device"], device, "{report}");
        assert!(report["nodes"][0]["link_reason"].is_null(), "{report}");
    }
}

#[test]
#[ignore = "needs two RDMA devices: scripts/test runs it in the lab"]
fn where_no_device_has_the_address_the_report_says_so() {
    let cache = Cache::with(1, &["--listen", "127.0.0.1:0", "--rdma", "auto"]);
    let report = cache.load(&["--transport", "rdma"]);
    assert!(chunks(&report, &cache.nodes[0], "rdma") > 0, "{report}");
    let reason = report["nodes"][0]["link_reason"].as_str().unwrap();
    assert!(reason.contains("no device has the address 127.0.0.1"), "{reason}");
}

#[test]
#[ignore = "needs two RDMA devices: scripts/test runs it in the lab"]
fn a_node_that_is_not_reached_by_the_device_that_leads_to_it_is_read_by_tcp() {
    let cache = Cache::with(1, &["--listen", "10.98.1.1:0", "--rdma", "rxe0"]);
    let report = cache.load(&[]);
    assert!(chunks(&report, &cache.nodes[0], "tcp") > 0, "{report}");
    let reason = report["nodes"][0]["link_reason"].as_str().unwrap();
    assert!(reason.contains("rdma: RDMA: the other side does not answer"), "{reason}");
}
