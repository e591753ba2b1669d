//! Clients that are killed, and many at once.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;

/// Loads that are killed, in all.
const KILLED: u64 = 1000;

#[test]
fn a_thousand_killed_clients_leak_nothing() {
    let cluster = Cluster::new(2);
    cluster.load("guest").complete();
    let before: Vec<u64> = cluster.nodes.iter().map(used).collect();
    thread::scope(|scope| {
        for worker in 0..2 {
            let cluster = &cluster;
            scope.spawn(move || {
                for number in 0..KILLED / 2 {
                    let mut command = cluster.load_command("guest", &[]);
                    command.stdout(Stdio::null()).stderr(Stdio::null());
                    let mut child = command.spawn().unwrap();
                    // At all points of a load, also before its first connection.
                    thread::sleep(Duration::from_micros((number * 37 + worker * 19) % 40 * 1000));
                    child.kill().unwrap();
                    child.wait().unwrap();
                }
            });
        }
    });
    let begun = Instant::now();
    let settled = || {
        cluster.nodes.iter().zip(&before).all(|(node, before)| {
            // This one asks as well.
            node.number("", "curr_connections") <= 1
                && node.number("placement", "leased") == 0
                && used(node) == *before
        })
    };
    // Leases of those that could not release them run out.
    while !settled() {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "{:?}",
            cluster.nodes[0].stats("placement")
        );
        thread::sleep(Duration::from_millis(200));
    }
    cluster.load("guest").complete();
}

/// Bytes of items that a node holds.
fn used(node: &crate::common::node::Node) -> u64 {
    node.number("", "bytes")
}

#[test]
fn twenty_clients_at_once_get_all_of_it() {
    let cluster = Cluster::new(3);
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| cluster.load("guest").complete());
        }
    });
}
