//! A host where nothing was ever pushed: the store's folder does not exist, and only a push makes it.

use crate::common::{Bench, stderr, stdout};
use crate::support::{length, number, ready_ends};

/// Nothing was made: neither the store nor anything beside it.
fn assert_untouched(bench: &Bench) {
    let made: Vec<_> = bench.path().read_dir().unwrap().collect();
    assert!(made.is_empty(), "{made:?}");
}

#[test]
fn no_images_are_listed_verified_and_collected() {
    let bench = Bench::new();
    let listed = bench.json(&["image", "ls", "--json"]);
    assert_eq!((length(&listed["images"]), length(&listed["unreadable"])), (0, 0));
    let table = stdout(&bench.expect(0, &["image", "ls"]));
    assert!(table.starts_with("NAME ") && table.lines().count() == 1, "{table}");
    let verified = bench.json(&["image", "verify", "--json"]);
    assert_eq!((number(&verified["images"]), length(&verified["damage"])), (0, 0));
    bench.expect(0, &["image", "verify"]);
    assert_eq!(number(&bench.json(&["image", "gc", "--json"])["bytes_freed"]), 0);
    bench.expect(0, &["image", "gc"]);
    assert_untouched(&bench);
}

#[test]
fn an_image_is_not_found_and_how_to_push_one_is_told() {
    let bench = Bench::new();
    let words = format!("there are no images yet at '{}'", bench.store().display());
    let told = |message: &str| {
        assert!(message.contains(&words), "no {words:?} in {message}");
        assert!(message.contains("vmm image push NAME --kernel FILE"), "{message}");
    };
    for verb in ["inspect", "rm", "warm"] {
        let output = bench.expect(3, &["image", verb, "guest"]);
        told(&stderr(&output));
        assert!(output.stdout.is_empty(), "{output:?}");
    }
    if let Some(output) = ready_ends(&bench, 3, "guest", &[]) {
        told(&stderr(&output));
    }
    assert_untouched(&bench);
}

#[test]
fn the_host_is_checked_without_a_store() {
    let bench = Bench::new();
    let output = bench.vmm(&["check", "--json"]).output().unwrap();
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |subject: &str| {
        findings.as_array().unwrap().iter().find(|finding| finding["subject"] == subject)
    };
    assert_eq!(of("image store").unwrap()["grade"], "improve");
    // What is behind the device is told if it can be used, and only then.
    let device = of("KVM device").unwrap();
    let usable = device["grade"] == "ok";
    assert_eq!(of("KVM kind").is_some(), usable, "{findings}");
    assert_eq!(of("KVM capabilities").is_some(), usable, "{findings}");
    let failed = findings.as_array().unwrap().iter().any(|finding| finding["grade"] == "fail");
    assert_eq!(output.status.code(), Some(if failed { 5 } else { 0 }), "{findings}");
    assert_untouched(&bench);
}
