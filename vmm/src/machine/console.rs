//! The console's input: from standard input, through the escape, into the serial port.

use std::io::{IsTerminal, Write};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use devices::serial::SerialConsole;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::io::Errno;

use super::MachineError;
use super::escape::{self, EscapeFilter, Wish};
use super::event_loop::Verdict;
use super::outcome::Outcome;
use super::typed::Typed;

const STDIN: RawFd = 0;
/// The most that waits for the guest to take it, in bytes.
const PENDING_MAX: usize = 64 << 10;

/// Standard input, on its way into the serial port.
pub struct ConsoleInput {
    typed: Typed,
    filter: EscapeFilter,
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
        let typed = Typed::new(serial).map_err(MachineError::system("make an eventfd"))?;
        let source = if std::io::stdin().is_terminal() { Source::Terminal } else { Source::Pipe };
        let filter = EscapeFilter::default();
        Ok(Self { typed, filter, source, verdict })
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
        match self.filter.filter(&buffer[..count], &mut self.typed.waiting) {
            Some(Wish::Quit) => self.verdict.end(Outcome::Quit),
            Some(Wish::Help) => {
                // A console that is not shown needs no help.
                let _ = std::io::stderr().write_all(escape::HELP.as_bytes());
            }
            None => {}
        }
        if self.source == Source::Terminal {
            self.typed.waiting.truncate(PENDING_MAX);
        }
    }

    /// Waits for a pipe only while there is room.
    fn adjust(&mut self, ops: &mut EventOps<'_>) {
        let full = self.typed.waiting.len() >= PENDING_MAX;
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
            let _ = self.typed.room.read();
        }
        if self.source == Source::File && self.typed.waiting.is_empty() {
            self.read();
        }
        self.typed.deliver();
        self.adjust(ops);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.verdict.add(ops, Events::new(&self.typed.room, EventSet::IN));
        // Regular files and /dev/null cannot be waited for (EPERM), and can always be read.
        if ops.add(events()).is_err() {
            self.source = Source::File;
            let _ = self.typed.room.write(1);
        }
    }
}
