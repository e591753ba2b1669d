//! One thread that waits for all VMs: for what they tell when they are ready, and for their ends.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::clock::now_ms;
use super::group;
use super::launch::REPORT;
use super::registry::Registry;
use crate::api::{Phase, VmEnd, VmNetwork, VmState};
use crate::boot::stopwatch::milliseconds;
use crate::control::vms::folder::VmFolder;
use crate::exit::Exit;
use crate::machine::outcome::Outcome;
use crate::net::ovs;
use crate::process::link::{Link, Told};

/// How long a VM that was told to end may take, before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// How many events are taken at a time.
const BATCH: usize = 64;
/// What the epoll knows the wake-up by; VMs are known by twice their number, and one more for a link.
const WAKE: u64 = u64::MAX;

/// What the supervisor is told.
#[derive(Debug)]
enum Order {
    Watch(Watched),
    /// Kill this one if it still lives after a while.
    Impatience(u64),
}

/// A VM that is to be watched.
#[derive(Debug)]
pub struct Watched {
    /// Its number.
    pub number: u64,
    /// Its process.
    pub process: Arc<OwnedFd>,
    /// Its link, if it has not told anything yet.
    pub link: Option<Link>,
    /// Its folder.
    pub folder: VmFolder,
    /// Whether it waits when it is ready.
    pub hold: bool,
}

/// Tells the supervisor.
#[derive(Debug, Clone)]
pub struct Supervisor {
    orders: Sender<Order>,
    wake: Arc<OwnedFd>,
}

impl Supervisor {
    /// Starts the thread. Of VMs that have ended, `keep` are remembered.
    ///
    /// # Errors
    /// No thread, or no descriptors.
    pub fn start(registry: Registry, keep: usize) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let (orders, received) = channel();
        let (watched, deadlines) = (Vec::new(), Vec::new());
        // By itself: another program is waited for.
        let (left, ports) = channel::<VmNetwork>();
        thread::Builder::new().name("vm-ports".into()).spawn(move || {
            for VmNetwork { bridge, tap, .. } in ports {
                ovs::leave(bridge.as_deref().unwrap_or_default(), &tap);
            }
        })?;
        let wakes = wake.clone();
        let thread =
            Thread { registry, keep, epoll, wake: wakes, received, watched, deadlines, left };
        thread::Builder::new()
            .name("supervisor".into())
            .stack_size(256 << 10)
            .spawn(move || thread.run())?;
        Ok(Self { orders, wake })
    }

    fn order(&self, order: Order) {
        // It lives as long as the process.
        let _ = self.orders.send(order);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Watches a VM.
    pub fn watch(&self, vm: Watched) {
        self.order(Order::Watch(vm));
    }

    /// Kills a VM that has not ended after five seconds.
    pub fn impatience(&self, number: u64) {
        self.order(Order::Impatience(number));
    }
}

struct Thread {
    registry: Registry,
    keep: usize,
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
    received: Receiver<Order>,
    watched: Vec<Watched>,
    deadlines: Vec<(Instant, u64)>,
    /// Where VMs were that have ended.
    left: Sender<VmNetwork>,
}

impl Thread {
    fn run(mut self) {
        let mut events = Vec::with_capacity(BATCH);
        loop {
            let timeout = self.deadlines.iter().map(|(at, _)| *at).min().map(|at| {
                let left = at.saturating_duration_since(Instant::now());
                Timespec::try_from(left + Duration::from_millis(1)).unwrap_or_default()
            });
            events.clear();
            let space = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, space, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => log::error!("waiting for VMs: {error}"),
            }
            let data: Vec<u64> = events.iter().map(|event| event.data.u64()).collect();
            // What is told before its end is taken before that.
            for number in data.iter().filter(|data| **data != WAKE && *data % 2 == 1) {
                self.told(number / 2);
            }
            for number in data.iter().filter(|data| *data % 2 == 0) {
                self.told(number / 2);
                self.ended(number / 2);
            }
            if data.contains(&WAKE) {
                let mut count = [0; 8];
                let _ = rustix::io::read(&self.wake, &mut count);
                while let Ok(order) = self.received.try_recv() {
                    self.carry_out(order);
                }
            }
            self.kill_late();
        }
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Impatience(number) => {
                self.deadlines.push((Instant::now() + END_PATIENCE, number));
            }
            Order::Watch(vm) => {
                let number = vm.number;
                let add = |fd: &OwnedFd, data| {
                    epoll::add(&self.epoll, fd, EventData::new_u64(data), EventFlags::IN)
                };
                let mut added = add(&vm.process, number * 2);
                if let Some(link) = &vm.link {
                    let data = EventData::new_u64(number * 2 + 1);
                    added =
                        added.and_then(|()| epoll::add(&self.epoll, link, data, EventFlags::IN));
                }
                if let Err(error) = added {
                    // One that nobody watches must not live.
                    log::error!("VM {number} cannot be watched: {error}");
                    let _ = pidfd_send_signal(&vm.process, Signal::KILL);
                }
                self.watched.push(vm);
            }
        }
    }

    fn kill_late(&mut self) {
        let now = Instant::now();
        for (_, number) in self.deadlines.extract_if(.., |(at, _)| *at <= now) {
            if let Some(vm) = self.watched.iter().find(|vm| vm.number == number)
                && pidfd_send_signal(&vm.process, Signal::KILL).is_ok()
            {
                log::warn!("VM {number} did not end by itself");
            }
        }
    }

    /// Takes what a VM tells, if it has told something.
    fn told(&mut self, number: u64) {
        let Some(vm) = self.watched.iter_mut().find(|vm| vm.number == number) else { return };
        let Some(link) = vm.link.take() else { return };
        let told = link.receive::<Told>();
        // It tells one thing.
        let _ = epoll::delete(&self.epoll, &link);
        let hold = vm.hold;
        match told {
            Ok(Some((Told::Ready { phases, report }, _))) => self.registry.change(number, |vm| {
                vm.turn = None;
                let info = &mut vm.record.info;
                let ready = milliseconds(vm.created.elapsed());
                let told: f64 = phases.iter().map(|phase| phase.ms).sum();
                let before: f64 = info.phases.iter().map(|phase| phase.ms).sum();
                // From when its process was made until it had begun, and until it was heard.
                let begin = ((ready - told - before).max(0.0) * 1e3).round() / 1e3;
                info.phases.push(Phase { name: "exec".into(), ms: begin });
                let phases = phases.into_iter().map(|told| Phase { name: told.name, ms: told.ms });
                info.phases.extend(phases);
                info.ready_ms = Some(ready);
                info.state = if hold { VmState::Ready } else { VmState::Running };
                vm.record.report = Some(report);
            }),
            Ok(Some((Told::Failed { code, message }, _))) => {
                log::warn!("VM {number} is not ready: {message}");
                let end = VmEnd { code: Some(code), reason: message, at_ms: now_ms() };
                self.registry.change(number, |vm| {
                    vm.turn = None;
                    vm.record.info.end = Some(end);
                });
            }
            Ok(None) | Err(_) => self.registry.change(number, |vm| vm.turn = None),
        }
    }

    /// A VM's process is gone.
    fn ended(&mut self, number: u64) {
        let Some(at) = self.watched.iter().position(|vm| vm.number == number) else { return };
        let vm = self.watched.swap_remove(at);
        let _ = epoll::delete(&self.epoll, &vm.process);
        self.deadlines.retain(|(_, late)| *late != number);
        let mut end = how_it_ended(&vm);
        if group::remove(number) && end.code == Some(137) {
            end.reason = "killed: it took more memory than its limit (memory_overhead)".into();
        }
        let left = &self.left;
        self.registry.change(number, |vm| {
            // Its port stays where a switch is another program, until that is told.
            if let Some(network) = vm.record.info.network.clone() {
                let _ = left.send(network); // to a thread that ends with us
            }
            // It has said why itself.
            if let Some(told) = vm.record.info.end.take() {
                end.reason = told.reason;
            }
        });
        self.registry.end(number, end, self.keep);
    }
}

/// How the process of `vm` ended, as far as it can be known.
fn how_it_ended(vm: &Watched) -> VmEnd {
    use std::os::fd::AsFd;
    let at_ms = now_ms();
    let waited = waitid(WaitId::PidFd(vm.process.as_fd()), WaitIdOptions::EXITED);
    let Ok(Some(status)) = waited else {
        // The child of an agent that is no more.
        let reason = outcome(&vm.folder).unwrap_or_else(|| "its process has ended".into());
        return VmEnd { code: None, reason, at_ms };
    };
    if let Some(signal) = status.terminating_signal() {
        let code = u8::try_from(signal).ok().and_then(|signal| signal.checked_add(128));
        let reason = match signal {
            libc::SIGKILL => "killed".to_owned(),
            libc::SIGSYS => "killed for a system call that is not one of its own".to_owned(),
            libc::SIGBUS => "ended by a bus error: the host has no memory for it".to_owned(),
            signal => format!("ended by signal {signal}"),
        };
        return VmEnd { code, reason, at_ms };
    }
    let code = status.exit_status().and_then(|code| u8::try_from(code).ok());
    let meaning = code.and_then(Exit::meaning).map(str::to_owned);
    let reason = outcome(&vm.folder).or(meaning).unwrap_or_else(|| "its process has ended".into());
    VmEnd { code, reason, at_ms }
}

/// What its report says of how its guest ended.
fn outcome(folder: &VmFolder) -> Option<String> {
    let report: serde_json::Value = serde_json::from_slice(&folder.read(REPORT, 4 << 20)?).ok()?;
    let outcome = report.get("guest")?.get("outcome")?;
    Some(serde_json::from_value::<Outcome>(outcome.clone()).ok()?.to_string())
}
