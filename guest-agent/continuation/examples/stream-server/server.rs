//! A streaming service: it verifies the numbered words of each client and sends them back. Its connections move,
//! with the place that each has reached.
//!
//! It exports seldom, so that a move finds it between exports: then the new server reads and writes again what
//! the old one had since, and the continuation sees that no byte is sent twice.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SendError, Sender, channel};
use std::time::Duration;

use continuation::mover::{self, Arrived, Left, Route, Times};
use continuation::privilege::Privilege;
use continuation::repair;
use continuation::service::Continuation;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

use super::words;

/// Bytes between exports.
const EXPORT: u64 = 100_000;
/// Bytes of a piece.
const PIECE: usize = 64 << 10;
/// How often it is looked whether clients have the last bytes.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// How often a source asks, over a new stream, what has become of a move.
const ATTEMPTS: u32 = 3;

/// Where a destination is, each time that a stream to it is needed.
pub type Connect = Box<dyn FnMut() -> io::Result<UnixStream> + Send>;

/// What a server is to do.
pub enum Order {
    /// A client has come.
    Accept(TcpStream),
    /// Whether there is a client of this host.
    IsClient(IpAddr, Sender<bool>),
    /// Connections have come from another server.
    Arrive(Vec<Arrived>),
    /// Connections at this address are handed over, and nobody works on them.
    Stop(SocketAddr, Sender<Vec<Continuation>>),
    /// Connections that were handed over go on as they were.
    GoOn(Vec<Continuation>),
    /// All connections are to go; whoever is told hears how long the steps took, or why they did not.
    Move(Connect, Box<dyn Route + Send>, Sender<Result<Times, String>>),
}

/// By which a server is told.
pub struct Handle(Sender<Order>, UnixStream);

impl Handle {
    pub fn tell(&self, order: Order) {
        // A server that has ended has no use for it.
        let _ = self.0.send(order);
        let _ = (&self.1).write(&[0]);
    }

    pub fn another(&self) -> io::Result<Self> {
        Ok(Self(self.0.clone(), self.1.try_clone()?))
    }
}

/// A client.
#[derive(Debug)]
struct Session {
    connection: Continuation,
    /// Read and not sent back yet.
    pending: Vec<u8>,
    /// The client sends nothing more. It is served until it has the last bytes: these move with the connection.
    ended: bool,
}

impl Session {
    fn new(connection: Continuation) -> io::Result<Self> {
        connection.stream().set_nonblocking(true)?;
        // That this process dies is not to look like the end of the stream.
        sockopt::set_socket_linger(&connection, Some(Duration::ZERO))?;
        Ok(Self { connection, pending: Vec::new(), ended: false })
    }

    fn accept(stream: TcpStream) -> io::Result<Self> {
        repair::mark_migratable(&stream, repair::BUFFER)?;
        stream.set_nodelay(true)?;
        Self::new(Continuation::create(stream))
    }

    fn arrive(arrived: Arrived) -> io::Result<Self> {
        let stream = TcpStream::from(arrived.socket);
        Self::new(Continuation::import(stream, &arrived.continuation).map_err(io::Error::other)?)
    }

    /// One piece read, or sent back; false when the client has all.
    fn work(&mut self) -> io::Result<bool> {
        if self.pending.is_empty() && !self.ended {
            let offset = self.connection.bytes_read();
            let mut buffer = vec![0; PIECE];
            let length = self.connection.read(&mut buffer)?;
            buffer.truncate(length);
            if let Some(at) = words::wrong(offset, &buffer) {
                let text = format!("byte {at} of the client's stream is wrong");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            self.ended |= length == 0;
            self.pending = buffer;
        }
        while !self.pending.is_empty() {
            let length = self.connection.write(&self.pending)?;
            self.pending.drain(..length);
        }
        let (read, sent) = (self.connection.bytes_read(), self.connection.bytes_sent());
        if read - self.connection.exported().read >= EXPORT {
            // All of this service's state is how far it has come, and that it is where these offsets are.
            self.connection.export(&read.to_le_bytes(), read, sent).map_err(io::Error::other)?;
        }
        let has_all = self.ended && self.connection.is_delivered()?;
        if has_all {
            sockopt::set_socket_linger(&self.connection, None)?;
        }
        Ok(!has_all)
    }
}

/// The service.
pub struct Server {
    sessions: Vec<Session>,
    privilege: Arc<dyn Privilege>,
    orders: Receiver<Order>,
    wake: UnixStream,
    served: Arc<AtomicU64>,
}

impl Server {
    pub fn new(privilege: Arc<dyn Privilege>) -> io::Result<(Self, Handle)> {
        let (sender, orders) = channel();
        let (wake, wakes) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let served = Arc::default();
        let this = Self { sessions: Vec::new(), privilege, orders, wake, served };
        Ok((this, Handle(sender, wakes)))
    }

    /// Bytes that were served, as it counts on.
    pub fn served(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.served)
    }

    /// Serves until nobody can tell it anything any more.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
            for session in &self.sessions {
                let wanted = match (session.pending.is_empty(), session.ended) {
                    (false, _) => PollFlags::OUT,
                    (true, false) => PollFlags::IN,
                    // What it waits for, poll does not tell.
                    (true, true) => PollFlags::empty(),
                };
                fds.push(PollFd::new(&session.connection, wanted));
            }
            let is_ending = |session: &Session| session.ended && session.pending.is_empty();
            let look = self.sessions.iter().any(is_ending).then_some(LOOK);
            match poll(&mut fds, look.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            if ready[0] {
                match (&self.wake).read(&mut [0; 64]) {
                    Ok(0) => return Ok(()),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            let mut ready = ready.into_iter().skip(1);
            let served = &self.served;
            self.sessions.retain_mut(|session| {
                let before = session.connection.bytes_read();
                let is_ready = ready.next().unwrap_or_default() || is_ending(session);
                let stays = !is_ready
                    || match session.work() {
                        Ok(more) => more,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
                        Err(error) => {
                            eprintln!("a client is left: {error}");
                            false
                        }
                    };
                let done = session.connection.bytes_read() - before;
                served.fetch_add(done, Ordering::Relaxed);
                stays
            });
            while let Ok(order) = self.orders.try_recv() {
                self.obey(order);
            }
        }
    }

    fn obey(&mut self, order: Order) {
        let welcome = |session: io::Result<Session>| {
            session.inspect_err(|error| eprintln!("a client is not served: {error}")).ok()
        };
        match order {
            Order::Accept(stream) => self.sessions.extend(welcome(Session::accept(stream))),
            Order::IsClient(ip, reply) => {
                let peers = self.sessions.iter().filter_map(|session| {
                    Some(session.connection.stream().peer_addr().ok()?.ip().to_canonical())
                });
                let _ = reply.send({ peers }.any(|peer| peer == ip.to_canonical()));
            }
            Order::Arrive(all) => {
                self.sessions
                    .extend(all.into_iter().filter_map(|one| welcome(Session::arrive(one))));
            }
            Order::Stop(address, reply) => {
                let of_it = |session: &mut Session| {
                    session.connection.stream().local_addr().is_ok_and(|local| local == address)
                };
                let stopped = self.sessions.extract_if(.., of_it);
                let connections = stopped.map(|session| session.connection).collect();
                if let Err(SendError(connections)) = reply.send(connections) {
                    self.go_on(connections); // who asked has gone
                }
            }
            Order::GoOn(connections) => self.go_on(connections),
            Order::Move(connect, route, reply) => {
                let _ = reply.send(self.leave(connect, route)); // to somebody who may have gone
            }
        }
    }

    fn go_on(&mut self, connections: Vec<Continuation>) {
        for connection in connections {
            // What it had read, it has still to send.
            let (read, sent) = (connection.bytes_read(), connection.bytes_sent());
            let mut bytes = vec![0; usize::try_from(read - sent).unwrap_or_default()];
            words::fill(sent, &mut bytes);
            self.sessions.push(Session { connection, pending: bytes, ended: false });
        }
    }

    /// All connections go: nobody works on them now, which is the safe point.
    #[expect(clippy::result_large_err, reason = "a connection that does not freeze is given back")]
    fn leave(
        &mut self,
        mut connect: Connect,
        mut route: Box<dyn Route + Send>,
    ) -> Result<Times, String> {
        let mut channel = connect().map_err(|error| error.to_string())?;
        // What is read and not sent back is read again by the new server, from the last export on.
        let connections = self.sessions.drain(..).map(|session| session.connection).collect();
        let privilege = Arc::clone(&self.privilege);
        let freeze = |one: Continuation| one.freeze(&privilege);
        let result = mover::carry_out(connections, freeze, &mut *route, &mut channel);
        let failure = match result {
            Ok(times) => return Ok(times),
            Err(failure) => failure,
        };
        let text = failure.to_string();
        match failure.left {
            Left::Source(left) => {
                self.go_on(left);
                Err(text)
            }
            Left::Undecided(mut source) => {
                for _ in 0..ATTEMPTS {
                    let Ok(mut channel) = connect() else { continue };
                    if source.commit(&mut channel).is_ok() {
                        return route
                            .release()
                            .map(|()| Times::default())
                            .map_err(|e| e.to_string());
                    }
                }
                Err(text)
            }
            Left::Destination => Err(text),
        }
    }
}
