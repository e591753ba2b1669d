//! Where an image lands in the RAM of a machine that is about to boot it.
//!
//! Segments with fixed addresses go where the manifest says. A floating segment goes as high as it
//! fits, as the Linux boot protocol asks of ramdisks (Documentation/arch/x86/boot.rst, "The
//! real-mode kernel header", `initrd_addr_max`). A manifest has at most one floating segment, so
//! the highest free place is found whenever there is one.

use std::fmt::Write as _;
use std::ops::Range;

use super::manifest::{Manifest, Placement};

/// Ramdisks begin at a multiple of this, in bytes, so that huge pages can be mapped for them.
pub const INITRD_ALIGN: u64 = HUGE_PAGE;

const HUGE_PAGE: u64 = 2 << 20;
const MIB: u64 = 1 << 20;

/// The memory of a machine, as far as landing is concerned. Addresses are guest physical.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestLayout {
    /// Usable RAM, ascending and disjoint.
    pub ram: Vec<Range<u64>>,
    /// What the machine puts in RAM itself: page tables, zero page, ACPI tables. In any order.
    pub reserved: Vec<Range<u64>>,
}

/// Where one segment lands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Landing {
    /// Index of the segment in the manifest.
    pub segment: usize,
    /// Guest physical address of its first byte.
    pub address: u64,
    /// Its length in memory, in bytes. For a floating segment the bytes from there up to the next
    /// multiple of 2 MiB (of its alignment, if that is less) are RAM that nothing else uses too, so
    /// that whole huge pages can be mapped.
    pub length: u64,
}

/// Why an image does not fit a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A fixed segment lies partly or wholly outside RAM.
    #[error(
        "segment {segment} needs {length} bytes at {address:#x}, where there is not enough RAM: \
         needs {more_mib} MiB more (RAM: {ram})"
    )]
    OutsideRam {
        /// Index of the segment.
        segment: usize,
        /// Its guest physical address.
        address: u64,
        /// Its length in memory, in bytes.
        length: u64,
        /// By how much the RAM that holds `address`, or the last below it, ends too early.
        more_mib: u64,
        /// The RAM there is.
        ram: String,
    },
    /// A fixed segment lies where the machine keeps something.
    #[error(
        "segment {segment} needs {length} bytes at {address:#x}, but the machine reserves \
         {:#x}..{:#x}", reserved.start, reserved.end
    )]
    Reserved {
        /// Index of the segment.
        segment: usize,
        /// Its guest physical address.
        address: u64,
        /// Its length in memory, in bytes.
        length: u64,
        /// The reserved range.
        reserved: Range<u64>,
    },
    /// Two fixed segments share bytes.
    #[error("segments {first} and {second} overlap at {address:#x}")]
    Overlap {
        /// Index of the one.
        first: usize,
        /// Index of the other.
        second: usize,
        /// The first address that both have.
        address: u64,
    },
    /// A floating segment has no place.
    #[error(
        "segment {segment} needs {length} bytes of RAM below {limit:#x}; the largest free part has \
         {free}: needs {more_mib} MiB more (RAM: {ram})"
    )]
    NoRoom {
        /// Index of the segment.
        segment: usize,
        /// The bytes it needs, up to a whole huge page.
        length: u64,
        /// Where it must end.
        limit: u64,
        /// Bytes of the largest free, aligned part of RAM below the limit.
        free: u64,
        /// What is missing there.
        more_mib: u64,
        /// The RAM there is.
        ram: String,
    },
}

/// Places every segment of `manifest`; landings are in the order of the segments.
///
/// # Errors
/// The first segment that does not fit.
pub fn place(manifest: &Manifest, layout: &GuestLayout) -> Result<Vec<Landing>, PlanError> {
    let ram = joined(&layout.ram);
    let mut taken: Vec<(Range<u64>, Option<usize>)> =
        layout.reserved.iter().filter(|r| !r.is_empty()).map(|r| (r.clone(), None)).collect();
    let mut landings = Vec::with_capacity(manifest.segments.len());
    for (index, segment) in manifest.segments.iter().enumerate() {
        let length = segment.memory_length;
        if let Placement::Fixed { address } = segment.placement {
            place_fixed(index, address, length, &ram, &taken)?;
            taken.push((address..address.saturating_add(length), Some(index)));
            landings.push(Landing { segment: index, address, length });
        }
    }
    for (index, segment) in manifest.segments.iter().enumerate() {
        let length = segment.memory_length;
        if let Placement::TopOfRam { limit, align } = segment.placement {
            let (address, needed) = place_high(index, length, limit, align, &ram, &taken)?;
            taken.push((address..address.saturating_add(needed), Some(index)));
            landings.push(Landing { segment: index, address, length });
        }
    }
    landings.sort_by_key(|landing| landing.segment);
    Ok(landings)
}

/// `ram` with ranges that touch joined.
fn joined(ram: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ram.len());
    for range in ram.iter().filter(|range| !range.is_empty()) {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range.clone()),
        }
    }
    joined
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

fn place_fixed(
    segment: usize,
    address: u64,
    length: u64,
    ram: &[Range<u64>],
    taken: &[(Range<u64>, Option<usize>)],
) -> Result<(), PlanError> {
    let wanted = address..address.saturating_add(length);
    if !ram.iter().any(|range| range.start <= wanted.start && wanted.end <= range.end) {
        let ends = ram.iter().take_while(|range| range.start <= address).last();
        let missing = wanted.end - ends.map_or(0, |range| range.end).min(wanted.end);
        return Err(PlanError::OutsideRam {
            segment,
            address,
            length,
            more_mib: missing.div_ceil(MIB),
            ram: describe(ram),
        });
    }
    match taken.iter().find(|(range, _)| overlap(range, &wanted)) {
        None => Ok(()),
        Some((range, None)) => {
            Err(PlanError::Reserved { segment, address, length, reserved: range.clone() })
        }
        Some((range, Some(first))) => Err(PlanError::Overlap {
            first: *first,
            second: segment,
            address: range.start.max(address),
        }),
    }
}

/// The highest address for a floating segment, and the bytes to keep free there.
fn place_high(
    segment: usize,
    length: u64,
    limit: u64,
    align: u64,
    ram: &[Range<u64>],
    taken: &[(Range<u64>, Option<usize>)],
) -> Result<(u64, u64), PlanError> {
    let align = align.max(1);
    let needed = length.checked_next_multiple_of(align.min(HUGE_PAGE)).unwrap_or(length);
    let mut free = 0;
    for range in ram.iter().rev() {
        let mut end = range.end.min(limit);
        // Each turn ends below another taken range, so there are at most that many.
        while let Some(below) = end.checked_sub(needed) {
            let address = below - below % align;
            if address < range.start {
                break;
            }
            let wanted = address..address + needed;
            match taken.iter().find(|(other, _)| overlap(other, &wanted)) {
                None => return Ok((address, needed)),
                Some((other, _)) => end = other.start,
            }
        }
        free = free.max(largest_gap(range.start..range.end.min(limit), align, taken));
    }
    let more_mib = needed.saturating_sub(free).div_ceil(MIB);
    Err(PlanError::NoRoom { segment, length: needed, limit, free, more_mib, ram: describe(ram) })
}

/// Bytes of the largest part of `range` that begins aligned and is clear of `taken`.
fn largest_gap(range: Range<u64>, align: u64, taken: &[(Range<u64>, Option<usize>)]) -> u64 {
    let mut inside: Vec<&Range<u64>> =
        taken.iter().map(|(other, _)| other).filter(|other| overlap(other, &range)).collect();
    inside.sort_unstable_by_key(|other| other.start);
    let mut largest = 0;
    let mut start = range.start;
    for stop in inside.iter().map(|other| other.start).chain([range.end]) {
        if let Some(aligned) = start.checked_next_multiple_of(align) {
            largest = largest.max(stop.saturating_sub(aligned));
        }
        let passed = inside.iter().filter(|other| other.start <= stop).map(|other| other.end);
        start = passed.max().map_or(start, |end| end.max(start));
    }
    largest
}

fn describe(ram: &[Range<u64>]) -> String {
    if ram.is_empty() {
        return "none".to_owned();
    }
    let mut text = String::new();
    for range in ram {
        let separator = if text.is_empty() { "" } else { ", " };
        let mib = (range.end - range.start) / MIB;
        // Writing to a string cannot fail.
        let _ = write!(text, "{separator}{mib} MiB at {:#x}", range.start);
    }
    text
}

/// The placement rule for the ramdisk of a kernel.
///
/// A kernel that can have it above 4 GiB (boot protocol 2.12, `XLF_CAN_BE_LOADED_ABOVE_4G`) still
/// gets it below: entered by PVH, Linux takes only 32 bits of its address.
pub fn initrd_placement(initrd_addr_max: u64, above_4g: bool) -> Placement {
    const FOUR_GIB: u64 = 4 << 30;
    let limit = if above_4g { FOUR_GIB } else { initrd_addr_max.saturating_add(1).min(FOUR_GIB) };
    Placement::TopOfRam { limit, align: INITRD_ALIGN }
}

#[cfg(test)]
mod tests;
