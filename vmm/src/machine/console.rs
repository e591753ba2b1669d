//! The console's input: from standard input, through the escape, into the serial port.

use std::io::{IsTerminal, Write};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;

use devices::serial::SerialConsole;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::MachineError;
use super::escape::{self, EscapeFilter, Wish};
use super::event_loop::{Verdict, lock};
use super::outcome::Outcome;

const STDIN: RawFd = 0;
/// The most that waits for the guest to take it, in bytes.
const PENDING_MAX: usize = 64 << 10;
/// How soon a serial port that is busy is tried again.
const BUSY: Duration = Duration::from_millis(2);

/// Standard input, on its way into the serial port.
pub struct ConsoleInput {
    serial: Arc<Mutex<SerialConsole>>,
    /// Signalled when the serial port may have room again.
    room: EventFd,
    filter: EscapeFilter,
    pending: Vec<u8>,
    source: Source,
    verdict: Rc<Verdict>,
}

/// How standard input is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Always, so that the escape is heard whatever the guest does; what is too much is dropped.
    Terminal,
    /// When something comes; not while too much waits.
    Pipe,
    /// As [`Pipe`](Self::Pipe), while too much waits.
    FullPipe,
    /// When nothing waits: a file cannot be waited for.
    File,
    /// No more.
    Ended,
}

impl ConsoleInput {
    /// Connects standard input to `serial`.
    pub fn new(
        serial: &Arc<Mutex<SerialConsole>>,
        verdict: Rc<Verdict>,
    ) -> Result<Self, MachineError> {
        let make = || {
            let room = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
            lock(serial).set_input_ready(room.try_clone()?);
            Ok(room)
        };
        let room = make().map_err(MachineError::system("make an eventfd"))?;
        let source = if std::io::stdin().is_terminal() { Source::Terminal } else { Source::Pipe };
        let filter = EscapeFilter::default();
        Ok(Self { serial: serial.clone(), room, filter, pending: Vec::new(), source, verdict })
    }

    /// Reads what is there.
    fn read(&mut self) {
        let mut buffer = [0; 1024];
        // Not by the standard library's handle: what that buffers, no event tells of.
        let count = match rustix::io::read(std::io::stdin(), &mut buffer) {
            Ok(0) => {
                self.source = Source::Ended;
                return;
            }
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) => return,
            Err(error) => {
                log::warn!("standard input: {error}");
                self.source = Source::Ended;
                return;
            }
        };
        match self.filter.filter(&buffer[..count], &mut self.pending) {
            Some(Wish::Quit) => self.verdict.end(Outcome::Quit),
            Some(Wish::Help) => {
                // A console that is not shown needs no help.
                let _ = std::io::stderr().write_all(escape::HELP.as_bytes());
            }
            None => {}
        }
        if self.source == Source::Terminal {
            self.pending.truncate(PENDING_MAX);
        }
    }

    /// Hands on as much as the serial port takes. The port is busy while a processor waits for
    /// somebody to read its output, and the loop must not wait with it.
    fn deliver(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let taken = match self.serial.try_lock() {
            Ok(mut serial) => serial.receive(&self.pending),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().receive(&self.pending),
            Err(TryLockError::WouldBlock) => {
                std::thread::sleep(BUSY);
                // A counter that is full is readable already.
                let _ = self.room.write(1);
                return;
            }
        };
        self.pending.drain(..taken);
    }

    /// Waits for a pipe only while there is room.
    fn adjust(&mut self, ops: &mut EventOps<'_>) {
        let full = self.pending.len() >= PENDING_MAX;
        match self.source {
            Source::Pipe if full => {
                let _ = ops.remove(events());
                self.source = Source::FullPipe;
            }
            Source::FullPipe if !full => {
                self.verdict.add(ops, events());
                self.source = Source::Pipe;
            }
            Source::Ended => {
                let _ = ops.remove(events());
            }
            _ => {}
        }
    }
}

fn events() -> Events {
    Events::new_raw(STDIN, EventSet::IN)
}

impl MutEventSubscriber for ConsoleInput {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() == STDIN {
            self.read();
        } else {
            let _ = self.room.read();
        }
        if self.source == Source::File && self.pending.is_empty() {
            self.read();
        }
        self.deliver();
        self.adjust(ops);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.verdict.add(ops, Events::new(&self.room, EventSet::IN));
        // Regular files and /dev/null cannot be waited for (EPERM), and can always be read.
        if ops.add(events()).is_err() {
            self.source = Source::File;
            let _ = self.room.write(1);
        }
    }
}
