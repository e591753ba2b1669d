//! What a boot costs, by KVM's own counters: they do not depend on how fast the machine is.

use crate::common::Bench;
use crate::common::guest::boot;

/// The best peer takes 4,010 exits for this boot, others 48,000 to 92,000.
pub const EXITS: u64 = 4500;
/// So few are mapped in 4 KiB pages, at the edges of what is special.
pub const SMALL_PAGES: u64 = 16;

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_boot_with_a_100_mb_ramdisk_takes_few_exits_and_2_mib_pages() {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-100.cpio");
    let boot = boot(&bench, "guest", &["--cmdline-append", "selftest.quick"]);
    assert_eq!(boot.code, Some(0), "{boot:#?}");
    assert!(boot.console.contains("selftest: userspace"), "{boot:#?}");
    eprintln!("{}", boot.report["guest"]["kvm"]);
    assert!(boot.kvm("exits") <= EXITS, "{boot:#?}");
    // 512 MiB are 256 pages; the guest touches at least ramdisk and what it unpacks to.
    assert!(boot.kvm("pages_2m") >= 100, "{boot:#?}");
    assert!(boot.kvm("pages_4k") <= SMALL_PAGES, "{boot:#?}");
}

/// Anonymous memory of the process beyond guest RAM, when ready and when the guest has run.
#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn the_vmm_takes_at_most_5_mib_beside_the_guest() {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-100.cpio");
    let boot = boot(&bench, "guest", &["--cmdline-append", "selftest.quick"]);
    for overhead in [&boot.report["overhead_bytes"], &boot.report["guest"]["overhead_bytes"]] {
        assert!(overhead.as_u64().unwrap() <= 5 << 20, "{boot:#?}");
    }
}
