//! The PVH entry (Xen, docs/misc/pvh.pandoc; xen/include/public/arch-x86/hvm/start_info.h).

use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{BootError, BootInfo, command_line_bytes};
use crate::machine::layout;

/// "xEn3" with the top bit of the E set.
const MAGIC: u32 = 0x336e_c578;
/// The version that has a memory map.
const VERSION: u32 = 1;

/// Writes start info, module list, memory map and command line.
///
/// # Errors
/// A command line that the kernel does not take.
pub fn write(memory: &GuestMemoryMmap<()>, info: &BootInfo<'_>) -> Result<(), BootError> {
    let command_line = command_line_bytes(info)?;
    memory.write_slice(&command_line, GuestAddress(layout::COMMAND_LINE))?;

    let modules = layout::PVH_START_INFO + size_of::<hvm_start_info>() as u64;
    let map = modules + size_of::<hvm_modlist_entry>() as u64;
    let mut start = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: info.rsdp,
        memmap_paddr: map,
        ..Default::default()
    };
    if let Some(initrd) = &info.initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.end - initrd.start,
            ..Default::default()
        };
        memory.write_obj(module, GuestAddress(modules))?;
        (start.nr_modules, start.modlist_paddr) = (1, modules);
    }
    let mut at = map;
    for (range, kind) in layout::memory_map(info.ram_size) {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.end - range.start,
            type_: kind.number(),
            reserved: 0,
        };
        memory.write_obj(entry, GuestAddress(at))?;
        at += size_of::<hvm_memmap_table_entry>() as u64;
        start.memmap_entries += 1;
    }
    memory.write_obj(start, GuestAddress(layout::PVH_START_INFO))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::boot::tests::{info, kernel};

    #[test]
    fn start_info_lists_the_ramdisk_and_all_of_ram() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let kernel = kernel();
        write(&memory, &info(&kernel, "quiet", Some(0x800_0000..0x800_1000))).unwrap();
        let start: hvm_start_info = memory.read_obj(GuestAddress(layout::PVH_START_INFO)).unwrap();
        assert_eq!(start.magic, MAGIC);
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(start.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x800_0000, 0x1000));
        let entries = u64::from(start.memmap_entries);
        let ram: u64 = (0..entries)
            .map(|index| {
                let at = start.memmap_paddr + index * 24;
                memory.read_obj::<hvm_memmap_table_entry>(GuestAddress(at)).unwrap()
            })
            .filter(|entry| entry.type_ == 1)
            .map(|entry| entry.size)
            .sum();
        assert_eq!(ram, (256 << 20) - (layout::HIGH_RAM - layout::LOW_RAM_END));
    }
}
