//! How a guest's life ends, and the exit code for each end.

use crate::common::Bench;
use crate::common::guest::boot;

fn ends_with(code: i32, words: &str, append: &str) {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    let boot = boot(&bench, "guest", &["--cmdline-append", append]);
    assert_eq!(boot.code, Some(code), "{boot:#?}");
    assert!(boot.stderr.contains(words), "{boot:#?}");
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_panic_that_pvpanic_reports_is_a_panic() {
    ends_with(10, "panicked", "selftest.then=panic");
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_panic_of_a_kernel_that_would_hang_is_a_panic() {
    ends_with(10, "panicked", "selftest.then=panic panic=0");
}

/// Before any module is loaded: the kernel finds no init.
#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_panic_that_no_driver_reports_is_a_panic() {
    ends_with(10, "panicked", "rdinit=/none root=none");
}

/// Before any interrupt line is used: there is not enough memory for the kernel itself.
#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn an_early_panic_is_a_panic() {
    ends_with(10, "panicked", "mem=40M");
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_restart_is_a_restart_by_acpi_and_by_the_keyboard_controller() {
    ends_with(12, "restarted", "selftest.then=reboot");
    ends_with(12, "restarted", "selftest.then=reboot reboot=k");
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_triple_fault_is_a_triple_fault() {
    ends_with(11, "triple fault", "selftest.then=triplefault reboot=t");
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_damaged_chunk_is_found_before_the_guest_runs() {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    crate::common::damage_a_pack(&bench);
    let boot = boot(&bench, "guest", &[]);
    assert_eq!(boot.code, Some(4), "{boot:#?}");
    assert!(boot.console.is_empty(), "{boot:#?}");
    assert!(boot.stderr.contains("guest") && boot.stderr.contains("chunk"), "{boot:#?}");
}
