//! Every way of entering a kernel, with one and two processors, with little RAM and with more than
//! fits below the hole; the guest itself checks what it was given.

use vmm::machine::boot::MACHINE_COMMAND_LINE;

use crate::common::Bench;
use crate::common::guest::boot;

/// The RAM of a machine beyond what its memory map offers: the area below 1 MiB that a PC reserves.
const RESERVED_KIB: u64 = (0x10_0000 - 0x9_fc00) / 1024;

fn boots_everywhere(kernel: &str) {
    let bench = Bench::new();
    bench.push("guest", kernel, "initrd-small.cpio.gz");
    for protocol in ["linux64", "pvh"] {
        for cpus in ["1", "2"] {
            for (memory, mib) in [("128M", 128), ("3584M", 3584)] {
                let mark = format!("mark={protocol}-{cpus}-{memory}");
                let boot = boot(
                    &bench,
                    "guest",
                    &[
                        "--boot-protocol",
                        protocol,
                        "--cpus",
                        cpus,
                        "--memory",
                        memory,
                        "--cmdline-append",
                        &mark,
                    ],
                );
                assert_eq!(boot.code, Some(0), "{boot:#?}");
                let found = boot.self_test();
                assert_eq!(found["cpus"], cpus, "{mark}");
                assert_eq!(
                    found["memory_map_kib"],
                    (mib * 1024 - RESERVED_KIB).to_string(),
                    "{mark}"
                );
                assert_eq!(
                    found["cmdline"],
                    format!("{MACHINE_COMMAND_LINE} console=ttyS0 quiet {mark}")
                );
                assert_eq!(found["crng_ready"], "yes", "{mark}");
                assert_eq!(found["hwrng"], "virtio_rng.0", "{mark}");
                assert_eq!(boot.report["boot_protocol"], protocol);
            }
        }
    }
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_bzimage_boots_in_every_way() {
    boots_everywhere("vmlinuz");
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn an_elf_kernel_boots_in_every_way() {
    boots_everywhere("vmlinux");
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_bzimage_kept_as_it_is_decompresses_itself() {
    let bench = Bench::new();
    let kernel = crate::common::guest_file("vmlinuz");
    let initrd = crate::common::guest_file("initrd-small.cpio.gz");
    bench.expect(
        0,
        &[
            "image",
            "push",
            "as-is",
            "--as-is",
            "--kernel",
            kernel.to_str().unwrap(),
            "--initrd",
            initrd.to_str().unwrap(),
        ],
    );
    let boot = boot(&bench, "as-is", &[]);
    assert_eq!(boot.code, Some(0), "{boot:#?}");
    boot.self_test();
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn every_memory_backing_boots() {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    for backing in ["4k", "thp"] {
        let boot = boot(&bench, "guest", &["--memory-backing", backing, "--memory", "256M"]);
        assert_eq!(boot.code, Some(0), "{boot:#?}");
        boot.self_test();
        assert_eq!(boot.report["memory_backing"], backing);
    }
    let pool = "/proc/sys/vm/nr_hugepages";
    std::fs::write(pool, "200").unwrap();
    let boots = ["auto", "hugetlb"]
        .map(|choice| boot(&bench, "guest", &["--memory", "256M", "--memory-backing", choice]));
    std::fs::write(pool, "0").unwrap();
    for boot in boots {
        assert_eq!(boot.code, Some(0), "{boot:#?}");
        boot.self_test();
        assert_eq!(boot.report["memory_backing"], "hugetlb", "auto takes the pool that is there");
    }
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn small_wide_and_large_machines_boot() {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    for (cpus, memory) in [("1", "96M"), ("4", "1G"), ("1", "6G")] {
        let boot = boot(&bench, "guest", &["--cpus", cpus, "--memory", memory]);
        assert_eq!(boot.code, Some(0), "{boot:#?}");
        assert_eq!(boot.self_test()["cpus"], cpus);
    }
}
