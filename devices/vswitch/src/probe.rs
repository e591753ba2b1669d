//! End-marks, and frames that are sent once more, through an interface of the kernel.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::frame::MAX_BYTES;
use crate::mark::{self, ETHERTYPE, Kind};
use crate::plane::{PlaneError, Seen, Waiter};
use crate::sys;

/// Bytes of virtio's header before each frame of the socket.
const HEADER: usize = 10;
/// How many marks of one port can be waited for; of more, the lowest nonce is given up.
const MOST_MARKS: usize = 64;
/// How long one waiter lets another find its answer.
const TURN: Duration = Duration::from_millis(5);
/// Where the kernel does not say when it has done with a table: how long frames are underway then.
const SETTLE: Duration = Duration::from_millis(3);
/// Room for virtio's header before a frame.
const MOST_HEADER: usize = 64;

#[derive(Debug, Default)]
struct Marks {
    /// Marks that are underway, and whether the answer has come.
    sent: BTreeMap<u64, bool>,
    forged: u64,
}

/// A packet socket at a port's interface.
#[derive(Debug)]
pub(crate) struct Probe {
    socket: OwnedFd,
    marks: Mutex<Marks>,
    /// How long frames are underway by a table of former times; none if the kernel forwards, and can be asked.
    underway: Option<Duration>,
}

impl Probe {
    /// At the interface `index` of this thread's network namespace, which is up.
    pub(crate) fn open(index: u32, underway: Option<Duration>) -> Result<Arc<Self>, PlaneError> {
        let socket = match underway {
            None => sys::packet_socket(index, ETHERTYPE, true),
            Some(_) => sys::packet_socket_ahead(index, ETHERTYPE),
        };
        let socket = socket
            .map_err(PlaneError::system(format!("open a packet socket at interface {index}")))?;
        Ok(Arc::new(Self { socket, marks: Mutex::default(), underway }))
    }

    fn lock(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a frame out by the interface, behind its queue. `header` is virtio's of the frame, of which more
    /// than 10 bytes are cut off.
    pub(crate) fn send(&self, header: &[u8], frame: &[u8]) -> Result<(), PlaneError> {
        let mut bytes = header.get(..HEADER).unwrap_or(&[0; HEADER]).to_vec();
        bytes.extend_from_slice(frame);
        match rustix::io::write(&self.socket, &bytes) {
            Ok(_) => Ok(()),
            Err(error) => Err(PlaneError::system("send a frame to a port")(error.into())),
        }
    }

    /// Waits until nothing is forwarded any more by the table as it was before.
    pub(crate) fn settle(&self) {
        match self.underway {
            Some(underway) => std::thread::sleep(underway),
            None if sys::grace_period().is_ok() => {}
            None => std::thread::sleep(SETTLE),
        }
    }

    /// Sends what waits at `tap`, which nobody else reads, up to `most` frames.
    pub(crate) fn take_back(&self, tap: &OwnedFd, most: u32) -> Result<(), PlaneError> {
        let header = sys::tap_header(tap.as_fd())
            .map_err(PlaneError::system("ask the destination's TAP for its header"))?;
        let mut buffer = vec![0; MAX_BYTES + MOST_HEADER];
        for _ in 0..most {
            let Ok(length) = rustix::io::read(tap, &mut buffer) else { break };
            let bytes = buffer.get(..length).unwrap_or(&[]);
            if let Some((header, frame)) = bytes.split_at_checked(header)
                && mark::read(frame).is_none()
            {
                // No room is an overflow, which the interface counts.
                let _ = self.send(header, frame);
            }
        }
        Ok(())
    }

    /// A marker that is sent as soon as it is waited for.
    pub(crate) fn mark(self: &Arc<Self>, nonce: u64) -> Seen {
        let mut marks = self.lock();
        while marks.sent.len() >= MOST_MARKS {
            marks.sent.pop_first();
        }
        marks.sent.insert(nonce, false);
        drop(marks);
        Box::new(Awaited { probe: Arc::clone(self), nonce, sent: false })
    }

    /// How many answers were no answers.
    pub(crate) fn forged(&self) -> u64 {
        let mut marks = self.lock();
        self.read(&mut marks);
        marks.forged
    }

    fn read(&self, marks: &mut Marks) {
        let mut buffer = [0; HEADER + 64];
        while let Ok(length) = rustix::io::read(&self.socket, &mut buffer) {
            let frame = buffer.get(HEADER..length).unwrap_or(&[]);
            let own = match mark::read(frame) {
                Some((Kind::Answer, nonce)) => marks.sent.get_mut(&nonce),
                _ => None,
            };
            match own {
                Some(seen) if !*seen => *seen = true,
                _ => marks.forged += 1,
            }
        }
    }
}

#[derive(Debug)]
struct Awaited {
    probe: Arc<Probe>,
    nonce: u64,
    sent: bool,
}

impl Waiter for Awaited {
    fn wait(&mut self, patience: Duration) -> Result<bool, PlaneError> {
        let until = Instant::now() + patience;
        if !self.sent {
            // A processor may still carry a frame by the table as it was before the last re-point.
            self.probe.settle();
            self.probe.send(&[], &mark::frame(Kind::Mark, self.nonce))?;
            self.sent = true;
        }
        loop {
            let mut marks = self.probe.lock();
            self.probe.read(&mut marks);
            if marks.sent.get(&self.nonce) == Some(&true) {
                return Ok(true);
            }
            drop(marks);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let turn = Timespec::try_from(left.min(TURN)).ok();
            let mut fds = [PollFd::new(&self.probe.socket, PollFlags::IN)];
            let _ = poll(&mut fds, turn.as_ref()); // whatever it says, the socket is looked at
        }
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.probe.lock().sent.remove(&self.nonce);
    }
}
