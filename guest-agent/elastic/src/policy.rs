//! When to split and when to merge, apart from how: Figure 1.
//!
//! A server whose request rate is above a threshold for several windows splits its range with a new one;
//! two whose rates are both far below it merge. The two thresholds are a factor of four apart: each half of
//! what was just split has about half of the rate, which is above the lower threshold, and two that merge
//! have together at most half of the upper one. So no action is the cause of its opposite.

use std::collections::BTreeMap;

use crate::Peer;

/// The thresholds.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Requests per second that one server should not exceed: phi.
    pub threshold: f64,
    /// How many windows in a row must agree.
    pub windows: u32,
    /// Windows after an action in which its servers take no other.
    pub rest: u32,
    /// Servers there may be.
    pub servers_max: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self { threshold: 10_000.0, windows: 3, rest: 3, servers_max: 64 }
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// This server gives half of its range to one that has none.
    Split(Peer),
    /// The first takes all that the second has; the second has nothing to do then.
    Merge(Peer, Peer),
}

#[derive(Debug, Default, Clone, Copy)]
struct Watch {
    above: u32,
    below: u32,
    rest: u32,
}

/// A policy, and what it saw.
#[derive(Debug)]
pub struct Balancer {
    policy: Policy,
    seen: BTreeMap<Peer, Watch>,
}

impl Balancer {
    /// Nothing was seen yet.
    pub fn new(policy: Policy) -> Self {
        Self { policy, seen: BTreeMap::new() }
    }

    /// A window is over in which these servers had these rates, in requests per second; in the order of
    /// their ranges, as neighbours merge best. At most one action is decided, so that its effect is seen
    /// before the next.
    pub fn window(&mut self, rates: &[(Peer, f64)]) -> Option<Decision> {
        let Policy { threshold, windows, rest, servers_max } = self.policy;
        self.seen.retain(|peer, _| rates.iter().any(|(other, _)| other == peer));
        for &(peer, rate) in rates {
            let watch = self.seen.entry(peer).or_default();
            if watch.rest > 0 {
                watch.rest -= 1;
                continue;
            }
            watch.above = if rate > threshold { watch.above + 1 } else { 0 };
            watch.below = if rate < threshold / 4.0 { watch.below + 1 } else { 0 };
        }
        let watch = |peer: &Peer| self.seen.get(peer).copied().unwrap_or_default();
        let busiest = rates
            .iter()
            .filter(|(peer, _)| watch(peer).above >= windows)
            .max_by(|(_, one), (_, other)| one.total_cmp(other));
        let decision = match busiest {
            Some((peer, _)) if rates.len() < servers_max => Some(Decision::Split(*peer)),
            _ => rates.windows(2).find_map(|pair| match pair {
                [(one, _), (other, _)]
                    if watch(one).below >= windows && watch(other).below >= windows =>
                {
                    Some(Decision::Merge(*one, *other))
                }
                _ => None,
            }),
        };
        let (Decision::Split(one) | Decision::Merge(one, _)) = decision?;
        // The rates of the others change too, when clients go elsewhere.
        for (peer, watch) in &mut self.seen {
            *watch = Watch { rest: if *peer == one { rest } else { 0 }, ..Watch::default() };
        }
        decision
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Servers that share a load evenly over their parts of the range, as a split makes them.
    struct Fleet {
        parts: Vec<(Peer, f64)>,
        balancer: Balancer,
        next: u32,
    }

    impl Fleet {
        fn new() -> Self {
            let policy = Policy { threshold: 100.0, servers_max: 16, ..Policy::default() };
            Self { parts: vec![(Peer(0), 1.0)], balancer: Balancer::new(policy), next: 1 }
        }

        /// The decisions of so many windows of a load.
        fn load(&mut self, windows: u32, load: impl Fn(u32) -> f64) -> Vec<Decision> {
            let mut decisions = Vec::new();
            for window in 0..windows {
                let rates: Vec<_> =
                    self.parts.iter().map(|(peer, share)| (*peer, share * load(window))).collect();
                let Some(decision) = self.balancer.window(&rates) else { continue };
                decisions.push(decision);
                match decision {
                    Decision::Split(peer) => {
                        let at =
                            self.parts.iter().position(|(other, _)| *other == peer).expect("there");
                        self.parts[at].1 /= 2.0;
                        let half = self.parts[at].1;
                        self.parts.insert(at + 1, (Peer(self.next), half));
                        self.next += 1;
                    }
                    Decision::Merge(one, other) => {
                        let at =
                            self.parts.iter().position(|(peer, _)| *peer == other).expect("there");
                        let (_, share) = self.parts.remove(at);
                        self.parts.iter_mut().find(|(peer, _)| *peer == one).expect("there").1 +=
                            share;
                    }
                }
            }
            decisions
        }
    }

    #[test]
    fn the_curve_of_figure_1_takes_at_most_two_actions_a_step() {
        let mut fleet = Fleet::new();
        // S0 alone; then above phi; then S1 above it as well; then below; then hardly anything.
        let steps =
            [(60.0, 1), (150.0, 2), (250.0, 4), (300.0, 4), (150.0, 4), (60.0, 2), (20.0, 1)];
        for (load, servers) in steps {
            let decisions = fleet.load(40, |_| load);
            assert!(decisions.len() <= 2, "{load}: {decisions:?}");
            let splits = decisions.iter().filter(|it| matches!(it, Decision::Split(_))).count();
            assert!(
                splits == 0 || splits == decisions.len(),
                "{load} goes to and fro: {decisions:?}"
            );
            assert!(fleet.load(100, |_| load).is_empty(), "{load} does not come to rest");
            assert_eq!(fleet.parts.len(), servers, "{load}");
        }
    }

    #[test]
    fn a_short_peak_and_noise_about_the_threshold_do_nothing() {
        let mut fleet = Fleet::new();
        assert!(fleet.load(100, |window| if window % 3 == 2 { 50.0 } else { 1000.0 }).is_empty());
        fleet.load(40, |_| 150.0);
        // Halves of what is now a little above and a little below phi, in turn.
        assert!(fleet.load(200, |window| if window % 2 == 0 { 210.0 } else { 190.0 }).is_empty());
    }

    proptest! {
        /// Whatever a steady load is, it comes to rest, and never does both.
        #[test]
        fn any_steady_load_comes_to_rest(loads in proptest::collection::vec(0.0..1500.0_f64, 1..6)) {
            let mut fleet = Fleet::new();
            for load in loads {
                let decisions = fleet.load(400, |_| load);
                let splits = decisions.iter().filter(|it| matches!(it, Decision::Split(_))).count();
                // What one load left uneven may be split here and merged there, never back and forth.
                prop_assert!(decisions.len() <= 32, "{decisions:?}");
                prop_assert!(splits <= 16);
                prop_assert!(fleet.load(100, |_| load).is_empty());
            }
        }
    }
}
