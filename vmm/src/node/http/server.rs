//! The agent as a server: from its sockets to its end.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use imgcache::tls::{self, TlsConfig, TlsError};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::hub::Hub;
use super::listen::{self, ListenError};
use super::metrics::Metrics;
use super::options::HttpOptions;
use super::trace::Tracer;
use super::usage::Sampler;
use super::{Agent, STREAMS, Shared, THREADS, TURNS, connection, router};
use crate::node::Node;

/// Connections at a time; one more waits until one ends. Those that ask for nothing end soon.
const CONNECTIONS: usize = 1024;
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause when no connection can be accepted, for want of files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long requests may go on when the agent ends.
const GOODBYE: Duration = Duration::from_secs(3);

/// Why the agent cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The files of TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// TLS lacks a file.
    #[error("--listen needs --tls-cert, --tls-key and --tls-client-ca")]
    NoTls,
    /// The system's refusal.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl ServeError {
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// An agent that listens.
pub struct Server {
    runtime: Runtime,
    unix: UnixListener,
    tcp: Option<(TcpListener, TlsAcceptor)>,
    socket: PathBuf,
    address: Option<SocketAddr>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens; nobody is served yet. `socket` is where unless the options say otherwise.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn listen(options: &HttpOptions, socket: PathBuf) -> Result<Self, ServeError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(THREADS)
            .thread_stack_size(512 << 10)
            .thread_name("api")
            .enable_all()
            .build()
            .map_err(ServeError::system("start threads"))?;
        let socket = options.socket.clone().unwrap_or(socket);
        let inside = runtime.enter();
        // First, as what is wrong with its files is to be known before the socket is there.
        let tcp = options.listen.map(|address| tls_listener(options, address)).transpose()?;
        let unix = listen::unix(&socket, options.socket_group.as_deref())?;
        let address = tcp.as_ref().and_then(|(listener, _)| listener.local_addr().ok());
        drop(inside);
        Ok(Self { runtime, unix, tcp, socket, address })
    }

    /// The path of the socket.
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// The TCP address that it listens at.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Serves until a SIGTERM or SIGINT; calls `ready` when it does.
    ///
    /// # Errors
    /// No threads, or signals cannot be waited for.
    pub fn serve(
        self,
        node: &Node,
        tracer: Option<Tracer>,
        ready: impl FnOnce(),
    ) -> Result<(), ServeError> {
        let Self { runtime, unix, tcp, socket, address: _ } = self;
        let metrics = Arc::new(Metrics::default());
        let hub = Hub::start(node, metrics.clone(), tracer)
            .map_err(ServeError::system("start a thread"))?;
        let (end, ending) = watch::channel(false);
        let shared = Shared {
            node: node.clone(),
            hub,
            usage: Arc::new(Sampler::default()),
            metrics: metrics.clone(),
            turns: Semaphore::new(TURNS),
            streams: Arc::new(Semaphore::new(STREAMS)),
            ending: ending.clone(),
        };
        let router = router(Agent(Arc::new(shared)));
        let clients = Clients { router, metrics, ending };
        runtime.block_on(async {
            let hear = |kind| signal(kind).map_err(ServeError::system("wait for signals"));
            let mut terminate = hear(SignalKind::terminate())?;
            let mut interrupt = hear(SignalKind::interrupt())?;
            let places = Arc::new(Semaphore::new(CONNECTIONS));
            let mut tasks = JoinSet::new();
            tasks.spawn(accept(clients.clone(), places.clone(), unix));
            if let Some((listener, acceptor)) = tcp {
                tasks.spawn(accept_tls(clients, places.clone(), listener, acceptor));
            }
            ready();
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            // Nobody else comes; who is there has a little time.
            let _ = end.send(true);
            let _ = std::fs::remove_file(&socket);
            let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
            let gone = timeout(GOODBYE, async {
                while tasks.join_next().await.is_some() {}
                let _ = places.acquire_many(all).await;
            });
            let _ = gone.await;
            Ok::<(), ServeError>(())
        })?;
        // What still waits for a VM is left to it.
        runtime.shutdown_background();
        Ok(())
    }
}

fn tls_listener(
    options: &HttpOptions,
    address: SocketAddr,
) -> Result<(TcpListener, TlsAcceptor), ServeError> {
    let (Some(certificates), Some(key), Some(authorities)) =
        (&options.tls_cert, &options.tls_key, &options.tls_client_ca)
    else {
        return Err(ServeError::NoTls);
    };
    let config = tls::load(&TlsConfig {
        certificates: certificates.clone(),
        key: key.clone(),
        client_authorities: Some(authorities.clone()),
    })?;
    Ok((listen::tcp(address)?, TlsAcceptor::from(Arc::new(config))))
}

/// What each connection is served with.
#[derive(Clone)]
struct Clients {
    router: Router,
    metrics: Arc<Metrics>,
    ending: watch::Receiver<bool>,
}

impl Clients {
    async fn place(&self, places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        let mut ending = self.ending.clone();
        tokio::select! {
            place = places.clone().acquire_owned() => place.ok(),
            () = connection::ended(&mut ending) => None,
        }
    }

    /// The next connection; nothing when the agent ends.
    async fn next<L: Listener>(&self, listener: &L) -> Option<L::Stream> {
        let mut ending = self.ending.clone();
        loop {
            tokio::select! {
                accepted = listener.next() => match accepted {
                    Ok(stream) => return Some(stream),
                    Err(error) => {
                        tracing::warn!("no connection can be accepted: {error}");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                () = connection::ended(&mut ending) => return None,
            }
        }
    }
}

/// What connections come from.
trait Listener: Sync {
    type Stream: Send;

    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Listener for TcpListener {
    type Stream = (TcpStream, SocketAddr);

    async fn next(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.accept().await
    }
}

/// Accepts connections until the agent ends.
async fn accept(clients: Clients, places: Arc<Semaphore>, listener: UnixListener) {
    while let Some(place) = clients.place(&places).await {
        let Some(stream) = clients.next(&listener).await else { return };
        let Clients { router, metrics, ending } = clients.clone();
        tokio::spawn(async move {
            connection::serve(stream, router, metrics, ending).await;
            drop(place);
        });
    }
}

/// The same, of connections by TLS.
async fn accept_tls(
    clients: Clients,
    places: Arc<Semaphore>,
    listener: TcpListener,
    acceptor: TlsAcceptor,
) {
    while let Some(place) = clients.place(&places).await {
        let Some((stream, peer)) = clients.next(&listener).await else { return };
        let (clients, acceptor) = (clients.clone(), acceptor.clone());
        tokio::spawn(async move {
            // What is typed at a console goes at once.
            let _ = stream.set_nodelay(true);
            match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let Clients { router, metrics, ending } = clients;
                    connection::serve(stream, router, metrics, ending).await;
                }
                Ok(Err(error)) => {
                    clients.metrics.refused();
                    tracing::info!(%peer, "TLS handshake: {error}");
                }
                Err(_) => {
                    clients.metrics.refused();
                    tracing::info!(%peer, "TLS handshake: it takes too long");
                }
            }
            drop(place);
        });
    }
}
