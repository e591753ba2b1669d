//! The time to user space beside QEMU's microvm machine, with the same files in the same run.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Bench, guest_file};

/// At most this part of the peer's time.
const RATIO: f64 = 0.5;
const RUNS: usize = 3;

/// From the start of `command` until the guest's first word.
fn time_to_user_space(mut command: Command) -> Duration {
    let begun = Instant::now();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n');
    let reached =
        lines.any(|line| String::from_utf8_lossy(&line.unwrap()).contains("selftest: userspace"));
    let elapsed = begun.elapsed();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(reached, "{command:?} never reached user space");
    elapsed
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn user_space_is_reached_in_half_of_qemu_microvms_time() {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-100.cpio");
    let ours = || bench.vmm(&["boot", "--image", "guest", "--cmdline-append", "selftest.quick"]);
    let theirs = || {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-M", "microvm", "-accel", "kvm", "-cpu", "host", "-m", "512M"])
            .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
            .args(["-serial", "stdio", "-append", "console=ttyS0 quiet panic=-1 selftest.quick"])
            .arg("-kernel")
            .arg(guest_file("vmlinuz"))
            .arg("-initrd")
            .arg(guest_file("initrd-100.cpio"));
        command
    };
    let (mut our_times, mut their_times) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        our_times.push(time_to_user_space(ours()));
        their_times.push(time_to_user_space(theirs()));
    }
    let (ours, theirs) = (median(our_times), median(their_times));
    eprintln!("process start to user space: vmm {ours:?}, QEMU microvm {theirs:?}");
    assert!(ours.as_secs_f64() <= RATIO * theirs.as_secs_f64(), "{ours:?} against {theirs:?}");
}
