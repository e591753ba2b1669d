//! Signals that end a VM, as events of the loop.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vmm_sys_util::signal::unblock_signal;

use super::MachineError;
use super::event_loop::Verdict;
use super::outcome::Outcome;

/// Those that end the VM, unless this process was started with them ignored (as by `nohup`).
const SIGNALS: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// The signals, each through a pipe of its own; when dropped, they do what they do by default.
pub struct Signals {
    /// Set when nobody reads the pipes any more.
    over: Arc<AtomicBool>,
    pipes: Vec<(i32, UnixStream)>,
    registered: Vec<signal_hook::SigId>,
    verdict: Rc<Verdict>,
}

impl Signals {
    /// Handles them from now on.
    pub fn new(verdict: Rc<Verdict>) -> Result<Self, MachineError> {
        let (pipes, registered) = (Vec::new(), Vec::new());
        let mut signals = Self { over: Arc::default(), pipes, registered, verdict };
        let ignored = ignored_signals();
        for signal in SIGNALS.into_iter().filter(|signal| ignored & bit(*signal) == 0) {
            let register = || {
                let (read, write) = UnixStream::pair()?;
                read.set_nonblocking(true)?;
                signal_hook::flag::register_conditional_default(signal, signals.over.clone())?;
                let id = signal_hook::low_level::pipe::register(signal, write)?;
                Ok((id, read))
            };
            let (id, read) = register().map_err(MachineError::system("handle signals"))?;
            signals.registered.push(id);
            signals.pipes.push((signal, read));
            // A parent may have blocked it, and masks are inherited.
            if let Err(error) = unblock_signal(signal) {
                log::warn!("signal {signal} stays blocked: {error:?}");
            }
        }
        Ok(signals)
    }
}

/// The bit of `signal` in a mask.
fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// The mask of signals that this process ignores.
fn ignored_signals() -> u64 {
    let mut status = String::new();
    let read = std::fs::File::open("/proc/self/status")
        .and_then(|mut file| file.read_to_string(&mut status));
    if read.is_err() {
        return 0;
    }
    ignored_in(&status)
}

fn ignored_in(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        for id in self.registered.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        if let Some((signal, _)) =
            self.pipes.iter().find(|(_, pipe)| pipe.as_raw_fd() == events.fd())
        {
            self.verdict.end(Outcome::Signal(*signal));
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (_, pipe) in &self.pipes {
            self.verdict.add(ops, Events::new(pipe, EventSet::IN));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_mask() {
        let status = "Name:\tvmm\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        assert_eq!(ignored_in(status), bit(SIGHUP) | 1 << 12);
        assert_eq!(ignored_in("Name:\tvmm\n"), 0);
    }
}
