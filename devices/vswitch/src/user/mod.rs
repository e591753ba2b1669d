//! A switch in this process.
//!
//! One thread owns the frames and forwards them between [`Line`]s: TAPs, packet sockets, or channels in
//! memory. Everything else is a message to it, so each change lies between two frames. What a hold keeps is kept
//! here: exactly, in its order, up to its limit. For tests the way to a port can lose, double, delay and
//! reorder frames ([`Faults`]), the same way for the same seed and frames.
//!
//! ```
//! use vswitch::user::{Role, UserSwitch, channel};
//! use vswitch::{Port, Switch};
//!
//! let switch = UserSwitch::start()?;
//! let (line, mut end) = channel(64)?;
//! let port = switch.add_port(Box::new(line), Role::Guest)?;
//! switch.add("0e:00:00:00:00:01".parse()?, port)?;
//! # let _ = &mut end;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod fabric;
mod faults;
mod line;
mod owner;

use std::collections::BTreeSet;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

pub use self::fabric::Role;
pub use self::faults::Faults;
pub use self::line::{End, FdLine, Line, channel};

use self::owner::{Order, Owner};
use crate::controller::Controller;
use crate::plane::{ApplyError, Held, Plane, PlaneError, Seen, Step, Waiter};
use crate::switch::{Port, Statistics};

/// The frames of a [`UserSwitch`], as its controller sees them.
#[derive(Debug)]
pub struct UserPlane {
    orders: Sender<Order>,
    waker: owner::Waker,
    /// The ports that were added, and not removed. One whose line has failed is gone for the owner only.
    ports: BTreeSet<u32>,
    thread: Option<thread::JoinHandle<()>>,
}

/// A switch in this process.
pub type UserSwitch = Controller<UserPlane>;

impl UserSwitch {
    /// A switch without ports.
    ///
    /// # Errors
    /// No thread, or no descriptor, is to be had.
    pub fn start() -> Result<Self, PlaneError> {
        Self::new(UserPlane::start()?)
    }

    /// Adds a port; its number is not used again.
    ///
    /// # Errors
    /// The switch has been stopped.
    pub fn add_port(&self, line: Box<dyn Line>, role: Role) -> Result<Port, PlaneError> {
        self.with_plane(|plane| {
            let number = plane.ask(|answer| Order::AddPort { line, role, answer })?;
            plane.ports.insert(number);
            Ok(Port::Local(number))
        })
    }

    /// Takes a port away. What is held for it, or flows to it, is kept: its frames are dropped and counted as
    /// unknown until the flow is updated.
    ///
    /// # Errors
    /// There is no such port.
    pub fn remove_port(&self, port: Port) -> Result<(), PlaneError> {
        let number = number(port)?;
        self.with_plane(|plane| {
            plane.ports.remove(&number);
            plane.ask(|answer| Order::RemovePort { number, answer })?
        })
    }

    /// Sets what goes wrong on the way to `port`.
    ///
    /// # Errors
    /// There is no such port.
    pub fn set_faults(&self, port: Port, faults: Faults) -> Result<(), PlaneError> {
        let number = number(port)?;
        self.with_plane(|plane| plane.ask(|answer| Order::Faults { number, faults, answer }))?
    }
}

/// The number of a port in user space.
fn number(port: Port) -> Result<u32, PlaneError> {
    match port {
        Port::Local(number) => Ok(number),
        Port::Remote(_) => Err(PlaneError::Unsupported {
            plane: "switch in user space",
            what: format!("reach {port}: give it a port with a tunnel's interface"),
        }),
    }
}

/// Waits for the owner to see a marker's answer.
#[derive(Debug)]
struct Awaited {
    seen: Receiver<()>,
    passed: bool,
}

impl Waiter for Awaited {
    fn wait(&mut self, patience: Duration) -> Result<bool, PlaneError> {
        if self.passed {
            return Ok(true);
        }
        match self.seen.recv_timeout(patience) {
            Ok(()) => {
                self.passed = true;
                Ok(true)
            }
            Err(RecvTimeoutError::Timeout) => Ok(false),
            // The port has been removed, or the switch stopped.
            Err(RecvTimeoutError::Disconnected) => Err(PlaneError::Stopped),
        }
    }
}

impl UserPlane {
    fn start() -> Result<Self, PlaneError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = eventfd(0, flags)
            .map_err(|error| PlaneError::system("make an event descriptor")(error.into()))?;
        let waker = owner::Waker::new(wake);
        let (orders, incoming) = mpsc::channel();
        let owner = Owner::new(incoming, waker.clone(), Instant::now());
        let thread = thread::Builder::new()
            .name("switch".into())
            .spawn(move || owner.run())
            .map_err(PlaneError::system("start the thread of the switch"))?;
        Ok(Self { orders, waker, ports: BTreeSet::new(), thread: Some(thread) })
    }

    fn ask<T>(&mut self, order: impl FnOnce(Sender<T>) -> Order) -> Result<T, PlaneError> {
        let (answer, answered) = mpsc::channel();
        self.orders.send(order(answer)).map_err(|_| PlaneError::Stopped)?;
        self.waker.wake();
        answered.recv().map_err(|_| PlaneError::Stopped)
    }
}

impl Drop for UserPlane {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop); // it has stopped otherwise
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there has been reported by its hook
        }
    }
}

impl Plane for UserPlane {
    fn check(&mut self, port: Port) -> Result<(), PlaneError> {
        // A port can go at any time: the owner looks again when something is pointed there.
        if self.ports.contains(&number(port)?) { Ok(()) } else { Err(PlaneError::NoPort(port)) }
    }

    fn point(&mut self, step: Step) -> Result<(), PlaneError> {
        self.apply(&[step]).map_err(|error| error.source)
    }

    fn apply(&mut self, steps: &[Step]) -> Result<(), ApplyError> {
        let mut homes = Vec::with_capacity(steps.len());
        for (index, step) in steps.iter().enumerate() {
            let refused = |source| ApplyError { index, source, unrestored: Vec::new() };
            let home = step.to.map(number).transpose().map_err(refused)?;
            homes.push((step.vid, home));
        }
        let refused = |index, source| ApplyError { index, source, unrestored: Vec::new() };
        // One message: there is no frame between the first change and the last.
        match self.ask(|answer| Order::Point { homes, answer }) {
            Ok(Ok(())) => Ok(()),
            Ok(Err((index, source))) => Err(refused(index, source)),
            Err(source) => Err(refused(0, source)),
        }
    }

    fn hold(&mut self, held: &Held) -> Result<(), PlaneError> {
        let (vid, to, limit) = (held.vid, number(held.to)?, held.limit);
        self.ask(|answer| Order::Hold { vid, to, limit, answer })?
    }

    fn release(&mut self, held: &Held, commit: bool) -> Result<(), PlaneError> {
        let vid = held.vid;
        self.ask(|answer| Order::Release { vid, commit, answer })
    }

    fn mute(&mut self, port: Port, muted: bool) -> Result<(), PlaneError> {
        let number = number(port)?;
        self.ask(|answer| Order::Mute { number, muted, answer })?
    }

    fn mark(&mut self, port: Port, nonce: u64) -> Result<Seen, PlaneError> {
        let number = number(port)?;
        let (seen, waits) = mpsc::channel();
        self.ask(|answer| Order::Mark { number, nonce, seen, answer })??;
        Ok(Box::new(Awaited { seen: waits, passed: false }))
    }

    fn flood_unknown(&mut self, flood: bool) -> Result<(), PlaneError> {
        self.ask(|answer| Order::Flood { flood, answer })
    }

    fn statistics(&mut self) -> Result<Statistics, PlaneError> {
        self.ask(|answer| Order::Statistics { answer })
    }
}
