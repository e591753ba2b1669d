//! The threads of the vCPUs: started together, paused together, stopped together.
//!
//! A thread goes through its [`Turnstile`] before each entry into the guest. While the turnstiles are
//! closed it waits there, outside of the guest and of all devices. What is in the guest is brought
//! out by a signal. A signal that arrives just before `KVM_RUN` does nothing, so it is sent again
//! until its thread has come.
//!
//! A thread that serves an exit is not sent a signal when it shall pause: it comes by itself, and
//! what it does for a device, such as a write to a console that nobody reads, would be broken off.
//! (Only a signal that was sent just as the exit came can still do that.) It may take its time, so
//! who pauses says how long to wait at most.
//!
//! Where a paused vCPU stands: its exit has been served, but KVM completes an access to a port or
//! to device memory only as it enters the guest again. Who wants its registers then (a snapshot)
//! must have KVM do so first, by `immediate_exit`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::signal::{Killable, register_signal_handler, unblock_signal};

use crate::jail::{ThreadKind, seal_or_end};

/// How soon a signal is sent again.
const AGAIN: Duration = Duration::from_millis(1);

/// The threads of a machine's vCPUs; stops them when dropped.
#[derive(Debug)]
pub struct RunningVcpus {
    crossing: Arc<Crossing>,
    threads: Vec<Vcpu>,
}

#[derive(Debug)]
struct Vcpu {
    thread: JoinHandle<()>,
    in_guest: Arc<AtomicBool>,
}

/// What all threads pass on their way into the guest.
#[derive(Debug, Default)]
struct Crossing {
    /// As in `state`, to be looked at without its lock.
    open: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    stopped: bool,
    /// Threads that have not ended.
    alive: usize,
    /// Those of them that wait at the crossing.
    waiting: usize,
}

impl Crossing {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        self.open.store(!state.closed && !state.stopped, Ordering::Release);
        self.changed.notify_all();
    }

    /// Waits, not for long, until `reached`; returns whether it is.
    fn wait_briefly(&self, reached: impl Fn(&State) -> bool) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), AGAIN, |state| !reached(state));
        reached(&waited.unwrap_or_else(PoisonError::into_inner).0)
    }
}

/// One thread's way into the guest; the thread counts as ended when it is dropped.
#[derive(Debug)]
pub struct Turnstile {
    crossing: Arc<Crossing>,
    in_guest: Arc<AtomicBool>,
}

impl Turnstile {
    /// Waits while the machine is paused; `false` says that the thread shall end.
    pub fn pass(&self) -> bool {
        if self.crossing.open.load(Ordering::Acquire) {
            return true;
        }
        let mut state = self.crossing.lock();
        state.waiting += 1;
        self.crossing.changed.notify_all();
        while state.closed && !state.stopped {
            state = self.crossing.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
        !state.stopped
    }

    /// Does `run`, which a signal is to break off when the machine pauses.
    pub fn in_guest<R>(&self, run: impl FnOnce() -> R) -> R {
        self.in_guest.store(true, Ordering::Release);
        let result = run();
        self.in_guest.store(false, Ordering::Release);
        result
    }
}

impl Drop for Turnstile {
    fn drop(&mut self) {
        self.in_guest.store(false, Ordering::Release);
        self.crossing.change(|state| state.alive -= 1);
    }
}

/// The machine stands still: no vCPU is in the guest or with a device, until this is dropped.
///
/// Others that reach for guest memory are the thread's own business: those devices that the event
/// loop serves stand still because its thread is the one that pauses.
#[derive(Debug)]
pub struct Paused<'a>(&'a Crossing);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.closed = false);
    }
}

/// The signal that gets a thread out of the guest.
fn kick_signal() -> i32 {
    vmm_sys_util::signal::SIGRTMIN()
}

extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // Its arrival is all that matters: KVM_RUN returns.
}

impl RunningVcpus {
    /// Starts a thread for each of `bodies`, which go on for as long as their turnstiles let them: from
    /// [`release`](Self::release) on.
    ///
    /// # Errors
    /// No thread, or no signal handler.
    pub fn start_held<B>(bodies: impl IntoIterator<Item = B>) -> std::io::Result<Self>
    where
        B: FnOnce(&Turnstile) + Send + 'static,
    {
        register_signal_handler(kick_signal(), on_kick)?;
        // Made first: should a thread not start, dropping it stops those that did.
        let mut running = Self { crossing: Arc::default(), threads: Vec::new() };
        running.crossing.change(|state| state.closed = true);
        for (index, body) in bodies.into_iter().enumerate() {
            let in_guest = Arc::<AtomicBool>::default();
            running.crossing.change(|state| state.alive += 1);
            let turnstile =
                Turnstile { crossing: running.crossing.clone(), in_guest: in_guest.clone() };
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .stack_size(128 << 10)
                .spawn(move || {
                    // A parent may have blocked it, and masks are inherited.
                    if let Err(error) = unblock_signal(kick_signal()) {
                        log::warn!("vCPU {index} cannot be stopped promptly: {error:?}");
                    }
                    seal_or_end(ThreadKind::Vcpu);
                    body(&turnstile);
                })?;
            running.threads.push(Vcpu { thread, in_guest });
        }
        Ok(running)
    }

    /// Lets all of them go on.
    pub fn release(&mut self) {
        self.crossing.change(|state| state.closed = false);
    }

    /// Brings all vCPUs to a halt, unless that takes longer than `limit`: then none is held up any
    /// more. Those that have ended are no hindrance.
    ///
    /// Not to be called with the lock of a device held, which a vCPU may be waiting for.
    pub fn pause(&mut self, limit: Duration) -> Option<Paused<'_>> {
        let deadline = Instant::now() + limit;
        self.crossing.change(|state| state.closed = true);
        let paused = Paused(&self.crossing);
        loop {
            self.kick(|vcpu| vcpu.in_guest.load(Ordering::Acquire));
            if self.crossing.wait_briefly(|state| state.waiting == state.alive) {
                return Some(paused);
            }
            if Instant::now() >= deadline {
                return None;
            }
        }
    }

    fn kick(&self, whom: impl Fn(&Vcpu) -> bool) {
        for vcpu in self.threads.iter().filter(|vcpu| !vcpu.thread.is_finished() && whom(vcpu)) {
            // Fails only for a thread that has just ended.
            let _ = vcpu.thread.kill(kick_signal());
        }
    }
}

impl Drop for RunningVcpus {
    fn drop(&mut self) {
        self.crossing.change(|state| state.stopped = true);
        // Whatever they are at: nobody waits for their output any more.
        while !self.crossing.wait_briefly(|state| state.alive == 0) {
            self.kick(|_| true);
        }
        for vcpu in self.threads.drain(..) {
            if vcpu.thread.join().is_err() {
                log::error!("a vCPU thread panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::atomic::AtomicU64;
    use std::sync::mpsc;

    use super::*;

    /// Time enough for anything here.
    const LONG: Duration = Duration::from_secs(600);

    /// What `KVM_RUN` is to these tests: it lasts until a signal comes.
    fn guest() {
        let time = rustix::thread::Timespec { tv_sec: 600, tv_nsec: 0 };
        assert!(matches!(
            rustix::thread::nanosleep(&time),
            rustix::thread::NanosleepRelativeResult::Interrupted(_)
        ));
    }

    fn start<B>(bodies: impl IntoIterator<Item = B>) -> RunningVcpus
    where
        B: FnOnce(&Turnstile) + Send + 'static,
    {
        let mut running = RunningVcpus::start_held(bodies).unwrap();
        running.release();
        running
    }

    type Body = Box<dyn FnOnce(&Turnstile) + Send>;

    /// A body that counts its entries.
    fn counting(entries: &Arc<AtomicU64>) -> impl FnOnce(&Turnstile) + Send + 'static {
        let entries = entries.clone();
        move |turnstile| {
            while turnstile.pass() {
                entries.fetch_add(1, Ordering::AcqRel);
                turnstile.in_guest(guest);
            }
        }
    }

    #[test]
    fn paused_vcpus_stay_out_until_they_are_resumed() {
        let entries = Arc::default();
        let mut running = start((0..3).map(|_| counting(&entries)));
        for _ in 0..20 {
            let paused = running.pause(LONG).unwrap();
            let before = entries.load(Ordering::Acquire);
            std::thread::yield_now();
            assert_eq!(entries.load(Ordering::Acquire), before);
            drop(paused);
            while entries.load(Ordering::Acquire) < before + 3 {
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn vcpus_that_are_held_do_not_start() {
        let entries = Arc::default();
        let mut running = RunningVcpus::start_held((0..2).map(|_| counting(&entries))).unwrap();
        while !running.crossing.wait_briefly(|state| state.waiting == 2) {}
        assert_eq!(entries.load(Ordering::Acquire), 0);
        running.release();
        while entries.load(Ordering::Acquire) < 2 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn vcpus_that_do_nothing_but_exit_are_paused_too() {
        let entries = Arc::new(AtomicU64::new(0));
        let seen = entries.clone();
        let body = move |turnstile: &Turnstile| {
            while turnstile.pass() {
                turnstile.in_guest(|| seen.fetch_add(1, Ordering::AcqRel));
            }
        };
        let mut running = start([body]);
        for _ in 0..100 {
            let _paused = running.pause(LONG).unwrap();
            let before = entries.load(Ordering::Acquire);
            std::thread::yield_now();
            assert_eq!(entries.load(Ordering::Acquire), before);
        }
    }

    #[test]
    fn vcpus_that_have_ended_are_no_hindrance() {
        let mut running = start((0..2).map(|index| {
            move |turnstile: &Turnstile| {
                while index == 1 && turnstile.pass() {
                    turnstile.in_guest(guest);
                }
            }
        }));
        assert!(running.pause(LONG).is_some());
        while !running.threads[0].thread.is_finished() {
            std::thread::yield_now();
        }
        assert!(running.pause(LONG).is_some());
    }

    #[test]
    fn a_vcpu_that_waits_for_its_output_is_left_alone_and_holds_nobody_up() {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let (told, device) = mpsc::channel();
        let entries = Arc::default();
        let count = counting(&entries);
        let blocked = move |turnstile: &Turnstile| {
            assert!(turnstile.pass());
            told.send(()).unwrap();
            let mut byte = [0];
            // Not read_exact, which would go on after a signal.
            assert_eq!(reader.read(&mut byte).unwrap(), 1);
            told.send(()).unwrap();
            while turnstile.pass() {
                turnstile.in_guest(guest);
            }
        };
        let bodies: [Body; 2] = [Box::new(blocked), Box::new(count)];
        let mut running = start(bodies);
        device.recv().unwrap();
        assert!(running.pause(Duration::from_millis(20)).is_none());
        // The other one goes on.
        let before = entries.load(Ordering::Acquire);
        while entries.load(Ordering::Acquire) == before {
            running.kick(|vcpu| vcpu.in_guest.load(Ordering::Acquire));
        }
        writer.write_all(b"x").unwrap();
        device.recv().unwrap();
        assert!(running.pause(LONG).is_some());
    }

    #[test]
    fn threads_end_whether_or_not_they_were_paused() {
        let entries = Arc::default();
        drop(start((0..2).map(|_| counting(&entries))));
        let mut running = start((0..2).map(|_| counting(&entries)));
        // A pause that nobody ends, as by a panic of who paused.
        std::mem::forget(running.pause(LONG));
        drop(running);
    }
}
