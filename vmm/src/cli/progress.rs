//! A progress bar with a rate: only on a terminal, and only for work that takes over a second.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Work shorter than this shows nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// The progress of one piece of work, in bytes.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    total: u64,
    done: AtomicU64,
    begun: Instant,
    terminal: bool,
    bar: OnceLock<ProgressBar>,
}

impl Progress {
    /// Begins; `total` is 0 if it is not known.
    pub fn new(what: &'static str, total: u64) -> Self {
        Self {
            what,
            total,
            done: AtomicU64::new(0),
            begun: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
            bar: OnceLock::new(),
        }
    }

    /// `bytes` more are done. May be called from any thread.
    pub fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.show(done, self.total);
    }

    /// `done` of `total` bytes are done.
    pub fn set(&self, done: u64, total: Option<u64>) {
        self.show(done, total.unwrap_or(self.total));
    }

    fn show(&self, done: u64, total: u64) {
        if self.terminal && self.begun.elapsed() > PATIENCE {
            let bar = self.bar.get_or_init(|| self.start(total));
            bar.set_position(done);
        }
    }

    fn start(&self, total: u64) -> ProgressBar {
        let template = if total == 0 {
            "{msg} {bytes} {bytes_per_sec}"
        } else {
            "{msg} {bar:40} {bytes}/{total_bytes} {bytes_per_sec}"
        };
        let bar = ProgressBar::new(total).with_message(self.what);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.with_elapsed(self.begun.elapsed())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}
