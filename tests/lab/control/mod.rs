//! The control device, and the agent that drives it from user space of a stock kernel.

mod device;
mod hostile;
mod manager;

use crate::common::Bench;
use crate::common::guest::{Boot, boot};
use crate::common::ramdisk::push_script;

/// Boots the test guest with `script`, which says `done` when it has come to its end.
fn run(script: &str, arguments: &[&str]) -> Boot {
    let bench = Bench::new();
    push_script(&bench, "guest", &format!("set -e\n{script}\necho script: done\n"), &[]);
    finished(boot(&bench, "guest", arguments))
}

/// That the script came to its end.
fn finished(booted: Boot) -> Boot {
    assert_eq!(booted.code, Some(0), "{booted:#?}");
    assert!(booted.console.contains("script: done"), "{booted:#?}");
    booted
}

/// What the guest printed as `KEY: VALUE`.
fn said<'a>(booted: &'a Boot, key: &str) -> &'a str {
    let prefix = format!("{key}: ");
    let line = booted.console.lines().find_map(|line| line.trim().strip_prefix(prefix.as_str()));
    line.unwrap_or_else(|| panic!("no {key} in {booted:#?}"))
}
