//! What is watched, as it is at a moment.

use std::collections::HashMap;

use super::super::CliError;
use crate::api::client::Client;
use crate::api::{NodeInfo, NodeUsage, Usage, VmInfo, VmState};

/// All nodes at a moment.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// The nodes that answered.
    pub nodes: Vec<NodeInfo>,
    /// What the agents use.
    pub agents: Vec<Usage>,
    /// What did not answer, in words.
    pub problems: Vec<String>,
    /// The VMs.
    pub rows: Vec<Row>,
}

/// A VM at a moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What is known of it.
    pub vm: VmInfo,
    /// What it uses.
    pub usage: Option<Usage>,
    /// Processors that it kept busy since the last look, in hundredths.
    pub cpu: Option<f64>,
}

/// Looks at nodes.
#[derive(Debug)]
pub struct Sampler {
    clients: Vec<Client>,
    all: bool,
    /// Milliseconds of processors' time, and when that was, by node and VM.
    before: HashMap<(usize, u64), (u64, u64)>,
}

impl Sampler {
    /// Of these agents; of VMs that have ended too, if `all`.
    pub fn new(clients: Vec<Client>, all: bool) -> Self {
        Self { clients, all, before: HashMap::new() }
    }

    /// Looks.
    ///
    /// # Errors
    /// No node answers.
    pub fn look(&mut self) -> Result<Sample, CliError> {
        let (mut sample, mut failed) = (Sample::default(), None);
        let before = std::mem::take(&mut self.before);
        for (at, client) in self.clients.iter().enumerate() {
            let ask = || -> Result<_, CliError> {
                let info: NodeInfo = client.get("/v1/node")?;
                let vms: Vec<VmInfo> = client.get("/v1/vms")?;
                let usage: NodeUsage = client.get("/v1/usage")?;
                Ok((info, vms, usage))
            };
            match ask() {
                Ok((info, vms, usage)) => {
                    sample.nodes.push(info);
                    sample.agents.push(usage.agent);
                    let of_vm: HashMap<_, _> =
                        usage.vms.iter().map(|vm| (vm.number, vm.usage)).collect();
                    for vm in vms {
                        if vm.state == VmState::Ended && !self.all {
                            continue;
                        }
                        let used = of_vm.get(&vm.number).copied().flatten();
                        let key = (at, vm.number);
                        let now = used.map(|used| (used.cpu_ms, usage.at_ms));
                        let cpu = busy(before.get(&key).copied(), now);
                        self.before.extend(now.map(|now| (key, now)));
                        sample.rows.push(Row { vm, usage: used, cpu });
                    }
                }
                Err(error) => {
                    sample.problems.push(error.to_string());
                    failed = Some(error);
                }
            }
        }
        match failed {
            Some(error) if sample.nodes.is_empty() => Err(error),
            _ => Ok(sample),
        }
    }
}

/// Hundredths of a processor that were kept busy between two looks.
#[expect(clippy::cast_precision_loss, reason = "milliseconds between two looks are few")]
fn busy(before: Option<(u64, u64)>, now: Option<(u64, u64)>) -> Option<f64> {
    let ((cpu_before, then), (cpu, now)) = (before?, now?);
    let passed = now.checked_sub(then).filter(|passed| *passed > 0)?;
    Some(cpu.saturating_sub(cpu_before) as f64 * 100.0 / passed as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_that_is_busy_all_the_time_is_a_hundred() {
        assert_eq!(busy(Some((1000, 5000)), Some((2000, 6000))), Some(100.0));
        assert_eq!(busy(Some((1000, 5000)), Some((1000, 5000))), None);
        assert_eq!(busy(None, Some((1, 1))), None);
    }
}
