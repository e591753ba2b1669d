//! KVM's own counters of a VM: exits, faults, and how its memory is mapped.
//!
//! Binary statistics by file descriptor (Linux, Documentation/virt/kvm/api.rst, section 4.133);
//! kernels before 5.14 have none.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use serde::Serialize;

mod request {
    //! The macro makes public functions, which only this file is to have.
    vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, kvm_bindings::KVMIO, 0xce);
}

/// More descriptors than any kernel has.
const MAX_DESCRIPTORS: u32 = 1024;
const MAX_NAME: u32 = 256;

/// What one boot cost, summed over vCPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct KvmStats {
    /// Exits from the guest, of all kinds.
    pub exits: u64,
    /// Exits for accesses to I/O ports.
    pub io_exits: u64,
    /// Exits for accesses to device memory.
    pub mmio_exits: u64,
    /// Exits because the guest waited for an interrupt.
    pub halt_exits: u64,
    /// Faults of the stage-2 page tables.
    pub page_faults: u64,
    /// 4 KiB pages mapped in the stage-2 page tables now.
    pub pages_4k: u64,
    /// 2 MiB pages mapped now.
    pub pages_2m: u64,
    /// 1 GiB pages mapped now.
    pub pages_1g: u64,
}

/// The open counters of a VM or of a vCPU.
#[derive(Debug)]
pub struct StatsFile(File);

impl StatsFile {
    /// Opens the counters of a VM or vCPU; `None` where the kernel has none.
    pub fn open(owner: &impl AsRawFd) -> Option<Self> {
        // SAFETY: the ioctl takes no argument, and returns a new file descriptor or an error.
        let fd = unsafe { vmm_sys_util::ioctl::ioctl(owner, request::KVM_GET_STATS_FD()) };
        // SAFETY: a descriptor that the kernel has just made for us alone.
        (fd >= 0).then(|| Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// Adds the counters to `stats`.
    ///
    /// # Errors
    /// The kernel gave something that is not the documented format.
    pub fn add_to(&self, stats: &mut KvmStats) -> std::io::Result<()> {
        let header = self.words::<6>(0)?;
        let [_, name_size, descriptors, _, descriptor_offset, data_offset] = header;
        if descriptors > MAX_DESCRIPTORS || name_size > MAX_NAME {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        let mut descriptor = vec![0; 16 + usize::try_from(name_size).unwrap_or(0)];
        let mut next = u64::from(descriptor_offset);
        for _ in 0..descriptors {
            self.0.read_exact_at(&mut descriptor, next)?;
            next += 16 + u64::from(name_size);
            let (fields, name) = descriptor.split_at(16);
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let Some(counter) = counter(stats, name) else { continue };
            let offset = u32::from_ne_bytes([fields[8], fields[9], fields[10], fields[11]]);
            let mut value = [0; 8];
            self.0.read_exact_at(&mut value, u64::from(data_offset) + u64::from(offset))?;
            *counter += u64::from_ne_bytes(value);
        }
        Ok(())
    }

    fn words<const N: usize>(&self, offset: u64) -> std::io::Result<[u32; N]> {
        let mut words = [0; N];
        for (index, word) in (0u64..).zip(&mut words) {
            let mut bytes = [0; 4];
            self.0.read_exact_at(&mut bytes, offset + index * 4)?;
            *word = u32::from_ne_bytes(bytes);
        }
        Ok(words)
    }
}

fn counter<'a>(stats: &'a mut KvmStats, name: &[u8]) -> Option<&'a mut u64> {
    Some(match name {
        b"exits" => &mut stats.exits,
        b"io_exits" => &mut stats.io_exits,
        b"mmio_exits" => &mut stats.mmio_exits,
        b"halt_exits" => &mut stats.halt_exits,
        b"pf_taken" => &mut stats.page_faults,
        b"pages_4k" => &mut stats.pages_4k,
        b"pages_2m" => &mut stats.pages_2m,
        b"pages_1g" => &mut stats.pages_1g,
        _ => return None,
    })
}
