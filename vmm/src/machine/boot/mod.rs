//! What a kernel finds in memory when it is entered, by boot protocol.

pub mod linux64;
pub mod pvh;

use std::ops::Range;

use imgcache::image::manifest::KernelInfo;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::layout;
use super::registers::Entry;

/// What the kernel is told of the machine that it does not take from ACPI tables; the image's own
/// words come later and win. There is no PCI to probe for and two serial ports, the console and the
/// control device's event line: each probe would be an exit. It is restarted by ACPI: Linux takes hardware-reduced ACPI for a sign of EFI and,
/// finding none, would jump into a BIOS. And a kernel that panics ends, where it would else loop
/// for ever.
pub const MACHINE_COMMAND_LINE: &str =
    "pci=off 8250.nr_uarts=2 reboot=acpi panic=-1 vmm.control=0xd00,0xd0100000";

/// What the command line asks for.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum ProtocolChoice {
    /// The 64-bit protocol if the kernel has it, else PVH.
    #[default]
    Auto,
    /// The 64-bit Linux boot protocol.
    Linux64,
    /// The PVH entry.
    Pvh,
}

/// How the kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// The 64-bit Linux boot protocol.
    Linux64,
    /// The PVH entry.
    Pvh,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Linux64 => "the 64-bit Linux boot protocol",
            Self::Pvh => "PVH",
        })
    }
}

/// Why a kernel cannot be entered.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The image has no such entry.
    #[error("the image's kernel has no entry for {0}")]
    NoEntry(Protocol),
    /// The image has no entry at all.
    #[error("the image's kernel has no entry that this machine knows")]
    NoEntryAtAll,
    /// The entry is not a 32-bit address: the page tables, or the protected mode, that a kernel is
    /// entered with reach no further.
    #[error("the kernel's entry {0:#x} is beyond 4 GiB")]
    HighEntry(u64),
    /// The command line is longer than the kernel takes.
    #[error(
        "the kernel command line has {length} bytes ({} of them the machine's own: \
         '{MACHINE_COMMAND_LINE}'); at most {limit} can be passed to this kernel",
        MACHINE_COMMAND_LINE.len()
    )]
    CommandLineTooLong {
        /// How long it is.
        length: usize,
        /// How long it may be.
        limit: u64,
    },
    /// The command line has a zero in it.
    #[error("the kernel command line has a zero byte at {0}")]
    CommandLineZero(usize),
    /// The saved setup header is not one.
    #[error("the image's setup header has {0} bytes, which is not one")]
    SetupHeader(usize),
    /// No entropy from the host.
    #[error("no random seed for the guest: {0}")]
    Seed(std::io::Error),
    /// Guest memory refused a structure; never for a machine's own layout.
    #[error("boot structures: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Everything that both protocols tell the kernel.
#[derive(Debug)]
pub struct BootInfo<'a> {
    /// What the image says of its kernel.
    pub kernel: &'a KernelInfo,
    /// Where the ramdisk is, if there is one.
    pub initrd: Option<Range<u64>>,
    /// The whole command line, without a terminating zero.
    pub command_line: &'a str,
    /// The size of RAM in bytes.
    pub ram_size: u64,
    /// Where the ACPI root pointer is.
    pub rsdp: u64,
}

/// Chooses the entry of `kernel`.
///
/// # Errors
/// The kernel has none of the kind.
pub fn choose(kernel: &KernelInfo, choice: ProtocolChoice) -> Result<(Protocol, Entry), BootError> {
    let low = |entry: u64| u32::try_from(entry).map_err(|_| BootError::HighEntry(entry));
    let linux64 = kernel.entries.linux64.map(low).transpose()?.map(Entry::Linux64);
    let pvh = kernel.entries.pvh32.map(low).transpose()?.map(Entry::Pvh32);
    match choice {
        ProtocolChoice::Linux64 => linux64
            .map(|entry| (Protocol::Linux64, entry))
            .ok_or(BootError::NoEntry(Protocol::Linux64)),
        ProtocolChoice::Pvh => {
            pvh.map(|entry| (Protocol::Pvh, entry)).ok_or(BootError::NoEntry(Protocol::Pvh))
        }
        ProtocolChoice::Auto => linux64
            .map(|entry| (Protocol::Linux64, entry))
            .or(pvh.map(|entry| (Protocol::Pvh, entry)))
            .ok_or(BootError::NoEntryAtAll),
    }
}

/// The command line with its terminating zero, checked against what the kernel takes.
fn command_line_bytes(info: &BootInfo<'_>) -> Result<Vec<u8>, BootError> {
    let limit = u64::from(info.kernel.cmdline_max).min(layout::COMMAND_LINE_MAX - 1);
    let text = info.command_line.as_bytes();
    if text.len() as u64 > limit {
        return Err(BootError::CommandLineTooLong { length: text.len(), limit });
    }
    if let Some(at) = text.iter().position(|byte| *byte == 0) {
        return Err(BootError::CommandLineZero(at));
    }
    let mut bytes = text.to_vec();
    bytes.push(0);
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use imgcache::image::import::{BootEntries, KernelFormat};

    use super::*;

    /// A kernel as an import would describe a plain ELF file.
    pub fn kernel() -> KernelInfo {
        KernelInfo {
            format: KernelFormat::Elf,
            compression: None,
            entries: BootEntries { linux64: Some(0x100_0000), pvh32: None },
            setup_header: None,
            initrd_addr_max: 0x7fff_ffff,
            initrd_above_4g: true,
            cmdline_max: 2047,
            version: None,
        }
    }

    pub fn info<'a>(
        kernel: &'a KernelInfo,
        command_line: &'a str,
        initrd: Option<Range<u64>>,
    ) -> BootInfo<'a> {
        BootInfo { kernel, initrd, command_line, ram_size: 256 << 20, rsdp: 0xe_0000 }
    }

    #[test]
    fn auto_prefers_the_64_bit_entry() {
        let mut kernel = kernel();
        kernel.entries.linux64 = Some(0x100_0000);
        kernel.entries.pvh32 = Some(0x100_0040);
        let chosen = |kernel: &KernelInfo, choice| choose(kernel, choice).unwrap().0;
        assert_eq!(chosen(&kernel, ProtocolChoice::Auto), Protocol::Linux64);
        assert_eq!(chosen(&kernel, ProtocolChoice::Pvh), Protocol::Pvh);
        kernel.entries.linux64 = None;
        assert_eq!(chosen(&kernel, ProtocolChoice::Auto), Protocol::Pvh);
        assert!(choose(&kernel, ProtocolChoice::Linux64).is_err());
    }

    #[test]
    fn command_lines_that_do_not_fit_are_refused() {
        let mut kernel = kernel();
        kernel.cmdline_max = 4;
        assert_eq!(command_line_bytes(&info(&kernel, "abcd", None)).unwrap(), b"abcd\0");
        assert!(matches!(
            command_line_bytes(&info(&kernel, "abcde", None)),
            Err(BootError::CommandLineTooLong { length: 5, limit: 4 })
        ));
        assert!(matches!(
            command_line_bytes(&info(&kernel, "a\0b", None)),
            Err(BootError::CommandLineZero(1))
        ));
    }
}
