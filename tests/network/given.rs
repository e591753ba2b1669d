//! Interfaces that somebody else opened, and the program as it is started.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use serde_json::Value;
use vmm::net::{bridge, tap};

use crate::common::{Bench, stderr};
use crate::{isolated, run, taps};

fn bench() -> Bench {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    bench
}

/// Boots, but does not start, with `network`; `None` where there is no KVM.
fn boot(mut command: Command, network: &str) -> Option<Output> {
    if !std::path::Path::new("/dev/kvm").exists() {
        eprintln!("no KVM here: not tried");
        return None;
    }
    command.args(["--image", "guest", "--ready-only", "--json", "--net", network]);
    Some(command.output().unwrap())
}

fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Has `command` inherit `file` as descriptor 9.
fn give(command: &mut Command, file: &OwnedFd) {
    let number = file.as_raw_fd();
    // SAFETY: dup2 is async-signal-safe, and nothing else is done.
    unsafe {
        command.pre_exec(move || {
            if libc::dup2(number, 9) < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
}

#[test]
fn a_vm_takes_an_interface_that_it_is_given() {
    isolated("given::a_vm_takes_an_interface_that_it_is_given", || {
        let bench = bench();
        let (file, name) = tap::create(bridge::Carrier::Linux).unwrap();
        let mut command = bench.vmm(&["boot", "--name", "a"]);
        give(&mut command, &file);
        let Some(output) = boot(command, "fd=9,ip=10.0.0.2/24,mtu=1300") else { return };
        let report = report(&output);
        assert_eq!(report["network"]["tap"], name.as_str());
        assert_eq!(report["network"]["device"]["mtu"], 1300);
        let mut command = bench.vmm(&["boot"]);
        let null = std::fs::File::open("/dev/null").unwrap().into();
        give(&mut command, &null);
        let output = boot(command, "fd=9").unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("fd=9 is no TAP interface"), "{}", stderr(&output));
    });
}

#[test]
fn a_vm_is_connected_by_name_and_leaves_nothing_but_the_bridge() {
    isolated("given::a_vm_is_connected_by_name_and_leaves_nothing_but_the_bridge", || {
        let bench = bench();
        let Some(output) = boot(bench.vmm(&["boot", "--name", "a"]), "nat") else { return };
        let told = report(&output);
        assert_eq!(told["network"]["bridge"], "vmmnat0");
        let again = report(&boot(bench.vmm(&["boot", "--name", "a"]), "nat").unwrap());
        assert_eq!(told["network"]["device"]["mac"], again["network"]["device"]["mac"]);
        assert_eq!(told["network"]["ip"], again["network"]["ip"]);
        assert_eq!(taps(), 0);
        assert_eq!(bench.json(&["net", "ls", "--json"]), Value::Array(Vec::new()));
        bench.expect(0, &["net", "rm"]);
        assert!(!run("ip", &["-br", "link"]).contains("vmmnat0"));
        bench.expect(5, &["net", "ls"]);
    });
}
