//! What is true of every manifest, whoever wrote it.

use super::{
    ChunkEntry, MAX_CHUNK_SIZE, MIN_CHUNK_SIZE, Manifest, ManifestError, Placement, Segment,
    SegmentKind,
};

/// The most segments that an image may have.
pub const MAX_SEGMENTS: usize = 64;
/// The most that an image may hold, in bytes: guest memory that it fills, and its disk.
pub const MAX_IMAGE_BYTES: u64 = 64 << 30;
/// The most chunks that a disk may have: the manifest names each, and whoever boots the image holds the
/// manifest in memory, 40 bytes for each. With 4 KiB chunks that is 4 GiB, with 64 KiB or more all
/// that an image may hold.
pub const MAX_DISK_CHUNKS: u32 = 1 << 20;
/// The unit of a disk, in bytes.
pub const SECTOR: u64 = 512;
/// Alignments that a floating segment may ask for, in bytes.
const ALIGN: std::ops::RangeInclusive<u64> = 4 << 10..=1 << 30;

/// Refuses a manifest that breaks any rule.
pub(super) fn check(manifest: &Manifest) -> Result<(), ManifestError> {
    let size = manifest.chunk_size;
    check_chunk_size(size)?;
    if manifest.segments.is_empty() || manifest.segments.len() > MAX_SEGMENTS {
        return Err(ManifestError::SegmentCount(manifest.segments.len()));
    }
    let mut total = 0u64;
    let mut next_chunk = 0u64;
    let (mut initrd, mut disk) = (false, false);
    for (index, segment) in manifest.segments.iter().enumerate() {
        check_segment(segment, size, next_chunk)
            .map_err(|what| ManifestError::Segment { segment: index, what })?;
        next_chunk += u64::from(segment.chunk_count);
        total = total.saturating_add(segment.memory_length);
        if segment.kind == SegmentKind::Initrd && std::mem::replace(&mut initrd, true) {
            return Err(ManifestError::SecondInitrd(index));
        }
        if segment.kind == SegmentKind::Block && std::mem::replace(&mut disk, true) {
            return Err(ManifestError::SecondDisk(index));
        }
    }
    if total > MAX_IMAGE_BYTES {
        return Err(ManifestError::TotalLength(total));
    }
    let table = u64::try_from(manifest.chunks.len()).unwrap_or(u64::MAX);
    if next_chunk != table {
        return Err(ManifestError::ChunkCount { segments: next_chunk, table });
    }
    check_overlap(&manifest.segments)?;
    check_entries(manifest)?;
    check_cmdline(manifest)?;
    check_zero_chunks(&manifest.chunks)
}

pub(super) fn check_chunk_size(size: u32) -> Result<(), ManifestError> {
    if size.is_power_of_two() && (MIN_CHUNK_SIZE..=MAX_CHUNK_SIZE).contains(&size) {
        Ok(())
    } else {
        Err(ManifestError::ChunkSize(size))
    }
}

/// One segment, whose chunks must begin at `next_chunk`.
fn check_segment(segment: &Segment, chunk_size: u32, next_chunk: u64) -> Result<(), String> {
    let Segment { data_length, memory_length, first_chunk, chunk_count, .. } = *segment;
    if memory_length == 0 {
        return Err("is empty".into());
    }
    if data_length > memory_length {
        return Err(format!("has {data_length} bytes of data for {memory_length} of memory"));
    }
    if memory_length > MAX_IMAGE_BYTES {
        return Err(format!(
            "is {memory_length} bytes long; at most {MAX_IMAGE_BYTES} are allowed"
        ));
    }
    let needed = data_length.div_ceil(u64::from(chunk_size));
    if u64::from(chunk_count) != needed {
        return Err(format!("has {chunk_count} chunks; {data_length} bytes make {needed}"));
    }
    if u64::from(first_chunk) != next_chunk {
        return Err(format!("begins with chunk {first_chunk}, not {next_chunk}"));
    }
    if (segment.kind == SegmentKind::Block) != (segment.placement == Placement::Device) {
        return Err("is a disk that has an address, or is none and has no address".into());
    }
    match segment.placement {
        Placement::Device => {
            if data_length != memory_length || !data_length.is_multiple_of(SECTOR) {
                return Err(format!(
                    "is a disk of {memory_length} bytes, {data_length} of them in chunks; all must be, \
                     and be a multiple of {SECTOR}"
                ));
            }
            if chunk_count > MAX_DISK_CHUNKS {
                return Err(format!(
                    "is a disk of {chunk_count} chunks; at most {MAX_DISK_CHUNKS} are allowed: \
                     push it in larger chunks (--chunk-size)"
                ));
            }
        }
        Placement::Fixed { address } => {
            if address.checked_add(memory_length).is_none() {
                return Err(format!(
                    "{memory_length} bytes at {address:#x} end beyond the address space"
                ));
            }
        }
        Placement::TopOfRam { limit, align } => {
            if segment.kind == SegmentKind::Kernel {
                return Err("is part of the kernel but has no fixed address".into());
            }
            if !align.is_power_of_two() || !ALIGN.contains(&align) {
                return Err(format!("alignment {align:#x} is not a power of two in {ALIGN:#x?}"));
            }
            if limit < memory_length {
                return Err(format!("{memory_length} bytes cannot lie below {limit:#x}"));
            }
        }
    }
    Ok(())
}

/// Fixed segments share no byte. Assumes that each ends within the address space.
fn check_overlap(segments: &[Segment]) -> Result<(), ManifestError> {
    let mut fixed: Vec<(u64, u64, usize)> = segments
        .iter()
        .enumerate()
        .filter_map(|(index, segment)| match segment.placement {
            Placement::Fixed { address } => Some((address, segment.memory_length, index)),
            Placement::TopOfRam { .. } | Placement::Device => None,
        })
        .collect();
    fixed.sort_unstable();
    for pair in fixed.windows(2) {
        if let [(low, length, first), (high, _, second)] = *pair
            && high - low < length
        {
            return Err(ManifestError::Overlap { first, second, address: high });
        }
    }
    Ok(())
}

fn check_entries(manifest: &Manifest) -> Result<(), ManifestError> {
    let entries = &manifest.kernel.entries;
    if entries.linux64.is_none() && entries.pvh32.is_none() {
        return Err(ManifestError::NoEntry);
    }
    for (protocol, entry) in [("64-bit", entries.linux64), ("PVH", entries.pvh32)] {
        let Some(entry) = entry else { continue };
        let inside = manifest.segments.iter().any(|segment| match segment.placement {
            Placement::Fixed { address } if segment.kind == SegmentKind::Kernel => {
                entry.checked_sub(address).is_some_and(|offset| offset < segment.data_length)
            }
            _ => false,
        });
        if !inside {
            return Err(ManifestError::Entry { protocol, address: entry });
        }
    }
    Ok(())
}

fn check_cmdline(manifest: &Manifest) -> Result<(), ManifestError> {
    let length = manifest.cmdline.len();
    let max = manifest.kernel.cmdline_max;
    if u32::try_from(length).map_or(true, |length| length > max) {
        return Err(ManifestError::Cmdline(format!(
            "is {length} bytes long; this kernel takes {max}"
        )));
    }
    if let Some(position) = manifest.cmdline.find('\0') {
        return Err(ManifestError::Cmdline(format!("has a NUL at byte {position}")));
    }
    Ok(())
}

/// The key says whether a chunk is zero; the other fields agree with it.
fn check_zero_chunks(chunks: &[ChunkEntry]) -> Result<(), ManifestError> {
    let consistent = |chunk: &ChunkEntry| {
        let no_key = chunk.key == ChunkEntry::ZERO.key;
        chunk.zero == no_key && (!no_key || chunk.checksum == 0)
    };
    match chunks.iter().position(|chunk| !consistent(chunk)) {
        Some(index) => Err(ManifestError::ZeroChunk(u32::try_from(index).unwrap_or(u32::MAX))),
        None => Ok(()),
    }
}
