//! What is between two servers: it hands on what they say, until the step at which one of them dies.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use elastic::node::{Message, Step};
use elastic::server::FrameReader;
use elastic::wire::{Encoded, Frame};
use rustix::fs::{FlockOperation, flock};

use crate::{At, Running, Scenario, WAIT};

/// The step at which a server is killed, once.
pub(crate) struct Gate {
    at: At,
    victim: usize,
    arrives: bool,
    armed: AtomicBool,
    chunks: AtomicUsize,
    lock: Mutex<PathBuf>,
    fired: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    pub(crate) fn new(at: At, victim: usize, arrives: bool) -> Self {
        Self {
            at,
            victim,
            arrives,
            armed: AtomicBool::new(false),
            chunks: AtomicUsize::new(0),
            lock: Mutex::default(),
            fired: Mutex::new(false),
            changed: Condvar::new(),
        }
    }

    /// The file whose lock a change of the routes needs.
    pub(crate) fn lock_of(&self, path: PathBuf) {
        *self.lock.lock().unwrap() = path;
    }

    pub(crate) fn arm(&self) {
        self.chunks.store(0, Ordering::Relaxed);
        self.armed.store(true, Ordering::Release);
    }

    /// Waits until the server was killed.
    pub(crate) fn wait(&self, scenario: Scenario) {
        let fired = self.fired.lock().unwrap();
        let (fired, _) = self.changed.wait_timeout_while(fired, WAIT, |fired| !*fired).unwrap();
        assert!(*fired, "{scenario:?}: it did not come to that");
    }

    /// Whether this is the step. Only the first that asks is told so.
    fn is_at(&self, step: &Step) -> bool {
        let is = match (self.at, step) {
            (At::Begin, Step::Begin { .. })
            | (At::Begun, Step::Begun(_))
            | (At::Update, Step::Chunk(_))
            | (At::Finish, Step::Finish)
            | (At::Ready | At::Commit, Step::Ready(_))
            | (At::Committed, Step::Committed)
            | (At::Adopted, Step::Adopted) => true,
            (At::Chunk, Step::Chunk(_)) | (At::Ack, Step::Ack { .. }) => {
                self.armed.load(Ordering::Acquire)
                    && self.chunks.fetch_add(1, Ordering::Relaxed) == 1
            }
            _ => false,
        };
        is && self.armed.swap(false, Ordering::AcqRel)
    }

    /// Kills, and hands the message on if it is to arrive.
    fn fire(&self, sender: usize, servers: &[Arc<Mutex<Running>>; 2], hand_on: impl FnOnce()) {
        let kill = || {
            let mut server = servers[self.victim].lock().unwrap();
            server.0.kill().unwrap();
            server.0.wait().unwrap();
        };
        if self.at == At::Commit {
            let lock = File::options().write(true).open(&*self.lock.lock().unwrap()).unwrap();
            flock(&lock, FlockOperation::LockExclusive).unwrap();
            hand_on();
            // It is the source that hears of it, and asks.
            let source = servers[1 - sender].lock().unwrap().0.id();
            wait_until_it_waits(source);
            kill();
        } else {
            kill();
            if sender == self.victim && self.arrives {
                hand_on();
            }
        }
        *self.fired.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

/// Until process `id` waits for a lock of a file.
fn wait_until_it_waits(id: u32) {
    let end = Instant::now() + WAIT;
    let id = id.to_string();
    let waits = |line: &str| line.contains("->") && line.split_whitespace().any(|word| word == id);
    while !std::fs::read_to_string("/proc/locks").unwrap().lines().any(waits) {
        assert!(Instant::now() < end, "the routes are not asked");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Hands on what is said to a server.
pub(crate) struct Relay {
    address: SocketAddr,
    to: Arc<Mutex<SocketAddr>>,
    ended: Arc<AtomicBool>,
}

impl Relay {
    pub(crate) fn new(to: SocketAddr, gate: Arc<Gate>, servers: [Arc<Mutex<Running>>; 2]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let to = Arc::new(Mutex::new(to));
        let ended = Arc::new(AtomicBool::new(false));
        let relay = Self { address, to: Arc::clone(&to), ended: Arc::clone(&ended) };
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if ended.load(Ordering::Acquire) {
                    return;
                }
                let (gate, servers, to) = (Arc::clone(&gate), servers.clone(), *to.lock().unwrap());
                thread::spawn(move || hand_on(&stream, to, &gate, &servers));
            }
        });
        relay
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn point_to(&self, to: SocketAddr) {
        *self.to.lock().unwrap() = to;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address); // wakes it
    }
}

/// Until one side ends, or a server is killed.
fn hand_on(
    stream: &TcpStream,
    to: SocketAddr,
    gate: &Gate,
    servers: &[Arc<Mutex<Running>>; 2],
) -> Option<()> {
    let server = TcpStream::connect(to).ok()?;
    for stream in [stream, &server] {
        stream.set_nodelay(true).ok()?;
    }
    let (mut back, mut answers) = (stream.try_clone().ok()?, server.try_clone().ok()?);
    thread::spawn(move || {
        let _ = io::copy(&mut answers, &mut back); // until either end is gone
        let _ = back.shutdown(std::net::Shutdown::Both);
    });
    let send = |frame: &Frame| {
        let whole = Encoded::new(frame).pieces().concat();
        io::Write::write_all(&mut &server, &whole).ok()
    };
    let mut reader = FrameReader::new(stream.try_clone().ok()?);
    let mut from = None;
    while let Ok(frame) = reader.read() {
        match &frame {
            Frame::Hello { peer, .. } => from = peer.and_then(|peer| usize::try_from(peer.0).ok()),
            Frame::Peer(Message::Transfer(_, step)) if gate.is_at(step) => {
                gate.fire(from?, servers, || _ = send(&frame));
                break;
            }
            _ => {}
        }
        if send(&frame).is_none() {
            break;
        }
    }
    // What the killed one said before is still read; nothing is said to it any more.
    let _ = server.shutdown(std::net::Shutdown::Write);
    let _ = stream.shutdown(std::net::Shutdown::Read);
    Some(())
}
