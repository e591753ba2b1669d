//! Fleets that go well, or partly so.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::common::agent::{Agent, entries};
use crate::common::stderr;

#[test]
fn a_fleet_is_ready_and_its_second_vm_moves_no_byte() {
    let Some(agent) = Agent::start(&[]) else { return };
    let report = agent.fleet("web", "small", 20);
    assert_eq!((report["booted"].as_u64(), report["failed"].as_u64()), (Some(20), Some(0)));
    let phases = report["summary"]["phases"].as_array().unwrap();
    let names: Vec<_> = phases.iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    for phase in ["image", "turn", "spawn", "exec", "memory", "load", "boot"] {
        assert!(names.contains(&phase), "{names:?}");
    }
    assert_eq!(agent.in_state("ready").len(), 20);
    assert_eq!(agent.processes().len(), 20);
    // One brought it, and 19 found it.
    let loaded = agent.pool("bytes_loaded");
    assert_eq!((agent.pool("misses"), agent.pool("hits")), (1, 19));
    agent.fleet("more", "small", 5);
    assert_eq!((agent.pool("misses"), agent.pool("bytes_loaded")), (1, loaded));
}

#[test]
fn a_vm_that_fails_is_named_and_changes_nothing_for_the_others() {
    let Some(agent) = Agent::start(&[]) else { return };
    agent.fleet("web", "small", 5);
    agent.expect(0, &["rm", "--force", "web-2"]);
    // Four of these five are there already.
    let words = ["fleet", "boot", "--hold", "--json", "--memory", "64M", "--image", "small"];
    let output = agent.expect(1, &[&words[..], &["--name", "web", "--count", "5"]].concat());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report["booted"].as_u64(), report["failed"].as_u64()), (Some(1), Some(4)));
    let vms = report["vms"].as_array().unwrap();
    let failed: Vec<_> = vms.iter().filter_map(|vm| vm["error"].as_str()).collect();
    assert!(failed.iter().all(|error| error.contains("web-")), "{failed:?}");
    assert_eq!(agent.in_state("ready").len(), 5);
}

#[test]
fn an_image_that_is_not_there_is_named_and_nothing_stays() {
    let Some(agent) = Agent::start(&[]) else { return };
    let output =
        agent.expect(3, &["fleet", "boot", "--hold", "--image", "nothing", "--count", "3"]);
    assert!(stderr(&output).contains("nothing"), "{}", stderr(&output));
    assert_eq!(agent.vms().len(), 0);
    assert_eq!(entries(&agent.run().join("node/vms")), 0);
}

#[test]
fn a_fleet_that_is_called_off_leaves_nothing() {
    let Some(agent) = Agent::start(&["--parallel", "1"]) else { return };
    agent.fleet("other", "small", 2);
    let words = ["fleet", "boot", "--hold", "--memory", "64M", "--image", "small"];
    let mut command = agent.vmm(&[&words[..], &["--name", "web", "--count", "400"]].concat());
    let fleet = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    agent.wait_until("ten VMs", |agent| agent.vms().len() >= 10);
    kill_process(Pid::from_child(&fleet), Signal::INT).unwrap();
    let output = fleet.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    let left = agent.in_state("ready");
    assert_eq!(left, ["other-1", "other-2"]);
    agent.wait_until("only these", |agent| agent.processes().len() == 2);
}

#[test]
fn a_node_that_is_full_or_drained_says_so_and_starts_nothing() {
    let Some(agent) = Agent::start(&["--max-vms", "3"]) else { return };
    agent.fleet("web", "small", 3);
    let one = ["fleet", "boot", "--hold", "--memory", "64M", "--image", "small", "--count", "1"];
    let output = agent.expect(5, &one);
    assert!(stderr(&output).contains("--max-vms"), "{}", stderr(&output));
    agent.expect(0, &["rm", "--force", "web-1"]);
    agent.expect(0, &["node", "drain"]);
    let output = agent.expect(5, &one);
    assert!(stderr(&output).contains("drained"), "{}", stderr(&output));
    agent.expect(0, &["node", "undrain"]);
    agent.expect(0, &one);
}
