//! The thread that owns a switch's descriptors and frames.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::Instant;

use endpoint::vid::Vid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::fabric::{Fabric, Out, Role};
use super::faults::Faults;
use super::line::Line;
use crate::frame::MAX_BYTES;
use crate::plane::PlaneError;
use crate::switch::{Limit, Port, Statistics};

/// How many frames of one port are taken before the next port has its turn, and orders theirs.
const BATCH: usize = 64;

/// What the thread is told.
pub(super) enum Order {
    AddPort { line: Box<dyn Line>, role: Role, answer: Sender<u32> },
    RemovePort { number: u32, answer: Sender<Result<(), PlaneError>> },
    Point { homes: Vec<(Vid, Option<u32>)>, answer: Sender<Result<(), (usize, PlaneError)>> },
    Hold { vid: Vid, to: u32, limit: Limit, answer: Sender<Result<(), PlaneError>> },
    Release { vid: Vid, commit: bool, answer: Sender<()> },
    Mute { number: u32, muted: bool, answer: Sender<Result<(), PlaneError>> },
    Mark { number: u32, nonce: u64, seen: Sender<()>, answer: Sender<Result<(), PlaneError>> },
    Faults { number: u32, faults: Faults, answer: Sender<Result<(), PlaneError>> },
    Flood { flood: bool, answer: Sender<()> },
    Statistics { answer: Sender<Statistics> },
    Stop,
}

/// Wakes the thread.
#[derive(Clone, Debug)]
pub(super) struct Waker(Arc<OwnedFd>);

impl Waker {
    pub(super) fn new(event: OwnedFd) -> Self {
        Self(Arc::new(event))
    }

    pub(super) fn wake(&self) {
        // Full is awake already.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

/// The thread's own.
pub(super) struct Owner {
    orders: Receiver<Order>,
    waker: Waker,
    lines: BTreeMap<u32, Box<dyn Line>>,
    fabric: Fabric,
    next_port: u32,
    out: Out,
    now: Instant,
    buffer: Vec<u8>,
}

fn known(there: bool, number: u32) -> Result<(), PlaneError> {
    if there { Ok(()) } else { Err(PlaneError::NoPort(Port::Local(number))) }
}

impl Owner {
    pub(super) fn new(orders: Receiver<Order>, waker: Waker, now: Instant) -> Self {
        Self {
            orders,
            waker,
            lines: BTreeMap::new(),
            fabric: Fabric::default(),
            next_port: 1,
            out: Out::new(),
            now,
            buffer: vec![0; MAX_BYTES + 1],
        }
    }

    /// Forwards until it is told to stop.
    pub(super) fn run(mut self) {
        loop {
            let next = self.fabric.arrived(self.now, &mut self.out);
            self.flush();
            let Ok((orders, ready)) = self.wait(next) else { return };
            self.now = Instant::now();
            if orders && !self.obey() {
                return;
            }
            for number in ready {
                self.take(number);
            }
        }
    }

    /// Whether there are orders, and which ports have frames.
    fn wait(&self, next: Option<Instant>) -> io::Result<(bool, Vec<u32>)> {
        let left = next.map(|next| next.saturating_duration_since(Instant::now()));
        // What does not fit is longer than anybody waits.
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = Vec::with_capacity(self.lines.len() + 1);
        fds.push(PollFd::from_borrowed_fd(self.waker.0.as_fd(), PollFlags::IN));
        let lines = self.lines.values();
        fds.extend(lines.map(|line| PollFd::from_borrowed_fd(line.ready(), PollFlags::IN)));
        match poll(&mut fds, left.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok((false, Vec::new())),
            Err(error) => return Err(error.into()),
        }
        let mut events = fds.iter().map(|fd| !fd.revents().is_empty());
        let orders = events.next().unwrap_or(false);
        let ready = self.lines.keys().zip(events).filter(|(_, ready)| *ready);
        Ok((orders, ready.map(|(number, _)| *number).collect()))
    }

    /// Takes frames of a port.
    fn take(&mut self, number: u32) {
        let Some(line) = self.lines.get_mut(&number) else { return };
        for _ in 0..BATCH {
            match line.receive(&mut self.buffer) {
                Ok(length) => {
                    let frame = self.buffer.get(..length).unwrap_or(&[]);
                    self.fabric.frame(number, frame, self.now, &mut self.out);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // An interface that is down says so once, and comes back.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => break,
                // The line is gone: so is the port, or its descriptor would be ready for ever.
                Err(_) => {
                    self.lines.remove(&number);
                    self.fabric.remove_port(number);
                    break;
                }
            }
        }
        self.flush();
    }

    /// Hands frames to their ports.
    fn flush(&mut self) {
        for (number, frame) in self.out.drain(..) {
            let sent = self.lines.get_mut(&number).map(|line| line.send(&frame));
            if !matches!(sent, Some(Ok(()))) {
                self.fabric.congested += 1;
            }
        }
    }

    /// Does what was asked for; whether to go on. Who asked may have gone without waiting for the answer.
    fn obey(&mut self) -> bool {
        let _ = rustix::io::read(&*self.waker.0, &mut [0; 8]); // before the queue is looked at
        loop {
            match self.orders.try_recv() {
                Ok(Order::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
                Ok(order) => self.follow(order),
            }
            self.flush();
        }
    }

    fn follow(&mut self, order: Order) {
        let Self { fabric, out, now, .. } = self;
        match order {
            Order::AddPort { line, role, answer } => {
                let number = self.next_port;
                self.next_port = number.wrapping_add(1);
                self.lines.insert(number, line);
                fabric.add_port(number, role);
                let _ = answer.send(number);
            }
            Order::RemovePort { number, answer } => {
                self.lines.remove(&number);
                let _ = answer.send(known(fabric.remove_port(number), number));
            }
            Order::Point { homes, answer } => {
                let done = fabric.point(&homes);
                let done = done
                    .map_err(|(index, number)| (index, PlaneError::NoPort(Port::Local(number))));
                let _ = answer.send(done);
            }
            Order::Hold { vid, to, limit, answer } => {
                let held = known(fabric.has(to), to).map(|()| _ = fabric.hold(vid, to, limit));
                let _ = answer.send(held);
            }
            Order::Release { vid, commit, answer } => {
                fabric.release(vid, commit, *now, out);
                let _ = answer.send(());
            }
            Order::Mute { number, muted, answer } => {
                let _ = answer.send(known(fabric.mute(number, muted), number));
            }
            Order::Mark { number, nonce, seen, answer } => {
                let there = fabric.mark(number, nonce, seen, *now, out);
                let _ = answer.send(known(there, number));
            }
            Order::Faults { number, faults, answer } => {
                let _ = answer.send(known(fabric.set_faults(number, faults), number));
            }
            Order::Flood { flood, answer } => {
                fabric.flood(flood);
                let _ = answer.send(());
            }
            Order::Statistics { answer } => _ = answer.send(fabric.statistics()),
            Order::Stop => {}
        }
    }
}
