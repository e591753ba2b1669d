//! A VM's socket: who connects to it sees the console and types on it, or starts a VM that is held.
//!
//! A connection begins with one line: `console`, `start` or `endpoints`. To `start` the answer is `ok`, and the end.
//! After `console` come the last [`KEPT`] bytes that the guest printed, then what it prints, as it
//! prints it; what is written is typed. Who reads too slowly is cut off rather than waited for: a
//! guest does not wait for its watchers. After `endpoints` come the agent's messages ([`super::agent`]).

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use devices::serial::SerialConsole;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::MachineError;
use super::agent::SharedLink;
use super::event_loop::{Verdict, lock};
use super::typed::Typed;

/// Bytes of the console that who connects later is shown.
pub const KEPT: usize = 64 << 10;
/// Connections at a time.
const MAX_CLIENTS: usize = 16;
/// The longest first line, in bytes.
const MAX_REQUEST: usize = 64;
/// The most that waits for the guest to take it, in bytes.
const PENDING_MAX: usize = 4 << 10;

/// What a console prints, for a file and for all who watch.
#[derive(Debug, Default)]
struct Hub {
    kept: VecDeque<u8>,
    watchers: Vec<Arc<UnixStream>>,
}

impl Hub {
    fn print(&mut self, data: &[u8]) {
        let data = &data[data.len().saturating_sub(KEPT)..];
        let excess = (self.kept.len() + data.len()).saturating_sub(KEPT);
        self.kept.drain(..excess);
        self.kept.extend(data);
        self.watchers.retain(|watcher| send(watcher, data));
    }
}

/// Sends all of `data` now, or cuts the connection off.
fn send(mut watcher: &UnixStream, data: &[u8]) -> bool {
    let sent = matches!(watcher.write(data), Ok(count) if count == data.len());
    if !sent {
        // Its reader sees the end, and so does the event loop, which forgets it.
        let _ = watcher.shutdown(std::net::Shutdown::Both);
    }
    sent
}

/// The console's output, into a file and to all who watch.
pub struct WatchedOutput {
    hub: Arc<Mutex<Hub>>,
    file: Box<dyn Write + Send>,
}

impl std::fmt::Debug for WatchedOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchedOutput").finish_non_exhaustive()
    }
}

impl Write for WatchedOutput {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        lock(&self.hub).print(data);
        self.file.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A VM's socket, before its machine runs.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    hub: Arc<Mutex<Hub>>,
}

impl Socket {
    /// Has the console print to `file` and to who connects to `listener`.
    ///
    /// # Errors
    /// The listener cannot be made not to block.
    pub fn new(
        listener: UnixListener,
        file: Box<dyn Write + Send>,
    ) -> io::Result<(Self, WatchedOutput)> {
        listener.set_nonblocking(true)?;
        let hub = Arc::<Mutex<Hub>>::default();
        Ok((Self { listener, hub: hub.clone() }, WatchedOutput { hub, file }))
    }
}

/// The socket, as the event loop serves it.
pub(super) struct SocketEvents {
    socket: Socket,
    typed: Typed,
    clients: Vec<Client>,
    agent: SharedLink,
    verdict: Rc<Verdict>,
}

struct Client {
    stream: Arc<UnixStream>,
    kind: Kind,
}

/// What a connection is.
enum Kind {
    /// So much of its first line has come.
    Asking(Vec<u8>),
    Console,
    Agent,
}

/// What becomes of a connection.
enum Next {
    Stay,
    /// It is the agent's, and waited for both ways.
    Agent,
    Close,
}

impl SocketEvents {
    /// Serves `socket`; what is typed goes to `serial`.
    pub fn new(
        socket: Socket,
        serial: &Arc<Mutex<SerialConsole>>,
        agent: SharedLink,
        verdict: Rc<Verdict>,
    ) -> Result<Self, MachineError> {
        let typed = Typed::new(serial).map_err(MachineError::system("make an eventfd"))?;
        Ok(Self { socket, typed, clients: Vec::new(), agent, verdict })
    }

    fn accept(&mut self, ops: &mut EventOps<'_>) {
        let Ok((stream, _)) = self.socket.listener.accept() else { return };
        let ready = self.clients.len() < MAX_CLIENTS && stream.set_nonblocking(true).is_ok();
        if !ready || ops.add(Events::new(&stream, EventSet::IN)).is_err() {
            return; // it sees that it was closed
        }
        self.clients.push(Client { stream: Arc::new(stream), kind: Kind::Asking(Vec::new()) });
    }

    fn serve(&mut self, fd: RawFd, ops: &mut EventOps<'_>) {
        let Some(at) = self.clients.iter().position(|c| c.stream.as_raw_fd() == fd) else { return };
        match self.read(at) {
            Next::Stay => return,
            Next::Agent => {
                let both = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
                let stream = self.clients[at].stream.clone();
                if ops.modify(Events::new(&stream.as_fd(), both)).is_ok()
                    && self.agent.borrow_mut().ready()
                {
                    return;
                }
            }
            Next::Close => {}
        }
        let client = self.clients.swap_remove(at);
        let _ = ops.remove(Events::new(&client.stream.as_fd(), EventSet::IN));
        // Whoever prints has a reference too, and finds out by this.
        let _ = client.stream.shutdown(std::net::Shutdown::Both);
    }

    fn read(&mut self, at: usize) -> Next {
        let mut buffer = [0; 1024];
        let client = &mut self.clients[at];
        if let Kind::Agent = client.kind {
            let mut agent = self.agent.borrow_mut();
            // One that another has followed is cut off.
            return if agent.is(&client.stream) && agent.ready() {
                Next::Stay
            } else {
                Next::Close
            };
        }
        let count = match (&*client.stream).read(&mut buffer) {
            Ok(0) => return Next::Close,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Next::Stay,
            Err(_) => return Next::Close,
        };
        let data = &buffer[..count];
        let Kind::Asking(request) = &mut client.kind else {
            // As at a terminal whose guest does not read: what is too much is dropped.
            let room = PENDING_MAX.saturating_sub(self.typed.waiting.len());
            self.typed.waiting.extend_from_slice(&data[..data.len().min(room)]);
            return Next::Stay;
        };
        request.extend_from_slice(data);
        let Some(end) = request.iter().position(|byte| *byte == b'\n') else {
            return if request.len() < MAX_REQUEST { Next::Stay } else { Next::Close };
        };
        let line = request.drain(..=end).collect::<Vec<_>>();
        match line.as_slice() {
            b"console\n" => {
                self.typed.waiting.append(request);
                client.kind = Kind::Console;
                let stream = client.stream.clone();
                let mut hub = lock(&self.socket.hub);
                let (first, second) = hub.kept.as_slices();
                if !send(&stream, first) || !send(&stream, second) {
                    return Next::Close;
                }
                hub.watchers.push(stream);
                Next::Stay
            }
            b"start\n" => {
                self.verdict.start();
                let _ = (&*client.stream).write(b"ok\n");
                Next::Close
            }
            b"endpoints\n" => {
                self.agent.borrow_mut().connect(client.stream.clone(), request);
                client.kind = Kind::Agent;
                Next::Agent
            }
            _ => Next::Close,
        }
    }
}

impl MutEventSubscriber for SocketEvents {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() == self.socket.listener.as_raw_fd() {
            self.accept(ops);
        } else if events.fd() == self.typed.room.as_raw_fd() {
            let _ = self.typed.room.read();
        } else {
            self.serve(events.fd(), ops);
        }
        self.typed.deliver();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.verdict.add(ops, Events::new(&self.typed.room, EventSet::IN));
        self.verdict.add(ops, Events::new(&self.socket.listener, EventSet::IN));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchers_get_what_is_printed_and_slow_ones_are_cut_off() {
        let mut hub = Hub::default();
        let (watcher, mut reader) = UnixStream::pair().unwrap();
        watcher.set_nonblocking(true).unwrap();
        hub.watchers.push(Arc::new(watcher));
        hub.print(b"hello");
        let mut seen = [0; 5];
        reader.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"hello");
        for _ in 0..100 {
            hub.print(&vec![b'x'; KEPT]);
        }
        assert!(hub.watchers.is_empty());
        assert_eq!(hub.kept.len(), KEPT);
        hub.print(b"end");
        assert_eq!(hub.kept.iter().copied().skip(KEPT - 4).collect::<Vec<_>>(), b"xend");
    }
}
