//! Time from process start to ready-to-boot, against reading the same files as other VMMs do.
//!
//! `scripts/bench load` runs it. The baseline is this program itself, started anew for each run:
//! it maps fresh anonymous memory without huge pages and reads the ramdisk into it, and does nothing
//! else. `vmm` loads the kernel as well, verifies everything, and makes the machine.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Parser;
use serde_json::{Value, json};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Measure loading.
#[derive(Parser)]
struct Options {
    /// The program to measure.
    #[arg(long, required_unless_present = "read")]
    vmm: Option<PathBuf>,
    /// Folder with the guest images.
    #[arg(long, required_unless_present = "read")]
    images: Option<PathBuf>,
    /// Counted runs of each variant.
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// File for every figure.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Be the baseline: read this file into fresh memory.
    #[arg(long, conflicts_with = "vmm")]
    read: Option<PathBuf>,
    /// Sizes of the ramdisks in MiB.
    sizes: Vec<u32>,
}

/// What is measured: its name, and the arguments of `vmm boot`; none for the baseline.
const VARIANTS: &[(&str, Option<&[&str]>)] = &[
    ("read(2) into fresh 4 KiB pages", None),
    ("vmm, default", Some(&[])),
    ("vmm, default, full hashing", Some(&["--verify-full"])),
    ("vmm, thp, copied", Some(&["--memory-backing", "thp", "--ramdisk", "copy"])),
    ("vmm, 4k, copied", Some(&["--memory-backing", "4k", "--ramdisk", "copy"])),
    ("vmm, hugetlb, copied", Some(&["--memory-backing", "hugetlb", "--ramdisk", "copy"])),
];

fn main() {
    let options = Options::parse();
    if let Some(file) = options.read {
        return read_into_fresh_memory(&file);
    }
    let (vmm, images) = (options.vmm.unwrap(), options.images.unwrap());
    let store = tempfile::tempdir_in(store_folder()).unwrap();
    let mut results = Vec::new();
    for size in &options.sizes {
        let kernel = images.join("vmlinuz");
        let initrd = images.join(format!("initrd-{size}.cpio"));
        let name = format!("bench-{size}");
        let push = Command::new(&vmm)
            .args(["image", "push", &name, "--kernel"])
            .arg(&kernel)
            .arg("--initrd")
            .arg(&initrd)
            .env("VMM_STORE", store.path())
            .stdout(Stdio::null())
            .status();
        assert!(push.unwrap().success());
        results.extend(measure(&vmm, store.path(), &name, *size, &initrd, options.runs));
    }
    if let Some(file) = options.json {
        std::fs::write(file, serde_json::to_string_pretty(&results).unwrap()).unwrap();
    }
}

/// A file system on disk: shared memory would not be what a store is on.
fn store_folder() -> PathBuf {
    let home = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    let folder = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The baseline.
fn read_into_fresh_memory(file: &Path) {
    // SAFETY: it only tells the kernel not to give this process transparent huge pages.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) }, 0);
    let mut file = File::open(file).unwrap();
    let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), length)]).unwrap();
    memory.read_exact_volatile_from(GuestAddress(0), &mut file, length).unwrap();
}

/// One size, all variants in turn, `runs` times after a warm-up.
fn measure(
    vmm: &Path,
    store: &Path,
    image: &str,
    size: u32,
    initrd: &Path,
    runs: usize,
) -> Vec<Value> {
    let mut samples: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let mut overhead: BTreeMap<usize, u64> = BTreeMap::new();
    for run in 0..=runs {
        for (index, (_, arguments)) in VARIANTS.iter().enumerate() {
            let mut command = match arguments {
                None => {
                    let mut command = Command::new(std::env::current_exe().unwrap());
                    command.arg("--read").arg(initrd);
                    command
                }
                Some(arguments) => {
                    let mut command = Command::new(vmm);
                    command
                        .env("VMM_STORE", store)
                        .args(["boot", "--ready-only", "--json", "--memory", "1G", "--image"])
                        .arg(image)
                        .args(*arguments);
                    command
                }
            };
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
            let begun = Instant::now();
            let mut child = command.spawn().unwrap();
            let mut text = String::new();
            child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
            let status = child.wait().unwrap();
            let elapsed = begun.elapsed().as_secs_f64() * 1e3;
            if !status.success() {
                continue; // hugetlb without a pool
            }
            if let Ok(report) = serde_json::from_str::<Value>(&text) {
                let bytes = report["overhead_bytes"].as_u64().unwrap_or(0);
                overhead.entry(index).and_modify(|max| *max = bytes.max(*max)).or_insert(bytes);
            }
            if run > 0 {
                samples.entry(index).or_default().push(elapsed);
            }
        }
    }
    let median = |index: usize| -> Option<f64> {
        let mut values = samples.get(&index)?.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let base = median(0).unwrap();
    println!("\n{size} MB ramdisk, medians of {runs}");
    println!("{:<34} {:>9} {:>11} {:>14}", "", "ms", "x baseline", "beside guest");
    let mut results = Vec::new();
    for (index, (name, _)) in VARIANTS.iter().enumerate() {
        let Some(ms) = median(index) else {
            println!("{name:<34} not possible on this host (see vmm check)");
            continue;
        };
        let memory = overhead.get(&index).copied();
        let shown = memory.map_or("-".to_owned(), |bytes| format!("{} KiB", bytes >> 10));
        println!("{name:<34} {ms:>9.1} {:>10.2}x {shown:>14}", base / ms);
        results.push(json!({
            "ramdisk_mb": size, "variant": name, "median_ms": ms, "speedup": base / ms,
            "overhead_bytes": memory, "samples_ms": samples[&index],
        }));
    }
    results
}
