//! Import of kernels and ramdisks at push time: what they unpack to, and where it goes.
//!
//! A kernel becomes the segments that a loader puts into guest memory and the addresses at which
//! it may be entered ([`import_kernel`]); a ramdisk becomes the plain cpio archives that the guest
//! would otherwise unpack itself ([`import_initrd`]). So nothing is parsed and nothing unpacked at
//! boot. All numbers in the files are hostile until checked: reads are positional and checked
//! against the file's length, sums are checked, loops and memory are bounded by
//! [`ImportOptions`].
//!
//! - `kernel`: what a file is, and the import of either kind of kernel;
//! - `bzimage`: the Linux/x86 boot protocol, up to 2.15;
//! - `elf`: System V ELF-64, and the PVH entry note of the Xen project;
//! - `initrd` and `cpio`: Linux's initramfs buffer format;
//! - `disk`: the content of a block device, as it is;
//! - `added`: files that are put into a ramdisk;
//! - `compression`, `lz4`, `zstd`: the compressed formats that Linux reads;
//! - `source`: positional reads.

mod added;
mod bzimage;
mod compression;
mod cpio;
mod disk;
mod elf;
mod error;
mod initrd;
mod kernel;
mod lz4;
mod source;
mod zstd;

#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod seeds;
#[cfg(test)]
mod testing;

pub use added::{AddedContent, AddedFile, added_archive};
pub use compression::Compression;
pub use disk::{disk_length, import_disk};
pub use error::ImportError;
pub use initrd::{ImportedInitrd, InitrdPart, import_initrd};
pub use kernel::{BootEntries, ImportedKernel, KernelFormat, KernelSegment, import_kernel};
pub use source::ReadAt;

/// What an import may do and how much it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportOptions {
    /// Keep the file's own form: a bzImage unpacks itself in the guest, a ramdisk's bytes are
    /// passed through unread.
    pub as_is: bool,
    /// Most bytes that a kernel may take, unpacked from its file as well as loaded in memory.
    pub max_kernel_size: u64,
    /// Most bytes that a ramdisk may unpack to.
    pub max_initrd_size: u64,
    /// What a ramdisk gets in addition to what it has.
    pub added: Vec<AddedFile>,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            as_is: false,
            max_kernel_size: 1 << 30,
            max_initrd_size: 64 << 30,
            added: Vec::new(),
        }
    }
}
