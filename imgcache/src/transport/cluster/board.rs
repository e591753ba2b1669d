//! The work of one load: which chunk is asked of whom, and who is asked next if that fails.
//!
//! Each node has a queue. Workers take runs of chunks that lie in one 2 MiB page of guest memory, so
//! that few pages are shared by threads. A worker whose queue is empty takes over from the end of the
//! longest queue what its own node holds too. A chunk that a node could not supply goes to the next
//! node that may have it, then to the origin; no chunk is asked of a node twice unless nobody else is
//! left. A node that is slow is avoided: it is asked only for what can be had nowhere else, and for that
//! until the load's deadline, since a network that is full makes all nodes look so.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use super::node::{Candidates, MAX_CANDIDATES};
use crate::key::ChunkKey;
use crate::parallel::lock;

/// Queues, and chunks in each, that are looked at to find one to take over.
const STEAL_QUEUES: usize = 4;
const STEAL_SCAN: usize = 256;
/// Times that a chunk is asked of a node whose connections break.
const MAX_ATTEMPTS: u8 = 3;

/// What came of asking a candidate for a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Unasked,
    Missed,
    Damaged,
    Length,
    Refused,
    /// Nothing came of it in the time it was given.
    Slow,
    Failed,
}

/// A chunk on its way, without the memory it goes to.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) index: u32,
    pub(super) key: ChunkKey,
    pub(super) candidates: Candidates,
    /// What came of each candidate.
    pub(super) outcomes: [Outcome; MAX_CANDIDATES],
    /// Times that it was asked for.
    pub(super) attempts: u8,
    /// Number of the 2 MiB page of guest memory that it begins in, counted in this load.
    pub(super) region: u32,
}

/// A chunk and where it goes.
#[derive(Debug)]
pub(super) struct Work<'m> {
    pub(super) task: Task,
    pub(super) buffer: &'m mut [u8],
}

impl Task {
    pub(super) fn new(index: u32, key: ChunkKey, candidates: Candidates, region: u32) -> Self {
        let outcomes = [Outcome::Unasked; MAX_CANDIDATES];
        Self { index, key, candidates, outcomes, attempts: 0, region }
    }

    pub(super) fn note(&mut self, node: usize, outcome: Outcome) {
        for (one, slot) in self.candidates.all().zip(&mut self.outcomes) {
            if one == node {
                *slot = outcome;
            }
        }
    }

    /// Every candidate and what came of it.
    pub(super) fn results(&self) -> impl Iterator<Item = (usize, Outcome)> {
        self.candidates.all().zip(self.outcomes)
    }
}

/// Why a load ended before it was done.
#[derive(Debug)]
pub(super) enum Stop {
    /// This chunk is nowhere to be had.
    Nowhere(Task),
    /// The origin was asked for this chunk too, and failed.
    Origin(Task, crate::transport::TransportError),
    /// Too much time has passed.
    Deadline,
}

/// What a worker is to do.
#[derive(Debug)]
pub(super) enum Next<'m> {
    /// Ask for these.
    Ask(Vec<Work<'m>>),
    /// Nothing new at the moment.
    Nothing,
    /// All done, or nothing more to be done.
    End,
}

/// The work of one load, shared by its workers.
#[derive(Debug)]
pub(super) struct Board<'m> {
    state: Mutex<State<'m>>,
    changed: Condvar,
    deadline: Instant,
}

#[derive(Debug)]
struct State<'m> {
    queues: Vec<Queue<'m>>,
    origin: VecDeque<Work<'m>>,
    has_origin: bool,
    /// Chunks that have not arrived.
    unfinished: usize,
    stop: Option<Stop>,
    retries: u64,
    switches: u64,
}

#[derive(Debug, Default)]
struct Queue<'m> {
    work: VecDeque<Work<'m>>,
    bytes: usize,
    /// Connections that work on it, or are about to.
    workers: usize,
    /// Whether the node is given up for this load.
    dead: bool,
    /// How often it was slow since it has last supplied anything; if it was, it is asked only for what
    /// nobody else has.
    slow: u32,
}

impl<'m> Queue<'m> {
    fn push(&mut self, work: Work<'m>) {
        self.bytes += work.buffer.len();
        self.work.push_back(work);
    }

    fn remove(&mut self, at: usize) -> Option<Work<'m>> {
        let work = self.work.remove(at)?;
        self.bytes -= work.buffer.len();
        Some(work)
    }
}

impl<'m> Board<'m> {
    /// A board for `nodes` nodes, some of which may be `dead` from the start.
    pub(super) fn new(nodes: usize, dead: &[usize], has_origin: bool, deadline: Instant) -> Self {
        let mut queues: Vec<Queue<'m>> = (0..nodes).map(|_| Queue::default()).collect();
        for node in dead {
            queues[*node].dead = true;
        }
        let state = State {
            queues,
            origin: VecDeque::new(),
            has_origin,
            unfinished: 0,
            stop: None,
            retries: 0,
            switches: 0,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), deadline }
    }

    /// Puts work up: to be asked of `node`, or wherever it may be.
    pub(super) fn post(&self, work: Work<'m>, node: Option<usize>) {
        let mut state = lock(&self.state);
        state.unfinished += 1;
        match node {
            Some(node) if !state.queues[node].dead => state.queues[node].push(work),
            _ => state.place(work),
        }
    }

    /// What a worker of `node` is to ask for: up to `bytes` (one chunk at least) and `count` chunks.
    /// Waits for something to do if `wait`.
    pub(super) fn take(&self, node: usize, bytes: usize, count: usize, wait: bool) -> Next<'m> {
        let mut state = lock(&self.state);
        loop {
            if state.stop.is_some() || state.unfinished == 0 || state.queues[node].dead {
                return Next::End;
            }
            let run = state.run_for(node, bytes, count);
            if !run.is_empty() {
                return Next::Ask(run);
            }
            if !wait {
                return Next::Nothing;
            }
            state = self.wait(state, Duration::MAX);
        }
    }

    /// A chunk for a worker of the origin; waits up to `patience` for one. `None` if there is none,
    /// `Err` at the end.
    pub(super) fn take_for_origin(&self, patience: Duration) -> Result<Option<Work<'m>>, ()> {
        let mut state = lock(&self.state);
        let begun = Instant::now();
        loop {
            if state.stop.is_some() || state.unfinished == 0 {
                return Err(());
            }
            if let Some(work) = state.origin.pop_front() {
                return Ok(Some(work));
            }
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            state = self.wait(state, left);
        }
    }

    fn wait<'s>(
        &self,
        state: std::sync::MutexGuard<'s, State<'m>>,
        patience: Duration,
    ) -> std::sync::MutexGuard<'s, State<'m>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let (mut state, _) = self
            .changed
            .wait_timeout(state, left.min(patience))
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if Instant::now() >= self.deadline && state.unfinished > 0 {
            state.stop.get_or_insert(Stop::Deadline);
        }
        state
    }

    /// `count` chunks have arrived from `node`, or else from the origin.
    pub(super) fn arrived(&self, count: usize, node: Option<usize>) {
        let mut state = lock(&self.state);
        if let Some(node) = node {
            state.queues[node].slow = 0;
        }
        state.unfinished = state.unfinished.saturating_sub(count);
        if state.unfinished == 0 {
            self.changed.notify_all();
        }
    }

    /// `node` could not supply a chunk: it goes to somebody else.
    pub(super) fn pass_on(&self, mut work: Work<'m>, node: usize, outcome: Outcome) {
        work.task.note(node, outcome);
        let mut state = lock(&self.state);
        state.retries += 1;
        state.place(work);
        self.changed.notify_all();
    }

    /// `workers` threads are about to work for `node`.
    pub(super) fn join(&self, node: usize, workers: usize) {
        lock(&self.state).queues[node].workers += workers;
    }

    /// A worker of `node` cannot go on; with the last one the node is given up.
    pub(super) fn leave(&self, node: usize) {
        if !self.leave_to_others(node) {
            self.give_up(node);
        }
    }

    /// A worker of `node` has no connection of its own, and leaves if there is another one. Whether
    /// it does.
    pub(super) fn leave_to_others(&self, node: usize) -> bool {
        let mut state = lock(&self.state);
        let queue = &mut state.queues[node];
        let others = queue.workers > 1;
        if others {
            queue.workers -= 1;
        }
        others
    }

    /// `node` is slow: what others may have goes to them.
    pub(super) fn avoid(&self, node: usize) {
        let mut state = lock(&self.state);
        let queue = &mut state.queues[node];
        queue.slow = queue.slow.saturating_add(1);
        queue.bytes = 0;
        for work in std::mem::take(&mut queue.work) {
            state.place(work);
        }
        self.changed.notify_all();
    }

    /// `node` is not asked again in this load; what it was to supply goes to others.
    pub(super) fn give_up(&self, node: usize) {
        let mut state = lock(&self.state);
        let queue = std::mem::take(&mut state.queues[node]);
        state.queues[node].dead = true;
        for mut work in queue.work {
            work.task.note(node, Outcome::Failed);
            state.place(work);
        }
        self.changed.notify_all();
    }

    /// Ends the load.
    pub(super) fn stop(&self, why: Stop) {
        lock(&self.state).stop.get_or_insert(why);
        self.changed.notify_all();
    }

    /// How it ended, with the number of chunks that have not arrived; and how many chunks were asked
    /// for again, and were asked of another node.
    pub(super) fn end(self) -> (Result<(), (Stop, usize)>, u64, u64) {
        let state = self.state.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let result = match state.stop {
            Some(stop) => Err((stop, state.unfinished)),
            None if state.unfinished > 0 => Err((Stop::Deadline, state.unfinished)),
            None => Ok(()),
        };
        (result, state.retries, state.switches)
    }
}

impl<'m> State<'m> {
    /// Finds who is asked for `work` next.
    fn place(&mut self, mut work: Work<'m>) {
        let usable = |outcomes: &[Outcome], avoided: bool| {
            let queues = &self.queues;
            let load = |queue: &Queue<'m>| (queue.slow, queue.bytes);
            let mut found: Option<usize> = None;
            for (node, _) in work.task.results().filter(|(_, one)| outcomes.contains(one)) {
                let current = work.task.candidates.current().any(|one| one == node);
                // Where it moves from is asked only if it is nowhere else.
                if !queues[node].dead
                    && (avoided || queues[node].slow == 0)
                    && (current || found.is_none())
                    && found.is_none_or(|best| load(&queues[node]) < load(&queues[best]))
                {
                    found = Some(node);
                }
            }
            found
        };
        let again = || {
            let failed = || usable(&[Outcome::Failed], true);
            usable(&[Outcome::Unasked, Outcome::Slow], true)
                .or_else(|| failed().filter(|_| work.task.attempts < MAX_ATTEMPTS))
        };
        let node = usable(&[Outcome::Unasked], false);
        match node {
            Some(node) => {
                self.switches += 1;
                self.queues[node].push(work);
            }
            None if self.has_origin => self.origin.push_back(work),
            None => match again() {
                Some(node) => {
                    work.task.note(node, Outcome::Unasked);
                    self.queues[node].push(work);
                }
                None => {
                    self.stop.get_or_insert(Stop::Nowhere(work.task));
                }
            },
        }
    }

    /// A run of chunks of one page for `node`, out of its own queue or the longest that has any.
    fn run_for(&mut self, node: usize, bytes: usize, count: usize) -> Vec<Work<'m>> {
        let mut run: Vec<Work<'m>> = Vec::new();
        let mut total = 0;
        while let Some(next) = self.queues[node].work.front() {
            let more = total + next.buffer.len();
            let same = run.first().is_none_or(|first| first.task.region == next.task.region);
            if run.len() >= count || !same || (more > bytes && !run.is_empty()) {
                break;
            }
            total = more;
            run.extend(self.queues[node].remove(0));
        }
        if run.is_empty() && self.queues[node].slow == 0 {
            run.extend(self.steal(node));
        }
        for work in &mut run {
            work.task.attempts = work.task.attempts.saturating_add(1);
        }
        run
    }

    /// A chunk that `node` has too, from the end of one of the longest queues.
    fn steal(&mut self, node: usize) -> Option<Work<'m>> {
        let holds = |work: &Work<'m>| {
            work.task.results().any(|(one, outcome)| one == node && outcome == Outcome::Unasked)
        };
        let mut longest: Vec<&mut Queue<'m>> =
            self.queues.iter_mut().filter(|queue| queue.bytes > 0).collect();
        longest.sort_unstable_by_key(|queue| Reverse(queue.bytes));
        longest.into_iter().take(STEAL_QUEUES).find_map(|queue| {
            let found = queue.work.iter().rev().take(STEAL_SCAN).position(holds)?;
            queue.remove(queue.work.len() - 1 - found)
        })
    }
}

#[cfg(test)]
mod tests;
