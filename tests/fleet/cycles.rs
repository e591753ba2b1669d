//! What is left when VMs have come and gone.

use std::fs;
use std::path::Path;

use crate::common::agent::{Agent, descriptors, entries};
use crate::common::is_long;

/// Threads of a process.
fn threads(pid: u32) -> usize {
    entries(format!("/proc/{pid}/task").as_ref())
}

/// Mounts below a folder; other tests have theirs elsewhere.
fn mounts(folder: &Path) -> usize {
    let folder = folder.to_str().unwrap();
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    all.lines().filter(|line| line.contains(folder)).count()
}

#[test]
fn boots_and_stops_leave_nothing_behind() {
    let Some(agent) = Agent::start(&[]) else { return };
    let rounds = if is_long() { 20 } else { 4 };
    agent.fleet("warm", "small", 50);
    agent.remove_all();
    agent.wait_until("quiet", |agent| agent.processes().is_empty());
    let state = |agent: &Agent| {
        let run = agent.run().join("node/vms");
        (descriptors(agent.pid()), entries(&run), mounts(&agent.run()))
    };
    let (before, threads_before) = (state(&agent), threads(agent.pid()));
    for round in 0..rounds {
        let report = agent.fleet(&format!("round{round}"), "small", 50);
        assert_eq!(report["booted"], 50, "{report}");
        agent.remove_all();
    }
    // What the first fleet has left may still have been on its way out; what a round leaves is more than that.
    agent.wait_until("as before", |agent| {
        let (files, folders, mounted) = state(agent);
        let is_as_before = files <= before.0 && folders <= before.1 && mounted <= before.2;
        is_as_before && agent.processes().is_empty()
    });
    // Threads that wait for work may be more or fewer than they were, but not by rounds.
    assert!(threads(agent.pid()) <= threads_before + 16, "{}", threads(agent.pid()));
    assert_eq!(agent.pool("misses"), 1);
}
