//! Lets clients write chunks into the node's memory by RDMA, and publishes what they wrote.
//!
//! A push is one queue, with a window for writing over each of its slots. Its end, whatever it is (the
//! client's word, its time, its connection, the process), is in this order:
//! 1. the queue is destroyed, and its windows with it: nobody writes any more ([`Writers::end`]);
//! 2. what was written is hashed, by somebody else, beside the event loops;
//! 3. what its key says is published, all else is free memory again.
//!
//! Invalidating the windows would be enough on hardware. Soft-RoCE may be at one packet at that moment, and
//! waits for it only when the queue is destroyed (`rxe_cleanup_task`); so queues end everywhere, and a push
//! has one of its own.
//!
//! - [`table`]: which pushes are open, as a state machine over anything that can be written through;
//! - `windows`: queues and windows, for it;
//! - here: the thread that owns both, and is asked by messages.
//!
//! The memory is registered for this once more, the content alone and in a domain of its own: what readers
//! are given can never be written through, and the index by nobody.

pub mod table;
#[cfg(test)]
mod tests;
mod windows;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use self::table::{Begun, PushError, Pushes, Wanted, Writers, Written};
use self::windows::Windows;
use crate::node::cache::{Cache, Now};
use crate::transport::verbs::{Device, Domain, Endpoint, Export, Fabric, VerbsError};

/// How much of the memory may be exposed to writers at once, in thousandths, unless told otherwise.
pub const DEFAULT_EXPOSED_PERMILLE: u16 = 125;
/// Pushes that may be open at once.
const MAX_OPEN: usize = 64;
/// How long a push may take, from its beginning.
const TIME: Duration = Duration::from_secs(60);

/// Whether clients may write by RDMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PushChoice {
    /// Where the device keeps them to what they were given.
    #[default]
    Auto,
    /// On any device, or the node does not start.
    On,
    /// Not at all.
    Off,
}

/// Why clients cannot write by RDMA.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PushOff {
    /// It was not wanted.
    #[error("it is off (imgcached --rdma-push)")]
    Off,
    /// There is no RDMA at all.
    #[error("this node has no RDMA")]
    NoRdma,
    /// There would be no way to take the right back.
    #[error("RDMA device {0} has no memory windows")]
    NoWindows(String),
    /// A window opens more than itself.
    #[error(
        "RDMA device {0} does not enforce the bounds of memory windows: whoever may push could write to \
         all content (imgcached --rdma-push on allows it)"
    )]
    Unbounded(String),
    /// The device refused.
    #[error("{0}")]
    Device(String),
}

impl PushChoice {
    /// Whether clients may write through `device`.
    ///
    /// # Errors
    /// Why not.
    pub fn allows(self, device: &Device) -> Result<(), PushOff> {
        match self {
            Self::Off => Err(PushOff::Off),
            Self::Auto | Self::On if device.limits.windows == 0 => {
                Err(PushOff::NoWindows(device.name.clone()))
            }
            Self::Auto if !device.window_bounds_enforced() => {
                Err(PushOff::Unbounded(device.name.clone()))
            }
            Self::Auto | Self::On => Ok(()),
        }
    }
}

/// What may be open at once, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Pushes.
    pub pushes: usize,
    /// Bytes of memory that are exposed.
    pub exposed: u64,
    /// How long a push may take.
    pub time: Duration,
}

macro_rules! counters {
    ($(#[$doc:meta] $field:ident,)*) => {
        /// What is open, and what became of what was.
        #[derive(Debug, Default)]
        pub struct PushCounters {
            $(#[$doc] pub $field: AtomicU64,)*
        }

        impl PushCounters {
            /// All of them, with their names.
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters! {
    /// Pushes that are open.
    open,
    /// Bytes of memory that clients may be writing to.
    exposed,
    /// Pushes that were begun.
    begun,
    /// Chunks that were published.
    stored,
    /// Bytes of these.
    stored_bytes,
    /// Chunks that were there already when they were to be written.
    kept,
    /// Chunks for which there was no memory, or none that may be exposed.
    full,
    /// Chunks that were not what their key says, and were not published.
    damaged,
    /// Chunks that could not be published for another reason.
    failed,
    /// Chunks whose push took too long.
    expired,
    /// Chunks whose client was gone, or gave them up.
    abandoned,
    /// Chunks whose memory is lost, because the device did not end the queue.
    lost,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}

enum Request {
    Begin {
        connection: u64,
        peer: Box<Endpoint>,
        wanted: Vec<Wanted>,
        reply: oneshot::Sender<Result<Begun, PushError>>,
    },
    End {
        connection: u64,
        id: u64,
        written: usize,
        reply: oneshot::Sender<Result<Vec<Written>, PushError>>,
    },
    Close {
        connection: u64,
    },
}

/// The thread, for those who ask it. Ends when dropped.
#[derive(Debug)]
pub struct Push {
    requests: Sender<Request>,
    limits: Limits,
    counters: Arc<PushCounters>,
    registered: Arc<OnceLock<Result<(), String>>>,
}

impl Push {
    /// Begins to register the content of `cache` with the device of `fabric`, `permille` of which may be
    /// exposed at once.
    ///
    /// # Errors
    /// The device's.
    pub fn start(fabric: &Fabric, cache: &Arc<Cache>, permille: u16) -> Result<Self, VerbsError> {
        let domain = fabric.domain()?;
        let capacity = cache.counters().capacity;
        let exposed = capacity / 1000 * u64::from(permille.min(1000));
        let limits = Limits { pushes: MAX_OPEN, exposed, time: TIME };
        let (requests, received) = channel();
        let (counters, registered) = (Arc::default(), Arc::default());
        let (cache, counted, told) =
            (Arc::clone(cache), Arc::clone(&counters), Arc::clone(&registered));
        thread::Builder::new()
            .name("push".into())
            .spawn(move || serve(domain, cache, limits, counted, &told, &received))
            .map_err(|source| {
                let device = fabric.device().name.clone();
                VerbsError::Call { call: "pthread_create", device, source }
            })?;
        Ok(Self { requests, limits, counters, registered })
    }

    /// Whether clients can push; why they never will.
    ///
    /// # Errors
    /// The memory could not be registered.
    pub fn is_ready(&self) -> Result<bool, &str> {
        match self.registered.get() {
            None => Ok(false),
            Some(Ok(())) => Ok(true),
            Some(Err(reason)) => Err(reason),
        }
    }

    /// How many are open.
    pub fn open(&self) -> u64 {
        self.counters.open.load(Ordering::Relaxed)
    }

    /// What is open, and what became of what was.
    pub fn counters(&self) -> &PushCounters {
        &self.counters
    }

    /// What may be open.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Begins a push on `connection`, from the queue at `peer`.
    ///
    /// # Errors
    /// It cannot be begun; nothing of it was.
    pub async fn begin(
        &self,
        connection: u64,
        peer: Box<Endpoint>,
        wanted: Vec<Wanted>,
    ) -> Result<Begun, PushError> {
        match self.is_ready() {
            Ok(true) => (),
            Ok(false) => return Err(PushError::NotReady),
            Err(reason) => return Err(PushError::Unregistered(reason.to_owned())),
        }
        let (reply, answer) = oneshot::channel();
        let request = Request::Begin { connection, peer, wanted, reply };
        self.requests.send(request).map_err(|_| PushError::Ended)?;
        answer.await.map_err(|_| PushError::Ended)?
    }

    /// Ends push `id` of `connection`, of whose slots the first `written` were written. Returns these:
    /// nobody writes to them any more, and nobody has looked at them yet.
    ///
    /// # Errors
    /// There is no such push, or its queue cannot be ended.
    pub async fn end(
        &self,
        connection: u64,
        id: u64,
        written: usize,
    ) -> Result<Vec<Written>, PushError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::End { connection, id, written, reply };
        self.requests.send(request).map_err(|_| PushError::Ended)?;
        answer.await.map_err(|_| PushError::Ended)?
    }

    /// The connection has ended, and its push with it.
    pub fn close(&self, connection: u64) {
        let _ = self.requests.send(Request::Close { connection });
    }
}

/// The thread.
fn serve(
    domain: Domain,
    cache: Arc<Cache>,
    limits: Limits,
    counters: Arc<PushCounters>,
    told: &OnceLock<Result<(), String>>,
    received: &Receiver<Request>,
) {
    let memory = cache.arena().memory();
    let content = cache.arena().layout().content..memory.span().length;
    let bytes = content.len();
    match domain.export(memory, content, Export::WindowsOnly) {
        Ok(region) => {
            tracing::info!(bytes, exposed = limits.exposed, "clients may push by RDMA");
            let _ = told.set(Ok(()));
            let pushes = Pushes::new(Windows::new(domain, region), cache, limits, counters);
            run(pushes, received);
        }
        Err(error) => {
            tracing::error!("no pushes by RDMA: the memory cannot be registered: {error}");
            let _ = told.set(Err(error.to_string()));
        }
    }
}

fn run<W: Writers>(mut pushes: Pushes<W>, received: &Receiver<Request>) {
    loop {
        let now = Now::system();
        let request = match pushes.next_deadline() {
            None => received.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(deadline) => received.recv_timeout(deadline.saturating_sub(now.monotonic)),
        };
        let now = Now::system();
        match request {
            Ok(Request::Begin { connection, peer, wanted, reply }) => {
                let begun = pushes.begin(connection, &peer, &wanted, now);
                if let Err(error) = &begun {
                    tracing::debug!("push of connection {connection}: {error}");
                }
                if reply.send(begun).is_err() {
                    pushes.close(connection);
                }
            }
            Ok(Request::End { connection, id, written, reply }) => {
                // If nobody waits for it any more, what was written is dropped, and free.
                let _ = reply.send(pushes.end(connection, id, written));
            }
            Ok(Request::Close { connection }) => pushes.close(connection),
            Err(RecvTimeoutError::Timeout) => (),
            Err(RecvTimeoutError::Disconnected) => return,
        }
        pushes.expire(now);
    }
}
