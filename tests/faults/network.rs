//! Links that go down, partitions, and nodes that flap.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::proxy::Network;

#[test]
fn a_link_that_goes_down_for_a_moment_in_a_load() {
    let cluster = Cluster::new(3);
    let (down, up) = (cluster.proxies[0].setter(), cluster.proxies[0].setter());
    cluster.proxies[0].after(10 << 20, move || {
        down(Network::Silent);
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            up(Network::Works);
        });
    });
    cluster.load("guest").complete();
}

#[test]
fn a_link_that_goes_down_for_good_in_a_load() {
    let cluster = Cluster::new(3);
    let down = cluster.proxies[2].setter();
    cluster.proxies[2].after(20 << 20, move || down(Network::Silent));
    let report = cluster.load("guest").complete();
    assert!(report["retries"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn a_partition_of_one_replica() {
    let cluster = Cluster::new(2);
    cluster.proxies[0].set(Network::Silent);
    let report = cluster.load("guest").complete();
    let other = cluster.proxies[1].address().to_string();
    let nodes = report["nodes"].as_array().unwrap();
    assert!(
        nodes.iter().all(|node| node["name"] == other.as_str() || node["chunks"] == 0),
        "{report}"
    );
}

#[test]
fn a_partition_of_all_replicas_is_an_error_in_time() {
    let cluster = Cluster::new(2);
    for proxy in &cluster.proxies {
        proxy.set(Network::Silent);
    }
    let words = cluster.load("guest").failed(8);
    assert!(words.contains("guest"), "{words}");
}

#[test]
fn a_node_that_flaps() {
    let cluster = Cluster::new(3);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for network in [Network::Refuses, Network::Works] {
                    cluster.proxies[0].set(network);
                    thread::sleep(Duration::from_millis(60));
                }
            }
        });
        for _ in 0..5 {
            cluster.load("guest").complete();
        }
        done.store(true, Ordering::Relaxed);
    });
    // It was not asked without pause while it failed.
    assert!(cluster.proxies[0].connections() < 500, "{}", cluster.proxies[0].connections());
}
