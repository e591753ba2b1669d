//! Where a process hangs, for whoever reads the log of a test that failed by it.

use std::fmt::Write as _;
use std::fs::read_to_string;
use std::path::Path;
use std::time::Duration;

use rustix::process::Pid;

/// How far apart its counters are looked at.
const APART: Duration = Duration::from_secs(2);

/// What each of its threads does and where in the kernel it is; KVM's counters, twice, so that one sees
/// whether a guest still exits; and the newest messages of the kernel. What cannot be read is left out.
pub fn look_at(pid: Pid) -> String {
    let mut found = String::new();
    let process = format!("/proc/{}", pid.as_raw_nonzero());
    for round in 1..=2 {
        let _ = writeln!(found, "--- look {round}: threads of {process}");
        threads(&process, &mut found);
        let _ = writeln!(found, "--- look {round}: KVM");
        counters(pid, &mut found);
        std::thread::sleep(APART);
    }
    let kernel = std::process::Command::new("dmesg").output().map(|output| output.stdout);
    let kernel = String::from_utf8_lossy(&kernel.unwrap_or_default()).into_owned();
    let lines: Vec<_> = kernel.lines().collect();
    let _ = writeln!(found, "--- the kernel said last");
    for line in &lines[lines.len().saturating_sub(20)..] {
        let _ = writeln!(found, "{line}");
    }
    found
}

fn threads(process: &str, found: &mut String) {
    for thread in std::fs::read_dir(format!("{process}/task")).into_iter().flatten().flatten() {
        let read = |name: &str| read_to_string(thread.path().join(name)).unwrap_or_default();
        // Name, state and, as 14th and 15th, the ticks in user space and in the kernel.
        let stat = read("stat");
        let _ = writeln!(found, "{} at {}", stat.trim(), read("wchan"));
        for line in read("stack").lines().chain(read("syscall").lines()) {
            let _ = writeln!(found, "    {line}");
        }
    }
}

/// The counters of its virtual machine that are not zero; of all its processors together.
fn counters(pid: Pid, found: &mut String) {
    let own = format!("{}-", pid.as_raw_nonzero());
    for machine in std::fs::read_dir("/sys/kernel/debug/kvm").into_iter().flatten().flatten() {
        if machine.file_name().to_string_lossy().starts_with(&own) {
            counters_in(&machine.path(), found);
        }
    }
}

fn counters_in(folder: &Path, found: &mut String) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            let _ = writeln!(found, "{}:", entry.file_name().to_string_lossy());
            counters_in(&path, found);
        } else if let Ok(value) = read_to_string(&path)
            && value.trim() != "0"
        {
            let _ = write!(found, "{}={} ", entry.file_name().to_string_lossy(), value.trim());
        }
    }
    let _ = writeln!(found);
}
