//! Settling: what was mapped from a file becomes the guest's own memory, in huge pages, while the
//! guest starts.
//!
//! Mapping makes a guest ready at once, but leaves it with pages that are not its own. Linux frees
//! its ramdisk after it has unpacked it, and overwrites all of it as it does (`free_initrd_mem`
//! hands `free_reserved_area` a poison; init/initramfs.c): each page would be copied in a fault, and
//! each 2 MiB mapping be broken up into 512. Before that, a kernel starts for long enough to do the
//! copying here.
//!
//! A thread copies batch after batch out of the file, and hands each to the event loop. That pauses
//! the vCPUs, so that nothing else reaches for guest memory (the devices that vCPUs do not serve
//! are its own), and moves the batch's pages over the mapping. Whatever fails leaves the guest with
//! the mapping, which is correct, only slower.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::mapped::{MappedError, MappedPart, Replacement};
use super::running::RunningVcpus;
use crate::host::footprint;
use crate::jail::{ThreadKind, seal_or_end};

/// So many bytes are copied between two pauses. Each pause costs an exit for each vCPU, and what
/// is copied and not yet in place is memory taken twice.
const BATCH: u64 = 32 << 20;
/// How long a pause may take to come about. The event loop waits for it.
const PAUSE_LIMIT: Duration = Duration::from_millis(100);
/// When a pause that did not come about is tried again, at first; then in twice the time, and so on.
const RETRY: Duration = Duration::from_millis(100);
/// The longest of these times.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// How far settling came.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Settled {
    /// Bytes that were mapped when the guest was started.
    pub mapped_bytes: u64,
    /// Bytes of these that are the guest's own memory by now.
    pub settled_bytes: u64,
    /// Bytes of these that the guest had written before, or (before Linux 6.7, which tells it page
    /// by page) may have: they were copied once more, while the guest was paused.
    pub written_bytes: u64,
    /// Milliseconds from the guest's first instruction until all was its own; none if it ended
    /// before, or something failed.
    pub settled_ms: Option<f64>,
    /// Milliseconds that the guest was paused for in all.
    pub paused_ms: f64,
    /// The longest single pause, in milliseconds.
    pub longest_pause_ms: f64,
}

/// From the thread.
enum Report {
    Filled(Replacement),
    Ended(Option<MappedError>),
}

/// To the thread; a channel that is closed tells it to end.
enum Answer {
    /// On with the next batch.
    Next,
    /// This one could not be put in place now.
    Later(Replacement),
}

/// Settling under way, as the event loop has it. Ends the thread when dropped.
#[derive(Debug)]
pub struct Settling {
    // What is mapped; the files are kept, so that the store leaves them alone, until none is needed.
    parts: Vec<MappedPart>,
    begun: Instant,
    wake: Arc<EventFd>,
    stop: Arc<AtomicBool>,
    worker: Option<Worker>,
    settled: Settled,
}

#[derive(Debug)]
struct Worker {
    thread: JoinHandle<()>,
    reports: Receiver<Report>,
    answers: Sender<Answer>,
}

impl std::fmt::Debug for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Filled(_) => "Filled",
            Self::Ended(_) => "Ended",
        })
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Next => "Next",
            Self::Later(_) => "Later",
        })
    }
}

impl Settling {
    /// Starts to copy `parts`. If there can be no thread, they stay mapped.
    ///
    /// # Errors
    /// No eventfd.
    pub fn start(parts: Vec<MappedPart>) -> std::io::Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let mapped_bytes = parts.iter().map(MappedPart::length).sum();
        let mut settling = Self {
            parts,
            begun: Instant::now(),
            wake,
            stop: Arc::default(),
            worker: None,
            settled: Settled { mapped_bytes, ..Settled::default() },
        };
        match settling.start_worker() {
            Ok(worker) => settling.worker = Some(worker),
            Err(error) => log::warn!("the ramdisk stays mapped: no thread to copy it: {error}"),
        }
        Ok(settling)
    }

    fn start_worker(&self) -> std::io::Result<Worker> {
        let (report, reports) = channel();
        let (answers, answer) = channel();
        let (parts, stop, wake) = (self.parts.clone(), self.stop.clone(), self.wake.clone());
        let thread = std::thread::Builder::new()
            .name("settle".into())
            .stack_size(128 << 10)
            .spawn(move || {
                seal_or_end(ThreadKind::Settle);
                let tell = |message| {
                    // Nobody listens any more, or is awake anyway.
                    let _ = report.send(message);
                    let _ = wake.write(1);
                };
                let error = copy_all(&parts, &stop, &answer, &tell).err();
                drop(parts);
                tell(Report::Ended(error));
            })?;
        Ok(Worker { thread, reports, answers })
    }

    /// What becomes readable when [`step`](Self::step) is to be called.
    pub fn wake(&self) -> Arc<EventFd> {
        self.wake.clone()
    }

    /// Does what the thread waits for.
    ///
    /// # Errors
    /// [`MappedError::Lost`]: the guest cannot go on.
    pub fn step(&mut self, running: &mut RunningVcpus) -> Result<(), MappedError> {
        let Some(worker) = &self.worker else { return Ok(()) };
        match worker.reports.try_recv() {
            Ok(Report::Filled(replacement)) => match self.settled.install(replacement, running) {
                Ok(answer) => {
                    // It waits for it.
                    let _ = worker.answers.send(answer);
                    Ok(())
                }
                Err(error @ MappedError::Lost { .. }) => Err(error),
                Err(error) => {
                    self.conclude(Some(&error));
                    Ok(())
                }
            },
            Ok(Report::Ended(error)) => {
                self.conclude(error.as_ref());
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    fn conclude(&mut self, error: Option<&MappedError>) {
        self.join();
        if let Some(error) = error {
            log::warn!("part of the ramdisk stays mapped: {error}");
        } else if self.settled.settled_bytes == self.settled.mapped_bytes {
            self.settled.settled_ms = Some(milliseconds(self.begun.elapsed()));
            self.parts.clear();
            // Of what runs on, nothing has to do with it.
            footprint::release_code();
        }
    }

    fn join(&mut self) {
        let Some(Worker { thread, reports, answers }) = self.worker.take() else { return };
        drop(answers);
        drop(reports);
        if thread.join().is_err() {
            log::error!("the thread that copies the ramdisk panicked");
        }
    }

    /// Goes no further, and gives back what is not in place; returns how far it came.
    ///
    /// What is still mapped needs this to live for as long as the guest.
    pub fn end(&mut self) -> Settled {
        self.stop.store(true, Ordering::Relaxed);
        self.join();
        self.settled.clone()
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.end();
    }
}

impl Settled {
    /// Pauses the guest and puts `replacement` in place, if it pauses in time.
    fn install(
        &mut self,
        replacement: Replacement,
        running: &mut RunningVcpus,
    ) -> Result<Answer, MappedError> {
        let begun = Instant::now();
        let length = replacement.length();
        let (answer, installed) = match running.pause(PAUSE_LIMIT) {
            // SAFETY: no vCPU is in the guest or with a device, the other devices are served by
            // this thread, and no slice of the memory of a machine is lent.
            Some(_paused) => (Answer::Next, unsafe { replacement.install() }.map(Some)),
            None => (Answer::Later(replacement), Ok(None)),
        };
        let pause = milliseconds(begun.elapsed());
        self.paused_ms = rounded(self.paused_ms + pause);
        self.longest_pause_ms = self.longest_pause_ms.max(pause);
        if let Some(written) = installed? {
            self.settled_bytes += length;
            self.written_bytes += written;
        }
        Ok(answer)
    }
}

/// The thread's work: hands batch after batch to `tell` and waits for the answer to each.
fn copy_all(
    parts: &[MappedPart],
    stop: &AtomicBool,
    answers: &Receiver<Answer>,
    tell: &dyn Fn(Report),
) -> Result<(), MappedError> {
    for batch in parts.iter().flat_map(|part| part.split(BATCH)) {
        let Some(mut replacement) = batch.copy(stop)? else { return Ok(()) };
        let mut wait = RETRY;
        loop {
            tell(Report::Filled(replacement));
            replacement = match answers.recv() {
                Ok(Answer::Next) => break,
                Ok(Answer::Later(replacement)) => replacement,
                Err(_) => return Ok(()),
            };
            // Nothing is sent meanwhile, but the channel may be closed.
            if answers.recv_timeout(wait).err() == Some(RecvTimeoutError::Disconnected) {
                return Ok(());
            }
            wait = RETRY_MAX.min(wait * 2);
        }
    }
    Ok(())
}

fn milliseconds(duration: Duration) -> f64 {
    rounded(duration.as_secs_f64() * 1e3)
}

/// Milliseconds to the microsecond.
fn rounded(milliseconds: f64) -> f64 {
    (milliseconds * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests;
