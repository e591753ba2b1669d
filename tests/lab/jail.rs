//! Jailed VMs with real guests: sealed by their filters, held by their control groups.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use vmm::jail::seccomp::{Features, ThreadKind};

use crate::common::trace::{self, Trace};
use crate::common::{Bench, guest_file};
use crate::settle::HugeStore;

/// Boots under the tracer.
fn traced(bench: &Bench, arguments: &[&str], input: Stdio) -> Trace {
    let mut command = bench.vmm(&["boot", "--jail"]);
    let output = File::create(bench.path().join("out")).unwrap();
    let error = File::create(bench.path().join("err")).unwrap();
    command.args(arguments).stdin(input).stdout(output).stderr(error);
    let trace = trace::run(command, Features::default(), |_| {});
    eprintln!("{}", std::fs::read_to_string(bench.path().join("err")).unwrap());
    trace
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn explore() {
    let store = HugeStore::new();
    let bench = &store.0;
    bench.push("guest", "vmlinuz", "initrd-100.cpio");
    let report = bench.path().join("report.json");
    let report = report.to_str().unwrap();
    let mode = std::env::var("VMM_MODE").unwrap_or("off".into());
    let t = traced(
        bench,
        &[
            "--image",
            "guest",
            "--cpus",
            "2",
            "--seccomp",
            &mode,
            "--report",
            report,
            "--cmdline-append",
            "selftest.quick",
        ],
        Stdio::null(),
    );
    println!("{t:#x?}");
    println!(
        "unused {:#x?}",
        trace::to_be_used(&t.sealed, Features::default()).difference(&t.used).collect::<Vec<_>>()
    );
}
