//! A booted guest and what its self-test found (scripts/lib/guest-init.sh).

use std::collections::HashMap;
use std::process::{Child, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::hang;
use super::{Bench, stderr, stdout};

/// How long a guest may take from its boot to its end: many times what one takes where its machine is
/// emulated. One that takes longer hangs, which is a finding, and not to cost the tests that follow.
const LIFE: Duration = Duration::from_secs(240);

/// What a guest said and how it ended.
#[derive(Debug)]
pub struct Boot {
    pub code: Option<i32>,
    pub console: String,
    pub stderr: String,
    pub report: Value,
}

/// Boots `image` and waits for its end.
pub fn boot(bench: &Bench, image: &str, arguments: &[&str]) -> Boot {
    let file = bench.path().join("report.json");
    let child = bench
        .vmm(&["boot", "--image", image, "--report", file.to_str().unwrap()])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = end_of(child);
    let report = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
    Boot::new(&output, report.unwrap_or(Value::Null))
}

/// What it said until it ended. Panics with where it hangs and what it said until then, if it does not.
fn end_of(child: Child) -> Output {
    let pid = Pid::from_child(&child);
    let (ended, end) = channel();
    std::thread::spawn(move || ended.send(child.wait_with_output().unwrap()));
    match end.recv_timeout(LIFE) {
        Ok(output) => output,
        Err(RecvTimeoutError::Disconnected) => panic!("nobody waits for the guest"),
        Err(RecvTimeoutError::Timeout) => {
            let found = hang::look_at(pid);
            kill_process(pid, Signal::KILL).unwrap();
            let said = end.recv_timeout(LIFE).map(|output| (stdout(&output), stderr(&output)));
            panic!("the guest hangs after {LIFE:?}: {said:#?}\n{found}");
        }
    }
}

impl Boot {
    fn new(output: &Output, report: Value) -> Self {
        Self { code: output.status.code(), console: stdout(output), stderr: stderr(output), report }
    }

    /// What the self-test found; panics if it did not end well.
    pub fn self_test(&self) -> HashMap<String, String> {
        assert!(self.console.contains("selftest: ok"), "{self:#?}");
        self.console
            .lines()
            .filter_map(|line| line.trim().strip_prefix("selftest: ")?.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    /// A number of the report's `guest.kvm`.
    pub fn kvm(&self, counter: &str) -> u64 {
        self.report["guest"]["kvm"][counter].as_u64().unwrap_or_else(|| panic!("{self:#?}"))
    }
}
