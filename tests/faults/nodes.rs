//! Nodes that die, freeze, or say nonsense.

use std::io::Write;
use std::net::TcpStream;

use rustix::process::{Signal, kill_process};

use crate::cluster::{Cluster, IMAGE_BYTES};

/// One of three nodes dies when it has sent `percent` of what a load wants of it.
fn dies_at(percent: u64) {
    let cluster = Cluster::new(3);
    let victim = cluster.nodes[0].pid();
    let share = IMAGE_BYTES / 3;
    cluster.proxies[0].after(share * percent / 100, move || {
        kill_process(victim, Signal::KILL).unwrap();
    });
    let report = cluster.load("guest").complete();
    assert!(report["retries"].as_u64().unwrap() > 0, "it did not die in time: {report}");
    assert_eq!(report["chunks_from_origin"], 0);
    // And without it from the start.
    cluster.load("guest").complete();
}

#[test]
fn a_node_dies_at_the_beginning_of_a_load() {
    dies_at(10);
}

#[test]
fn a_node_dies_in_the_middle_of_a_load() {
    dies_at(50);
}

#[test]
fn a_node_dies_towards_the_end_of_a_load() {
    dies_at(85);
}

#[test]
fn a_frozen_node_is_left_for_the_other_replica_and_is_used_again() {
    let cluster = Cluster::new(3);
    let victim = cluster.nodes[1].pid();
    cluster.proxies[1].after(10 << 20, move || kill_process(victim, Signal::STOP).unwrap());
    let report = cluster.load("guest").complete();
    assert!(report["retries"].as_u64().unwrap() > 0, "{report}");
    // Frozen from the start: its connections open, and nothing comes.
    cluster.load("guest").complete();
    cluster.nodes[1].signal(Signal::CONT);
    let report = cluster.load("guest").complete();
    let name = cluster.proxies[1].address().to_string();
    let nodes = report["nodes"].as_array().unwrap();
    let back = nodes.iter().find(|node| node["name"] == name.as_str());
    assert!(back.is_some_and(|node| node["chunks"].as_u64() > Some(0)), "{report}");
}

#[test]
fn both_replicas_dead_is_an_error_that_names_the_nodes() {
    let cluster = Cluster::new(2);
    for node in &cluster.nodes {
        node.signal(Signal::KILL);
    }
    let words = cluster.load("guest").failed(8);
    for proxy in &cluster.proxies {
        assert!(words.contains(&proxy.address().to_string()), "{words}");
    }
}

#[test]
fn garbage_and_half_open_connections_do_not_disturb_loads() {
    let cluster = Cluster::new(2);
    let connect = || TcpStream::connect(cluster.nodes[0].address()).unwrap();
    let half_open: Vec<TcpStream> = (0..200).map(|_| connect()).collect();
    for (number, mut stream) in half_open.iter().enumerate() {
        let garbage: &[u8] = match number % 5 {
            0 => b"set unfinished 0 0 1000000\r\nab",
            1 => b"mg ",
            2 => &[0x80; 24],
            3 => b"get \x00\xff\x01\r\nms key 99999999999999999999\r\n",
            _ => b"",
        };
        stream.write_all(garbage).unwrap();
    }
    let mut flood = connect();
    let _ = flood.write_all(&b"nonsense without an end ".repeat(10_000));
    cluster.load("guest").complete();
    drop(half_open);
    cluster.load("guest").complete();
}

#[test]
fn a_node_that_drains_ends_when_the_load_has_and_the_next_load_does_without_it() {
    let mut cluster = Cluster::new(2);
    let victim = cluster.nodes[0].pid();
    cluster.proxies[0].after(20 << 20, move || kill_process(victim, Signal::TERM).unwrap());
    cluster.load("guest").complete();
    assert_eq!(cluster.nodes[0].wait(), Some(0));
    cluster.load("guest").complete();
}
