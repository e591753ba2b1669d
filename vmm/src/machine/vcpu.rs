//! A virtual processor: its thread, and what it does on each exit.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use devices::bus::Bus;
use devices::ioapic::Ioapic;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, register_signal_handler, unblock_signal};

use super::event::{EventSender, MachineEvent};
use super::routes::RouteTable;

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

/// The running vCPUs of a machine; stops them when dropped.
#[derive(Debug)]
pub struct RunningVcpus {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    done: std::sync::mpsc::Receiver<()>,
}

/// The signal that gets a thread out of the guest.
fn kick_signal() -> i32 {
    vmm_sys_util::signal::SIGRTMIN()
}

extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // Its arrival is all that matters: KVM_RUN returns.
}

/// Starts a thread for each vCPU.
///
/// # Errors
/// No thread, or no signal handler.
pub fn start(vcpus: Vec<VcpuFd>, platform: &Platform) -> std::io::Result<RunningVcpus> {
    register_signal_handler(kick_signal(), on_kick)?;
    let stop = Arc::new(AtomicBool::new(false));
    let (sender, done) = channel();
    // Made first: should a thread not start, dropping it stops those that did.
    let mut running = RunningVcpus { stop: stop.clone(), threads: Vec::new(), done };
    for (index, vcpu) in vcpus.into_iter().enumerate() {
        let (platform, stop, sender) = (platform.clone(), stop.clone(), sender.clone());
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .stack_size(128 << 10)
            .spawn(move || {
                // A parent may have blocked it, and masks are inherited.
                if let Err(error) = unblock_signal(kick_signal()) {
                    log::warn!("vCPU {index} cannot be stopped promptly: {error:?}");
                }
                run(index, vcpu, &platform, &stop);
                drop(sender);
            })?;
        running.threads.push(thread);
    }
    drop(sender);
    Ok(running)
}

impl Drop for RunningVcpus {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // A kick that arrives just before KVM_RUN is lost; so kick until all have gone.
        while !self.threads.iter().all(JoinHandle::is_finished) {
            for thread in self.threads.iter().filter(|thread| !thread.is_finished()) {
                // Fails only for a thread that has just ended.
                let _ = thread.kill(kick_signal());
            }
            if self.done.recv_timeout(Duration::from_millis(1))
                == Err(RecvTimeoutError::Disconnected)
            {
                break;
            }
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a vCPU thread panicked");
            }
        }
    }
}

/// Runs one vCPU until it is stopped or cannot go on.
fn run(index: usize, mut vcpu: VcpuFd, platform: &Platform, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) && !platform.events.ended() {
        let event = match vcpu.run() {
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
