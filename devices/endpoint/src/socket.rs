//! Servers and clients that talk by identifiers (Kulkarni et al., Figures 4 and 5): datagrams, as the network
//! brings them. Clients resolve a service and bind; servers announce one, listen to ranges of it, and accept.
//!
//! A frame's Ethernet header has the identifier on one side and the client's own address on the other. After it: a version
//! byte, a zero, the client's number of the token and the length of what follows, two bytes each, the first one first.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::directory::cache::Cache;
use crate::directory::{Change, Directory, DirectoryError, Lease};
use crate::frames::{ETHERTYPE, Frames, HEADER, LONGEST};
use crate::name::{Name, Pattern};
use crate::range::Range;
use crate::record::{Home, Record};
use crate::vid::Vid;

const VERSION: u8 = 1;
/// Bytes before what is said.
const HEAD: usize = HEADER + 6;
/// The most bytes of one datagram.
pub const MOST_BYTES: usize = LONGEST - HEAD;
/// Datagrams that wait at a token, and tokens that wait to be accepted. What comes beyond is dropped, as in any network.
const MOST_WAITING: usize = 1024;
/// Clients that a server knows. Of more the one that was heard of first is forgotten.
const MOST_PEERS: usize = 16_384;

/// Why something was not sent, received or announced.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Nobody has announced it.
    #[error("nobody serves {0}: announce it, or wait until somebody has")]
    Unknown(Pattern),
    /// More than a frame takes.
    #[error("{0} bytes are too many for one datagram: at most {MOST_BYTES}")]
    TooLong(usize),
    /// It is not of this socket.
    #[error("token {0} is not bound: bind or accept one")]
    NoToken(u16),
    /// All numbers are in use.
    #[error("all tokens are in use: close some")]
    Tokens,
    /// The directory's refusal.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The network's.
    #[error("the network: {0}")]
    Network(#[from] io::Error),
}

/// A datagram as it came.
#[derive(Debug)]
struct Datagram {
    destination: [u8; 6],
    source: [u8; 6],
    number: u16,
    data: Vec<u8>,
}

impl Datagram {
    fn read(frame: &[u8]) -> Option<Self> {
        let (head, rest) = frame.split_first_chunk::<HEAD>()?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1, version, zero, n0, n1, l0, l1] =
            *head;
        let is_ours = u16::from_be_bytes([t0, t1]) == ETHERTYPE && (version, zero) == (VERSION, 0);
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        // Short frames are filled up by the network.
        let data = rest.get(..length).filter(|_| is_ours)?;
        Some(Self {
            destination: [d0, d1, d2, d3, d4, d5],
            source: [s0, s1, s2, s3, s4, s5],
            number: u16::from_be_bytes([n0, n1]),
            data: data.to_vec(),
        })
    }

    fn write(
        destination: [u8; 6],
        source: [u8; 6],
        number: u16,
        data: &[u8],
    ) -> Result<Vec<u8>, SocketError> {
        let length = u16::try_from(data.len()).ok().filter(|_| data.len() <= MOST_BYTES);
        let length = length.ok_or(SocketError::TooLong(data.len()))?;
        let mut frame = Vec::with_capacity(HEAD + data.len());
        frame.extend_from_slice(&destination);
        frame.extend_from_slice(&source);
        frame.extend_from_slice(&ETHERTYPE.to_be_bytes());
        frame.extend_from_slice(&[VERSION, 0]);
        frame.extend_from_slice(&number.to_be_bytes());
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(data);
        Ok(frame)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a client has bound: a server is reached by it wherever that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(u16);

/// A client.
#[derive(Debug)]
pub struct Client {
    frames: Box<dyn Frames>,
    cache: Cache,
    state: Mutex<Bound>,
}

#[derive(Debug, Default)]
struct Bound {
    next: u16,
    tokens: BTreeMap<u16, (Vid, VecDeque<Vec<u8>>)>,
}

impl Client {
    /// A client on this network that resolves by this cache.
    pub fn new(frames: Box<dyn Frames>, cache: Cache) -> Self {
        Self { frames, cache, state: Mutex::default() }
    }

    /// An identifier of a service that `pattern` stands for; which one of them `request` decides, evenly and always alike.
    ///
    /// # Errors
    /// Nobody serves it.
    pub fn resolve(&self, pattern: &Pattern, request: u64) -> Result<Vid, SocketError> {
        let found = self.cache.services(pattern);
        let count = |range: Range| range.count();
        let total: u64 = found.iter().map(|entry| count(entry.record.range)).sum();
        let Some(mut at) = request.checked_rem(total) else {
            return Err(SocketError::Unknown(pattern.clone()));
        };
        for entry in found {
            let range = entry.record.range;
            if at < count(range) {
                return Ok(range.pick(at));
            }
            at -= count(range);
        }
        Err(SocketError::Unknown(pattern.clone()))
    }

    /// A token for talking with who serves `vid`.
    ///
    /// # Errors
    /// There are too many.
    pub fn bind(&self, vid: Vid) -> Result<Token, SocketError> {
        let mut state = lock(&self.state);
        for _ in 0..=u16::MAX {
            let number = state.next;
            state.next = number.wrapping_add(1);
            if let std::collections::btree_map::Entry::Vacant(free) = state.tokens.entry(number) {
                free.insert((vid, VecDeque::new()));
                return Ok(Token(number));
            }
        }
        Err(SocketError::Tokens)
    }

    /// The token is no more.
    pub fn close(&self, token: Token) {
        lock(&self.state).tokens.remove(&token.0);
    }

    /// Sends `data`. As with any datagram, nobody says whether it arrives.
    ///
    /// # Errors
    /// The token is none, the data too long; the network's refusal.
    pub fn send(&self, token: Token, data: &[u8]) -> Result<(), SocketError> {
        let vid = lock(&self.state).tokens.get(&token.0).map(|(vid, _)| *vid);
        let vid = vid.ok_or(SocketError::NoToken(token.0))?;
        let frame = Datagram::write(vid.bytes(), self.frames.address(), token.0, data)?;
        Ok(self.frames.send(&frame)?)
    }

    /// What has come for `token`; none if nothing came in `patience`.
    ///
    /// # Errors
    /// The token is none; the network is gone.
    pub fn recv(&self, token: Token, patience: Duration) -> Result<Option<Vec<u8>>, SocketError> {
        let deadline = Instant::now() + patience;
        let mut buffer = [0; LONGEST];
        loop {
            let mut state = lock(&self.state);
            let (_, waiting) =
                state.tokens.get_mut(&token.0).ok_or(SocketError::NoToken(token.0))?;
            if let Some(data) = waiting.pop_front() {
                return Ok(Some(data));
            }
            drop(state);
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(length) = self.frames.recv(&mut buffer, left)? else {
                if left.is_zero() {
                    return Ok(None);
                }
                continue;
            };
            let Some(datagram) = buffer.get(..length).and_then(Datagram::read) else { continue };
            if datagram.destination != self.frames.address() {
                continue;
            }
            let mut state = lock(&self.state);
            if let Some((vid, waiting)) = state.tokens.get_mut(&datagram.number)
                && vid.bytes() == datagram.source
                && waiting.len() < MOST_WAITING
            {
                waiting.push_back(datagram.data);
            }
        }
    }
}

/// Who a server talks with: one token of one client, for one identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// The identifier that the client has resolved.
    pub vid: Vid,
    /// The client's address.
    pub client: [u8; 6],
    number: u16,
}

/// A server.
#[derive(Debug)]
pub struct Server {
    frames: Box<dyn Frames>,
    directory: Arc<dyn Directory>,
    lease: Lease,
    home: Home,
    state: Mutex<Served>,
}

#[derive(Debug, Default)]
struct Served {
    records: Vec<Record>,
    /// What has come, by peer.
    peers: BTreeMap<Peer, VecDeque<Vec<u8>>>,
    /// All peers, the first heard of first.
    order: VecDeque<Peer>,
    /// Those that have not been accepted.
    new: VecDeque<Peer>,
}

impl Server {
    /// A server at `home`, on this network, whose records `lease` keeps.
    pub fn new(
        frames: Box<dyn Frames>,
        directory: Arc<dyn Directory>,
        lease: Lease,
        home: Home,
    ) -> Self {
        Self { frames, directory, lease, home, state: Mutex::default() }
    }

    /// Announces the ranges of `service`, all of them or none, and listens to them.
    ///
    /// # Errors
    /// The directory's refusal.
    pub fn announce(&self, service: &Name, ranges: &[Range]) -> Result<Vec<Record>, SocketError> {
        let record = |range: &Range| {
            Record::new(*range, service.clone(), self.home.clone(), self.lease.owner.clone())
        };
        let change = Change::announce(ranges.iter().map(record).collect());
        let records = self.directory.change(&self.lease, &change)?;
        lock(&self.state).records.extend(records.iter().cloned());
        Ok(records)
    }

    /// Listens to what these records say, and to nothing else: after a split, merge or move.
    pub fn listen(&self, records: Vec<Record>) {
        lock(&self.state).records = records;
    }

    /// Withdraws all that it listens to.
    ///
    /// # Errors
    /// The directory's refusal.
    pub fn withdraw(&self) -> Result<(), SocketError> {
        let records = lock(&self.state).records.clone();
        if !records.is_empty() {
            self.directory.change(&self.lease, &Change::withdraw(records))?;
        }
        self.listen(Vec::new());
        Ok(())
    }

    /// A peer that has not been accepted before; none if none came in `patience`.
    ///
    /// # Errors
    /// The network is gone.
    pub fn accept(&self, patience: Duration) -> Result<Option<Peer>, SocketError> {
        self.wait(patience, |state| state.new.pop_front())
    }

    /// What has come from `peer`; none if nothing came in `patience`.
    ///
    /// # Errors
    /// The network is gone.
    pub fn recv(&self, peer: Peer, patience: Duration) -> Result<Option<Vec<u8>>, SocketError> {
        self.wait(patience, |state| state.peers.get_mut(&peer)?.pop_front())
    }

    /// Sends `data` to `peer`, as the identifier that it has resolved.
    ///
    /// # Errors
    /// The data is too long; the network's refusal.
    pub fn send(&self, peer: Peer, data: &[u8]) -> Result<(), SocketError> {
        let frame = Datagram::write(peer.client, peer.vid.bytes(), peer.number, data)?;
        Ok(self.frames.send(&frame)?)
    }

    fn wait<T>(
        &self,
        patience: Duration,
        mut look: impl FnMut(&mut Served) -> Option<T>,
    ) -> Result<Option<T>, SocketError> {
        let deadline = Instant::now() + patience;
        let mut buffer = [0; LONGEST];
        loop {
            if let Some(found) = look(&mut lock(&self.state)) {
                return Ok(Some(found));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.frames.recv(&mut buffer, left)? {
                Some(length) => {
                    if let Some(datagram) = buffer.get(..length).and_then(Datagram::read) {
                        lock(&self.state).put(datagram);
                    }
                }
                None if left.is_zero() => return Ok(None),
                None => {}
            }
        }
    }
}

impl Served {
    fn put(&mut self, datagram: Datagram) {
        let Ok(vid) = Vid::new(datagram.destination) else { return };
        if !self.records.iter().any(|record| record.range.contains(vid)) {
            return;
        }
        let peer = Peer { vid, client: datagram.source, number: datagram.number };
        if !self.peers.contains_key(&peer) {
            if self.new.len() >= MOST_WAITING {
                return;
            }
            if self.order.len() >= MOST_PEERS
                && let Some(old) = self.order.pop_front()
            {
                self.peers.remove(&old);
                self.new.retain(|peer| *peer != old);
            }
            self.order.push_back(peer);
            self.new.push_back(peer);
        }
        let waiting = self.peers.entry(peer).or_default();
        if waiting.len() < MOST_WAITING {
            waiting.push_back(datagram.data);
        }
    }
}

#[cfg(test)]
mod tests;
