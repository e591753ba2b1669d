//! Brings the chunks of a load from all nodes at once, straight to their final places.
//!
//! A thread for each connection: it asks for a few chunks ahead, puts guest memory under them while
//! the node is at work, and verifies each chunk as it has come, while it is in the core's cache.

use std::collections::VecDeque;
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::board::{Board, Next, Outcome, Stop, Task, Work};
use super::connection::{Connection, MAX_ASKED};
use super::error::NodeError;
use super::node::{Node, Topology};
use super::origin::OriginWorker;
use super::predicted::{Answer, Pending};
use super::report::{CacheReport, Latencies, NodeReport};
use super::session::ClusterSession;
use super::{ClusterError, ClusterOptions};
use crate::cluster::placement::balance;
use crate::parallel::lock;
use crate::record::ItemKey;
use crate::transport::{Accept, ChunkRead, TransportError};

/// Two threads that fault the same 2 MiB page wait for one another while it is cleared.
const REGION_SHIFT: u32 = 21;

/// A load under way.
pub(super) struct Load<'a> {
    pub(super) session: &'a ClusterSession,
    pub(super) options: &'a ClusterOptions,
    pub(super) topology: &'a Topology,
    pub(super) accept: Accept<'a>,
    pub(super) deadline: Instant,
    /// For each 2 MiB page of guest memory, whether a thread has put memory under it.
    regions: Vec<OnceLock<()>>,
    tallies: Mutex<Tally>,
}

/// What workers count.
#[derive(Debug, Default)]
pub(super) struct Tally {
    nodes: Vec<NodeReport>,
    pub(super) chunks_from_origin: u64,
    pub(super) bytes_from_origin: u64,
    misses: u64,
    damaged: u64,
    latencies: Latencies,
}

impl Tally {
    fn of(nodes: usize) -> Self {
        Self { nodes: vec![NodeReport::default(); nodes], ..Self::default() }
    }

    fn merge(&mut self, other: &Self) {
        for (sum, one) in self.nodes.iter_mut().zip(&other.nodes) {
            sum.chunks += one.chunks;
            sum.bytes += one.bytes;
            sum.failures += one.failures;
            if one.last_failure.is_some() {
                sum.last_failure.clone_from(&one.last_failure);
            }
        }
        self.chunks_from_origin += other.chunks_from_origin;
        self.bytes_from_origin += other.bytes_from_origin;
        self.misses += other.misses;
        self.damaged += other.damaged;
        self.latencies.merge(&other.latencies);
    }

    pub(super) fn supplied(&mut self, node: usize, bytes: usize, begun: Instant) {
        self.nodes[node].chunks += 1;
        self.nodes[node].bytes += u64::try_from(bytes).unwrap_or(0);
        self.latencies.add(begun.elapsed());
    }

    pub(super) fn fetched(&mut self, bytes: usize, begun: Instant) {
        self.chunks_from_origin += 1;
        self.bytes_from_origin += u64::try_from(bytes).unwrap_or(0);
        self.latencies.add(begun.elapsed());
    }

    fn failed(&mut self, node: usize, error: &NodeError) {
        self.nodes[node].failures += 1;
        self.nodes[node].last_failure = Some(error.to_string());
    }
}

impl<'a> Load<'a> {
    pub(super) fn new(
        session: &'a ClusterSession,
        topology: &'a Topology,
        accept: Accept<'a>,
        deadline: Instant,
    ) -> Self {
        Self {
            session,
            options: session.cluster.options(),
            topology,
            accept,
            deadline,
            regions: Vec::new(),
            tallies: Mutex::new(Tally::of(topology.nodes.len())),
        }
    }

    /// Brings all of `reads`, which should ascend.
    pub(super) fn run(
        mut self,
        reads: Vec<ChunkRead<'_>>,
    ) -> (Result<(), TransportError>, CacheReport) {
        let (board, used) = self.post(reads);
        let nodes = &self.topology.nodes;
        let here = &self;
        thread::scope(|scope| {
            for node in used {
                for _ in 0..self.options.connections_to_each(nodes.len()) {
                    let board = &board;
                    scope.spawn(move || Worker::new(here, board, node).run());
                }
            }
            if self.session.has_origin() {
                for _ in 0..self.options.origin_reads.max(1) {
                    scope.spawn(|| OriginWorker::new(here, &board).run());
                }
            }
        });
        let (end, retries, replica_switches) = board.end();
        let result = end.map_err(|(stop, left)| self.explain(stop, left));
        let tally = lock(&self.tallies);
        let named = nodes
            .iter()
            .zip(&tally.nodes)
            .map(|(node, report)| NodeReport { name: node.name().to_owned(), ..report.clone() });
        let report = CacheReport {
            epoch: self.topology.epoch,
            chunks_from_nodes: tally.nodes.iter().map(|node| node.chunks).sum(),
            nodes: named.filter(|node| node.chunks + node.failures > 0).collect(),
            chunks_from_origin: tally.chunks_from_origin,
            bytes_from_origin: tally.bytes_from_origin,
            replica_switches,
            retries,
            misses: tally.misses,
            damaged: tally.damaged,
            chunk_ms_p50: tally.latencies.quantile(500),
            chunk_ms_p99: tally.latencies.quantile(990),
        };
        (result, report)
    }

    /// Decides who is asked for what first; returns the nodes that may be asked for anything.
    fn post<'m>(&mut self, reads: Vec<ChunkRead<'m>>) -> (Board<'m>, Vec<usize>) {
        let nodes = &self.topology.nodes;
        let now = Instant::now();
        let open: Vec<usize> =
            (0..nodes.len()).filter(|node| !nodes[*node].breaker.is_closed(now)).collect();
        // Where nobody else could help, those that failed of late are asked all the same.
        let all_open = open.len() == nodes.len() && !self.session.has_origin();
        let dead = if all_open { Vec::new() } else { open };
        let board = Board::new(nodes.len(), &dead, self.session.has_origin(), self.deadline);

        let mut used = vec![false; nodes.len()];
        let mut choices: Vec<usize> = Vec::with_capacity(reads.len() * 2);
        let mut spans = Vec::with_capacity(reads.len());
        let mut works = Vec::with_capacity(reads.len());
        let mut last_page = None;
        for ChunkRead { index, key, buffer } in reads {
            let page = buffer.as_ptr().addr() >> REGION_SHIFT;
            if last_page.replace(page) != Some(page) {
                self.regions.push(OnceLock::new());
            }
            let candidates = self.topology.candidates(&ItemKey::chunk(&key).index_key());
            candidates.all().for_each(|node| used[node] = true);
            let from = choices.len();
            choices.extend(candidates.current().filter(|node| !dead.contains(node)));
            spans.push((u64::try_from(buffer.len()).unwrap_or(0), from..choices.len()));
            let region = u32::try_from(self.regions.len() - 1).unwrap_or(u32::MAX);
            works.push(Work { task: Task::new(index, key, candidates, region), buffer });
        }
        let items: Vec<(u64, &[usize])> =
            spans.iter().map(|(bytes, span)| (*bytes, &choices[span.clone()])).collect();
        let weights: Vec<f64> = nodes.iter().map(|node| f64::from(node.weight())).collect();
        let random = usize::try_from(super::random() >> 1).unwrap_or(0);
        let first = random.checked_rem(works.len()).unwrap_or(0);
        let chosen = balance(&items, &weights, first);
        // Each client begins elsewhere, at the beginning of a page.
        let region = works.get(first).map(|work| work.task.region);
        let begin = works.partition_point(|work| Some(work.task.region) < region);
        let mut placed: VecDeque<_> = works.into_iter().zip(chosen).collect();
        placed.rotate_left(begin);
        for (work, node) in placed {
            board.post(work, node);
        }
        let used = (0..nodes.len()).filter(|node| used[*node] && !dead.contains(node)).collect();
        (board, used)
    }

    /// Puts memory under the page of a chunk, unless another thread has or is at it.
    pub(super) fn touch(&self, task: &Task, buffer: &mut [u8]) {
        let region = usize::try_from(task.region).ok().and_then(|index| self.regions.get(index));
        if let (Some(region), Some(first)) = (region, buffer.first_mut()) {
            region.get_or_init(|| *first = 0);
        }
    }

    pub(super) fn add(&self, tally: &Tally) {
        lock(&self.tallies).merge(tally);
    }

    pub(super) fn new_tally(&self) -> Tally {
        Tally::of(self.topology.nodes.len())
    }

    fn explain(&self, stop: Stop, left: usize) -> TransportError {
        let image = self.session.id;
        let nodes = &self.topology.nodes;
        let failures = |node: usize| {
            let tally = lock(&self.tallies);
            let last = tally.nodes[node].last_failure.clone();
            last.unwrap_or_else(|| "was given up after failures".into())
        };
        let said = |task: &Task| -> Vec<(String, String)> {
            let words = |(node, outcome): (usize, Outcome)| {
                let said = match outcome {
                    Outcome::Unasked => match nodes[node].breaker.admit(Instant::now()) {
                        Err(error) => error.to_string(),
                        Ok(()) => "was not asked".into(),
                    },
                    Outcome::Missed => "does not have it".into(),
                    Outcome::Damaged => "has damaged content under its key".into(),
                    Outcome::Length => "has something of another length under its key".into(),
                    Outcome::Refused => "refused to give it".into(),
                    Outcome::Failed => failures(node),
                };
                (nodes[node].name().to_owned(), said)
            };
            task.results().map(words).collect()
        };
        let unavailable = |task: Task, origin: Option<String>| {
            let mut said = said(&task);
            said.extend(origin.map(|words| ("the origin".to_owned(), words)));
            ClusterError::Unavailable { image, chunk: task.index, key: task.key, said }.into()
        };
        match stop {
            Stop::Nowhere(task) => unavailable(task, None),
            Stop::Origin(task, error) => unavailable(task, Some(error.to_string())),
            Stop::Deadline => {
                ClusterError::Deadline { after: self.options.load_deadline, left }.into()
            }
        }
    }
}

/// What is remembered of a chunk that was asked for.
struct Asked {
    task: Task,
    at: Instant,
}

/// One connection's thread.
struct Worker<'l, 'm> {
    load: &'l Load<'l>,
    board: &'l Board<'m>,
    number: usize,
    node: &'l Node,
    pending: VecDeque<Pending<'m, Asked>>,
    /// Bytes that were asked for and have not come.
    in_flight: usize,
    tally: Tally,
}

impl<'l, 'm> Worker<'l, 'm> {
    fn new(load: &'l Load<'l>, board: &'l Board<'m>, number: usize) -> Self {
        let node = &*load.topology.nodes[number];
        let (pending, tally) = (VecDeque::new(), load.new_tally());
        Self { load, board, number, node, pending, in_flight: 0, tally }
    }

    fn run(mut self) {
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
            let gone = matches!(
                error,
                NodeError::Connect(_) | NodeError::Stalled(_) | NodeError::LeftAlone { .. }
            );
            // It must be known before it is asked who else may have the chunks.
            if gone {
                self.board.give_up(self.number);
            }
            if over {
                self.board.stop(Stop::Deadline);
            }
            self.in_flight = 0;
            for Pending { tag, buffer, .. } in self.pending.drain(..) {
                let work = Work { task: tag.task, buffer };
                self.board.pass_on(work, self.number, Outcome::Failed);
            }
            if gone || over {
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
            None => self.node.connect(self.load.deadline).map(|new| *connection = Some(new)),
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
        let Self { load, board, number, node, pending, in_flight, tally } = self;
        let patience = load.options.progress.saturating_mul(super::PATIENCE);
        let due = Instant::now() + patience;
        connection.set_deadline(due.min(load.deadline));
        let mut arrived = 0;
        let result = connection.answers(pending, |one, answer| {
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
            board.arrived(arrived);
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
    let level = if super::is_first_few() { log::Level::Warn } else { log::Level::Debug };
    log::log!(level, "cache node {}: chunk {} {what} ({})", node.name(), task.index, task.key);
}

/// How long an origin worker waits for work at a time.
pub(super) const ORIGIN_NAP: Duration = Duration::from_millis(100);
