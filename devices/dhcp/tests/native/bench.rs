//! Measures a group of servers under many clients: `dhcp-load [CLIENTS [MIRRORS [HOW]]]`, as root. HOW is `sync`, `kill`
//! or both.
#![allow(clippy::unwrap_used, missing_docs)]

// The tests use more of these than a measurement does.
#[allow(dead_code)]
mod load;
#[allow(dead_code)]
mod net;

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use dhcp::mirror::replica::Stage;
use load::Load;
use net::{Network, Node};

fn main() {
    let words: Vec<_> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "server") {
        return net::be_server();
    }
    let number = |at: usize, default| words.get(at).map_or(default, |word| word.parse().unwrap());
    let (clients, mirrors) = (number(0, 245), number(1, 1));
    let how = words.get(2).cloned().unwrap_or_default();
    let all = u8::try_from(mirrors + 1).unwrap();
    let network = Network::new(mirrors + 2);
    let folder = tempfile::tempdir().unwrap();
    let mut nodes = Vec::new();
    for (number, host) in (0..all).zip(&network.hosts) {
        let state = folder.path().join(number.to_string());
        let first = if number > 0 {
            ""
        } else if all > 1 {
            "first"
        } else {
            "alone"
        };
        let how = format!("{first} {how}");
        nodes.push(Node::start(host, number, &state, &how, all, &["server"]));
    }
    nodes[0].wait_for(Stage::Serving, mirrors);
    let load = Load::new(clients);
    let outcome = thread::scope(|scope| {
        let clients_host = network.hosts.last().unwrap();
        let copy = load.clone();
        let running = scope.spawn(move || clients_host.run(move || copy.run("eth0")));
        if how.contains("kill") {
            while load.done.load(Ordering::Relaxed) < clients / 3 {
                thread::sleep(Duration::from_millis(1));
            }
            nodes[0].kill();
        }
        running.join().unwrap()
    });
    let mut addresses: Vec<_> = outcome.leases.values().collect();
    addresses.sort();
    addresses.dedup();
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    let at = |part: usize| outcome.each.get(outcome.each.len() * part / 100).copied();
    println!(
        "{clients} clients, {mirrors} mirrors, {how:?}: {:.1} ms; {} leases, {} addresses, {} asked again; \
         each p50 {:.2} ms, p99 {:.2} ms; longest time without a lease {:.1} ms",
        millis(outcome.took),
        outcome.leases.len(),
        addresses.len(),
        outcome.retries,
        millis(at(50).unwrap_or_default()),
        millis(at(99).unwrap_or_default()),
        millis(outcome.gap),
    );
}
