//! Large ramdisks of random content, as in the paper: every byte arrives.

use crate::common::Bench;
use crate::guest::boot;

fn arrives(initrd: &str, memory: &str) {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", initrd);
    let boot = boot(&bench, "guest", &["--memory", memory]);
    assert_eq!(boot.code, Some(0), "{boot:#?}");
    let found = boot.self_test();
    assert_eq!(found["payload"], "match");
    assert_eq!(found["payload_sha256"].len(), 64);
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_ramdisk_of_100_mb_arrives() {
    arrives("initrd-100.cpio", "512M");
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_ramdisk_of_300_mb_arrives() {
    arrives("initrd-300.cpio", "1G");
}

/// A store on huge tmpfs is what the lab's kernel can map in 2 MiB pages.
#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_ramdisk_that_is_mapped_arrives_as_one_that_is_copied() {
    let bench = Bench::new();
    let mount = |arguments: &[&str]| {
        let status = std::process::Command::new(arguments[0]).args(&arguments[1..]).status();
        assert!(status.unwrap().success(), "{arguments:?}");
    };
    let folder = bench.path().join("store");
    std::fs::create_dir(&folder).unwrap();
    let folder = folder.to_str().unwrap();
    mount(&["mount", "-t", "tmpfs", "-o", "huge=always", "huge", folder]);
    bench.push("guest", "vmlinuz", "initrd-100.cpio");
    let mapped = boot(&bench, "guest", &[]);
    let copied = boot(&bench, "guest", &["--ramdisk", "copy"]);
    mount(&["umount", folder]);
    for boot in [&mapped, &copied] {
        assert_eq!(boot.code, Some(0), "{boot:#?}");
        assert_eq!(boot.self_test()["payload"], "match");
    }
    let bytes = |boot: &crate::guest::Boot| boot.report["load"]["bytes_mapped"].as_u64().unwrap();
    assert!(bytes(&mapped) >= 98 << 20, "{mapped:#?}");
    assert_eq!(bytes(&copied), 0);
}
