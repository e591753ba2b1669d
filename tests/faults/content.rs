//! Bytes that are not what they should be.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::cluster::Cluster;
use crate::common::node::Node;
use crate::common::{Bench, guest_file};
use crate::proxy::Proxy;

/// A cache whose nodes keep their memory in files.
fn with_arenas(count: usize) -> (Cluster, Vec<std::path::PathBuf>) {
    let bench = Bench::new();
    let files: Vec<_> = (0..count).map(|n| bench.path().join(format!("arena{n}"))).collect();
    let nodes: Vec<Node> = files
        .iter()
        .map(|file| {
            Node::start(bench.path(), &["--memory", "400M", "--arena", file.to_str().unwrap()])
        })
        .collect();
    let proxies = nodes.iter().map(|node| Proxy::new(node.address())).collect();
    let cluster = Cluster { bench, nodes, proxies };
    cluster.push("guest", &guest_file("initrd-100.cpio"));
    cluster.publish("guest").unwrap();
    (cluster, files)
}

/// Turns over a byte of every 16 KiB behind the index of an arena: in each chunk, and in the
/// manifest.
fn corrupt(arena: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(arena).unwrap();
    let length = file.metadata().unwrap().len();
    let mut offset = (12 << 20) + 1000;
    while offset < length {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[!byte[0]], offset).unwrap();
        offset += 16 << 10;
    }
}

#[test]
fn a_corrupt_byte_in_an_arena_is_found_and_the_other_replica_read() {
    let (cluster, arenas) = with_arenas(2);
    corrupt(&arenas[0]);
    let report = cluster.load("guest").complete();
    assert!(report["damaged"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn bytes_that_are_corrupt_everywhere_are_never_accepted() {
    let (cluster, arenas) = with_arenas(2);
    for arena in &arenas {
        corrupt(arena);
    }
    let words = cluster.load("guest").failed(4);
    assert!(words.contains("damaged") && words.contains("guest"), "{words}");
    // The store of this host mends it.
    let store = cluster.bench.store();
    let report = cluster.load_with("guest", &["--origin", store.to_str().unwrap()]).complete();
    assert!(report["chunks_from_origin"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn a_restarted_node_gives_out_only_what_it_has_verified_again() {
    let (mut cluster, arenas) = with_arenas(2);
    cluster.nodes[0].signal(rustix::process::Signal::KILL);
    cluster.nodes[0].wait();
    corrupt(&arenas[0]);
    let arena = arenas[0].to_str().unwrap();
    let node = Node::start(cluster.bench.path(), &["--memory", "400M", "--arena", arena]);
    let proxy = Proxy::new(node.address());
    // Alone, under the name it had, it has the items that were not hit, and knows of no others.
    assert!(node.number("", "curr_items") > 0);
    cluster.nodes[0] = node;
    drop(proxy);
    cluster.load("guest").complete();
}
