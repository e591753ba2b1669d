//! The process that serves: one thread that waits for requests, mirrors and time.
//!
//! All that has come is taken at once: the changes of many requests are kept by one write, go to the mirrors in one
//! message, and their answers leave together when it is acknowledged.

mod asked;
mod options;
pub mod packet;
mod peers;

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::SystemTime;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

pub use asked::{Lease, Report, SOCKET, ask};
pub use options::{Options, ServeError, address_of};

use crate::engine::{Engine, Origin};
use crate::journal::{Journal, Record as Kept};
use crate::mirror::Step;
use crate::mirror::replica::{Effect, Replica, Stage, Start};
use crate::mirror::session::Secret;
use crate::record;
use crate::table::{Change, Millis};
use crate::wire::frame;
use crate::wire::reply::Reply;
use packet::PacketSocket;
use peers::{PeerEvent, Peers};

/// How long to wait if nothing comes, in milliseconds: time has to pass for heartbeats.
const TURN_MILLIS: i64 = 50;
/// The most requests that are taken in one turn, so that mirrors have theirs.
const MOST_REQUESTS: usize = 512;
/// The most answers that wait for mirrors; whoever gets none asks again.
const MOST_WAITING: usize = 16_384;
/// How often the file of records is looked at, in milliseconds.
const RECORDS_MILLIS: Millis = 1000;
/// The most that are answered at the socket at a time.
const MOST_ASKING: usize = 8;
/// What fits a frame of any Ethernet.
const FRAME_BYTES: usize = 9216;

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let length = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if length == N { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// The time of a clock that does not stand still while the host sleeps: whoever slept has lost its lease.
fn now() -> Millis {
    let time = clock_gettime(ClockId::Boottime);
    let millis = time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000);
    Millis::try_from(millis).unwrap_or(0)
}

/// An answer that waits until the mirrors know of it.
struct Waiting {
    index: u64,
    reply: Option<Reply>,
}

/// What has come.
struct Ready {
    /// Of which streams to other servers.
    streams: Vec<(u64, PollFlags)>,
    /// Whether there are requests.
    frames: bool,
    /// Whether somebody asks what there is.
    asks: bool,
}

/// A server.
pub struct Server {
    options: Options,
    engine: Engine,
    replica: Replica,
    journal: Journal,
    packets: PacketSocket,
    /// Holds the port, so that the kernel does not say that nobody is there.
    _port: UdpSocket,
    peers: Peers,
    socket: UnixListener,
    asking: Arc<AtomicUsize>,
    waiting: VecDeque<Waiting>,
    records_at: Millis,
    records_seen: Option<SystemTime>,
    /// Whether the records were compared with the table since this server serves.
    recorded: bool,
    stage: Option<Stage>,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("replica", &self.replica).finish_non_exhaustive()
    }
}

impl Server {
    /// Makes all ready; nobody is answered yet.
    ///
    /// # Errors
    /// What cannot be used, and what to do.
    pub fn new(options: Options) -> Result<Self, ServeError> {
        options.settings.check()?;
        if let Some(path) = &options.records {
            record::load(path, &options.settings)?; // what is wrong is said before anything runs
        }
        let mirrored = options.listen.is_some() || !options.mirrors.is_empty();
        if !mirrored && !options.alone {
            return Err(ServeError::NoMirror);
        }
        let secret = match &options.secret {
            Some(secret) => secret.clone(),
            None if mirrored => return Err(ServeError::NoSecret),
            None => Secret::new(&[]),
        };
        let interface =
            |source| ServeError::Interface { interface: options.interface.clone(), source };
        let port = hold_port(&options.interface).map_err(|source| ServeError::Socket {
            what: format!("have the port of DHCP servers at '{}'", options.interface),
            source,
        })?;
        let packets =
            PacketSocket::open(&options.interface, frame::SERVER_PORT).map_err(interface)?;
        let (journal, kept) = Journal::open(&options.state)?;
        let drawn = || random::<8>().map(|bytes| u64::from_le_bytes(bytes).max(1));
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| ServeError::Socket { what, source }
        };
        let (node, group) = (drawn().map_err(failed("draw a number"))?, drawn());
        let group = group.map_err(failed("draw a number"))?;
        let start = if options.alone {
            Start::Alone(group)
        } else if options.first || options.listen.is_none() {
            Start::First(group)
        } else {
            Start::Again
        };
        let replica = Replica::new(node, kept, start, now());
        let listener = options.listen.map(TcpListener::bind).transpose();
        let listener = listener.map_err(failed("listen for mirrors"))?;
        let digest = options.settings.digest();
        let peers = Peers::new(replica.node(), secret, digest, listener, &options.mirrors)
            .map_err(failed("listen for mirrors"))?;
        let path = options.state.join(SOCKET);
        let _ = std::fs::remove_file(&path); // of one that was killed: the journal is ours alone
        let socket = UnixListener::bind(&path).map_err(failed("listen at the socket"))?;
        socket.set_nonblocking(true).map_err(failed("listen at the socket"))?;
        Ok(Self {
            engine: Engine::new(options.settings.clone()),
            options,
            replica,
            journal,
            packets,
            _port: port,
            peers,
            socket,
            asking: Arc::default(),
            waiting: VecDeque::new(),
            records_at: 0,
            records_seen: None,
            recorded: false,
            stage: None,
            buffer: vec![0; FRAME_BYTES],
        })
    }

    /// Serves until `stop` is true; it is looked at often.
    ///
    /// # Errors
    /// The journal cannot be written, or the interface is gone: then nobody is answered who should not be.
    pub fn run(mut self, stop: &AtomicBool) -> Result<(), ServeError> {
        self.act(now())?;
        while !stop.load(Ordering::Relaxed) {
            self.turn()?;
        }
        let now = now();
        self.replica.stop();
        self.act(now)?;
        let _ = std::fs::remove_file(self.options.state.join(SOCKET));
        Ok(())
    }

    fn turn(&mut self) -> Result<(), ServeError> {
        let Ready { streams, frames, asks } = self.wait()?;
        let now = now();
        let group = self.replica.group();
        for (number, flags) in streams {
            let events = self.peers.ready(number, flags, group, now);
            self.hear(events, now);
        }
        let events = self.peers.tick(group, now);
        self.hear(events, now);
        self.replica.tick(now);
        self.engine.expire(now);
        self.look_at_records(now);
        if frames {
            self.take_requests(now)?;
        }
        self.act(now)?;
        self.answer();
        if asks {
            self.tell(now);
        }
        self.say_stage(now);
        if self.journal.is_long() {
            self.journal.replace(&self.replica.records(now))?;
        }
        Ok(())
    }

    /// Waits until something has come.
    fn wait(&mut self) -> Result<Ready, ServeError> {
        let streams = self.peers.polled();
        let numbers: Vec<_> = streams.iter().map(|(number, ..)| *number).collect();
        let mut polled = vec![
            PollFd::from_borrowed_fd(self.packets.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN),
        ];
        polled
            .extend(streams.into_iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        let patience = Timespec { tv_sec: 0, tv_nsec: TURN_MILLIS * 1_000_000 };
        match poll(&mut polled, Some(&patience)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                let what = "wait for requests".to_owned();
                return Err(ServeError::Socket { what, source: error.into() });
            }
        }
        let mut flags = polled.iter().map(PollFd::revents);
        let mut next = || flags.next().is_some_and(|flags| !flags.is_empty());
        let (frames, asks) = (next(), next());
        let ready = numbers.into_iter().zip(flags).filter(|(_, flags)| !flags.is_empty());
        Ok(Ready { streams: ready.collect(), frames, asks })
    }

    fn hear(&mut self, events: Vec<PeerEvent>, now: Millis) {
        for event in events {
            match event {
                PeerEvent::Up(node) => self.replica.connected(node, now),
                PeerEvent::Down(node) => self.replica.disconnected(node),
                PeerEvent::Said(node, message) => self.replica.receive(node, message, now),
            }
        }
    }

    /// Does what the replica wants done: first what is to be kept, then what is to be said.
    fn act(&mut self, now: Millis) -> Result<(), ServeError> {
        let effects = self.replica.take_effects();
        if effects.is_empty() {
            return Ok(());
        }
        let (mut kept, mut said) = (Vec::new(), Vec::new());
        for effect in effects {
            match effect {
                Effect::Keep(record) => kept.push(record),
                Effect::Send(node, message) => said.push((node, message)),
            }
        }
        let only_changes = |record: &Kept| {
            let Kept::Steps(steps) = record else { return false };
            steps.iter().all(|step| matches!(step, Step::Change(_)))
        };
        // What a mirror has as well is not lost with this host.
        let sync = self.options.sync
            || self.replica.config().mirrors.is_empty()
            || !kept.iter().all(only_changes);
        if !kept.is_empty() {
            self.journal.append(&kept, sync)?;
        }
        for (node, message) in said {
            self.peers.send(node, message);
        }
        let events = self.peers.flush(now);
        self.hear(events, now);
        Ok(())
    }

    fn take_requests(&mut self, now: Millis) -> Result<(), ServeError> {
        let serving = self.replica.is_serving(now);
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..MOST_REQUESTS {
            let taken = self.packets.receive(&mut buffer).map_err(|source| ServeError::Interface {
                interface: self.options.interface.clone(),
                source,
            });
            let Some(bytes) = taken? else { break };
            let Some(incoming) = frame::parse(bytes) else { continue };
            let ours = incoming.to == [255; 6] || incoming.to == self.packets.mac();
            if !ours || incoming.source.octets() == self.packets.mac() {
                continue;
            }
            if !serving {
                self.engine.counts.muted += 1;
                continue;
            }
            let origin = Origin { source: incoming.source, port: 0 };
            let outcome = self.engine.handle(self.replica.table(), incoming.data, origin, now);
            let index = outcome.change.map(|change| self.replica.propose(vec![change], now));
            match (index, outcome.reply) {
                (None, Some(reply)) => self.send(&reply),
                (Some(index), reply) if self.waiting.len() < MOST_WAITING => {
                    self.waiting.push_back(Waiting { index, reply });
                }
                _ => {}
            }
        }
        self.buffer = buffer;
        Ok(())
    }

    /// Sends the answers to what a majority of the mirrors knows.
    fn answer(&mut self) {
        let committed = self.replica.committed();
        // The time is taken anew: the journal may have taken long.
        if !self.replica.is_serving(now()) {
            self.waiting.clear();
            return;
        }
        while self.waiting.front().is_some_and(|waiting| waiting.index <= committed) {
            if let Some(reply) = self.waiting.pop_front().and_then(|waiting| waiting.reply) {
                self.send(&reply);
            }
        }
    }

    fn send(&self, reply: &Reply) {
        let (mac, address) = (self.packets.mac(), self.options.settings.identity);
        let Some(frame) = frame::build(reply.to, mac, address, &reply.message) else { return };
        if let Err(error) = self.packets.send(&frame) {
            log::debug!("an answer is lost: {error}"); // the client asks again
        }
    }

    /// Compares the records in the file with those that are known, if it has changed.
    fn look_at_records(&mut self, now: Millis) {
        if !self.replica.is_serving(now) {
            self.recorded = false;
            return;
        }
        let Some(path) = &self.options.records else { return };
        if self.recorded && now < self.records_at + RECORDS_MILLIS {
            return;
        }
        self.records_at = now;
        let seen = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        if self.recorded && (seen.is_none() || seen == self.records_seen) {
            return;
        }
        (self.recorded, self.records_seen) = (true, seen);
        let records = match record::load(path, &self.options.settings) {
            Ok(records) => records,
            Err(error) => return log::warn!("the records stay as they are: {error}"),
        };
        let table = self.replica.table();
        let wanted: std::collections::BTreeMap<_, _> =
            records.iter().map(|record| (record.mac, record)).collect();
        let gone = table.records().filter(|record| !wanted.contains_key(&record.mac));
        let mut changes: Vec<_> = gone.map(|record| Change::Forget(record.mac)).collect();
        let new = records.iter().filter(|record| table.record(record.mac) != Some(record));
        changes.extend(new.cloned().map(Change::Know));
        if !changes.is_empty() {
            log::info!("{} records have changed", changes.len());
            self.replica.propose(changes, now);
        }
    }

    /// Tells those that have asked.
    fn tell(&mut self, now: Millis) {
        while let Ok((stream, _)) = self.socket.accept() {
            if self.asking.load(Ordering::Acquire) >= MOST_ASKING {
                continue;
            }
            let report = Report::new(&self.replica, self.engine.counts, now);
            let asking = Arc::clone(&self.asking);
            asking.fetch_add(1, Ordering::AcqRel);
            let work = move || {
                report.give(stream);
                asking.fetch_sub(1, Ordering::AcqRel);
            };
            if let Err(error) = thread::Builder::new().name("dhcp-asked".into()).spawn(work) {
                self.asking.fetch_sub(1, Ordering::AcqRel);
                log::warn!("nobody is told of leases: {error}");
            }
        }
    }

    fn say_stage(&mut self, now: Millis) {
        let stage = self.replica.stage(now);
        if self.stage == Some(stage) {
            return;
        }
        self.stage = Some(stage);
        let (reached, needed) = self.replica.reached();
        let epoch = self.replica.position().epoch;
        match stage {
            Stage::Serving => log::info!("serving clients, in epoch {epoch}"),
            Stage::Waiting | Stage::Asking => log::warn!(
                "not serving: {reached} mirrors can be reached, and {needed} must be; start them, or, if it is \
                 known that no other server lives, start this one with --no-mirror"
            ),
            Stage::Mirror => log::info!("a mirror, in epoch {epoch}"),
            Stage::Fresh => log::info!("waiting for a server to be the mirror of"),
        }
    }
}

fn hold_port(interface: &str) -> io::Result<UdpSocket> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    packet::bind_to_device(&socket, interface)?;
    packet::deafen(&socket)?;
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, frame::SERVER_PORT));
    rustix::net::bind(&socket, &address)?;
    Ok(socket.into())
}
