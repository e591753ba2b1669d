//! Time from process start to guest user space, beside QEMU's microvm machine with the same kernel,
//! ramdisk and RAM, in the same run.
//!
//! `scripts/bench boot` runs it where KVM runs stock kernels, or in the lab. Runs alternate. A pair of
//! runs in which a guest stalls, as the lab's emulated KVM sometimes lets one, is measured again, and
//! told.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

/// What both are told: the self-test powers off as soon as it runs.
const QUICK: &str = "selftest.quick";
/// A guest that takes longer has stalled.
const STALLED: Duration = Duration::from_secs(90);
/// So many pairs of runs of one ramdisk may stall.
const MAX_STALLS: usize = 3;

/// Measure booting.
#[derive(Parser)]
struct Options {
    /// The program to measure.
    #[arg(long)]
    vmm: PathBuf,
    /// Folder with the guest images.
    #[arg(long)]
    images: PathBuf,
    /// Counted runs of each, after one warm-up.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Names of the ramdisks in the folder.
    ramdisks: Vec<String>,
}

fn main() {
    let options = Options::parse();
    let store = tempfile::tempdir().unwrap();
    println!("{:<24} {:>10} {:>14} {:>8}", "seconds to user space", "vmm", "QEMU microvm", "ratio");
    for ramdisk in &options.ramdisks {
        let (kernel, initrd) = (options.images.join("vmlinuz"), options.images.join(ramdisk));
        let pushed = Command::new(&options.vmm)
            .env("VMM_STORE", store.path())
            .args(["image", "push", "bench", "--kernel"])
            .arg(&kernel)
            .arg("--initrd")
            .arg(&initrd)
            .stdout(Stdio::null())
            .status();
        assert!(pushed.unwrap().success());
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let (mut warm, mut stalls) = (false, 0);
        while ours.len() < options.runs {
            let pair = [
                time_to_user_space(vmm(&options.vmm, store.path())),
                time_to_user_space(qemu(&kernel, &initrd)),
            ];
            let [Some(our), Some(their)] = pair else {
                stalls += 1;
                eprintln!("{ramdisk}: a guest stalled: [vmm, QEMU] = {pair:?}; measuring again");
                assert!(stalls <= MAX_STALLS, "{ramdisk}: too many guests stalled");
                continue;
            };
            if warm {
                ours.push(our);
                theirs.push(their);
            }
            warm = true;
        }
        let (ours, theirs) = (median(ours), median(theirs));
        println!("{ramdisk:<24} {ours:>10.2} {theirs:>14.2} {:>8.2}", ours / theirs);
    }
}

fn vmm(program: &Path, store: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("VMM_STORE", store).args([
        "boot",
        "--image",
        "bench",
        "--memory",
        "512M",
        "--cmdline-append",
        QUICK,
    ]);
    command
}

fn qemu(kernel: &Path, initrd: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-M", "microvm", "-accel", "kvm", "-cpu", "host", "-m", "512M"])
        .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio"])
        .arg("-append")
        .arg(format!("console=ttyS0 quiet panic=-1 {QUICK}"))
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd);
    command
}

/// Seconds from the start of `command` until the guest's first word; none if it stalls.
fn time_to_user_space(mut command: Command) -> Option<f64> {
    let begun = Instant::now();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n');
    let (told, reached) = mpsc::channel();
    let reader = thread::spawn(move || {
        let reached = lines
            .any(|line| String::from_utf8_lossy(&line.unwrap()).contains("selftest: userspace"));
        told.send((reached, begun.elapsed().as_secs_f64())).unwrap();
    });
    let outcome = reached.recv_timeout(STALLED);
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap();
    let (reached, elapsed) = outcome.ok()?;
    assert!(reached, "{command:?} never reached user space");
    Some(elapsed)
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
