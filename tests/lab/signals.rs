//! Ends from outside: nothing stays behind, and the terminal is as it was.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::ioctl_fionread;
use rustix::pipe::fcntl_setpipe_size;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::common::Bench;

/// A guest that says that it runs and then does nothing, for ever.
fn hanging_guest(bench: &Bench, stdin: Stdio) -> Child {
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    let mut child = bench
        .vmm(&["boot", "--image", "guest", "--cmdline-append", "selftest.then=hang"])
        .stdin(stdin)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("selftest: ok")));
    // Kept open: the guest goes on writing.
    std::mem::forget(lines);
    child
}

fn kill(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Whether any process has the store's folder in its command line or environment.
fn processes_of(bench: &Bench) -> usize {
    let store = bench.store().to_str().unwrap().to_owned();
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read(entry.unwrap().path().join("environ")).ok())
        .filter(|environ| {
            let value = format!("VMM_STORE={store}");
            environ.split(|byte| *byte == 0).any(|variable| variable == value.as_bytes())
        })
        .count()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn signals_end_the_vm_with_their_own_codes() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let bench = Bench::new();
        let mut child = hanging_guest(&bench, Stdio::null());
        kill(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert_eq!(processes_of(&bench), 0);
        // No lock is left: gc takes the store for itself.
        bench.expect(0, &["image", "gc"]);
    }
}

/// The processor that writes waits, with the serial port; the loop must not wait with it.
#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_guest_whose_output_nobody_reads_can_be_ended() {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    let mut child = bench
        .vmm(&["boot", "--image", "guest", "--cmdline-append", "ignore_loglevel"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    // Less than the kernel has to say.
    let room = fcntl_setpipe_size(&stdout, 4096).unwrap();
    wait_until("the pipe does not fill", || ioctl_fionread(&stdout).unwrap() >= room as u64);
    child.stdin.take().unwrap().write_all(&[b'x'; 5000]).unwrap();
    kill(&child, Signal::TERM);
    wait_until("SIGTERM does not end it", || child_has_ended(&child));
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

/// Whether it is a zombie by now.
fn child_has_ended(child: &Child) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z')
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_kill_and_the_escape_leave_no_process_no_lock_and_a_sane_terminal() {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let terminal: OwnedFd = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        // Not the controlling terminal of this program, which would be hung up with it.
        .custom_flags(OFlags::NOCTTY.bits().cast_signed())
        .open(name.to_str().unwrap())
        .unwrap()
        .into();
    let line_mode = || tcgetattr(&terminal).unwrap().local_modes.contains(LocalModes::ICANON);
    assert!(line_mode());
    for signal in [Some(Signal::KILL), Some(Signal::TERM), None] {
        let bench = Bench::new();
        let mut child = hanging_guest(&bench, Stdio::from(terminal.try_clone().unwrap()));
        assert!(!line_mode(), "raw while the guest runs");
        if let Some(signal) = signal {
            kill(&child, signal);
        } else {
            // More than the serial port takes of a guest that reads nothing, then the escape.
            rustix::io::write(&controller, &[b'x'; 1000]).unwrap();
            rustix::io::write(&controller, b"\x01x").unwrap();
        }
        child.wait().unwrap();
        wait_until("the terminal is not restored", line_mode);
        wait_until("a process is left", || processes_of(&bench) == 0);
        bench.expect(0, &["image", "gc"]);
    }
}
