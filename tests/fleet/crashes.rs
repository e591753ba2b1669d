//! Agents and VMs that are killed.

use std::process::Stdio;

use rustix::process::{Signal, kill_process};

use crate::common::agent::{Agent, entries};

#[test]
fn an_agent_that_is_killed_in_the_middle_of_a_fleet_is_followed_by_one_that_finds_its_vms() {
    let Some(mut agent) = Agent::start(&[]) else { return };
    let words = ["fleet", "boot", "--hold", "--memory", "64M", "--image", "small"];
    let mut command = agent.vmm(&[&words[..], &["--name", "web", "--count", "100"]].concat());
    let mut fleet = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    agent.wait_until("thirty VMs", |agent| agent.in_state("ready").len() >= 30);
    agent.end(Signal::KILL);
    assert!(!fleet.wait().unwrap().success());
    let living = agent.processes();
    assert!(living.len() >= 30, "{living:?}");

    agent.start_again();
    // Those that were just being started come to an end or to be ready; all others live on.
    agent.wait_until("settled", |agent| agent.in_state("starting").is_empty());
    let ready = agent.in_state("ready").len();
    assert!(ready >= 30);
    agent.wait_until("all known", |agent| agent.processes().len() == agent.in_state("ready").len());
    // The image is where it was, and new VMs have new names and numbers.
    assert_eq!(agent.pool("misses"), 0);
    agent.fleet("more", "small", 3);
    assert_eq!(agent.pool("misses"), 0);
    agent.remove_all();
    assert_eq!(agent.vms().len(), 0);
    agent.wait_until("no processes", |agent| agent.processes().is_empty());
    assert_eq!(entries(&agent.run().join("node/vms")), 0);
}

#[test]
fn vms_live_on_when_the_agent_ends_and_can_be_stopped_by_the_next() {
    let Some(mut agent) = Agent::start(&[]) else { return };
    agent.fleet("web", "small", 3);
    let before = agent.processes();
    assert_eq!(agent.end(Signal::TERM), Some(0));
    assert_eq!(agent.processes(), before);
    agent.start_again();
    assert_eq!(agent.in_state("ready"), ["web-1", "web-2", "web-3"]);
    agent.expect(0, &["stop", "web-2"]);
    agent.wait_until("two", |agent| agent.processes().len() == 2);
    agent.wait_until("ended", |agent| agent.in_state("ended") == ["web-2"]);
}

#[test]
fn a_vm_that_is_killed_is_known_to_have_been_and_the_others_live() {
    let Some(agent) = Agent::start(&[]) else { return };
    agent.fleet("web", "small", 3);
    kill_process(agent.vm_pid("web-2"), Signal::KILL).unwrap();
    agent.wait_until("ended", |agent| agent.in_state("ended") == ["web-2"]);
    let vm = agent.vm("web-2");
    assert_eq!(vm["end"]["code"], 137, "{vm}");
    assert!(vm["end"]["reason"].as_str().unwrap().contains("killed"), "{vm}");
    assert_eq!(agent.in_state("ready"), ["web-1", "web-3"]);
    // One that ends by itself does so with another code.
    agent.expect(0, &["stop", "web-1"]);
    agent.wait_until("ended", |agent| agent.in_state("ended") == ["web-1", "web-2"]);
    assert_eq!(agent.vm("web-1")["end"]["code"], 143);
}
