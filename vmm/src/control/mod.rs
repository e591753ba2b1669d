//! What a guest asks for through the control device, and what comes of it.
//!
//! The device ([`devices::control`]) copies and checks a command on the vCPU's thread and hands it to
//! the [`Desk`], which passes it on: nothing is waited for there. One thread, the [`worker`], does the
//! work; it never touches guest memory. What it has done the event loop tells the device, and so the
//! guest: there, because that thread is the one that pauses vCPUs, so that nobody writes to guest memory
//! while they stand still.
//!
//! | Module | What |
//! |---|---|
//! | [`desk`] | takes commands from the device |
//! | [`worker`] | carries them out |
//! | [`journal`] | what the guest has said of itself |
//! | [`images`] | image data for the guest |
//! | [`vms`] | VMs that a manager guest boots |

pub mod clock;
pub mod desk;
pub mod images;
pub mod journal;
pub mod vms;
pub mod worker;

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use control_abi::event::Event;
use control_abi::register::feature;
use control_abi::status::Error;
use devices::control::{Call, ControlDevice, Identity, Rate};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::clock::Clock;
use self::desk::Desk;
use self::images::Images;
use self::journal::{Journal, Note, Said, What};
use self::vms::Manager;
use self::worker::Worker;
use crate::jail::{ThreadKind, is_confined, seal_or_end};

/// The control device of this VMM.
pub type Device = ControlDevice<GuestMemoryMmap<()>, Desk>;

/// Commands and notes that wait for the worker, at most.
const QUEUE: usize = 128;

/// How long the worker may take to end what it is at.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// How many commands a guest may submit, unless it is a manager.
pub const TENANT_RATE: Rate = Rate { per_second: 1000, burst: 256 };
/// How many a manager may: it may hand over images chunk by chunk.
pub const MANAGER_RATE: Rate = Rate { per_second: 100_000, burst: 4096 };
/// How often a manager may ask for VMs.
pub const BOOT_RATE: Rate = Rate { per_second: 16, burst: 64 };

/// Something for the worker.
#[derive(Debug)]
pub enum Job {
    /// The guest has said something of itself.
    Note(Note),
    /// A command.
    Call(Call),
    /// The buffer of a command that the worker wanted to read.
    Buffer {
        /// Which command.
        ticket: u64,
        /// The VM that the chunk in it is for.
        vm: u64,
        /// The chunk's number.
        chunk: u32,
        /// What was in its buffer.
        data: Result<Vec<u8>, Error>,
    },
    /// A VM that was booted for the guest has ended.
    VmEnded(u64),
    /// The guest has ended.
    End,
}

/// Something for the event loop, which has the device.
#[derive(Debug)]
pub enum Completion {
    /// A command has ended.
    Ended {
        /// Which command.
        ticket: u64,
        /// Its output.
        result: Result<Vec<u8>, Error>,
    },
    /// The worker needs the buffer of a command.
    Wanted {
        /// Which command.
        ticket: u64,
        /// The VM that the chunk in it is for.
        vm: u64,
        /// The chunk's number.
        chunk: u32,
    },
    /// Something for the guest to know.
    Event(Event),
    /// A command that the host's agent is to carry out.
    Forward(Call),
}

/// Who the guest is, and what it may reach.
#[derive(Debug)]
pub struct Setup {
    /// Who it is.
    pub identity: Identity,
    /// The images that it may read.
    pub images: Images,
    /// What boots VMs for it, if it is a manager.
    pub manager: Option<Manager>,
    /// Where what it says is written to, a line of JSON each.
    pub events: Option<File>,
}

/// The machine's end: what it makes the device of.
#[derive(Debug)]
pub struct MachineEnd {
    /// Who the guest is.
    pub identity: Identity,
    /// Where the device hands commands to.
    pub desk: Desk,
    /// How long the guest has run.
    pub clock: Clock,
    /// For the event loop.
    pub worker: WorkerEnd,
}

/// The event loop's end.
#[derive(Debug)]
pub struct WorkerEnd {
    clock: Clock,
    /// What the worker has done.
    pub completions: Receiver<Completion>,
    /// Signalled when there is some of it.
    pub wake: Arc<EventFd>,
    /// The way back to the worker.
    pub jobs: SyncSender<Job>,
}

/// The worker, for who started it.
#[derive(Debug)]
pub struct Control {
    jobs: SyncSender<Job>,
    /// What the guest still wants when it has ended is not done.
    ending: Arc<AtomicBool>,
    said: Receiver<Said>,
}

impl WorkerEnd {
    /// The guest starts now.
    pub fn begin(&self) {
        self.clock.start();
        let note = Note { at: self.clock.elapsed(), what: What::Entry };
        // There is room: nothing was said before.
        let _ = self.jobs.try_send(Job::Note(note));
    }
}

impl Control {
    /// Starts the worker.
    ///
    /// # Errors
    /// No thread, or no eventfd.
    pub fn start(setup: Setup) -> io::Result<(Self, MachineEnd)> {
        let Setup { identity, images, manager, events } = setup;
        let (jobs, received) = sync_channel(QUEUE);
        let (sender, completions) = channel();
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let clock = Clock::default();
        let serves = identity.features & feature::ENDPOINTS != 0;
        let agent = serves.then(|| (sender.clone(), wake.clone()));
        let desk = Desk::new(jobs.clone(), agent, clock.clone());
        let journal = Journal::new(events);
        let manager = manager.map(|manager| manager.with_endings(jobs.clone()));
        let ending = Arc::<AtomicBool>::default();
        let worker = Worker::new(journal, images, manager, sender, wake.clone(), ending.clone());
        let (told, said) = sync_channel(1);
        thread::Builder::new().name("control".into()).stack_size(512 << 10).spawn(move || {
            seal_or_end(ThreadKind::Control);
            if is_confined() {
                imgcache::parallel::stay_alone();
            }
            // If nobody waits any more, the process is about to end.
            let _ = told.send(worker.run(&received));
        })?;
        let worker = WorkerEnd { clock: clock.clone(), completions, wake, jobs: jobs.clone() };
        let end = MachineEnd { identity, desk, clock, worker };
        Ok((Self { jobs, ending, said }, end))
    }

    /// Ends the worker; returns what the guest has said. A worker that is long at something is not waited
    /// for: the guest has ended, and so does this process.
    pub fn end(self) -> Said {
        self.ending.store(true, Ordering::Release);
        let begun = Instant::now();
        let mut job = Job::End;
        while let Err(TrySendError::Full(unsent)) = self.jobs.try_send(job) {
            if begun.elapsed() > END_PATIENCE {
                return Said::default();
            }
            job = unsent;
            thread::sleep(Duration::from_millis(1));
        }
        self.said.recv_timeout(END_PATIENCE).unwrap_or_default()
    }
}
