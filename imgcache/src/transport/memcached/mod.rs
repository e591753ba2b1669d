//! The distributed cache: any number of memcached servers or imgcached nodes, read over TCP, TLS or
//! sockets of this host.
//!
//! - [`Cluster`] is the transport: names and manifests, and a session for each image;
//! - `load` and `board` bring chunks from all nodes at once, `predicted` straight into guest memory;
//! - `origin` fetches what no node has from another transport, once for all hosts;
//! - [`publish`] puts an image into the cache;
//! - [`survey`] finds out who holds what, [`moving`] brings it to where it belongs;
//! - [`Node`], [`Topology`] and [`Connection`] are what other commands talk to nodes with.

mod board;
mod breaker;
mod connection;
mod error;
mod inbox;
mod lease;
mod load;
pub mod moving;
mod node;
mod origin;
mod predicted;
pub mod publish;
mod report;
mod session;
mod stream;
pub mod survey;
mod worker;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

pub use self::connection::{Connection, Item, Put, PutAnswer};
pub use self::error::{ClusterError, NodeError};
pub use self::node::{Candidates, Node, Topology};
pub use self::report::{CacheReport, NodeReport};
use self::session::ClusterSession;
pub use self::stream::{Dialer, Tls, TlsError, TlsFiles};
use super::{Session, Transport, TransportError};
use crate::cluster::address::CacheUrl;
use crate::cluster::members::{Members, MembersFile};
use crate::image::manifest::Manifest;
use crate::image::name::ImageName;
use crate::key::ManifestId;
use crate::parallel::{self, lock};
use crate::record::{
    ItemKey, MAX_NAME_RECORD_BYTES, NameRecord, PIECE_BYTES, PIECE_BYTES_U64, piece_count,
};

/// Names that were resolved at the origin and whose images were not opened yet, at most.
const MAX_PULLED: usize = 64;
/// One chunk, or anything small, may take so many times the patience for a single byte.
const PATIENCE: u32 = 5;
/// Times that something small is asked for while nodes are slow; each time they are given twice as long.
const ROUNDS: u32 = 4;
/// Warnings of one kind that a process prints.
const LOUD: u32 = 5;

/// How a cache is used.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Files for TLS.
    pub tls: TlsFiles,
    /// How long to wait for a connection.
    pub connect: Duration,
    /// How long to wait for the next byte of an answer that is due.
    pub progress: Duration,
    /// How long a load may take in all.
    pub load_deadline: Duration,
    /// Connections to all nodes together for one load; each node gets one at least.
    pub connections: usize,
    /// Bytes that are asked for ahead on each connection.
    pub window: usize,
    /// Chunks that are read from the origin at a time.
    pub origin_reads: usize,
    /// How long to wait for another host that fetches a chunk from the origin.
    pub claim_patience: Duration,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        let cpus = thread::available_parallelism().map_or(1, Into::into);
        Self {
            tls: TlsFiles::default(),
            connect: Duration::from_secs(1),
            progress: Duration::from_secs(1),
            load_deadline: Duration::from_secs(60),
            // On two CPUs shared with the server more were no faster, and fewer slower.
            connections: cpus.max(2),
            window: 1 << 20,
            origin_reads: 4,
            claim_patience: Duration::from_secs(5),
        }
    }
}

impl ClusterOptions {
    fn connections_to_each(&self, nodes: usize) -> usize {
        self.connections.div_ceil(nodes.max(1)).max(1)
    }
}

/// A cache of several nodes. Clones share connections, breakers and membership.
#[derive(Debug, Clone)]
pub struct Cluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    url: CacheUrl,
    options: ClusterOptions,
    dialer: Arc<Dialer>,
    /// The membership file, if the members can change.
    file: Option<MembersFile>,
    topology: Mutex<Arc<Topology>>,
    origin: Option<Box<dyn Transport>>,
    /// Names that came from the origin, to be published once their image is loaded.
    pulled: Mutex<Vec<(ManifestId, ImageName)>>,
}

impl Cluster {
    /// The cache at `url`; no node is asked for anything yet. What no node has is fetched from
    /// `origin`, if there is one, and put where it belongs.
    ///
    /// # Errors
    /// A membership file or TLS files that cannot be used.
    pub fn open(
        url: &CacheUrl,
        options: ClusterOptions,
        origin: Option<Box<dyn Transport>>,
    ) -> Result<Self, ClusterError> {
        let (members, file) = match url {
            CacheUrl::Nodes { addresses, tls } => {
                (Arc::new(Members::of_addresses(addresses, *tls)), None)
            }
            CacheUrl::Members(path) => {
                let file = MembersFile::open(path)?;
                (file.current(), Some(file))
            }
        };
        let tls = if members.tls { Some(Tls::new(&options.tls)?) } else { None };
        let (connect, progress) = (options.connect, options.progress);
        let dialer = Arc::new(Dialer { tls, connect, progress });
        let topology = Mutex::new(Arc::new(Topology::new(&members, &dialer, None)));
        let (url, pulled) = (url.clone(), Mutex::default());
        Ok(Self(Arc::new(Inner { url, options, dialer, file, topology, origin, pulled })))
    }

    /// How it is used.
    pub fn options(&self) -> &ClusterOptions {
        &self.0.options
    }

    /// Where it is.
    pub fn url(&self) -> &CacheUrl {
        &self.0.url
    }

    /// Its nodes, as the membership has them now.
    pub fn topology(&self) -> Arc<Topology> {
        let mut topology = lock(&self.0.topology);
        if let Some(file) = &self.0.file {
            let members = file.current();
            if members.epoch != topology.epoch {
                *topology = Arc::new(Topology::new(&members, &self.0.dialer, Some(&topology)));
            }
        }
        Arc::clone(&topology)
    }

    /// When something that is begun now has to be done.
    fn deadline(&self) -> Instant {
        Instant::now() + self.0.options.load_deadline
    }

    /// When something small that is begun now has to be done: a node that drips is one that stalls.
    fn soon(&self, doublings: u32) -> Instant {
        let patience = self.0.options.progress.saturating_mul(PATIENCE << doublings.min(16));
        Instant::now() + patience.min(self.0.options.load_deadline)
    }

    /// Asks until there is an answer, everybody has refused one, or all are slow again and again.
    fn in_rounds<T>(&self, mut ask: impl FnMut(u32) -> Asked<T>) -> Asked<T> {
        let over = self.deadline();
        let mut first = ask(0);
        for doublings in 1..ROUNDS {
            if !first.slow || first.found.is_some() || Instant::now() >= over {
                break;
            }
            let again = ask(doublings);
            // What went wrong at first says most.
            first = Asked { said: first.said, ..again };
        }
        first
    }

    /// The item `key` from the first candidate that has one which `read` takes, in turn from number
    /// `first` on.
    ///
    /// `Ok(None)` if no candidate has it and all were asked, or if there is an origin to go to.
    ///
    /// # Errors
    /// [`ClusterError::Unreachable`]: nobody has it, and not everybody could be asked.
    fn item<T>(
        &self,
        key: &ItemKey,
        limit: usize,
        first: usize,
        read: impl Fn(Item) -> Result<T, String>,
    ) -> Result<Option<T>, ClusterError> {
        let asked = self.in_rounds(|doublings| {
            let topology = self.topology();
            let mut asked = Asked::default();
            let mut nodes: Vec<usize> = topology.candidates(&key.index_key()).all().collect();
            let turn = first.checked_rem(nodes.len()).unwrap_or(0);
            nodes.rotate_left(turn);
            for node in nodes {
                let node = &topology.nodes[node];
                let get = |connection: &mut Connection| connection.get(key, limit);
                match node.with_patience(self.soon(doublings), doublings, get) {
                    Ok(Some(item)) => match read(item) {
                        Ok(read) => {
                            asked.found = Some(read);
                            return asked;
                        }
                        Err(words) => asked.unsure(node, key, words),
                    },
                    Ok(None) => {
                        asked.said.push((node.name().to_owned(), "does not have it".to_owned()));
                    }
                    Err(error) => asked.failed(node, key, &error),
                }
            }
            // Whoever has somewhere else to go does not wait for those who are slow.
            asked.slow &= self.0.origin.is_none();
            asked
        });
        if asked.found.is_some() || asked.certain() || self.0.origin.is_some() {
            return Ok(asked.found);
        }
        Err(ClusterError::Unreachable { what: format!("item {key}"), said: asked.said })
    }

    /// What `name` stands for: the newest record that any of its nodes has.
    ///
    /// # Errors
    /// [`ClusterError::Unreachable`]: nobody knows the name, and not everybody could be asked.
    pub fn name_record(&self, name: &ImageName) -> Result<Option<NameRecord>, ClusterError> {
        let asked = self.in_rounds(|doublings| self.ask_for_name(name, doublings));
        if asked.found.is_some() || asked.certain() {
            return Ok(asked.found);
        }
        Err(ClusterError::Unreachable { what: format!("image '{name}'"), said: asked.said })
    }

    fn ask_for_name(&self, name: &ImageName, doublings: u32) -> Asked<NameRecord> {
        let (topology, deadline) = (self.topology(), self.soon(doublings));
        let key = ItemKey::name(name);
        let asked: Mutex<Asked<NameRecord>> = Mutex::default();
        let candidates: Vec<usize> = topology.candidates(&key.index_key()).all().collect();
        let ask = |number: usize| {
            let node = &topology.nodes[number];
            let get = |connection: &mut Connection| connection.get(&key, MAX_NAME_RECORD_BYTES);
            let answer = node.with_patience(deadline, doublings, get);
            let mut asked = lock(&asked);
            match answer {
                Ok(None) => (),
                Ok(Some(item)) => match NameRecord::decode_for(name, &item.value) {
                    Ok(record) => {
                        asked.found = Some(match asked.found.take() {
                            Some(other) => other.newer(record),
                            None => record,
                        });
                    }
                    Err(error) => asked.unsure(node, &key, error.to_string()),
                },
                Err(error) => asked.failed(node, &key, &error),
            }
        };
        thread::scope(|scope| {
            // One after the other, a node that is down would hold up those that are not.
            for node in candidates.iter().skip(1) {
                scope.spawn(|| ask(*node));
            }
            candidates.first().copied().map(ask)
        });
        asked.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The manifest `id`, verified, if the cache has all of it.
    fn manifest(&self, id: &ManifestId) -> Result<Option<Manifest>, ClusterError> {
        let mut last = None;
        // Only the whole can be verified: if it is damaged, all pieces are had from other replicas.
        for first in 0..=self.topology().replicas() {
            let Some(bytes) = self.manifest_bytes(id, first)? else { break };
            match Manifest::decode_as(id, &bytes) {
                Ok(manifest) => return Ok(Some(manifest)),
                Err(error) => last = Some(error),
            }
        }
        last.map_or(Ok(None), |error| Err(ClusterError::Manifest(error)))
    }

    /// The encoding of a manifest, each piece from candidate `first` if it has one.
    fn manifest_bytes(
        &self,
        id: &ManifestId,
        first: usize,
    ) -> Result<Option<Vec<u8>>, ClusterError> {
        let piece = |number: u32, expected: Option<u64>| {
            let key = ItemKey::manifest_piece(id, number);
            self.item(&key, PIECE_BYTES, first, |item| {
                let length = u64::try_from(item.value.len()).unwrap_or(u64::MAX);
                let expected = match expected {
                    Some(expected) => expected,
                    None => Manifest::encoded_length(&item.value)
                        .map_err(|error| error.to_string())?
                        .min(PIECE_BYTES_U64),
                };
                if length == expected {
                    return Ok(item.value);
                }
                Err(format!("has {length} bytes of a piece of {expected}"))
            })
        };
        let Some(mut bytes) = piece(0, None)? else { return Ok(None) };
        let length = Manifest::encoded_length(&bytes).map_err(ClusterError::Manifest)?;
        let count = piece_count(length);
        let rest: Vec<Mutex<Option<Vec<u8>>>> = (1..count).map(|_| Mutex::default()).collect();
        parallel::each((1..count).zip(&rest).collect(), |(number, slot)| {
            let left = length - u64::from(number) * PIECE_BYTES_U64;
            *lock(slot) = piece(number, Some(left.min(PIECE_BYTES_U64)))?;
            Ok::<_, ClusterError>(())
        })?;
        for slot in rest {
            let slot = slot.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            let Some(more) = slot else { return Ok(None) };
            bytes.extend_from_slice(&more);
        }
        Ok(Some(bytes))
    }
}

impl Transport for Cluster {
    fn name(&self) -> &'static str {
        "memcached"
    }

    fn resolve(&self, name: &ImageName) -> Result<ManifestId, TransportError> {
        let found = self.name_record(name);
        let Some(origin) = &self.0.origin else {
            let record = found?.ok_or_else(|| TransportError::UnknownImage(name.clone()))?;
            return Ok(record.manifest);
        };
        match found {
            Ok(Some(record)) => return Ok(record.manifest),
            Ok(None) => log::info!("image '{name}' is not in the cache: asking the origin"),
            Err(error) => log::warn!("{error}; asking the origin"),
        }
        let id = origin.resolve(name)?;
        let mut pulled = lock(&self.0.pulled);
        pulled.retain(|(_, other)| other != name);
        if pulled.len() < MAX_PULLED {
            pulled.push((id, name.clone()));
        }
        Ok(id)
    }

    fn open(&self, id: &ManifestId) -> Result<Box<dyn Session>, TransportError> {
        let name = {
            let mut pulled = lock(&self.0.pulled);
            let at = pulled.iter().position(|(pulled, _)| pulled == id);
            at.map(|at| pulled.swap_remove(at).1)
        };
        Ok(Box::new(ClusterSession::open(self.clone(), *id, name)?))
    }
}

/// What came of asking the nodes of an item for it.
struct Asked<T> {
    found: Option<T>,
    /// Nodes that have it not, or did not say, each with why.
    said: Vec<(String, String)>,
    /// Nodes of which it is not known.
    unsure: usize,
    /// Whether more time might have helped with one.
    slow: bool,
}

impl<T> Default for Asked<T> {
    fn default() -> Self {
        Self { found: None, said: Vec::new(), unsure: 0, slow: false }
    }
}

impl<T> Asked<T> {
    fn failed(&mut self, node: &Node, key: &ItemKey, error: &NodeError) {
        self.slow |= error.is_slow();
        self.unsure(node, key, error.to_string());
    }

    fn unsure(&mut self, node: &Node, key: &ItemKey, words: String) {
        log::info!("cache node {}: {key}: {words}", node.name());
        self.unsure += 1;
        self.said.push((node.name().to_owned(), words));
    }

    /// Whether all nodes said that they have it not.
    fn certain(&self) -> bool {
        self.unsure == 0
    }
}

/// 64 random bits, or, if the system has none, of the clock: nothing here is a secret.
fn random() -> u64 {
    let mut bytes = [0; 8];
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) == Ok(8) {
        return u64::from_le_bytes(bytes);
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::from(now.unwrap_or_default().subsec_nanos()).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Whether this is one of the first few calls in this process.
fn is_first_few() -> bool {
    static SAID: AtomicU32 = AtomicU32::new(0);
    SAID.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |said| {
        (said < LOUD).then_some(said + 1)
    })
    .is_ok()
}
