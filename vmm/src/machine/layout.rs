//! The guest-physical address map of the x86-64 machine.
//!
//! ```text
//! 0x0000_0000  boot structures (GDT, zero page or start info, page tables, command line)
//! 0x0009_fc00  reserved: where a PC has its extended BIOS data area
//! 0x000e_0000  ACPI tables, and in the last page the generation identifier
//! 0x0010_0000  RAM: kernel, then what is free, then the ramdisk at the top
//! 0xc000_0000  the hole below 4 GiB: virtio MMIO, control device, I/O APIC, local APICs, KVM's own pages
//! 0x1_0000_0000  RAM that did not fit below the hole
//! ```

use std::ops::Range;

use devices::virtio::mmio;

use super::acpi::VirtioWindow;

/// The size of the pages that guest RAM is aligned to, on both sides: 2 MiB.
pub const HUGE_PAGE: u64 = 2 << 20;

/// Global descriptor table of the 64-bit boot protocol and of the PVH entry.
pub const GDT: u64 = 0x500;
/// `hvm_start_info` of the PVH entry, with its module list and memory map behind it.
pub const PVH_START_INFO: u64 = 0x6000;
/// `boot_params`, the "zero page" of the Linux boot protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// Where the stack of the boot processor begins; it grows down.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page tables that map the first 4 GiB one to one: one PML4, one PDPT, four PDs.
pub const PAGE_TABLES: u64 = 0x9000;
/// One `setup_data` with the seed for the guest's random number generator.
pub const RNG_SEED: u64 = 0x1_0000;
/// The kernel command line, with its terminating zero.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// The most that is ever kept for the command line, in bytes.
pub const COMMAND_LINE_MAX: u64 = 0x1_0000;
/// End of the RAM below 640 KiB that the guest may use.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables, the root pointer (RSDP) first.
pub const ACPI_TABLES: Range<u64> = 0xe_0000..0xf_f000;
/// A page of its own for the identifier of the machine's generation.
pub const GENERATION_ID: u64 = 0xf_f000;
/// Where RAM for kernel and ramdisk begins.
pub const HIGH_RAM: u64 = 0x10_0000;

/// The hole below 4 GiB, kept free of RAM for devices.
pub const HOLE: Range<u64> = 0xc000_0000..0x1_0000_0000;
/// virtio MMIO windows, one after the other.
pub const VIRTIO_MMIO: Range<u64> = 0xd000_0000..0xd001_0000;
/// The control device's registers, in memory.
pub const CONTROL_MMIO: u64 = control_abi::register::MMIO_BASE;
/// The local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages for KVM's task state segment, and one for its identity map (Intel only).
pub const KVM_TSS: u32 = 0xfffb_d000;
/// One page for KVM's identity map (Intel only).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// First I/O port of the ACPI sleep and reset registers.
pub const POWER_PORTS: u64 = 0x600;

/// Interrupt line by which the guest is notified of a new generation. (Linux does not take line 2.)
pub const GENERATION_GSI: u32 = 5;
/// Interrupt line of the first virtio device; the others follow. Lines 3 and 4 are the serial ports'.
pub const VIRTIO_GSI: u32 = 6;
/// The most virtio devices a machine can have.
pub const MAX_VIRTIO_DEVICES: u8 = 8;

/// Where the virtio device of this index is.
pub fn virtio_window(index: u8) -> VirtioWindow {
    VirtioWindow {
        base: VIRTIO_MMIO.start + u64::from(index) * mmio::MMIO_LENGTH,
        gsi: VIRTIO_GSI + u32::from(index),
    }
}

/// How many interrupt lines a machine with so many virtio devices has. No more than are used: at its
/// start a guest reads and writes the registers of each several times, every time by an exit.
pub fn gsi_count(virtio_devices: u8) -> u8 {
    6 + virtio_devices.min(MAX_VIRTIO_DEVICES)
}

/// The smallest machine. A stock distribution kernel needs more to reach user space (Debian's cloud
/// kernel about 90 MiB); one that is built small does not.
pub const MIN_RAM: u64 = 64 << 20;
/// The largest guest that the address map is meant for: 1 TiB.
pub const MAX_RAM: u64 = 1 << 40;
/// The most processors a machine can have.
pub const MAX_CPUS: u8 = 32;

/// The ranges of guest-physical addresses that hold `size` bytes of RAM, ascending.
///
/// What does not fit below the hole goes above 4 GiB.
pub fn ram_ranges(size: u64) -> Vec<Range<u64>> {
    if size <= HOLE.start {
        return std::iter::once(0..size).collect();
    }
    vec![0..HOLE.start, HOLE.end..HOLE.end + (size - HOLE.start)]
}

/// Ranges of RAM that images may be placed in.
pub fn image_ranges(size: u64) -> Vec<Range<u64>> {
    let mut ranges = ram_ranges(size);
    ranges[0].start = HIGH_RAM;
    ranges
}

/// What an entry of the memory map tells the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryKind {
    /// Free for use; e820 type 1.
    Ram,
    /// Not to be used; e820 type 2.
    Reserved,
}

impl MemoryKind {
    /// The type number, the same in e820 and in PVH memory maps.
    pub fn number(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
        }
    }
}

/// The memory map given to a guest with `size` bytes of RAM, ascending.
pub fn memory_map(size: u64) -> Vec<(Range<u64>, MemoryKind)> {
    let mut map =
        vec![(0..LOW_RAM_END, MemoryKind::Ram), (LOW_RAM_END..HIGH_RAM, MemoryKind::Reserved)];
    map.extend(image_ranges(size).into_iter().map(|range| (range, MemoryKind::Ram)));
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ram_ranges_hold_the_size_and_avoid_the_hole(mib in 64u64..(1 << 20)) {
            let size = mib << 20;
            let ranges = ram_ranges(size);
            prop_assert_eq!(ranges.iter().map(|r| r.end - r.start).sum::<u64>(), size);
            for range in &ranges {
                prop_assert!(range.end <= HOLE.start || range.start >= HOLE.end);
            }
        }

        #[test]
        fn memory_map_is_ascending_and_disjoint(mib in 64u64..(1 << 20)) {
            let map = memory_map(mib << 20);
            for pair in map.windows(2) {
                prop_assert!(pair[0].0.end <= pair[1].0.start);
            }
        }
    }

    #[test]
    fn a_guest_that_just_fits_has_one_range() {
        assert_eq!(ram_ranges(HOLE.start).len(), 1);
        assert_eq!(ram_ranges(HOLE.start + HUGE_PAGE)[1], HOLE.end..HOLE.end + HUGE_PAGE);
    }
}
