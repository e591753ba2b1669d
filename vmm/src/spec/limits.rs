//! How much of the host a VM may take.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::size;

/// Limits of a VM, held by its control group (cgroup v2). What is not given is not limited, but for
/// memory and tasks, which always are: RAM with a bit more for the VMM, and enough threads for it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsSpec {
    /// Processors' time, in thousandths of one: 1500 is one and a half.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 10, maximum = 1_024_000, example = 1500)]
    pub cpu_millis: Option<u32>,
    /// Share of the processors where there are too few for all, 1 to 10000; by default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 10000)]
    pub cpu_weight: Option<u32>,
    /// Bytes of memory beyond the guest's RAM, for the VMM and for what the kernel keeps for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 16_777_216, maximum = 1_099_511_627_776_u64)]
    pub memory_overhead: Option<u64>,
    /// Bytes of the VM's memory that the host may swap out; by default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 1_099_511_627_776_u64)]
    pub swap: Option<u64>,
    /// Threads of the VMM and of the kernel for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 8, maximum = 4096)]
    pub tasks: Option<u32>,
    /// Bytes that may be read from each of the VM's disks in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 4096, maximum = 1_099_511_627_776_u64)]
    pub read: Option<u64>,
    /// Bytes that may be written to each of them in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 4096, maximum = 1_099_511_627_776_u64)]
    pub write: Option<u64>,
    /// Reads from each of them in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000_000)]
    pub reads: Option<u32>,
    /// Writes to each of them in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000_000)]
    pub writes: Option<u32>,
}

/// What is wrong with limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// Not a pair.
    #[error("'{0}' is not NAME=VALUE")]
    NoPair(String),
    /// A name that is none.
    #[error(
        "there is no limit '{0}'; there are cpu, cpu-weight, memory-overhead, swap, tasks, read, \
         write, reads and writes"
    )]
    Name(String),
    /// A value that makes no sense for its name.
    #[error("{name} cannot be {value}: {wanted}")]
    Value {
        /// The limit.
        name: &'static str,
        /// What it was to be.
        value: String,
        /// What it may be.
        wanted: &'static str,
    },
}

const CPU: &str = "processors, from 0.01 to 1024, such as 1.5";
const WEIGHT: &str = "a number from 1 to 10000";
const OVERHEAD: &str = "a size from 16M to 1T";
const SWAP: &str = "a size of at most 1T";
const TASKS: &str = "a number from 8 to 4096";
const RATE: &str = "a size from 4K to 1T";
const OPERATIONS: &str = "a number from 1 to 1000000000";

impl LimitsSpec {
    /// Checks the values, which may have come from anywhere.
    ///
    /// # Errors
    /// The first that makes no sense.
    pub fn check(&self) -> Result<(), LimitsError> {
        let refuse = |name, value: u64, wanted| {
            Err(LimitsError::Value { name, value: value.to_string(), wanted })
        };
        let checks = [
            ("cpu", self.cpu_millis.map(u64::from), 10..=1_024_000, CPU),
            ("cpu-weight", self.cpu_weight.map(u64::from), 1..=10000, WEIGHT),
            ("memory-overhead", self.memory_overhead, 16 << 20..=1 << 40, OVERHEAD),
            ("swap", self.swap, 0..=1 << 40, SWAP),
            ("tasks", self.tasks.map(u64::from), 8..=4096, TASKS),
            ("read", self.read, 4096..=1 << 40, RATE),
            ("write", self.write, 4096..=1 << 40, RATE),
            ("reads", self.reads.map(u64::from), 1..=1_000_000_000, OPERATIONS),
            ("writes", self.writes.map(u64::from), 1..=1_000_000_000, OPERATIONS),
        ];
        for (name, value, range, wanted) in checks {
            if let Some(value) = value.filter(|value| !range.contains(value)) {
                return refuse(name, value, wanted);
            }
        }
        Ok(())
    }

    /// Whether nothing is limited beyond what always is.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), LimitsError> {
        let refuse = |name, wanted| LimitsError::Value { name, value: value.into(), wanted };
        let number = |name, wanted| value.parse::<u32>().map_err(|_| refuse(name, wanted));
        // A bare number is bytes, as Display writes them.
        let bytes = |name, wanted| {
            value.parse().or_else(|_| size::parse(value)).map_err(|_| refuse(name, wanted))
        };
        match name {
            "cpu" => self.cpu_millis = Some(millis(value).ok_or_else(|| refuse("cpu", CPU))?),
            "cpu-weight" => self.cpu_weight = Some(number("cpu-weight", WEIGHT)?),
            "memory-overhead" => self.memory_overhead = Some(bytes("memory-overhead", OVERHEAD)?),
            "swap" => self.swap = Some(bytes("swap", SWAP)?),
            "tasks" => self.tasks = Some(number("tasks", TASKS)?),
            "read" => self.read = Some(bytes("read", RATE)?),
            "write" => self.write = Some(bytes("write", RATE)?),
            "reads" => self.reads = Some(number("reads", OPERATIONS)?),
            "writes" => self.writes = Some(number("writes", OPERATIONS)?),
            _ => return Err(LimitsError::Name(name.into())),
        }
        Ok(())
    }
}

/// Thousandths, of a decimal number.
fn millis(text: &str) -> Option<u32> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.len() > 3 || !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let thousandths: u32 = format!("{part:0<3}").parse().ok()?;
    whole.parse::<u32>().ok()?.checked_mul(1000)?.checked_add(thousandths)
}

impl FromStr for LimitsSpec {
    type Err = LimitsError;

    fn from_str(text: &str) -> Result<Self, LimitsError> {
        let mut limits = Self::default();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| LimitsError::NoPair(pair.into()))?;
            limits.set(name, value)?;
        }
        limits.check()?;
        Ok(limits)
    }
}

impl fmt::Display for LimitsSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = self.cpu_millis.map(|n| format!("cpu={}.{:03}", n / 1000, n % 1000));
        let number = |name: &str, value: Option<u32>| value.map(|n| format!("{name}={n}"));
        let bytes = |name: &str, value: Option<u64>| value.map(|n| format!("{name}={n}"));
        let parts = [
            cpu,
            number("cpu-weight", self.cpu_weight),
            bytes("memory-overhead", self.memory_overhead),
            bytes("swap", self.swap),
            number("tasks", self.tasks),
            bytes("read", self.read),
            bytes("write", self.write),
            number("reads", self.reads),
            number("writes", self.writes),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limits_are_read_as_people_write_them() {
        let limits: LimitsSpec = "cpu=1.5,memory-overhead=64M,tasks=32,read=100M".parse().unwrap();
        assert_eq!(limits.cpu_millis, Some(1500));
        assert_eq!(limits.memory_overhead, Some(64 << 20));
        assert_eq!((limits.tasks, limits.read), (Some(32), Some(100 << 20)));
        assert!(LimitsSpec::from_str("").unwrap().is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would() {
        for (text, named) in [
            ("cpu", "NAME=VALUE"),
            ("cpu=0", "0.01"),
            ("cpu=1.2345", "1.5"),
            ("cpu=-1", "1.5"),
            ("cpus=2", "cpu-weight"),
            ("tasks=1", "from 8"),
            ("memory-overhead=1K", "16M"),
            ("reads=0", "from 1"),
            ("read=x", "4K"),
        ] {
            let error = text.parse::<LimitsSpec>().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_as_the_same(
            cpu_millis in proptest::option::of(10u32..=1_024_000),
            cpu_weight in proptest::option::of(1u32..=10000),
            memory_overhead in proptest::option::of(16u64 << 20..=1 << 40),
            swap in proptest::option::of(0u64..=1 << 40),
            tasks in proptest::option::of(8u32..=4096),
            read in proptest::option::of(4096u64..=1 << 40),
            writes in proptest::option::of(1u32..=1_000_000_000),
        ) {
            let limits = LimitsSpec {
                cpu_millis, cpu_weight, memory_overhead, swap, tasks, read, writes,
                ..LimitsSpec::default()
            };
            prop_assert_eq!(limits.to_string().parse::<LimitsSpec>().unwrap(), limits.clone());
            let json = serde_json::to_string(&limits).unwrap();
            prop_assert_eq!(serde_json::from_str::<LimitsSpec>(&json).unwrap(), limits);
        }
    }
}
