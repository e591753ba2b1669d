//! A virtual processor: what its thread does on each exit.

use std::sync::{Arc, Mutex, PoisonError};

use devices::bus::Bus;
use devices::ioapic::Ioapic;
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::event::{EventSender, MachineEvent};
use super::routes::RouteTable;
use super::running::{RunningVcpus, Turnstile};

/// What the vCPU threads share.
#[derive(Debug, Clone)]
pub struct Platform {
    /// Devices on I/O ports.
    pub ports: Arc<Bus>,
    /// Devices in memory.
    pub mmio: Arc<Bus>,
    /// The I/O APIC, for the ends of interrupts that the kernel reports.
    pub ioapic: Arc<Mutex<Ioapic<RouteTable>>>,
    /// Where the ends of VMs are reported.
    pub events: EventSender,
}

/// Starts a thread for each vCPU, none of which enters the guest before it is released.
///
/// # Errors
/// No thread, or no signal handler.
pub fn start(vcpus: Vec<VcpuFd>, platform: &Platform) -> std::io::Result<RunningVcpus> {
    RunningVcpus::start_held(vcpus.into_iter().enumerate().map(|(index, vcpu)| {
        let platform = platform.clone();
        move |turnstile: &Turnstile| run(index, vcpu, &platform, turnstile)
    }))
}

/// Runs one vCPU until it is stopped or cannot go on.
fn run(index: usize, mut vcpu: VcpuFd, platform: &Platform, turnstile: &Turnstile) {
    while turnstile.pass() && !platform.events.ended() {
        let event = match turnstile.in_guest(|| vcpu.run()) {
            Ok(exit) => handle(exit, platform),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => None,
            Err(error) => Some(Fault::Run(error)),
        };
        let Some(fault) = event else { continue };
        platform.events.send(match fault {
            Fault::Shutdown => MachineEvent::TripleFault,
            Fault::Run(error) => MachineEvent::Failed(format!("vCPU {index} cannot run: {error}")),
            Fault::Entry(reason) => MachineEvent::Failed(format!(
                "vCPU {index}: the processor refused to enter the guest (reason {reason:#x})"
            )),
            Fault::Internal => MachineEvent::Failed(describe_internal(index, &mut vcpu)),
            Fault::Unexpected(exit) => {
                MachineEvent::Failed(format!("vCPU {index}: KVM exit {exit} is not one of ours"))
            }
        });
        return;
    }
}

/// Why a vCPU cannot go on.
enum Fault {
    Shutdown,
    Run(kvm_ioctls::Error),
    Entry(u64),
    Internal,
    Unexpected(String),
}

fn handle(exit: VcpuExit<'_>, platform: &Platform) -> Option<Fault> {
    match exit {
        VcpuExit::IoOut(port, data) => {
            platform.ports.write(u64::from(port), data);
        }
        VcpuExit::IoIn(port, data) => {
            platform.ports.read(u64::from(port), data);
        }
        VcpuExit::MmioWrite(address, data) => {
            platform.mmio.write(address, data);
        }
        VcpuExit::MmioRead(address, data) => {
            platform.mmio.read(address, data);
        }
        VcpuExit::IoapicEoi(vector) => {
            let mut ioapic = platform.ioapic.lock().unwrap_or_else(PoisonError::into_inner);
            ioapic.end_of_interrupt(vector);
        }
        VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt => {}
        VcpuExit::Shutdown => return Some(Fault::Shutdown),
        // Some kernels report a triple fault of an AMD guest as this.
        VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_RESET, _) => {
            return Some(Fault::Shutdown);
        }
        VcpuExit::FailEntry(reason, _) => return Some(Fault::Entry(reason)),
        VcpuExit::InternalError => return Some(Fault::Internal),
        other => return Some(Fault::Unexpected(format!("{other:?}"))),
    }
    None
}

/// What KVM could not emulate, and where the guest was.
fn describe_internal(index: usize, vcpu: &mut VcpuFd) -> String {
    let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
    let run = vcpu.get_kvm_run();
    // SAFETY: after an exit for an internal error, this is the member of the union that KVM wrote.
    let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
    format!("vCPU {index}: KVM internal error {suberror} with the guest at {rip:#x}")
}
