//! Nodes that die, freeze, forget, or hold something else: the image arrives, or the error says why.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use imgcache::client::LoadError;
use imgcache::transport::TransportError;
use imgcache::transport::cluster::{Cluster, ClusterError, ClusterOptions};
use rustix::process::Signal;

use crate::servers::{Memcached, nobody, url};
use crate::support::{Fixture, cluster, cluster_with, options};

const LENGTH: usize = 24 << 20;

/// Loads while `signal` is sent to the first of `servers` at `permille` of the bytes.
fn load_and_signal(fixture: &Fixture, servers: &[Memcached], signal: Signal, permille: u64) {
    let total = u64::try_from(fixture.content.len()).unwrap();
    let done = AtomicU64::new(0);
    let sent = AtomicU64::new(0);
    let progress = |bytes| {
        let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if done >= total * permille / 1000 && sent.fetch_add(1, Ordering::Relaxed) == 0 {
            servers[0].signal(signal);
        }
    };
    fixture.check_with(cluster(&url(servers)), Some(&progress)).unwrap();
    assert!(sent.into_inner() > 0);
}

#[test]
fn a_node_that_is_killed_is_replaced_at_any_point() {
    let fixture = Fixture::new(LENGTH, 128 << 10);
    for permille in [1, 100, 500, 900] {
        let servers = Memcached::start_all(3);
        fixture.published(&servers);
        load_and_signal(&fixture, &servers, Signal::KILL, permille);
        // And with the dead node from the start.
        let report = fixture.check(cluster(&url(&servers)));
        assert!(report.nodes.iter().any(|node| node.failures > 0), "{report:?}");
    }
}

#[test]
fn a_node_that_freezes_is_given_up_after_a_moment() {
    let fixture = Fixture::new(LENGTH, 128 << 10);
    for permille in [1, 500] {
        let servers = Memcached::start_all(3);
        fixture.published(&servers);
        let begun = Instant::now();
        load_and_signal(&fixture, &servers, Signal::STOP, permille);
        // Frozen from the start, it still takes connections.
        fixture.check(cluster(&url(&servers)));
        assert!(begun.elapsed() < Duration::from_secs(50));
        servers[0].signal(Signal::CONT);
        let report = fixture.check(cluster(&url(&servers)));
        assert_eq!(report.nodes.len(), 3, "{report:?}");
    }
}

#[test]
fn damaged_content_of_one_replica_is_told_and_replaced_by_the_others() {
    let fixture = Fixture::new(6 << 20, 256 << 10);
    let servers = Memcached::start_all(2);
    fixture.published(&servers);
    for index in [0, 7, 11] {
        let (key, mut content) = fixture.chunk(index);
        content[1000] ^= 1;
        servers[usize::try_from(index % 2).unwrap()].set(&key, &content);
    }
    // Which replica is read is decided anew for each load.
    let damaged: u64 = (0..8).map(|_| fixture.check(cluster(&url(&servers))).damaged).sum();
    assert!(damaged > 0);
}

#[test]
fn a_replica_of_another_length_or_none_is_replaced_by_the_other() {
    let fixture = Fixture::new(6 << 20, 256 << 10);
    let servers = Memcached::start_all(2);
    fixture.published(&servers);
    let (key, content) = fixture.chunk(0);
    servers[0].set(&key, &content[..1000]);
    let (key, content) = fixture.chunk(8);
    servers[1].set(&key, &[&content[..], b"more"].concat());
    let (key, _) = fixture.chunk(9);
    servers[1].set(&key, b"");
    for index in 12..20 {
        assert!(servers[0].delete(&fixture.chunk(index).0));
    }
    let reports: Vec<_> = (0..8).map(|_| fixture.check(cluster(&url(&servers)))).collect();
    assert!(reports.iter().map(|report| report.damaged).sum::<u64>() > 0);
    assert!(reports.iter().map(|report| report.misses).sum::<u64>() > 0);
}

fn unavailable(error: &LoadError) -> (u32, Vec<(String, String)>) {
    let LoadError::Io { source, .. } = error else { panic!("{error}") };
    match &**source {
        TransportError::Cache(ClusterError::Unavailable { chunk, said, .. }) => {
            (*chunk, said.clone())
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_chunk_that_is_nowhere_is_named_with_what_each_node_said() {
    let fixture = Fixture::new(6 << 20, 256 << 10);
    let servers = Memcached::start_all(2);
    fixture.published(&servers);
    let (key, mut content) = fixture.chunk(7);
    content[0] ^= 1;
    servers[0].set(&key, &content);
    assert!(servers[1].delete(&key));
    let error = fixture.check_with(cluster(&url(&servers)), None).unwrap_err();
    let (chunk, mut said) = unavailable(&error);
    assert_eq!(chunk, 7);
    said.sort_by_key(|(node, _)| *node != servers[0].address);
    assert!(said[0].1.contains("damaged") && said[1].1.contains("does not have it"), "{said:?}");
    let text = error.to_string();
    assert!(text.contains(&key[2..]) && text.contains(&servers[1].address), "{text}");
    // With an origin it arrives all the same, and is mended.
    let report = fixture.check(cluster_with(&url(&servers), fixture.store.clone()));
    assert_eq!(report.chunks_from_origin, 1, "{report:?}");
    let report = fixture.check(cluster(&url(&servers)));
    assert_eq!(report.retries, 0, "{report:?}");
}

#[test]
fn a_cache_that_is_down_is_unreachable_and_what_it_never_had_is_not_found() {
    let fixture = Fixture::new(1 << 20, 256 << 10);
    let error =
        fixture.check_with(cluster(&format!("memcached://{}", nobody())), None).unwrap_err();
    assert!(error.to_string().contains("cannot connect"), "{error}");
    let server = Memcached::start();
    let error = fixture.check_with(cluster(&url(&[server])), None).unwrap_err();
    assert!(matches!(error, LoadError::NotFound(_)), "{error}");
    // If one replica is down and the other has no such name, nobody knows.
    let server = Memcached::start();
    let both = format!("memcached://{},{}", server.address, nobody());
    let error = fixture.check_with(cluster(&both), None).unwrap_err();
    assert!(matches!(error, LoadError::Io { .. }), "{error}");
}

#[test]
fn a_breaker_opens_and_a_node_that_is_back_is_used_again() {
    let fixture = Fixture::new(4 << 20, 64 << 10);
    let servers = Memcached::start_all(2);
    fixture.published(&servers);
    let shared = cluster(&url(&servers));
    servers[1].signal(Signal::STOP);
    fixture.check(shared.clone());
    // Now it is left alone: what it would stall comes from the other at once.
    let report = fixture.check(shared.clone());
    servers[1].signal(Signal::CONT);
    assert!(report.chunks_from_nodes > 0);
    let begun = Instant::now();
    while fixture.check(shared.clone()).nodes.len() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(50), "it is never asked again");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_load_ends_at_its_deadline() {
    let fixture = Fixture::new(LENGTH, 64 << 10);
    let servers = Memcached::start_all(1);
    fixture.published(&servers);
    let patient = ClusterOptions {
        progress: Duration::from_secs(30),
        load_deadline: Duration::from_millis(700),
        ..options()
    };
    let slow = Cluster::open(&url(&servers).parse().unwrap(), patient, None).unwrap();
    let stopped = AtomicU64::new(0);
    let progress = |_| {
        if stopped.fetch_add(1, Ordering::Relaxed) == 0 {
            servers[0].signal(Signal::STOP);
        }
    };
    let error = fixture.check_with(slow, Some(&progress)).unwrap_err();
    let LoadError::Io { source, .. } = &error else { panic!("{error}") };
    let TransportError::Cache(ClusterError::Deadline { left, .. }) = &**source else {
        panic!("{error}")
    };
    assert!(*left > 0);
}
