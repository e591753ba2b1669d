//! One thread's part of a load, over one queue to one node.
//!
//! Guest memory is registered as work is taken, a page of 2 MiB or so at a time, while READs of what was
//! taken before are under way. All registrations end with the scope, before the load does.

use std::time::{Duration, Instant};

use super::job::{Job, Step};
use super::rights::Rights;
use super::table::TableCopy;
use crate::index::table::BUCKET_BYTES;
use crate::transport::cluster::board::{Next, Work};
use crate::transport::cluster::error::NodeError;
use crate::transport::cluster::node::Node;
use crate::transport::cluster::tcp::connection::Connection;
use crate::transport::cluster::tcp::link::TcpLink;
use crate::transport::cluster::worker::{Failed, Link, Worker};
use crate::transport::verbs::{
    Buffer, Completion, DEPTH, Lent, LoadQueue, Scope, Settings, Status, Transfer, VerbsError,
};

/// Chunks on their way: each has two requests posted at most.
const JOBS: usize = 64;
const _: () = assert!(2 * JOBS <= DEPTH as usize, "a queue has room for all jobs");
/// Bytes of guest memory that are read at a time.
const WINDOW: usize = 4 << 20;
/// Bytes that a link needs for itself: the buckets of all jobs.
pub(in crate::transport::cluster) const SCRATCH_BYTES: usize = JOBS * 2 * BUCKET_BYTES;
/// How often to look for completions before waiting for the device to tell of one.
const LOOKS: usize = 64;
/// After how long to look whether the node is still there.
const NAP: Duration = Duration::from_millis(5);
/// The third request of a job; the first two are for its buckets.
const CONTENT: u64 = 2;
/// Numbers of requests for each job.
const NUMBERS: u64 = 3;

/// A queue to a node, and the right to read.
struct Session<'s, 'm> {
    queue: LoadQueue<'s, 'm>,
    table: Option<TableCopy<'s, 'm>>,
    /// The rights end with it.
    control: Connection,
    rights: Rights,
    /// Bytes of content that were read.
    bytes: u64,
}

/// Chunks by RDMA READ.
pub(in crate::transport::cluster) struct RdmaLink<'s, 'm> {
    scope: &'s Scope<'s, 'm>,
    session: Option<Session<'s, 'm>>,
    /// Taken from the board, and nothing done yet.
    taken: Vec<Work<'m>>,
    jobs: Vec<Option<Job<'s, 'm>>>,
    /// Memory for a copy of the index, until it is used.
    for_table: &'m mut [u8],
    /// Memory for buckets that no job has.
    spare: Vec<[Buffer<'s, 'm>; 2]>,
    /// Jobs whose buckets are to be read, and not before when.
    due: Vec<(Instant, usize)>,
    in_flight: usize,
    progress: Instant,
    answered: bool,
    completions: Vec<Completion<Lent<'s, 'm>>>,
    /// What has to be asked for by the memcached protocol.
    unclear: Vec<Work<'m>>,
    asking: TcpLink<'m>,
}

impl<'s, 'm> RdmaLink<'s, 'm> {
    /// A link with memory of its own: [`SCRATCH_BYTES`], and what a copy of the index may
    /// [take](super::table::worth).
    ///
    /// # Errors
    /// The memory cannot be registered.
    pub(in crate::transport::cluster) fn new(
        scope: &'s Scope<'s, 'm>,
        scratch: &'m mut [u8],
    ) -> Result<Self, VerbsError> {
        let (scratch, for_table) = scratch.split_at_mut(SCRATCH_BYTES.min(scratch.len()));
        let parts = scratch.chunks_exact_mut(BUCKET_BYTES).collect();
        let mut parts = scope.register(parts).map_err(|refused| refused.error)?.into_iter();
        let pair = || Some([parts.next()?, parts.next()?]);
        let spare: Vec<_> = std::iter::from_fn(pair).take(JOBS).collect();
        Ok(Self {
            scope,
            session: None,
            taken: Vec::new(),
            jobs: spare.iter().map(|_| None).collect(),
            spare,
            for_table,
            due: Vec::new(),
            in_flight: 0,
            progress: Instant::now(),
            answered: false,
            completions: Vec::new(),
            unclear: Vec::new(),
            asking: TcpLink::default(),
        })
    }

    fn is_idle(&self) -> bool {
        self.spare.len() == self.jobs.len()
    }

    /// Connects, and asks for the right to read.
    fn open(&mut self, worker: &Worker<'_, 'm>) -> Result<(), NodeError> {
        if self.session.is_some() {
            return Ok(());
        }
        let load = worker.load;
        let mut control = worker.node.connect_patiently(load.deadline, worker.doublings)?;
        let mut queue = self.scope.queue(DEPTH)?;
        let asked =
            Rights::ask(worker.node, &mut control, &queue.endpoint(), load.kept(worker.number));
        let rights = match asked {
            Ok(rights) => rights,
            Err(error) => {
                worker.node.give_back(control);
                return Err(error);
            }
        };
        let settings = Settings::for_device(queue.domain().fabric().device());
        queue.connect(&rights.endpoint, &settings)?;
        let memory = std::mem::take(&mut self.for_table);
        let patience = load.options.progress_of(worker.doublings);
        let table = TableCopy::read(self.scope, &mut queue, &rights, memory, patience)
            .map_err(|error| if rights.have_expired() { NodeError::Expired } else { error })?;
        self.session = Some(Session { queue, table, control, rights, bytes: 0 });
        self.progress = Instant::now();
        Ok(())
    }

    /// Makes jobs of what was taken, and has their buckets read.
    fn begin(&mut self) -> Result<(), NodeError> {
        let (tasks, buffers): (Vec<_>, Vec<_>) =
            self.taken.drain(..).map(|Work { task, buffer }| (task, buffer)).unzip();
        let memory = match self.scope.register(buffers) {
            Ok(memory) => memory,
            Err(refused) => {
                let works = tasks.into_iter().zip(refused.items);
                self.taken.extend(works.map(|(task, buffer)| Work { task, buffer }));
                return Err(refused.error.into());
            }
        };
        let now = Instant::now();
        let mut empty = 0..self.jobs.len();
        for (task, memory) in tasks.into_iter().zip(memory) {
            let place = empty.find(|place| self.jobs[*place].is_none());
            // There is room: no more was taken than there are spare buckets.
            let (Some(place), Some(buckets)) = (place, self.spare.pop()) else {
                self.unclear.push(Work { task, buffer: memory.into_bytes() });
                continue;
            };
            self.in_flight += memory.len();
            self.jobs[place] = Some(Job::new(task, memory, buckets));
            self.due.push((now, place));
        }
        self.look_at_copy()?;
        self.look()
    }

    /// Has the content read of those jobs whose entry the copy of the index has.
    fn look_at_copy(&mut self) -> Result<(), NodeError> {
        let Some(Session { queue, table: Some(table), rights, .. }) = &mut self.session else {
            return Ok(());
        };
        let mut contents = Vec::new();
        let jobs = &mut self.jobs;
        self.due.retain(|(_, place)| {
            let Some(job) = &mut jobs[*place] else { return false };
            let found = table.look(rights, job.key).filter(|entry| job.found(entry));
            let Some(entry) = found else { return true };
            let Some(memory) = job.memory.take() else { return true };
            contents.push(Transfer {
                id: *place as u64 * NUMBERS + CONTENT,
                local: Lent::Buffer(memory),
                remote: rights.content(&entry),
            });
            false
        });
        if contents.is_empty() {
            return Ok(());
        }
        let posted = queue.post(contents);
        self.returned(posted)
    }

    /// Has the buckets read of those jobs for which it is time.
    fn look(&mut self) -> Result<(), NodeError> {
        let Some(Session { queue, rights, .. }) = &mut self.session else { return Ok(()) };
        let now = Instant::now();
        let mut transfers = Vec::new();
        for (_, place) in self.due.extract_if(.., |(when, _)| *when <= now) {
            let Some(job) = &mut self.jobs[place] else { continue };
            let numbers = rights.announcement.exported.table.candidates(job.key);
            for ((bucket, number), which) in job.buckets.iter_mut().zip(numbers).zip(0_u64..) {
                transfers.extend(bucket.take().map(|buffer| Transfer {
                    id: place as u64 * NUMBERS + which,
                    local: Lent::Buffer(buffer),
                    remote: rights.bucket(number),
                }));
            }
        }
        if transfers.is_empty() {
            return Ok(());
        }
        let posted = queue.post(transfers);
        self.returned(posted)
    }

    /// Takes back what the device did not take.
    fn returned(
        &mut self,
        posted: Result<(), crate::transport::verbs::Refused<Transfer<'s, 'm>>>,
    ) -> Result<(), NodeError> {
        let Err(refused) = posted else { return Ok(()) };
        for transfer in refused.items {
            self.put_back(transfer.id, transfer.local);
        }
        Err(refused.error.into())
    }

    /// Gives a job its memory back.
    fn put_back(&mut self, id: u64, memory: Lent<'s, 'm>) -> Option<usize> {
        let place = usize::try_from(id / NUMBERS).ok()?;
        let job = self.jobs.get_mut(place)?.as_mut()?;
        let slot = match id % NUMBERS {
            CONTENT => &mut job.memory,
            which => job.buckets.get_mut(usize::try_from(which).ok()?)?,
        };
        *slot = memory.into_buffer();
        Some(place)
    }

    /// Ends a job; gives its work back, and keeps its buckets for the next.
    fn end(&mut self, place: usize) -> Option<(Work<'m>, Instant)> {
        let Job { task, memory, buckets: [first, second], begun, .. } =
            self.jobs.get_mut(place)?.take()?;
        self.spare.extend(first.zip(second).map(|(first, second)| [first, second]));
        let buffer = memory?.into_bytes();
        self.in_flight -= buffer.len();
        Some((Work { task, buffer }, begun))
    }

    /// Waits for completions, for a short while.
    fn wait(&mut self, worker: &Worker<'_, 'm>) -> Result<(), NodeError> {
        let Some(Session { queue, control, .. }) = &mut self.session else { return Ok(()) };
        for _ in 0..LOOKS {
            if queue.poll(&mut self.completions)? > 0 {
                return Ok(());
            }
            std::thread::yield_now();
        }
        let next = self.due.iter().map(|(when, _)| *when).min();
        let nap = next.map_or(NAP, |next| next.saturating_duration_since(Instant::now()).min(NAP));
        if queue.outstanding() == 0 {
            std::thread::sleep(nap);
        } else if queue.wait(&mut self.completions, nap)? > 0 {
            return Ok(());
        }
        if next.is_some() {
            return Ok(());
        }
        // The node's host goes on answering when the node has died, or not at all when it has.
        if control.peer_is_gone() {
            return Err(NodeError::Closed);
        }
        let patience = worker.patience();
        if self.progress.elapsed()
            >= patience.min(worker.load.options.progress_of(worker.doublings))
        {
            return Err(NodeError::Stalled(self.progress.elapsed()));
        }
        if Instant::now() >= worker.load.deadline {
            return Err(NodeError::Deadline);
        }
        Ok(())
    }

    /// Does what is next for all requests that have completed.
    fn advance(&mut self, worker: &mut Worker<'_, 'm>) -> Result<(), NodeError> {
        let mut failed = None;
        let mut contents = Vec::new();
        for Completion { id, status, item } in std::mem::take(&mut self.completions) {
            let Some(place) = self.put_back(id, item) else { continue };
            if status != Status::Success {
                // The first says why; the others are flushed.
                failed.get_or_insert(status);
                continue;
            }
            self.progress = Instant::now();
            let Some(job) = &mut self.jobs[place] else { continue };
            let step = if id % NUMBERS == CONTENT {
                let bytes = job.memory.as_deref().unwrap_or_default();
                if worker.is_whole(&job.task, bytes) {
                    self.answered = true;
                    if let Some(session) = &mut self.session {
                        session.bytes += bytes.len() as u64;
                    }
                    if let Some((work, begun)) = self.end(place) {
                        worker.supplied(&work, begun);
                    }
                    continue;
                }
                job.differs()
            } else {
                if job.buckets.iter().any(Option::is_none) {
                    continue;
                }
                let Some(session) = &self.session else { continue };
                job.looked(&session.rights.announcement.exported)
            };
            match step {
                Step::Look(pause) => self.due.push((Instant::now() + pause, place)),
                Step::Read(entry) => {
                    let (Some(session), Some(memory)) = (&self.session, job.memory.take()) else {
                        continue;
                    };
                    contents.push(Transfer {
                        id: place as u64 * NUMBERS + CONTENT,
                        local: Lent::Buffer(memory),
                        remote: session.rights.content(&entry),
                    });
                }
                Step::Absent | Step::AskNode | Step::Length(_) => {
                    let Some((work, _)) = self.end(place) else { continue };
                    match step {
                        Step::Absent => worker.missed(work),
                        Step::Length(length) => worker.wrong_length(work, length.into()),
                        _ => self.unclear.push(work),
                    }
                }
            }
        }
        if let Some(Session { queue, .. }) = &mut self.session
            && !contents.is_empty()
        {
            let posted = queue.post(contents);
            self.returned(posted)?;
        }
        let expired = self.session.as_ref().is_some_and(|session| session.rights.have_expired());
        match failed {
            None => Ok(()),
            Some(_) if expired => Err(NodeError::Expired),
            Some(status) => Err(NodeError::Rdma(status)),
        }
    }
}

impl<'m> Link<'m> for RdmaLink<'_, 'm> {
    fn step(&mut self, worker: &mut Worker<'_, 'm>) -> Option<Result<(), NodeError>> {
        if self.asking.is_busy() {
            return Some(self.asking.receive(worker));
        }
        if !self.unclear.is_empty() {
            let unclear = std::mem::take(&mut self.unclear);
            return Some(self.asking.ask(worker, unclear));
        }
        let busy = self.jobs.len() - self.spare.len();
        let free = worker.load.options.rdma_chunks.clamp(1, self.jobs.len()).saturating_sub(busy);
        if self.in_flight <= WINDOW / 2 && free > 0 {
            let room = WINDOW.saturating_sub(self.in_flight);
            match worker.take(room, free, self.is_idle()) {
                Next::Ask(run) => {
                    if self.is_idle() {
                        // Until now nothing was to come.
                        self.progress = Instant::now();
                    }
                    self.taken = run;
                    let result = self.open(worker).and_then(|()| self.begin());
                    if result.is_err() {
                        return Some(result);
                    }
                }
                Next::Nothing => (),
                Next::End if self.is_idle() => return None,
                Next::End => (),
            }
        }
        let result = self.look().and_then(|()| self.wait(worker));
        let result = result.and_then(|()| self.advance(worker));
        Some(result.and_then(|()| match &mut self.session {
            Some(Session { rights, control, .. }) => rights.keep(control),
            None => Ok(()),
        }))
    }

    fn fail(&mut self, error: &NodeError) -> Failed<'m> {
        let Failed { mut pending, mut aged, answered } = self.asking.fail(error);
        aged |= matches!(error, NodeError::Expired);
        if let Some(Session { queue, .. }) = self.session.take() {
            match queue.close() {
                Ok(completions) => {
                    for Completion { id, item, .. } in completions {
                        self.put_back(id, item);
                    }
                }
                // What the device may still write to is nobody's any more; the load cannot end well.
                Err(error) => log::error!("{error}"),
            }
        }
        self.due.clear();
        for place in 0..self.jobs.len() {
            pending.extend(self.end(place).map(|(work, _)| work));
        }
        pending.append(&mut self.taken);
        pending.append(&mut self.unclear);
        self.in_flight = 0;
        Failed { pending, aged, answered: answered | std::mem::take(&mut self.answered) }
    }

    fn close(self, node: &Node) {
        self.asking.close(node);
        if let Some(Session { queue, mut control, rights, bytes, .. }) = self.session {
            drop(queue);
            rights.release(&mut control, bytes);
            node.give_back(control);
        }
    }
}
