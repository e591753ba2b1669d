//! What VMs use of memory and processors, as the host's kernel tells it.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};

use crate::api::{NodeUsage, Usage, VmUsage};
use crate::node::Node;
use crate::node::clock::now_ms;

/// How long what was seen is good for, in milliseconds: looking takes the kernel a while for each VM.
const GOOD_FOR_MS: u64 = 1000;

/// Looks at what is used, and remembers it.
#[derive(Debug, Default)]
pub struct Sampler(Mutex<Option<Arc<NodeUsage>>>);

impl Sampler {
    /// What is used. May take some milliseconds, and who asks meanwhile waits for the same answer.
    pub fn look(&self, node: &Node) -> Arc<NodeUsage> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now_ms();
        let old = |seen: &Arc<NodeUsage>| now.saturating_sub(seen.at_ms) < GOOD_FOR_MS;
        if let Some(seen) = last.as_ref().filter(|seen| old(seen)) {
            return seen.clone();
        }
        let vms = node.list().into_iter().filter_map(|vm| {
            let usage = of_process(&vm.pid?.to_string());
            Some(VmUsage { number: vm.number, name: vm.name, usage })
        });
        let vms = vms.collect();
        let agent = of_process("self").unwrap_or_default();
        let seen = Arc::new(NodeUsage { at_ms: now, agent, vms });
        *last = Some(seen.clone());
        seen
    }
}

/// What a process uses; nothing if it is gone, or another user's.
fn of_process(pid: &str) -> Option<Usage> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    Some(Usage { cpu_ms: cpu_ticks(&stat).saturating_mul(1000) / ticks, ..memory(&smaps) })
}

/// Memory, of a text of `smaps_rollup`.
fn memory(smaps: &str) -> Usage {
    let sum = |names: &[&str]| -> u64 {
        let line = |line: &str| {
            let (name, value) = line.split_once(':')?;
            names.contains(&name).then(|| value.trim().strip_suffix(" kB")?.parse::<u64>().ok())?
        };
        let kib: u64 = smaps.lines().filter_map(line).sum();
        kib.saturating_mul(1024)
    };
    Usage {
        shared_bytes: sum(&["Shared_Clean", "Shared_Dirty", "Shared_Hugetlb"]),
        private_bytes: sum(&["Private_Clean", "Private_Dirty", "Private_Hugetlb"]),
        proportional_bytes: sum(&["Pss"]),
        cpu_ms: 0,
    }
}

/// Ticks of processors' time, of a line of `stat`.
fn cpu_ticks(stat: &str) -> u64 {
    // The name, in parentheses, may have spaces.
    let Some((_, fields)) = stat.rsplit_once(')') else { return 0 };
    // The fields 14 and 15 of proc(5), of which two are gone.
    fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_apart() {
        let text = "1-2 ---p 0 0 0 [rollup]\nRss:  100 kB\nPss:  60 kB\nPss_Dirty: 7 kB\n\
                    Shared_Clean: 30 kB\nShared_Dirty: 10 kB\nPrivate_Clean: 20 kB\n\
                    Private_Dirty: 40 kB\nPrivate_Hugetlb: 4 kB\n";
        let seen = memory(text);
        assert_eq!(seen.shared_bytes, 40 << 10);
        assert_eq!(seen.private_bytes, 64 << 10);
        assert_eq!(seen.proportional_bytes, 60 << 10);
        assert!(of_process("self").unwrap().private_bytes > 0);
        assert_eq!(of_process("0"), None);
    }

    #[test]
    fn time_is_found_behind_any_name() {
        let stat = "12 (a ) b) S 1 2 3 4 5 6 7 8 9 10 300 40 0 0 20";
        assert_eq!(cpu_ticks(stat), 340);
        assert_eq!(cpu_ticks("nothing"), 0);
    }
}
