//! Nodes that come and go, and garbage collection, while images are loaded and pushed.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use crate::cluster::Cluster;
use crate::common::guest_file;
use crate::common::node::Node;

#[test]
fn nodes_are_added_and_removed_under_load() {
    let cluster = Cluster::empty(2, &["--memory", "400M"]);
    let folder = cluster.bench.path();
    let third = Node::start(folder, &["--memory", "400M"]);
    let file = format!("members:{}", folder.join("members.json").display());
    let change = |verb: &str, arguments: &[&str]| {
        let command = [&["cache", verb, "--cache", &file, "--grace", "1"], arguments].concat();
        cluster.bench.expect(0, &command);
    };
    for (name, node) in [("a", &cluster.nodes[0]), ("b", &cluster.nodes[1])] {
        change("add", &[name, &node.address().to_string()]);
    }
    cluster.push("guest", &guest_file("initrd-100.cpio"));
    cluster.bench.expect(0, &["image", "publish", "guest", "--cache", &file]);
    let (done, loads) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let load = ["boot", "--ready-only", "--json", "--memory", "256M"];
                    let image = ["--image", "guest", "--cache", &file];
                    let report = cluster.bench.json(&[&load[..], &image].concat());
                    // The store of this host is the origin, and is not needed.
                    assert_eq!(report["load"]["cache"]["chunks_from_origin"], 0, "{report}");
                    loads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        change("add", &["c", &third.address().to_string(), "--rate", "100M"]);
        change("drain", &["a", "--rate", "100M"]);
        change("remove", &["a"]);
        change("drain", &["b"]);
        change("add", &["b", &cluster.nodes[1].address().to_string()]);
        done.store(true, Ordering::Relaxed);
    });
    assert!(loads.into_inner() > 3);
    // Node a holds nothing of it any more.
    let images = cluster.nodes[0].stats("image");
    assert!(!images.iter().any(|(name, _)| name == "guest:manifest"), "{images:?}");
}

#[test]
fn a_lost_node_is_given_up_and_its_copies_are_made_again() {
    let mut cluster = Cluster::empty(3, &["--memory", "400M"]);
    let file = format!("members:{}", cluster.bench.path().join("members.json").display());
    for (name, node) in ["a", "b", "c"].into_iter().zip(&cluster.nodes) {
        let address = node.address().to_string();
        cluster.bench.expect(0, &["cache", "add", "--cache", &file, name, &address]);
    }
    cluster.push("guest", &guest_file("initrd-100.cpio"));
    cluster.bench.expect(0, &["image", "publish", "guest", "--cache", &file]);
    cluster.nodes[1].signal(rustix::process::Signal::KILL);
    cluster.nodes[1].wait();
    // Whether it can go cannot be known; that it is gone must be said.
    let refused = cluster.bench.expect(8, &["cache", "remove", "--cache", &file, "b"]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(words.contains("'b'") && words.contains("--force"), "{words}");
    let quick = ["--cache", &file, "--grace", "0"];
    cluster.bench.expect(0, &[&["cache", "remove", "b", "--force"][..], &quick].concat());
    let status = cluster.bench.json(&["cache", "status", "--json", "--cache", &file]);
    assert_eq!(status["images"][0]["fewest_copies"], 2, "{status}");
    assert_eq!(status["images"][0]["misplaced"], 0, "{status}");
    assert!(status["nodes"].as_array().unwrap().iter().all(|node| node["safe_to_stop"] == true));
}

#[test]
fn a_publication_against_garbage_collection() {
    let cluster = Cluster::empty(2, &["--memory", "400M"]);
    cluster.push("guest", &guest_file("initrd-100.cpio"));
    cluster.push("other", &guest_file("initrd-small.cpio.gz"));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                cluster.bench.expect(0, &["image", "rm", "other"]);
                cluster.bench.expect(0, &["image", "gc"]);
                cluster.push("other", &guest_file("initrd-small.cpio.gz"));
            }
        });
        for _ in 0..3 {
            cluster.publish("guest").unwrap();
            cluster.load("guest").complete();
        }
        done.store(true, Ordering::Relaxed);
    });
}
