//! What goes wrong on the way to a port: the tool of tests. The same seed and the same frames give the same
//! faults.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// Out of how many frames probabilities are told.
const OF: u32 = 1_000_000;
/// How many frames overtake one that is reordered, at most.
const OVERTAKE: u32 = 4;
/// How long a reordered frame waits to be overtaken.
const ASIDE: Duration = Duration::from_millis(20);
/// How many frames are underway to one port at most; later ones are lost, and counted as congestion.
const MOST: usize = 1 << 16;

/// What goes wrong. The default is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Of what the faults are drawn.
    pub seed: u64,
    /// Frames that are lost, of a million.
    pub loss: u32,
    /// Frames that come twice, of a million.
    pub duplicate: u32,
    /// Frames that up to four later ones overtake, of a million.
    pub reorder: u32,
    /// How long a frame is underway at least.
    pub delay: Duration,
    /// How much longer it may be; frames do not overtake each other by it.
    pub jitter: Duration,
}

impl Faults {
    fn none(&self) -> bool {
        let Self { seed: _, loss, duplicate, reorder, delay, jitter } = *self;
        (loss, duplicate, reorder, delay, jitter) == (0, 0, 0, Duration::ZERO, Duration::ZERO)
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Underway {
    due: Instant,
    order: u64,
    frame: Vec<u8>,
}

#[derive(Debug)]
struct Aside {
    overtaken_by: u32,
    due: Instant,
    frame: Vec<u8>,
}

/// The way to one port.
#[derive(Debug)]
pub(super) struct Way {
    faults: Faults,
    random: fastrand::Rng,
    underway: BinaryHeap<Reverse<Underway>>,
    aside: Vec<Aside>,
    order: u64,
    /// When the last frame of those underway arrives.
    last: Option<Instant>,
    /// Frames that there was no room for.
    pub(super) congested: u64,
}

impl Way {
    pub(super) fn new(faults: Faults) -> Self {
        Self {
            faults,
            random: fastrand::Rng::with_seed(faults.seed),
            underway: BinaryHeap::new(),
            aside: Vec::new(),
            order: 0,
            last: None,
            congested: 0,
        }
    }

    /// From now on `faults` go wrong; what is underway arrives as it was to.
    pub(super) fn set(&mut self, faults: Faults) {
        self.faults = faults;
        self.random = fastrand::Rng::with_seed(faults.seed);
    }

    /// Whether a frame now arrives at once, and nothing goes wrong with it.
    pub(super) fn is_clear(&self) -> bool {
        self.faults.none() && self.underway.is_empty() && self.aside.is_empty()
    }

    fn happens(&mut self, of_a_million: u32) -> bool {
        of_a_million > 0 && self.random.u32(0..OF) < of_a_million
    }

    /// Sends `frame` on its way at `now`.
    pub(super) fn send(&mut self, frame: Vec<u8>, now: Instant) {
        if self.happens(self.faults.loss) {
            return;
        }
        let twice = self.happens(self.faults.duplicate);
        if self.happens(self.faults.reorder) {
            let overtaken_by = self.random.u32(1..=OVERTAKE);
            let due = now + self.faults.delay + ASIDE;
            self.aside.push(Aside { overtaken_by, due, frame });
            return;
        }
        if twice {
            self.enqueue(frame.clone(), now);
        }
        self.enqueue(frame, now);
        let mut overtaken = Vec::new();
        self.aside.retain_mut(|aside| {
            aside.overtaken_by -= 1;
            let over = aside.overtaken_by == 0;
            if over {
                overtaken.push(std::mem::take(&mut aside.frame));
            }
            !over
        });
        for frame in overtaken {
            self.enqueue(frame, now);
        }
    }

    /// Sends a marker: behind everything, and nothing goes wrong with it.
    pub(super) fn send_last(&mut self, marker: Vec<u8>, now: Instant) {
        for aside in std::mem::take(&mut self.aside) {
            self.enqueue(aside.frame, now);
        }
        let due = self.last.map_or(now, |last| last.max(now));
        self.push(marker, due);
    }

    fn enqueue(&mut self, frame: Vec<u8>, now: Instant) {
        let jitter = u64::try_from(self.faults.jitter.as_nanos()).unwrap_or(u64::MAX);
        let jitter =
            Duration::from_nanos(if jitter == 0 { 0 } else { self.random.u64(0..=jitter) });
        let due = now + self.faults.delay + jitter;
        let due = self.last.map_or(due, |last| last.max(due));
        self.push(frame, due);
    }

    fn push(&mut self, frame: Vec<u8>, due: Instant) {
        if self.underway.len() >= MOST {
            self.congested += 1;
            return;
        }
        self.order += 1;
        self.last = Some(due);
        self.underway.push(Reverse(Underway { due, order: self.order, frame }));
    }

    /// The next frame that has arrived at `now`.
    pub(super) fn arrived(&mut self, now: Instant) -> Option<Vec<u8>> {
        // Whom nobody overtakes goes on by itself.
        while let Some(place) = self.aside.iter().position(|aside| aside.due <= now) {
            let aside = self.aside.remove(place);
            self.push(aside.frame, now);
        }
        if self.underway.peek()?.0.due > now {
            return None;
        }
        self.underway.pop().map(|Reverse(underway)| underway.frame)
    }

    /// When the next frame arrives.
    pub(super) fn next(&self) -> Option<Instant> {
        let aside = self.aside.iter().map(|aside| aside.due).min();
        let underway = self.underway.peek().map(|Reverse(underway)| underway.due);
        aside.into_iter().chain(underway).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(faults: Faults, count: u32) -> Vec<u32> {
        let mut way = Way::new(faults);
        let start = Instant::now();
        for number in 0..count {
            way.send(number.to_be_bytes().to_vec(), start);
        }
        let later = start + Duration::from_secs(60);
        let frames = std::iter::from_fn(|| way.arrived(later));
        frames.filter_map(|frame| Some(u32::from_be_bytes(*frame.first_chunk()?))).collect()
    }

    #[test]
    fn faults_are_as_often_as_asked_for_and_the_same_again() {
        let faults = Faults { seed: 7, loss: 100_000, ..Faults::default() };
        let lossy = through(faults, 10_000);
        assert!((8_700..9_300).contains(&lossy.len()), "{}", lossy.len());
        assert_eq!(through(faults, 10_000), lossy);
        assert_ne!(through(Faults { seed: 8, ..faults }, 10_000), lossy);

        let doubled = through(Faults { duplicate: 100_000, ..Faults::default() }, 10_000);
        assert!((10_700..11_300).contains(&doubled.len()), "{}", doubled.len());

        let mut mixed = through(Faults { reorder: 100_000, ..Faults::default() }, 10_000);
        assert!(!mixed.is_sorted());
        mixed.sort_unstable();
        assert!(mixed.into_iter().eq(0..10_000));
    }

    #[test]
    fn delay_keeps_the_order_and_a_marker_is_last() {
        let delay = Duration::from_millis(5);
        let faults = Faults { delay, jitter: delay, reorder: 500_000, ..Faults::default() };
        let mut way = Way::new(faults);
        let start = Instant::now();
        for number in 0..100 {
            way.send(vec![number], start);
        }
        way.send_last(vec![255], start);
        assert_eq!(way.arrived(start), None, "nothing is there before its time");
        assert!(way.next().is_some_and(|next| next >= start + delay));
        let frames: Vec<_> = std::iter::from_fn(|| way.arrived(start + 2 * delay)).collect();
        assert_eq!(frames.len(), 101);
        assert_eq!(frames.last(), Some(&vec![255]));
    }
}
