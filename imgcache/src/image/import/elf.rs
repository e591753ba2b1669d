//! ELF-64 executables for x86-64 (System V ABI, chapters 4 and 5) and the PVH entry note (Xen,
//! `XEN_ELFNOTE_PHYS32_ENTRY` in `elfnote.h`).
//!
//! Only the headers, the notes and the bytes of loadable segments are read; sections, and so the
//! debug data of an unstripped `vmlinux`, never are.

use super::ImportOptions;
use super::error::ImportError;
use super::kernel::{
    BootEntries, DEFAULT_CMDLINE_MAX, DEFAULT_INITRD_ADDR_MAX, ImportedKernel, KernelFormat,
    KernelSegment, LOWEST_ADDRESS,
};
use super::source::Source;

pub(super) const MAGIC: &[u8] = b"\x7fELF";
const HEADER_LENGTH: usize = 64;
const PROGRAM_HEADER_LENGTH: usize = 56;
/// Kernels have about five.
const MAX_PROGRAM_HEADERS: u16 = 128;
/// Linux's notes take some hundred bytes.
const MAX_NOTES_LENGTH: u64 = 1 << 20;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(field(bytes, offset))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(field(bytes, offset))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(field(bytes, offset))
}

/// The `N` bytes at `offset`, which lie inside `bytes`: both come from this module.
fn field<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[offset..offset + N]);
    value
}

/// Where the program headers and the section headers are.
struct Header {
    entry: u64,
    program_headers: u64,
    program_header_count: u16,
    /// End of the section header table, the last part of a linked file.
    sections_end: u64,
}

impl Header {
    fn read(source: Source<'_>) -> Result<Self, ImportError> {
        let bytes: [u8; HEADER_LENGTH] = source.array("the ELF header", 0)?;
        let expect = |field, value: u64, expected: u64, reason| {
            if value == expected {
                Ok(())
            } else {
                Err(ImportError::ElfHeader { field, value, reason })
            }
        };
        expect("EI_CLASS", bytes[4].into(), 2, "only 64-bit kernels can be booted")?;
        expect("EI_DATA", bytes[5].into(), 1, "only little-endian kernels can be booted")?;
        expect("EI_VERSION", bytes[6].into(), 1, "the only ELF version is 1")?;
        let machine = match u16_at(&bytes, 18) {
            183 => "the kernel is for aarch64, not for x86-64",
            243 => "the kernel is for RISC-V, not for x86-64",
            _ => "the kernel is not for x86-64",
        };
        expect("e_machine", u16_at(&bytes, 18).into(), 62, machine)?;
        let kind = match u16_at(&bytes, 16) {
            1 => "it is an object file (a module?), not an executable",
            3 => "it is a shared object or position-independent, a kernel has fixed addresses",
            _ => "it is no executable",
        };
        expect("e_type", u16_at(&bytes, 16).into(), 2, kind)?;
        expect("e_phentsize", u16_at(&bytes, 54).into(), 56, "ELF-64 has program headers of 56")?;
        let program_header_count = u16_at(&bytes, 56);
        if program_header_count > MAX_PROGRAM_HEADERS {
            return Err(ImportError::ElfHeader {
                field: "e_phnum",
                value: program_header_count.into(),
                reason: "more than 128 program headers",
            });
        }
        let sections_length = u64::from(u16_at(&bytes, 58)) * u64::from(u16_at(&bytes, 60));
        Ok(Self {
            entry: u64_at(&bytes, 24),
            program_headers: u64_at(&bytes, 32),
            program_header_count,
            sections_end: u64_at(&bytes, 40).saturating_add(sections_length),
        })
    }
}

/// A program header, its file range checked.
struct ProgramHeader {
    index: usize,
    kind: u32,
    offset: u64,
    address: u64,
    file_length: u64,
    memory_length: u64,
    alignment: u64,
}

fn read_program_headers(
    source: Source<'_>,
    header: &Header,
) -> Result<Vec<ProgramHeader>, ImportError> {
    let length = u64::from(header.program_header_count) * PROGRAM_HEADER_LENGTH as u64;
    let table = source.bytes("the program header table", header.program_headers, length)?;
    let mut program_headers = Vec::new();
    for (index, bytes) in table.chunks_exact(PROGRAM_HEADER_LENGTH).enumerate() {
        let program_header = ProgramHeader {
            index,
            kind: u32_at(bytes, 0),
            offset: u64_at(bytes, 8),
            address: u64_at(bytes, 24),
            file_length: u64_at(bytes, 32),
            memory_length: u64_at(bytes, 40),
            alignment: u64_at(bytes, 48),
        };
        if matches!(program_header.kind, PT_LOAD | PT_NOTE) {
            source.check("an ELF segment", program_header.offset, program_header.file_length)?;
            program_headers.push(program_header);
        }
    }
    Ok(program_headers)
}

/// Checks a `PT_LOAD` header and returns the end of the memory that it fills.
fn check_load(load: &ProgramHeader) -> Result<u64, ImportError> {
    let error = |field, value, reason| ImportError::ProgramHeader {
        index: load.index,
        field,
        value,
        reason,
    };
    if load.memory_length < load.file_length {
        return Err(error("p_memsz", load.memory_length, "smaller than the segment in the file"));
    }
    if load.address < LOWEST_ADDRESS {
        return Err(error("p_paddr", load.address, "below 1 MiB, where the loader has its tables"));
    }
    load.address
        .checked_add(load.memory_length)
        .ok_or_else(|| error("p_memsz", load.memory_length, "the segment's end overflows"))
}

/// Sorts the loadable headers by address and checks that their memory is disjoint and, taken
/// together, within the limit. Nothing of the segments is read before.
fn plan_loads(headers: &[ProgramHeader], limit: u64) -> Result<Vec<&ProgramHeader>, ImportError> {
    let mut loads: Vec<_> =
        headers.iter().filter(|h| h.kind == PT_LOAD && h.memory_length > 0).collect();
    let mut total = 0_u64;
    for load in &loads {
        check_load(load)?;
        total = total.saturating_add(load.memory_length);
    }
    loads.sort_by_key(|load| load.address);
    for pair in loads.windows(2) {
        let (first_end, second_end) = (check_load(pair[0])?, check_load(pair[1])?);
        if pair[1].address < first_end {
            return Err(ImportError::Overlap {
                first: pair[0].address,
                first_end,
                second: pair[1].address,
                second_end,
            });
        }
    }
    if loads.is_empty() {
        return Err(ImportError::NoSegments);
    }
    if total > limit {
        return Err(ImportError::TooLarge { what: "the kernel in memory", limit });
    }
    Ok(loads)
}

fn read_segment(source: Source<'_>, load: &ProgramHeader) -> Result<KernelSegment, ImportError> {
    let mut data = source.bytes("an ELF segment", load.offset, load.file_length)?;
    let length = data.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    data.truncate(length);
    data.shrink_to_fit();
    Ok(KernelSegment { address: load.address, data, memory_length: load.memory_length })
}

/// The PVH entry in a segment of notes, if it is there.
fn find_pvh_entry(source: Source<'_>, notes: &ProgramHeader) -> Result<Option<u64>, ImportError> {
    if notes.file_length > MAX_NOTES_LENGTH {
        return Err(ImportError::ProgramHeader {
            index: notes.index,
            field: "p_filesz",
            value: notes.file_length,
            reason: "more than 1 MiB of notes",
        });
    }
    let bytes = source.bytes("the ELF notes", notes.offset, notes.file_length)?;
    let alignment = if notes.alignment == 8 { 8 } else { 4 };
    let mut position = 0_usize;
    // Every turn advances by at least the 12 bytes of a note's header.
    while bytes.len() - position >= 12 {
        let error = |field, value, reason| ImportError::Note {
            offset: notes.offset + position as u64,
            field,
            value,
            reason,
        };
        let part = |field, start: usize, length: u32| {
            usize::try_from(length)
                .ok()
                .and_then(|length| bytes.get(start..start.checked_add(length)?))
                .ok_or_else(|| error(field, length.into(), "beyond the end of the notes"))
        };
        let name = part("namesz", position + 12, u32_at(&bytes, position))?;
        let description_start = (position + 12 + name.len()).next_multiple_of(alignment);
        let description = part("descsz", description_start, u32_at(&bytes, position + 4))?;
        if u32_at(&bytes, position + 8) == XEN_ELFNOTE_PHYS32_ENTRY && name == b"Xen\0" {
            return match description.len() {
                4 => Ok(Some(u32_at(description, 0).into())),
                8 => match u64_at(description, 0) {
                    entry @ 0..=0xffff_ffff => Ok(Some(entry)),
                    entry => Err(error("PVH entry", entry, "beyond 4 GiB for a 32-bit entry")),
                },
                length => Err(error("descsz", length as u64, "a PVH entry has 4 or 8 bytes")),
            };
        }
        let end = (description_start + description.len()).next_multiple_of(alignment);
        position = end.min(bytes.len());
    }
    Ok(None)
}

/// Imports the ELF executable that `source` starts with.
pub(super) fn import(
    source: Source<'_>,
    options: &ImportOptions,
) -> Result<ImportedKernel, ImportError> {
    let header = Header::read(source)?;
    let headers = read_program_headers(source, &header)?;
    let loads = plan_loads(&headers, options.max_kernel_size)?;
    let is_loaded = |address: u64| {
        loads.iter().any(|l| address >= l.address && address - l.address < l.file_length)
    };
    let mut notes = Vec::new();

    let mut pvh32 = None;
    for note_segment in headers.iter().filter(|h| h.kind == PT_NOTE) {
        pvh32 = find_pvh_entry(source, note_segment)?;
        if pvh32.is_some() {
            break;
        }
    }
    if let Some(address) = pvh32.filter(|entry| !is_loaded(*entry)) {
        return Err(ImportError::EntryOutside { kind: "PVH", address });
    }
    let linux64 = match (is_loaded(header.entry), pvh32) {
        (true, _) => Some(header.entry),
        (false, None) => {
            return Err(ImportError::EntryOutside { kind: "64-bit", address: header.entry });
        }
        (false, Some(_)) => {
            notes.push(format!(
                "the ELF entry {:#x} is no physical address in the kernel: it can only be \
                 entered by PVH",
                header.entry
            ));
            None
        }
    };

    let file_end = headers.iter().map(|h| h.offset + h.file_length).max().unwrap_or(0);
    let file_end = file_end.max(header.sections_end).max(HEADER_LENGTH as u64);
    if let Some(trailing @ 1..) = source.length().checked_sub(file_end) {
        notes.push(format!(
            "ignored {trailing} bytes behind the ELF executable (in a bzImage: relocations, so \
             the kernel runs at its link address, without address randomisation)"
        ));
    }

    let segments = loads
        .iter()
        .map(|load| read_segment(source, load))
        .collect::<Result<Vec<_>, ImportError>>()?;
    Ok(ImportedKernel {
        format: KernelFormat::Elf,
        compression: None,
        version: find_banner(&segments),
        segments,
        entries: BootEntries { linux64, pvh32 },
        setup_header: None,
        initrd_addr_max: DEFAULT_INITRD_ADDR_MAX,
        cmdline_max: DEFAULT_CMDLINE_MAX,
        can_load_initrd_above_4g: false,
        notes,
    })
}

/// The version in Linux's banner, "Linux version 6.1.0 (...", up to the first space behind it.
fn find_banner(segments: &[KernelSegment]) -> Option<String> {
    const PREFIX: &[u8] = b"Linux version ";
    const MAX_VERSION: usize = 128;
    for segment in segments {
        let mut rest = segment.data.as_slice();
        while let Some(start) = rest.iter().position(|byte| *byte == PREFIX[0]) {
            rest = &rest[start..];
            if let Some(version) = rest.strip_prefix(PREFIX) {
                let length = version.iter().take(MAX_VERSION).take_while(|b| b.is_ascii_graphic());
                let version = &version[..length.count()];
                if version.first().is_some_and(u8::is_ascii_digit) {
                    return String::from_utf8(version.to_vec()).ok();
                }
            }
            rest = &rest[1..];
        }
    }
    None
}

#[cfg(test)]
mod tests;
