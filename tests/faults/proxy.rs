//! A TCP proxy before a node, through which tests let a network fail.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Network {
    /// Passes everything on.
    Works = 0,
    /// Drops everything without a word, as a link that is down or a partition: connections stay
    /// open, new ones are never answered.
    Silent = 1,
    /// Resets connections, and refuses new ones by closing them.
    Refuses = 2,
}

/// Called with the bytes that came from the node so far, when they first reach a mark.
type Trigger = Box<dyn FnOnce() + Send>;

struct Shared {
    network: AtomicU8,
    stop: AtomicBool,
    /// Bytes from the node to clients.
    answered: AtomicU64,
    connections: AtomicU64,
    trigger: Mutex<Option<(u64, Trigger)>>,
}

/// A proxy; its port is gone when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// A proxy before `node`.
    pub fn new(node: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            network: AtomicU8::new(0),
            stop: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            trigger: Mutex::new(None),
        });
        let accepting = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.stop.load(Ordering::Acquire) {
                    return;
                }
                accepting.connections.fetch_add(1, Ordering::Relaxed);
                let shared = accepting.clone();
                thread::spawn(move || shared.serve(&client, node));
            }
        });
        Self { address, shared }
    }

    /// Where clients reach it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on the network does this, also on connections that are open.
    pub fn set(&self, network: Network) {
        self.shared.set(network);
    }

    /// A handle that sets it, for a trigger.
    pub fn setter(&self) -> impl Fn(Network) + Send + 'static {
        let shared = self.shared.clone();
        move |network| shared.set(network)
    }

    /// Does `action` as soon as the node has answered this many bytes more, before they are passed
    /// on.
    pub fn after(&self, bytes: u64, action: impl FnOnce() + Send + 'static) {
        let mark = self.shared.answered.load(Ordering::SeqCst) + bytes;
        *self.shared.trigger.lock().unwrap() = Some((mark, Box::new(action)));
    }

    /// Connections that were made so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.set(Network::Refuses);
        self.shared.stop.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address); // so that it sees it
    }
}

impl Shared {
    fn set(&self, network: Network) {
        self.network.store(network as u8, Ordering::SeqCst);
    }

    fn is(&self, network: Network) -> bool {
        self.network.load(Ordering::SeqCst) == network as u8
    }

    fn serve(&self, client: &TcpStream, node: SocketAddr) {
        while self.is(Network::Silent) && !self.stop.load(Ordering::Acquire) {
            thread::sleep(Duration::from_millis(5));
        }
        if self.is(Network::Refuses) {
            return;
        }
        let Ok(node) = TcpStream::connect(node) else { return };
        thread::scope(|scope| {
            scope.spawn(|| self.pump(client, &node, false));
            self.pump(&node, client, true);
        });
    }

    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream, answers: bool) {
        let _ = from.set_read_timeout(Some(Duration::from_millis(20)));
        let mut buffer = vec![0; 64 << 10];
        while !self.is(Network::Refuses) {
            if self.is(Network::Silent) {
                thread::sleep(Duration::from_millis(5));
                continue;
            }
            let length = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    continue;
                }
                Err(_) => break,
            };
            if answers {
                self.count(length);
            }
            while self.is(Network::Silent) {
                thread::sleep(Duration::from_millis(5));
            }
            if self.is(Network::Refuses) || to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn count(&self, length: usize) {
        let length = u64::try_from(length).unwrap();
        let now = self.answered.fetch_add(length, Ordering::SeqCst) + length;
        let mut trigger = self.trigger.lock().unwrap();
        if trigger.as_ref().is_some_and(|(mark, _)| now >= *mark)
            && let Some((_, action)) = trigger.take()
        {
            action();
        }
    }
}
