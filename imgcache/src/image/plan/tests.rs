//! Tests of the landing plan, against an exhaustive search.

use proptest::prelude::*;

use super::*;
use crate::image::manifest::MIN_CHUNK_SIZE;
use crate::testing::{KERNEL_ADDRESS, manifest};

const GIB: u64 = 1 << 30;

/// RAM of `size` bytes; what does not fit below `hole` goes on at 4 GiB.
fn ram(size: u64, hole: Option<u64>) -> Vec<Range<u64>> {
    match hole {
        Some(hole) if size > hole => vec![0..hole, 4 * GIB..4 * GIB + (size - hole)],
        _ => one(0..size),
    }
}

fn one(range: Range<u64>) -> Vec<Range<u64>> {
    std::iter::once(range).collect()
}

/// What machines keep for themselves at the bottom.
fn low() -> Vec<Range<u64>> {
    one(0..MIB)
}

/// Segments with the given fixed places, and a ramdisk.
fn image(fixed: &[(u64, u64)], initrd: u64, limit: u64, align: u64) -> Manifest {
    let mut made = manifest(&[1], &[1], MIN_CHUNK_SIZE);
    let kernel = made.segments[0].clone();
    let mut floating = made.segments[1].clone();
    made.segments.clear();
    for (address, length) in fixed {
        let placement = Placement::Fixed { address: *address };
        made.segments.push(crate::image::manifest::Segment {
            placement,
            memory_length: *length,
            ..kernel.clone()
        });
    }
    floating.placement = Placement::TopOfRam { limit, align };
    floating.memory_length = initrd;
    made.segments.push(floating);
    made
}

#[test]
fn a_ramdisk_goes_to_the_top() {
    let made = image(&[(16 * MIB, 40 * MIB)], 100 * MIB - 1, 4 * GIB, HUGE_PAGE);
    let layout = GuestLayout { ram: ram(512 * MIB, None), reserved: low() };
    assert_eq!(
        place(&made, &layout).unwrap(),
        [
            Landing { segment: 0, address: 16 * MIB, length: 40 * MIB },
            Landing { segment: 1, address: 412 * MIB, length: 100 * MIB - 1 },
        ]
    );
    // Below the hole, though there is RAM above it.
    let layout = GuestLayout { ram: ram(8 * GIB, Some(3 * GIB)), reserved: low() };
    assert_eq!(place(&made, &layout).unwrap()[1].address, 3 * GIB - 100 * MIB);
    // Below what is reserved at the top, and below the limit.
    let layout = GuestLayout { ram: ram(GIB, None), reserved: one(1023 * MIB..GIB) };
    assert_eq!(place(&made, &layout).unwrap()[1].address, 922 * MIB);
    let low = image(&[(16 * MIB, 40 * MIB)], 100 * MIB, 200 * MIB, HUGE_PAGE);
    assert_eq!(place(&low, &layout).unwrap()[1].address, 100 * MIB);
}

#[test]
fn ram_in_touching_pieces_is_one() {
    let made = image(&[(15 * MIB, 2 * MIB)], MIB, 4 * GIB, HUGE_PAGE);
    let layout = GuestLayout { ram: vec![0..16 * MIB, 16 * MIB..64 * MIB], reserved: vec![] };
    assert_eq!(place(&made, &layout).unwrap()[0].address, 15 * MIB);
}

#[test]
fn errors_say_what_is_missing() {
    let layout = |size| GuestLayout { ram: ram(size, None), reserved: low() };
    let made = image(&[(16 * MIB, 40 * MIB)], 100 * MIB, 4 * GIB, HUGE_PAGE);
    let error = place(&made, &layout(48 * MIB)).unwrap_err();
    assert!(error.to_string().contains("needs 8 MiB more (RAM: 48 MiB at 0x0)"), "{error}");
    let error = place(&made, &layout(128 * MIB)).unwrap_err();
    assert!(error.to_string().contains("needs 28 MiB more (RAM: 128 MiB at 0x0)"), "{error}");
    assert!(place(&made, &layout(156 * MIB)).is_ok());
    let low = image(&[(MIB - 1, 10)], MIB, 4 * GIB, HUGE_PAGE);
    assert_eq!(
        place(&low, &layout(GIB)),
        Err(PlanError::Reserved { segment: 0, address: MIB - 1, length: 10, reserved: 0..MIB })
    );
    let twice = image(&[(2 * MIB, 10), (2 * MIB + 9, 1)], MIB, 4 * GIB, HUGE_PAGE);
    assert_eq!(
        place(&twice, &layout(GIB)),
        Err(PlanError::Overlap { first: 0, second: 1, address: 2 * MIB + 9 })
    );
    let none = GuestLayout::default();
    let error = place(&made, &none).unwrap_err();
    assert!(error.to_string().contains("(RAM: none)"), "{error}");
}

#[test]
fn the_placement_rule_follows_the_kernel() {
    let limit = |max, above| match initrd_placement(max, above) {
        Placement::TopOfRam { limit, .. } => limit,
        Placement::Fixed { .. } | Placement::Device => 0,
    };
    assert_eq!(limit(0x7fff_ffff, false), 2 * GIB);
    assert_eq!(limit(0x7fff_ffff, true), 4 * GIB);
    assert_eq!(limit(u64::MAX, false), 4 * GIB);
    assert!(KERNEL_ADDRESS < limit(0x37ff_ffff, false));
}

/// Every aligned address from the top down.
fn exhaustive(
    needed: u64,
    limit: u64,
    align: u64,
    ram: &[Range<u64>],
    taken: &[Range<u64>],
) -> Option<u64> {
    for range in ram.iter().rev() {
        let Some(highest) = range.end.min(limit).checked_sub(needed) else { continue };
        let mut address = highest - highest % align;
        while address >= range.start {
            let wanted = address..address + needed;
            if !taken.iter().any(|other| overlap(other, &wanted)) {
                return Some(address);
            }
            let Some(next) = address.checked_sub(align) else { break };
            address = next;
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn any_plan_is_sound_and_complete(
        pages in 1u64..20_000,
        hole in proptest::option::of(1u64..10_000),
        kernel in proptest::collection::vec((0u64..20_000, 1u64..4000), 0..4),
        reserved in proptest::collection::vec((0u64..20_000, 0u64..300), 0..6),
        initrd in 1u64..(40 << 20),
        limit in prop_oneof![Just(4 * GIB), (40u64 << 20)..(80 << 20), Just(u64::MAX)],
        align_shift in 12u32..23,
    ) {
        let page = 4096;
        let ram = match hole {
            Some(hole) => ram(pages * page, Some(hole * page)),
            None => ram(pages * page, None),
        };
        let reserved: Vec<Range<u64>> = reserved
            .iter()
            .map(|(start, count)| start * page + 1..(start + count) * page + 1)
            .collect();
        let fixed: Vec<(u64, u64)> = kernel.iter().map(|(a, n)| (a * page, n * page + 7)).collect();
        let align = 1u64 << align_shift;
        let made = image(&fixed, initrd, limit, align);
        let layout = GuestLayout { ram: ram.clone(), reserved: reserved.clone() };
        let needed = initrd.next_multiple_of(align.min(HUGE_PAGE));
        let fixed: Vec<Range<u64>> = fixed.iter().map(|(a, n)| *a..a + n).collect();
        let taken: Vec<Range<u64>> =
            fixed.iter().chain(&reserved).filter(|r| !r.is_empty()).cloned().collect();
        let inside = |wanted: &Range<u64>| {
            ram.iter().any(|range| range.start <= wanted.start && wanted.end <= range.end)
        };
        let fixed_fit = fixed.iter().enumerate().all(|(index, range)| {
            inside(range)
                && !reserved.iter().any(|other| !other.is_empty() && overlap(other, range))
                && !fixed[..index].iter().any(|other| overlap(other, range))
        });
        let found = exhaustive(needed, limit, align, &ram, &taken).filter(|_| fixed_fit);
        match place(&made, &layout) {
            Ok(landings) => {
                prop_assert_eq!(landings.len(), made.segments.len());
                let last = landings.last().unwrap();
                prop_assert_eq!(Some(last.address), found);
                let mut used: Vec<Range<u64>> = landings
                    .iter()
                    .map(|landing| landing.address..landing.address + landing.length)
                    .collect();
                used.last_mut().unwrap().end = last.address + needed;
                for (index, range) in used.iter().enumerate() {
                    prop_assert_eq!(landings[index].segment, index);
                    prop_assert_eq!(landings[index].length, made.segments[index].memory_length);
                    prop_assert!(inside(range));
                    let reserved = reserved.iter().filter(|other| !other.is_empty());
                    prop_assert!(!reserved.chain(&used[..index]).any(|o| overlap(o, range)));
                }
                prop_assert!(last.address % align == 0 && last.address + needed <= limit);
                prop_assert_eq!(place(&made, &layout).unwrap(), landings);
            }
            Err(PlanError::NoRoom { free, more_mib, .. }) => {
                prop_assert_eq!(found, None);
                prop_assert!(free < needed && more_mib > 0);
            }
            Err(_) => prop_assert!(!fixed_fit),
        }
    }
}

#[test]
fn a_disk_takes_no_memory() {
    use crate::image::manifest::{Segment, SegmentKind};
    let mut image = manifest(&[1; 4096], &[2; 4096], 4096);
    let layout = GuestLayout { ram: std::iter::once(0..64 << 20).collect(), reserved: Vec::new() };
    let before = place(&image, &layout).unwrap();
    image.segments.push(Segment {
        kind: SegmentKind::Block,
        placement: Placement::Device,
        data_length: 1 << 30,
        memory_length: 1 << 30,
        first_chunk: 2,
        chunk_count: 1 << 18,
    });
    assert_eq!(place(&image, &layout).unwrap(), before);
}
