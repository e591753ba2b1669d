//! Limits of a VM as the kernel wants them.

use std::fs;
use std::os::linux::fs::MetadataExt;

use rustix::fs::{major, minor};

use crate::spec::limits::LimitsSpec;

/// The period over which processors' time is limited, in microseconds; the kernel's own default.
const PERIOD_US: u64 = 100_000;
/// Memory for the VMM, unless said otherwise: 5 MiB of its own, 32 MiB twice while a ramdisk settles,
/// and what the kernel keeps for a machine.
const OVERHEAD: u64 = 64 << 20;
/// Of RAM in pages of 4 KiB, the kernel's tables that map it for the guest and for the VMM take so
/// much: 8 bytes a page, three times.
const TABLES_SHIFT: u32 = 7;
/// Threads beside vCPUs, unless said otherwise: the VMM's, and those of the kernel that count as its own.
const TASKS: u32 = 16;

/// What the kernel is to hold a VM to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    settings: Vec<Setting>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    controller: &'static str,
    file: &'static str,
    value: String,
    /// Whether somebody asked for it, so that a VM without it is not what they wanted.
    asked: bool,
}

impl Limits {
    /// Of a VM with `ram` bytes of RAM and `cpus` processors, whose disks are on the block devices
    /// `disks` (major and minor number; whole disks: see [`whole_disk`]).
    pub fn new(spec: &LimitsSpec, ram: u64, cpus: u8, disks: &[(u32, u32)]) -> Self {
        let mut settings = Vec::new();
        let mut set = |controller, file, value: String, asked| {
            settings.push(Setting { controller, file, value, asked });
        };
        if let Some(millis) = spec.cpu_millis {
            let quota = u64::from(millis) * PERIOD_US / 1000;
            set("cpu", "cpu.max", format!("{quota} {PERIOD_US}"), true);
        }
        if let Some(weight) = spec.cpu_weight {
            set("cpu", "cpu.weight", weight.to_string(), true);
        }
        let tables = ram >> TABLES_SHIFT;
        let overhead = spec.memory_overhead.unwrap_or(OVERHEAD.saturating_add(tables));
        let memory = ram.saturating_add(overhead).to_string();
        set("memory", "memory.max", memory, spec.memory_overhead.is_some());
        let swap = spec.swap.unwrap_or(0).to_string();
        set("memory", "memory.swap.max", swap, spec.swap.is_some());
        // Whatever of it is killed, no half of a VM stays.
        set("memory", "memory.oom.group", "1".into(), false);
        let tasks = spec.tasks.unwrap_or(TASKS + u32::from(cpus));
        set("pids", "pids.max", tasks.to_string(), spec.tasks.is_some());
        let rates = [
            ("rbps", spec.read),
            ("wbps", spec.write),
            ("riops", spec.reads.map(u64::from)),
            ("wiops", spec.writes.map(u64::from)),
        ];
        let rates: Vec<_> = rates
            .into_iter()
            .filter_map(|(name, rate)| Some(format!("{name}={}", rate?)))
            .collect();
        for (major, minor) in disks.iter().filter(|_| !rates.is_empty()) {
            set("io", "io.max", format!("{major}:{minor} {}", rates.join(" ")), true);
        }
        Self { settings }
    }

    /// The controllers without which these limits are not what was asked for.
    pub(super) fn asked(&self) -> impl Iterator<Item = &'static str> {
        let asked = self.settings.iter().filter(|setting| setting.asked);
        let mut names: Vec<_> = asked.map(|setting| setting.controller).collect();
        names.dedup();
        names.into_iter()
    }

    /// Files and what to write to them, of those controllers that there are.
    pub(super) fn settings(
        &self,
        controllers: &[&'static str],
    ) -> impl Iterator<Item = (&'static str, String)> {
        let there = |setting: &&Setting| controllers.contains(&setting.controller);
        self.settings.iter().filter(there).map(|setting| (setting.file, setting.value.clone()))
    }
}

/// The whole disk under `file`, by its number, if it is on one: limits are of whole disks.
pub fn whole_disk(file: &fs::File) -> Option<(u32, u32)> {
    let device = file.metadata().ok()?.st_dev();
    let (major, minor) = (major(device), minor(device));
    let block = format!("/sys/dev/block/{major}:{minor}");
    if fs::exists(format!("{block}/partition")).ok()? {
        let number = fs::read_to_string(format!("{block}/../dev")).ok()?;
        let (major, minor) = number.trim().split_once(':')?;
        return Some((major.parse().ok()?, minor.parse().ok()?));
    }
    fs::exists(block).ok()?.then_some((major, minor))
}

#[cfg(test)]
mod tests {
    use super::super::CONTROLLERS;
    use super::*;

    fn settings(spec: &str, disks: &[(u32, u32)]) -> Vec<String> {
        let limits = Limits::new(&spec.parse().unwrap(), 512 << 20, 2, disks);
        limits.settings(&CONTROLLERS).map(|(file, value)| format!("{file} {value}")).collect()
    }

    #[test]
    fn memory_and_tasks_are_always_limited() {
        let memory = (512 + 64 + 4) << 20;
        assert_eq!(
            settings("", &[(8, 0)]),
            [
                &format!("memory.max {memory}"),
                "memory.swap.max 0",
                "memory.oom.group 1",
                "pids.max 18"
            ]
        );
        let none = LimitsSpec::default();
        assert_eq!(Limits::new(&none, 1 << 30, 1, &[]).asked().count(), 0);
    }

    #[test]
    fn limits_are_in_the_kernels_words() {
        let all = settings(
            "cpu=0.25,cpu-weight=50,memory-overhead=16M,tasks=9,read=1M,writes=7",
            &[(8, 0), (259, 1)],
        );
        for line in [
            "cpu.max 25000 100000".to_owned(),
            "cpu.weight 50".into(),
            format!("memory.max {}", 528 << 20),
            "pids.max 9".into(),
            "io.max 8:0 rbps=1048576 wiops=7".into(),
            "io.max 259:1 rbps=1048576 wiops=7".into(),
        ] {
            assert!(all.contains(&line), "{line}: {all:?}");
        }
        let asked = "cpu=1,cpu-weight=3,read=4K".parse().unwrap();
        let limits = Limits::new(&asked, 0, 1, &[(8, 0)]);
        assert_eq!(limits.asked().collect::<Vec<_>>(), ["cpu", "io"]);
    }
}
