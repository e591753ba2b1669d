//! What a node's endpoints are made of, and the threads that keep them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use endpoint::directory::cache::{Cache, CacheError};
use endpoint::directory::etcd::{EtcdDirectory, EtcdOptions};
use endpoint::directory::local::LocalDirectory;
use endpoint::directory::{Directory, DirectoryError, Update};
use endpoint::keeper::{Keeper, KeeperOptions, Note};
use endpoint::record::{Owner, Record};
use endpoint::vid::Vid;
use imgcache::transport::cluster::{Tls, TlsFiles};

use super::error::EndpointError;
use super::guests::{Guests, Outcome};
use super::links::Links;
use super::moves::{Moves, Order};
use super::options::{DirectorySpec, EndpointOptions};
use super::peers::Peer;
use super::store::Store;
use super::switches::{self, Switches};
use super::{Counts, Endpoints, Fence, GuestCall, Hearing, Inner};
use crate::api::client::{Client, NodeAddress};

/// Threads that carry out what guests ask for and may wait; a move has one of its own.
const WORKERS: usize = 4;
/// Commands of guests that wait for them.
const MOST_CALLS: usize = 256;
/// How often VMs' processes are told that the lease holds.
const EXTEND: Duration = Duration::from_secs(1);

/// The name that the system has.
fn system_name() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy().into_owned();
    if name.is_empty() { "localhost".into() } else { name }
}

impl Endpoints {
    /// Opens the directory and takes the lease; what an agent before this one has noted in `folder` is found.
    ///
    /// # Errors
    /// The directory does not answer, another agent has the host's name, or the system's refusal.
    pub fn open(options: &EndpointOptions, folder: &Path) -> Result<Self, EndpointError> {
        let host = options.host_name.clone().unwrap_or_else(system_name);
        let owner: Owner = host.parse()?;
        let store = Store::open(folder);
        let is_own = options.directory == DirectorySpec::Local;
        let directory: Arc<dyn Directory> = match &options.directory {
            DirectorySpec::Local => {
                let directory = LocalDirectory::with(store.records(), own_addresses());
                Arc::new(directory.map_err(EndpointError::system("keep a directory"))?)
            }
            DirectorySpec::Etcd(members) => {
                let (members, reserved) = (members.clone(), own_addresses());
                let options = EtcdOptions { members, reserved, ..EtcdOptions::default() };
                Arc::new(EtcdDirectory::new(options)?)
            }
        };
        let cache = Cache::new(&*directory).map_err(|error| match error {
            CacheError::Directory(error) => EndpointError::Directory(error),
            CacheError::Thread(error) => EndpointError::System("follow the directory", error),
        })?;
        let guests = Arc::new(Guests::default());
        let keeping = KeeperOptions::default();
        if !is_own {
            guests.valid_until(Instant::now() + keeping.lease);
        }
        let fence = Box::new(Fence { host: host.clone(), guests: guests.clone() });
        // The VMs live on when this agent ends, and so does what they serve: the next one goes on.
        let note = (!is_own).then(|| Note::at(store.lease()));
        let keeper = lease(&directory, &owner, keeping, fence, note.as_ref())?;
        let switches = Switches::default();
        let peers = peers(options)?;
        if let Some(tunnel) = &options.tunnel {
            let others: Vec<IpAddr> = peers.values().map(Peer::tunnel).collect();
            switches.open_tunnel(tunnel, &others)?;
        }
        let inner = Arc::new(Inner {
            host,
            owner,
            directory,
            is_own,
            cache,
            keeper,
            guests,
            switches,
            peers,
            store,
            moves: Moves::default(),
            links: Mutex::new(None),
            calls: Mutex::new(None),
            damping: Mutex::default(),
            damped: options.damping,
            since: Instant::now(),
            counts: Counts::default(),
        });
        let links = Links::start(Box::new(Hearing(Arc::downgrade(&inner))));
        let links = links.map_err(EndpointError::system("hear guests"))?;
        *inner.links.lock().unwrap_or_else(PoisonError::into_inner) = Some(links);
        let this = Self(inner);
        this.start_workers().map_err(EndpointError::system("start a thread"))?;
        this.follow().map_err(EndpointError::system("start a thread"))?;
        Ok(this)
    }

    /// The VMs of an agent before this one are connected: what was left of its moves is ended.
    pub fn begin(&self) {
        self.aside(|this| this.look_after(true));
    }

    /// Does something for moves that may take its time.
    fn aside(&self, deed: impl FnOnce(&Self) + Send + 'static) {
        let this = self.clone();
        let spawned =
            thread::Builder::new().name("endpoint-moves".into()).spawn(move || deed(&this));
        if let Err(error) = spawned {
            log::error!("moves that were left are not ended: {error}");
        }
    }

    /// The agent of another host.
    pub(super) fn peer(&self, host: &str) -> Result<&Peer, EndpointError> {
        self.0.peers.get(host).ok_or_else(|| EndpointError::NoPeer(host.to_owned()))
    }

    /// Does what the agent of another host wants done.
    pub fn carry_out_order(&self, order: &Order) -> Outcome {
        self.obey(order)
    }

    /// A command of a guest for the workers.
    pub(super) fn hand_over(&self, call: GuestCall) {
        let (vm, ticket) = (call.vm, call.ticket);
        let calls = self.0.calls.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let handed = calls.is_some_and(|calls| calls.try_send(call).is_ok());
        if !handed && let Some(guest) = self.guests().lock().get_mut(vm) {
            guest.complete(ticket, Err(control_abi::status::Error::Busy));
        }
    }

    fn start_workers(&self) -> std::io::Result<()> {
        let (sender, received) = sync_channel::<GuestCall>(MOST_CALLS);
        let received = Arc::new(Mutex::new(received));
        for _ in 0..WORKERS {
            let (received, inner) = (received.clone(), Arc::downgrade(&self.0));
            thread::Builder::new().name("endpoint-calls".into()).spawn(move || {
                loop {
                    let next = received.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let (Ok(call), Some(this)) = (next, inner.upgrade().map(Self)) else { return };
                    this.serve_or_spawn(call);
                }
            })?;
        }
        *self.0.calls.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        Ok(())
    }

    /// A move takes long, and others are not to wait for it.
    fn serve_or_spawn(&self, call: GuestCall) {
        if !call.is_long() {
            return self.serve(&call);
        }
        let (vm, ticket, this) = (call.vm, call.ticket, self.clone());
        let spawned = thread::Builder::new()
            .name("endpoint-move".into())
            .stack_size(512 << 10)
            .spawn(move || this.serve(&call));
        if spawned.is_err()
            && let Some(guest) = self.guests().lock().get_mut(vm)
        {
            guest.complete(ticket, Err(control_abi::status::Error::Busy));
        }
    }

    /// Follows the directory: this node's switches lead to where identifiers of other hosts are, and moves to
    /// this node whose hosts are gone are ended.
    fn follow(&self) -> std::io::Result<()> {
        let (inner, is_own) = (Arc::downgrade(&self.0), self.0.is_own);
        thread::Builder::new()
            .name("endpoint-watch".into())
            .spawn(move || watch(&inner, is_own))?;
        // By itself: a daemon that stands still is waited for.
        let inner = Arc::downgrade(&self.0);
        thread::Builder::new().name("endpoint-switches".into()).spawn(move || {
            while let Some(this) = inner.upgrade().map(Self) {
                this.look_after_switches();
                drop(this);
                thread::sleep(EXTEND);
            }
        })?;
        Ok(())
    }

    /// Leads frames to where records say, as far as that is another host.
    pub(super) fn lead(&self, records: &[Record]) {
        for record in records {
            let route = record.route();
            // What comes here is led to its VM by the move.
            if route.host() == self.0.host || self.is_coming(record.range) {
                continue;
            }
            let Ok(peer) = self.peer(route.host()) else { continue };
            let port = vswitch::Port::Remote(peer.tunnel());
            for (bridge, switch) in self.0.switches.all() {
                let change = |_: &mut dyn endpoint::keeper::Gate| {
                    switches::point(&switch, record.range, Some(port))
                };
                if let Some(Err(error)) = self.0.keeper.with_gate(change) {
                    log::debug!("{} on {bridge}: {error}", record.range);
                }
            }
        }
    }

    /// Looks after switches that are other programs: one that was gone is told again where all is.
    fn look_after_switches(&self) {
        if self.0.switches.look() {
            let records: Vec<Record> =
                self.0.cache.list().into_iter().map(|entry| entry.record).collect();
            self.lead(&records);
        }
    }

    /// Identifiers are nobody's any more: those that led to other hosts lead nowhere.
    fn mislead(&self, removed: &[endpoint::range::Range]) {
        for range in removed {
            if self.0.cache.find(range.first()).is_some() {
                continue;
            }
            for (bridge, switch) in self.0.switches.all() {
                if let Err(error) = switches::point(&switch, *range, None) {
                    log::debug!("{range} on {bridge}: {error}");
                }
            }
        }
    }
}

/// Until the endpoints are dropped.
fn watch(inner: &Weak<Inner>, is_own: bool) {
    let mut followed = None;
    let (mut told, mut looked) = (Instant::now(), Instant::now());
    loop {
        let Some(this) = inner.upgrade().map(Endpoints) else { return };
        if !is_own && told.elapsed() >= EXTEND {
            told = Instant::now();
            this.0.guests.extend(this.0.keeper.remaining());
        }
        if looked.elapsed() >= EXTEND {
            looked = Instant::now();
            if this.has_some_left() {
                this.aside(Endpoints::end_what_is_left);
            }
        }
        let updates = followed.get_or_insert_with(|| this.0.cache.follow());
        // Not kept alive while it is waited.
        drop(this);
        let update = updates.recv_timeout(Duration::from_millis(250));
        let Some(this) = inner.upgrade().map(Endpoints) else { return };
        match update {
            Ok(Update::All { records, .. }) => this.lead(&records),
            Ok(Update::Records { removed, put }) => {
                this.lead(&put);
                this.mislead(&removed);
            }
            Ok(Update::Owner { is_alive: false, .. }) => {
                this.aside(|this| this.look_after(false));
            }
            Ok(Update::Owner { .. }) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                // It was too slow, or the directory is gone for good.
                followed = None;
                thread::sleep(Duration::from_millis(250));
            }
        }
    }
}

/// The lease of this host's name: that of the agent before this one, or, if it was not noted here, another when that
/// has ended by itself.
fn lease(
    directory: &Arc<dyn Directory>,
    owner: &Owner,
    options: KeeperOptions,
    fence: Box<Fence>,
    note: Option<&Note>,
) -> Result<Keeper, EndpointError> {
    let (host, guests) = (fence.host.clone(), fence.guests.clone());
    let mut gate = fence;
    let begun = Instant::now();
    loop {
        match Keeper::start(directory.clone(), owner.clone(), options, gate, note.cloned()) {
            Ok(keeper) => return Ok(keeper),
            Err(endpoint::keeper::KeeperError::Directory(DirectoryError::OwnerExists(_)))
                if begun.elapsed() < options.lease * 2 =>
            {
                log::info!("waiting for the lease of the agent before this one to end");
                gate = Box::new(Fence { host: host.clone(), guests: guests.clone() });
                thread::sleep(Duration::from_millis(500));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The addresses of this host's interfaces that look like identifiers: nobody gets those.
fn own_addresses() -> Vec<Vid> {
    let folder = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let address = |entry: std::fs::DirEntry| {
        let text = std::fs::read_to_string(entry.path().join("address")).ok()?;
        text.trim().parse().ok()
    };
    folder.filter_map(address).collect()
}

fn peers(options: &EndpointOptions) -> Result<BTreeMap<String, Peer>, EndpointError> {
    let files = TlsFiles {
        authorities: options.peer_tls_ca.clone(),
        certificate: options.peer_tls_cert.clone(),
        key: options.peer_tls_key.clone(),
        server_name: None,
    };
    let mut peers = BTreeMap::new();
    for spec in &options.peer {
        let tls = match spec.agent {
            NodeAddress::Unix(_) => None,
            NodeAddress::Https { .. } => {
                let failed = |why: String| EndpointError::Peer { host: spec.name.clone(), why };
                if files.authorities.is_none() || files.certificate.is_none() {
                    let missing = "it needs --peer-tls-ca, --peer-tls-cert and --peer-tls-key";
                    return Err(failed(missing.into()));
                }
                Some(Tls::new(&files).map_err(|error| failed(error.to_string()))?.config())
            }
        };
        let peer = Peer::new(Client::new(spec.agent.clone(), tls), spec.tunnel);
        peers.insert(spec.name.clone(), peer);
    }
    Ok(peers)
}
