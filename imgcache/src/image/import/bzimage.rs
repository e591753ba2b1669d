//! bzImages: the Linux/x86 boot protocol (`Documentation/arch/x86/boot.rst`), version 2.12 to 2.15.
//!
//! The file is a boot sector with the setup header, real-mode code, and the protected-mode kernel,
//! which holds `vmlinux` as a compressed payload. Import takes the payload out, so that the guest
//! starts in `vmlinux` itself; with `as_is` the protected-mode kernel is loaded as it is and
//! unpacks itself.

use super::ImportOptions;
use super::compression::{self, Compression};
use super::error::ImportError;
use super::kernel::{
    BootEntries, ImportedKernel, KernelFormat, KernelSegment, LOWEST_ADDRESS, import_unpacked,
};
use super::source::Source;

const HEADER_START: u64 = 0x1f1;
/// Where the zero page's next field begins: the setup header must end before.
const HEADER_MAX_END: u64 = 0x290;
/// End of the last field that is used, `init_size`, present since protocol 2.10.
const HEADER_MIN_END: u64 = 0x264;
const SECTOR: u64 = 512;
/// The first protocol with `xloadflags`, which tell of the 64-bit entry.
const MIN_PROTOCOL: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 2;
/// The 64-bit entry's distance from the start of the protected-mode kernel.
const ENTRY_64: u64 = 0x200;
const DEFAULT_LOAD_ADDRESS: u64 = 0x10_0000;

/// Whether a file that starts with `head` has the Linux boot header.
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    head.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && head.get(0x202..0x206) == Some(b"HdrS")
}

/// The setup header: the file's bytes from [`HEADER_START`] on.
struct SetupHeader(Vec<u8>);

impl SetupHeader {
    /// Reads the header and checks what makes it one that can be used at all.
    fn read(source: Source<'_>) -> Result<Self, ImportError> {
        let [low, high] = source.array("the boot protocol version", 0x206)?;
        let protocol = u16::from_le_bytes([low, high]);
        if protocol < MIN_PROTOCOL {
            return Err(ImportError::BootHeader {
                field: "version",
                value: protocol.into(),
                reason: "the 64-bit entry needs protocol 2.12, of Linux 3.8 (2013), or later",
            });
        }
        let [length] = source.array("the setup header's length", 0x201)?;
        let end = 0x202 + u64::from(length);
        if !(HEADER_MIN_END..=HEADER_MAX_END).contains(&end) {
            return Err(ImportError::BootHeader {
                field: "jump",
                value: length.into(),
                reason: "the setup header must end between 0x264 and 0x290",
            });
        }
        let header = Self(source.bytes("the setup header", HEADER_START, end - HEADER_START)?);
        if header.u8(0x211) & LOADED_HIGH == 0 {
            return Err(ImportError::BootHeader {
                field: "loadflags",
                value: header.u8(0x211).into(),
                reason: "it is a zImage, loaded below 1 MiB",
            });
        }
        if header.u16(0x236) & XLF_KERNEL_64 == 0 {
            return Err(ImportError::BootHeader {
                field: "xloadflags",
                value: header.u16(0x236).into(),
                reason: "the kernel has no 64-bit entry: is it a 32-bit kernel?",
            });
        }
        Ok(header)
    }

    /// The `N` bytes at `offset` of the file; all offsets used are below [`HEADER_MIN_END`].
    fn field<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut value = [0; N];
        value.copy_from_slice(&self.0[offset - 0x1f1..][..N]);
        value
    }

    fn u8(&self, offset: usize) -> u8 {
        self.field::<1>(offset)[0]
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.field(offset))
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.field(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.field(offset))
    }

    /// Length of the boot sector and the real-mode code, so the protected-mode kernel's offset.
    fn setup_length(&self) -> u64 {
        let sectors = match self.u8(0x1f1) {
            0 => 4,
            sectors => u64::from(sectors),
        };
        (sectors + 1) * SECTOR
    }

    /// Length of the protected-mode kernel.
    fn kernel_length(&self) -> u64 {
        u64::from(self.u32(0x1f4)) * 16
    }
}

/// Imports the bzImage in `source`.
pub(super) fn import(
    source: Source<'_>,
    options: &ImportOptions,
) -> Result<ImportedKernel, ImportError> {
    let header = SetupHeader::read(source)?;
    source.check("the protected-mode kernel", header.setup_length(), header.kernel_length())?;
    let protocol = header.u16(0x206);
    let mut notes =
        vec![format!("kernel is a bzImage of boot protocol {}.{}", protocol >> 8, protocol & 0xff)];
    let kernel = if options.as_is {
        import_as_is(source, &header, options, &mut notes)?
    } else {
        import_payload(source, &header, options, &mut notes)?
    };
    notes.extend(kernel.notes);
    Ok(ImportedKernel {
        format: KernelFormat::BzImage,
        initrd_addr_max: header.u32(0x22c).into(),
        cmdline_max: header.u32(0x238),
        can_load_initrd_above_4g: header.u16(0x236) & XLF_CAN_BE_LOADED_ABOVE_4G != 0,
        version: read_version(source, &header)?.or(kernel.version),
        setup_header: Some(header.0),
        notes,
        ..kernel
    })
}

/// The kernel's release, the first word of its version string, where the header points to one.
fn read_version(source: Source<'_>, header: &SetupHeader) -> Result<Option<String>, ImportError> {
    let pointer = u64::from(header.u16(0x20e));
    let start = pointer + SECTOR;
    if pointer == 0 || start >= header.setup_length() {
        return Ok(None);
    }
    let length = (header.setup_length() - start).min(256);
    let bytes = source.bytes("the kernel version", start, length)?;
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text).replace(char::is_control, " ");
    Ok(text.split_whitespace().next().map(str::to_owned))
}

/// Takes `vmlinux` out of the protected-mode kernel.
fn import_payload(
    source: Source<'_>,
    header: &SetupHeader,
    options: &ImportOptions,
    notes: &mut Vec<String>,
) -> Result<ImportedKernel, ImportError> {
    let (offset, length) = (u64::from(header.u32(0x248)), u64::from(header.u32(0x24c)));
    let refuse = |field, value, reason| Err(ImportError::BootHeader { field, value, reason });
    if length == 0 {
        return refuse("payload_length", 0, "the kernel does not tell where its payload is");
    }
    if offset > header.kernel_length() {
        return refuse("payload_offset", offset, "beyond the end of the protected-mode kernel");
    }
    if length > header.kernel_length() - offset {
        return refuse("payload_length", length, "beyond the end of the protected-mode kernel");
    }
    let start = header.setup_length() + offset;
    let end = source.check("the payload", start, length)?;
    let head = source.head::<8>("the payload", start)?;
    let Some(compression) = compression::detect(&head, start)? else {
        if head.starts_with(super::elf::MAGIC) {
            return refuse("payload_offset", offset, "the payload is not compressed: use as-is");
        }
        return refuse("payload_offset", offset, "what is there is of no known compression");
    };

    // Linux's build appends the unpacked length to every format but gzip, which has it already.
    let appended = if compression == Compression::Gzip { 0 } else { 4 };
    if length < appended {
        return refuse("payload_length", length, "shorter than the length behind the payload");
    }
    let mut window = source.window(start, end - appended);
    let data = compression::unpack(
        compression,
        &mut window,
        "the unpacked kernel",
        options.max_kernel_size,
    )?;
    let unpacked = data.len() as u64;
    if appended > 0 {
        let recorded = u32::from_le_bytes(source.array("the unpacked length", end - appended)?);
        if unpacked & u64::from(u32::MAX) != u64::from(recorded) {
            return Err(ImportError::UnpackedLength {
                compression,
                offset: start,
                unpacked,
                recorded,
            });
        }
    }
    notes.push(format!(
        "unpacked the {compression} payload at {start:#x}: {length} bytes to {unpacked}"
    ));
    if window.remaining() > 0 {
        notes.push(format!("ignored {} bytes behind the payload", window.remaining()));
    }
    import_unpacked(&data, compression, start, options)
}

/// Loads the protected-mode kernel as it is.
fn import_as_is(
    source: Source<'_>,
    header: &SetupHeader,
    options: &ImportOptions,
    notes: &mut Vec<String>,
) -> Result<ImportedKernel, ImportError> {
    let length = header.kernel_length();
    let memory_length = u64::from(header.u32(0x260)).max(length);
    let relocatable = header.u8(0x234) != 0;
    let address = if relocatable { header.u64(0x258) } else { DEFAULT_LOAD_ADDRESS };
    let refuse = |field, value, reason| Err(ImportError::BootHeader { field, value, reason });
    if length <= ENTRY_64 {
        return refuse("syssize", header.u32(0x1f4).into(), "too short to hold the 64-bit entry");
    }
    if address < LOWEST_ADDRESS {
        return refuse("pref_address", address, "below 1 MiB, where the loader has its tables");
    }
    if address.checked_add(memory_length).is_none() {
        return refuse("pref_address", address, "the kernel's end overflows");
    }
    let alignment = u64::from(header.u32(0x230));
    if relocatable && (alignment == 0 || !address.is_multiple_of(alignment)) {
        return refuse("kernel_alignment", alignment, "pref_address is no multiple of it");
    }
    if memory_length > options.max_kernel_size {
        return Err(ImportError::TooLarge {
            what: "the kernel in memory",
            limit: options.max_kernel_size,
        });
    }
    notes.push("kept as it is: the guest unpacks it".to_owned());
    let data = source.bytes("the protected-mode kernel", header.setup_length(), length)?;
    Ok(ImportedKernel {
        format: KernelFormat::BzImage,
        compression: None,
        segments: vec![KernelSegment { address, data, memory_length }],
        entries: BootEntries { linux64: Some(address + ENTRY_64), pvh32: None },
        setup_header: None,
        initrd_addr_max: 0,
        cmdline_max: 0,
        can_load_initrd_above_4g: false,
        version: None,
        notes: Vec::new(),
    })
}

#[cfg(test)]
mod tests;
