//! The import of a kernel: what the file is, and what every kind of kernel becomes.

use serde::{Deserialize, Serialize};

use super::compression::{self, Compression};
use super::error::ImportError;
use super::source::{ReadAt, Source};
use super::{ImportOptions, bzimage, elf};

/// The form in which a kernel came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelFormat {
    /// A Linux/x86 boot image.
    BzImage,
    /// An ELF executable: `vmlinux`, or another system's kernel with a PVH entry.
    Elf,
}

/// Guest-physical addresses at which a kernel may be entered. At least one is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootEntries {
    /// The 64-bit entry of the Linux boot protocol.
    pub linux64: Option<u64>,
    /// The 32-bit entry of the PVH boot protocol.
    pub pvh32: Option<u64>,
}

/// A part of the kernel and the guest memory that it fills.
#[derive(Clone, PartialEq, Eq)]
pub struct KernelSegment {
    /// Guest-physical address, at least 1 MiB.
    pub address: u64,
    /// The first bytes of the segment; the last of them is not zero in an unpacked kernel.
    pub data: Vec<u8>,
    /// Length in guest memory, at least that of `data`; the rest is zero (.bss).
    pub memory_length: u64,
}

impl KernelSegment {
    /// The address of the first byte behind the segment. Import has checked that it exists.
    pub fn end(&self) -> u64 {
        self.address.saturating_add(self.memory_length)
    }
}

impl std::fmt::Debug for KernelSegment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelSegment")
            .field("address", &format_args!("{:#x}", self.address))
            .field("data", &format_args!("{:#x} bytes", self.data.len()))
            .field("memory_length", &format_args!("{:#x}", self.memory_length))
            .finish()
    }
}

/// A kernel ready to be put into guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedKernel {
    /// The form in which it came.
    pub format: KernelFormat,
    /// How it was compressed, if it was unpacked.
    pub compression: Option<Compression>,
    /// What goes into guest memory: sorted by address, disjoint, never empty.
    pub segments: Vec<KernelSegment>,
    /// Where the kernel may be entered.
    pub entries: BootEntries,
    /// Of a bzImage: the setup header, the file's bytes from 0x1f1 to the header's end, which go
    /// to the same offset of the zero page.
    pub setup_header: Option<Vec<u8>>,
    /// The highest address that a byte of the ramdisk may have, where
    /// `can_load_initrd_above_4g` does not lift it.
    pub initrd_addr_max: u64,
    /// The longest command line in bytes, without its terminating zero.
    pub cmdline_max: u32,
    /// The kernel takes command line, zero page and ramdisk above 4 GiB.
    pub can_load_initrd_above_4g: bool,
    /// The version as the kernel words it, for people.
    pub version: Option<String>,
    /// What was found and decided, in words.
    pub notes: Vec<String>,
}

/// `initrd_addr_max` of every 64-bit Linux, for kernels that come without a boot header.
pub(super) const DEFAULT_INITRD_ADDR_MAX: u64 = 0x7fff_ffff;
/// Linux/x86's `COMMAND_LINE_SIZE` less the terminating zero.
pub(super) const DEFAULT_CMDLINE_MAX: u32 = 2047;
/// Below are the BIOS area and what the loader puts there: zero page, command line, tables.
pub(super) const LOWEST_ADDRESS: u64 = 1 << 20;

/// Imports a kernel: a bzImage, an ELF executable for x86-64, or a compressed ELF executable.
///
/// # Errors
/// Whatever makes the file no loadable kernel, see [`ImportError`].
pub fn import_kernel(
    source: &dyn ReadAt,
    options: &ImportOptions,
) -> Result<ImportedKernel, ImportError> {
    let source = Source::new(source)?;
    let head = source.head::<HEAD_LENGTH>("the file's start", 0)?;
    if head.starts_with(elf::MAGIC) {
        let mut kernel = elf::import(source, options)?;
        kernel.notes.insert(0, "kernel is an ELF executable".to_owned());
        return Ok(kernel);
    }
    if bzimage::is_bzimage(&head) {
        return bzimage::import(source, options);
    }
    let Some(compression) = compression::detect(&head, 0)? else {
        return Err(not_kernel(&head));
    };
    let mut window = source.window(0, source.length());
    let data = compression::unpack(
        compression,
        &mut window,
        "the unpacked kernel",
        options.max_kernel_size,
    )?;
    let mut kernel = import_unpacked(&data, compression, 0, options)?;
    kernel.notes.insert(0, format!("kernel is an ELF executable compressed with {compression}"));
    if window.remaining() > 0 {
        kernel
            .notes
            .push(format!("ignored {} bytes behind the {compression} data", window.remaining()));
    }
    Ok(kernel)
}

/// Imports an ELF executable that was unpacked from the data at `offset` of the file.
pub(super) fn import_unpacked(
    data: &[u8],
    compression: Compression,
    offset: u64,
    options: &ImportOptions,
) -> Result<ImportedKernel, ImportError> {
    let inside = |source| ImportError::Inside { compression, offset, source: Box::new(source) };
    let source = Source::new(&data).map_err(inside)?;
    let head = source.head::<HEAD_LENGTH>("the start", 0).map_err(inside)?;
    if !head.starts_with(elf::MAGIC) {
        return Err(inside(not_kernel(&head)));
    }
    let mut kernel = elf::import(source, options).map_err(inside)?;
    kernel.compression = Some(compression);
    Ok(kernel)
}

/// Enough of a file to tell what it is: up to the version of the Linux boot header.
const HEAD_LENGTH: usize = 0x208;

fn not_kernel(head: &[u8]) -> ImportError {
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|b| b.starts_with(magic));
    let found = if head.is_empty() {
        "the file is empty"
    } else if bzimage::is_bzimage(head) {
        "it is a bzImage inside compressed data: unpack it first"
    } else if at(0x38, b"ARM\x64") {
        "it is an aarch64 Image"
    } else if at(0x38, b"RSC\x05") {
        "it is a RISC-V Image"
    } else if at(4, b"zimg") {
        "it is an EFI zboot image of another architecture"
    } else if at(0, b"MZ") {
        "it is an EFI PE image without a Linux boot header (of a unified kernel image, the .linux \
         section is the kernel)"
    } else if at(0, b"\x27\x05\x19\x56") {
        "it is a U-Boot legacy image"
    } else if at(0, b"\xd0\x0d\xfe\xed") {
        "it is a device tree or U-Boot FIT image"
    } else if at(0, b"07070") {
        "it is a cpio archive: is it the ramdisk?"
    } else if at(0x1fe, &[0x55, 0xaa]) {
        "it is a boot sector without a Linux boot header"
    } else {
        "its format is not known"
    };
    ImportError::NotKernel { found, seen: head[..head.len().min(16)].to_vec() }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ALL_COMPRESSIONS, BzImageBuilder, ElfBuilder, compress};
    use super::*;

    fn import(data: &[u8]) -> Result<ImportedKernel, ImportError> {
        import_kernel(&data, &ImportOptions::default())
    }

    #[test]
    fn a_compressed_vmlinux_is_the_same_kernel() {
        let elf = ElfBuilder::linux().build();
        let plain = import(&elf).unwrap();
        assert_eq!((plain.format, plain.compression), (KernelFormat::Elf, None));
        for compression in ALL_COMPRESSIONS {
            let packed = import(&compress(compression, &elf)).unwrap();
            assert_eq!(packed.compression, Some(compression));
            assert_eq!((&packed.segments, packed.entries), (&plain.segments, plain.entries));
        }
    }

    #[test]
    fn what_follows_the_compressed_kernel_is_told() {
        let mut packed = compress(Compression::Zstd, &ElfBuilder::linux().build());
        packed.extend_from_slice(b"signature");
        let kernel = import(&packed).unwrap();
        assert!(kernel.notes.iter().any(|note| note.contains("9 bytes behind")), "{kernel:?}");
    }

    #[test]
    fn files_that_are_no_kernel_are_named() {
        let arm = |magic: &[u8]| {
            let mut image = vec![0; 64];
            image[0x38..0x3c].copy_from_slice(magic);
            image
        };
        let mut pe = vec![0; 0x300];
        pe[..2].copy_from_slice(b"MZ");
        for (image, words) in [
            (arm(b"ARM\x64"), "aarch64 Image"),
            (arm(b"RSC\x05"), "RISC-V Image"),
            (pe, "EFI PE image without a Linux boot header"),
            (vec![], "empty"),
            (b"070701".to_vec(), "is it the ramdisk"),
            (b"hello, world".to_vec(), "starts with hello, world"),
        ] {
            let message = import(&image).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
            if !image.is_empty() {
                let packed = import(&compress(Compression::Gzip, &image)).unwrap_err().to_string();
                assert!(packed.starts_with("inside the gzip data at offset 0x0"), "{packed}");
                assert!(packed.contains(words), "{packed}");
            }
        }
        let nested = compress(Compression::Xz, &BzImageBuilder::linux(Compression::Gzip).build());
        let message = import(&nested).unwrap_err().to_string();
        assert!(message.contains("unpack it first"), "{message}");
    }

    #[test]
    fn a_kernel_beyond_the_limit_is_refused_unpacked_and_loaded() {
        let options = ImportOptions { max_kernel_size: 0x2000, ..ImportOptions::default() };
        let elf = ElfBuilder::linux().build();
        for image in [compress(Compression::Gzip, &vec![0; 0x2001]), elf] {
            let error = import_kernel(&image, &options).unwrap_err();
            assert!(matches!(error, ImportError::TooLarge { limit: 0x2000, .. }), "{error}");
        }
    }
}
