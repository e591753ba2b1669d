//! What a switch in user space sends and receives frames by.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

/// The far end of a port: whole frames, without a checksum.
pub trait Line: Send {
    /// What is readable when there are frames.
    fn ready(&self) -> BorrowedFd<'_>;

    /// The next frame.
    ///
    /// # Errors
    /// There is none ([`io::ErrorKind::WouldBlock`]), or the line is gone.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Sends `frame` whole, or not at all.
    ///
    /// # Errors
    /// There is no room now ([`io::ErrorKind::WouldBlock`]), or the line is gone.
    fn send(&mut self, frame: &[u8]) -> io::Result<()>;
}

/// A descriptor that reads and writes one frame at a time, without waiting: a TAP (`IFF_TAP`, `IFF_NO_PI`,
/// no virtio header), a packet socket, a Unix socket of packets. [`crate::sys`] opens the first two.
#[derive(Debug)]
pub struct FdLine(OwnedFd);

impl FdLine {
    /// Over `fd`, which must not block.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl Line for FdLine {
    fn ready(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, buffer)?)
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        match rustix::io::write(&self.0, frame) {
            Ok(_) => Ok(()),
            // The queue of the interface is full.
            Err(rustix::io::Errno::NOBUFS) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => Err(error.into()),
        }
    }
}

#[derive(Debug, Default)]
struct Queues {
    to_switch: VecDeque<Vec<u8>>,
    to_end: VecDeque<Vec<u8>>,
    line_gone: bool,
    end_gone: bool,
}

#[derive(Debug)]
struct Shared {
    queues: Mutex<Queues>,
    arrived: Condvar,
    /// Readable when the switch has something to take.
    event: OwnedFd,
    room: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        // Full is rung already.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }
}

/// A switch's half of a channel in memory.
#[derive(Debug)]
pub struct ChannelLine(Arc<Shared>);

/// The other half of a channel in memory: what is connected to the port.
#[derive(Debug)]
pub struct End(Arc<Shared>);

/// A channel in memory with room for `room` frames each way.
///
/// # Errors
/// There are no descriptors left.
pub fn channel(room: usize) -> io::Result<(ChannelLine, End)> {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let (queues, arrived) = (Mutex::default(), Condvar::new());
    let shared = Arc::new(Shared { queues, arrived, event, room });
    Ok((ChannelLine(Arc::clone(&shared)), End(shared)))
}

impl Line for ChannelLine {
    fn ready(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut queues = self.0.lock();
        let Some(frame) = queues.to_switch.pop_front() else {
            if queues.end_gone {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            // Under the lock: who sends next rings after this.
            let _ = rustix::io::read(&self.0.event, &mut [0; 8]);
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let length = frame.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(&frame) {
            *to = *from;
        }
        Ok(length)
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        let mut queues = self.0.lock();
        if queues.end_gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if queues.to_end.len() >= self.0.room {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        queues.to_end.push_back(frame.to_vec());
        drop(queues);
        self.0.arrived.notify_one();
        Ok(())
    }
}

impl Drop for ChannelLine {
    fn drop(&mut self) {
        self.0.lock().line_gone = true;
        self.0.arrived.notify_all();
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.0.lock().end_gone = true;
        self.0.ring();
    }
}

impl End {
    /// Sends a frame into the switch.
    ///
    /// # Errors
    /// There is no room ([`io::ErrorKind::WouldBlock`]), or the port was removed.
    pub fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        let mut queues = self.0.lock();
        if queues.line_gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if queues.to_switch.len() >= self.0.room {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        queues.to_switch.push_back(frame.to_vec());
        drop(queues);
        self.0.ring();
        Ok(())
    }

    /// The next frame out of the switch, waiting up to `patience`; none if there was none, or the port was
    /// removed.
    pub fn receive(&mut self, patience: Duration) -> Option<Vec<u8>> {
        let until = Instant::now().checked_add(patience)?;
        let mut queues = self.0.lock();
        loop {
            if let Some(frame) = queues.to_end.pop_front() {
                return Some(frame);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || queues.line_gone {
                return None;
            }
            let waited = self.0.arrived.wait_timeout(queues, left);
            queues = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
