//! Log lines on standard error.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};

struct StandardError;

impl Log for StandardError {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = record.level().as_str().to_ascii_lowercase();
        // Nobody to tell if it fails. The carriage return is for a terminal in raw mode.
        let _ = write!(std::io::stderr(), "vmm: {level}: {}\r\n", record.args());
    }

    fn flush(&self) {}
}

/// Starts logging; `verbose` is how many times `-v` was given.
pub fn start(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        _ => LevelFilter::Debug,
    };
    if log::set_logger(&StandardError).is_ok() {
        log::set_max_level(level);
    }
}
