//! Control groups of VMs, by their numbers.

use std::path::Path;

use crate::jail::cgroup::{Cgroup, CgroupError, Limits, Parent};
use crate::spec::VmSpec;

/// The group of the groups of all VMs of a node; at the top of the hierarchy, so that VMs live on when the
/// agent's service ends.
const GROUP: &str = "vmm-node";

fn name(number: u64) -> String {
    format!("vm-{number}")
}

/// Makes the group of a VM. Where the host has no limits and nobody asked for any, there is none.
///
/// # Errors
/// Limits that were asked for and cannot be held.
pub(super) fn make(number: u64, spec: &VmSpec) -> Result<Option<Cgroup>, CgroupError> {
    let limits = Limits::new(&spec.limits, spec.memory, spec.cpus, &[]);
    let made = Parent::create(Path::new(GROUP)).and_then(|parent| {
        let nothing = parent.controllers().is_empty() && spec.limits.is_empty();
        if nothing { Ok(None) } else { parent.vm(&name(number), &limits).map(Some) }
    });
    match made {
        Err(error) if spec.limits.is_empty() => {
            log::debug!("no limits for VM {number}: {error}");
            Ok(None)
        }
        made => made,
    }
}

/// Removes the group of a VM that has ended; whether it had run out of memory.
pub(super) fn remove(number: u64) -> bool {
    let group = Parent::create(Path::new(GROUP)).and_then(|parent| parent.find(&name(number)));
    // Most often there was none.
    let Ok(group) = group else { return false };
    let out_of_memory = group.memory_events().is_ok_and(|events| events.oom_kill > 0);
    if let Err(error) = group.remove() {
        log::warn!("{error}");
    }
    out_of_memory
}
