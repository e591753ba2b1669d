//! Finds the VMs again that a former agent has started.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::Inner;
use super::clock::now_ms;
use super::registry::{self, Vm};
use super::supervisor::Watched;
use crate::api::{VmEnd, VmState};
use crate::control::vms::folder::Vms;

/// The number that the next VM gets: none that any had before.
pub fn next_number(folder: &Path, vms: &Vms) -> u64 {
    let written = std::fs::read_to_string(folder.join("next")).ok();
    let written = written.and_then(|text| text.trim().parse().ok()).unwrap_or(1);
    let last = vms.all().ok().and_then(|all| all.last().copied()).unwrap_or(0);
    written.max(last.saturating_add(1)).max(1)
}

/// Takes over all VMs of the folder: those that live are watched, of the others it is known that they
/// have ended.
pub fn find_vms(node: &Inner) {
    let numbers = match node.vms.all() {
        Ok(numbers) => numbers,
        Err(error) => {
            log::error!("the VMs of the agent before this one: {error}");
            return;
        }
    };
    for number in numbers {
        let folder = node.vms.folder(number);
        let process = folder.process().unwrap_or_else(|error| {
            log::warn!("VM {number}: {error}");
            None
        });
        let Some(mut record) = registry::read(&folder) else {
            // Its agent was killed before it had written what it is, and so before it had given it
            // anything: it has ended by itself.
            folder.remove();
            continue;
        };
        let process = process.map(Arc::new);
        let info = &mut record.info;
        let hold = record.create.hold;
        match (&process, info.state) {
            (None, VmState::Ended) => {}
            (None, _) => {
                let reason = "it ended while there was no agent".to_owned();
                info.state = VmState::Ended;
                info.pid = None;
                info.end = Some(VmEnd { code: None, reason, at_ms: now_ms() });
            }
            // What it told nobody heard; it goes on by itself.
            (Some(_), VmState::Starting) => {
                info.state = if hold { VmState::Ready } else { VmState::Running };
            }
            (Some(_), _) => {
                let began = folder.event("entry").is_some();
                info.state = if began { VmState::Running } else { info.state };
            }
        }
        let image = process.as_ref().and_then(|_| {
            let id = info.manifest.as_ref()?.parse().ok()?;
            node.pool.held(&info.tenant, id)
        });
        let (name, remove) = (info.name.clone(), record.create.remove);
        let vm = Vm {
            record,
            folder: folder.clone(),
            created: Instant::now(),
            process: process.clone(),
            image,
            turn: None,
            remove,
        };
        if let Err(error) = node.registry.add(vm, u32::MAX) {
            log::warn!("VM {number} ('{name}'): {error}");
            continue;
        }
        if let Some(process) = process {
            log::info!("VM '{name}' still lives");
            node.supervisor.watch(Watched { number, process, link: None, folder, hold });
        } else if remove {
            node.registry.discard(number);
        }
    }
}
