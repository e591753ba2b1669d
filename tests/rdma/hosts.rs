//! Several hosts: machines of the lab on one Ethernet (`scripts/lab run --nodes 3`), each with a soft-RoCE
//! device over it. The first loads and boots, the others are storage nodes.

use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::Signal;

use crate::cache::{DEVICE, chunks, wait};
use crate::common::Bench;
use crate::common::guest::boot;
use crate::common::node::Node;

/// The port of all storage nodes.
const PORT: u16 = 11211;
/// By this item a storage node is told that it is not needed any more.
const DONE: &[u8] = b"set done 0 0 1\r\n1\r\n";

fn lab(name: &str) -> u8 {
    let value = std::env::var(name).expect("scripts/test runs it, on several machines of the lab");
    value.parse().unwrap()
}

fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 99, 0, host], PORT))
}

#[test]
#[ignore = "needs three hosts with RDMA devices: scripts/test runs it in the lab"]
fn a_guest_boots_from_storage_nodes_on_other_hosts_by_rdma() {
    let (host, hosts) = (lab("LAB_NODE"), lab("LAB_NODES"));
    if host == 1 { boot_from(&(2..=hosts).collect::<Vec<u8>>()) } else { store(host) }
}

/// Is a storage node until it is told that it is not needed any more.
fn store(host: u8) {
    let bench = Bench::new();
    let address = address(host).to_string();
    let arguments = ["--memory", "128M", "--listen", &address, "--rdma", DEVICE];
    let mut node = Node::start(bench.path(), &arguments);
    let is_done = || node.ask(b"get done\r\n", "END\r\n").starts_with("VALUE");
    // Emulated machines are slow; the lab has a limit of its own.
    while !is_done() {
        sleep(Duration::from_millis(500));
    }
    // Leases of clients that were killed are not waited for.
    node.signal(Signal::KILL);
    node.wait();
}

/// Loads from the storage nodes at `hosts`, and boots; tells them when it is done, whatever came of it.
fn boot_from(hosts: &[u8]) {
    let nodes: Vec<Node> = hosts.iter().map(|host| Node::elsewhere(address(*host))).collect();
    for node in &nodes {
        wait("a storage node", || TcpStream::connect(node.address()).is_ok());
        wait("its memory to be registered", || {
            node.stats("rdma").contains(&("rdma".into(), "ready".into()))
        });
    }
    let result = std::panic::catch_unwind(|| {
        let bench = Bench::new();
        let addresses: Vec<_> = nodes.iter().map(|node| node.address().to_string()).collect();
        let cache = format!("memcached://{}", addresses.join(","));
        bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
        bench.expect(0, &["image", "publish", "guest", "--cache", &cache]);
        std::fs::remove_dir_all(bench.store()).unwrap();
        let booted = boot(&bench, "guest", &["--cache", &cache]);
        assert_eq!(booted.code, Some(0), "{booted:#?}");
        booted.self_test();
        let report = &booted.report["load"]["cache"];
        for node in &nodes {
            assert!(chunks(report, node, "rdma") > 0, "{report}");
            assert_eq!(chunks(report, node, "tcp"), 0, "{report}");
        }
    });
    for node in &nodes {
        node.ask(DONE, "STORED\r\n");
    }
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}
