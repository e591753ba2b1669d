//! A thread for each connection: it asks for a few chunks ahead, puts guest memory under them while the
//! node is at work, and verifies each chunk as it has come, while it is in the core's cache.

use std::collections::VecDeque;
use std::time::Instant;

use super::connection::{Connection, MAX_ASKED};
use super::predicted::{Answer, Pending};
use crate::record::ItemKey;
use crate::transport::cluster::board::{Board, Next, Outcome, Stop, Task, Work};
use crate::transport::cluster::error::NodeError;
use crate::transport::cluster::load::{Load, Tally};
use crate::transport::cluster::node::Node;
use crate::transport::cluster::{PATIENCE, is_first_few};

/// What is remembered of a chunk that was asked for.
struct Asked {
    task: Task,
    at: Instant,
}

/// One connection's thread.
pub(in crate::transport::cluster) struct Worker<'l, 'm> {
    load: &'l Load<'l>,
    board: &'l Board<'m>,
    number: usize,
    node: &'l Node,
    pending: VecDeque<Pending<'m, Asked>>,
    /// Bytes that were asked for and have not come.
    in_flight: usize,
    /// Whether anything has come on this connection.
    answered: bool,
    /// How often the node was too slow: each time doubles what it is given.
    doublings: u32,
    tally: Tally,
}

impl<'l, 'm> Worker<'l, 'm> {
    pub(in crate::transport::cluster) fn new(
        load: &'l Load<'l>,
        board: &'l Board<'m>,
        number: usize,
    ) -> Self {
        let node = &*load.topology.nodes[number];
        let (pending, tally) = (VecDeque::new(), load.new_tally());
        let (in_flight, answered, doublings) = (0, false, 0);
        Self { load, board, number, node, pending, in_flight, answered, doublings, tally }
    }

    pub(in crate::transport::cluster) fn run(mut self) {
        let mut connection = None;
        while let Some(result) = self.step(&mut connection) {
            let Err(error) = result else { continue };
            // An idle connection that had died of age is no failure of the node.
            let aged = connection.take().is_some_and(|one: Connection| one.reused)
                && matches!(error, NodeError::Closed | NodeError::Io(_));
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
            } else if aged || std::mem::take(&mut self.answered) {
                false
            } else {
                // One that takes no more connections may be of use on those that it has.
                self.board.leave(self.number);
                true
            };
            if over {
                self.board.stop(Stop::Deadline);
            }
            self.in_flight = 0;
            let outcome = if slow { Outcome::Slow } else { Outcome::Failed };
            for Pending { tag, buffer, .. } in self.pending.drain(..) {
                let mut work = Work { task: tag.task, buffer };
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
        if let Some(connection) = connection {
            self.node.give_back(connection);
        }
        self.load.add(&self.tally);
    }

    /// Asks for what there is room for, and receives. `None` at the end.
    fn step(&mut self, connection: &mut Option<Connection>) -> Option<Result<(), NodeError>> {
        let window = self.load.options.window;
        if self.in_flight <= window / 2 && self.pending.len() <= MAX_ASKED / 2 {
            let room = window.saturating_sub(self.in_flight);
            let wait = self.pending.is_empty();
            match self.board.take(self.number, room, MAX_ASKED - self.pending.len(), wait) {
                Next::Ask(run) => {
                    // What cannot be asked for is pending all the same, to be passed on.
                    let result = self.ask(connection, run);
                    if result.is_err() || self.in_flight <= window / 2 {
                        return Some(result);
                    }
                }
                Next::Nothing => (),
                Next::End if wait => return None,
                Next::End => (),
            }
        }
        Some(self.receive(connection.as_mut()?))
    }

    fn ask(
        &mut self,
        connection: &mut Option<Connection>,
        run: Vec<Work<'m>>,
    ) -> Result<(), NodeError> {
        let at = Instant::now();
        let result = match connection {
            Some(_) => Ok(()),
            None => self
                .node
                .connect_patiently(self.load.deadline, self.doublings)
                .map(|new| *connection = Some(new)),
        };
        let first = self.pending.len();
        for Work { task, buffer } in run {
            self.in_flight += buffer.len();
            let opaque = connection.as_mut().map_or(0, Connection::next_opaque);
            self.pending.push_back(Pending::new(Asked { task, at }, buffer, opaque));
        }
        result?;
        let Some(connection) = connection else { return Ok(()) };
        let keys: Vec<(ItemKey, u64)> = self
            .pending
            .iter()
            .skip(first)
            .map(|one| (ItemKey::chunk(&one.tag.task.key), one.opaque()))
            .collect();
        connection.ask(keys.iter().map(|(key, opaque)| (key, *opaque)))?;
        for one in self.pending.iter_mut().skip(first) {
            self.load.touch(&one.tag.task, one.buffer);
        }
        Ok(())
    }

    fn receive(&mut self, connection: &mut Connection) -> Result<(), NodeError> {
        let Self { load, board, number, node, pending, in_flight, answered, doublings, tally } =
            self;
        let patience = load.options.progress.saturating_mul(PATIENCE << (*doublings).min(16));
        let due = Instant::now() + patience;
        connection.set_deadline(due.min(load.deadline));
        let mut arrived = 0;
        let result = connection.answers(pending, |one, answer| {
            *answered = true;
            let Pending { tag: Asked { task, at }, buffer, .. } = one;
            *in_flight -= buffer.len();
            let outcome = match answer {
                Answer::Hit if (load.accept)(task.index, buffer) => {
                    tally.supplied(*number, buffer.len(), at);
                    arrived += 1;
                    return;
                }
                Answer::Hit => {
                    damaged(node, &task, "is damaged");
                    Outcome::Damaged
                }
                Answer::Miss | Answer::Claimed => Outcome::Missed,
                Answer::Length(length) => {
                    let what = format!("has {length} bytes instead of {}", buffer.len());
                    damaged(node, &task, &what);
                    Outcome::Length
                }
                Answer::Refused(reply) => {
                    log::info!("cache node {}: {reply}", node.name());
                    Outcome::Refused
                }
            };
            match outcome {
                Outcome::Missed => tally.misses += 1,
                Outcome::Damaged | Outcome::Length => tally.damaged += 1,
                _ => (),
            }
            board.pass_on(Work { task, buffer }, *number, outcome);
        });
        if arrived > 0 {
            connection.reused = false;
            board.arrived(arrived, Some(*number));
        }
        // A node that drips is as bad as one that stalls.
        result.map_err(|error| match error {
            NodeError::Deadline if Instant::now() < load.deadline => NodeError::Stalled(patience),
            error => error,
        })
    }
}

/// Tells of content that is not what it should be; of many such only the first few aloud.
fn damaged(node: &Node, task: &Task, what: &str) {
    let level = if is_first_few() { log::Level::Warn } else { log::Level::Debug };
    log::log!(level, "cache node {}: chunk {} {what} ({})", node.name(), task.index, task.key);
}
