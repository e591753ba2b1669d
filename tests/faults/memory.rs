//! Nodes whose memory, or index, is too small for what is asked of them.

use imgcache::record::ItemKey;
use imgcache::store::Store;
use imgcache::transport::Transport;

use crate::cluster::Cluster;
use crate::common::guest_file;

fn words(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_image_that_does_not_fit_is_refused_and_what_is_there_stays() {
    let cluster = Cluster::empty(1, &["--memory", "96M"]);
    cluster.push("small", &guest_file("initrd-small.cpio.gz"));
    cluster.push("guest", &guest_file("initrd-100.cpio"));
    cluster.publish("small").unwrap();
    let output = cluster.publish("guest").unwrap_err();
    assert_eq!(output.status.code(), Some(8), "{}", words(&output));
    assert!(words(&output).contains("memory"), "{}", words(&output));
    // Its name stands for nothing, and the node works.
    cluster.load("guest").failed(3);
    cluster.publish("small").unwrap();
}

#[test]
fn a_full_table_is_an_error_of_the_push_and_no_more() {
    let cluster = Cluster::empty(1, &["--memory", "400M", "--index-entries", "256"]);
    cluster.push("guest", &guest_file("initrd-100.cpio"));
    let output = cluster.publish("guest").unwrap_err();
    assert_eq!(output.status.code(), Some(8), "{}", words(&output));
    assert_eq!(cluster.nodes[0].ask(b"set a 0 0 1\r\nb\r\n", "\r\n"), "STORED\r\n");
    assert!(cluster.nodes[0].ask(b"get a\r\n", "END\r\n").contains('b'));
}

/// The index keys of all chunks of an image of the store, for lease and pin.
fn index_keys(cluster: &Cluster, name: &str) -> (String, Vec<u8>) {
    let store = Store::open(&cluster.bench.store()).unwrap();
    let id = Transport::resolve(&store, &name.parse().unwrap()).unwrap();
    let session = Transport::open(&store, &id).unwrap();
    let chunks = session.manifest().all_chunks().filter(|chunk| !chunk.entry.zero);
    let keys = chunks.flat_map(|chunk| ItemKey::chunk(&chunk.entry.key).index_key().0);
    (id.to_string(), keys.collect())
}

#[test]
fn what_is_pinned_stays_and_the_next_image_is_refused() {
    let cluster = Cluster::empty(1, &["--memory", "180M", "--max-pinned-permille", "1000"]);
    cluster.push("guest", &guest_file("initrd-100.cpio"));
    cluster.publish("guest").unwrap();
    let (id, keys) = index_keys(&cluster, "guest");
    let mut request = format!("pin {id} {}\r\n", keys.len()).into_bytes();
    request.extend_from_slice(&keys);
    request.extend_from_slice(b"\r\n");
    let answer = cluster.nodes[0].ask(&request, "\r\n");
    assert!(answer.starts_with("PINNED ") && answer.ends_with(" 0\r\n"), "{answer}");

    let other = cluster.bench.path().join("other.cpio");
    let mut content = std::fs::read(guest_file("initrd-100.cpio")).unwrap();
    for byte in content.iter_mut().skip(8 << 20).step_by(4096) {
        *byte = !*byte;
    }
    std::fs::write(&other, content).unwrap();
    let (kernel, initrd) = (guest_file("vmlinuz"), other.to_str().unwrap().to_owned());
    let push = ["image", "push", "other", "--as-is", "--kernel", kernel.to_str().unwrap()];
    cluster.bench.expect(0, &[&push[..], &["--initrd", &initrd]].concat());
    let output = cluster.publish("other").unwrap_err();
    assert_eq!(output.status.code(), Some(8), "{}", words(&output));
    cluster.load("guest").complete();
    assert_eq!(cluster.nodes[0].ask(format!("unpin {id}\r\n").as_bytes(), "\r\n"), "UNPINNED\r\n");
    cluster.publish("other").unwrap();
}

#[test]
fn an_image_is_pinned_and_unpinned_by_name() {
    let cluster = Cluster::empty(2, &["--memory", "180M", "--max-pinned-permille", "1000"]);
    cluster.push("guest", &guest_file("initrd-100.cpio"));
    cluster.publish("guest").unwrap();
    let url = cluster.url();
    let run = |verb: &str, what: &str| {
        cluster.bench.json(&["cache", verb, what, "--cache", &url, "--json"])
    };
    let pinned = run("pin", "guest");
    for (node, answer) in cluster.nodes.iter().zip(pinned["nodes"].as_array().unwrap()) {
        assert_eq!(answer["missing"], 0, "{answer}");
        assert!(node.number("placement", "pinned") > 0);
    }
    // Plain items cannot push it out.
    let value = vec![7; 500 << 10];
    for number in 0..800 {
        let mut request = format!("set noise{number} 0 0 {}\r\n", value.len()).into_bytes();
        request.extend_from_slice(&value);
        request.extend_from_slice(b"\r\n");
        cluster.nodes[number % 2].ask(&request, "\r\n");
    }
    cluster.load("guest").complete();
    let id = pinned["manifest"].as_str().unwrap();
    assert_eq!(run("unpin", id)["nodes"][0]["held"], 1);
    assert_eq!(run("unpin", "guest")["nodes"][0]["held"], 0);
    for node in &cluster.nodes {
        assert_eq!(node.number("placement", "pinned"), 0);
    }
}

#[test]
fn eviction_against_loads() {
    let cluster = Cluster::empty(2, &["--memory", "180M"]);
    cluster.push("guest", &guest_file("initrd-100.cpio"));
    cluster.publish("guest").unwrap();
    let store = cluster.bench.store();
    std::thread::scope(|scope| {
        // Plain items push the image's chunks out while it is loaded.
        let noise = scope.spawn(|| {
            let value = vec![7; 200 << 10];
            for number in 0..1500 {
                let node = &cluster.nodes[number % 2];
                let mut request = format!("set noise{number} 0 0 {}\r\n", value.len()).into_bytes();
                request.extend_from_slice(&value);
                request.extend_from_slice(b"\r\n");
                let answer = node.ask(&request, "\r\n");
                assert!(answer == "STORED\r\n" || answer.starts_with("SERVER_ERROR"), "{answer}");
            }
        });
        while !noise.is_finished() {
            cluster.load_with("guest", &["--origin", store.to_str().unwrap()]).complete();
        }
        noise.join().unwrap();
    });
}
