//! The interface below the device of a host that loads goes down; TCP goes by another.

use std::thread::sleep;
use std::time::{Duration, Instant};

use imgcache::transport::cluster::{CacheReport, LinkChoice, LinkCounts};

use crate::cache::{Cache, run, wait};
use crate::loading::{DEADLINE, load, session};

/// The interface below the device.
const INTERFACE: &str = "roce0";

fn set(state: &str) {
    run("ip", &["link", "set", INTERFACE, state]);
}

/// Sets the interface up again, whatever has failed.
struct Up;

impl Drop for Up {
    fn drop(&mut self) {
        set("up");
    }
}

/// Chunks that came by RDMA, and by TCP.
fn by(report: &CacheReport) -> (u64, u64) {
    let sum = |(rdma, tcp), by: &LinkCounts| (rdma + by.rdma, tcp + by.tcp);
    report.nodes.iter().map(|node| &node.by).fold((0, 0), sum)
}

/// Why not all came by RDMA.
fn reasons(report: &CacheReport) -> String {
    let reasons = report.nodes.iter().filter_map(|node| node.link_reason.as_deref());
    reasons.collect::<Vec<_>>().join(", ")
}

/// A load of all chunks, in the middle of which something happens.
fn load_and(cache: &Cache, then: &(dyn Fn() + Sync)) -> CacheReport {
    let session = session(&cache.url(), LinkChoice::Auto);
    let begun = Instant::now();
    let report = load(&*session, 30, then);
    assert!(begun.elapsed() < DEADLINE);
    report
}

/// Waits until loads come by RDMA alone again.
fn recovers(cache: &Cache) {
    wait("RDMA to work again", || {
        let (by_rdma, by_tcp) = by(&load_and(cache, &|| ()));
        by_rdma > 0 && by_tcp == 0
    });
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn a_load_whose_interface_goes_down_ends_by_tcp_and_says_why() {
    let cache = Cache::new(2);
    let up = Up;
    let report = load_and(&cache, &|| set("down"));
    let (by_rdma, by_tcp) = by(&report);
    assert!(by_rdma > 0 && by_tcp > 0, "{report:?}");
    assert!(reasons(&report).contains("rdma:"), "{report:?}");
    // And without it from the start.
    let report = load_and(&cache, &|| ());
    assert_eq!(by(&report).0, 0, "{report:?}");
    // With a second device, which does not lead to the nodes, they say why.
    let words = reasons(&report);
    assert!(words.contains("it has no link") || words.contains("unreachable"), "{words}");
    drop(up);
    recovers(&cache);
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn an_interface_that_is_down_for_a_moment_costs_no_load() {
    let cache = Cache::new(2);
    for milliseconds in [50, 1000] {
        let _up = Up;
        let report = load_and(&cache, &|| {
            set("down");
            sleep(Duration::from_millis(milliseconds));
            set("up");
        });
        assert_eq!((report.damaged, report.misses), (0, 0), "{report:?}");
    }
    recovers(&cache);
}
