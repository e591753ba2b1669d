//! Ethernet frames, in and out: through an interface, or within the process.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

pub mod header;
pub mod mark;
pub mod packet;

/// The Ethernet type of what endpoints say: the second for local experiments (IEEE 802). The first is that of
/// [end-marks](mark).
pub const ETHERTYPE: u16 = 0x88b6;
/// Bytes of an Ethernet header.
pub const HEADER: usize = header::HEADER_BYTES;
/// The most bytes of a frame, with its header.
pub const LONGEST: usize = 1514;

/// Where frames come from and go to. All frames are of [`ETHERTYPE`].
pub trait Frames: fmt::Debug + Send + Sync {
    /// Its own address.
    fn address(&self) -> [u8; 6];

    /// Sends one frame with its header.
    ///
    /// # Errors
    /// The network does not take it.
    fn send(&self, frame: &[u8]) -> io::Result<()>;

    /// Puts the next frame with its header into `buffer` and returns its length; none if none came in `patience`.
    ///
    /// # Errors
    /// The network is gone.
    fn recv(&self, buffer: &mut [u8], patience: Duration) -> io::Result<Option<usize>>;
}

/// Frames that a port keeps until they are asked for.
const MOST_KEPT: usize = 1024;

/// A network within the process, which brings each frame to all other ports, as a switch does that knows nothing.
#[derive(Debug, Clone, Default)]
pub struct Segment(Arc<Mutex<Vec<Weak<Queue>>>>);

#[derive(Debug, Default)]
struct Queue {
    frames: Mutex<VecDeque<Vec<u8>>>,
    filled: Condvar,
}

/// A port of a [`Segment`].
#[derive(Debug)]
pub struct Port {
    address: [u8; 6],
    segment: Segment,
    queue: Arc<Queue>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Segment {
    /// Another port, whose address is `address`.
    pub fn port(&self, address: [u8; 6]) -> Port {
        let queue = Arc::new(Queue::default());
        lock(&self.0).push(Arc::downgrade(&queue));
        Port { address, segment: self.clone(), queue }
    }
}

impl Frames for Port {
    fn address(&self) -> [u8; 6] {
        self.address
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        if !(HEADER..=LONGEST).contains(&frame.len()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut ports = lock(&self.segment.0);
        ports.retain(|port| port.strong_count() > 0);
        for port in
            ports.iter().filter_map(Weak::upgrade).filter(|port| !Arc::ptr_eq(port, &self.queue))
        {
            let mut frames = lock(&port.frames);
            if frames.len() < MOST_KEPT {
                frames.push_back(frame.to_vec());
                port.filled.notify_one();
            }
        }
        Ok(())
    }

    fn recv(&self, buffer: &mut [u8], patience: Duration) -> io::Result<Option<usize>> {
        let deadline = Instant::now() + patience;
        let mut frames = lock(&self.queue.frames);
        loop {
            if let Some(frame) = frames.pop_front() {
                let length = frame.len().min(buffer.len());
                buffer[..length].copy_from_slice(&frame[..length]);
                return Ok(Some(length));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            frames = self
                .queue
                .filled
                .wait_timeout(frames, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}
