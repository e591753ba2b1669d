//! Signals, turned into something that can be waited for.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Signal;
use signal_hook::consts::SIGCHLD;
use signal_hook::flag;
use signal_hook::low_level::pipe;

use super::ENDING;

/// The signals that this program waits for.
pub struct Signals {
    wake: UnixStream,
    ending: Vec<(Arc<AtomicBool>, Signal, &'static str)>,
}

impl Signals {
    /// From now on, signals are told here.
    ///
    /// # Errors
    /// If the system has no room for that.
    pub fn new() -> io::Result<Self> {
        let (wake, write) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        pipe::register(SIGCHLD, write.try_clone()?)?;
        let mut ending = Vec::new();
        for (signal, name) in ENDING {
            let raised = Arc::new(AtomicBool::new(false));
            flag::register(signal.as_raw(), Arc::clone(&raised))?;
            pipe::register(signal.as_raw(), write.try_clone()?)?;
            ending.push((raised, signal, name));
        }
        Ok(Self { wake, ending })
    }

    /// Waits for a signal, for at most so long.
    ///
    /// # Errors
    /// If that cannot be waited for.
    pub fn wait(&mut self, most: Option<Duration>) -> io::Result<()> {
        let most = most.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.wake, PollFlags::IN)], most.as_ref()) {
            Ok(_) | Err(Errno::INTR) => (),
            Err(error) => return Err(error.into()),
        }
        match self.wake.read(&mut [0; 64]) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// The signal to end, if there was one since this was asked last.
    pub fn end(&mut self) -> Option<(Signal, &'static str)> {
        let raised = self.ending.iter().find(|(raised, ..)| raised.swap(false, Ordering::SeqCst));
        raised.map(|(_, signal, name)| (*signal, *name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_ends_the_waiting_and_is_told_once() {
        let mut signals = Signals::new().unwrap();
        signals.wait(Some(Duration::ZERO)).unwrap();
        assert!(signals.end().is_none());
        signal_hook::low_level::raise(Signal::TERM.as_raw()).unwrap();
        signals.wait(None).unwrap();
        assert_eq!(signals.end(), Some((Signal::TERM, "SIGTERM")));
        assert!(signals.end().is_none());
    }
}
