//! A thread's part of a load: looks a chunk up, copies it into guest memory and verifies the copy.
//!
//! What the index does not tell, the node is asked for by the memcached protocol.

use std::sync::Arc;
use std::time::Instant;

use super::SharedArena;
use crate::index::reader::Lookup;
use crate::record::ItemKey;
use crate::transport::cluster::board::{Next, Work};
use crate::transport::cluster::error::NodeError;
use crate::transport::cluster::node::Node;
use crate::transport::cluster::tcp::link::TcpLink;
use crate::transport::cluster::worker::{Failed, Link, Worker};

/// Chunks that are taken from the board at a time: they are of one page, and done at once.
const MAX_TAKEN: usize = 512;
/// Bytes of these.
const MAX_BYTES: usize = 2 << 20;

/// Chunks out of a node's memory.
pub(in crate::transport::cluster) struct SharedLink<'m> {
    arena: Arc<SharedArena>,
    /// For what has to be asked for.
    asking: TcpLink<'m>,
}

impl<'m> SharedLink<'m> {
    pub(in crate::transport::cluster) fn new(arena: Arc<SharedArena>) -> Self {
        Self { arena, asking: TcpLink::default() }
    }

    /// Brings a chunk; it comes back if the node has to be asked for it.
    fn bring(&self, worker: &mut Worker<'_, 'm>, work: Work<'m>) -> Option<Work<'m>> {
        let begun = Instant::now();
        let key = ItemKey::chunk(&work.task.key).index_key();
        // What cannot be read is asked for.
        let Ok(found) = self.arena.lookup(key) else { return Some(work) };
        let entry = match found {
            Lookup::Found(entry) => entry,
            Lookup::Absent => {
                worker.missed(work);
                return None;
            }
            Lookup::AskNode => return Some(work),
        };
        if usize::try_from(entry.length) != Ok(work.buffer.len()) {
            worker.wrong_length(work, entry.length.into());
            return None;
        }
        if self.arena.copy(&entry, work.buffer).is_err()
            || !worker.is_whole(&work.task, work.buffer)
        {
            // It was replaced meanwhile, or is damaged: the node knows.
            return Some(work);
        }
        worker.supplied(&work, begun);
        None
    }
}

impl<'m> Link<'m> for SharedLink<'m> {
    fn step(&mut self, worker: &mut Worker<'_, 'm>) -> Option<Result<(), NodeError>> {
        if self.asking.is_busy() {
            return Some(self.asking.receive(worker));
        }
        let run = match worker.take(MAX_BYTES, MAX_TAKEN, true) {
            Next::Ask(run) => run,
            Next::Nothing => return Some(Ok(())),
            Next::End => return None,
        };
        let left: Vec<Work<'m>> =
            run.into_iter().filter_map(|work| self.bring(worker, work)).collect();
        if left.is_empty() { Some(Ok(())) } else { Some(self.asking.ask(worker, left)) }
    }

    fn fail(&mut self, error: &NodeError) -> Failed<'m> {
        self.asking.fail(error)
    }

    fn close(self, node: &Node) {
        self.asking.close(node);
    }
}
