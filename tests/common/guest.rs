//! A booted guest and what its self-test found (scripts/lib/guest-init.sh).

use std::collections::HashMap;
use std::process::Output;

use serde_json::Value;

use super::{Bench, stderr, stdout};

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
    let output = bench
        .vmm(&["boot", "--image", image, "--report", file.to_str().unwrap()])
        .args(arguments)
        .output()
        .unwrap();
    let report = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
    Boot::new(&output, report.unwrap_or(Value::Null))
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
