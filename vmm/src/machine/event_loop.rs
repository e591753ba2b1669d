//! The loop of the main thread: console input, signals, queue notifications, the guest's end.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::event::GuestEvent;
use devices::ioapic::Ioapic;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::EventFd;

use super::agent::AgentLink;
use super::attach::SocketEvents;
use super::console::ConsoleInput;
use super::control_events::ControlEvents;
use super::event::MachineEvent;
use super::mapped::MappedPart;
use super::outcome::Outcome;
use super::routes::RouteTable;
use super::running::RunningVcpus;
use super::settle::Settling;
use super::signals::Signals;
use super::terminal::RawTerminal;
use super::{Keyboard, Life, Machine, MachineError, Virtio, vcpu};
use crate::host::footprint;
use crate::jail::{ThreadKind, seal};

/// How long a guest that has reported a panic may go on: to print the rest, or to restart.
const PANIC_GRACE: Duration = Duration::from_secs(1);
/// How long the loop sleeps at most while such a guest goes on.
const PANIC_POLL_MS: i32 = 50;

/// What the subscribers leave for the loop.
#[derive(Debug, Default)]
pub struct Verdict {
    outcome: Cell<Option<Outcome>>,
    failure: RefCell<Option<String>>,
    panicked: Cell<Option<Instant>>,
    settle: Cell<bool>,
    start: Cell<bool>,
}

impl Verdict {
    /// The guest's life is over. The first end counts.
    pub fn end(&self, outcome: Outcome) {
        if self.outcome.get().is_some() {
            return;
        }
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

    /// The guest may begin.
    pub fn start(&self) {
        self.start.set(true);
    }

    /// The VM cannot go on, for a reason that is not the guest's.
    pub fn fail(&self, reason: String) {
        self.failure.borrow_mut().get_or_insert(reason);
    }

    /// Has the loop wait for `events`. A VM whose end nobody would notice must not run.
    pub fn add(&self, ops: &mut EventOps<'_>, events: Events) {
        if let Err(error) = ops.add(events) {
            self.fail(format!("event loop: {error}"));
        }
    }
}

/// The lock of a device; one that a panic poisoned is as good as it was.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a guest's life begins with.
pub struct Beginning {
    /// Its processors.
    pub vcpus: Vec<VcpuFd>,
    /// What is to become its own memory.
    pub mapped: Vec<MappedPart>,
    /// Where its console's input comes from.
    pub keyboard: Keyboard,
    /// Whether it begins only when it is told to.
    pub hold: bool,
}

/// A guest that runs.
struct Begun {
    running: RunningVcpus,
    settling: Option<Settling>,
    at: Instant,
}

/// Starts the processors, as soon as it may, and waits for the guest's end.
pub fn run(machine: &Machine, beginning: Beginning) -> Result<Life, MachineError> {
    let Beginning { vcpus, mapped, keyboard, hold } = beginning;
    let verdict = Rc::new(Verdict::default());
    let mut manager = EventManager::<Box<dyn MutEventSubscriber + '_>>::new()
        .map_err(|error| MachineError::Failed(format!("event loop: {error}")))?;
    manager.add_subscriber(Box::new(GuestEvents { machine, verdict: verdict.clone() }));
    manager.add_subscriber(Box::new(Signals::new(verdict.clone())?));
    for device in &machine.virtio {
        let verdict = verdict.clone();
        manager.add_subscriber(Box::new(VirtioEvents { device: device.clone(), verdict }));
    }
    let agent = AgentLink::new(machine.control.device.clone(), machine.identifiers.clone());
    let agent = Rc::new(RefCell::new(agent));
    let control = ControlEvents::new(&machine.control, agent.clone(), verdict.clone());
    manager.add_subscriber(Box::new(control));
    let mut terminal = None;
    match keyboard {
        Keyboard::None => {}
        Keyboard::Terminal => {
            manager.add_subscriber(Box::new(ConsoleInput::new(&machine.serial, verdict.clone())?));
            terminal = RawTerminal::enter().map_err(MachineError::system("set up the terminal"))?;
        }
        Keyboard::Socket(socket) => {
            let socket = SocketEvents::new(socket, &machine.serial, agent, verdict.clone())?;
            manager.add_subscriber(Box::new(socket));
        }
    }
    if let Some(failure) = verdict.failure.take() {
        return Err(MachineError::Failed(failure));
    }
    let mut waiting = Some((vcpus, mapped));
    let mut begun = None;
    if !hold {
        verdict.start();
    }
    let outcome = loop {
        if verdict.start.take()
            && let Some((vcpus, mapped)) = waiting.take()
        {
            begun = Some(begin(machine, vcpus, mapped, &mut manager, &verdict)?);
        }
        let timeout = if verdict.panicked.get().is_some() { PANIC_POLL_MS } else { -1 };
        match manager.run_with_timeout(timeout) {
            Ok(_) => {}
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EINTR => {}
            Err(error) => break Err(MachineError::Failed(format!("event loop: {error}"))),
        }
        if verdict.settle.take()
            && let Some(Begun { running, settling: Some(settling), .. }) = &mut begun
            && let Err(error) = settling.step(running)
        {
            verdict.fail(error.to_string());
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
    // First, since what is not in place yet is nobody's memory.
    let settled = begun.as_mut().and_then(|begun| begun.settling.as_mut()).map(Settling::end);
    let ran = begun.as_ref().map(|begun| begun.at.elapsed()).unwrap_or_default();
    // While everything is still there.
    let life = outcome.map(|outcome| machine.account(outcome, ran, settled));
    drop(begun);
    drop(terminal);
    life
}

/// Starts the processors.
fn begin<'m>(
    machine: &'m Machine,
    vcpus: Vec<VcpuFd>,
    mapped: Vec<MappedPart>,
    manager: &mut EventManager<Box<dyn MutEventSubscriber + 'm>>,
    verdict: &Rc<Verdict>,
) -> Result<Begun, MachineError> {
    let mut settling = None;
    if !mapped.is_empty() {
        let new = Settling::start(mapped).map_err(MachineError::system("make an eventfd"))?;
        manager
            .add_subscriber(Box::new(SettleEvents { wake: new.wake(), verdict: verdict.clone() }));
        settling = Some(new);
    }
    machine.control.end.begin();
    let mut running = vcpu::start(vcpus, &machine.platform)
        .map_err(MachineError::system("start the processors"))?;
    // There is nothing to start any more, and the guest has not begun. What was run for that is not run again.
    footprint::release_code();
    seal(ThreadKind::EventLoop)?;
    running.release();
    Ok(Begun { running, settling, at: Instant::now() })
}

/// Why a guest that reset itself did so.
///
/// A kernel with a driver for pvpanic says that it panicked. One without, as stock kernels are
/// before modules are loaded, can still be told: an orderly restart quiesces the I/O APIC first
/// (Linux, `native_machine_shutdown`), the emergency restart after a panic does not; and a guest
/// that has not used a single interrupt line yet has no user space that could have asked for a
/// restart. That is a guess, and a good one: an emergency restart by hand (sysrq-b) counts as a
/// panic too.
fn reason_of_reset(ioapic: &Ioapic<RouteTable>) -> Outcome {
    if ioapic.any_unmasked() || !ioapic.ever_unmasked() {
        Outcome::Panicked
    } else {
        Outcome::Reset
    }
}

/// What devices and processors report.
struct GuestEvents<'a> {
    machine: &'a Machine,
    verdict: Rc<Verdict>,
}

impl MutEventSubscriber for GuestEvents<'_> {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        let _ = self.machine.events.wake.read();
        // Few: each kind is sent once.
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
                MachineEvent::Failed(reason) => self.verdict.fail(reason),
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.verdict.add(ops, Events::new(&*self.machine.events.wake, EventSet::IN));
    }
}

/// A batch of mapped memory that waits to be put in place: by the loop itself, since no subscriber
/// has the vCPUs.
struct SettleEvents {
    wake: Arc<EventFd>,
    verdict: Rc<Verdict>,
}

impl MutEventSubscriber for SettleEvents {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        let _ = self.wake.read();
        self.verdict.settle.set(true);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.verdict.add(ops, Events::new(&*self.wake, EventSet::IN));
    }
}

/// A virtio device: the notifications of its queues, and the host's side of it.
struct VirtioEvents {
    device: Arc<Mutex<Virtio>>,
    verdict: Rc<Verdict>,
}

/// What the event of the host's side is registered with; queues are with their numbers.
const HOST_SIDE: u32 = u32::MAX;

impl MutEventSubscriber for VirtioEvents {
    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        let mut device = lock(&self.device);
        if events.data() == HOST_SIDE {
            device.handle_host_event();
        } else {
            device.handle_queue_event(events.data() as usize);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let device = lock(&self.device);
        for (queue, event) in (0u32..).zip(device.queue_events()) {
            self.verdict.add(ops, Events::with_data(event, queue, EventSet::IN));
        }
        if let Some(event) = device.host_event() {
            self.verdict.add(ops, Events::with_data(&event, HOST_SIDE, EventSet::IN));
        }
    }
}
