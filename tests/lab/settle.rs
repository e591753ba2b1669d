//! Mapped ramdisks: they become memory of the guest's own while it starts, and nothing else changes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::pipe::fcntl_setpipe_size;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::common::guest::{Boot, boot};
use crate::common::{Bench, guest_file};
use crate::cost::{EXITS, SMALL_PAGES};

const MIB: u64 = 1 << 20;

/// A store on huge tmpfs, which is what the lab's kernel can map in 2 MiB pages.
pub struct HugeStore(pub Bench);

impl HugeStore {
    pub fn new() -> Self {
        let bench = Bench::new();
        std::fs::create_dir(bench.store()).unwrap();
        let store = bench.store();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "huge=always", "huge"]).arg(store));
        Self(bench)
    }
}

impl Drop for HugeStore {
    fn drop(&mut self) {
        // Of a test that failed, a guest may still be there.
        run(Command::new("umount").arg("--lazy").arg(self.0.store()));
    }
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

/// A number of the report's `guest.settled`.
fn settled(report: &Value, name: &str) -> u64 {
    report["guest"]["settled"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {report:#?}"))
}

/// All was mapped, and all of it became the guest's own.
fn assert_settled(boot: &Boot, at_least: u64) {
    assert_eq!(boot.code, Some(0), "{boot:#?}");
    let mapped = boot.report["load"]["bytes_mapped"].as_u64().unwrap();
    assert!(mapped >= at_least, "{boot:#?}");
    eprintln!("{}", boot.report["guest"]);
    assert_eq!(settled(&boot.report, "mapped_bytes"), mapped);
    assert_eq!(settled(&boot.report, "settled_bytes"), mapped);
    assert!(boot.report["guest"]["settled"]["settled_ms"].is_f64(), "{boot:#?}");
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_mapped_ramdisk_costs_no_more_exits_than_a_copied_one() {
    let store = HugeStore::new();
    store.0.push("guest", "vmlinuz", "initrd-100.cpio");
    let boot = boot(&store.0, "guest", &["--cmdline-append", "selftest.quick"]);
    assert_settled(&boot, 98 * MIB);
    assert!(boot.kvm("exits") <= EXITS, "{boot:#?}");
    assert!(boot.kvm("pages_2m") >= 100, "{boot:#?}");
    assert!(boot.kvm("pages_4k") <= SMALL_PAGES, "{boot:#?}");
    let overhead = boot.report["guest"]["overhead_bytes"].as_u64().unwrap();
    assert!(overhead <= 5 * MIB, "{boot:#?}");
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_mapped_ramdisk_of_100_mb_arrives() {
    let store = HugeStore::new();
    store.0.push("guest", "vmlinuz", "initrd-100.cpio");
    let boot = boot(&store.0, "guest", &[]);
    assert_settled(&boot, 98 * MIB);
    assert_eq!(boot.self_test()["payload"], "match");
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_mapped_ramdisk_of_300_mb_arrives_with_two_processors() {
    let store = HugeStore::new();
    store.0.push("guest", "vmlinuz", "initrd-300.cpio");
    let boot = boot(&store.0, "guest", &["--cpus", "2", "--memory", "1G"]);
    assert_settled(&boot, 298 * MIB);
    assert_eq!(boot.self_test()["payload"], "match");
    assert!(boot.kvm("pages_2m") >= 300, "{boot:#?}");
    assert!(boot.kvm("pages_4k") <= SMALL_PAGES, "{boot:#?}");
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_mapped_ramdisk_settles_in_every_memory_backing() {
    let store = HugeStore::new();
    store.0.push("guest", "vmlinuz", "initrd-100.cpio");
    let pool = "/proc/sys/vm/nr_hugepages";
    for (backing, pages) in [("hugetlb", "256"), ("4k", "0")] {
        std::fs::write(pool, pages).unwrap();
        let boot = boot(&store.0, "guest", &["--memory-backing", backing]);
        std::fs::write(pool, "0").unwrap();
        assert_settled(&boot, 98 * MIB);
        assert_eq!(boot.self_test()["payload"], "match");
        assert_eq!(boot.report["memory_backing"], backing);
        assert_eq!(boot.kvm("pages_4k") <= SMALL_PAGES, backing == "hugetlb", "{boot:#?}");
    }
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn what_shall_stay_mapped_stays_mapped() {
    let store = HugeStore::new();
    store.0.push("guest", "vmlinuz", "initrd-100.cpio");
    let boot = boot(
        &store.0,
        "guest",
        &["--ramdisk", "map", "--cmdline-append", "retain_initrd selftest.quick"],
    );
    assert_eq!(boot.code, Some(0), "{boot:#?}");
    assert!(boot.report["load"]["bytes_mapped"].as_u64().unwrap() >= 98 * MIB, "{boot:#?}");
    assert!(boot.report["guest"]["settled"].is_null(), "{boot:#?}");
    // Nothing was written there.
    assert!(boot.kvm("pages_4k") <= SMALL_PAGES, "{boot:#?}");
}

/// Starts a guest with a mapped ramdisk of 300 MB and returns as soon as that settles.
fn started(store: &HugeStore, arguments: &[&str], stdout: Stdio) -> Child {
    store.0.push("guest", "vmlinuz", "initrd-300.cpio");
    let report = store.0.path().join("report.json");
    let child = store
        .0
        .vmm(&["boot", "--image", "guest", "--memory", "1G", "--report"])
        .arg(report)
        .args(arguments)
        .stdout(stdout)
        .spawn()
        .unwrap();
    let settles = || {
        let threads = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
        threads.filter_map(Result::ok).any(|thread| {
            std::fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name == "settle\n")
        })
    };
    let begun = Instant::now();
    while !settles() {
        assert!(begun.elapsed() < Duration::from_secs(20), "nothing settles");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn terminate(child: &Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
}

fn report(store: &HugeStore) -> Value {
    let text = std::fs::read(store.0.path().join("report.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_vm_that_is_ended_while_it_settles_ends_at_once() {
    let store = HugeStore::new();
    let mut child = started(&store, &[], Stdio::null());
    terminate(&child);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let report = report(&store);
    eprintln!("{}", report["guest"]);
    // 300 MB take the lab a second.
    assert!(settled(&report, "settled_bytes") < settled(&report, "mapped_bytes"));
    assert!(report["guest"]["settled"]["settled_ms"].is_null());
    assert!(report["guest"]["overhead_bytes"].as_u64().unwrap() <= 5 * MIB, "{report:#?}");
}

/// Its kernel's first instruction is an invalid one, with nothing there to handle that.
#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_guest_that_dies_while_it_settles_dies_as_always() {
    let store = HugeStore::new();
    let mut kernel = std::fs::read(guest_file("vmlinux")).unwrap();
    let entry = entry_offset(&kernel);
    kernel[entry..entry + 2].copy_from_slice(&[0x0f, 0x0b]); // ud2
    let spoilt = store.0.path().join("vmlinux");
    std::fs::write(&spoilt, kernel).unwrap();
    let (kernel, initrd) = (spoilt.to_str().unwrap(), guest_file("initrd-300.cpio"));
    let push = ["image", "push", "guest", "--kernel", kernel, "--initrd"];
    store.0.expect(0, &[&push[..], &[initrd.to_str().unwrap()]].concat());
    let boot = boot(&store.0, "guest", &["--memory", "1G", "--boot-protocol", "linux64"]);
    assert_eq!(boot.code, Some(11), "{boot:#?}");
    assert!(
        settled(&boot.report, "settled_bytes") < settled(&boot.report, "mapped_bytes"),
        "{boot:#?}"
    );
}

/// Where in an ELF file the code of its entry is, which Linux gives as a physical address.
fn entry_offset(elf: &[u8]) -> usize {
    let number = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().unwrap());
    let entry = number(24);
    let headers = usize::try_from(number(32)).unwrap();
    let count = u16::from_le_bytes(elf[56..58].try_into().unwrap());
    let header = (0..usize::from(count))
        .map(|index| headers + index * 56)
        .find(|at| {
            elf[*at] == 1 && (0..number(at + 32)).contains(&entry.wrapping_sub(number(at + 24)))
        })
        .unwrap();
    usize::try_from(number(header + 8) + entry - number(header + 24)).unwrap()
}

/// The processor that writes does not come to a pause, and nobody is to wait for it.
#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_guest_that_settles_while_nobody_reads_its_output_can_be_ended() {
    let store = HugeStore::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let room = fcntl_setpipe_size(&writer, 4096).unwrap();
    assert_eq!(rustix::io::write(&writer, &vec![b'x'; room]).unwrap(), room);
    // It speaks as early as it can.
    let words = "earlyprintk=ttyS0 ignore_loglevel";
    let mut child = started(&store, &["--cmdline-append", words], writer.into());
    // So that a pause is tried, and tried again.
    std::thread::sleep(Duration::from_secs(2));
    terminate(&child);
    let begun = Instant::now();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(143));
    assert!(begun.elapsed() < Duration::from_secs(20));
    let report = report(&store);
    eprintln!("{}", report["guest"]);
    assert!(settled(&report, "settled_bytes") < settled(&report, "mapped_bytes"));
    drop(reader);
}

/// Two images share a kernel, so that gc is to cut the ramdisk of one out of a pack that stays.
#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn the_store_has_its_ramdisk_back_once_it_has_settled() {
    for (choice, given_back) in [("map", false), ("auto", true)] {
        let store = HugeStore::new();
        let bench = &store.0;
        bench.push("large", "vmlinuz", "initrd-100.cpio");
        bench.push("small", "vmlinuz", "initrd-small.cpio.gz");
        let mut child = bench
            .vmm(&["boot", "--image", "large", "--ramdisk", choice])
            .args(["--cmdline-append", "retain_initrd selftest.then=hang"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("selftest: ok")));
        bench.expect(0, &["image", "rm", "large"]);
        let collected = bench.json(&["image", "gc", "--json"]);
        terminate(&child);
        assert_eq!(child.wait().unwrap().code(), Some(143));
        eprintln!("{choice}: {collected}");
        assert_eq!(collected["packs_busy"].as_array().unwrap().is_empty(), given_back, "{choice}");
        let freed = collected["bytes_freed"].as_u64().unwrap();
        assert_eq!(freed >= 98 * MIB, given_back, "{choice}: {collected}");
    }
}
