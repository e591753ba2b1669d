//! The state in which a vCPU enters the kernel.
//!
//! Two entries: 64-bit (Linux boot protocol, "64-bit boot protocol": paging on, identity mapped,
//! flat segments, RSI = zero page) and 32-bit protected mode (PVH: paging off, EBX = start info).
//! Further vCPUs are left in their reset state; the guest starts them.

use kvm_bindings::{Msrs, kvm_dtable, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{Kvm, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::kvm::KvmError;
use super::layout;

/// How and where the boot processor enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode at this address, with the zero page.
    Linux64(u32),
    /// 32-bit protected mode at this address, with the start info.
    Pvh32(u32),
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const PAGE_PRESENT_WRITABLE: u64 = 0b11;
const PAGE_HUGE: u64 = 1 << 7;
const PAGE: u64 = 4096;

/// Writes the tables that map the first 4 GiB one to one in 2 MiB pages.
///
/// # Errors
/// Never for a machine's own layout.
pub fn write_page_tables(memory: &GuestMemoryMmap<()>) -> Result<(), vm_memory::GuestMemoryError> {
    let pdpt = layout::PAGE_TABLES + PAGE;
    let directories = pdpt + PAGE;
    memory.write_obj(pdpt | PAGE_PRESENT_WRITABLE, GuestAddress(layout::PAGE_TABLES))?;
    for gib in 0..4 {
        let directory = directories + gib * PAGE;
        memory.write_obj(directory | PAGE_PRESENT_WRITABLE, GuestAddress(pdpt + gib * 8))?;
        for entry in 0..512 {
            let page = (gib << 30) + entry * layout::HUGE_PAGE;
            memory.write_obj(
                page | PAGE_PRESENT_WRITABLE | PAGE_HUGE,
                GuestAddress(directory + entry * 8),
            )?;
        }
    }
    Ok(())
}

/// The descriptors of [`layout::GDT`]: null, unused, code and data as the Linux boot protocol
/// names them (`__BOOT_CS` 0x10, `__BOOT_DS` 0x18), and a task state segment.
fn descriptors(entry: Entry) -> [u64; 5] {
    let code = match entry {
        Entry::Linux64(_) => 0x00af_9b00_0000_ffff,
        Entry::Pvh32(_) => 0x00cf_9b00_0000_ffff,
    };
    [0, 0, code, 0x00cf_9300_0000_ffff, 0x008f_8b00_0000_ffff]
}

/// Writes the descriptor table for `entry`.
///
/// # Errors
/// Never for a machine's own layout.
pub fn write_gdt(
    memory: &GuestMemoryMmap<()>,
    entry: Entry,
) -> Result<(), vm_memory::GuestMemoryError> {
    for (index, descriptor) in (0u64..).zip(descriptors(entry)) {
        memory.write_obj(descriptor, GuestAddress(layout::GDT + index * 8))?;
    }
    Ok(())
}

/// A flat segment, 4 GiB from 0.
fn segment(selector: u16, type_: u8, system: bool, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long && !system),
        s: u8::from(!system),
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

fn special_registers(mut sregs: kvm_sregs, entry: Entry) -> kvm_sregs {
    let long = matches!(entry, Entry::Linux64(_));
    sregs.cs = segment(0x10, 0xb, false, long);
    let data = segment(0x18, 0x3, false, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, g: 0, ..segment(0x20, 0xb, true, false) };
    sregs.gdt = kvm_dtable { base: layout::GDT, limit: 5 * 8 - 1, ..Default::default() };
    sregs.idt = kvm_dtable::default();
    sregs.cr0 = CR0_PE | CR0_ET;
    if long {
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = layout::PAGE_TABLES;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
    } else {
        (sregs.cr3, sregs.cr4, sregs.efer) = (0, 0, 0);
    }
    sregs
}

fn general_registers(entry: Entry) -> kvm_regs {
    // Bit 1 of RFLAGS is always set; interrupts are off.
    let base = kvm_regs { rflags: 0x2, ..Default::default() };
    match entry {
        Entry::Linux64(address) => kvm_regs {
            rip: u64::from(address),
            rsi: layout::ZERO_PAGE,
            rsp: layout::BOOT_STACK,
            rbp: layout::BOOT_STACK,
            ..base
        },
        Entry::Pvh32(address) => {
            kvm_regs { rip: u64::from(address), rbx: layout::PVH_START_INFO, ..base }
        }
    }
}

/// Sets up the boot processor to enter the kernel.
///
/// # Errors
/// What KVM refused.
pub fn set_entry(vcpu: &VcpuFd, entry: Entry) -> Result<(), KvmError> {
    let sregs = vcpu.get_sregs().map_err(KvmError::doing("read the system registers"))?;
    vcpu.set_sregs(&special_registers(sregs, entry))
        .map_err(KvmError::doing("set the system registers"))?;
    vcpu.set_regs(&general_registers(entry))
        .map_err(KvmError::doing("set the general registers"))?;
    // The state that FNINIT leaves.
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(KvmError::doing("set the floating-point registers"))
}

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Memory type ranges are enabled, and what no range describes is write-back.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Sets the model-specific registers that firmware would have set, as far as this KVM has them.
///
/// # Errors
/// What KVM refused; a register that it does not take is only logged.
pub fn set_msrs(kvm: &Kvm, vcpu: &VcpuFd) -> Result<(), KvmError> {
    let known =
        kvm.get_msr_index_list().map_err(KvmError::doing("list the model-specific registers"))?;
    let wanted =
        [(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING), (MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK)];
    for (index, data) in wanted {
        // MTRRs work but are in no list: KVM does not count them as state to migrate.
        if !known.as_slice().contains(&index) && index != MSR_MTRR_DEF_TYPE {
            continue;
        }
        let entry = kvm_msr_entry { index, data, ..Default::default() };
        let msrs = Msrs::from_entries(&[entry]).map_err(|_| KvmError {
            what: "list a model-specific register".into(),
            source: kvm_ioctls::Error::new(libc::E2BIG),
        })?;
        if !matches!(vcpu.set_msrs(&msrs), Ok(1)) {
            log::debug!("KVM does not take {data:#x} for model-specific register {index:#x}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_tables_map_the_first_4_gib_one_to_one() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_page_tables(&memory).unwrap();
        let read = |address: u64| -> u64 { memory.read_obj(GuestAddress(address)).unwrap() };
        for address in [0u64, 0x1234_5678, 0xffff_ffff] {
            let pdpt = read(layout::PAGE_TABLES) & !0xfff;
            let directory = read(pdpt + (address >> 30) * 8) & !0xfff;
            let page = read(directory + (address >> 21 & 511) * 8);
            assert_eq!(page & PAGE_HUGE, PAGE_HUGE);
            assert_eq!((page & !0x1f_ffff) | (address & 0x1f_ffff), address);
        }
    }

    #[test]
    fn long_mode_is_on_for_the_64_bit_entry_only() {
        let long = special_registers(kvm_sregs::default(), Entry::Linux64(0x100_0000));
        assert_eq!((long.cs.l, long.cs.db), (1, 0));
        assert_eq!(long.efer, EFER_LME | EFER_LMA);
        let protected = special_registers(kvm_sregs::default(), Entry::Pvh32(0x100_0000));
        assert_eq!((protected.cs.l, protected.cs.db), (0, 1));
        assert_eq!((protected.cr0, protected.cr4, protected.efer), (CR0_PE | CR0_ET, 0, 0));
    }
}
