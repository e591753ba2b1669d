//! The time for which memory is left alone after its item was removed: readers who found the item's
//! place before may still be reading there.

use std::collections::VecDeque;
use std::time::Duration;

use super::time::Clock;
use crate::node::slab::{CLASSES, Class, Place};

/// Time between two times that what is wanted is evicted ahead.
const LOOKS_AHEAD: Duration = Duration::from_secs(1);
/// The part of all memory, in percent, up to which that of one class waits.
const MOST_PERCENT: u64 = 25;
/// The same of all classes together.
const MOST_TOGETHER_PERCENT: u64 = 50;

/// Places that wait, and how much is to be there when they have waited.
#[derive(Debug)]
pub(super) struct Quarantine {
    time: Duration,
    clock: Clock,
    /// In the order of time.
    places: VecDeque<Waiting>,
    bytes: u64,
    /// Bytes that come back to each class: without those of slabs that are emptied for any.
    of_class: [u64; CLASSES],
    demand: [Demand; CLASSES],
    /// When the current interval began.
    since: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    until: Duration,
    place: Place,
    class: Class,
    /// Its slab is emptied: it does not come back to its class.
    leaves: bool,
}

/// Bytes asked for in the current interval and in the one before.
#[derive(Debug, Clone, Copy, Default)]
struct Demand {
    now: u64,
    before: u64,
}

impl Quarantine {
    /// Each place waits for so long; for zero, none does.
    pub fn new(time: Duration) -> Self {
        Self {
            time,
            clock: Clock::default(),
            places: VecDeque::new(),
            bytes: 0,
            of_class: [0; CLASSES],
            demand: [Demand::default(); CLASSES],
            since: Duration::ZERO,
        }
    }

    /// Goes by another clock.
    #[cfg(test)]
    pub fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// How long each place waits.
    pub fn time(&self) -> Duration {
        self.time
    }

    /// Whether anything waits at all.
    pub fn is_on(&self) -> bool {
        !self.time.is_zero()
    }

    /// Bytes of the places that wait.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that come back to `class`.
    pub fn bytes_of(&self, class: Class) -> u64 {
        self.of_class[class.number()]
    }

    /// Somebody asks for a place of `class`.
    pub fn ask(&mut self, class: Class) {
        if !self.is_on() {
            return;
        }
        let now = self.clock.now();
        let intervals = now.saturating_sub(self.since).as_nanos() / self.interval().as_nanos();
        if intervals > 0 {
            for demand in &mut self.demand {
                *demand = Demand { now: 0, before: if intervals == 1 { demand.now } else { 0 } };
            }
            self.since = now;
        }
        self.demand[class.number()].now += class.slot_bytes() as u64;
    }

    fn interval(&self) -> Duration {
        self.time.max(LOOKS_AHEAD)
    }

    /// How much is to be free or to come back to `class` while it is written as it was in the last
    /// interval: what is stored until something that is removed at the next look ahead has waited. At
    /// least `least`, and not so much that the cache is emptied for it.
    pub fn wanted(&self, class: Class, least: u64, capacity: u64) -> u64 {
        let Demand { now, before } = self.demand[class.number()];
        let part = (self.time + LOOKS_AHEAD).as_nanos();
        let demand = u128::from(now.max(before)) * part / self.interval().as_nanos();
        let demand = u64::try_from(demand).unwrap_or(u64::MAX);
        let most = capacity / 100 * MOST_PERCENT;
        least.saturating_add(demand).min(most).max(least)
    }

    /// Whether so much waits that nothing more is to be removed for it.
    pub fn is_full(&self, capacity: u64) -> bool {
        self.bytes >= capacity / 100 * MOST_TOGETHER_PERCENT
    }

    /// Time until the next place has waited; none if none waits.
    pub fn next(&self) -> Option<Duration> {
        Some(self.places.front()?.until.saturating_sub(self.clock.now()))
    }

    /// The places that came back, from now on, and whether the slab of each is emptied. Now is by the
    /// clock and not by the time of whatever operation found them: that may have begun long before
    /// their last user was gone, and the wait would be too short.
    pub fn enter(&mut self, places: impl IntoIterator<Item = (Place, Class, bool)>) {
        let mut places = places.into_iter().peekable();
        if places.peek().is_none() {
            return;
        }
        let until = self.clock.now().saturating_add(self.time);
        for (place, class, leaves) in places {
            self.places.push_back(Waiting { until, place, class, leaves });
            let bytes = class.slot_bytes() as u64;
            self.bytes += bytes;
            self.of_class[class.number()] += if leaves { 0 } else { bytes };
        }
    }

    /// The places that have waited.
    pub fn leave(&mut self) -> impl Iterator<Item = Place> {
        // Without places the clock is not looked at.
        let now = if self.places.is_empty() { Duration::ZERO } else { self.clock.now() };
        let count = self.places.iter().take_while(|waiting| waiting.until <= now).count();
        self.places.drain(..count).map(|Waiting { place, class, leaves, .. }| {
            let bytes = class.slot_bytes() as u64;
            self.bytes -= bytes;
            self.of_class[class.number()] -= if leaves { 0 } else { bytes };
            place
        })
    }
}
