//! One connection's part of a load: a few chunks are asked for ahead, guest memory is put under them while
//! the node is at work, and each chunk is verified as it has come, while it is in the core's cache.

use std::collections::VecDeque;
use std::time::Instant;

use super::connection::{Connection, MAX_ASKED};
use super::predicted::{Answer, Pending};
use crate::record::ItemKey;
use crate::transport::cluster::board::{Next, Task, Work};
use crate::transport::cluster::error::NodeError;
use crate::transport::cluster::node::Node;
use crate::transport::cluster::worker::{Failed, Link, Worker};

/// What is remembered of a chunk that was asked for.
struct Asked {
    task: Task,
    at: Instant,
}

/// Chunks by the memcached protocol.
#[derive(Default)]
pub(in crate::transport::cluster) struct TcpLink<'m> {
    connection: Option<Connection>,
    pending: VecDeque<Pending<'m, Asked>>,
    /// Bytes that were asked for and have not come.
    in_flight: usize,
    /// Whether anything has come on this connection.
    answered: bool,
}

impl<'m> Link<'m> for TcpLink<'m> {
    fn step(&mut self, worker: &mut Worker<'_, 'm>) -> Option<Result<(), NodeError>> {
        let window = worker.load.options.window;
        if self.in_flight <= window / 2 && self.pending.len() <= MAX_ASKED / 2 {
            let room = window.saturating_sub(self.in_flight);
            let wait = self.pending.is_empty();
            match worker.take(room, MAX_ASKED - self.pending.len(), wait) {
                Next::Ask(run) => {
                    // What cannot be asked for is pending all the same, to be passed on.
                    let result = self.ask(worker, run);
                    if result.is_err() || self.in_flight <= window / 2 {
                        return Some(result);
                    }
                }
                Next::Nothing => (),
                Next::End if wait => return None,
                Next::End => (),
            }
        }
        self.connection.is_some().then(|| self.receive(worker))
    }

    fn fail(&mut self, error: &NodeError) -> Failed<'m> {
        let aged = self.connection.take().is_some_and(|connection| connection.reused)
            && matches!(error, NodeError::Closed | NodeError::Io(_));
        self.in_flight = 0;
        let work =
            |Pending { tag, buffer, .. }: Pending<'m, Asked>| Work { task: tag.task, buffer };
        let pending = self.pending.drain(..).map(work).collect();
        Failed { pending, aged, answered: std::mem::take(&mut self.answered) }
    }

    fn close(self, node: &Node) {
        if let Some(connection) = self.connection {
            node.give_back(connection);
        }
    }
}

impl<'m> TcpLink<'m> {
    /// Whether anything that was asked for has not come.
    pub(in crate::transport::cluster) fn is_busy(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Asks for `run`. After a failure it is pending all the same.
    pub(in crate::transport::cluster) fn ask(
        &mut self,
        worker: &Worker<'_, 'm>,
        run: Vec<Work<'m>>,
    ) -> Result<(), NodeError> {
        let at = Instant::now();
        let result = match self.connection {
            Some(_) => Ok(()),
            None => worker
                .node
                .connect_patiently(worker.load.deadline, worker.doublings)
                .map(|new| self.connection = Some(new)),
        };
        let first = self.pending.len();
        for Work { task, buffer } in run {
            self.in_flight += buffer.len();
            let opaque = self.connection.as_mut().map_or(0, Connection::next_opaque);
            self.pending.push_back(Pending::new(Asked { task, at }, buffer, opaque));
        }
        result?;
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let keys: Vec<(ItemKey, u64)> = self
            .pending
            .iter()
            .skip(first)
            .map(|one| (ItemKey::chunk(&one.tag.task.key), one.opaque()))
            .collect();
        connection.ask(keys.iter().map(|(key, opaque)| (key, *opaque)))?;
        for one in self.pending.iter_mut().skip(first) {
            worker.load.touch(&one.tag.task, one.buffer);
        }
        Ok(())
    }

    /// Receives answers, one at least.
    pub(in crate::transport::cluster) fn receive(
        &mut self,
        worker: &mut Worker<'_, 'm>,
    ) -> Result<(), NodeError> {
        let Self { connection, pending, in_flight, answered } = self;
        let Some(connection) = connection else { return Ok(()) };
        let patience = worker.patience();
        let due = Instant::now() + patience;
        connection.set_deadline(due.min(worker.load.deadline));
        let mut good = false;
        let result = connection.answers(pending, |one, answer| {
            *answered = true;
            let Pending { tag: Asked { task, at }, buffer, .. } = one;
            *in_flight -= buffer.len();
            let work = Work { task, buffer };
            match answer {
                Answer::Hit => good |= worker.accept(work, at),
                Answer::Miss | Answer::Claimed => worker.missed(work),
                Answer::Length(length) => worker.wrong_length(work, length),
                Answer::Refused(reply) => worker.refused(work, &reply),
            }
        });
        if good {
            connection.reused = false;
        }
        // A node that drips is as bad as one that stalls.
        result.map_err(|error| match error {
            NodeError::Deadline if Instant::now() < worker.load.deadline => {
                NodeError::Stalled(patience)
            }
            error => error,
        })
    }
}
