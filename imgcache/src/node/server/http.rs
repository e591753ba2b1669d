//! Metrics and health over HTTP, from before the memory is there until the end.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::error::ServerError;
use super::{Shared, Stage, listen, metrics};

/// The media type of `OpenMetrics` 1.0.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Connections at once.
const CONNECTIONS: usize = 64;
/// How long a request may take to come.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long all of a connection may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause when no connection can be accepted, for want of files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves HTTP until it is dropped.
#[derive(Debug)]
pub struct Http {
    address: SocketAddr,
    node: Arc<Node>,
    task: JoinHandle<()>,
}

/// What is told of the node.
#[derive(Debug, Default)]
struct Node {
    /// There once the memory is.
    shared: OnceLock<Arc<Shared>>,
    opening: Arc<Opening>,
}

/// How far opening is, for those who ask.
#[derive(Debug, Default)]
pub struct Opening {
    done: AtomicU64,
    all: AtomicU64,
}

impl Opening {
    /// So much of it is done.
    pub fn set(&self, done: u64, all: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.all.store(all, Ordering::Relaxed);
    }

    /// How much is done, and how much it is.
    pub(super) fn get(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.all.load(Ordering::Relaxed))
    }
}

impl Http {
    /// Listens and serves. Needs a tokio runtime, which has to run.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn start(address: SocketAddr) -> Result<Self, ServerError> {
        let listener = listen::tcp(address)?;
        let address =
            listener.local_addr().map_err(|source| ServerError::Listen { address, source })?;
        let node = Arc::new(Node::default());
        let task = tokio::spawn(serve(node.clone(), listener));
        Ok(Self { address, node, task })
    }

    /// Where it really listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For telling how far opening is.
    pub fn opening(&self) -> Arc<Opening> {
        self.node.opening.clone()
    }

    /// From now on `shared` is what is told of; once only.
    pub(super) fn attach(&self, shared: &Arc<Shared>) {
        let _ = self.node.shared.set(shared.clone());
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(node: Arc<Node>, listener: TcpListener) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(node);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // One more waits in the listener's queue. The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => connections.spawn(answer(router.clone(), stream, place)),
            Err(error) => {
                tracing::debug!("no HTTP connection can be accepted: {error}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
    }
}

/// Answers one request.
async fn answer(router: Router, stream: TcpStream, _place: OwnedSemaphorePermit) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // Who does not read the answer does without.
    let _ = timeout(ANSWER_TIMEOUT, connection).await;
}

async fn metrics(State(node): State<Arc<Node>>) -> Response {
    let text = match node.shared.get() {
        Some(shared) => metrics::encode(shared),
        None => metrics::encode_opening(&node.opening),
    };
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn ready(State(node): State<Arc<Node>>) -> Response {
    let stage = node.shared.get().map_or(Stage::Opening, |shared| shared.stage());
    let not_yet = |text: &'static str| (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    match stage {
        Stage::Opening => not_yet("opening\n"),
        Stage::Ready => "ready\n".into_response(),
        Stage::Draining => not_yet("draining\n"),
    }
}
