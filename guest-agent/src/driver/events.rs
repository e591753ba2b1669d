//! The events of the device: which of its processes has them, and how they are waited for.

use std::thread::sleep;
use std::time::{Duration, Instant};

use control_abi::event::{ALL_KINDS, Event, Kind};
use control_abi::register::Register;

use super::{Driver, LOOKS, RING};
use crate::line::Line;
use crate::ring::{Ring, UNASKED_KINDS};

/// Events that are kept for whoever asks for them.
const MOST_EVENTS: usize = 256;

/// The ring and the line that announces it.
#[derive(Debug)]
pub(super) enum Events {
    NotTried,
    /// There are none, or they are another process's.
    None,
    Some(Ring, Option<Line>),
}

/// What is known of the device's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Announced {
    Yes,
    NotNow,
    /// Nobody waits for them.
    Never,
}

impl Driver {
    /// Waits for events for at most so long, and keeps them.
    pub(super) fn look_for_events(&mut self, most: Duration) -> Announced {
        if matches!(self.events, Events::NotTried) {
            self.events = self.set_up_events();
        }
        let Events::Some(ring, line) = &mut self.events else { return Announced::Never };
        let announced = match line {
            Some(open) => match open.wait(most) {
                Ok(true) => Announced::Yes,
                Ok(false) => Announced::NotNow,
                Err(_) => {
                    *line = None;
                    Announced::Never
                }
            },
            None => Announced::Never,
        };
        for event in ring.take(self.registers.as_ref(), &self.memory) {
            if event.kind != Kind::Completion && self.pending.len() < MOST_EVENTS {
                self.pending.push_back(event);
            }
        }
        announced
    }

    /// Has the ends of commands told as events, or no longer. What ended before that is in its status word.
    pub(super) fn announce_completions(&mut self, announce: bool) {
        if matches!(self.events, Events::NotTried) {
            self.events = self.set_up_events();
        }
        if matches!(self.events, Events::Some(..)) {
            let kinds = if announce { ALL_KINDS } else { UNASKED_KINDS };
            self.registers.write(Register::EventEnable, kinds);
        }
    }

    fn set_up_events(&mut self) -> Events {
        use control_abi::register::feature::{EVENT_LINE, EVENTS};
        let features = self.registers.read(Register::Features);
        let wanted = self.options.events && features & EVENTS != 0;
        if !wanted || !self.ring.keep().unwrap_or(false) {
            return Events::None;
        }
        let line = self.options.line.as_ref().filter(|_| features & EVENT_LINE != 0);
        let line = line.and_then(|path| Line::open(path).ok());
        match self.set_up_ring() {
            Some(ring) => Events::Some(ring, line),
            None => Events::None,
        }
    }

    /// Sets the ring up, while nobody submits: that changes the register `RESULT` too.
    pub(super) fn set_up_ring(&self) -> Option<Ring> {
        let _held = self.submit.hold().ok()?;
        Ring::set_up(self.registers.as_ref(), &self.memory, RING)
    }

    /// The next event that is not of a command, waited for at most so long.
    ///
    /// There are none where the device has none, or another process has the ring; the time goes by all
    /// the same.
    pub fn next_event(&mut self, most: Duration) -> Option<Event> {
        let until = Instant::now() + most;
        let mut pause = LOOKS.0;
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            if self.look_for_events(left) == Announced::Never {
                sleep(pause.min(left));
                pause = (pause * 2).min(LOOKS.1);
            }
        }
    }

    /// Whether the device's events come to this driver, and whether a line announces them.
    pub fn has_events(&mut self) -> (bool, bool) {
        self.look_for_events(Duration::ZERO);
        match &self.events {
            Events::Some(_, line) => (true, line.is_some()),
            _ => (false, false),
        }
    }
}
