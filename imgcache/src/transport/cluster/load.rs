//! Brings the chunks of a load from all nodes at once: decides who is asked for what first, starts the
//! workers, and tells how it went.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::board::{Board, Outcome, Stop, Task, Work};
use super::error::NodeError;
use super::lease::{Keep, Lease};
use super::links::{self, Chosen, LinkChoice, LinkKind, LocalDevices};
use super::node::Topology;
use super::origin::OriginWorker;
use super::rdma::link::{RdmaLink, SCRATCH_BYTES};
use super::rdma::table;
use super::report::{CacheReport, Latencies, NodeReport};
use super::session::ClusterSession;
use super::shared::link::SharedLink;
use super::tcp::link::TcpLink;
use super::worker::{Ended, Worker};
use super::{ClusterError, ClusterOptions};
use crate::cluster::placement::balance;
use crate::parallel::lock;
use crate::record::ItemKey;
use crate::transport::verbs::Domain;
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
    /// For each node, what its chunks come by.
    links: Vec<OnceLock<Result<Chosen, NodeError>>>,
    /// For each node, why it was not read as was chosen.
    fallbacks: Mutex<Vec<Option<String>>>,
    /// For each node, the index keys of what it is to keep until the load has ended.
    kept: Vec<Vec<u8>>,
    tallies: Mutex<Tally>,
}

/// What workers count.
#[derive(Debug, Default)]
pub(super) struct Tally {
    nodes: Vec<NodeReport>,
    pub(super) chunks_from_origin: u64,
    pub(super) bytes_from_origin: u64,
    pub(super) misses: u64,
    pub(super) damaged: u64,
    latencies: Latencies,
}

impl Tally {
    fn of(nodes: usize) -> Self {
        Self { nodes: vec![NodeReport::default(); nodes], ..Self::default() }
    }

    fn merge(&mut self, other: &Self) {
        for (sum, one) in self.nodes.iter_mut().zip(&other.nodes) {
            sum.chunks += one.chunks;
            one.by.named().for_each(|(kind, count)| sum.by.add(kind, count));
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

    pub(super) fn supplied(&mut self, node: usize, by: LinkKind, bytes: usize, begun: Instant) {
        self.nodes[node].chunks += 1;
        self.nodes[node].by.add(by, 1);
        self.nodes[node].bytes += u64::try_from(bytes).unwrap_or(0);
        self.latencies.add(begun.elapsed());
    }

    pub(super) fn fetched(&mut self, bytes: usize, begun: Instant) {
        self.chunks_from_origin += 1;
        self.bytes_from_origin += u64::try_from(bytes).unwrap_or(0);
        self.latencies.add(begun.elapsed());
    }

    pub(super) fn failed(&mut self, node: usize, error: &NodeError) {
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
            links: topology.nodes.iter().map(|_| OnceLock::new()).collect(),
            fallbacks: Mutex::new(vec![None; topology.nodes.len()]),
            kept: vec![Vec::new(); topology.nodes.len()],
            tallies: Mutex::new(Tally::of(topology.nodes.len())),
        }
    }

    /// Brings all of `reads`, which should ascend. The lease that comes back has been ended.
    pub(super) fn run(
        mut self,
        reads: Vec<ChunkRead<'_>>,
    ) -> (Result<(), TransportError>, CacheReport, Lease) {
        let mut scratch = self.scratch(reads.len());
        let (board, used) = self.post(reads);
        let mut lease = Lease::new(self.topology, &self.kept);
        let nodes = &self.topology.nodes;
        let here = &self;
        thread::scope(|scope| {
            let connections = self.options.connections_to_each(nodes.len());
            let mut scratch: Vec<Option<&mut [u8]>> =
                scratch.iter_mut().map(|scratch| Some(&mut scratch[..])).collect();
            for node in used {
                board.join(node, connections);
                for _ in 0..connections {
                    let (board, scratch, keep) = (&board, scratch[node].take(), lease.keep());
                    scope.spawn(move || here.work(board, node, scratch, &keep));
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
        let named =
            nodes.iter().zip(&tally.nodes).enumerate().map(|(number, (node, report))| NodeReport {
                name: node.name().to_owned(),
                device: self.device(number),
                link_reason: self.reason(number),
                ..report.clone()
            });
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
        lease.end(report.nodes.iter().map(|node| (node.name.clone(), node.bytes)).collect());
        (result, report, lease)
    }

    /// Memory for the queue to each node, if there can be any; until it is used it is not there.
    fn scratch(&self, chunks: usize) -> Vec<Vec<u8>> {
        let nodes = self.topology.nodes.len();
        if !LocalDevices::are_likely() {
            return vec![Vec::new(); nodes];
        }
        // At most twice its share, or else the table is read bucket by bucket.
        let lookups = chunks.div_ceil(nodes.max(1)).saturating_mul(2).min(chunks);
        (0..nodes).map(|_| vec![0; SCRATCH_BYTES + table::worth(lookups)]).collect()
    }

    /// One thread's part: brings chunks from a node. With memory of its own it can do so by RDMA.
    fn work<'m>(
        &self,
        board: &Board<'m>,
        number: usize,
        scratch: Option<&'m mut [u8]>,
        keep: &Keep,
    ) {
        let mut worker = Worker::new(self, board, number);
        let node = &self.topology.nodes[number];
        let devices = &self.session.cluster.0.devices;
        let choose = || links::choose(node, self.options.link, devices, self.deadline);
        match self.links[number].get_or_init(choose) {
            Ok(Chosen::Shared(arena)) => {
                keep.at(number);
                worker.run(LinkKind::Shared, SharedLink::new(Arc::clone(arena)));
            }
            Ok(Chosen::Tcp(_)) => {
                keep.at(number);
                worker.run(LinkKind::Tcp, TcpLink::default());
            }
            Ok(Chosen::Rdma(domain, _)) => match scratch {
                Some(scratch) => self.work_by_rdma(&mut worker, domain, scratch, keep),
                // One queue to a node is enough.
                None => {
                    worker.leave_to_others();
                }
            },
            Err(error) => worker.give_up(error),
        }
        worker.finish();
    }

    fn work_by_rdma<'m>(
        &self,
        worker: &mut Worker<'_, 'm>,
        domain: &Domain,
        scratch: &'m mut [u8],
        keep: &Keep,
    ) {
        let ended = domain.scope(|scope| match RdmaLink::new(scope, scratch) {
            Ok(link) => worker.run(LinkKind::Rdma, link),
            Err(error) => Ended::Useless(error.into()),
        });
        let Ended::Useless(error) = ended else { return };
        let reason = format!("rdma: {error}");
        log::info!("cache node {}: {reason}", worker.node.name());
        if self.options.link == LinkChoice::Auto {
            lock(&self.fallbacks)[worker.number] = Some(reason);
            keep.at(worker.number);
            worker.run(LinkKind::Tcp, TcpLink::default());
        } else {
            worker.give_up(&NodeError::NoLink(reason));
        }
    }

    /// The RDMA device by which this node was to be read.
    fn device(&self, number: usize) -> Option<String> {
        self.links[number].get()?.as_ref().ok()?.device().map(str::to_owned)
    }

    /// Why chunks of this node came by nothing faster.
    fn reason(&self, number: usize) -> Option<String> {
        let chosen = self.links[number].get()?.as_ref().ok()?;
        let reasons = [chosen.reason().map(str::to_owned), lock(&self.fallbacks)[number].clone()];
        let reasons: Vec<String> =
            reasons.into_iter().flatten().filter(|reason| !reason.is_empty()).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// Index keys of what node `number` is to keep until the load has ended, one after the other.
    pub(super) fn kept(&self, number: usize) -> &[u8] {
        &self.kept[number]
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
            let index_key = ItemKey::chunk(&key).index_key();
            let candidates = self.topology.candidates(&index_key);
            candidates.current().for_each(|node| self.kept[node].extend_from_slice(&index_key.0));
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
        self.mark_exclusive(&works, &chosen);
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

    /// Leaves pages that one node fills alone to the thread that reads from it: what the system clears
    /// in the middle of a read is in the core's cache when it is written over.
    fn mark_exclusive(&self, works: &[Work<'_>], chosen: &[Option<usize>]) {
        let mut at = 0;
        for run in works.chunk_by(|a, b| a.task.region == b.task.region) {
            let nodes = &chosen[at..at + run.len()];
            at += run.len();
            let region = usize::try_from(run[0].task.region).unwrap_or(usize::MAX);
            if nodes.iter().all(|node| *node == nodes[0])
                && let Some(region) = self.regions.get(region)
            {
                region.get_or_init(|| ());
            }
        }
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
                        Ok(()) => match lock(&self.tallies).nodes[node].last_failure.clone() {
                            Some(failure) => format!("was not asked any more: {failure}"),
                            None => "was not asked".into(),
                        },
                    },
                    Outcome::Missed => "does not have it".into(),
                    Outcome::Damaged => "has damaged content under its key".into(),
                    Outcome::Length => "has something of another length under its key".into(),
                    Outcome::Refused => "refused to give it".into(),
                    Outcome::Slow | Outcome::Failed => failures(node),
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
                let tally = lock(&self.tallies);
                let failures = nodes.iter().zip(&tally.nodes).filter_map(|(node, report)| {
                    Some((node.name().to_owned(), report.last_failure.clone()?))
                });
                let (after, said) = (self.options.load_deadline, failures.collect());
                ClusterError::Deadline { after, left, said }.into()
            }
        }
    }
}

/// How long an origin worker waits for work at a time.
pub(super) const ORIGIN_NAP: Duration = Duration::from_millis(100);
