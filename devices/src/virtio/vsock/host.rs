//! The host's side: unix sockets, and what the device waits for.
//!
//! Sockets are waited for edge-triggered. What came up is remembered with the connection until the socket
//! has nothing more, or no more room; so whatever the guest keeps the device from doing, nothing is
//! waited for in a circle.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with,
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

/// Most events that are taken at once.
const EVENTS: usize = 64;

/// Connects to what listens on the host for the guest.
pub trait Dialer: Send + std::fmt::Debug {
    /// A connection, which does not block, to who listens for `port`.
    ///
    /// # Errors
    /// Nobody does, or nobody can be reached.
    fn dial(&self, port: u32) -> io::Result<UnixStream>;
}

/// Listeners at a path, an underscore, and the port: `PATH_1024`.
#[derive(Debug)]
pub struct SocketPrefix(PathBuf);

impl SocketPrefix {
    /// Of sockets whose names begin with `path`, as this process sees it when the guest connects.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
}

impl Dialer for SocketPrefix {
    fn dial(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = OsString::from(&self.0);
        path.push(format!("_{port}"));
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // A listener whose queue is full is one that does not answer: EAGAIN.
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket.into())
    }
}

/// What came from a socket.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes.
    Bytes(usize),
    /// Nothing, now.
    Nothing,
    /// The other side sends no more.
    End,
    /// The other side is gone.
    Gone,
}

/// A socket with what it did not take yet.
#[derive(Debug)]
pub struct Stream {
    socket: UnixStream,
    token: u64,
    /// What waits for room in the socket.
    waiting: VecDeque<u8>,
    /// Whether room in the socket is waited for.
    waits: bool,
}

/// Nobody will read what is written any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken;

impl Stream {
    /// Takes a socket, which must not block, and has `poller` tell of it as `token`.
    ///
    /// # Errors
    /// The host is out of memory for it.
    pub fn new(socket: UnixStream, token: u64, poller: &Poller) -> io::Result<Self> {
        let stream = Self { socket, token, waiting: VecDeque::new(), waits: false };
        epoll::add(&poller.epoll, &stream.socket, EventData::new_u64(token), stream.interest())?;
        Ok(stream)
    }

    fn interest(&self) -> EventFlags {
        let room = if self.waits { EventFlags::OUT } else { EventFlags::empty() };
        EventFlags::IN | EventFlags::RDHUP | EventFlags::ET | room
    }

    /// Bytes that wait for room in the socket.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Fills `buffer` with what is there.
    pub fn receive(&self, buffer: &mut [u8]) -> Received {
        self.take(buffer, RecvFlags::empty())
    }

    /// As [`receive`](Self::receive), and leaves it there.
    pub fn peek(&self, buffer: &mut [u8]) -> Received {
        self.take(buffer, RecvFlags::PEEK)
    }

    fn take(&self, buffer: &mut [u8], flags: RecvFlags) -> Received {
        match rustix::io::retry_on_intr(|| recv(&self.socket, &mut *buffer, flags)) {
            Ok((0, _)) => Received::End,
            Ok((count, _)) => Received::Bytes(count),
            Err(Errno::AGAIN) => Received::Nothing,
            Err(_) => Received::Gone,
        }
    }

    /// Sends as much of `bytes` as the socket takes; the rest waits. Returns how many went.
    ///
    /// # Errors
    /// Nobody reads any more.
    pub fn send(&mut self, bytes: &[u8], poller: &Poller) -> Result<usize, Broken> {
        let sent = if self.waiting.is_empty() { self.write(bytes)? } else { 0 };
        self.waiting.extend(&bytes[sent..]);
        self.wait_for_room(poller)?;
        Ok(sent)
    }

    /// Sends what waits. Returns how many bytes went.
    ///
    /// # Errors
    /// Nobody reads any more.
    pub fn flush(&mut self, poller: &Poller) -> Result<usize, Broken> {
        let mut flushed = 0;
        while !self.waiting.is_empty() {
            let sent = self.write(self.waiting.as_slices().0)?;
            self.waiting.drain(..sent);
            flushed += sent;
            if sent == 0 {
                break;
            }
        }
        if self.waiting.is_empty() {
            // The memory of a connection that keeps up is nobody's.
            self.waiting = VecDeque::new();
        }
        self.wait_for_room(poller)?;
        Ok(flushed)
    }

    fn write(&self, bytes: &[u8]) -> Result<usize, Broken> {
        match rustix::io::retry_on_intr(|| send(&self.socket, bytes, SendFlags::NOSIGNAL)) {
            Ok(count) => Ok(count),
            Err(Errno::AGAIN) => Ok(0),
            Err(_) => Err(Broken),
        }
    }

    /// Waits for room while, and only while, something waits for it.
    fn wait_for_room(&mut self, poller: &Poller) -> Result<(), Broken> {
        if self.waits != self.waiting.is_empty() {
            return Ok(());
        }
        self.waits = !self.waits;
        let token = EventData::new_u64(self.token);
        epoll::modify(&poller.epoll, &self.socket, token, self.interest()).map_err(|_| Broken)
    }

    /// Drops what waits.
    pub fn discard(&mut self, poller: &Poller) {
        self.waiting = VecDeque::new();
        // There is nothing to be lost by waiting for room that is not needed.
        let _ = self.wait_for_room(poller);
    }

    /// Tells the other side that nothing more comes.
    pub fn end_sending(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }

    /// Tells the other side that nothing more is read.
    pub fn end_receiving(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Read);
    }
}

/// What came up.
#[derive(Debug, Clone, Copy)]
pub struct Occurrence {
    /// The token of what it came up with.
    pub token: u64,
    /// There may be something to read, or an end.
    pub readable: bool,
    /// There may be room.
    pub writable: bool,
    /// The other side sends no more.
    pub ended: bool,
    /// It is gone altogether.
    pub hung_up: bool,
}

/// Waits for sockets, for a time, and for the device itself.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
    timer: OwnedFd,
    again: OwnedFd,
    due: Option<Instant>,
}

/// Token of the listening socket.
pub const LISTENER: u64 = u64::MAX;
/// Token of the timer.
pub const TIMER: u64 = u64::MAX - 1;
const AGAIN: u64 = u64::MAX - 2;

impl Poller {
    /// Waits for connections to `listener`.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new(listener: impl AsFd) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let again = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        // Each expiry and each signal is an edge, so neither has to be read.
        let edge = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), edge)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), edge)?;
        epoll::add(&epoll, &again, EventData::new_u64(AGAIN), edge)?;
        Ok(Self { epoll, timer, again, due: None })
    }

    /// Readable while something has come up.
    pub fn event(&self) -> &OwnedFd {
        &self.epoll
    }

    /// Makes something come up that says nothing.
    pub fn wake(&self) {
        // It counts to 2^64.
        let _ = rustix::io::write(&self.again, &1_u64.to_ne_bytes());
    }

    /// Puts what has come up, with some sockets, into `occurrences`.
    ///
    /// # Errors
    /// None that could be helped.
    pub fn take(&self, occurrences: &mut Vec<Occurrence>) -> io::Result<()> {
        let mut events = [MaybeUninit::uninit(); EVENTS];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // It does not wait, so no signal can break it off.
        let (events, _) = epoll::wait(&self.epoll, &mut events[..], Some(&now))?;
        occurrences.extend(events.iter().map(|event| {
            let (flags, data) = (event.flags, event.data);
            let gone = EventFlags::HUP | EventFlags::ERR;
            Occurrence {
                token: data.u64(),
                readable: flags.intersects(EventFlags::IN | EventFlags::RDHUP | gone),
                writable: flags.intersects(EventFlags::OUT | gone),
                ended: flags.intersects(EventFlags::RDHUP | gone),
                hung_up: flags.intersects(gone),
            }
        }));
        Ok(())
    }

    /// Has the timer come up at `deadline`, unless it does before.
    ///
    /// # Errors
    /// None that could be helped.
    pub fn wake_at(&mut self, deadline: Instant) -> io::Result<()> {
        if self.due.is_some_and(|due| due <= deadline) {
            return Ok(());
        }
        self.due = Some(deadline);
        let left = deadline.saturating_duration_since(Instant::now());
        // Nothing at all would be never.
        let left = left.max(Duration::from_nanos(1));
        let value = Timespec::try_from(left).map_err(io::Error::other)?;
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    /// The timer has come up: nothing is due any more.
    pub fn timer_done(&mut self) {
        self.due = None;
    }
}
