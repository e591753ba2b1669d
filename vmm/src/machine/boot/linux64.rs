//! The 64-bit Linux boot protocol (Linux, Documentation/arch/x86/boot.rst): the zero page.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::{BootError, BootInfo, command_line_bytes};
use crate::machine::layout;

/// The letters `HdrS`.
const HEADER_MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// The newest protocol that the fields written here belong to.
const PROTOCOL_VERSION: u16 = 0x020f;
/// The protected-mode code is at or above 1 MiB.
const LOADED_HIGH: u8 = 1;
/// `SETUP_RNG_SEED` of `setup_data.type`.
const SETUP_RNG_SEED: u32 = 9;
/// As much as Linux credits: 32 bytes fill its pool.
const SEED_LENGTH: u32 = 32;
/// The header, which begins at 0x1f1, as far as the fields of protocol 2.12.
const SHORTEST_HEADER: usize = 0x268 - 0x1f1;

/// Writes zero page, command line and seed.
///
/// # Errors
/// A command line that the kernel does not take, or no entropy.
pub fn write(memory: &GuestMemoryMmap<()>, info: &BootInfo<'_>) -> Result<(), BootError> {
    let command_line = command_line_bytes(info)?;
    memory.write_slice(&command_line, GuestAddress(layout::COMMAND_LINE))?;
    write_seed(memory)?;

    let mut params = boot_params { acpi_rsdp_addr: info.rsdp, ..Default::default() };
    params.hdr = header(info)?;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    [params.hdr.cmd_line_ptr, params.ext_cmd_line_ptr] = halves(layout::COMMAND_LINE);
    params.hdr.setup_data = layout::RNG_SEED;
    if let Some(initrd) = &info.initrd {
        [params.hdr.ramdisk_image, params.ext_ramdisk_image] = halves(initrd.start);
        [params.hdr.ramdisk_size, params.ext_ramdisk_size] = halves(initrd.end - initrd.start);
    }
    for (range, kind) in layout::memory_map(info.ram_size) {
        let entry = boot_e820_entry {
            addr: range.start,
            size: range.end - range.start,
            r#type: kind.number(),
        };
        // At most four of the 128 that there is room for.
        params.e820_table[usize::from(params.e820_entries)] = entry;
        params.e820_entries += 1;
    }
    memory.write_obj(params, GuestAddress(layout::ZERO_PAGE))?;
    Ok(())
}

/// The kernel's own header where the image kept it, else one that says the least.
fn header(info: &BootInfo<'_>) -> Result<setup_header, BootError> {
    let Some(saved) = &info.kernel.setup_header else {
        return Ok(setup_header {
            header: HEADER_MAGIC,
            boot_flag: BOOT_FLAG,
            version: PROTOCOL_VERSION,
            loadflags: LOADED_HIGH,
            kernel_alignment: 0x100_0000,
            cmdline_size: info.kernel.cmdline_max,
            initrd_addr_max: u32::try_from(info.kernel.initrd_addr_max).unwrap_or(u32::MAX),
            ..Default::default()
        });
    };
    let mut header = setup_header::default();
    let room = header.as_slice().len();
    // Newer kernels have longer headers; what is beyond ours is not for a loader to change.
    let length = saved.len().min(room);
    if length < SHORTEST_HEADER {
        return Err(BootError::SetupHeader(saved.len()));
    }
    header.as_mut_slice()[..length].copy_from_slice(&saved[..length]);
    Ok(header)
}

fn write_seed(memory: &GuestMemoryMmap<()>) -> Result<(), BootError> {
    let mut seed = [0u8; SEED_LENGTH as usize];
    fill_random(&mut seed).map_err(BootError::Seed)?;
    let at = |offset: u64| GuestAddress(layout::RNG_SEED + offset);
    memory.write_obj(0u64, at(0))?; // no next
    memory.write_obj(SETUP_RNG_SEED, at(8))?;
    memory.write_obj(SEED_LENGTH, at(12))?;
    memory.write_slice(&seed, at(16))?;
    Ok(())
}

fn fill_random(buffer: &mut [u8]) -> std::io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += getrandom(rest, GetRandomFlags::empty())?;
    }
    Ok(())
}

fn halves(value: u64) -> [u32; 2] {
    let low = value & 0xffff_ffff;
    [low, value >> 32].map(|half| u32::try_from(half).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::boot::tests::{info, kernel};

    fn memory() -> GuestMemoryMmap<()> {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    #[test]
    fn the_zero_page_points_at_command_line_ramdisk_and_seed() {
        let (memory, kernel) = (memory(), kernel());
        let boot = info(&kernel, "console=ttyS0", Some(0x1_2000_0000..0x1_2000_0010));
        write(&memory, &boot).unwrap();
        let page: boot_params = memory.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
        let hdr = page.hdr;
        assert_eq!({ hdr.header }, HEADER_MAGIC);
        assert_eq!(u64::from(hdr.cmd_line_ptr), layout::COMMAND_LINE);
        assert_eq!(({ hdr.ramdisk_image }, { page.ext_ramdisk_image }), (0x2000_0000, 1));
        assert_eq!({ hdr.ramdisk_size }, 0x10);
        let mut text = [0u8; 14];
        memory.read_slice(&mut text, GuestAddress(layout::COMMAND_LINE)).unwrap();
        assert_eq!(&text, b"console=ttyS0\0");
        let kind: u32 = memory.read_obj(GuestAddress(layout::RNG_SEED + 8)).unwrap();
        assert_eq!(kind, SETUP_RNG_SEED);
    }

    #[test]
    fn a_saved_header_is_kept_and_a_stump_is_refused() {
        let mut kernel = kernel();
        let mut saved = vec![0u8; SHORTEST_HEADER];
        saved[0x22c - 0x1f1] = 0x77; // low byte of initrd_addr_max
        kernel.setup_header = Some(saved);
        let header = header(&info(&kernel, "", None)).unwrap();
        assert_eq!({ header.initrd_addr_max }, 0x77);
        kernel.setup_header = Some(vec![0; 3]);
        assert!(matches!(super::header(&info(&kernel, "", None)), Err(BootError::SetupHeader(3))));
    }

    #[test]
    fn two_guests_have_two_seeds() {
        let seed = || {
            let memory = memory();
            write_seed(&memory).unwrap();
            memory.read_obj::<[u8; 32]>(GuestAddress(layout::RNG_SEED + 16)).unwrap()
        };
        assert_ne!(seed(), seed());
    }
}
