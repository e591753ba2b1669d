//! The VMs of the node, as the agent knows them, and their records on disk for the next agent.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::clock::now_ms;
use super::error::NodeError;
use super::events::Listeners;
use super::pool::Held;
use super::turns::Turn;
use crate::api::{CreateVm, Event, Phase, VmCounts, VmEnd, VmInfo, VmState};
use crate::control::vms::folder::VmFolder;
use crate::spec::name::VmName;

/// The name of a VM's record in its folder.
const RECORD: &str = "record";

/// What is written down of a VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// What was asked for.
    pub create: CreateVm,
    /// What is known of it.
    pub info: VmInfo,
    /// Its report so far.
    #[serde(default)]
    pub report: Option<serde_json::Value>,
}

/// A VM.
#[derive(Debug)]
pub struct Vm {
    /// What is written down of it.
    pub record: Record,
    /// Its folder.
    pub folder: VmFolder,
    /// When it was created.
    pub created: Instant,
    /// Its process, while that lives.
    pub process: Option<Arc<OwnedFd>>,
    /// Its image, for as long as it lives.
    pub image: Option<Arc<Held>>,
    /// Its turn, until it is ready.
    pub turn: Option<Turn>,
    /// Whether it is to be forgotten when it has ended.
    pub remove: bool,
}

/// All VMs.
#[derive(Debug, Clone)]
pub struct Registry {
    shared: Arc<Shared>,
    listeners: Listeners,
}

#[derive(Debug, Default)]
struct Shared {
    vms: Mutex<Vms>,
    changed: Condvar,
}

/// The VMs by number, and their names.
#[derive(Debug, Default)]
pub struct Vms {
    all: BTreeMap<u64, Vm>,
    names: BTreeMap<VmName, u64>,
}

impl Vm {
    /// Writes its record, whole or not at all.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self) -> io::Result<()> {
        let (file, new) = (self.folder.file(RECORD), self.folder.file("record.new"));
        fs::write(&new, serde_json::to_vec(&self.record)?)?;
        fs::rename(new, file)
    }

    /// As [`write`](Self::write), where a failure only costs the next agent.
    fn note(&self) {
        if let Err(error) = self.write() {
            log::warn!("the record of VM '{}': {error}", self.record.info.name);
        }
    }
}

/// The record in a folder.
pub fn read(folder: &VmFolder) -> Option<Record> {
    serde_json::from_slice(&folder.read(RECORD, 1 << 20)?).ok()
}

impl Registry {
    /// No VMs yet.
    pub fn new(listeners: Listeners) -> Self {
        Self { shared: Arc::default(), listeners }
    }

    fn lock(&self) -> MutexGuard<'_, Vms> {
        self.shared.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a VM, of a name that no other has.
    ///
    /// # Errors
    /// The name is taken, or `limit` VMs live.
    pub fn add(&self, vm: Vm, limit: u32) -> Result<(), NodeError> {
        let mut vms = self.lock();
        let name = vm.record.info.name.clone();
        if vms.names.contains_key(&name) {
            return Err(NodeError::Exists(name));
        }
        let living = vms.all.values().filter(|vm| vm.record.info.state != VmState::Ended).count();
        if vm.record.info.state != VmState::Ended && living >= usize::try_from(limit).unwrap_or(0) {
            return Err(NodeError::Full(limit));
        }
        let number = vm.record.info.number;
        let event = event(&vm);
        vms.names.insert(name, number);
        vms.all.insert(number, vm);
        drop(vms);
        self.listeners.tell(event);
        Ok(())
    }

    /// Forgets a VM that never came to be.
    pub fn discard(&self, number: u64) {
        self.forget(&mut self.lock(), number);
    }

    fn forget(&self, vms: &mut Vms, number: u64) {
        let Some(vm) = vms.all.remove(&number) else { return };
        let name = vm.record.info.name;
        vms.names.remove(&name);
        vm.folder.remove();
        self.listeners.tell(Event::Deleted { number, name });
        self.shared.changed.notify_all();
    }

    /// Changes a VM; what is known of it is written down and told if its state is another then.
    pub fn change(&self, number: u64, change: impl FnOnce(&mut Vm)) {
        let mut vms = self.lock();
        let Some(vm) = vms.all.get_mut(&number) else { return };
        let before = vm.record.info.state;
        change(vm);
        if vm.record.info.state == before {
            return;
        }
        vm.note();
        let event = event(vm);
        drop(vms);
        self.shared.changed.notify_all();
        self.listeners.tell(event);
    }

    /// Changes a VM, and nothing else.
    pub fn change_quietly(&self, number: u64, change: impl FnOnce(&mut Vm)) {
        if let Some(vm) = self.lock().all.get_mut(&number) {
            change(vm);
        }
    }

    /// Has a VM ended: its process is gone.
    pub fn end(&self, number: u64, end: VmEnd, keep: usize) {
        self.change(number, |vm| {
            vm.process = None;
            vm.image = None;
            vm.turn = None;
            let info = &mut vm.record.info;
            info.pid = None;
            info.state = VmState::Ended;
            info.end = Some(end);
        });
        let mut vms = self.lock();
        if vms.all.get(&number).is_some_and(|vm| vm.remove) {
            self.forget(&mut vms, number);
        }
        let ended = |vm: &&Vm| vm.record.info.state == VmState::Ended;
        let mut numbers: Vec<(u64, u64)> = vms
            .all
            .values()
            .filter(ended)
            .map(|vm| &vm.record.info)
            .map(|info| (info.end.as_ref().map_or(0, |end| end.at_ms), info.number))
            .collect();
        if let Some(excess) = numbers.len().checked_sub(keep).filter(|excess| *excess > 0) {
            numbers.sort_unstable();
            for (_, number) in numbers.into_iter().take(excess) {
                self.forget(&mut vms, number);
            }
        }
    }

    /// Looks at the VM of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn with<R>(&self, name: &VmName, look: impl FnOnce(&mut Vm) -> R) -> Result<R, NodeError> {
        let mut vms = self.lock();
        let number = vms.names.get(name).copied();
        let vm = number.and_then(|number| vms.all.get_mut(&number));
        vm.map(look).ok_or_else(|| NodeError::NoVm(name.clone()))
    }

    /// What is known of it.
    ///
    /// # Errors
    /// There is none.
    pub fn info(&self, name: &VmName) -> Result<VmInfo, NodeError> {
        self.with(name, |vm| vm.record.info.clone())
    }

    /// All, by number.
    pub fn list(&self) -> Vec<VmInfo> {
        self.lock().all.values().map(|vm| vm.record.info.clone()).collect()
    }

    /// How many there are in each state, and the RAM of those that live, in bytes.
    pub fn count(&self) -> (VmCounts, u64) {
        let (mut counts, mut memory) = (VmCounts::default(), 0u64);
        for vm in self.lock().all.values() {
            let info = &vm.record.info;
            *match info.state {
                VmState::Starting => &mut counts.starting,
                VmState::Ready => &mut counts.ready,
                VmState::Running => &mut counts.running,
                VmState::Ended => &mut counts.ended,
            } += 1;
            if info.state != VmState::Ended {
                memory = memory.saturating_add(info.spec.memory);
            }
        }
        (counts, memory)
    }

    /// Waits until a VM is at least in this state.
    ///
    /// # Errors
    /// There is no such VM any more, or it takes longer than `patience`.
    pub fn wait(
        &self,
        name: &VmName,
        wanted: VmState,
        patience: Duration,
    ) -> Result<VmInfo, NodeError> {
        let begun = Instant::now();
        let mut vms = self.lock();
        loop {
            let number = vms.names.get(name).copied();
            let vm = number.and_then(|number| vms.all.get(&number));
            let info = &vm.ok_or_else(|| NodeError::NoVm(name.clone()))?.record.info;
            if info.state >= wanted {
                return Ok(info.clone());
            }
            let Some(left) = patience.checked_sub(begun.elapsed()) else {
                let (name, state, seconds) = (name.clone(), info.state, patience.as_secs_f64());
                return Err(NodeError::Slow { name, state, wanted, seconds });
            };
            let waited = self.shared.changed.wait_timeout(vms, left);
            vms = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What is told of a VM's state.
fn event(vm: &Vm) -> Event {
    let info = &vm.record.info;
    Event::Vm {
        number: info.number,
        name: info.name.clone(),
        image: info.spec.image.clone(),
        state: info.state,
        end: info.end.clone(),
    }
}

/// What is known of a VM that was just asked for.
pub fn new_record(create: CreateVm, number: u64, name: VmName) -> Record {
    let info = VmInfo {
        number,
        name,
        tenant: create.tenant.clone(),
        state: VmState::Starting,
        spec: create.spec.clone(),
        manifest: None,
        pid: None,
        network: None,
        created_ms: now_ms(),
        phases: Vec::<Phase>::new(),
        ready_ms: None,
        end: None,
    };
    Record { create, info, report: None }
}
