//! The distributed cache: any number of memcached servers or imgcached nodes, read over TCP, TLS or
//! sockets of this host.
//!
//! - [`Cluster`] is the transport: names and manifests, and a session for each image;
//! - `lookup` reads names and manifests;
//! - `load` and `board` bring chunks from all nodes at once, `tcp` straight into guest memory;
//! - `origin` fetches what no node has from another transport, once for all hosts;
//! - [`publish`] puts an image into the cache;
//! - [`pin`] has nodes keep an image;
//! - [`survey`] finds out who holds what, [`moving`] brings it to where it belongs;
//! - [`Node`], [`Topology`] and [`Connection`] are what other commands talk to nodes with.

mod board;
mod breaker;
mod error;
mod lease;
mod links;
mod load;
mod lookup;
pub mod moving;
mod node;
mod origin;
pub mod pin;
pub mod publish;
mod rdma;
mod report;
mod session;
mod shared;
pub mod survey;
mod tcp;
mod worker;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

pub use self::error::{ClusterError, NodeError};
use self::links::LocalDevices;
pub use self::links::{InvalidLink, LinkChoice, LinkKind};
pub use self::node::{Candidates, Node, Topology};
pub use self::rdma::answer::{RdmaAnswer, RdmaAnswerError};
pub use self::report::{CacheReport, LinkCounts, NodeReport};
use self::session::ClusterSession;
pub use self::tcp::connection::{Connection, Item, Put, PutAnswer};
pub use self::tcp::stream::{Dialer, Tls, TlsError, TlsFiles};
use super::{Session, Transport, TransportError};
use crate::cluster::address::CacheUrl;
use crate::cluster::members::{Members, MembersFile};
use crate::image::name::ImageName;
use crate::key::ManifestId;
use crate::parallel::lock;

/// Names that were resolved at the origin and whose images were not opened yet, at most.
const MAX_PULLED: usize = 64;
/// One chunk, or anything small, may take so many times the patience for a single byte.
const PATIENCE: u32 = 5;
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
    /// What chunks shall come by.
    pub link: LinkChoice,
    /// Chunks that are on their way by RDMA from one node at a time; at most 64 are.
    pub rdma_chunks: usize,
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
            link: LinkChoice::Auto,
            rdma_chunks: 64,
        }
    }
}

impl ClusterOptions {
    /// How long to wait for the next sign of life of a node that was slow so many times.
    fn progress_of(&self, doublings: u32) -> Duration {
        self.progress.saturating_mul(1 << doublings.min(16))
    }

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
    /// For RDMA.
    devices: LocalDevices,
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
        let (url, pulled, devices) = (url.clone(), Mutex::default(), LocalDevices::default());
        Ok(Self(Arc::new(Inner { url, options, dialer, file, topology, origin, devices, pulled })))
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
