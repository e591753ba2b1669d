//! What moves too often stays where it is until somebody thaws it, as with duplicate addresses in EVPN (RFC 7432,
//! section 15.1): two that each want it would move it for ever.

use std::collections::VecDeque;
use std::time::Duration;

/// How often an endpoint may move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DampingOptions {
    /// So many moves ...
    pub moves: usize,
    /// ... in this time.
    pub window: Duration,
}

impl Default for DampingOptions {
    fn default() -> Self {
        Self { moves: 5, window: Duration::from_secs(180) }
    }
}

/// When an endpoint has moved lately.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damping {
    options: DampingOptions,
    moves: VecDeque<Duration>,
}

impl Damping {
    /// One that has not moved.
    pub fn new(options: DampingOptions) -> Self {
        Self { options, moves: VecDeque::new() }
    }

    /// It is to move at `now`, on a clock that never goes back. If not, freeze it and tell of it.
    pub fn admit(&mut self, now: Duration) -> bool {
        let is_old = |at: &Duration| now.saturating_sub(*at) >= self.options.window;
        while self.moves.front().is_some_and(is_old) {
            self.moves.pop_front();
        }
        let is_admitted = self.moves.len() < self.options.moves;
        if is_admitted {
            self.moves.push_back(now);
        }
        is_admitted
    }

    /// It is thawed: what was before does not count.
    pub fn thaw(&mut self) {
        self.moves.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sixth_move_in_three_minutes_is_none() {
        let mut damping = Damping::new(DampingOptions::default());
        let at = Duration::from_secs;
        assert!((0..5).all(|number| damping.admit(at(10 * number))));
        assert!(!damping.admit(at(179)) && !damping.admit(at(179)));
        assert!(damping.admit(at(180)), "the first is forgotten");
        assert!(!damping.admit(at(189)) && damping.admit(at(190)));
        damping.thaw();
        assert!((0..5).all(|_| damping.admit(at(191))) && !damping.admit(at(191)));
    }
}
