//! How an image lies in a file that is to be mapped into guests: in whole 2 MiB pieces of guest
//! memory, each byte where the guest will find it, zeros between.
//!
//! A host that boots an image many times brings it into such a file once (the pool of the node agent)
//! and maps it into each guest. What has a fixed address is laid out as in guest memory, so segments
//! that share a piece there share it here; what floats begins at a piece of its own, as it does in
//! the guest ([`super::plan`]).

use std::ops::Range;

use super::manifest::{Manifest, Placement};

/// The size of a piece: that of a huge page.
pub const PIECE: u64 = 2 << 20;

/// Where an area goes in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AreaPlace {
    /// At this guest physical address, a multiple of 2 MiB.
    Fixed(u64),
    /// Where this segment is placed, whose alignment is a multiple of 2 MiB.
    Segment(usize),
}

/// A part of the file that goes into guest memory in one piece. All numbers are multiples of 2 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Where it goes.
    pub place: AreaPlace,
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// Where everything of an image lies in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedLayout {
    /// The areas, ascending in the file and without gaps.
    areas: Vec<Area>,
    /// Where each segment begins in the file, in bytes; `None` for one that cannot be mapped,
    /// as a disk cannot.
    segments: Vec<Option<u64>>,
    length: u64,
}

impl PreparedLayout {
    /// The layout of this image: the same for whoever asks.
    pub fn of(manifest: &Manifest) -> Self {
        let mut layout = Self { areas: Vec::new(), segments: Vec::new(), length: 0 };
        let mut pieces: Vec<Range<u64>> = manifest
            .segments
            .iter()
            .filter_map(|segment| match segment.placement {
                Placement::Fixed { address } => fixed_pieces(address, segment.data_length),
                Placement::TopOfRam { .. } | Placement::Device => None,
            })
            .collect();
        pieces.sort_unstable_by_key(|range| range.start);
        for range in merged(pieces) {
            layout.add(AreaPlace::Fixed(range.start), range.end - range.start);
        }
        for (index, segment) in manifest.segments.iter().enumerate() {
            let start = match segment.placement {
                Placement::Fixed { address } => layout.place_of(address, segment.data_length),
                Placement::TopOfRam { align, .. } if align.is_multiple_of(PIECE) => {
                    let start = layout.length;
                    segment.data_length.checked_next_multiple_of(PIECE).map(|length| {
                        layout.add(AreaPlace::Segment(index), length);
                        start
                    })
                }
                Placement::TopOfRam { .. } | Placement::Device => None,
            };
            layout.segments.push(start);
        }
        layout
    }

    fn add(&mut self, place: AreaPlace, length: u64) {
        if length > 0 {
            self.areas.push(Area { place, offset: self.length, length });
            // Manifests are bounded (`MAX_IMAGE_BYTES`), and so is the sum.
            self.length += length;
        }
    }

    /// Where in the file `length` bytes from this guest address on are.
    fn place_of(&self, address: u64, length: u64) -> Option<u64> {
        let end = address.checked_add(length)?;
        self.areas.iter().find_map(|area| match area.place {
            AreaPlace::Fixed(start) if start <= address && end <= start + area.length => {
                Some(area.offset + (address - start))
            }
            _ => None,
        })
    }

    /// The areas, ascending in the file.
    pub fn areas(&self) -> &[Area] {
        &self.areas
    }

    /// Where a segment begins in the file, in bytes; `None` if it is not there.
    pub fn segment(&self, index: usize) -> Option<u64> {
        self.segments.get(index).copied().flatten()
    }

    /// Bytes of the file, a multiple of 2 MiB.
    pub fn length(&self) -> u64 {
        self.length
    }
}

/// The whole pieces that a fixed segment's data lies in.
fn fixed_pieces(address: u64, length: u64) -> Option<Range<u64>> {
    let end = address.checked_add(length)?.checked_next_multiple_of(PIECE)?;
    (length > 0).then_some(address / PIECE * PIECE..end)
}

/// Ascending ranges with those joined that touch.
fn merged(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match all.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => all.push(range),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::manifest::{Architecture, Segment, SegmentKind};
    use crate::testing;

    fn manifest(fixed: &[(u64, u64)], ramdisk: Option<u64>) -> Manifest {
        let segment = |kind, placement, data_length| Segment {
            kind,
            placement,
            data_length,
            memory_length: data_length,
            first_chunk: 0,
            chunk_count: 0,
        };
        let mut segments: Vec<_> = fixed
            .iter()
            .map(|&(address, length)| {
                segment(SegmentKind::Kernel, Placement::Fixed { address }, length)
            })
            .collect();
        segments.extend(ramdisk.map(|length| {
            let placement = Placement::TopOfRam { limit: 1 << 32, align: PIECE };
            segment(SegmentKind::Initrd, placement, length)
        }));
        Manifest {
            architecture: Architecture::X86_64,
            chunk_size: 4096,
            kernel: testing::kernel_info(),
            cmdline: String::new(),
            segments,
            notes: Vec::new(),
            chunks: Vec::new(),
        }
    }

    #[test]
    fn segments_that_share_a_piece_share_it_in_the_file() {
        let layout =
            PreparedLayout::of(&manifest(&[(0x100_0000, 0x10_0000), (0x118_0000, 5)], Some(1)));
        let fixed = Area { place: AreaPlace::Fixed(0x100_0000), offset: 0, length: PIECE };
        let ramdisk = Area { place: AreaPlace::Segment(2), offset: PIECE, length: PIECE };
        assert_eq!(layout.areas(), [fixed, ramdisk]);
        let places: Vec<_> = (0..3).map(|index| layout.segment(index)).collect();
        assert_eq!(places, [Some(0), Some(0x18_0000), Some(PIECE)]);
        assert_eq!(layout.length(), 2 * PIECE);
        assert_eq!(layout.segment(3), None);
    }

    proptest! {
        #[test]
        fn every_byte_is_where_the_guest_will_find_it(
            fixed in prop::collection::vec((0u64..64 << 20, 1u64..8 << 20), 0..5),
            ramdisk in prop::option::of(1u64..32 << 20),
        ) {
            let layout = PreparedLayout::of(&manifest(&fixed, ramdisk));
            let mut end = 0;
            for area in layout.areas() {
                prop_assert_eq!(area.offset, end);
                prop_assert!(area.length > 0 && area.length.is_multiple_of(PIECE));
                end += area.length;
            }
            prop_assert_eq!(layout.length(), end);
            for (index, (address, length)) in fixed.iter().enumerate() {
                let place = layout.segment(index).unwrap();
                let whole = layout.areas().iter().any(|area| {
                    let AreaPlace::Fixed(start) = area.place else { return false };
                    start.is_multiple_of(PIECE)
                        && place.checked_sub(area.offset) == address.checked_sub(start)
                        && place + length <= area.offset + area.length
                });
                prop_assert!(whole, "{address:#x} {length:#x}");
            }
        }
    }
}
