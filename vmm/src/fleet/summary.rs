//! Times of many VMs in few numbers.

use serde::Serialize;

use crate::api::VmInfo;

/// Times of phases over all VMs of a fleet.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// From when its node began with a VM until it was ready.
    pub ready: Percentiles,
    /// Each phase of that, in the order in which they come.
    pub phases: Vec<PhaseSummary>,
}

/// One phase over all VMs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PhaseSummary {
    /// What was done.
    pub name: String,
    /// How long it took.
    #[serde(flatten)]
    pub times: Percentiles,
}

/// How times are spread, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half took no longer.
    pub p50: f64,
    /// Nine in ten took no longer.
    pub p90: f64,
    /// Ninety-nine in a hundred took no longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Percentiles {
    /// Of `times`, in any order: the smallest that so many do not exceed (nearest rank).
    pub fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let at = |per_cent: usize| {
            let rank = (times.len() * per_cent).div_ceil(100);
            times.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Self { p50: at(50), p90: at(90), p99: at(99), max: at(100) }
    }
}

/// The times of all of `vms`.
pub fn summarize<'a>(vms: impl Iterator<Item = &'a VmInfo>) -> Summary {
    let mut ready = Vec::new();
    let mut phases: Vec<(String, Vec<f64>)> = Vec::new();
    for vm in vms {
        ready.extend(vm.ready_ms);
        for phase in &vm.phases {
            match phases.iter_mut().find(|(name, _)| *name == phase.name) {
                Some((_, times)) => times.push(phase.ms),
                None => phases.push((phase.name.clone(), vec![phase.ms])),
            }
        }
    }
    let phase = |(name, times)| PhaseSummary { name, times: Percentiles::of(times) };
    Summary { ready: Percentiles::of(ready), phases: phases.into_iter().map(phase).collect() }
}

/// For people.
pub fn table(summary: &Summary) -> String {
    let row = |name: &str, times: &Percentiles| {
        let Percentiles { p50, p90, p99, max } = times;
        format!("{name:<12} {p50:>10.3} {p90:>10.3} {p99:>10.3} {max:>10.3}\n")
    };
    let head =
        format!("{:<12} {:>10} {:>10} {:>10} {:>10}\n", "phase, ms", "p50", "p90", "p99", "max");
    let rows = summary.phases.iter().map(|phase| row(&phase.name, &phase.times));
    head + &rows.collect::<String>() + &row("ready", &summary.ready)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let times = Percentiles::of((1..=100).rev().map(f64::from).collect());
        assert_eq!(times, Percentiles { p50: 50.0, p90: 90.0, p99: 99.0, max: 100.0 });
        assert_eq!(
            Percentiles::of(vec![7.0]),
            Percentiles { p50: 7.0, p90: 7.0, p99: 7.0, max: 7.0 }
        );
        assert_eq!(Percentiles::of(Vec::new()), Percentiles::default());
    }

    proptest! {
        #[test]
        fn percentiles_ascend_and_are_some_of_the_times(times in prop::collection::vec(0.0..1e6, 1..50)) {
            let Percentiles { p50, p90, p99, max } = Percentiles::of(times.clone());
            prop_assert!(p50 <= p90 && p90 <= p99 && p99 <= max);
            prop_assert!([p50, p90, p99, max].iter().all(|time| times.contains(time)));
        }
    }
}
