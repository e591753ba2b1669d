//! `vmm boot --ready-only`: the way from a name to the guest's first instruction, and its report.

use serde_json::Value;
use vmm::host::hugepages;

use crate::common::{Bench, guest_file, stderr, stdout};
use crate::support::{number, push, push_arguments, ready, ready_ends};

/// A store with the small test guest in it.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    bench
}

fn load(report: &Value, what: &str) -> u64 {
    number(&report["load"][format!("bytes_{what}")])
}

/// Whatever way they took, all bytes of the image have arrived.
fn assert_complete(bench: &Bench, image: &str, report: &Value) {
    let inspected = bench.json(&["image", "inspect", image, "--json"]);
    assert_eq!(
        load(report, "fetched") + load(report, "mapped") + load(report, "zero"),
        number(&inspected["bytes"]),
        "{report}"
    );
    assert_eq!(load(report, "zero"), number(&inspected["bytes_zero"]));
    assert_eq!(report["manifest"], inspected["id"]);
}

#[test]
fn the_report_tells_phases_and_bytes() {
    let bench = bench();
    let Some(report) = ready(&bench, "guest", &[]) else { return };
    assert_complete(&bench, "guest", &report);
    assert_eq!((&report["image"], number(&report["cpus"])), (&"guest".into(), 1));
    assert_eq!(number(&report["memory_bytes"]), 512 << 20);
    assert_eq!(report["boot_protocol"], "linux64");
    assert_eq!(report["load"]["transport"], "embedded");
    assert_eq!(report["load"]["verify"], "checksum");
    assert!(number(&report["overhead_bytes"]) > 0);
    assert!(report.get("guest").is_none(), "no guest ran: {report}");

    let phases = report["phases"].as_array().unwrap();
    let names: Vec<_> = phases.iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["resolve", "memory", "load", "boot"]);
    let sum: f64 = phases.iter().map(|phase| phase["ms"].as_f64().unwrap()).sum();
    let ready = report["ready_ms"].as_f64().unwrap();
    // Rounded to a microsecond each.
    assert!(sum > 0.0 && sum <= ready + 0.01, "{report}");
}

#[test]
fn the_report_goes_to_a_file_as_well_and_to_people_as_text() {
    let bench = bench();
    let file = bench.path().join("report.json");
    let arguments = ["--json", "--timings", "--report", file.to_str().unwrap()];
    let Some(output) = ready_ends(&bench, 0, "guest", &arguments) else { return };
    assert_eq!(std::fs::read_to_string(&file).unwrap(), stdout(&output));
    let table = stderr(&output);
    for words in ["resolve", "memory", "load", "boot", "ready", "verified by checksum"] {
        assert!(table.contains(words), "no {words:?} in {table}");
    }
    let output = ready_ends(&bench, 0, "guest", &[]).unwrap();
    assert!(stdout(&output).starts_with("guest is ready to boot after "), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn ram_is_made_of_what_was_asked_for() {
    let bench = bench();
    if let Some(report) = ready(&bench, "guest", &["--memory-backing", "4k"]) {
        assert_eq!(report["memory_backing"], "4k");
        assert_complete(&bench, "guest", &report);
    }
    let thp = ["--memory-backing", "thp"];
    if hugepages::transparent_enabled() {
        let Some(report) = ready(&bench, "guest", &thp) else { return };
        assert_eq!(report["memory_backing"], "thp");
        assert_complete(&bench, "guest", &report);
    } else if let Some(output) = ready_ends(&bench, 5, "guest", &thp) {
        assert!(stderr(&output).contains("transparent huge pages are off"), "{output:?}");
    }
}

#[test]
fn full_verification_hashes_in_full() {
    let bench = bench();
    let Some(report) = ready(&bench, "guest", &["--verify-full"]) else { return };
    assert_eq!(report["load"]["verify"], "full");
    assert_complete(&bench, "guest", &report);
    let output = ready_ends(&bench, 0, "guest", &["--verify-full", "--timings"]).unwrap();
    assert!(stderr(&output).contains("verified by BLAKE3"), "{output:?}");
}

#[test]
fn chunks_of_4_kib_and_of_1_mib_arrive() {
    let bench = Bench::new();
    let (kernel, initrd) = (guest_file("vmlinuz"), guest_file("initrd-small.cpio.gz"));
    for (size, bytes) in [("4K", 4 << 10), ("1M", 1 << 20)] {
        let mut arguments = push_arguments(size, &kernel, &initrd);
        arguments.extend(["--chunk-size", size]);
        let pushed = bench.json(&arguments);
        assert!(number(&pushed["chunks_total"]) >= number(&pushed["bytes_total"]) / bytes);
        let inspected = bench.json(&["image", "inspect", size, "--json"]);
        assert_eq!(number(&inspected["manifest"]["chunk_size"]), bytes);
        for way in [&[][..], &["--verify-full", "--ramdisk", "copy"]] {
            let Some(report) = ready(&bench, size, way) else { continue };
            assert_complete(&bench, size, &report);
            let chunks = number(&pushed["chunks_total"]) - number(&pushed["chunks_zero"]);
            assert_eq!(number(&report["load"]["chunks"]), chunks);
        }
    }
}

#[test]
fn machines_of_every_size_are_made() {
    let bench = bench();
    for (memory, bytes, cpus, protocol) in [
        ("96M", 96_u64 << 20, "1", "linux64"),
        ("3584M", 3584 << 20, "2", "pvh"),
        ("5G", 5 << 30, "32", "linux64"),
        ("5G", 5 << 30, "2", "pvh"),
    ] {
        let arguments = ["--memory", memory, "--cpus", cpus, "--boot-protocol", protocol];
        let Some(report) = ready(&bench, "guest", &arguments) else { return };
        assert_eq!(number(&report["memory_bytes"]), bytes);
        assert_eq!(report["cpus"].to_string(), cpus);
        assert_eq!(report["boot_protocol"], protocol);
        assert_complete(&bench, "guest", &report);
    }
}

#[test]
fn a_ramdisk_of_100_mb_is_mapped_or_copied_as_asked() {
    let bench = Bench::new();
    push(&bench, "large", &guest_file("initrd-100.cpio"));
    let Some(copied) = ready(&bench, "large", &["--ramdisk", "copy"]) else { return };
    assert_eq!(load(&copied, "mapped"), 0);
    assert_complete(&bench, "large", &copied);
    // Some file systems have nothing to map; what is, is all of the ramdisk or whole huge pages.
    let auto = ready(&bench, "large", &["--ramdisk", "auto"]).unwrap();
    assert_complete(&bench, "large", &auto);
    assert!(load(&auto, "mapped") <= load(&copied, "fetched"));
}
