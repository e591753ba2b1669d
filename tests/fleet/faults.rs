//! Hosts that have no room, and caches that fail.

use std::fs;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;

use crate::common::agent::{Agent, has_kvm};
use crate::common::node::Node;
use crate::common::{Bench, guest_file, stderr};

#[test]
fn a_full_disk_fails_a_vm_and_not_the_agent() {
    if !has_kvm() || !rustix::process::geteuid().is_root() {
        eprintln!("not root: no small disk can be mounted");
        return;
    }
    let bench = Bench::new();
    bench.push("small", "vmlinuz", "initrd-small.cpio.gz");
    let run = bench.path().join("run");
    fs::create_dir(&run).unwrap();
    mount("none", &run, "tmpfs", MountFlags::empty(), c"size=512k").unwrap();
    let agent = Agent::with(bench, &[]);
    agent.fleet("web", "small", 2);
    let ballast = run.join("ballast");
    let _ = fs::write(&ballast, vec![1; 1 << 20]);
    let output = agent.expect(
        1,
        &["fleet", "boot", "--hold", "--memory", "64M", "--image", "small", "--count", "1"],
    );
    assert!(stderr(&output).contains("No space left"), "{}", stderr(&output));
    assert_eq!(agent.in_state("ready"), ["web-1", "web-2"]);
    fs::remove_file(ballast).unwrap();
    agent.fleet("more", "small", 2);
    drop(agent);
    let _ = unmount(run, UnmountFlags::DETACH);
}

#[test]
fn a_cache_node_that_is_lost_in_the_middle_of_a_fleet_costs_no_vm() {
    if !has_kvm() {
        return;
    }
    let bench = Bench::new();
    let nodes: Vec<_> = (0..2).map(|_| Node::start(bench.path(), &["--memory", "512M"])).collect();
    let addresses: Vec<_> = nodes.iter().map(|node| node.address().to_string()).collect();
    let url = format!("memcached://{}", addresses.join(","));
    let (kernel, initrd) = (guest_file("vmlinuz"), guest_file("initrd-100.cpio"));
    let files = [kernel.to_str().unwrap(), "--initrd", initrd.to_str().unwrap()];
    let push = ["image", "push", "large", "--cache", &url, "--kernel"];
    bench.expect(0, &[&push[..], &files].concat());
    fs::remove_dir_all(bench.store()).unwrap();
    let agent = Agent::with(bench, &["--cache", &url]);
    std::thread::scope(|scope| {
        let fleet = scope.spawn(|| agent.fleet_of("512M", "web", "large", 10));
        // The image is on its way.
        agent.wait_until("a VM that waits", |agent| !agent.in_state("starting").is_empty());
        nodes[0].signal(Signal::KILL);
        assert_eq!(fleet.join().unwrap()["booted"], 10);
    });
    // The names are known by the other, and what is in the pool needs neither.
    agent.fleet_of("512M", "more", "large", 3);
    nodes[1].signal(Signal::KILL);
    let report = agent.fleet_of("512M", "last", "large", 1);
    assert_eq!(report["booted"], 1, "{}", agent.log());
}
