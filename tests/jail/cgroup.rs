//! Control groups: limits that hold. They need the controllers of version 2, which the lab has.

use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::path::Path;

use vmm::jail::cgroup::{Cgroup, Limits, MemoryEvents, Parent, remove_parent};
use vmm::jail::launch::{End, Jail, JailSpec};
use vmm::spec::limits::LimitsSpec;

use crate::inside::{program, spec};

/// A group with limits; none where the host cannot hold any, and then that is said.
fn group(name: &str, limits: &str, ram: u64) -> Option<(Parent, Cgroup)> {
    let parent = Parent::create(Path::new("vmm-test"));
    let Some(parent) = parent.ok().filter(|parent| parent.controllers().len() >= 3) else {
        eprintln!("this host has no cgroup v2 with controllers: seen in the lab");
        return None;
    };
    let limits: LimitsSpec = limits.parse().unwrap();
    let cgroup = parent.vm(name, &Limits::new(&limits, ram, 1, &[])).unwrap();
    Some((parent, cgroup))
}

/// Runs `word` in a jail in `cgroup` to its end.
fn run(cgroup: &Cgroup, word: &str) -> (End, String) {
    let nothing = std::fs::File::open("/dev/null").unwrap();
    let mut output = tempfile::tempfile().unwrap();
    let jail = Jail::prepare(JailSpec { cgroup: Some(cgroup), ..spec() }).unwrap();
    let standard = [nothing.as_fd(), output.as_fd(), output.as_fd()];
    let process = jail.spawn(&program(&jail, word, standard)).unwrap();
    let end = process.wait().unwrap();
    let mut text = String::new();
    output.rewind().unwrap();
    output.read_to_string(&mut text).unwrap();
    (end, text)
}

#[test]
fn memory_beyond_the_limit_kills_and_is_told() {
    let Some((parent, cgroup)) = group("memory", "memory-overhead=16M", 16 << 20) else { return };
    let (end, text) = run(&cgroup, "memory:20");
    assert_eq!(end, End::Exited(0), "{text}");
    assert_eq!(cgroup.memory_events().unwrap().oom_kill, 0);
    let (end, text) = run(&cgroup, "memory:64");
    assert_eq!(end, End::Killed(libc::SIGKILL), "{text}");
    assert!(matches!(cgroup.memory_events().unwrap(), MemoryEvents { oom_kill: 1.., .. }));
    finish(parent, cgroup);
}

#[test]
fn threads_beyond_the_limit_are_not_started() {
    let Some((parent, cgroup)) = group("tasks", "tasks=8", 1 << 30) else { return };
    let (end, text) = run(&cgroup, "threads:100");
    assert_eq!(end, End::Exited(0), "{text}");
    assert!(text.contains("threads: 7"), "{text}");
    finish(parent, cgroup);
}

#[test]
fn limits_are_where_the_kernel_holds_to_them() {
    let limits = "cpu=0.5,cpu-weight=50,swap=1M";
    let Some((parent, cgroup)) = group("limits", limits, 1 << 30) else { return };
    assert_eq!(cgroup.read("cpu.max").unwrap().trim(), "50000 100000");
    assert_eq!(cgroup.read("cpu.weight").unwrap().trim(), "50");
    let memory: u64 = cgroup.read("memory.max").unwrap().trim().parse().unwrap();
    assert_eq!(memory, (1 << 30) + (64 << 20) + (8 << 20));
    assert_eq!(cgroup.read("pids.max").unwrap().trim(), "17");
    // Made again under its name, it is the same one.
    assert_eq!(parent.find("limits").unwrap().path(), cgroup.path());
    finish(parent, cgroup);
}

#[test]
fn a_group_goes_with_all_that_is_in_it() {
    let Some((parent, cgroup)) = group("removal", "", 1 << 30) else { return };
    let nothing = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
    let jail = Jail::prepare(JailSpec { cgroup: Some(&cgroup), ..spec() }).unwrap();
    let standard = [nothing.as_fd(), nothing.as_fd(), nothing.as_fd()];
    let process = jail.spawn(&program(&jail, "wait", standard)).unwrap();
    let pid = process.pid().as_raw_nonzero().get();
    assert_eq!(cgroup.processes().unwrap(), [u32::try_from(pid).unwrap()]);
    assert!(cgroup.is_populated().unwrap());
    // Its own view of groups begins at its own.
    let seen = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(seen.contains("/vmm-test/removal"), "{seen}");
    finish(parent, cgroup);
    assert_eq!(process.wait().unwrap(), End::Killed(libc::SIGKILL));
}

fn finish(parent: Parent, cgroup: Cgroup) {
    let path = cgroup.path().to_path_buf();
    cgroup.remove().unwrap();
    assert!(!path.exists());
    // Another test may still have a group in there.
    remove_parent(&parent).unwrap();
    drop(parent);
}
