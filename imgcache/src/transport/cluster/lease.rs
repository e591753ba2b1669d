//! The lease of a load: nodes that know leases keep what is being loaded until it has been.
//!
//! One small call for each node, which is made beside the load and never holds it up: what a node
//! is sending stays anyhow, and a chunk that is gone comes from elsewhere. The lease of a client
//! that dies runs out by itself.
//!
//! A node is asked when it is known that it is read by TCP, or out of its memory on this host: the right to
//! read by RDMA is a lease already.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::error::NodeError;
use super::node::{Node, Topology};

/// How long a node keeps the items if it hears no more.
const TTL: Duration = Duration::from_secs(10);
/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of keys in one lease; those of a larger image are several.
const LIST_BYTES: usize = 512 << 10;
/// How long to wait for the release, when nothing else is left to be done: it is a courtesy.
const COURTESY: Duration = Duration::from_millis(20);

/// Bytes that were read from each node, by its name.
type Read = BTreeMap<String, u64>;

/// What a load tells of its lease.
#[derive(Debug)]
enum Message {
    /// This node is to keep what it was to supply.
    Keep(usize),
    /// The load has ended.
    End(Read),
}

/// The lease of a load at all nodes; it ends when dropped.
pub(super) struct Lease {
    /// Whom to tell, and who answers when the nodes know of the end.
    keeper: Option<(Sender<Message>, Receiver<()>)>,
    ended: bool,
}

/// By which the workers of a load have nodes keep what they read.
#[derive(Debug, Clone)]
pub(super) struct Keep(Option<Sender<Message>>);

impl Keep {
    /// Node `number` is to keep what it was to supply.
    pub(super) fn at(&self, number: usize) {
        if let Some(sender) = &self.0 {
            let _ = sender.send(Message::Keep(number)); // without a keeper there is no lease
        }
    }
}

/// What one node is to keep.
struct Part {
    node: Arc<Node>,
    /// The node's position in the topology.
    number: usize,
    id: u64,
    keys: Vec<u8>,
    /// When to ask for it, again or for the first time; none as long as nobody wants it.
    due: Option<Instant>,
    /// Whether it does.
    held: bool,
}

impl Lease {
    /// A lease of what the nodes of `topology` are to keep by its list in `lists`: index keys, one after the
    /// other. No node is asked yet.
    pub fn new(topology: &Topology, lists: &[Vec<u8>]) -> Self {
        let mut parts = Vec::new();
        for (number, (node, list)) in topology.nodes.iter().zip(lists).enumerate() {
            for keys in list.chunks(LIST_BYTES) {
                let (node, keys, id) = (Arc::clone(node), keys.to_vec(), super::random());
                parts.push(Part { node, number, id, keys, due: None, held: false });
            }
        }
        let (sender, messages) = channel();
        let (done, ended) = channel();
        let work = move || {
            keep(&mut parts, &messages);
            let _ = done.send(()); // to somebody who may have gone
        };
        let keeper = match thread::Builder::new().name("lease".into()).spawn(work) {
            Ok(_) => Some((sender, ended)),
            Err(error) => {
                log::info!("the load has no lease: {error}");
                None
            }
        };
        Self { keeper, ended: false }
    }

    /// For the workers of the load.
    pub fn keep(&self) -> Keep {
        Keep(self.keeper.as_ref().map(|(sender, _)| sender.clone()))
    }

    /// The load has ended, having read so much of each node. Nobody waits for the nodes to hear of it.
    pub fn end(&mut self, read: Read) {
        if let Some((sender, _)) = &self.keeper {
            self.ended = sender.send(Message::End(read)).is_ok();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some((_, ended)) = self.keeper.as_ref().filter(|_| self.ended) {
            let _ = ended.recv_timeout(COURTESY);
        }
    }
}

/// Holds those of `parts` that are wanted until the end, and releases them.
fn keep(parts: &mut [Part], messages: &Receiver<Message>) {
    loop {
        // A load may be over before all nodes were asked, so they are asked one by one.
        let now = Instant::now();
        let next = parts.iter_mut().filter(|part| part.due.is_some()).min_by_key(|part| part.due);
        let wait = match &next {
            Some(Part { due: Some(due), .. }) => due.saturating_duration_since(now),
            _ => TTL,
        };
        match messages.recv_timeout(wait) {
            Ok(Message::Keep(number)) => {
                for part in parts.iter_mut().filter(|part| part.number == number) {
                    part.due.get_or_insert(now);
                }
            }
            Ok(Message::End(read)) => return release(parts, &read),
            Err(RecvTimeoutError::Disconnected) => return release(parts, &Read::new()),
            Err(RecvTimeoutError::Timeout) => {
                let Some(part) = next else { continue };
                part.due = Some(Instant::now() + TTL / 2);
                part.held = part.take().unwrap_or_else(|error| {
                    log::info!("no lease at cache node {}: {error}", part.node.name());
                    false
                });
            }
        }
    }
}

fn release(parts: &[Part], read: &Read) {
    for part in parts.iter().filter(|part| part.held) {
        let bytes = read.get(part.node.name()).copied().unwrap_or(0);
        let deadline = Instant::now() + PATIENCE;
        // If it cannot be told, it runs out.
        let _ = part.node.with(deadline, |connection| connection.release(part.id, bytes));
    }
}

impl Part {
    /// Takes or renews it; whether the node holds it.
    fn take(&self) -> Result<bool, NodeError> {
        let deadline = Instant::now() + PATIENCE;
        self.node.with(deadline, |connection| {
            let known = self.node.knows_leases(connection)?;
            if known {
                connection.lease(self.id, TTL, &self.keys)?;
            }
            Ok(known)
        })
    }
}
