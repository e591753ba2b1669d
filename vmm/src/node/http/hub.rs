//! What happens on the node, for any number of who listen: one thread takes the agent's events, notes
//! them in the log, the metrics and the trace, and hands them on, each as a line of JSON.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use axum::body::Bytes;
use tokio::sync::broadcast;

use super::metrics::Metrics;
use super::trace::Tracer;
use crate::api::{Event, NodeEvent, VmInfo, VmState};
use crate::node::Node;

/// Events that are remembered, for who asks later.
const REMEMBERED: usize = 1000;
/// Events that wait for a listener; of more it is told how many were lost.
const QUEUE: usize = 4096;

/// An event, and the line that tells it.
#[derive(Debug)]
pub struct Told {
    /// What happened.
    pub event: Event,
    /// As JSON, with the end of the line.
    pub line: Bytes,
}

/// Hands events on.
#[derive(Debug, Clone)]
pub struct Hub {
    sender: broadcast::Sender<Arc<Told>>,
    remembered: Arc<Mutex<VecDeque<Bytes>>>,
}

impl Hub {
    /// Takes the events of `node` from now on, on a thread of its own.
    ///
    /// # Errors
    /// There can be no thread.
    pub fn start(node: &Node, metrics: Arc<Metrics>, tracer: Option<Tracer>) -> io::Result<Self> {
        let (sender, _) = broadcast::channel(QUEUE);
        let hub = Self { sender, remembered: Arc::default() };
        let events = node.subscribe();
        let mut scribe = Scribe {
            node: node.clone(),
            metrics,
            tracer,
            hub: hub.clone(),
            booted: HashSet::new(),
        };
        thread::Builder::new().name("events".into()).stack_size(256 << 10).spawn(move || {
            for event in events.receiver() {
                scribe.note(event);
            }
        })?;
        Ok(hub)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Bytes>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lines of what happened last.
    pub fn recent(&self) -> Vec<u8> {
        self.lock().iter().flatten().copied().collect()
    }

    /// What happens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Told>> {
        self.sender.subscribe()
    }

    fn tell(&self, event: NodeEvent) {
        let Ok(mut line) = serde_json::to_vec(&event) else { return };
        line.push(b'\n');
        let line = Bytes::from(line);
        let mut remembered = self.lock();
        if remembered.len() == REMEMBERED {
            remembered.pop_front();
        }
        remembered.push_back(line.clone());
        drop(remembered);
        // Nobody listens: nobody misses it.
        let _ = self.sender.send(Arc::new(Told { event: event.event, line }));
    }
}

/// Notes what happens.
struct Scribe {
    node: Node,
    metrics: Arc<Metrics>,
    tracer: Option<Tracer>,
    hub: Hub,
    /// VMs whose boots were noted.
    booted: HashSet<u64>,
}

impl Scribe {
    fn note(&mut self, event: NodeEvent) {
        match &event.event {
            Event::Vm { number, name, image, state, end } => {
                let words = match state {
                    VmState::Starting => "VM is starting",
                    VmState::Ready => "VM is ready",
                    VmState::Running => "VM is running",
                    VmState::Ended => "VM has ended",
                };
                let (code, reason) =
                    end.as_ref().map_or((None, None), |end| (end.code, Some(&*end.reason)));
                tracing::info!(vm = %name, number, %image, code, reason, "{words}");
                self.metrics.vm(*state, code);
                if *state != VmState::Starting && self.booted.insert(*number) {
                    // One that was deleted meanwhile leaves no trace.
                    if let Ok(info) = self.node.inspect(name)
                        && info.number == *number
                    {
                        self.boot(&info);
                    }
                }
            }
            Event::Deleted { number, name } => {
                tracing::info!(vm = %name, number, "VM is deleted");
                self.booted.remove(number);
            }
            Event::Pulled { image, tenant, bytes, ms } => {
                tracing::info!(%image, %tenant, bytes, ms, "image is in the pool");
                if let Some(tracer) = &mut self.tracer {
                    tracer.pull(event.at_ms, *ms, image, tenant, *bytes);
                }
            }
            Event::Dropped { image, tenant } => {
                tracing::info!(%image, %tenant, "image has left the pool");
            }
            Event::Draining => tracing::info!("draining: no new VMs"),
            Event::Undrained => tracing::info!("taking new VMs again"),
            Event::Lost { events } => tracing::warn!(events, "events were lost"),
        }
        self.hub.tell(event);
    }

    /// A VM is ready, or never will be.
    fn boot(&mut self, info: &VmInfo) {
        if let Some(ready) = info.ready_ms {
            self.metrics.boot(&info.phases, ready);
        }
        if let Some(tracer) = &mut self.tracer {
            tracer.boot(info);
        }
    }
}
