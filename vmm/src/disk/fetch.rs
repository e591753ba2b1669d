//! Threads that bring chunks, so that nobody who waits for one holds up a request that needs none.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use imgcache::image::manifest::ChunkSpan;
use imgcache::lazy::{ChunkSource, SourceError};

use crate::jail::{ThreadKind, is_confined, seal_or_end};

/// Threads of a disk that bring chunks: a chunk that is long in coming does not hold up all others.
const THREADS: usize = 2;
/// Chunks that one thread asks for at a time, at most.
const BATCH_CHUNKS: usize = 8;
/// How far apart in the table those are that are asked for together.
const NEAR: u32 = 8;
/// Their bytes, but at least one chunk.
const BATCH_BYTES: u32 = 1 << 20;

/// What was brought, or why not.
pub type Brought = Box<dyn Fn(u32, Result<Vec<u8>, SourceError>) + Send + Sync>;

#[derive(Debug, Default)]
struct Queue {
    /// Somebody waits for these.
    wanted: VecDeque<ChunkSpan>,
    /// Somebody may want these next.
    ahead: VecDeque<ChunkSpan>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The chunks that a thread brings next; none when it shall end.
    fn next(&self) -> Vec<ChunkSpan> {
        let mut queue = self.lock();
        loop {
            if queue.closed {
                return Vec::new();
            }
            let Queue { wanted, ahead, .. } = &mut *queue;
            // Not mixed: what nobody waits for must hold nobody up.
            let from = if wanted.is_empty() { ahead } else { wanted };
            let mut batch = Vec::new();
            let mut bytes = 0;
            while let Some(chunk) = from.front().copied() {
                // Of one request, then: one that is long in coming holds up no other.
                let follows = batch.last().is_none_or(|last: &ChunkSpan| {
                    (last.index..last.index.saturating_add(NEAR)).contains(&chunk.index)
                });
                let room = bytes + chunk.length <= BATCH_BYTES && batch.len() < BATCH_CHUNKS;
                if !(batch.is_empty() || follows && room) {
                    break;
                }
                from.pop_front();
                bytes += chunk.length;
                batch.push(chunk);
            }
            if !batch.is_empty() {
                return batch;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The threads. Ended when dropped, each after what it is at: nobody waits for that.
#[derive(Debug)]
pub struct Fetchers(Arc<Shared>);

impl Fetchers {
    /// Starts them; `brought` is called for every chunk that they are told to bring, on their threads.
    ///
    /// # Errors
    /// The host gives no thread.
    pub fn start(source: &Arc<dyn ChunkSource>, brought: Brought) -> io::Result<Self> {
        let fetchers = Self(Arc::default());
        let brought = Arc::new(brought);
        for number in 0..THREADS {
            let (source, shared) = (Arc::clone(source), Arc::clone(&fetchers.0));
            let brought = Arc::clone(&brought);
            let work = move || {
                seal_or_end(ThreadKind::Fetch);
                if is_confined() {
                    imgcache::parallel::stay_alone();
                }
                loop {
                    let batch = shared.next();
                    if batch.is_empty() {
                        break;
                    }
                    for (chunk, result) in batch.iter().zip(source.fetch(&batch)) {
                        brought(chunk.index, result);
                    }
                }
            };
            std::thread::Builder::new().name(format!("fetch{number}")).spawn(work)?;
        }
        Ok(fetchers)
    }

    /// Has a chunk brought; `waited_for` says whether somebody waits for it already.
    pub fn bring(&self, chunk: ChunkSpan, waited_for: bool) {
        let mut queue = self.0.lock();
        if waited_for {
            queue.wanted.push_back(chunk);
        } else {
            queue.ahead.push_back(chunk);
        }
        drop(queue);
        self.0.changed.notify_one();
    }

    /// Somebody waits now for a chunk that was to be brought in case.
    pub fn hurry(&self, index: u32) {
        let mut queue = self.0.lock();
        if let Some(at) = queue.ahead.iter().position(|chunk| chunk.index == index)
            && let Some(chunk) = queue.ahead.remove(at)
        {
            queue.wanted.push_back(chunk);
        }
    }
}

impl Drop for Fetchers {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}
