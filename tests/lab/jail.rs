//! Jailed VMs with real guests: they do what they do outside, within their filters and groups; and no
//! filter has a rule that nobody uses.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;
use vmm::jail::seccomp::{Features, ThreadKind};

use crate::common::guest::boot;
use crate::common::ramdisk::push_script;
use crate::common::trace::{self, Trace};
use crate::common::{Bench, stderr};
use crate::settle::HugeStore;

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_jailed_guest_runs_as_one_outside_and_ends_with_its_code() {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    let booted = boot(&bench, "guest", &["--jail", "--cpus", "2"]);
    assert_eq!(booted.code, Some(0), "{booted:#?}");
    assert_eq!(booted.self_test()["crng_ready"], "yes");
    let overhead = booted.report["guest"]["overhead_bytes"].as_u64().unwrap();
    assert!(overhead > 0, "{booted:#?}");
    for (then, code) in [("panic", 10), ("reboot reboot=k", 12), ("triplefault reboot=t", 11)] {
        let words = format!("selftest.then={then}");
        let booted = boot(&bench, "guest", &["--jail", "--cmdline-append", &words]);
        assert_eq!(booted.code, Some(code), "{booted:#?}");
    }
    // Groups are gone with their VMs.
    let left = std::fs::read_dir("/sys/fs/cgroup/vmm").unwrap();
    assert_eq!(left.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count(), 0);
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_vm_that_takes_more_memory_than_its_limit_is_killed_and_that_is_said() {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    // Its RAM fills up to the last byte, and what is granted beyond is not enough for the VMM.
    let script = "mount -t tmpfs -o size=100% none /tmp; cat /dev/zero >/tmp/x; sleep 100";
    let arguments = ["boot", "--jail", "--memory", "512M", "--limits", "memory-overhead=16M"];
    push_script(&bench, "greedy", script, &[]);
    let mut command = bench.vmm(&arguments);
    let output = command.args(["--image", "greedy", "--console", "/dev/null"]).output().unwrap();
    // Whether the guest or the VMM is first to notice, the host has lost nothing.
    let said = stderr(&output);
    assert!(
        output.status.code() == Some(137) && said.contains("more memory than its limit")
            || output.status.code() == Some(10),
        "{output:?}"
    );
}

/// All that the filters of a machine without further devices allow, seen to be used; and nothing else.
#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn no_rule_is_unused_and_no_call_is_without_a_rule() {
    let mut all = Trace::default();
    for trace in [settles(), says_much(), is_typed_at(), is_ended()] {
        eprintln!("code {}, {} rules used", trace.code, trace.used.len());
        all.used.extend(trace.used);
        all.refused.extend(trace.refused);
        all.unsealed.extend(trace.unsealed);
        all.sealed.extend(trace.sealed);
    }
    assert!(all.refused.is_empty(), "{:#?}", all.refused);
    // The terminal's guardian is a process of its own, and has nothing of a guest.
    let unsealed: Vec<_> = all.unsealed.iter().filter(|call| !call.starts_with("vmm: ")).collect();
    assert!(unsealed.is_empty(), "{unsealed:#?}");
    let kinds = [ThreadKind::EventLoop, ThreadKind::Vcpu, ThreadKind::Control, ThreadKind::Settle];
    assert_eq!(all.sealed, BTreeSet::from(kinds));
    let wanted = trace::to_be_used(&all.sealed, Features::default());
    let unused: Vec<_> = wanted.difference(&all.used).collect();
    assert!(unused.is_empty(), "{unused:#?}");
}

/// A guest that boots under the tracer.
struct Traced {
    bench: Bench,
    arguments: Vec<String>,
    input: Stdio,
    output: Stdio,
}

impl Traced {
    fn new(bench: Bench, arguments: &[&str]) -> Self {
        let mut arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
        // To be seen, not killed: what is refused is a failure of the test.
        arguments.extend(["--seccomp", "log"].map(String::from));
        Self { bench, arguments, input: Stdio::null(), output: Stdio::null() }
    }

    fn run(self, on_seal: impl FnMut(i32)) -> Trace {
        let errors: PathBuf = self.bench.path().join("errors");
        let mut command = self.bench.vmm(&["boot", "--jail"]);
        command.args(&self.arguments).stdin(self.input).stdout(self.output);
        command.stderr(File::create(&errors).unwrap());
        let trace = trace::run(command, Features::default(), on_seal);
        eprintln!("{}", std::fs::read_to_string(errors).unwrap());
        trace
    }
}

/// A mapped ramdisk becomes the guest's own; two processors; a report.
fn settles() -> Trace {
    let store = HugeStore::new();
    store.0.push("guest", "vmlinuz", "initrd-100.cpio");
    let report = store.0.path().join("report.json");
    let words = ["--image", "guest", "--cpus", "2", "--report", report.to_str().unwrap()];
    let mut command = store.0.vmm(&["boot", "--jail", "--seccomp", "log"]);
    command.args(words).stdout(Stdio::null());
    let trace = trace::run(command, Features::default(), |_| {});
    assert_eq!(trace.code, 0, "{trace:#?}");
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    assert!(report["guest"]["settled"]["settled_ms"].is_f64(), "{report}");
    trace
}

/// A guest with the agent, which says all that can be said, and is refused images.
fn says_much() -> Trace {
    let bench = Bench::new();
    let script = "guest-agent mark init\nguest-agent ping --count 100\n\
                  guest-agent log --level warning words\nguest-agent metrics load=3\n\
                  guest-agent heartbeat\nguest-agent ready serving\n\
                  guest-agent fetch --all --output /tmp/image || echo refused\n";
    push_script(&bench, "guest", script, &[]);
    let events = bench.path().join("events");
    let arguments = ["--image", "guest", "--timings", "--events", events.to_str().unwrap()];
    let trace = Traced::new(bench, &arguments).run(|_| {});
    assert_eq!(trace.code, 0, "{trace:#?}");
    trace
}

/// A terminal, the escape, and the terminal's mode put back.
fn is_typed_at() -> Trace {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let terminal: OwnedFd =
        rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty()).unwrap();
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    let mut traced =
        Traced::new(bench, &["--image", "guest", "--cmdline-append", "selftest.then=hang"]);
    traced.input = terminal.try_clone().unwrap().into();
    let (mut reader, writer) = std::io::pipe().unwrap();
    traced.output = writer.into();
    let keys = controller.try_clone().unwrap();
    let typist = std::thread::spawn(move || {
        until(&mut reader, "selftest: ok");
        rustix::io::write(&keys, &[b'x'; 1000]).unwrap();
        rustix::io::write(&keys, b"\x01x").unwrap();
        let _ = reader.read_to_end(&mut Vec::new());
    });
    let trace = traced.run(|_| {});
    typist.join().unwrap();
    assert_eq!(trace.code, 130, "{trace:#?}");
    assert!(
        rustix::termios::tcgetattr(&terminal)
            .unwrap()
            .local_modes
            .contains(rustix::termios::LocalModes::ICANON)
    );
    drop(controller);
    trace
}

/// SIGTERM, by way of the process outside.
fn is_ended() -> Trace {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    let mut traced =
        Traced::new(bench, &["--image", "guest", "--cmdline-append", "selftest.then=hang"]);
    let (mut reader, writer) = std::io::pipe().unwrap();
    traced.output = writer.into();
    let (told, sealed) = std::sync::mpsc::channel();
    let ender = std::thread::spawn(move || {
        let pid: i32 = sealed.recv().unwrap();
        until(&mut reader, "selftest: ok");
        let parent = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let parent = parent.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
        let parent = Pid::from_raw(parent.trim().parse().unwrap()).unwrap();
        kill_process(parent, Signal::TERM).unwrap();
        let _ = reader.read_to_end(&mut Vec::new());
    });
    let trace = traced.run(|pid| told.send(pid).unwrap());
    ender.join().unwrap();
    assert_eq!(trace.code, 143, "{trace:#?}");
    trace
}

fn until(reader: &mut impl Read, words: &str) {
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    while !seen.contains(words) {
        let count = reader.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "no {words:?} in {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        std::thread::sleep(Duration::from_millis(1));
    }
}
