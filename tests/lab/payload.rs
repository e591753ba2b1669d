//! Large ramdisks of random content, as in the paper: every byte arrives.

use crate::common::Bench;
use crate::common::guest::boot;

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
