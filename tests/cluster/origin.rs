//! What no node has comes from the origin, once for all hosts, and stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use imgcache::transport::cluster::{Cluster, ClusterOptions};

use crate::servers::{Memcached, nobody, url};
use crate::support::{Counting, Fixture, cluster, cluster_with, options};

#[test]
fn an_image_that_the_cache_has_not_is_fetched_and_published_behind_the_load() {
    let fixture = Fixture::new(5 << 20, 128 << 10);
    let servers = Memcached::start_all(3);
    let report = fixture.check(cluster_with(&url(&servers), fixture.store.clone()));
    // The image has one chunk twice.
    let (origin, nodes) = (report.chunks_from_origin, report.chunks_from_nodes);
    assert!(origin >= fixture.stored_chunks(), "{report:?}");
    assert_eq!(origin + nodes, fixture.stored_chunks() + 1, "{report:?}");
    let report = fixture.check(cluster(&url(&servers)));
    assert_eq!((report.misses, report.chunks_from_origin), (0, 0), "{report:?}");
}

#[test]
fn twenty_loads_of_an_empty_cache_read_each_chunk_once() {
    let fixture = Fixture::new(4 << 20, 128 << 10);
    let servers = Memcached::start_all(3);
    let origin = Counting::new(&fixture.store, Duration::from_millis(2));
    let reads = origin.reads;
    let origin = Arc::new(origin);
    std::thread::scope(|scope| {
        for _ in 0..20 {
            let (origin, fixture, servers) = (Arc::clone(&origin), &fixture, &servers);
            scope.spawn(move || {
                // Each a host of its own, as patient as it takes.
                let patient =
                    ClusterOptions { claim_patience: Duration::from_secs(60), ..options() };
                let origin = Counting {
                    store: origin.store.clone(),
                    reads: origin.reads,
                    pause: origin.pause,
                };
                let url = url(servers).parse().unwrap();
                let host = Cluster::open(&url, patient, Some(Box::new(origin))).unwrap();
                fixture.check(host);
            });
        }
    });
    let counts: Vec<u64> = reads.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    assert_eq!(counts.iter().sum::<u64>(), fixture.stored_chunks(), "{counts:?}");
    assert!(counts.iter().all(|count| *count <= 1), "{counts:?}");
}

#[test]
fn a_host_that_dies_with_a_token_holds_nobody_up_for_ever() {
    let fixture = Fixture::new(1 << 20, 128 << 10);
    let server = Memcached::start();
    for index in 0..8 {
        let (key, _) = fixture.chunk(index);
        let reply = server.say(format!("mg {key} v N30\r\n").as_bytes());
        assert!(reply == "VA 0 W\r\n" || reply == "VA 0 Z\r\n", "{reply}");
    }
    let url = format!("memcached://{}", server.address);
    let hasty = ClusterOptions { claim_patience: Duration::from_millis(300), ..options() };
    let origin = Box::new(fixture.store.clone());
    let begun = Instant::now();
    let host = Cluster::open(&url.parse().unwrap(), hasty, Some(origin)).unwrap();
    let report = fixture.check(host);
    assert!(report.chunks_from_origin > 0 && begun.elapsed() >= Duration::from_millis(300));
    let report = fixture.check(cluster(&url));
    assert_eq!(report.chunks_from_origin, 0);
}

#[test]
fn a_cache_that_is_down_does_not_keep_a_host_from_its_origin() {
    let fixture = Fixture::new(3 << 20, 128 << 10);
    let url = format!("memcached://{},{}", nobody(), nobody());
    let report = fixture.check(cluster_with(&url, fixture.store.clone()));
    assert_eq!(report.chunks_from_nodes, 0, "{report:?}");
}

#[test]
fn nodes_that_forget_part_are_filled_again() {
    let fixture = Fixture::new(5 << 20, 64 << 10);
    let servers = Memcached::start_all(2);
    fixture.published(&servers);
    for index in (0..80).step_by(7) {
        let (key, _) = fixture.chunk(index);
        for server in &servers {
            server.delete(&key);
        }
    }
    let report = fixture.check(cluster_with(&url(&servers), fixture.store.clone()));
    assert!(report.chunks_from_origin > 5, "{report:?}");
    assert!(report.chunks_from_nodes > report.chunks_from_origin, "{report:?}");
    fixture.check(cluster(&url(&servers)));
}

#[test]
fn an_origin_that_fails_ends_the_load_with_its_words() {
    let fixture = Fixture::new(1 << 20, 128 << 10);
    let servers = Memcached::start_all(2);
    fixture.published(&servers);
    let (key, _) = fixture.chunk(0);
    for server in &servers {
        assert!(server.delete(&key));
    }
    // It has the name, and of the chunks none any more.
    let host = cluster_with(&url(&servers), fixture.store.clone());
    std::fs::remove_dir_all(fixture.folder.path().join("packs")).unwrap();
    let loads = AtomicU64::new(0);
    let error = fixture.check_with(
        host,
        Some(&|_| {
            loads.fetch_add(1, Ordering::Relaxed);
        }),
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains("the origin: ") && error.contains("does not have it"), "{error}");
}
