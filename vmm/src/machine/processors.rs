//! The VM and its processors: all that can be made while an image is still being loaded.

use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::kvm::{self, KvmError};
use super::memory::RamRange;
use super::stats::StatsFile;
use super::wiring::Wiring;
use super::{MachineError, cpuid, layout, registers};
use devices::virtio::VirtioDevice;

/// A VM with its processors in their reset state, before anything of the image is needed.
#[derive(Debug)]
pub struct Processors {
    pub(super) vm: Arc<VmFd>,
    pub(super) vcpus: Vec<VcpuFd>,
    pub(super) stats: Vec<StatsFile>,
    pub(super) wiring: Wiring,
    /// What the slots refer to.
    pub(super) ram: Vec<RamRange>,
}

impl Processors {
    /// Creates the VM with `ram` in its slots, `count` processors, and the wires to its devices;
    /// `virtio` says how many queues each of its virtio devices has ([`queue_counts`]).
    ///
    /// # Errors
    /// KVM's or the host's refusal.
    pub fn create(
        kvm: &Kvm,
        ram: &[RamRange],
        count: u8,
        virtio: &[usize],
    ) -> Result<Self, MachineError> {
        let devices = u8::try_from(virtio.len()).unwrap_or(u8::MAX);
        if devices > layout::MAX_VIRTIO_DEVICES {
            let (devices, most) = (virtio.len(), layout::MAX_VIRTIO_DEVICES);
            return Err(MachineError::TooManyDevices { devices, most });
        }
        let vm = kvm::create_vm(kvm, ram, layout::gsi_count(devices))?;
        let template = cpuid::template(kvm)?;
        let mut stats: Vec<_> = StatsFile::open(vm.as_ref()).into_iter().collect();
        let mut vcpus = Vec::with_capacity(usize::from(count));
        for cpu in 0..count {
            let doing = |what: &str| KvmError::doing(format!("{what} vCPU {cpu}"));
            let vcpu = vm.create_vcpu(u64::from(cpu)).map_err(doing("create"))?;
            vcpu.set_cpuid2(&cpuid::for_vcpu(&template, cpu, count)?)
                .map_err(doing("describe the processor to"))?;
            registers::set_msrs(kvm, &vcpu)?;
            stats.extend(StatsFile::open(&vcpu));
            vcpus.push(vcpu);
        }
        let wiring = Wiring::connect(&vm, virtio)?;
        Ok(Self { vm, vcpus, stats, wiring, ram: ram.to_vec() })
    }
}

/// How many queues each of `devices` has.
pub fn queue_counts(devices: &[Box<dyn VirtioDevice>]) -> Vec<usize> {
    devices.iter().map(|device| device.queue_sizes().len()).collect()
}
