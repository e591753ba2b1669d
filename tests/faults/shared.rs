//! Loads out of the memory of a node on this host.

use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::cluster::Cluster;

/// A node with a socket in `folder`, without a proxy before it.
fn cluster(folder: &Path) -> (Cluster, String) {
    let socket = folder.join("node").to_str().unwrap().to_owned();
    let cluster = Cluster::with(1, &["--memory", "400M", "--unix", &socket]);
    (cluster, format!("unix:{socket}"))
}

fn load(cluster: &Cluster, url: &str, more: &[&str]) -> std::process::Output {
    let arguments = ["boot", "--ready-only", "--json", "--image", "guest", "--memory", "256M"];
    let arguments = [&arguments[..], &["--cache", url], more].concat();
    let mut command = cluster.bench.vmm(&arguments);
    command.env("VMM_STORE", cluster.bench.path().join("no-store")).output().unwrap()
}

fn node_of(output: &std::process::Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["load"]["cache"]["nodes"][0].clone()
}

#[test]
fn all_chunks_are_read_in_place_also_of_a_node_that_is_named_by_its_tcp_address() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, socket) = cluster(folder.path());
    let tcp = format!("memcached://{}", cluster.nodes[0].address());
    for url in [&socket, &tcp] {
        let node = node_of(&load(&cluster, url, &[]));
        assert_eq!(node["by"]["shared"], node["chunks"], "{node}");
        assert_eq!(node["link_reason"], Value::Null, "{node}");
        let node = node_of(&load(&cluster, url, &["--transport", "tcp"]));
        assert_eq!(node["by"]["tcp"], node["chunks"], "{node}");
    }
    // Also through a proxy: the node says where its socket is, and the socket says whose it is.
    let node = node_of(&load(&cluster, &cluster.url(), &[]));
    assert_eq!(node["by"]["shared"], node["chunks"], "{node}");
}

#[test]
fn what_is_not_in_the_index_is_told_missing_and_comes_from_the_origin() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, socket) = cluster(folder.path());
    let store = cluster.bench.store();
    cluster.nodes[0].ask(b"flush_all\r\n", "OK\r\n");
    let origin = ["--origin", store.to_str().unwrap()];
    let output = load(&cluster, &socket, &origin);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["load"]["cache"]["chunks_from_origin"].as_u64() > Some(0), "{report}");
    let node = node_of(&load(&cluster, &socket, &origin));
    assert_eq!(node["by"]["shared"], node["chunks"], "{node}");
}

#[test]
fn who_is_given_the_memory_cannot_write_to_it() {
    use std::io::{IoSliceMut, Write};
    use std::mem::MaybeUninit;
    use std::os::unix::net::UnixStream;

    use rustix::fs::{SealFlags, fcntl_get_seals, ftruncate};
    use rustix::io::pwrite;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    let folder = tempfile::tempdir().unwrap();
    let (_cluster, socket) = cluster(folder.path());
    let mut stream = UnixStream::connect(socket.strip_prefix("unix:").unwrap()).unwrap();
    stream.write_all(b"share\r\n").unwrap();
    let mut bytes = [0; 512];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    recvmsg(&stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags).unwrap();
    let files = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    let memory = files.expect("the memory comes with the answer");
    assert!(pwrite(&memory, b"x", 0).is_err());
    assert!(ftruncate(&memory, 0).is_err());
    let seals = fcntl_get_seals(&memory).unwrap();
    assert!(seals.contains(SealFlags::FUTURE_WRITE | SealFlags::SHRINK | SealFlags::SEAL));
}

#[test]
fn memory_of_a_node_that_was_started_again_is_not_that_of_before() {
    let folder = tempfile::tempdir().unwrap();
    let (mut cluster, socket) = cluster(folder.path());
    node_of(&load(&cluster, &socket, &[]));
    cluster.nodes[0].signal(Signal::KILL);
    cluster.nodes[0].wait();
    let path = socket.strip_prefix("unix:").unwrap();
    let again = ["--memory", "400M", "--unix", path];
    cluster.nodes[0] = crate::common::node::Node::start(cluster.bench.path(), &again);
    // Nothing is there, and nobody says otherwise.
    let output = load(&cluster, &socket, &[]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
}
