//! Images that are put into nodes by RDMA WRITE, with the real programs.

use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use imgcache::key::ChunkKey;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::cache::{DEVICE, chunks, report, resources, wait};
use crate::common::guest::boot;
use crate::common::node::Node;
use crate::common::{Bench, guest_file};
use crate::writer::Opened;

/// Nodes that can be pushed to, and an image in a store.
pub struct Nodes {
    pub bench: Bench,
    pub nodes: Vec<Node>,
}

impl Nodes {
    pub fn new(count: usize) -> Self {
        Self::with(count, "128M", "on", "256K")
    }

    pub fn with(count: usize, memory: &str, push: &str, chunk: &str) -> Self {
        let bench = Bench::new();
        let arguments = ["--memory", memory, "--rdma", DEVICE, "--rdma-push", push];
        let nodes: Vec<Node> = (0..count).map(|_| Node::start(bench.path(), &arguments)).collect();
        let files = ["vmlinuz", "initrd-small.cpio.gz"].map(guest_file);
        let [kernel, initrd] = files.each_ref().map(|file| file.to_str().unwrap());
        let push = ["image", "push", "guest", "--kernel", kernel, "--initrd", initrd];
        bench.expect(0, &[&push[..], &["--chunk-size", chunk]].concat());
        let all = Self { bench, nodes };
        for node in &all.nodes {
            wait("the memory to be registered", || {
                let stats = node.stats("rdma");
                !stats.iter().any(|(_, value)| value == "registering")
            });
        }
        all
    }

    pub fn url(&self) -> String {
        let addresses: Vec<_> = self.nodes.iter().map(|node| node.address().to_string()).collect();
        format!("memcached://{}", addresses.join(","))
    }

    fn publish(&self, more: &[&str]) -> Value {
        let url = self.url();
        let command = ["image", "publish", "guest", "--json", "--cache", &url];
        self.bench.json(&[&command[..], more].concat())
    }

    /// A load of the image out of the nodes alone, by RDMA.
    fn load(&self) -> Value {
        let url = self.url();
        let mut command = self.bench.vmm(&["boot", "--ready-only", "--json", "--image", "guest"]);
        command.args(["--memory", "192M", "--cache", &url, "--transport", "rdma"]);
        command.env("VMM_STORE", self.bench.path().join("no-store"));
        report(&command.output().unwrap())
    }

    /// Nothing is open, and nothing lost.
    fn is_quiet(&self) -> bool {
        let zero = |name| self.nodes.iter().all(|node| number(node, name) == 0);
        zero("push_open") && zero("push_exposed") && zero("push_lost")
    }
}

/// A number of `stats rdma`.
pub fn number(node: &Node, name: &str) -> u64 {
    node.number("rdma", name)
}

fn bytes(report: &Value, link: &str) -> u64 {
    report["bytes_by"][link].as_u64().unwrap_or(0)
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn an_image_is_pushed_by_rdma_and_a_guest_boots_from_it_by_rdma() {
    let all = Nodes::new(2);
    let before = resources();
    let received = all.nodes[0].number("", "bytes_read");
    let push = all.publish(&["--transport", "rdma"]);
    let new = push["bytes_new"].as_u64().unwrap();
    assert_eq!(bytes(&push, "rdma"), 2 * new, "to both nodes: {push}");
    assert!(bytes(&push, "tcp") < 1 << 20, "the manifest and the name: {push}");
    assert_eq!(push["bytes_sent"], bytes(&push, "rdma") + bytes(&push, "tcp"));
    let received = all.nodes[0].number("", "bytes_read") - received;
    assert!(received < 1 << 20, "{received} bytes came by TCP");
    for node in &all.nodes {
        assert_eq!(number(node, "push_stored_bytes"), new);
        assert_eq!(number(node, "push_stored"), push["chunks_new"]);
        assert_eq!(number(node, "push_damaged") + number(node, "push_abandoned"), 0);
    }
    assert!(all.is_quiet());
    wait("the device to be as before", || resources() == before);
    let load = all.load();
    let by_rdma: u64 = all.nodes.iter().map(|node| chunks(&load, node, "rdma")).sum();
    assert_eq!(load["chunks_from_nodes"], by_rdma, "{load}");
    assert_eq!((&load["misses"], &load["damaged"]), (&0.into(), &0.into()), "{load}");
    // And there is nothing to be sent any more.
    let again = all.publish(&["--transport", "rdma"]);
    assert_eq!((&again["bytes_new"], bytes(&again, "rdma")), (&0.into(), 0), "{again}");

    std::fs::remove_dir_all(all.bench.store()).unwrap();
    let booted = boot(&all.bench, "guest", &["--cache", &all.url(), "--transport", "rdma"]);
    assert_eq!(booted.code, Some(0), "{booted:#?}");
    booted.self_test();
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn small_chunks_are_pushed_many_at_a_time() {
    let all = Nodes::with(1, "128M", "on", "4K");
    let push = all.publish(&["--transport", "rdma"]);
    assert_eq!(bytes(&push, "rdma"), push["bytes_new"], "{push}");
    let begun = number(&all.nodes[0], "push_begun");
    assert!(begun >= push["chunks_new"].as_u64().unwrap() / 256, "{begun}");
    assert!(all.is_quiet());
    all.load();
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn where_bounds_are_not_enforced_pushes_are_off_unless_asked_for_and_the_reasons_are_told() {
    let all = Nodes::with(1, "128M", "auto", "256K");
    let node = &all.nodes[0];
    let stats = node.stats("rdma");
    assert!(stats.contains(&("push".into(), "off".into())), "{stats:?}");
    let reason = stats.iter().find(|(name, _)| name == "push_reason").unwrap();
    assert!(reason.1.contains("does not enforce the bounds"), "{reason:?}");
    // Whoever tries all the same.
    let Err(refused) = Opened::hold(node, &[(ChunkKey([7; 32]), 4096)]) else { panic!("it began") };
    assert!(refused.starts_with("SERVER_ERROR no pushes by RDMA"), "{refused}");
    let url = all.url();
    let command = ["image", "publish", "guest", "--cache", &url];
    let output = all.bench.expect(8, &[&command[..], &["--transport", "rdma"]].concat());
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("does not enforce the bounds"), "{words}");
    // By itself it goes by TCP: the node is on this host.
    let push = all.publish(&[]);
    assert_eq!((bytes(&push, "rdma"), bytes(&push, "tcp") > 0), (0, true), "{push}");
    let reason = push["nodes"][0]["link_reason"].as_str().unwrap();
    assert!(reason.contains("on this host"), "{reason}");
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn killed_pushers_leave_nothing_and_the_next_push_succeeds() {
    let all = Nodes::new(1);
    let node = &all.nodes[0];
    let before = resources();
    for round in 0..8 {
        let begun = number(node, "push_begun");
        let url = all.url();
        let mut command = all.bench.vmm(&["image", "publish", "guest", "--cache", &url]);
        command.args(["--transport", "rdma"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut push = command.spawn().unwrap();
        wait("the push to begin", || number(node, "push_begun") > begun);
        sleep(Duration::from_millis(round * 15));
        kill_process(Pid::from_child(&push), Signal::KILL).unwrap();
        push.wait().unwrap();
        node.ask(b"flush_all\r\n", "OK\r\n");
    }
    wait("the pushes to end", || all.is_quiet());
    wait("the device to be as before", || resources() == before);
    all.publish(&["--transport", "rdma"]);
    all.load();
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn a_node_that_dies_in_the_middle_of_a_push_is_left_out() {
    let all = Nodes::new(2);
    let url = all.url();
    let mut command = all.bench.vmm(&["image", "publish", "guest", "--json", "--cache", &url]);
    command.args(["--transport", "rdma"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let push = command.spawn().unwrap();
    wait("the push to begin", || number(&all.nodes[0], "push_begun") > 0);
    all.nodes[0].signal(Signal::KILL);
    let output = push.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let push: Value = serde_json::from_slice(&output.stdout).unwrap();
    let down = push["nodes_down"].as_array().unwrap();
    assert_eq!(down.len(), 1, "{push}");
    assert_eq!(down[0][0], all.nodes[0].address().to_string(), "{push}");
    let load = all.load();
    let by_rdma = chunks(&load, &all.nodes[1], "rdma");
    assert_eq!(load["chunks_from_nodes"], by_rdma, "{load}");
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn what_a_node_may_not_expose_goes_by_tcp() {
    let all = Nodes::new(1);
    let node = &all.nodes[0];
    let limit = number(node, "push_max_exposed");
    // All but some of it is taken by others.
    let mut others = Vec::new();
    while limit - number(node, "push_exposed") > 1 << 20 {
        let taken = number(node, "push_exposed");
        let key = ChunkKey([u8::try_from(others.len()).unwrap(); 32]);
        others.push(Opened::hold(node, &[(key, 1 << 20)]).unwrap());
        assert!(number(node, "push_exposed") > taken);
    }
    let push = all.publish(&["--transport", "rdma"]);
    assert!(bytes(&push, "tcp") > bytes(&push, "rdma"), "{push}");
    assert!(bytes(&push, "rdma") > 0, "{push}");
    let reason = push["nodes"][0]["link_reason"].as_str().unwrap();
    assert!(reason.contains("bytes of its memory at once"), "{reason}");
    assert!(number(node, "push_exposed") <= limit && number(node, "push_full") > 0);
    drop(others);
    wait("the others to end", || all.is_quiet());
    all.load();
}
