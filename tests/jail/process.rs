//! The process of a jail: what it has, and how it ends.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;

use rustix::process::Signal;
use vmm::jail::launch::End;
use vmm::jail::{JailedProcess, ThreadKind};

use crate::inside::start;

/// Runs `word` in a jail to its end; that, and what it printed.
fn run(word: &str) -> (End, String) {
    let mut output = tempfile::tempfile().unwrap();
    let process = start(word, output.as_fd());
    let end = process.wait().unwrap();
    let mut text = String::new();
    output.rewind().unwrap();
    output.read_to_string(&mut text).unwrap();
    (end, text)
}

/// A process that waits in its jail, confined, for its end.
fn waiting() -> JailedProcess {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let process = start("wait", writer.as_fd());
    drop(writer);
    let mut seen = String::new();
    let mut buffer = [0; 256];
    while !seen.contains("ready") {
        let count = reader.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "it ended: {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    process
}

fn file(process: &JailedProcess, name: &str) -> String {
    let path = format!("/proc/{}/{name}", process.pid().as_raw_nonzero());
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn line(status: &str, name: &str) -> String {
    let prefix = format!("{name}:");
    status.lines().find_map(|line| line.strip_prefix(prefix.as_str())).unwrap().trim().to_owned()
}

#[test]
fn a_confined_process_has_nothing_of_the_host() {
    let process = waiting();
    let pid = process.pid().as_raw_nonzero();
    let namespace =
        |pid: &str, name: &str| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
    for name in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"] {
        let (ours, its) = (namespace("self", name), namespace(&pid.to_string(), name));
        assert_ne!(ours, its, "the {name} namespace");
    }

    let status = file(&process, "status");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(line(&status, set), "0000000000000000", "{set}");
    }
    assert_eq!(line(&status, "NoNewPrivs"), "1");
    assert!(line(&status, "NSpid").ends_with("\t1"), "{status}");
    if rustix::process::geteuid().is_root() {
        for name in ["Uid", "Gid"] {
            let ids: Vec<u32> =
                line(&status, name).split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert!(ids.iter().all(|id| *id >= 0x7100_0000 && *id == ids[0]), "{name}: {ids:?}");
        }
        assert_eq!(line(&status, "Groups"), "");
    }

    // One mount, read-only, with nothing in it.
    let mounts = file(&process, "mountinfo");
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(
        mounts.contains(" / / ro,nosuid,nodev,noexec") && mounts.contains(" - tmpfs "),
        "{mounts}"
    );
    assert_eq!(std::fs::read_dir(format!("/proc/{pid}/root/")).unwrap().count(), 0);

    // A network with nothing but a loopback interface that is down: no addresses.
    let devices = file(&process, "net/dev");
    assert_eq!(devices.lines().filter(|line| line.contains(':')).count(), 1, "{devices}");
    assert_eq!(file(&process, "net/if_inet6").trim(), "");

    let limits = file(&process, "limits");
    for (name, value) in [("Max core file size", "0"), ("Max open files", "1024")] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.trim_start_matches(name).trim().starts_with(value), "{line}");
    }
    process.signal(Signal::KILL).unwrap();
    assert_eq!(process.wait().unwrap(), End::Killed(libc::SIGKILL));
}

#[test]
fn no_file_of_who_starts_it_gets_in() {
    // One that an execution does not close by itself.
    let folder = tempfile::tempdir().unwrap();
    let secret = File::create(folder.path().join("secret")).unwrap();
    rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty()).unwrap();
    let process = waiting();
    let files = format!("/proc/{}/fd", process.pid().as_raw_nonzero());
    let open: Vec<String> = std::fs::read_dir(files)
        .unwrap()
        .map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap())
        .map(|target| target.to_str().unwrap().to_owned())
        .collect();
    process.signal(Signal::KILL).unwrap();
    process.wait().unwrap();
    // Its standard files, and what the kernel tells it of its own memory.
    let own = ["/maps", "/smaps", "/pagemap"];
    let known = |target: &String| {
        target == "/dev/null"
            || target.starts_with("pipe:")
            || own.iter().any(|name| target.ends_with(name) && target.starts_with("/proc/"))
    };
    assert!(open.iter().all(known), "{open:?}");
    assert_eq!(open.len(), 6, "{open:?}");
}

#[test]
fn there_is_no_file_to_open() {
    for path in ["/etc/passwd", "/proc/self/status", "/dev/null", "/sys", "."] {
        let (end, text) = run(&format!("open:{path}"));
        assert_eq!(end, End::Exited(0), "{text}");
        // The root itself is one that Landlock keeps shut, where there is Landlock.
        let answers = ["NotFound", "PermissionDenied"];
        let refused = answers.iter().any(|kind| text.contains(&format!("open: Err({kind})")));
        assert!(refused || path == "." && text.contains("open: Ok"), "{path}: {text}");
    }
}

#[test]
fn a_forbidden_call_kills_whatever_thread_makes_it() {
    for kind in ThreadKind::ALL {
        for number in [
            libc::SYS_openat,
            libc::SYS_execve,
            libc::SYS_socket,
            libc::SYS_clone3,
            libc::SYS_ptrace,
            libc::SYS_unshare,
            libc::SYS_kill,
            libc::SYS_bpf,
            // Of a kernel that is not there yet.
            4095,
        ] {
            let (end, text) = run(&format!("call:{kind}:{number}"));
            assert!(end.is_forbidden_call(), "{kind}, call {number}: {end:?}, {text}");
            assert!(text.contains("before") && !text.contains("after"), "{text}");
        }
        // And one that is not does not.
        let (end, text) = run(&format!("call:{kind}:{}", libc::SYS_munmap));
        assert_eq!(end, End::Exited(0), "{kind}: {text}");
        assert!(text.contains("after: -1"), "{text}");
    }
}

/// The kernel spares the first process of a namespace the signals that it does not handle.
#[test]
fn signals_and_a_panic_end_it_as_they_end_others() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let process = waiting();
        process.signal(signal).unwrap();
        assert_eq!(process.wait().unwrap(), End::Exited(code));
    }
    let (end, text) = run("panic");
    assert_eq!(end, End::Exited(134), "{text}");
    assert!(text.contains("as it was asked to"), "{text}");
}

#[test]
fn its_end_is_told_by_its_descriptor() {
    let process = waiting();
    let of = || rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN);
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut [of()], Some(&now)).unwrap(), 0);
    assert_eq!(process.try_wait().unwrap(), None);
    let found = JailedProcess::find(process.pid()).unwrap();
    found.signal(Signal::KILL).unwrap();
    assert_eq!(rustix::event::poll(&mut [of()], None).unwrap(), 1);
    assert_eq!(process.try_wait().unwrap(), Some(End::Killed(libc::SIGKILL)));
}

#[test]
fn a_thousand_leave_nothing_behind() {
    // In a process with nothing else in it.
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let output = command.env(crate::inside::WORD, "many").output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Starts many jails, and kills them at any moment.
pub fn many() {
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = count();
    let output = File::create("/dev/null").unwrap();
    for _ in 0..if crate::common::is_long() { 50 } else { 5 } {
        let processes: Vec<_> = (0..20).map(|_| start("wait", output.as_fd())).collect();
        for process in processes {
            process.signal(Signal::KILL).unwrap();
            assert_eq!(process.wait().unwrap(), End::Killed(libc::SIGKILL));
        }
    }
    drop(output);
    assert_eq!(count(), before);
    let left = rustix::process::wait(rustix::process::WaitOptions::NOHANG);
    assert!(matches!(left, Err(rustix::io::Errno::CHILD)), "{left:?}");
}
