//! Loads where nothing fails: any number of nodes, any chunk size, over TCP and sockets.

use imgcache::transport::cluster::{Cluster, ClusterOptions};

use crate::servers::{Memcached, url};
use crate::support::{Fixture, cluster, options};

#[test]
fn an_image_arrives_from_one_to_four_nodes() {
    let fixture = Fixture::new((12 << 20) + 4321, 128 << 10);
    let servers = Memcached::start_all(4);
    for count in 1..=4 {
        servers.iter().for_each(Memcached::forget_everything);
        // flush_all forgets what is older than a second in memcached's own clock.
        let servers = &servers[..count];
        let published = fixture.published(servers);
        assert_eq!(published.replicas, count.min(2));
        let report = fixture.check(cluster(&url(servers)));
        assert_eq!(report.nodes.len(), count, "{report:?}");
        assert_eq!((report.retries, report.damaged, report.chunks_from_origin), (0, 0, 0));
        let bytes: u64 = report.nodes.iter().map(|node| node.bytes).sum();
        let zero = 2 * u64::from(fixture.chunk_size);
        assert_eq!(bytes, u64::try_from(fixture.content.len()).unwrap() - zero);
        assert!(report.chunk_ms_p50 > 0.0 && report.chunk_ms_p50 <= report.chunk_ms_p99);
    }
}

#[test]
fn chunks_of_every_size_arrive() {
    let servers = Memcached::start_all(2);
    for size in [4 << 10, 32 << 10, 512 << 10, 1 << 20] {
        let fixture = Fixture::new((9 << 20) + 1, size);
        fixture.published(&servers);
        fixture.check(cluster(&url(&servers)));
    }
}

#[test]
fn an_image_of_one_byte_and_a_manifest_of_many_pieces_arrive() {
    let servers = Memcached::start_all(3);
    let fixture = Fixture::new(1, 256 << 10);
    fixture.published(&servers);
    fixture.check(cluster(&url(&servers)));
    // 14,000 chunks of 40 bytes each.
    let fixture = Fixture::new(14_000 << 12, 4 << 10);
    fixture.published(&servers);
    fixture.check(cluster(&url(&servers)));
}

#[test]
fn sockets_of_this_host_do_as_well() {
    let server = Memcached::on_socket();
    let fixture = Fixture::new(3 << 20, 256 << 10);
    for url in [server.address.clone(), format!("memcached://{}", server.address)] {
        fixture.publish(&cluster(&url)).unwrap();
        fixture.check(cluster(&url));
    }
}

#[test]
fn one_cluster_serves_many_loads_at_once_and_in_a_row() {
    let servers = Memcached::start_all(2);
    let fixture = Fixture::new(4 << 20, 64 << 10);
    fixture.published(&servers);
    let shared = cluster(&url(&servers));
    for _ in 0..2 {
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| fixture.check(shared.clone()));
            }
        });
    }
    // Connections are kept for the next load, but not without end.
    let open: u64 = servers.iter().map(|server| server.stat("curr_connections")).sum();
    assert!(open < 40, "{open} connections");
}

#[test]
fn idle_connections_that_the_server_has_closed_are_replaced() {
    let server = Memcached::with(&["-o", "idle_timeout=1"]);
    let fixture = Fixture::new(2 << 20, 64 << 10);
    let shared = cluster(&format!("memcached://{}", server.address));
    fixture.publish(&shared).unwrap();
    fixture.check(shared.clone());
    let idle = |server: &Memcached| server.stat("idle_kicks");
    while idle(&server) == 0 {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let report = fixture.check(shared);
    assert!(report.nodes.iter().all(|node| node.failures == 0), "{report:?}");
}

#[test]
fn a_server_that_takes_few_connections_does_with_those() {
    let server = Memcached::with(&["-c", "64", "-o", "maxconns_fast"]);
    let fixture = Fixture::new(32 << 20, 64 << 10);
    let url = format!("memcached://{}", server.address);
    fixture.publish(&cluster(&url)).unwrap();
    for _ in 0..3 {
        let many = ClusterOptions { connections: 120, window: 64 << 10, ..options() };
        fixture.check(Cluster::open(&url.parse().unwrap(), many, None).unwrap());
    }
    assert!(server.stat("rejected_connections") > 0);
}
