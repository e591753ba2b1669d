//! The console: what is typed arrives, what the guest says shows, and the escape gets out.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::Bench;

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_shell_on_the_console_answers_and_the_escape_ends_the_vm() {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    let mut child = bench
        .vmm(&["boot", "--image", "guest", "--cmdline-append", "selftest.then=shell"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut seen = String::new();
    let mut wait_for = |text: &str| {
        let begun = Instant::now();
        while !seen.contains(text) {
            assert!(begun.elapsed() < Duration::from_secs(120), "no {text:?} in {seen}");
            let mut buffer = [0; 4096];
            let count = stdout.read(&mut buffer).unwrap();
            assert_ne!(count, 0, "the console ended without {text:?}: {seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    wait_for("# ");
    // Longer than the serial port's FIFO, and the answer is not in the question.
    let padding = "x".repeat(300);
    writeln!(stdin, "echo {padding} | wc -c; echo $((6 * 7))-answer").unwrap();
    wait_for("301");
    wait_for("42-answer");
    stdin.write_all(b"\x01x").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
