//! A thread that brings chunks from one node, whatever it does so by; and what becomes of the node and of
//! the chunks when that fails.

use std::time::{Duration, Instant};

use super::board::{Board, Next, Outcome, Stop, Task, Work};
use super::error::NodeError;
use super::links::LinkKind;
use super::load::{Load, Tally};
use super::node::Node;
use super::{PATIENCE, is_first_few};

/// What chunks come by.
pub(super) trait Link<'m> {
    /// Asks for what there is room for, and receives. `None` at the end of the load.
    fn step(&mut self, worker: &mut Worker<'_, 'm>) -> Option<Result<(), NodeError>>;

    /// After an error of [`step`](Self::step): lets go of everything that was asked for.
    fn fail(&mut self, error: &NodeError) -> Failed<'m>;

    /// After the end.
    fn close(self, node: &Node);
}

/// Why no more chunks come by a link.
#[derive(Debug)]
pub(super) enum Ended {
    /// There are none, or the node has none for us.
    Over,
    /// The node has some, but not by this link.
    Useless(NodeError),
}

/// What a failure leaves.
pub(super) struct Failed<'m> {
    /// What was asked for and has not come.
    pub(super) pending: Vec<Work<'m>>,
    /// Whether it was of an idle connection that had died of age, and says nothing of the node.
    pub(super) aged: bool,
    /// Whether anything had come since the last failure.
    pub(super) answered: bool,
}

/// One thread's part of a load.
pub(super) struct Worker<'l, 'm> {
    pub(super) load: &'l Load<'l>,
    pub(super) board: &'l Board<'m>,
    /// The node's position in the topology.
    pub(super) number: usize,
    pub(super) node: &'l Node,
    /// How often the node was too slow: each time doubles what it is given.
    pub(super) doublings: u32,
    kind: LinkKind,
    /// Chunks that the board has not been told of.
    arrived: usize,
    tally: Tally,
}

impl<'l, 'm> Worker<'l, 'm> {
    pub(super) fn new(load: &'l Load<'l>, board: &'l Board<'m>, number: usize) -> Self {
        let node = &*load.topology.nodes[number];
        let (kind, tally) = (LinkKind::Tcp, load.new_tally());
        Self { load, board, number, node, doublings: 0, kind, arrived: 0, tally }
    }

    /// Brings chunks by `link`, which is of this `kind`, until there are no more, or it or the node is of
    /// no use.
    pub(super) fn run(&mut self, kind: LinkKind, mut link: impl Link<'m>) -> Ended {
        self.kind = kind;
        let mut ended = Ended::Over;
        while let Some(result) = link.step(self) {
            self.tell_arrived();
            let Err(error) = result else { continue };
            let Failed { pending, aged, answered } = link.fail(&error);
            if kind == LinkKind::Rdma && error.is_of_rdma() && !answered {
                // Nothing is wrong with the node; other replicas may still do it by RDMA.
                for work in pending {
                    self.board.pass_on(work, self.number, Outcome::Failed);
                }
                ended = Ended::Useless(error);
                break;
            }
            if !aged {
                self.tally.failed(self.number, &error);
                self.node.failed(&error);
            }
            let over = Instant::now() >= self.load.deadline;
            // Before it is asked who else may have the chunks, it must be known that this one has not.
            let slow = error.is_slow();
            let ends = if matches!(error, NodeError::LeftAlone { .. })
                && self.board.leave_to_others(self.number)
            {
                // Somebody else probes the node; what comes of that is for all its workers.
                true
            } else if slow {
                // A node that is slow is so on all its connections.
                self.doublings += 1;
                self.board.avoid(self.number);
                false
            } else if aged || answered {
                false
            } else {
                // One that takes no more connections may be of use on those that it has.
                self.board.leave(self.number);
                true
            };
            if over {
                self.board.stop(Stop::Deadline);
            }
            let outcome = if slow { Outcome::Slow } else { Outcome::Failed };
            for mut work in pending {
                // There are no more such connections than workers.
                if ends {
                    work.task.attempts = work.task.attempts.saturating_sub(1);
                }
                self.board.pass_on(work, self.number, outcome);
            }
            if ends || over {
                break;
            }
        }
        self.tell_arrived();
        link.close(self.node);
        ended
    }

    /// Leaves the node to its other workers, if it has any.
    pub(super) fn leave_to_others(&self) -> bool {
        self.board.leave_to_others(self.number)
    }

    /// Adds up what it has done.
    pub(super) fn finish(self) {
        self.load.add(&self.tally);
    }

    /// The node cannot be read at all.
    pub(super) fn give_up(&mut self, error: &NodeError) {
        self.tally.failed(self.number, error);
        self.board.leave(self.number);
    }

    /// What to ask for: up to `bytes` and `count` chunks.
    pub(super) fn take(&self, bytes: usize, count: usize, wait: bool) -> Next<'m> {
        self.board.take(self.number, bytes, count, wait)
    }

    /// How long the node may take for a single chunk.
    pub(super) fn patience(&self) -> Duration {
        self.load.options.progress.saturating_mul(PATIENCE << self.doublings.min(16))
    }

    /// A chunk has come that was asked for at `begun`. Whether it is what it should be; if it is not,
    /// it goes to somebody else.
    pub(super) fn accept(&mut self, work: Work<'m>, begun: Instant) -> bool {
        if self.is_whole(&work.task, work.buffer) {
            self.supplied(&work, begun);
            return true;
        }
        self.warn(&work.task, "is damaged");
        self.tally.damaged += 1;
        self.board.pass_on(work, self.number, Outcome::Damaged);
        false
    }

    /// Whether a chunk that has come is what it should be.
    pub(super) fn is_whole(&self, task: &Task, bytes: &[u8]) -> bool {
        (self.load.accept)(task.index, bytes)
    }

    /// A chunk has come that was asked for at `begun`, and is whole.
    pub(super) fn supplied(&mut self, work: &Work<'m>, begun: Instant) {
        self.tally.supplied(self.number, self.kind, work.buffer.len(), begun);
        self.arrived += 1;
    }

    /// The node has not the chunk.
    pub(super) fn missed(&mut self, work: Work<'m>) {
        self.tally.misses += 1;
        self.board.pass_on(work, self.number, Outcome::Missed);
    }

    /// The node has something of another length under its key.
    pub(super) fn wrong_length(&mut self, work: Work<'m>, length: u64) {
        self.warn(&work.task, &format!("has {length} bytes instead of {}", work.buffer.len()));
        self.tally.damaged += 1;
        self.board.pass_on(work, self.number, Outcome::Length);
    }

    /// The node does not want to give the chunk.
    pub(super) fn refused(&mut self, work: Work<'m>, reply: &str) {
        log::info!("cache node {}: {reply}", self.node.name());
        self.board.pass_on(work, self.number, Outcome::Refused);
    }

    fn tell_arrived(&mut self) {
        let arrived = std::mem::take(&mut self.arrived);
        if arrived > 0 {
            self.board.arrived(arrived, Some(self.number));
        }
    }

    /// Tells of content that is not what it should be; of many such only the first few aloud.
    fn warn(&self, task: &Task, what: &str) {
        let level = if is_first_few() { log::Level::Warn } else { log::Level::Debug };
        let (node, Task { index, key, .. }) = (self.node.name(), task);
        log::log!(level, "cache node {node}: chunk {index} {what} ({key})");
    }
}
