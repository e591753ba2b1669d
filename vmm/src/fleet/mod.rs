//! Boots many VMs at once, over any number of nodes, and says how it went.
//!
//! VMs are spread over the nodes in turn. One that fails is counted and named, and changes nothing for
//! the others. When the whole is called off, every VM that was begun is deleted again.

pub mod summary;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use self::summary::{Summary, summarize};
use crate::api::{CreateVm, VmInfo, VmState};
use crate::boot::stopwatch::milliseconds;
use crate::exit::Exit;
use crate::spec::VmSpec;
use crate::spec::name::{TenantName, VmName};

/// How long a VM is waited for at a time, so that being called off is noticed.
const STEP: Duration = Duration::from_millis(500);

/// Why a node did not do what it was asked for.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct NodeFailure {
    /// In words.
    pub message: String,
    /// The exit code for it.
    pub exit: Exit,
    /// Whether the VM was only not yet as far as it was to be.
    pub slow: bool,
    /// Whether there is no such VM any more.
    pub gone: bool,
}

/// A node, as a fleet needs it.
pub trait FleetNode: Sync {
    /// What to call it.
    fn name(&self) -> String;

    /// Boots a VM.
    ///
    /// # Errors
    /// Why not.
    fn create(&self, vm: &CreateVm) -> Result<VmInfo, NodeFailure>;

    /// Waits until a VM is at least in this state.
    ///
    /// # Errors
    /// It is not, after `patience`, or there is no such VM.
    fn wait(
        &self,
        name: &VmName,
        state: VmState,
        patience: Duration,
    ) -> Result<VmInfo, NodeFailure>;

    /// Ends a VM and forgets it.
    ///
    /// # Errors
    /// Why not.
    fn delete(&self, name: &VmName) -> Result<(), NodeFailure>;
}

/// A fleet that is wanted.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// VMs are called this, with a number behind it.
    pub prefix: VmName,
    /// How many.
    pub count: u32,
    /// How many are begun at a time.
    pub parallel: u32,
    /// What each of them is.
    pub spec: VmSpec,
    /// Whose they are.
    pub tenant: TenantName,
    /// Whether they are only made ready.
    pub hold: bool,
    /// Whether the nodes forget each as soon as it has ended.
    pub remove: bool,
    /// How long each may take.
    pub patience: Duration,
}

/// A VM that was asked for.
#[derive(Debug, Clone, Serialize)]
pub struct Booted {
    /// Its name.
    pub name: VmName,
    /// The node that it was asked of.
    pub node: String,
    /// What is known of it, if it came as far as it was to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmInfo>,
    /// Milliseconds from when its node was asked until it had told that it was that far.
    pub ms: f64,
    /// Why it did not come that far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The exit code for that.
    #[serde(skip)]
    exit: Option<Exit>,
}

/// How it went.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// VMs that were wanted.
    pub count: u32,
    /// VMs that came as far as they were to.
    pub booted: u32,
    /// VMs that did not.
    pub failed: u32,
    /// Whether it was called off.
    pub called_off: bool,
    /// Seconds from the first to the last.
    pub seconds: f64,
    /// VMs for each of these seconds.
    pub per_second: f64,
    /// Times of phases over all VMs.
    pub summary: Summary,
    /// Each of them.
    pub vms: Vec<Booted>,
}

impl Report {
    /// The exit code: that of the first failure, if there is one.
    pub fn exit(&self) -> Exit {
        if self.called_off {
            return Exit::Signal(2);
        }
        let failure = self.vms.iter().find_map(|vm| vm.exit);
        failure.unwrap_or(if self.failed > 0 { Exit::Failure } else { Exit::Success })
    }
}

/// Boots `fleet` on `nodes`. `stop` calls it off; `tell` is called for each VM, when it is as far as it is
/// to be or has failed.
pub fn boot(
    nodes: &[&dyn FleetNode],
    fleet: &Fleet,
    stop: &AtomicBool,
    mut tell: impl FnMut(&Booted),
) -> Report {
    let begun = Instant::now();
    let next = AtomicU32::new(0);
    let (done, results) = channel();
    let mut vms = Vec::new();
    thread::scope(|scope| {
        for _ in 0..fleet.parallel.clamp(1, fleet.count.max(1)) {
            let (done, next) = (done.clone(), &next);
            scope.spawn(move || work(nodes, fleet, next, stop, &done));
        }
        drop(done);
        for vm in results {
            tell(&vm);
            vms.push(vm);
        }
    });
    let seconds = begun.elapsed().as_secs_f64();
    let called_off = stop.load(Ordering::Relaxed);
    if called_off {
        clean_up(nodes, &vms);
    }
    vms.sort_by(|a, b| a.name.cmp_natural(&b.name));
    let booted = u32::try_from(vms.iter().filter(|vm| vm.vm.is_some()).count()).unwrap_or(u32::MAX);
    let summary = summarize(vms.iter().filter_map(|vm| vm.vm.as_ref()));
    let failed = fleet.count - booted.min(fleet.count);
    let per_second = f64::from(booted) / seconds.max(f64::EPSILON);
    Report { count: fleet.count, booted, failed, called_off, seconds, per_second, summary, vms }
}

/// Begins VMs for as long as there are some.
fn work(
    nodes: &[&dyn FleetNode],
    fleet: &Fleet,
    next: &AtomicU32,
    stop: &AtomicBool,
    done: &Sender<Booted>,
) {
    while !stop.load(Ordering::Relaxed) {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if index >= fleet.count {
            return;
        }
        let Some(node) = nodes.get(usize::try_from(index).unwrap_or(0) % nodes.len().max(1)) else {
            return;
        };
        // The other end takes all there is.
        let _ = done.send(boot_one(*node, fleet, index, stop));
    }
}

fn boot_one(node: &dyn FleetNode, fleet: &Fleet, index: u32, stop: &AtomicBool) -> Booted {
    let begun = Instant::now();
    // A prefix that a number fits behind was checked by who made the fleet.
    let name = fleet.prefix.numbered(index + 1);
    let create = CreateVm {
        name: Some(name.clone()),
        tenant: fleet.tenant.clone(),
        hold: fleet.hold,
        remove: fleet.remove,
        spec: fleet.spec.clone(),
    };
    let result = node.create(&create).and_then(|_| wait(node, &name, fleet, begun, stop));
    let (vm, failure) = match result {
        Ok(vm) => (Some(vm), None),
        Err(failure) => (None, Some(failure)),
    };
    Booted {
        name,
        node: node.name(),
        vm,
        ms: milliseconds(begun.elapsed()),
        error: failure.as_ref().map(ToString::to_string),
        exit: failure.map(|failure| failure.exit),
    }
}

fn wait(
    node: &dyn FleetNode,
    name: &VmName,
    fleet: &Fleet,
    begun: Instant,
    stop: &AtomicBool,
) -> Result<VmInfo, NodeFailure> {
    let state = if fleet.hold { VmState::Ready } else { VmState::Running };
    loop {
        match node.wait(name, state, STEP) {
            // A guest may be short: that it ended is no failure if it was ready.
            Ok(vm) if vm.ready_ms.is_some() => return Ok(vm),
            Ok(vm) => {
                let end = vm.end.as_ref();
                let message = end.map_or("it has ended", |end| end.reason.as_str()).to_owned();
                let code = end.and_then(|end| end.code);
                let exit = code.and_then(Exit::of_code).unwrap_or(Exit::Failure);
                return Err(NodeFailure { message, exit, slow: false, gone: false });
            }
            Err(failure) if failure.slow && begun.elapsed() < fleet.patience => {
                if stop.load(Ordering::Relaxed) {
                    return Err(NodeFailure { message: "called off".into(), ..failure });
                }
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Deletes all that there may be of what was begun.
fn clean_up(nodes: &[&dyn FleetNode], vms: &[Booted]) {
    for vm in vms {
        let Some(node) = nodes.iter().find(|node| node.name() == vm.node) else { continue };
        match node.delete(&vm.name) {
            Err(failure) if !failure.gone => {
                log::warn!("VM '{}' on {} is not deleted: {failure}", vm.name, vm.node);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
