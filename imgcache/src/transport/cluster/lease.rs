//! The lease of a load: nodes that know leases keep what is being loaded until it has been.
//!
//! One small call for each node, which is made beside the load and never holds it up: what a node
//! is sending stays anyhow, and a chunk that is gone comes from elsewhere. The lease of a client
//! that dies runs out by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
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

/// The lease of a load at all nodes; it ends when dropped.
pub(super) struct Lease {
    /// Whom to tell the end, and who answers when the nodes know it.
    keeper: Option<(Sender<Read>, Receiver<()>)>,
    ended: bool,
}

/// What one node is to keep.
struct Part {
    node: Arc<Node>,
    id: u64,
    keys: Vec<u8>,
    /// Whether it does.
    held: bool,
}

impl Lease {
    /// Begins to ask each node of `topology` to keep what its list in `lists` names: index keys, one
    /// after the other.
    pub fn take(topology: &Topology, lists: &[Vec<u8>]) -> Self {
        let mut parts = Vec::new();
        for (node, list) in topology.nodes.iter().zip(lists) {
            for keys in list.chunks(LIST_BYTES) {
                let (node, keys, id) = (Arc::clone(node), keys.to_vec(), super::random());
                parts.push(Part { node, id, keys, held: false });
            }
        }
        let (sender, ends) = channel();
        let (done, ended) = channel();
        let work = move || {
            keep(&mut parts, &ends);
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

    /// The load has ended, having read so much of each node. Nobody waits for the nodes to hear of it.
    pub fn end(&mut self, read: Read) {
        if let Some((sender, _)) = &self.keeper {
            self.ended = sender.send(read).is_ok();
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

/// Holds all of `parts` until the end, and releases them.
fn keep(parts: &mut [Part], end: &Receiver<Read>) {
    loop {
        for index in 0..parts.len() {
            let part = &mut parts[index];
            part.held = part.take().unwrap_or_else(|error| {
                log::info!("no lease at cache node {}: {error}", part.node.name());
                false
            });
            // A load may be over before all nodes were asked.
            match end.try_recv() {
                Err(TryRecvError::Empty) => (),
                Err(TryRecvError::Disconnected) => return release(parts, &Read::new()),
                Ok(read) => return release(parts, &read),
            }
        }
        match end.recv_timeout(TTL / 2) {
            Err(RecvTimeoutError::Timeout) => (),
            Err(RecvTimeoutError::Disconnected) => return release(parts, &Read::new()),
            Ok(read) => return release(parts, &read),
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
