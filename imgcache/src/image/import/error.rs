//! What can be wrong with a kernel or a ramdisk, each error with the place and the value seen.

use std::io;

use super::compression::Compression;
use crate::image::manifest::SECTOR;

/// Why a kernel, a ramdisk or a disk cannot be imported.
///
/// Offsets and lengths are in bytes and count from the start of the file, or, inside
/// [`ImportError::Inside`], from the start of the unpacked data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The file could not be read.
    #[error("cannot read {what} at offset {offset:#x}: {source}")]
    Read {
        /// The structure that was being read.
        what: &'static str,
        /// Where it starts.
        offset: u64,
        /// The system's error.
        source: io::Error,
    },
    /// A disk whose size is none that an image's disk can have.
    #[error(
        "a disk of {length} bytes: it must be a multiple of {SECTOR} bytes and at most {limit}, with \
         chunks of {chunk_size} (--chunk-size)"
    )]
    DiskLength {
        /// Its size in bytes.
        length: u64,
        /// Bytes per chunk.
        chunk_size: u32,
        /// The most that it may have, in bytes.
        limit: u64,
    },
    /// A structure reaches beyond the end of the file.
    #[error(
        "{what} at offset {offset:#x} is {length} bytes long, beyond the end of the file at \
         {file_length:#x}: is the file cut short?"
    )]
    Truncated {
        /// The structure.
        what: &'static str,
        /// Where it starts.
        offset: u64,
        /// How long it is.
        length: u64,
        /// Where the file ends.
        file_length: u64,
    },
    /// The data inside a compressed file or payload is at fault.
    #[error("inside the {compression} data at offset {offset:#x}: {source}")]
    Inside {
        /// How the data is compressed.
        compression: Compression,
        /// Where the compressed data starts.
        offset: u64,
        /// What is wrong with the unpacked data.
        source: Box<ImportError>,
    },
    /// Compressed data is damaged or cut short.
    #[error("cannot unpack the {compression} data at offset {offset:#x}: {source}")]
    Unpack {
        /// How the data is compressed.
        compression: Compression,
        /// Where the compressed data starts.
        offset: u64,
        /// The decoder's error.
        source: io::Error,
    },
    /// Compressed data unpacks to another length than its builder recorded.
    #[error(
        "the {compression} data at offset {offset:#x} unpacks to {unpacked} bytes, but its \
         recorded length is {recorded}"
    )]
    UnpackedLength {
        /// How the data is compressed.
        compression: Compression,
        /// Where the compressed data starts.
        offset: u64,
        /// Length of the unpacked data.
        unpacked: u64,
        /// The length recorded behind the data, modulo 2^32.
        recorded: u32,
    },
    /// A compression that Linux knows but this importer does not, or one that Linux refuses.
    #[error("the data at offset {offset:#x} is {name}, which cannot be imported: {advice}")]
    UnsupportedCompression {
        /// What the data is.
        name: &'static str,
        /// Where it starts.
        offset: u64,
        /// What to do about it.
        advice: &'static str,
    },
    /// Something is larger than the limit given in the options.
    #[error("{what} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The file is not a kernel.
    #[error(
        "not an x86-64 kernel (bzImage or ELF): {found}; the file starts with {}",
        .seen.escape_ascii()
    )]
    NotKernel {
        /// What the file seems to be.
        found: &'static str,
        /// The first bytes.
        seen: Vec<u8>,
    },
    /// A field of the Linux boot header cannot be accepted.
    #[error("boot header field {field} is {value:#x}: {reason}")]
    BootHeader {
        /// The field's name in the boot protocol.
        field: &'static str,
        /// Its value.
        value: u64,
        /// Why it is refused.
        reason: &'static str,
    },
    /// A field of the ELF header cannot be accepted.
    #[error("ELF header field {field} is {value:#x}: {reason}")]
    ElfHeader {
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: u64,
        /// Why it is refused.
        reason: &'static str,
    },
    /// A program header of the ELF file cannot be accepted.
    #[error("ELF program header {index}: {field} is {value:#x}: {reason}")]
    ProgramHeader {
        /// Index of the program header.
        index: usize,
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: u64,
        /// Why it is refused.
        reason: &'static str,
    },
    /// The ELF file loads nothing.
    #[error("the ELF file has no loadable segment")]
    NoSegments,
    /// Two segments want the same memory.
    #[error(
        "kernel segments overlap in memory: [{first:#x}, {first_end:#x}) and \
         [{second:#x}, {second_end:#x})"
    )]
    Overlap {
        /// Guest-physical start of the lower segment.
        first: u64,
        /// Its end.
        first_end: u64,
        /// Guest-physical start of the higher segment.
        second: u64,
        /// Its end.
        second_end: u64,
    },
    /// An entry point is outside everything that is loaded.
    #[error("the {kind} entry point {address:#x} is in no loaded segment")]
    EntryOutside {
        /// Which entry point.
        kind: &'static str,
        /// Its guest-physical address.
        address: u64,
    },
    /// An ELF note is malformed.
    #[error("ELF note at offset {offset:#x}: {field} is {value:#x}: {reason}")]
    Note {
        /// Where the note starts.
        offset: u64,
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: u64,
        /// Why it is refused.
        reason: &'static str,
    },
    /// The ramdisk holds no archive at all.
    #[error("the ramdisk is empty: {length} bytes without a cpio archive")]
    EmptyRamdisk {
        /// Length of the file.
        length: u64,
    },
    /// The ramdisk holds something that is no cpio archive.
    #[error(
        "no newc cpio archive at offset {offset:#x}: {found}; the bytes there are {}",
        .seen.escape_ascii()
    )]
    NotCpio {
        /// Where the archive was expected.
        offset: u64,
        /// What the data seems to be.
        found: &'static str,
        /// The bytes there.
        seen: Vec<u8>,
    },
    /// An archive starts at an offset where Linux does not look for one.
    #[error("cpio archive at offset {offset:#x}: Linux wants archives on a multiple of 4 bytes")]
    Misaligned {
        /// Where the archive starts.
        offset: u64,
    },
    /// A field of a cpio header cannot be accepted.
    #[error("cpio entry at offset {offset:#x}: field {field} is '{}': {reason}", .value.escape_ascii())]
    CpioHeader {
        /// Where the entry starts.
        offset: u64,
        /// The field's name.
        field: &'static str,
        /// The bytes of the field.
        value: Vec<u8>,
        /// Why it is refused.
        reason: &'static str,
    },
    /// The content of a cpio entry does not add up to its checksum.
    #[error(
        "cpio entry at offset {offset:#x}: checksum {computed:#010x}, recorded {recorded:#010x}"
    )]
    CpioChecksum {
        /// Where the entry starts.
        offset: u64,
        /// Sum of the content's bytes.
        computed: u32,
        /// The sum in the header.
        recorded: u32,
    },
    /// An archive has no trailer: it is cut short.
    #[error("cpio archive at offset {offset:#x} ends at {end:#x} without its TRAILER!!! entry")]
    CpioTruncated {
        /// Where the archive starts.
        offset: u64,
        /// Where the data ends.
        end: u64,
    },
    /// The unpacked ramdisk could not be written on.
    #[error("cannot write the unpacked ramdisk: {source}")]
    Sink {
        /// The receiver's error.
        source: io::Error,
    },
}
