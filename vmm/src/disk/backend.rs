//! The device's end of a disk: hands its requests to the thread that carries them out, and its
//! completions back.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use devices::virtio::blk::{BlockBackend, Completion, Failed, Request};
use imgcache::image::manifest::Segment;
use imgcache::key::ManifestId;
use imgcache::lazy::ChunkSource;
use rustix::event::{EventfdFlags, eventfd};

use super::counters::Counters;
use super::fetch::Fetchers;
use super::map::SECTOR;
use super::overlay::Overlay;
use super::worker::{Message, Worker};
use crate::jail::{ThreadKind, seal_or_end};

/// Completions on their way to the device.
#[derive(Debug)]
pub struct Done {
    completions: Mutex<VecDeque<Completion>>,
    event: OwnedFd,
}

impl Done {
    fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { completions: Mutex::default(), event })
    }

    /// Hands a completion to the device.
    pub fn push(&self, completion: Completion) {
        let mut completions = self.completions.lock().unwrap_or_else(PoisonError::into_inner);
        completions.push_back(completion);
        self.signal();
    }

    fn signal(&self) {
        // A counter that is full has been signalled already.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    fn pop(&self) -> Option<Completion> {
        let mut completions = self.completions.lock().unwrap_or_else(PoisonError::into_inner);
        let next = completions.pop_front();
        if next.is_none() {
            // With the lock held, so that no signal of a completion is taken away.
            let _ = rustix::io::read(&self.event, &mut [0; 8]);
        }
        next
    }
}

/// A disk, as its device sees it.
#[derive(Debug)]
pub struct LazyDisk {
    sectors: u64,
    writable: bool,
    id: [u8; 20],
    sender: Sender<Message>,
    done: Arc<Done>,
    worker: Option<JoinHandle<()>>,
}

impl LazyDisk {
    /// Starts the threads of the disk `segment` of the source's image, whose manifest has this id.
    ///
    /// # Errors
    /// The host gives no thread or no event.
    pub fn start(
        source: Arc<dyn ChunkSource>,
        manifest: &ManifestId,
        segment: &Segment,
        overlay: Option<Overlay>,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let chunks = segment.first_chunk..segment.first_chunk.saturating_add(segment.chunk_count);
        let sectors = segment.data_length / SECTOR;
        let (writable, done) = (overlay.is_some(), Arc::new(Done::new()?));
        let (sender, messages) = channel();
        let brought = sender.clone();
        let brought = move |index, result| {
            // Nobody is there any more: the VM has ended.
            let _ = brought.send(Message::Brought(index, result));
        };
        let fetchers = Fetchers::start(&source, Box::new(brought))?;
        let worker = Worker::new(source, chunks, overlay, fetchers, Arc::clone(&done), counters);
        let work = move || {
            seal_or_end(ThreadKind::Disk);
            worker.run(&messages);
        };
        let worker = std::thread::Builder::new().name("disk".into()).spawn(work)?;
        let mut id = [0; 20];
        for (place, letter) in id.iter_mut().zip(manifest.to_string().bytes()) {
            *place = letter;
        }
        Ok(Self { sectors, writable, id, sender, done, worker: Some(worker) })
    }
}

impl BlockBackend for LazyDisk {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn is_writable(&self) -> bool {
        self.writable
    }

    fn id(&self) -> [u8; 20] {
        self.id
    }

    fn submit(&mut self, request: Request) {
        let tag = request.tag;
        if self.sender.send(Message::Request(request)).is_err() {
            // The thread has panicked, and has said so.
            self.done.push(Completion { tag, result: Err(Failed) });
        }
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.done.event.as_fd()
    }

    fn wake(&self) {
        self.done.signal();
    }

    fn completion(&mut self) -> Option<Completion> {
        self.done.pop()
    }
}

impl Drop for LazyDisk {
    fn drop(&mut self) {
        let _ = self.sender.send(Message::End);
        // It is at most at what was submitted before, and then brings the overlay to the disk.
        if let Some(worker) = self.worker.take()
            && worker.join().is_err()
        {
            log::error!("the thread of a disk panicked");
        }
    }
}
