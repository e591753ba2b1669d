//! The manifest: everything about an image but the content of its chunks.
//!
//! It is a landing plan made at push: which segments an image has, where each goes in guest
//! memory, which chunks fill it, and how the kernel is entered. `codec` defines its encoding, whose
//! hash is the image's id; `check` holds what must be true of any manifest.

mod check;
mod codec;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

pub use self::check::{MAX_DISK_CHUNKS, MAX_IMAGE_BYTES, MAX_SEGMENTS, SECTOR};
pub use self::codec::MAX_HEADER_BYTES;
use crate::image::import::{BootEntries, Compression, KernelFormat};
use crate::key::{ChunkKey, ManifestId};

/// The smallest chunk size, in bytes.
pub const MIN_CHUNK_SIZE: u32 = 4 << 10;
/// The largest chunk size, in bytes.
pub const MAX_CHUNK_SIZE: u32 = 1 << 20;
/// The chunk size where none is asked for, in bytes.
pub const DEFAULT_CHUNK_SIZE: u32 = 256 << 10;

/// An image: what lands where, and from which chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The machine that it is for.
    pub architecture: Architecture,
    /// Bytes per chunk; a power of two. The last chunk of a segment may be shorter.
    pub chunk_size: u32,
    /// How the kernel is entered and what it asks of its loader.
    pub kernel: KernelInfo,
    /// The kernel command line, without a terminating NUL.
    pub cmdline: String,
    /// What is loaded: the kernel's segments, then the ramdisk if there is one; and last the disk, if
    /// there is one, which is not loaded.
    pub segments: Vec<Segment>,
    /// What the import found worth telling.
    pub notes: Vec<String>,
    /// The chunks of all segments, in the order of the segments.
    #[serde(skip)]
    pub chunks: Vec<ChunkEntry>,
}

/// Architectures that images can be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// 64-bit x86.
    X86_64,
}

/// What a boot must know of the kernel beyond its segments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelInfo {
    /// The format of the file that was pushed.
    pub format: KernelFormat,
    /// How that file, or the payload in it, was compressed.
    pub compression: Option<Compression>,
    /// Guest physical addresses at which it can be entered.
    pub entries: BootEntries,
    /// The setup header of a bzImage, as in the file, from offset 0x1f1 on.
    pub setup_header: Option<Vec<u8>>,
    /// The highest address that a ramdisk's last byte may have.
    pub initrd_addr_max: u64,
    /// Whether the ramdisk may lie above 4 GiB whatever `initrd_addr_max` says.
    pub initrd_above_4g: bool,
    /// The longest command line that it takes, in bytes without the terminating NUL.
    pub cmdline_max: u32,
    /// Its release, if the file tells.
    pub version: Option<String>,
}

/// A contiguous part of guest memory that the image fills, or its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// What it holds.
    pub kind: SegmentKind,
    /// Where it goes.
    pub placement: Placement,
    /// Bytes covered by chunks.
    pub data_length: u64,
    /// Bytes of guest memory; those past `data_length` are zero. Of a disk: its size.
    pub memory_length: u64,
    /// Position of its first chunk in the manifest's chunk table.
    pub first_chunk: u32,
    /// Number of its chunks.
    pub chunk_count: u32,
}

/// What a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmentKind {
    /// Code or data of the kernel.
    Kernel,
    /// The ramdisk.
    Initrd,
    /// The content of a block device. It takes no guest memory: its chunks are read when the guest reads
    /// them.
    Block,
}

/// Where a segment goes in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Placement {
    /// At this address and nowhere else.
    Fixed {
        /// Guest physical address of its first byte.
        address: u64,
    },
    /// As high in RAM as it fits.
    TopOfRam {
        /// Every byte lies below this guest physical address.
        limit: u64,
        /// Its address is a multiple of this power of two.
        align: u64,
    },
    /// Nowhere: it is read through a device.
    Device,
}

/// One chunk of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkEntry {
    /// The hash of its content; 32 zero bytes if it is all zero.
    pub key: ChunkKey,
    /// XXH3-64 of its content, the fast check of every load; 0 if it is all zero.
    pub checksum: u64,
    /// Whether it is all zero: then it is neither stored nor fetched.
    pub zero: bool,
}

/// Where a chunk lies in its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSpan {
    /// Position in the manifest's chunk table.
    pub index: u32,
    /// Where it begins in the segment, in bytes.
    pub offset: u64,
    /// Its length in bytes, 1 to `chunk_size`.
    pub length: u32,
    /// What it must be.
    pub entry: ChunkEntry,
}

impl ChunkEntry {
    /// A chunk of nothing but zeros.
    pub const ZERO: Self = Self { key: ChunkKey([0; 32]), checksum: 0, zero: true };

    /// The entry for a chunk with this content.
    pub fn of(content: &[u8]) -> Self {
        if is_zero(content) {
            return Self::ZERO;
        }
        Self { key: ChunkKey::of(content), checksum: checksum(content), zero: false }
    }

    /// Whether `content` has the checksum that this entry names.
    pub fn has_checksum(&self, content: &[u8]) -> bool {
        if self.zero { is_zero(content) } else { checksum(content) == self.checksum }
    }

    /// Whether `content` hashes to the key of this entry.
    pub fn has_key(&self, content: &[u8]) -> bool {
        if self.zero { is_zero(content) } else { ChunkKey::of(content) == self.key }
    }
}

/// XXH3-64: bound by memory with plain SSE2 or AVX2, where a CRC needs a carry-less multiply that is
/// slow on emulated processors.
fn checksum(content: &[u8]) -> u64 {
    XxHash3_64::oneshot(content)
}

fn is_zero(content: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    content.chunks(ZEROS.len()).all(|part| part == &ZEROS[..part.len()])
}

impl Manifest {
    /// Whether its chunk size is a power of two within the limits.
    ///
    /// # Errors
    /// [`ManifestError::ChunkSize`] if not.
    pub fn check_chunk_size(&self) -> Result<(), ManifestError> {
        check::check_chunk_size(self.chunk_size)
    }

    /// The chunks of segment `segment` in ascending order; none if there is no such segment.
    pub fn chunks_of(&self, segment: usize) -> impl Iterator<Item = ChunkSpan> + '_ {
        let chunk_size = u64::from(self.chunk_size);
        self.segments.get(segment).into_iter().flat_map(move |segment| {
            let first = segment.first_chunk;
            (0..segment.chunk_count).map_while(move |number| {
                let index = first.checked_add(number)?;
                let entry = *self.chunks.get(usize::try_from(index).ok()?)?;
                let offset = u64::from(number) * chunk_size;
                let left = segment.data_length.checked_sub(offset)?;
                let length = u32::try_from(left.min(chunk_size)).ok()?;
                Some(ChunkSpan { index, offset, length, entry })
            })
        })
    }

    /// The chunks of all segments, in the order of the chunk table.
    pub fn all_chunks(&self) -> impl Iterator<Item = ChunkSpan> + '_ {
        (0..self.segments.len()).flat_map(|segment| self.chunks_of(segment))
    }

    /// Index of the segment that has chunk `index`.
    pub fn segment_of(&self, index: u32) -> Option<usize> {
        self.segments.iter().position(|segment| {
            index.checked_sub(segment.first_chunk).is_some_and(|n| n < segment.chunk_count)
        })
    }

    /// The chunk at position `index` of the chunk table.
    pub fn chunk(&self, index: u32) -> Option<ChunkSpan> {
        let segment = self.segments.get(self.segment_of(index)?)?;
        let entry = *self.chunks.get(usize::try_from(index).ok()?)?;
        let offset = u64::from(index - segment.first_chunk) * u64::from(self.chunk_size);
        let left = segment.data_length.checked_sub(offset)?;
        let length = u32::try_from(left.min(u64::from(self.chunk_size))).ok()?;
        Some(ChunkSpan { index, offset, length, entry })
    }

    /// Bytes of guest memory covered by chunks, zero chunks included: what a load brings.
    pub fn loaded_bytes(&self) -> u64 {
        self.loaded().map(|(_, segment)| segment.data_length).sum()
    }

    /// The segments that a load brings into guest memory, and their indices: all but the disk.
    pub fn loaded(&self) -> impl Iterator<Item = (usize, &Segment)> {
        self.segments.iter().enumerate().filter(|(_, s)| s.placement != Placement::Device)
    }

    /// The disk's segment and its index, if the image has one.
    pub fn disk(&self) -> Option<(usize, &Segment)> {
        self.segments.iter().enumerate().find(|(_, s)| s.kind == SegmentKind::Block)
    }

    /// Bytes covered by chunks, zero chunks and the disk included.
    pub fn data_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.data_length).sum()
    }

    /// The ramdisk's segment and its index, if the image has one.
    pub fn initrd(&self) -> Option<(usize, &Segment)> {
        self.segments.iter().enumerate().find(|(_, s)| s.kind == SegmentKind::Initrd)
    }
}

/// Why bytes are not a manifest, or a manifest cannot be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Its hash is another one.
    #[error("manifest {expected} is damaged: it hashes to {found}")]
    Hash {
        /// The id that it was looked up by.
        expected: ManifestId,
        /// The hash of its bytes.
        found: ManifestId,
    },
    /// Fewer or more bytes than the counts in it say.
    #[error("manifest: expected {expected} bytes, found {found}")]
    Length {
        /// Bytes that there should be.
        expected: u64,
        /// Bytes that there are.
        found: u64,
    },
    /// It does not begin as a manifest does.
    #[error("not a manifest: it begins with {0:02x?}")]
    Magic([u8; 8]),
    /// A version that this program does not know.
    #[error("manifest: version {0} is not supported")]
    Version(u32),
    /// The header is longer than [`MAX_HEADER_BYTES`].
    #[error("manifest: header of {0} bytes; at most {MAX_HEADER_BYTES} are allowed")]
    HeaderLength(u64),
    /// The header is not what it should be.
    #[error("manifest: header: {0}")]
    Header(String),
    /// A zero chunk with a checksum, or the other way round.
    #[error(
        "manifest: chunk {0} is marked as zero but has a key or checksum, or is not but has no key"
    )]
    ZeroChunk(u32),
    /// Not a power of two, or outside the limits.
    #[error(
        "manifest: chunk size {0}: must be a power of two from {MIN_CHUNK_SIZE} to {MAX_CHUNK_SIZE}"
    )]
    ChunkSize(u32),
    /// No segments, or more than [`MAX_SEGMENTS`].
    #[error("manifest: {0} segments; from 1 to {MAX_SEGMENTS} are allowed")]
    SegmentCount(usize),
    /// More guest memory than an image may fill.
    #[error("manifest: segments fill {0} bytes; at most {MAX_IMAGE_BYTES} are allowed")]
    TotalLength(u64),
    /// More than one ramdisk.
    #[error("manifest: segment {0} is a second ramdisk")]
    SecondInitrd(usize),
    /// More than one disk.
    #[error("manifest: segment {0} is a second disk")]
    SecondDisk(usize),
    /// A version that has a disk, without one, or the other way round.
    #[error("manifest: version {version} is for images {}", if *version == 1 {
        "without a disk, and this one has one"
    } else {
        "with a disk, and this one has none"
    })]
    DiskVersion {
        /// The version.
        version: u32,
    },
    /// A rule that one segment breaks.
    #[error("manifest: segment {segment}: {what}")]
    Segment {
        /// Its index.
        segment: usize,
        /// The rule, with the values that break it.
        what: String,
    },
    /// Two segments with fixed addresses that share bytes.
    #[error("manifest: segments {first} and {second} overlap at address {address:#x}")]
    Overlap {
        /// Index of the one.
        first: usize,
        /// Index of the other.
        second: usize,
        /// The first address that both have.
        address: u64,
    },
    /// The segments' chunks are not all the chunks of the table.
    #[error("manifest: segments have {segments} chunks, the table has {table}")]
    ChunkCount {
        /// Chunks of all segments.
        segments: u64,
        /// Chunks in the table.
        table: u64,
    },
    /// An entry outside the kernel's segments.
    #[error("manifest: {protocol} entry {address:#x} is in no segment of the kernel")]
    Entry {
        /// Which entry.
        protocol: &'static str,
        /// Its address.
        address: u64,
    },
    /// No entry at all.
    #[error("manifest: the kernel has no entry")]
    NoEntry,
    /// A command line that no kernel can take, or not this one.
    #[error("manifest: command line: {0}")]
    Cmdline(String),
}

#[cfg(test)]
mod tests;
