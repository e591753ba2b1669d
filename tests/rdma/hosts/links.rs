//! Hosts that leave the network, and devices that are taken away, in the middle of a load.

use std::net::TcpStream;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::{Duration, Instant};

use imgcache::transport::cluster::{CacheReport, LinkChoice};

use super::{INTERFACE, on_hosts, publish, url};
use crate::cache::{DEVICE, run, wait};
use crate::common::node::Node;
use crate::loading::{DEADLINE, load, session};

/// Takes this host off the network for as long as an item of its node says, if there is one.
pub(super) fn cut_if_asked(node: &Node) {
    let answer = node.ask(b"get cut\r\n", "END\r\n");
    let Some(milliseconds) = answer.strip_prefix("VALUE").and_then(|item| item.lines().nth(1))
    else {
        return;
    };
    let time = Duration::from_millis(milliseconds.parse().unwrap());
    // Only the host itself reaches the node now.
    node.ask(b"delete cut\r\n", "DELETED\r\n");
    run("ip", &["link", "set", INTERFACE, "down"]);
    sleep(time);
    run("ip", &["link", "set", INTERFACE, "up"]);
}

/// Has the host of `node` leave the network for some time; returns when it has.
fn cut(node: &Node, time: Duration) {
    let time = time.as_millis().to_string();
    let request = format!("set cut 0 0 {}\r\n{time}\r\n", time.len());
    assert_eq!(node.ask(request.as_bytes(), "STORED\r\n"), "STORED\r\n");
    wait("the host to go", || {
        TcpStream::connect_timeout(&node.address(), Duration::from_millis(100)).is_err()
    });
}

fn by_rdma(report: &CacheReport, node: &Node) -> u64 {
    let name = node.address().to_string();
    report.nodes.iter().find(|one| one.name == name).map_or(0, |node| node.by.rdma)
}

/// A load in the middle of which the host of one of its nodes leaves the network for some time.
fn load_with_a_cut(nodes: &[Node], time: Duration) -> CacheReport {
    let session = session(&url(nodes), LinkChoice::Auto);
    let begun = Instant::now();
    let report = load(&*session, 20, &|| cut(&nodes[0], time));
    assert!(begun.elapsed() < DEADLINE);
    assert_eq!((report.damaged, report.chunks_from_origin), (0, 0), "{report:?}");
    assert!(by_rdma(&report, &nodes[1]) > 0, "{report:?}");
    report
}

#[test]
#[ignore = "needs three hosts with RDMA devices: scripts/test runs it in the lab"]
fn a_host_that_is_gone_for_a_moment_costs_no_load() {
    on_hosts(11212, |nodes| {
        let _bench = publish(nodes);
        load_with_a_cut(nodes, Duration::from_secs(1));
        wait("it to be back", || TcpStream::connect(nodes[0].address()).is_ok());
        let session = session(&url(nodes), LinkChoice::Auto);
        let report = load(&*session, 0, &|| ());
        assert!(by_rdma(&report, &nodes[0]) > 0, "{report:?}");
    });
}

#[test]
#[ignore = "needs three hosts with RDMA devices: scripts/test runs it in the lab"]
fn a_host_that_is_gone_for_longer_than_anybody_waits_costs_its_share_only() {
    on_hosts(11213, |nodes| {
        let _bench = publish(nodes);
        let report = load_with_a_cut(nodes, Duration::from_secs(12));
        let name = nodes[0].address().to_string();
        let gone = report.nodes.iter().find(|node| node.name == name);
        assert!(gone.is_some_and(|node| node.failures > 0), "{report:?}");
    });
}

/// Soft-RoCE goes when the last who has it open closes it: a load ends by it. Who comes after that finds no device.
#[test]
#[ignore = "needs three hosts with RDMA devices: scripts/test runs it in the lab"]
fn a_device_that_is_taken_away_in_the_middle_of_a_load_is_done_without() {
    on_hosts(11214, |nodes| {
        let _bench = publish(nodes);
        let taking: Mutex<Option<Child>> = Mutex::default();
        {
            let session = session(&url(nodes), LinkChoice::Auto);
            load(&*session, 30, &|| {
                let child = Command::new("rdma").args(["link", "del", DEVICE]).spawn().unwrap();
                *taking.lock().unwrap() = Some(child);
            });
        }
        let child = taking.lock().unwrap().take();
        assert!(child.unwrap().wait().unwrap().success());
        {
            let session = session(&url(nodes), LinkChoice::Auto);
            let report = load(&*session, 0, &|| ());
            for node in &report.nodes {
                assert!(node.by.tcp > 0 && node.by.rdma == 0, "{report:?}");
                let reason = node.link_reason.as_deref().unwrap();
                assert!(reason.contains("there is no RDMA device"), "{reason}");
            }
        }
        run("rdma", &["link", "add", DEVICE, "type", "rxe", "netdev", INTERFACE]);
        let session = session(&url(nodes), LinkChoice::Auto);
        let report = load(&*session, 0, &|| ());
        assert!(nodes.iter().all(|node| by_rdma(&report, node) > 0), "{report:?}");
    });
}
