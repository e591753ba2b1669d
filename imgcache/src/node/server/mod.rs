//! The memcached server of a storage node: listeners, connections, statistics, metrics, and an
//! orderly end.
//!
//! - [`config`]: how it is set up;
//! - `listen`, `tls`, `stream`: from an address to a byte stream;
//! - `workers`, `connection`, `input`, `output`, `transfer`: one connection;
//! - `execute`: what the commands do, `slow`: those that take long;
//! - `stats`, `metrics`, `http`: what can be seen of it.

mod budget;
mod config;
mod connection;
mod connections;
mod counters;
mod error;
mod execute;
mod files;
mod http;
mod input;
mod listen;
mod log;
mod metrics;
mod output;
mod slow;
mod stats;
mod stream;
mod tls;
mod transfer;
mod workers;

use std::hash::RandomState;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

pub use self::config::{RdmaChoice, ServerConfig, TlsConfig, UnixConfig};
use self::connections::{Address, Connections};
use self::counters::ServerCounters;
pub use self::error::ServerError;
pub use self::files::{DEFAULT_CONNECTIONS, raise_open_files};
pub use self::http::{Http, Opening};
use self::tls::Tls;
pub use self::tls::TlsError;
use crate::node::cache::{Cache, Now};
use crate::node::push::{Push, PushChoice, PushOff};
use crate::node::rdma::Rdma;

/// Memory for long lines and lists of keys, of all connections together, in bytes.
const INPUT_BUDGET: usize = 64 << 20;
/// How long a connection's end may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// Time between looks at whether draining is done.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// What all connections share.
#[derive(Debug)]
struct Shared {
    cache: Arc<Cache>,
    config: ServerConfig,
    addresses: Addresses,
    counters: ServerCounters,
    reset: stats::Reset,
    connections: Arc<Connections>,
    input_budget: budget::Budget,
    tls: Option<Arc<Tls>>,
    rdma: Option<Rdma>,
    /// Pushes by RDMA, or why there are none.
    push: Result<Push, PushOff>,
    workers: workers::Workers,
    slow: slow::Lanes,
    /// What leases are called in statistics: by a hash with a key that nobody knows.
    lease_names: RandomState,
    log: log::RateLimited,
    started: Now,
    stage: AtomicU8,
    /// Each connection is closed when it has carried out the request that it has.
    is_ending: AtomicBool,
}

/// How far in its life a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Stage {
    /// Nothing is served yet.
    Opening,
    /// Requests are taken.
    Ready,
    /// It is about to end.
    Draining,
}

impl Shared {
    fn stage(&self) -> Stage {
        let stage = self.stage.load(Ordering::Acquire);
        let stages = [Stage::Opening, Stage::Ready, Stage::Draining];
        stages.into_iter().find(|known| *known as u8 == stage).unwrap_or(Stage::Draining)
    }

    fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Acquire)
    }

    fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Release);
    }
}

/// Where a server really listens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// For memcached clients.
    pub tcp: Vec<SocketAddr>,
    /// The same.
    pub unix: Option<PathBuf>,
    /// For metrics and health.
    pub http: Option<SocketAddr>,
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// All leases and requests had ended.
    Whole,
    /// Time was up.
    TimedOut {
        /// Leases that were still held, and pushes that were open.
        leases: u64,
        /// Connections with an unfinished request.
        busy: usize,
    },
}

/// A server that listens and does not accept yet.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    tcp: Vec<(TcpListener, SocketAddr)>,
    unix: Option<(UnixListener, PathBuf)>,
    http: Option<Http>,
}

/// Reads certificates again.
#[derive(Debug, Clone)]
pub struct Reload(Option<Arc<Tls>>);

impl Reload {
    /// Reads the files of TLS again, if there are any. New connections go by them.
    ///
    /// # Errors
    /// If anything is wrong with them; it then stays as it was.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.0.as_ref().map_or(Ok(()), |tls| tls.reload())
    }
}

impl Server {
    /// Listens on all addresses, and has `http` tell of it. Needs a tokio runtime.
    ///
    /// # Errors
    /// If one of them cannot be listened on, or with TLS that cannot be had.
    pub fn bind(
        cache: Arc<Cache>,
        config: ServerConfig,
        http: Option<Http>,
    ) -> Result<Self, ServerError> {
        if config.listen.is_empty() && config.unix.is_none() {
            return Err(ServerError::NothingToListenOn);
        }
        let tls = config.tls.clone().map(Tls::open).transpose()?.map(Arc::new);
        let listen = |address| {
            let listener = listen::tcp(address)?;
            let bound = listener.local_addr();
            Ok((listener, bound.map_err(|source| ServerError::Listen { address, source })?))
        };
        let tcp: Vec<_> =
            config.listen.iter().copied().map(listen).collect::<Result<_, ServerError>>()?;
        let unix = match &config.unix {
            Some(unix) => Some((listen::unix(unix)?, unix.path.clone())),
            None => None,
        };
        let addresses = Addresses {
            tcp: tcp.iter().map(|(_, address)| *address).collect(),
            unix: unix.as_ref().map(|(_, path)| path.clone()),
            http: http.as_ref().map(Http::address),
        };
        let rdma = rdma(&config.rdma, &addresses, &cache)?;
        let push = push(&config.rdma, rdma.as_ref(), &cache)?;
        let threads = config.threads;
        let shared = Arc::new(Shared {
            cache,
            connections: Arc::new(Connections::new(config.max_connections)),
            config,
            addresses,
            counters: ServerCounters::default(),
            reset: stats::Reset::default(),
            input_budget: budget::Budget::new(INPUT_BUDGET),
            tls,
            rdma,
            push,
            workers: workers::Workers::start(threads).map_err(ServerError::Threads)?,
            slow: slow::Lanes::default(),
            lease_names: RandomState::new(),
            log: log::RateLimited::default(),
            started: Now::system(),
            stage: AtomicU8::new(Stage::Opening as u8),
            is_ending: AtomicBool::new(false),
        });
        if let Some(http) = &http {
            http.attach(&shared);
        }
        Ok(Self { shared, tcp, unix, http })
    }

    /// Where it listens, with the ports that were really got.
    pub fn addresses(&self) -> &Addresses {
        &self.shared.addresses
    }

    /// For reading certificates again while it runs.
    pub fn reload(&self) -> Reload {
        Reload(self.shared.tls.clone())
    }

    /// Serves until `stop`; then gives no leases any more and waits for those that there are, and
    /// for requests.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Drained {
        let Self { shared, tcp, unix, http: _http } = self;
        let mut accepting = JoinSet::new();
        let socket_file = unix.as_ref().map(|(_, path)| path.clone());
        for (listener, local) in tcp {
            accepting.spawn(listen::accept_tcp(shared.clone(), listener, local));
        }
        if let Some((listener, path)) = unix {
            let local = Address::Unix(Arc::new(path));
            accepting.spawn(listen::accept_unix(shared.clone(), listener, local));
        }
        let maintaining = tokio::spawn(maintain(shared.clone()));
        shared.set_stage(Stage::Ready);
        stop.await;
        let drained = drain(&shared, accepting).await;
        maintaining.abort();
        if let Some(path) = socket_file {
            // Whoever started in its place may have removed it.
            let _ = std::fs::remove_file(path);
        }
        shared.connections.kick_all();
        let all_gone = async {
            while shared.connections.count() > 0 {
                sleep(DRAIN_LOOK).await;
            }
        };
        let _ = timeout(GOODBYE, all_gone).await;
        drained
    }
}

/// Begins to let clients read by RDMA, where there is a device, or there must be one.
fn rdma(
    choice: &RdmaChoice,
    addresses: &Addresses,
    cache: &Cache,
) -> Result<Option<Rdma>, ServerError> {
    let (config, required) = match choice {
        RdmaChoice::Off => return Ok(None),
        RdmaChoice::Auto(config) => (config, false),
        RdmaChoice::Required(config) => (config, true),
    };
    let addresses: Vec<_> = addresses.tcp.iter().map(SocketAddr::ip).collect();
    match Rdma::start(config, &addresses, cache.arena().memory(), cache.announcement()) {
        Ok(rdma) => Ok(Some(rdma)),
        Err(error) if required => Err(error.into()),
        Err(error) => {
            tracing::info!("no RDMA: {error}");
            Ok(None)
        }
    }
}

/// Begins to let clients push by RDMA, where that is wanted and can be had.
fn push(
    choice: &RdmaChoice,
    rdma: Option<&Rdma>,
    cache: &Arc<Cache>,
) -> Result<Result<Push, PushOff>, ServerError> {
    let (RdmaChoice::Auto(config) | RdmaChoice::Required(config)) = choice else {
        return Ok(Err(PushOff::NoRdma));
    };
    let allowed = match rdma {
        None => Err(PushOff::NoRdma),
        Some(rdma) => config.push.allows(&rdma.facts().device).map(|()| rdma),
    };
    let started = allowed.and_then(|rdma| {
        Push::start(rdma.fabric(), cache, config.max_exposed_permille)
            .map_err(|error| PushOff::Device(error.to_string()))
    });
    match (&started, config.push) {
        (Err(off), PushChoice::On) => return Err(ServerError::Push(off.clone())),
        (Err(off), _) if rdma.is_some() => tracing::info!("no pushes by RDMA: {off}"),
        _ => (),
    }
    Ok(started)
}

/// Waits for leases and pushes, during which everything but new ones is served; then for the requests that have
/// begun, during which nothing else is.
async fn drain(shared: &Shared, mut accepting: JoinSet<()>) -> Drained {
    shared.set_stage(Stage::Draining);
    shared.cache.set_draining(true);
    let deadline = Instant::now() + shared.config.drain_timeout;
    let held = || {
        let counters = shared.cache.counters();
        let pushes = shared.push.as_ref().map_or(0, Push::open);
        counters.leases + counters.closing_leases + pushes
    };
    let mut leases = held();
    while leases > 0 && Instant::now() < deadline {
        sleep(DRAIN_LOOK).await;
        leases = held();
    }
    accepting.shutdown().await;
    if leases > 0 {
        return Drained::TimedOut { leases, busy: shared.connections.busy() };
    }
    shared.is_ending.store(true, Ordering::Release);
    loop {
        shared.connections.send_idle_away();
        if shared.connections.count() == 0 {
            return Drained::Whole;
        }
        if Instant::now() >= deadline {
            return match shared.connections.busy() {
                0 => Drained::Whole,
                busy => Drained::TimedOut { leases, busy },
            };
        }
        sleep(DRAIN_LOOK).await;
    }
}

/// What is done once a second.
async fn maintain(shared: Arc<Shared>) {
    let mut tick = interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let now = Now::system();
        shared.cache.maintenance(now);
        let ServerConfig { idle_timeout, stall_timeout, .. } = shared.config;
        shared.connections.sweep(idle_timeout, stall_timeout, now.monotonic, &shared.counters);
    }
}
