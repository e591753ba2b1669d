//! Lets clients read the node's memory by RDMA.
//!
//! One thread owns everything of the device: the registration of the memory, a queue for each client
//! that has connected, and the windows that give it the right to read. It is asked by messages. What
//! clients read it does not see: their READs take no processor of this host.
//!
//! The right is for one lease and one queue. It ends with the lease, with the connection on which it was
//! asked for, and with the process. Where the device has no windows the key of the whole memory is given,
//! and the right ends with the queue.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::index::announce::Announcement;
use crate::node::arena::Slot;
use crate::node::lease::{Closing, Rights};
use crate::node::push::PushChoice;
use crate::transport::verbs::{
    Completion, Device, Domain, Endpoint, Export, Fabric, Memory, Region, ServeQueue, Served,
    Settings, Status, VerbsError,
};

/// Clients that may be connected at a time, unless told otherwise.
pub const DEFAULT_QUEUES: usize = 1024;
/// Changes of windows that are on their way for one client.
const DEPTH: u32 = 4;
/// How long the device may take to bind a window, or to end it.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the node is to do about RDMA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RdmaConfig {
    /// The device, by name; if none is given, that of the address at which the node is reached.
    pub device: Option<String>,
    /// Clients at a time.
    pub queues: usize,
    /// Whether clients may write, too.
    pub push: PushChoice,
    /// How much of the memory may be exposed to them at once, in thousandths.
    pub max_exposed_permille: u16,
}

/// What a client needs to know for reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// What is where in the memory.
    pub announcement: Announcement,
    /// Address of the memory.
    pub address: u64,
    /// The key to it.
    pub key: u32,
    /// This side's end of the connection.
    pub endpoint: Endpoint,
}

/// Why a client cannot read by RDMA.
#[derive(Debug, thiserror::Error)]
pub enum RdmaError {
    /// The memory is being registered.
    #[error("the memory is not registered yet")]
    NotReady,
    /// It could not be.
    #[error("the memory is not registered: {0}")]
    Unregistered(String),
    /// As many clients as there may be.
    #[error("{0} clients are connected by RDMA, and no more may be")]
    Full(usize),
    /// The device refused something.
    #[error(transparent)]
    Verbs(#[from] VerbsError),
    /// A window did not come about.
    #[error("no window: {0}")]
    Window(Status),
    /// The device does not answer.
    #[error("the device does not answer")]
    Silent,
    /// The node ends.
    #[error("the node ends")]
    Ended,
}

/// What is known of the device before any client comes.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The device.
    pub device: Device,
    /// The address at which it is reached.
    pub gid: [u8; 16],
    /// Whether rights are given by windows, one for each lease.
    pub windows: bool,
}

/// The thread, for those who ask it. Ends when dropped.
#[derive(Debug)]
pub struct Rdma {
    requests: Sender<Request>,
    facts: Facts,
    fabric: Fabric,
    limit: usize,
    registered: Arc<OnceLock<Result<(), String>>>,
    /// Clients that are connected.
    connected: Arc<AtomicUsize>,
}

type Reply = oneshot::Sender<Result<Granted, RdmaError>>;

enum Request {
    Connect { connection: u64, lease: u64, peer: Box<Endpoint>, reply: Reply },
    Close { connection: u64 },
    Revoke { lease: u64, closing: Closing },
}

/// The right to read under one lease, wherever it was given.
#[derive(Debug)]
struct LeaseRights {
    requests: Sender<Request>,
    lease: u64,
}

impl Rights for LeaseRights {
    fn close(&self, closing: Closing) {
        let request = Request::Revoke { lease: self.lease, closing };
        if let Err(unsent) = self.requests.send(request)
            && let Request::Revoke { closing, .. } = unsent.0
        {
            closing.closed(); // the thread has ended, and with it all queues
        }
    }
}

impl Rdma {
    /// Opens the device, of a node that is reached at `addresses` if the configuration names none, and begins to
    /// register `memory`, of which `announcement` says what is where.
    ///
    /// # Errors
    /// There is no such device, or it cannot be used.
    pub fn start(
        config: &RdmaConfig,
        addresses: &[IpAddr],
        memory: Arc<dyn Memory>,
        announcement: Announcement,
    ) -> Result<Self, VerbsError> {
        let fabric = match &config.device {
            Some(name) => Fabric::open(name, None)?,
            None => Fabric::open_for(addresses)?,
        };
        let domain = fabric.domain()?;
        let device = fabric.device().clone();
        let name = device.name.clone();
        let windows = device.limits.windows > 0;
        let facts = Facts { device, gid: fabric.gid().address, windows };
        let (requests, received) = channel();
        let registered = Arc::new(OnceLock::new());
        let connected = Arc::new(AtomicUsize::new(0));
        let (told, limit) = (Arc::clone(&registered), config.queues);
        let count = Arc::clone(&connected);
        let work = move || {
            let export = if windows { Export::ReadWindows } else { Export::Readable };
            let bytes = memory.span().length;
            let region = match domain.export(memory, 0..bytes, export) {
                Ok(region) => region,
                Err(error) => {
                    let error = error.to_string();
                    tracing::error!("no RDMA: the memory cannot be registered: {error}");
                    return refuse_all(&received, &told, &error);
                }
            };
            tracing::info!(bytes, "the memory is registered for RDMA");
            let _ = told.set(Ok(()));
            let clients = HashMap::new();
            Serving { domain, region, announcement, windows, clients, limit, count }.run(&received);
        };
        thread::Builder::new()
            .name("rdma".into())
            .spawn(work)
            .map_err(|source| VerbsError::Call { call: "pthread_create", device: name, source })?;
        Ok(Self { requests, facts, fabric, limit, registered, connected })
    }

    /// What is known of the device.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The device's port.
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// How many clients are connected.
    pub fn queues(&self) -> usize {
        self.connected.load(Ordering::Relaxed)
    }

    /// How many may be.
    pub fn max_queues(&self) -> usize {
        self.limit
    }

    /// Whether clients can connect; none if it will never be so.
    pub fn is_ready(&self) -> Option<bool> {
        match self.registered.get() {
            None => Some(false),
            Some(Ok(())) => Some(true),
            Some(Err(_)) => None,
        }
    }

    /// Connects a client's queue, and lets it read until `lease` or `connection` ends.
    ///
    /// # Errors
    /// Too many are connected, the endpoint is none, or the device's.
    pub async fn connect(
        &self,
        connection: u64,
        lease: u64,
        peer: Endpoint,
    ) -> Result<Granted, RdmaError> {
        match self.registered.get() {
            None => return Err(RdmaError::NotReady),
            Some(Err(reason)) => return Err(RdmaError::Unregistered(reason.clone())),
            Some(Ok(())) => (),
        }
        let (reply, answer) = oneshot::channel();
        let peer = Box::new(peer);
        let request = Request::Connect { connection, lease, peer, reply };
        self.requests.send(request).map_err(|_| RdmaError::Ended)?;
        answer.await.map_err(|_| RdmaError::Ended)?
    }

    /// The connection has ended, and all that was given on it.
    pub fn close(&self, connection: u64) {
        let _ = self.requests.send(Request::Close { connection });
    }

    /// What has to be told when `lease` ends.
    pub fn rights(&self, lease: u64) -> Arc<dyn Rights> {
        Arc::new(LeaseRights { requests: self.requests.clone(), lease })
    }
}

fn refuse_all(received: &Receiver<Request>, told: &OnceLock<Result<(), String>>, reason: &str) {
    let _ = told.set(Err(reason.to_owned()));
    for request in received {
        match request {
            Request::Connect { reply, .. } => {
                let _ = reply.send(Err(RdmaError::Unregistered(reason.to_owned())));
            }
            Request::Close { .. } => (),
            Request::Revoke { closing, .. } => closing.closed(),
        }
    }
}

/// What the thread owns.
struct Serving {
    domain: Domain,
    region: Arc<Region>,
    announcement: Announcement,
    windows: bool,
    /// By connection.
    clients: HashMap<u64, Client>,
    limit: usize,
    /// How many clients there are, for others.
    count: Arc<AtomicUsize>,
}

/// A client that may read.
struct Client {
    queue: ServeQueue<Slot>,
    lease: u64,
    /// That of its window.
    key: Option<u32>,
}

impl Serving {
    fn run(mut self, received: &Receiver<Request>) {
        for request in received {
            match request {
                Request::Connect { connection, lease, peer, reply } => {
                    // A client that asks again has given up what it had.
                    self.clients.remove(&connection);
                    let granted = self.connect(connection, lease, &peer);
                    if let Err(error) = &granted {
                        tracing::debug!("RDMA for connection {connection}: {error}");
                    }
                    if reply.send(granted).is_err() {
                        self.clients.remove(&connection);
                    }
                }
                Request::Close { connection } => drop(self.clients.remove(&connection)),
                Request::Revoke { lease, closing } => {
                    self.revoke(lease);
                    closing.closed();
                }
            }
            self.count.store(self.clients.len(), Ordering::Relaxed);
        }
    }

    fn connect(
        &mut self,
        connection: u64,
        lease: u64,
        peer: &Endpoint,
    ) -> Result<Granted, RdmaError> {
        if self.clients.len() >= self.limit {
            return Err(RdmaError::Full(self.limit));
        }
        let mut queue = self.domain.serve(DEPTH)?;
        queue.connect(peer, &Settings::for_device(self.domain.fabric().device()))?;
        let (address, key, window) = if self.windows {
            let window = self.domain.window()?;
            let whole = 0..self.region.length();
            let bound = queue.bind_read(0, window, &self.region, whole);
            let remote = bound.map_err(|refused| refused.error)?;
            let Completion { status, .. } = complete(&mut queue)?;
            if !status.is_success() {
                return Err(RdmaError::Window(status));
            }
            (remote.address, remote.key, Some(remote.key))
        } else {
            (self.region.address(), self.region.key().unwrap_or(0), None)
        };
        let endpoint = queue.endpoint();
        self.clients.insert(connection, Client { queue, lease, key: window });
        Ok(Granted { announcement: self.announcement, address, key, endpoint })
    }

    /// Takes the rights back that were given for `lease`.
    fn revoke(&mut self, lease: u64) {
        let holders = |client: &(&u64, &mut Client)| client.1.lease == lease;
        let mut useless = Vec::new();
        for (connection, client) in self.clients.iter_mut().filter(holders) {
            let Some(key) = client.key.take() else {
                useless.push(*connection);
                continue;
            };
            let ended = client.queue.invalidate(0, key).map_err(RdmaError::from);
            let completed = ended.and_then(|()| complete(&mut client.queue));
            let dead = completed.is_ok_and(|done| matches!(done.item, Served::Free { .. }));
            if !dead {
                // The end of the queue is the end of its windows.
                useless.push(*connection);
            }
        }
        for connection in useless {
            self.clients.remove(&connection);
        }
    }
}

/// Waits for the one change that is on its way.
fn complete(queue: &mut ServeQueue<Slot>) -> Result<Completion<Served<Slot>>, RdmaError> {
    let deadline = Instant::now() + PATIENCE;
    let mut completions = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        queue.wait(&mut completions, left)?;
        if let Some(completion) = completions.pop() {
            return Ok(completion);
        }
        if left.is_zero() {
            return Err(RdmaError::Silent);
        }
    }
}
