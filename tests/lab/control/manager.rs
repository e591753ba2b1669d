//! A guest that boots guests.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::said;
use crate::common::guest::boot;
use crate::common::node::Node;
use crate::common::ramdisk::push_script;
use crate::common::{Bench, guest_file};

/// What the operator allows.
const RIGHTS: [&str; 8] = [
    "--role",
    "manager",
    "--may",
    "boot,cache",
    "--name",
    "boss",
    "--boot-quota",
    "count=4,memory=1G,images=tenant",
];

/// Waits until `what` has happened.
fn wait_until(what: &str, happened: impl Fn() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < Duration::from_secs(240), "not yet: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A manager that runs, and the folder of its VMs.
struct Manager {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    vms: PathBuf,
    log: PathBuf,
}

impl Manager {
    fn start(bench: &Bench, image: &str, arguments: &[&str]) -> Self {
        let (run, log) = (bench.path().join("run"), bench.path().join("manager.log"));
        let mut child = bench
            .vmm(&["-v", "boot", "--image", image, "--memory", "256M"])
            .args(RIGHTS)
            .args(arguments)
            .arg("--run-dir")
            .arg(&run)
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, vms: run.join("vms"), log }
    }

    /// Reads until the guest has printed this; returns what it was.
    fn wait_for(&mut self, text: &str) -> String {
        let mut seen = String::new();
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            if line.contains(text) {
                return line;
            }
            seen += &line;
            seen.push('\n');
        }
        panic!("no {text:?} in {seen}; log: {}", std::fs::read_to_string(&self.log).unwrap());
    }

    fn vm(&self, number: u32, file: &str) -> PathBuf {
        self.vms.join(number.to_string()).join(file)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn has(path: &Path, text: &str) -> bool {
    std::fs::read_to_string(path).is_ok_and(|content| content.contains(text))
}

fn lives(path: &Path) -> bool {
    let pid = std::fs::read_to_string(path).unwrap().trim().parse().unwrap();
    // The lab's init reaps whom nobody waits for.
    rustix::process::test_kill_process(Pid::from_raw(pid).unwrap()).is_ok()
}

/// Kehne's path: the manager names an image, the VMM fetches it from the nodes of a cache, four VMs
/// start; they outlive the manager, and one of the same name finds and stops them.
#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_manager_boots_four_guests_from_two_nodes_and_they_outlive_it() {
    let bench = Bench::new();
    let nodes: Vec<Node> =
        (0..2).map(|_| Node::start(bench.path(), &["--memory", "128M"])).collect();
    let addresses: Vec<_> = nodes.iter().map(|node| node.address().to_string()).collect();
    let (servers, url) = (addresses.join(","), format!("memcached://{}", addresses.join(",")));

    // Tenants come from the cache alone: the store has only managers.
    let (kernel, initrd) = (guest_file("vmlinuz"), guest_file("initrd-small.cpio.gz"));
    let elsewhere = bench.path().join("elsewhere");
    let mut push = bench.vmm(&["image", "push", "tenant", "--cache", &url]);
    push.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
    push.args(["--cmdline", "console=ttyS0 quiet selftest.then=hang"]);
    assert!(push.env("VMM_STORE", &elsewhere).output().unwrap().status.success());
    let first = format!(
        "
echo no-quota: $(guest-agent boot --image other 2>&1)
guest-agent cache {servers}
guest-agent boot --image tenant --count 4 --memory 128M --name web
echo too-many: $(guest-agent boot --image tenant --memory 128M 2>&1)
guest-agent ps
echo manager: booted
while :; do sleep 100; done
"
    );
    push_script(&bench, "first", &first, &[]);
    let second = "
guest-agent ps
for vm in 1 2 3 4; do guest-agent console $vm | grep 'selftest: ok'; done
for vm in 1 2 3 4; do guest-agent stop $vm; done
while guest-agent ps | grep -q running; do sleep 1; done
guest-agent inspect 3
guest-agent stop 3; echo stopped-again: $?
echo manager: stopped
";
    push_script(&bench, "second", second, &[]);

    let mut manager = Manager::start(&bench, "first", &[]);
    assert!(manager.wait_for("no-quota:").contains("not-permitted"));
    assert!(manager.wait_for("too-many:").contains("no-memory"));
    manager.wait_for("manager: booted");
    for vm in 1..=4 {
        wait_until("guests in user space", || has(&manager.vm(vm, "console"), "selftest: ok"));
    }
    manager.child.kill().unwrap();
    manager.child.wait().unwrap();
    for vm in 1..=4 {
        assert!(lives(&manager.vm(vm, "pid")), "VM {vm} died with its manager");
        // From both nodes, and from nowhere else.
        assert!(!has(&manager.vm(vm, "stderr"), "origin"));
    }
    assert!(nodes.iter().all(|node| node.number("", "get_hits") > 0));

    let mut again = Manager::start(&bench, "second", &[]);
    again.wait_for("web-4");
    assert!(again.wait_for("stopped-again:").contains('1'));
    again.wait_for("manager: stopped");
    for vm in 1..=4 {
        wait_until("VMs stopped", || !lives(&again.vm(vm, "pid")));
    }
    assert_eq!(again.child.wait().unwrap().code(), Some(0));
}

/// The thesis' alternative: the manager fetches each chunk and hands it over.
#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_manager_hands_an_image_over_chunk_by_chunk() {
    let bench = Bench::new();
    bench.push("tenant", "vmlinuz", "initrd-small.cpio.gz");
    let script = "
echo 4 >/proc/sys/vm/nr_hugepages
guest-agent load --image tenant --memory 128M --name handed
while guest-agent ps | grep -q -e running -e loading; do sleep 1; done
guest-agent console 1 | grep 'selftest: ok'
guest-agent inspect 1
echo manager: done
";
    push_script(&bench, "manager", script, &[]);
    let mut manager = Manager::start(&bench, "manager", &["--may", "fetch=tenant"]);
    manager.wait_for("selftest: ok");
    manager.wait_for("manager: done");
    assert!(has(&manager.vm(1, "report"), "\"transport\":\"handed\""));
    assert!(has(&manager.vm(1, "exit"), "0"));
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn an_ordinary_guest_is_refused_and_starts_nothing() {
    let bench = Bench::new();
    let run = bench.path().join("run");
    let script = "
echo boot: $(guest-agent boot --image guest 2>&1)
echo ps: $(guest-agent ps 2>&1)
echo stop: $(guest-agent stop 1 2>&1)
echo cache: $(guest-agent cache 10.0.0.1 2>&1)
echo fetch: $(guest-agent fetch --image other --chunk 0 --output /tmp/x 2>&1)
";
    push_script(&bench, "guest", script, &[]);
    let booted = boot(&bench, "guest", &["--run-dir", run.to_str().unwrap()]);
    assert_eq!(booted.code, Some(0), "{booted:#?}");
    for what in ["boot", "ps", "stop", "cache", "fetch"] {
        assert!(said(&booted, what).contains("not-permitted"), "{booted:#?}");
    }
    assert!(!run.exists());
}

/// A signal to a whole terminal's group does not reach VMs, which have groups of their own.
#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn an_interrupted_manager_leaves_its_vms_alone() {
    let bench = Bench::new();
    let options = ["--cmdline", "console=ttyS0 quiet selftest.then=hang"];
    let (kernel, initrd) = (guest_file("vmlinuz"), guest_file("initrd-small.cpio.gz"));
    let mut push = bench.vmm(&["image", "push", "tenant"]);
    push.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd).args(options);
    assert!(push.output().unwrap().status.success());
    let script = "
guest-agent boot --image tenant --memory 128M
echo manager: booted
while :; do sleep 100; done
";
    push_script(&bench, "manager", script, &[]);
    let mut manager = Manager::start(&bench, "manager", &[]);
    manager.wait_for("manager: booted");
    wait_until("the guest in user space", || has(&manager.vm(1, "console"), "selftest: ok"));
    kill_process(Pid::from_child(&manager.child), Signal::INT).unwrap();
    assert_eq!(manager.child.wait().unwrap().code(), Some(130));
    let pid = manager.vm(1, "pid");
    assert!(lives(&pid));
    let number = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    kill_process(Pid::from_raw(number).unwrap(), Signal::TERM).unwrap();
    wait_until("the VM has ended", || !lives(&pid));
}
