//! What tests need of a switch: three guests at its ports, and a namespace to have them in.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use endpoint::vid::Vid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vswitch::bridge::{self, BridgeSwitch, links, netlink::Route};
use vswitch::frame::Header;
use vswitch::user::{self, End, UserSwitch, channel};
use vswitch::{Port, Switch, mark, sys};

/// What the frames of tests carry.
pub const ETHERTYPE: u16 = 0x88b6;
/// How long something that must come is waited for.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long nothing must come.
pub const QUIET: Duration = Duration::from_millis(30);

/// What is at a port.
pub trait Guest: Send {
    fn send(&mut self, frame: &[u8]);
    /// The next frame, of whatever kind.
    fn next(&mut self, patience: Duration) -> Option<Vec<u8>>;

    /// The next frame of a test.
    fn receive(&mut self, patience: Duration) -> Option<Vec<u8>> {
        let until = Instant::now() + patience;
        loop {
            let frame = self.next(until.saturating_duration_since(Instant::now()))?;
            let kind = Header::of(&frame).unwrap().kind;
            if kind == ETHERTYPE || kind == mark::ETHERTYPE {
                return Some(frame);
            }
        }
    }
}

impl Guest for End {
    fn send(&mut self, frame: &[u8]) {
        End::send(self, frame).unwrap();
    }

    fn next(&mut self, patience: Duration) -> Option<Vec<u8>> {
        End::receive(self, patience)
    }
}

/// A guest behind a TAP.
pub struct TapGuest(pub OwnedFd);

impl Guest for TapGuest {
    fn send(&mut self, frame: &[u8]) {
        rustix::io::write(&self.0, frame).unwrap();
    }

    fn next(&mut self, patience: Duration) -> Option<Vec<u8>> {
        let until = Instant::now() + patience;
        let mut buffer = vec![0; 2048];
        loop {
            match rustix::io::read(&self.0, &mut buffer) {
                Ok(length) => {
                    buffer.truncate(length);
                    return Some(buffer);
                }
                Err(rustix::io::Errno::AGAIN) => {}
                Err(error) => panic!("{error}"),
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let left = Timespec::try_from(left).unwrap();
            poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&left)).unwrap();
        }
    }
}

/// A switch with three guests.
pub struct Rig {
    pub switch: Box<dyn Switch>,
    pub ports: Vec<Port>,
    pub guests: Vec<Box<dyn Guest>>,
    /// A port that there was, and is no more.
    pub gone: Port,
    /// Whether the switch counts who sends as another.
    pub counts_spoofed: bool,
    /// Whether the switch tells how much it holds.
    pub counts_held: bool,
    /// Whether the switch counts what holds have no room for.
    pub counts_overflow: bool,
    /// How long a change takes to be everywhere in the switch.
    pub settle: Duration,
    /// What ends with it.
    pub _keep: Option<Box<dyn std::any::Any>>,
}

impl Rig {
    pub fn user() -> Self {
        let switch = UserSwitch::start().unwrap();
        let add = || {
            let (line, end) = channel(20_000).unwrap();
            (switch.add_port(Box::new(line), user::Role::Guest).unwrap(), end)
        };
        let (ports, guests): (Vec<_>, Vec<_>) = (0..3).map(|_| add()).unzip();
        let (gone, _end) = add();
        switch.remove_port(gone).unwrap();
        let boxed = |guest: End| -> Box<dyn Guest> { Box::new(guest) };
        Self {
            switch: Box::new(switch),
            ports,
            guests: guests.into_iter().map(boxed).collect(),
            gone,
            counts_spoofed: true,
            counts_held: true,
            counts_overflow: true,
            settle: Duration::ZERO,
            _keep: None,
        }
    }

    /// Within [`in_namespace`].
    pub fn bridge() -> Self {
        let mut route = Route::open().unwrap();
        let index = links::create_bridge(&mut route, "sw0").unwrap();
        links::up(&mut route, index).unwrap();
        let switch = BridgeSwitch::open("sw0").unwrap();
        let add = || {
            let (tap, name) = sys::tap("guest%d").unwrap();
            let copy = tap.try_clone().unwrap();
            let port = switch.attach(&name, bridge::Role::Guest(Some(copy))).unwrap();
            (port, tap)
        };
        let (ports, taps): (Vec<_>, Vec<_>) = (0..3).map(|_| add()).unzip();
        // A guest whose interface goes without a word.
        let (tap, name) = sys::tap("guest%d").unwrap();
        let gone = switch.attach(&name, bridge::Role::Guest(None)).unwrap();
        drop(tap);
        let boxed = |tap: OwnedFd| -> Box<dyn Guest> { Box::new(TapGuest(tap)) };
        Self {
            switch: Box::new(switch),
            ports,
            guests: taps.into_iter().map(boxed).collect(),
            gone,
            counts_spoofed: false,
            counts_held: false,
            counts_overflow: true,
            settle: Duration::ZERO,
            _keep: None,
        }
    }

    /// Gives guest `n` the identifier [`own`]`(n)`.
    pub fn settle_guests(&self) {
        for (place, port) in self.ports.iter().enumerate() {
            self.switch.add(own(place), *port).unwrap();
        }
        self.wait();
    }

    /// Waits until a change is in force.
    pub fn wait(&self) {
        thread::sleep(self.settle);
    }

    /// Guest `from` sends to `to`.
    pub fn send(&mut self, from: usize, to: Vid, content: u32) {
        self.guests[from].send(&frame(own(from), to, content));
    }

    /// What guest `at` receives next.
    pub fn receive(&mut self, at: usize) -> u32 {
        content(&self.guests[at].receive(PATIENCE).expect("a frame in time"))
    }

    /// Guest `at` receives nothing.
    pub fn is_quiet(&mut self, at: usize) {
        if let Some(frame) = self.guests[at].receive(QUIET) {
            panic!("guest {at} received {frame:x?}");
        }
    }
}

/// The identifier of guest `place`.
pub fn own(place: usize) -> Vid {
    vid(0xff00 + u16::try_from(place).unwrap())
}

/// An identifier.
pub fn vid(number: u16) -> Vid {
    let [high, low] = number.to_be_bytes();
    Vid::new([0x0e, 0x51, 0, 0, high, low]).unwrap()
}

/// A frame with a number in it, of 60 bytes.
pub fn frame(from: Vid, to: Vid, content: u32) -> Vec<u8> {
    let header = Header { destination: to.bytes(), source: from.bytes(), kind: ETHERTYPE };
    let mut frame = header.frame(&content.to_be_bytes());
    frame.resize(60, 0);
    frame
}

/// The number in a frame.
pub fn content(frame: &[u8]) -> u32 {
    u32::from_be_bytes(*frame[14..].first_chunk().unwrap())
}

/// Runs `test` in a thread with a network namespace of its own, which ends with it.
pub fn in_namespace<R: Send + 'static>(test: impl FnOnce() -> R + Send + 'static) -> R {
    let thread = thread::spawn(|| {
        // SAFETY: this thread only; the descriptors that it shares are no sockets of the other namespace.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        // The kernel would send frames of its own.
        fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        test()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs iproute2's `ip` in this thread's namespace.
pub fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().unwrap();
    assert!(status.success(), "ip {words}");
}
