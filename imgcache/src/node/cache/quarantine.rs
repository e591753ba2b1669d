//! The time for which memory is left alone after its item was removed: readers who found the item's
//! place before may still be reading there.

use std::collections::VecDeque;
use std::time::Duration;

use super::time::Clock;
use crate::node::slab::{Class, Place};

/// Places that wait.
#[derive(Debug)]
pub(super) struct Quarantine {
    time: Duration,
    clock: Clock,
    /// Until when each waits; in the order of time.
    places: VecDeque<(Duration, Place, Class)>,
    bytes: u64,
}

impl Quarantine {
    /// Each place waits for so long; for zero, none does.
    pub fn new(time: Duration) -> Self {
        Self { time, clock: Clock::default(), places: VecDeque::new(), bytes: 0 }
    }

    /// Goes by another clock.
    #[cfg(test)]
    pub fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// Whether anything waits at all.
    pub fn is_on(&self) -> bool {
        !self.time.is_zero()
    }

    /// Bytes of the places that wait.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The places that came back, from now on. Now is by the clock and not by the time of whatever
    /// operation found them: that may have begun long before their last user was gone, and the wait
    /// would be too short.
    pub fn enter(&mut self, places: impl IntoIterator<Item = (Place, Class)>) {
        let mut places = places.into_iter().peekable();
        if places.peek().is_none() {
            return;
        }
        let until = self.clock.now().saturating_add(self.time);
        for (place, class) in places {
            self.places.push_back((until, place, class));
            self.bytes += class.slot_bytes() as u64;
        }
    }

    /// The places that have waited.
    pub fn leave(&mut self) -> impl Iterator<Item = Place> {
        let count = match self.places.front() {
            None => 0,
            Some(_) => {
                let now = self.clock.now();
                self.places.iter().take_while(|(until, ..)| *until <= now).count()
            }
        };
        self.places.drain(..count).map(|(_, place, class)| {
            self.bytes -= class.slot_bytes() as u64;
            place
        })
    }
}
