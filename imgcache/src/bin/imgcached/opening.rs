//! Opening the cache beside everything else: with a large file it takes minutes.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use imgcache::node::cache::{Cache, CacheConfig, CacheError, Now, OpenStep, Progress};
use imgcache::node::server::Opening;
use tokio::sync::oneshot;

use imgcache::notify;

/// For how long the service manager is to wait for more, each time that it is told.
const EXTENSION: Duration = Duration::from_secs(60);
/// Time between two times.
const PAUSE: Duration = Duration::from_secs(1);

/// The opening, which ends when this is dropped, as soon as it sees it.
#[derive(Debug)]
pub struct Opener {
    stop: Arc<AtomicBool>,
    opened: oneshot::Receiver<Result<Cache, CacheError>>,
}

impl Opener {
    /// Starts it in a thread of its own, which tells `opening` and the service manager how far it is.
    ///
    /// # Errors
    /// There is no thread.
    pub fn start(config: CacheConfig, opening: Option<Arc<Opening>>) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (sender, opened) = oneshot::channel();
        thread::Builder::new().name("open".into()).spawn(move || {
            let mut told = None;
            let mut watch = |progress: Progress| {
                if let Some(opening) = &opening {
                    opening.set(progress.done, progress.all);
                }
                tell(&mut told, progress);
                if stopped.load(Ordering::Relaxed) {
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            };
            let opened = Cache::open_watched(&config, Now::system(), &mut watch);
            // Whoever asked for it may not want it any more.
            let _ = sender.send(opened.map(|(cache, _)| cache));
        })?;
        Ok(Self { stop, opened })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The cache's.
    pub async fn wait(&mut self) -> Result<Cache, CacheError> {
        // The thread always sends, but for a bug, which its own message tells.
        (&mut self.opened).await.unwrap_or(Err(CacheError::Stopped))
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Tells the service manager how far it is and that it goes on, if there was time since the last.
fn tell(told: &mut Option<Instant>, progress: Progress) {
    if told.is_some_and(|told| told.elapsed() < PAUSE) {
        return;
    }
    *told = Some(Instant::now());
    let Progress { step, done, all } = progress;
    let what = match step {
        OpenStep::Scan => "index entries looked at",
        OpenStep::Verify => "items verified",
    };
    let extension = EXTENSION.as_micros();
    let state = format!("EXTEND_TIMEOUT_USEC={extension}\nSTATUS={done} of {all} {what}");
    if let Err(error) = notify::tell(&state) {
        tracing::warn!("cannot tell the service manager: {error}");
    }
}
