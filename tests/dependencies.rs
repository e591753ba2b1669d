//! Holds the dependencies to the project's rules: one version of each rust-vmm crate, only licences
//! that `deny.toml` allows, no library that a host may lack. (For the licences `cargo deny check` does
//! the same, and asks for advisories, where it is installed and its database can be reached.)
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// The crates of which two versions in one program would be two incompatible guest memories.
const RUST_VMM: [&str; 10] = [
    "acpi_tables",
    "event-manager",
    "kvm-bindings",
    "kvm-ioctls",
    "linux-loader",
    "virtio-bindings",
    "virtio-queue",
    "vm-memory",
    "vm-superio",
    "vmm-sys-util",
];

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or_default()
}

#[test]
fn there_is_one_version_of_each_rust_vmm_crate() {
    let packages = packages();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in &packages {
        versions.entry(text(package, "name")).or_default().insert(text(package, "version"));
    }
    for name in RUST_VMM {
        assert_eq!(versions[name].len(), 1, "{name}: {:?}", versions[name]);
    }
}

/// The strings of the list `allow = [...]` in `deny.toml`.
fn allowed_licences() -> BTreeSet<String> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deny.toml");
    let text = std::fs::read_to_string(file).unwrap();
    let list = text.split_once("allow = [").unwrap().1.split_once(']').unwrap().0;
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether an SPDX expression can be satisfied with `allowed`; every AND part needs one OR part.
fn is_satisfied(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let plain = expression.replace('/', " OR ").replace(['(', ')'], "");
    plain.split(" AND ").all(|part| part.split(" OR ").any(|one| allowed.contains(one.trim())))
}

#[test]
fn every_licence_is_allowed() {
    let allowed = allowed_licences();
    assert!(allowed.len() > 3, "deny.toml was not understood: {allowed:?}");
    for package in packages() {
        let (name, licence) = (text(&package, "name"), text(&package, "license"));
        assert!(is_satisfied(licence, &allowed), "{name} has the licence '{licence}'");
    }
}

/// Neither linked against nor loaded at the start: it would be in every VM's memory, and missing on hosts
/// without RDMA.
#[test]
fn the_program_starts_without_libibverbs() {
    let output = Command::new(env!("CARGO_BIN_EXE_vmm"))
        .arg("--version")
        .env("LD_DEBUG", "files")
        .output()
        .unwrap();
    let loaded = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && loaded.contains("libc.so"), "{loaded}");
    assert!(!loaded.contains("ibverbs"), "{loaded}");
}

#[test]
fn expressions_need_each_and_part() {
    let allowed = BTreeSet::from(["MIT".to_owned()]);
    assert!(is_satisfied("MIT OR Apache-2.0", &allowed));
    assert!(!is_satisfied("MIT AND GPL-2.0", &allowed));
    assert!(!is_satisfied("", &allowed));
}
