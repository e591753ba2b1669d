//! Servers as processes, in network namespaces, with many clients and a real one. Needs root.
#![allow(clippy::unwrap_used, missing_docs)]

mod load;
mod net;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use dhcp::mirror::replica::Stage;
use dhcp::serve::Report;
use load::{Load, Outcome};
use net::{Network, Node};

/// By which this program is a server.
const WORDS: &[&str] = &["--exact", "server", "--nocapture"];

/// No test: what the others run as a server.
#[test]
fn server() {
    net::be_server();
}

struct Group {
    network: Network,
    folders: Vec<tempfile::TempDir>,
    nodes: Vec<Node>,
}

impl Group {
    /// `count` servers, the first of which serves, and a host for clients.
    fn new(count: u8, how: &str) -> Self {
        let network = Network::new(usize::from(count) + 1);
        let folders: Vec<_> = (0..count).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut group = Self { network, folders, nodes: Vec::new() };
        for number in 0..count {
            let how = if number == 0 { how } else { "" };
            let node = group.start(number, count, how);
            group.nodes.push(node);
        }
        group.nodes[0].wait_for(Stage::Serving, usize::from(count) - 1);
        group
    }

    fn start(&self, number: u8, count: u8, how: &str) -> Node {
        let at = usize::from(number);
        let state = self.folders[at].path();
        Node::start(&self.network.hosts[at], number, state, how, count, WORDS)
    }

    fn load(&self, load: &Load) -> Outcome {
        let load = load.clone();
        self.network.hosts.last().unwrap().run(move || load.run("eth0"))
    }
}

fn assert_unique(outcome: &Outcome, clients: usize) {
    assert_eq!(outcome.leases.len(), clients, "all are served");
    let addresses: BTreeSet<_> = outcome.leases.values().collect();
    assert_eq!(addresses.len(), clients, "no address is given twice");
}

/// Every lease that a client was told of is known to the server of `report`.
fn assert_known(outcome: &Outcome, report: &Report) {
    let known: BTreeMap<_, _> = report.leases.iter().map(|l| (l.mac, l.address)).collect();
    for (mac, address) in &outcome.leases {
        assert_eq!(known.get(mac), Some(address), "{mac}");
    }
}

#[test]
fn with_a_mirror_all_clients_get_addresses_of_their_own() {
    let group = Group::new(2, "first");
    let outcome = group.load(&Load::new(245));
    assert_unique(&outcome, 245);
    for node in &group.nodes {
        assert_known(&outcome, &node.report().unwrap());
    }
    assert_eq!(group.load(&Load::new(245)).leases, outcome.leases, "each has the same again");
}

#[test]
fn a_server_killed_in_the_midst_loses_nothing_and_its_mirror_goes_on() {
    let mut group = Group::new(2, "first");
    let load = Load::new(2000);
    let outcome = thread::scope(|scope| {
        let running = scope.spawn(|| {
            group.network.hosts[2].run({
                let load = load.clone();
                move || load.run("eth0")
            })
        });
        while load.done.load(Ordering::Relaxed) < 500 {
            thread::sleep(Duration::from_millis(1));
        }
        group.nodes[0].kill();
        running.join().unwrap()
    });
    assert_unique(&outcome, 2000);
    let report = group.nodes[1].wait_for(Stage::Serving, 0);
    assert_known(&outcome, &report);
    // The old one comes back as the mirror, and takes over when the other is killed.
    group.nodes[0] = group.start(0, 2, "first");
    group.nodes[0].wait_for(Stage::Mirror, 0);
    group.nodes[1].wait_for(Stage::Serving, 1);
    group.nodes[1].kill();
    assert_known(&outcome, &group.nodes[0].wait_for(Stage::Serving, 0));
    assert_eq!(group.load(&Load::new(2000)).leases, outcome.leases);
}

#[test]
fn a_server_that_is_killed_and_started_again_knows_all() {
    let mut group = Group::new(1, "alone");
    let outcome = group.load(&Load::new(245));
    assert_unique(&outcome, 245);
    group.nodes[0].kill();
    group.nodes[0] = group.start(0, 1, "alone");
    assert_known(&outcome, &group.nodes[0].wait_for(Stage::Serving, 0));
}

#[test]
fn without_its_mirror_a_server_is_silent() {
    let mut group = Group::new(2, "first");
    group.nodes[1].kill();
    let report = group.nodes[0].wait_for(Stage::Waiting, 0);
    assert_eq!((report.reached, report.needed), (0, 1));
    let mut load = Load::new(10);
    load.patience = Duration::from_secs(1);
    assert_eq!(group.load(&load).leases.len(), 0);
    group.nodes[1] = group.start(1, 2, "");
    assert_unique(&group.load(&Load::new(10)), 10);
}

#[test]
fn with_three_mirrors_one_of_the_others_goes_on() {
    let mut group = Group::new(4, "first");
    assert_unique(&group.load(&Load::new(100)), 100);
    group.nodes[0].kill();
    let outcome = group.load(&Load::new(300));
    assert_unique(&outcome, 300);
    let serving = group.nodes[1..].iter().filter_map(Node::report);
    let serving: Vec<_> = serving.filter(|report| report.stage == Stage::Serving).collect();
    assert_eq!(serving.len(), 1);
    assert_known(&outcome, &serving[0]);
}

/// Runs a client of Debian's in the clients' host; what its script was told, as KEY=VALUE.
fn udhcpc(group: &Group, words: &[&str]) -> BTreeMap<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let (script, told) = (folder.path().join("script"), folder.path().join("told"));
    let text = format!("#!/bin/sh\n[ \"$1\" != bound ] || env > '{}'\n", told.display());
    std::fs::write(&script, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    let mut command = Command::new("busybox");
    command.args(["udhcpc", "-i", "eth0", "-f", "-n", "-q", "-t", "10", "-T", "1", "-s"]);
    command.arg(&script).args(words);
    let output = group.network.hosts.last().unwrap().run(move || command.output().unwrap());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = std::fs::read_to_string(told).unwrap();
    told.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(k, v)| (k.into(), v.into()))
        .collect()
}

#[test]
fn a_real_client_gets_what_its_record_says_and_one_without_is_served_of_the_pool() {
    let group = Group::new(1, "alone");
    let told = udhcpc(&group, &["-x", "hostname:some-name", "-R"]);
    let address: std::net::Ipv4Addr = told["ip"].parse().unwrap();
    assert!(net::settings().is_pooled(address), "{address}");
    for (key, value) in [
        ("router", "10.77.0.1"),
        ("dns", "10.77.0.1"),
        ("domain", "example"),
        ("lease", "3600"),
        ("serverid", "10.77.0.1"),
        ("mask", "16"),
    ] {
        assert_eq!(told.get(key).map(String::as_str), Some(value), "{key}");
    }
    drop(group);

    let folder = tempfile::tempdir().unwrap();
    let records = r#"[{"mac": "02:77:00:00:00:03", "address": "10.77.0.200", "name": "known",
        "told": {"boot_file": "a.efi"}}]"#;
    std::fs::write(folder.path().join("records.json"), records).unwrap();
    let network = Network::new(2);
    let node = Node::start(&network.hosts[0], 0, folder.path(), "alone", 1, WORDS);
    node.wait_for(Stage::Serving, 0);
    let group = Group { network, folders: vec![folder], nodes: vec![node] };
    let told = udhcpc(&group, &["-O", "hostname", "-O", "bootfile"]);
    assert_eq!(told["ip"], "10.77.0.200");
    assert_eq!(told["hostname"], "known");
    assert_eq!(told["boot_file"], "a.efi");
    let report = group.nodes[0].report().unwrap();
    assert!(
        report.leases.iter().any(|lease| lease.recorded && lease.name.as_deref() == Some("known"))
    );
}
