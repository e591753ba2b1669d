//! Signals that end a VM, as events of the loop.

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
use crate::jail::first;

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
        for signal in SIGNALS.into_iter().filter(|signal| !is_ignored(*signal)) {
            let register = || {
                let (read, write) = UnixStream::pair()?;
                read.set_nonblocking(true)?;
                ends_if_over(signal, signals.over.clone())?;
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
        first::set_handled(true);
        Ok(signals)
    }
}

/// What a signal does when nobody reads the pipes any more: what it does by default, which the first
/// process of a namespace has to do by itself.
fn ends_if_over(signal: i32, over: Arc<AtomicBool>) -> std::io::Result<()> {
    if first::is_first() {
        first::ends_if(signal, over)?;
    } else {
        signal_hook::flag::register_conditional_default(signal, over)?;
    }
    Ok(())
}

/// Whether this process was started with the signal ignored.
fn is_ignored(signal: i32) -> bool {
    // SAFETY: all zeros are a value of this structure of numbers and pointers, of which the call writes
    // another; given no new one, it changes nothing.
    let action = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        (libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0).then_some(action)
    };
    action.is_some_and(|action| action.sa_sigaction == libc::SIG_IGN)
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        first::set_handled(false);
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
    fn ignored_signals_are_told() {
        // Which nobody else here is after.
        let signal = libc::SIGURG;
        assert!(!is_ignored(signal));
        // SAFETY: nothing runs when the signal comes.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
        assert!(is_ignored(signal));
        // SAFETY: as above.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}
