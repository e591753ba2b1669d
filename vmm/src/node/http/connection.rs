//! A connection, from its beginning to its end: slow clients are cut off.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_io_timeout::TimeoutStream;

use super::metrics::Metrics;

/// How long the head of a request may take to come, and how long a connection may be without one.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// How long a client may not take what it is sent.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);
/// The largest head of a request, and the most that is read ahead, in bytes.
const BUFFER: usize = 16 << 10;

/// Counts a connection for as long as it is there.
struct Counted(Arc<Metrics>);

impl Counted {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.connections.fetch_add(1, Ordering::Relaxed);
        Self(metrics.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves a connection until it ends, or until the request that it has is answered when `ending` says so.
pub async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    router: Router,
    metrics: Arc<Metrics>,
    mut ending: watch::Receiver<bool>,
) {
    let _counted = Counted::new(&metrics);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_PATIENCE));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = ended(&mut ending) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        metrics.refused();
        tracing::debug!("a connection was cut off: {error}");
    }
}

/// Waits until the agent ends.
pub async fn ended(ending: &mut watch::Receiver<bool>) {
    // Who would say so being gone is as good.
    let _ = ending.wait_for(|ending| *ending).await;
}
