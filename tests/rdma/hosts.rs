//! Several hosts: machines of the lab on one Ethernet (`scripts/lab run --nodes 3`), each with a soft-RoCE
//! device over it. The first loads and boots, the others are storage nodes.
//!
//! All machines run the same tests in the same order (`--test-threads=1`), each test at a port of its own. What
//! the first wants of another's host it asks for by an item at its node.

mod links;

use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::Signal;

use crate::cache::{DEVICE, chunks, wait};
use crate::common::Bench;
use crate::common::guest::boot;
use crate::common::node::Node;

/// The network interface of each machine.
const INTERFACE: &str = "eth0";
/// By this item a storage node is told that it is not needed any more.
const DONE: &[u8] = b"set done 0 0 1\r\n1\r\n";

fn lab(name: &str) -> u8 {
    let value = std::env::var(name).expect("scripts/test runs it, on several machines of the lab");
    value.parse().unwrap()
}

/// On the first host does `test` with the storage nodes on the others, at `port`; is one of these elsewhere.
fn on_hosts(port: u16, test: impl FnOnce(&[Node])) {
    let (host, hosts) = (lab("LAB_NODE"), lab("LAB_NODES"));
    let address = |host| SocketAddr::from(([10, 99, 0, host], port));
    if host != 1 {
        return store(address(host));
    }
    let nodes: Vec<Node> = (2..=hosts).map(|host| Node::elsewhere(address(host))).collect();
    for node in &nodes {
        wait("a storage node", || TcpStream::connect(node.address()).is_ok());
        wait("its memory to be registered", || {
            node.stats("rdma").contains(&("rdma".into(), "ready".into()))
        });
    }
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&nodes)));
    for node in &nodes {
        wait("the network", || TcpStream::connect(node.address()).is_ok());
        node.ask(DONE, "STORED\r\n");
    }
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Is a storage node until it is told that it is not needed any more.
fn store(address: SocketAddr) {
    let bench = Bench::new();
    let address = address.to_string();
    let arguments = ["--memory", "128M", "--listen", &address, "--rdma", DEVICE];
    let mut node = Node::start(bench.path(), &arguments);
    let is_done = || node.ask(b"get done\r\n", "END\r\n").starts_with("VALUE");
    // Emulated machines are slow; the lab has a limit of its own.
    while !is_done() {
        links::cut_if_asked(&node);
        sleep(Duration::from_millis(100));
    }
    // Leases of clients that were killed are not waited for.
    node.signal(Signal::KILL);
    node.wait();
}

fn url(nodes: &[Node]) -> String {
    let addresses: Vec<_> = nodes.iter().map(|node| node.address().to_string()).collect();
    format!("memcached://{}", addresses.join(","))
}

/// Puts the image `guest` into the nodes, and leaves no other copy.
fn publish(nodes: &[Node]) -> Bench {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    bench.expect(0, &["image", "publish", "guest", "--cache", &url(nodes)]);
    std::fs::remove_dir_all(bench.store()).unwrap();
    bench
}

#[test]
#[ignore = "needs three hosts with RDMA devices: scripts/test runs it in the lab"]
fn a_guest_boots_from_storage_nodes_on_other_hosts_by_rdma() {
    on_hosts(11211, |nodes| {
        let bench = publish(nodes);
        let booted = boot(&bench, "guest", &["--cache", &url(nodes)]);
        assert_eq!(booted.code, Some(0), "{booted:#?}");
        booted.self_test();
        let report = &booted.report["load"]["cache"];
        for node in nodes {
            assert!(chunks(report, node, "rdma") > 0, "{report}");
            assert_eq!(chunks(report, node, "tcp"), 0, "{report}");
        }
    });
}
