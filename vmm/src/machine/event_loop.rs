//! The loop of the main thread: console input, signals, queue notifications, the guest's end.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::event::GuestEvent;
use devices::ioapic::Ioapic;
use devices::serial::SerialConsole;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::rng::Rng;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use kvm_ioctls::VcpuFd;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::escape::{self, EscapeFilter, Wish};
use super::event::MachineEvent;
use super::kvm::RouteTable;
use super::outcome::Outcome;
use super::terminal::RawTerminal;
use super::{Machine, MachineError, vcpu};

/// How long a guest that has reported a panic may go on: to print the rest, or to restart.
const PANIC_GRACE: Duration = Duration::from_secs(1);
/// How long the loop sleeps at most while such a guest goes on.
const PANIC_POLL_MS: i32 = 50;
/// Signals that end the VM.
const SIGNALS: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// What the subscribers leave for the loop.
#[derive(Debug, Default)]
struct Verdict {
    outcome: Cell<Option<Outcome>>,
    failure: RefCell<Option<String>>,
    panicked: Cell<Option<Instant>>,
}

impl Verdict {
    fn end(&self, outcome: Outcome) {
        // What a panicked guest does afterwards does not change what it died of.
        let outcome = if self.panicked.get().is_some()
            && !matches!(outcome, Outcome::Signal(_) | Outcome::Quit)
        {
            Outcome::Panicked
        } else {
            outcome
        };
        self.outcome.set(Some(outcome));
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the processors and waits for the guest's end.
pub fn run(machine: &Machine, vcpus: Vec<VcpuFd>) -> Result<Outcome, MachineError> {
    let verdict = Rc::new(Verdict::default());
    let mut manager = EventManager::<Box<dyn MutEventSubscriber + '_>>::new()
        .map_err(|error| MachineError::Failed(format!("event loop: {error}")))?;
    manager.add_subscriber(Box::new(GuestEvents { machine, verdict: verdict.clone() }));
    manager.add_subscriber(Box::new(Signals::new(verdict.clone())?));
    manager.add_subscriber(Box::new(QueueEvents { device: machine.rng.clone() }));
    manager.add_subscriber(Box::new(ConsoleInput::new(&machine.serial, verdict.clone())?));

    let terminal = RawTerminal::enter().map_err(MachineError::system("set up the terminal"))?;
    let running = vcpu::start(vcpus, &machine.platform)
        .map_err(MachineError::system("start the processors"))?;
    let outcome = loop {
        let timeout = if verdict.panicked.get().is_some() { PANIC_POLL_MS } else { -1 };
        match manager.run_with_timeout(timeout) {
            Ok(_) => {}
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EINTR => {}
            Err(error) => break Err(MachineError::Failed(format!("event loop: {error}"))),
        }
        if let Some(failure) = verdict.failure.take() {
            break Err(MachineError::Failed(failure));
        }
        if let Some(outcome) = verdict.outcome.take() {
            break Ok(outcome);
        }
        if verdict.panicked.get().is_some_and(|at| at.elapsed() > PANIC_GRACE) {
            break Ok(Outcome::Panicked);
        }
    };
    drop(running);
    drop(terminal);
    outcome
}

/// Why a guest that reset itself did so.
///
/// A kernel with a driver for pvpanic says that it panicked. One without, as stock kernels are
/// before modules are loaded, can still be told: an orderly restart quiesces the I/O APIC first
/// (Linux, `native_machine_shutdown`), the emergency restart after a panic does not.
fn reason_of_reset(ioapic: &Ioapic<RouteTable>) -> Outcome {
    if ioapic.any_unmasked() { Outcome::Panicked } else { Outcome::Reset }
}

/// What devices and processors report.
struct GuestEvents<'a> {
    machine: &'a Machine,
    verdict: Rc<Verdict>,
}

impl MutEventSubscriber for GuestEvents<'_> {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        let _ = self.machine.events.wake.read();
        while let Ok(event) = self.machine.events.events.try_recv() {
            match event {
                MachineEvent::Guest(GuestEvent::PowerOff) => self.verdict.end(Outcome::PoweredOff),
                MachineEvent::Guest(GuestEvent::Reset) => {
                    let outcome = reason_of_reset(&lock(&self.machine.platform.ioapic));
                    self.verdict.end(outcome);
                }
                MachineEvent::Guest(GuestEvent::Panicked) => {
                    if self.verdict.panicked.get().is_none() {
                        self.verdict.panicked.set(Some(Instant::now()));
                    }
                }
                // The guest has a crash kernel, which decides what comes next.
                MachineEvent::Guest(GuestEvent::CrashLoaded) => {
                    log::warn!("the guest panicked and starts its crash kernel");
                }
                MachineEvent::TripleFault => self.verdict.end(Outcome::TripleFault),
                MachineEvent::Failed(reason) => {
                    self.verdict.failure.replace(Some(reason));
                }
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        add(ops, Events::new(&*self.machine.events.wake, EventSet::IN));
    }
}

/// Registers `events`. It can only fail for want of memory, and then the VM still runs.
fn add(ops: &mut EventOps<'_>, events: Events) {
    if let Err(error) = ops.add(events) {
        log::error!("event loop: {error}");
    }
}

/// Signals that end the VM, each through a pipe of its own.
struct Signals {
    pipes: Vec<(i32, UnixStream)>,
    registered: Vec<signal_hook::SigId>,
    verdict: Rc<Verdict>,
}

impl Signals {
    fn new(verdict: Rc<Verdict>) -> Result<Self, MachineError> {
        let mut signals = Self { pipes: Vec::new(), registered: Vec::new(), verdict };
        for signal in SIGNALS {
            let register = || {
                let (read, write) = UnixStream::pair()?;
                read.set_nonblocking(true)?;
                Ok((signal_hook::low_level::pipe::register(signal, write)?, read))
            };
            let (id, read) = register().map_err(MachineError::system("handle signals"))?;
            signals.registered.push(id);
            signals.pipes.push((signal, read));
        }
        Ok(signals)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        if let Some((signal, _)) =
            self.pipes.iter().find(|(_, pipe)| pipe.as_raw_fd() == events.fd())
        {
            self.verdict.end(Outcome::Signal(*signal));
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (_, pipe) in &self.pipes {
            add(ops, Events::new(pipe, EventSet::IN));
        }
    }
}

/// The queues of a virtio device.
struct QueueEvents {
    device: Arc<Mutex<MmioTransport<Rng>>>,
}

impl MutEventSubscriber for QueueEvents {
    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        lock(&self.device).handle_queue_event(events.data() as usize);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let device = lock(&self.device);
        for (queue, event) in (0u32..).zip(device.queue_events()) {
            add(ops, Events::with_data(event, queue, EventSet::IN));
        }
    }
}

/// Standard input, on its way into the serial port.
struct ConsoleInput {
    serial: Arc<Mutex<SerialConsole>>,
    /// Signalled when the serial port has room again.
    room: EventFd,
    filter: EscapeFilter,
    pending: Vec<u8>,
    /// Whether standard input is waited for.
    listening: bool,
    /// Whether it can still say something.
    open: bool,
    verdict: Rc<Verdict>,
}

const STDIN: RawFd = 0;

impl ConsoleInput {
    fn new(serial: &Arc<Mutex<SerialConsole>>, verdict: Rc<Verdict>) -> Result<Self, MachineError> {
        let make = || {
            let room = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
            lock(serial).set_input_ready(room.try_clone()?);
            Ok(room)
        };
        let room = make().map_err(MachineError::system("make an eventfd"))?;
        Ok(Self {
            serial: serial.clone(),
            room,
            filter: EscapeFilter::default(),
            pending: Vec::new(),
            listening: false,
            open: true,
            verdict,
        })
    }

    /// Waits for standard input, or no longer does.
    fn listen(&mut self, wanted: bool, ops: &mut EventOps<'_>) {
        if wanted == self.listening {
            return;
        }
        let events = Events::new_raw(STDIN, EventSet::IN);
        let done = if wanted { ops.add(events) } else { ops.remove(events) };
        // A regular file or /dev/null cannot be waited for, and a guest needs no input.
        self.listening = wanted && done.is_ok();
        self.open &= done.is_ok();
    }

    /// Reads what is there; whether there can be more later.
    fn read_input(&mut self) -> bool {
        let mut buffer = [0; 256];
        // Not by the standard library's handle: what that buffers, no event tells of.
        let count = match rustix::io::read(std::io::stdin(), &mut buffer) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return error == rustix::io::Errno::INTR,
        };
        match self.filter.filter(&buffer[..count], &mut self.pending) {
            Some(Wish::Quit) => self.verdict.end(Outcome::Quit),
            Some(Wish::Help) => {
                // A console that is not shown needs no help.
                let _ = std::io::stderr().write_all(escape::HELP.as_bytes());
            }
            None => {}
        }
        true
    }

    /// Hands on as much as the serial port takes.
    fn deliver(&mut self) {
        let taken = lock(&self.serial).receive(&self.pending);
        self.pending.drain(..taken);
    }
}

impl MutEventSubscriber for ConsoleInput {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() == STDIN {
            self.open = self.read_input();
        } else {
            let _ = self.room.read();
        }
        self.deliver();
        // Nothing is read while the guest does not take what was read before.
        self.listen(self.open && self.pending.is_empty(), ops);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        add(ops, Events::new(&self.room, EventSet::IN));
        self.listen(true, ops);
    }
}
