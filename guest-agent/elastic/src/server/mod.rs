//! A server over TCP: runs a [`Node`], with a thread for each connection.
//!
//! Every connection begins with a [`Frame::Hello`]. Clients send requests; peers, and those who command,
//! must know the secret of the service. What a node has to say to a peer goes through a queue to a thread
//! that has the connection to it: the window of the transfers bounds what is in it, and what does not fit
//! is dropped and repeated by the protocol. Servers of one process hand each other messages without a
//! connection ([`Local`]), objects included, without copying them.

mod command;
mod peers;
mod reader;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

pub use command::{Command, Report};
use peers::talk;
pub use reader::FrameReader;

use crate::journal::{Journal, JournalError, write_pieces};
use crate::node::{Action, End, Limits, Message, Node, Origin, Outcome, Recovered, StartError};
use crate::range::Range;
use crate::routes::{Ask, Reply, Routes};
use crate::wire::{Encoded, Frame, WireError};
use crate::{Peer, TransferId};

/// Connections at once; others are closed.
const CONNECTIONS_MAX: usize = 4096;
/// Messages that wait for a peer.
const QUEUE: usize = 16_384;
/// How long a peer may take to accept a connection, or bytes.
const PATIENCE: Duration = Duration::from_secs(5);
/// A client that says nothing for so long is disconnected.
const IDLE: Duration = Duration::from_secs(300);
/// How often the node is told the time.
const TICK: Duration = Duration::from_millis(20);

/// Why a server does not run, or a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A socket failed.
    #[error("{0}: {1}; see that the address is ours and free, or that the peer runs")]
    Io(String, #[source] io::Error),
    /// What arrived is not this protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A transfer cannot begin.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The routes do not answer; a server must not serve without knowing what it owns.
    #[error("the routes do not answer: start them first")]
    Routes,
    /// A transfer was aborted; everything is as before.
    #[error(
        "transfer {0} was aborted, the source goes on: see that the peer runs and has room, then try again"
    )]
    Aborted(TransferId),
    /// A transfer did not end in time.
    #[error("transfer {0} did not end in {1:?}: it goes on, see its state")]
    Timeout(TransferId, Duration),
    /// A peer did not do what it was told.
    #[error("server {0} did not do it: {1}")]
    Refused(Peer, String),
}

/// How a server runs.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its number.
    pub me: Peer,
    /// Where it listens; port 0 for any.
    pub listen: SocketAddr,
    /// What all servers of the service have in common.
    pub secret: [u8; 16],
    /// Where it keeps what it has; none for memory only.
    ///
    /// A server with a journal that is killed at any time has all that it acknowledged when it starts again. One
    /// without has its ranges, empty: what it alone had is lost, and nobody else has or claims it. That is what
    /// a source has until the commit, and what a destination has from when it is ready, which is just before the
    /// commit. What is mirrored is acknowledged when the mirror has it, so a mirror that is complete has all of
    /// it, and becomes the owner when it is promoted.
    pub journal: Option<std::path::PathBuf>,
    /// Whether each record waits for the disk.
    pub sync: bool,
    /// How patient it is.
    pub limits: Limits,
}

/// Servers of one process, which need no connection between them.
#[derive(Debug, Clone, Default)]
pub struct Local(Arc<RwLock<HashMap<Peer, Weak<Shared>>>>);

/// A server that runs. It ends when dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
}

struct State {
    node: Node,
    journal: Option<Journal>,
    waiting: HashMap<TransferId, Sender<End>>,
}

struct Shared {
    config: Config,
    address: SocketAddr,
    routes: Arc<dyn Routes>,
    local: Local,
    state: Mutex<State>,
    /// Writers to clients, by connection.
    clients: RwLock<HashMap<u64, Arc<Mutex<TcpStream>>>>,
    peers: Mutex<HashMap<Peer, SyncSender<Message>>>,
    /// Messages of servers of this process, in their order.
    inbox: Sender<(Peer, Message)>,
    asks: Sender<Ask>,
    connections: AtomicUsize,
    next: AtomicU64,
    ended: AtomicBool,
    began: Instant,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("me", &self.config.me)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Starts a server. What it owns is fenced, so that nothing of an earlier life of it happens later.
    ///
    /// # Errors
    /// When it cannot listen, the journal cannot be used, or the routes do not answer.
    pub fn start(
        config: Config,
        routes: Arc<dyn Routes>,
        local: &Local,
    ) -> Result<Self, ServerError> {
        let listen = config.listen;
        let failed = |error| ServerError::Io(listen.to_string(), error);
        let listener = TcpListener::bind(config.listen).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (journal, recovered) = match &config.journal {
            Some(path) => {
                let (journal, recovered) = Journal::open(path, config.sync)?;
                (Some(journal), recovered)
            }
            None => (None, Recovered::default()),
        };
        let (life, owned) = routes.fence_all(config.me).ok_or(ServerError::Routes)?;
        routes.set_address(config.me, &address.to_string());
        let node = Node::new(config.me, life, owned, recovered, config.limits);
        let (inbox, messages) = channel();
        let (asks, questions) = channel();
        let shared = Arc::new(Shared {
            address,
            routes,
            local: local.clone(),
            state: Mutex::new(State { node, journal, waiting: HashMap::new() }),
            clients: RwLock::default(),
            peers: Mutex::default(),
            inbox,
            asks,
            connections: AtomicUsize::new(0),
            next: AtomicU64::new(1),
            ended: AtomicBool::new(false),
            began: Instant::now(),
            config,
        });
        local
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(shared.config.me, Arc::downgrade(&shared));
        shared.with(|_| ());
        let (accepting, asking, hearing) =
            (Arc::clone(&shared), Arc::downgrade(&shared), Arc::downgrade(&shared));
        spawn("accept", move || accepting.accept(&listener)).map_err(failed)?;
        spawn("routes", move || answer_questions(&asking, &questions)).map_err(failed)?;
        spawn("inbox", move || hear(&hearing, &messages)).map_err(failed)?;
        Ok(Self { shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Announces a range that nobody has as its own.
    ///
    /// # Errors
    /// When somebody has a part of it.
    pub fn announce(&self, range: Range) -> Result<(), ServerError> {
        let me = self.shared.config.me;
        let refused = |reply| ServerError::Refused(me, format!("{range} has a home: {reply:?}"));
        let epoch = self.shared.routes.announce(range, me).map_err(refused)?;
        self.shared.with(|node| node.announced(range, epoch));
        Ok(())
    }

    /// Does what is commanded, and waits until it is done.
    pub fn command(&self, command: &Command) -> Report {
        self.shared.command(command)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect_timeout(&self.shared.address, PATIENCE);
        for stream in self.shared.clients.read().unwrap_or_else(PoisonError::into_inner).values() {
            let _ = lock(stream).shutdown(std::net::Shutdown::Both);
        }
        lock(&self.shared.peers).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(name: &str, act: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(format!("elastic-{name}")).spawn(act).map(drop)
}

/// Asks the routes apart from the node, which serves meanwhile.
fn answer_questions(shared: &Weak<Shared>, questions: &Receiver<Ask>) {
    while let Ok(ask) = questions.recv() {
        let Some(shared) = live(shared) else { return };
        let reply = shared.routes.ask(&ask);
        if reply != Reply::Unknown {
            shared.with(|node| node.routed(&ask, reply));
        }
    }
}

/// Messages of this process, and the time.
fn hear(shared: &Weak<Shared>, messages: &Receiver<(Peer, Message)>) {
    let mut next = Instant::now();
    loop {
        let message = messages.recv_timeout(next.saturating_duration_since(Instant::now()));
        let Some(shared) = live(shared) else { return };
        match message {
            Ok((from, message)) => shared.with(|node| node.message(from, message)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if Instant::now() >= next {
            next = Instant::now() + TICK;
            let now = u64::try_from(shared.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            shared.with(|node| node.tick(now));
        }
    }
}

fn live(shared: &Weak<Shared>) -> Option<Arc<Shared>> {
    shared.upgrade().filter(|shared| !shared.ended.load(Ordering::Acquire))
}

impl Shared {
    /// Lets the node do something, and does what it says.
    fn with<T>(self: &Arc<Self>, act: impl FnOnce(&mut Node) -> T) -> T {
        self.with_client(None, act)
    }

    /// As [`Self::with`], for a thread that has a client's connection at hand.
    fn with_client<T>(
        self: &Arc<Self>,
        client: Option<(u64, &Mutex<TcpStream>)>,
        act: impl FnOnce(&mut Node) -> T,
    ) -> T {
        let mut answers = Vec::new();
        let result = {
            let mut state = lock(&self.state);
            let result = act(&mut state.node);
            for action in state.node.actions() {
                match action {
                    Action::Record(record) => {
                        let Some(journal) = &mut state.journal else { continue };
                        if let Err(error) = journal.keep(&record) {
                            // To go on would be to acknowledge what is not kept.
                            log::error!("server {} ends: {error}", self.config.me);
                            self.ended.store(true, Ordering::Release);
                            return result;
                        }
                    }
                    Action::Send(to, message) => self.send(to, message),
                    Action::Answer(origin, session, seq, outcome) => {
                        answers.push((origin, session, seq, outcome));
                    }
                    Action::Ask(ask) => _ = self.asks.send(ask), // to a thread that ends with us
                    Action::Ended(id, end) => {
                        if let Some(waiting) = state.waiting.remove(&id) {
                            let _ = waiting.send(end); // to somebody who may have gone
                        }
                    }
                }
            }
            result
        };
        for (origin, session, seq, outcome) in answers {
            match client {
                Some((number, stream)) if number == origin.connection => {
                    self.reply(stream, session, seq, outcome);
                }
                _ => self.answer(origin, session, seq, outcome),
            }
        }
        result
    }

    fn answer(&self, origin: Origin, session: u64, seq: u64, outcome: Outcome) {
        let stream = {
            let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
            clients.get(&origin.connection).cloned()
        };
        if let Some(stream) = stream {
            self.reply(&stream, session, seq, outcome);
        }
    }

    fn reply(&self, stream: &Mutex<TcpStream>, session: u64, seq: u64, outcome: Outcome) {
        let address = match &outcome {
            Outcome::Moved { home: Some(home), .. } => {
                self.routes.address(*home).unwrap_or_default()
            }
            _ => String::new(),
        };
        let frame = Encoded::new(&Frame::Answer { session, seq, outcome, address });
        let mut stream = lock(stream);
        if write_pieces(&mut *stream, frame.pieces()).is_err() {
            let _ = stream.shutdown(std::net::Shutdown::Both); // its reader sees it
        }
    }

    fn send(self: &Arc<Self>, to: Peer, message: Message) {
        let local =
            self.local.0.read().unwrap_or_else(PoisonError::into_inner).get(&to).and_then(live);
        if let Some(peer) = local {
            let _ = peer.inbox.send((self.config.me, message)); // to one that may end just now
            return;
        }
        let mut peers = lock(&self.peers);
        let queue = peers.entry(to).or_insert_with(|| {
            let (sender, messages) = sync_channel(QUEUE);
            let shared = Arc::downgrade(self);
            if let Err(error) = spawn("peer", move || talk(&shared, to, &messages)) {
                log::warn!("nothing can be sent to server {to}: {error}");
            }
            sender
        });
        // Never waits: what is lost is repeated.
        let _ = queue.try_send(message);
    }

    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming() {
            if self.ended.load(Ordering::Acquire) {
                return;
            }
            let Ok(stream) = stream else {
                thread::sleep(TICK); // too many files: others may be closed meanwhile
                continue;
            };
            if self.connections.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX {
                self.connections.fetch_sub(1, Ordering::AcqRel);
                continue;
            }
            let shared = Arc::clone(&self);
            let serve = move || {
                let number = shared.next.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = shared.serve(stream, number) {
                    log::debug!("a connection to server {} ends: {error}", shared.config.me);
                }
                shared.clients.write().unwrap_or_else(PoisonError::into_inner).remove(&number);
                shared.connections.fetch_sub(1, Ordering::AcqRel);
            };
            if spawn("serve", serve).is_err() {
                self.connections.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    fn serve(self: &Arc<Self>, stream: TcpStream, number: u64) -> Result<(), ServerError> {
        let failed = |error| ServerError::Io("a connection".into(), error);
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        let mut reader = FrameReader::new(stream.try_clone().map_err(failed)?);
        let Frame::Hello { peer, secret } = reader.read()? else {
            return Err(WireError::Protocol.into());
        };
        stream.set_read_timeout(Some(IDLE)).map_err(failed)?;
        let trusted = same(&secret, &self.config.secret);
        if peer.is_some() && !trusted {
            return Err(ServerError::Refused(self.config.me, "the secret is wrong".into()));
        }
        let stream = Arc::new(Mutex::new(stream));
        self.clients
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, Arc::clone(&stream));
        let me = self.config.me;
        loop {
            let frame = reader.read()?;
            if self.ended.load(Ordering::Acquire) {
                return Ok(());
            }
            match (frame, peer) {
                (Frame::Request(request), None) => {
                    let origin = Origin { peer: me, connection: number, hops: 0 };
                    self.with_client(Some((number, &stream)), |node| node.request(origin, request));
                }
                (Frame::Peer(message), Some(peer)) => self.with(|node| node.message(peer, message)),
                (Frame::Command(text), _) if trusted => {
                    let report = match serde_json::from_slice(&text) {
                        Ok(command) => self.command(&command),
                        Err(error) => Report::Failed(format!("no command: {error}")),
                    };
                    let text = serde_json::to_vec(&report).unwrap_or_default();
                    let frame = Encoded::new(&Frame::Command(text.into()));
                    write_pieces(&mut *lock(&stream), frame.pieces()).map_err(failed)?;
                }
                _ => return Err(WireError::Protocol.into()),
            }
        }
    }
}

/// In a time that does not depend on where they differ.
fn same(one: &[u8; 16], other: &[u8; 16]) -> bool {
    one.iter().zip(other).fold(0, |differs, (one, other)| differs | (one ^ other)) == 0
}
