//! `vmm boot --jail`, up to the guest's first instruction.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use vmm::jail::seccomp::{Features, ThreadKind};

use crate::common::{Bench, stderr, stdout, trace};

/// A store with the small test guest, and whether this host has KVM.
fn bench() -> Option<Bench> {
    if !std::fs::exists("/dev/kvm").unwrap() {
        eprintln!("this host has no KVM: nothing to see");
        return None;
    }
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    Some(bench)
}

const READY: [&str; 5] = ["boot", "--jail", "--ready-only", "--image", "guest"];

#[test]
fn a_jailed_vm_gets_ready_and_says_so() {
    let Some(bench) = bench() else { return };
    let file = bench.path().join("report.json");
    let arguments = [&READY[..], &["--json", "--timings", "--report", file.to_str().unwrap()]];
    let output = bench.expect(0, &arguments.concat());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), stdout(&output));
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let phases = report["phases"].as_array().unwrap();
    assert!(phases.iter().any(|phase| phase["name"] == "jail"), "{report}");
    assert!(report["overhead_bytes"].as_u64() > Some(0), "{report}");
}

#[test]
fn it_ends_with_the_code_that_it_would_have_outside() {
    let Some(bench) = bench() else { return };
    let arguments = ["boot", "--jail", "--ready-only", "--image", "none"];
    let output = bench.expect(3, &arguments);
    assert!(stderr(&output).contains("there is no image 'none'"), "{output:?}");
    bench.expect(2, &["boot", "--jail", "--image", "guest", "--role", "manager"]);
    bench.expect(2, &["boot", "--image", "guest", "--confinement", ""]);
    // Limits that nothing would hold it to are no limits.
    if vmm::jail::cgroup::hierarchy()
        .is_none_or(|root| !vmm::jail::cgroup::missing_controllers(&root).unwrap().is_empty())
    {
        let output = bench.expect(5, &[&READY[..], &["--limits", "cpu=1"]].concat());
        assert!(stderr(&output).contains("cgroup v2"), "{output:?}");
    }
}

#[test]
fn what_it_does_once_it_is_sealed_is_what_its_rules_allow() {
    let Some(bench) = bench() else { return };
    let mut command = bench.vmm(&READY);
    command.args(["--json", "--report"]).arg(bench.path().join("report.json"));
    command.stdout(std::process::Stdio::null());
    let mut namespaces = BTreeSet::new();
    let trace = trace::run(command, Features::default(), |pid| {
        // Before it is sealed, it is confined.
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("CapEff:\t0000000000000000\n"), "{status}");
        let root = std::fs::read_dir(format!("/proc/{pid}/root/")).unwrap();
        assert_eq!(root.count(), 0);
        namespaces.insert(std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap());
    });
    assert_eq!(trace.code, 0, "{trace:#?}");
    assert!(trace.refused.is_empty() && trace.unsealed.is_empty(), "{trace:#?}");
    assert!(trace.sealed.contains(&ThreadKind::EventLoop), "{trace:#?}");
    assert_eq!(namespaces.len(), 1);
    assert!(!namespaces.contains(&std::fs::read_link("/proc/self/ns/net").unwrap()));
}

/// As somebody who may do nothing but open /dev/kvm.
fn as_nobody(bench: &Bench, arguments: &[&str]) -> Output {
    let kvm = std::fs::metadata("/dev/kvm").unwrap().gid();
    for path in [bench.path().to_path_buf(), bench.store()] {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    }
    for entry in walk(&bench.store()) {
        std::os::unix::fs::chown(entry, Some(65534), Some(65534)).unwrap();
    }
    let mut command: Command = bench.vmm(arguments);
    command.uid(65534).gid(kvm).output().unwrap()
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(walk(&path));
        }
        all.push(path);
    }
    all
}

#[test]
fn it_works_without_root_or_says_what_keeps_it_from_it() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("the other tests are without root already");
        return;
    }
    let Some(bench) = bench() else { return };
    if std::fs::metadata("/dev/kvm").unwrap().mode() & 0o060 != 0o060 {
        eprintln!("/dev/kvm is for root alone here: nothing to see");
        return;
    }
    let output = as_nobody(&bench, &READY);
    if output.status.code() == Some(5) {
        let said = stderr(&output);
        assert!(said.contains("user namespaces") || said.contains("userns"), "{said}");
        eprintln!("this host refuses: {said}");
        return;
    }
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(stdout(&output).contains("guest is ready to boot"), "{output:?}");
}
