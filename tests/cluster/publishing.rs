//! Publication: only what is missing is sent, an interrupted one goes on, and names keep their order.

use imgcache::transport::TransportError;
use imgcache::transport::cluster::ClusterError;
use imgcache::transport::cluster::publish::publish;
use rustix::process::Signal;

use crate::servers::{Memcached, nobody, url};
use crate::support::{Fixture, cluster, name};

#[test]
fn what_is_there_is_not_sent_again() {
    let fixture = Fixture::new(5 << 20, 128 << 10);
    let servers = Memcached::start_all(3);
    let first = fixture.published(&servers);
    let total = u64::try_from(fixture.content.len()).unwrap();
    let (chunk, zero) = (u64::from(fixture.chunk_size), first.bytes_zero);
    assert_eq!((first.bytes_total, zero, first.bytes_shared), (total, 2 * chunk, chunk));
    assert_eq!(first.bytes_new, total - 3 * chunk);
    assert!(first.bytes_sent > 2 * first.bytes_new);
    let again = fixture.published(&servers);
    assert_eq!((again.bytes_new, again.chunks_new), (0, 0));
    assert!(again.bytes_sent < 1000, "the name, at two nodes: {again:?}");
    assert!(again.revision > first.revision);

    // Half of it forgotten on one node: that is what is sent.
    for index in 5..20 {
        servers[0].delete(&fixture.chunk(index).0);
    }
    let mended = fixture.published(&servers);
    assert!(mended.bytes_new > 0 && mended.bytes_sent < mended.bytes_new + 1000, "{mended:?}");
    fixture.check(cluster(&url(&servers)));
}

#[test]
fn a_node_that_is_down_is_left_out_and_told_and_mended_later() {
    let fixture = Fixture::new(5 << 20, 128 << 10);
    let servers = Memcached::start_all(3);
    servers[2].signal(Signal::STOP);
    let report = fixture.published(&servers);
    servers[2].signal(Signal::CONT);
    assert_eq!(report.nodes_down.len(), 1);
    assert_eq!(report.nodes_down[0].0, servers[2].address);
    fixture.check(cluster(&url(&servers)));
    let report = fixture.published(&servers);
    assert!(report.nodes_down.is_empty() && report.chunks_new > 0, "{report:?}");
    let report = fixture.check(cluster(&url(&servers)));
    assert_eq!(report.retries, 0, "{report:?}");
}

#[test]
fn an_image_that_no_node_takes_is_not_published() {
    let fixture = Fixture::new(5 << 20, 1 << 20);
    let error = fixture.publish(&cluster(&format!("memcached://{}", nobody()))).unwrap_err();
    assert!(error.to_string().contains("cannot connect"), "{error}");
    let small = Memcached::with(&["-I", "512k"]);
    let error = fixture.publish(&cluster(&url(&[small]))).unwrap_err().to_string();
    assert!(error.contains("object too large") && error.contains("-I 2m"), "{error}");
}

#[test]
fn a_cache_that_is_too_small_is_found_out_before_the_name_is_set() {
    let fixture = Fixture::new(40 << 20, 256 << 10);
    let small = Memcached::with(&["-m", "16"]);
    let address = format!("memcached://{}", small.address);
    let error = fixture.publish(&cluster(&address)).unwrap_err();
    let lost =
        matches!(&error, TransportError::Cache(ClusterError::TooSmall { lost, .. }) if *lost > 0);
    let refused = error.to_string().contains("out of memory");
    assert!(lost || refused, "{error}");
    assert!(cluster(&address).name_record(&name("a")).unwrap().is_none());
}

#[test]
fn a_name_that_is_published_again_stands_for_the_new_image_whoever_was_away() {
    let fixture = Fixture::new(2 << 20, 128 << 10);
    let servers = Memcached::start_all(2);
    let cache = cluster(&url(&servers));
    fixture.push("b", b"old");
    publish(&cache, &name("a"), &*fixture.session("b"), None).unwrap();
    // One of the two nodes does not hear of the new image.
    servers[0].signal(Signal::STOP);
    let report = fixture.publish(&cluster(&url(&servers))).unwrap();
    servers[0].signal(Signal::CONT);
    assert_eq!(report.nodes_down.len(), 1);
    let record = cluster(&url(&servers)).name_record(&name("a")).unwrap().unwrap();
    assert_eq!((record.manifest, record.revision), (report.id, report.revision));
    fixture.check(cluster(&url(&servers)));
}
