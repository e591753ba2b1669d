//! Tests of the manifest's encoding and rules.

use proptest::prelude::*;

use super::*;
use crate::testing::{KERNEL_ADDRESS, manifest, noise};

const CHUNK: u32 = MIN_CHUNK_SIZE;

fn sample() -> Manifest {
    let mut initrd = noise(1, 5 * 4096 + 77);
    initrd[4096..8192].fill(0);
    manifest(&noise(2, 9000), &initrd, CHUNK)
}

/// Encodes without any check, by a change to the header's text.
fn with_header(manifest: &Manifest, from: &str, to: &str) -> Vec<u8> {
    let bytes = manifest.encode().unwrap();
    let length = u32::from_le_bytes(bytes[12..16].try_into().unwrap());
    let end = 20 + usize::try_from(length).unwrap();
    let header = std::str::from_utf8(&bytes[20..end]).unwrap();
    assert!(header.contains(from), "{from} is not in {header}");
    let header = header.replacen(from, to, 1);
    let length = u32::try_from(header.len()).unwrap();
    [&bytes[..12], &length.to_le_bytes(), &bytes[16..20], header.as_bytes(), &bytes[end..]].concat()
}

#[test]
fn decodes_to_what_was_encoded() {
    let manifest = sample();
    let bytes = manifest.encode().unwrap();
    assert_eq!(Manifest::decode(&bytes), Ok(manifest.clone()));
    assert_eq!(manifest.encode().unwrap(), bytes);
    let id = ManifestId::of(&bytes);
    assert_eq!(Manifest::decode_as(&id, &bytes), Ok(manifest));
    let other = ManifestId::of(b"");
    assert_eq!(
        Manifest::decode_as(&other, &bytes),
        Err(ManifestError::Hash { expected: other, found: id })
    );
}

#[test]
fn a_change_of_one_byte_of_content_changes_the_id() {
    let id = |manifest: &Manifest| ManifestId::of(&manifest.encode().unwrap());
    let mut kernel = noise(2, 9000);
    let before = id(&manifest(&kernel, &[1], CHUNK));
    kernel[8999] ^= 1;
    assert_ne!(id(&manifest(&kernel, &[1], CHUNK)), before);
}

#[test]
fn cut_anywhere_it_is_refused() {
    let bytes = sample().encode().unwrap();
    for length in 0..bytes.len() {
        Manifest::decode(&bytes[..length]).unwrap_err();
    }
    Manifest::decode(&[&bytes[..], &[0]].concat()).unwrap_err();
}

#[test]
fn chunks_tile_their_segment() {
    let manifest = sample();
    for (index, segment) in manifest.segments.iter().enumerate() {
        let mut end = 0;
        for chunk in manifest.chunks_of(index) {
            assert_eq!(chunk.offset, end);
            assert_eq!(manifest.chunk(chunk.index), Some(chunk));
            assert_eq!(manifest.segment_of(chunk.index), Some(index));
            end += u64::from(chunk.length);
        }
        assert_eq!(end, segment.data_length);
    }
    assert_eq!(manifest.chunks_of(1).filter(|chunk| chunk.entry.zero).count(), 1);
    assert_eq!(manifest.chunks_of(2).count(), 0);
    assert_eq!(manifest.chunk(9), None);
}

#[test]
fn every_rule_is_kept_by_decode() {
    let good = sample();
    let refused = |from: &str, to: &str| {
        Manifest::decode(&with_header(&good, from, to)).unwrap_err().to_string()
    };
    for (from, to, error) in [
        ("\"chunk_size\":4096", "\"chunk_size\":4095", "chunk size 4095"),
        ("\"chunk_size\":4096", "\"chunk_size\":2097152", "chunk size 2097152"),
        ("\"chunk_size\":4096", "\"chunk_size\":8192", "segment 0: has 3 chunks"),
        ("\"data_length\":9000", "\"data_length\":9001", "9001 bytes of data for 9000 of memory"),
        ("\"data_length\":9000", "\"data_length\":18446744073709551615", "of data"),
        ("\"memory_length\":9000", "\"memory_length\":18446744073709551615", "is 18446744073709"),
        ("\"memory_length\":9000", "\"memory_length\":68719476736", "fill 6871949"),
        ("\"first_chunk\":3", "\"first_chunk\":2", "segment 1: begins with chunk 2, not 3"),
        ("\"chunk_count\":3", "\"chunk_count\":4294967295", "4294967295 chunks"),
        ("\"address\":16777216", "\"address\":18446744073709551615", "beyond the address space"),
        ("\"linux64\":16777216", "\"linux64\":16786216", "64-bit entry 0x1002328"),
        ("\"linux64\":16777216", "\"linux64\":16777215", "64-bit entry 0xffffff"),
        ("\"linux64\":16777216", "\"linux64\":null", "no entry"),
        ("\"pvh32\":null", "\"pvh32\":0", "PVH entry 0x0"),
        ("\"cmdline_max\":2047", "\"cmdline_max\":12", "13 bytes long"),
        ("console", "\\u0000console", "a NUL at byte 0"),
        ("\"align\":2097152", "\"align\":3", "alignment 0x3"),
        ("\"align\":2097152", "\"align\":0", "alignment 0x0"),
        ("\"limit\":4294967296", "\"limit\":20556", "cannot lie below"),
        ("\"kind\":\"kernel\"", "\"kind\":\"initrd\"", "segment 1 is a second ramdisk"),
        ("\"kind\":\"initrd\"", "\"kind\":\"kernel\"", "segment 1: is part of the kernel"),
        ("x86_64", "vax", "header: unknown variant `vax`"),
        ("\"notes\"", "\"more\":[],\"notes\"", "header: unknown field `more`"),
        ("{", "[", "header:"),
    ] {
        let message = refused(from, to);
        assert!(message.contains(error), "{from} -> {to}: {message}");
    }
}

#[test]
fn overlaps_and_counts_are_refused() {
    let mut overlapping = sample();
    overlapping.segments[1].placement = Placement::Fixed { address: KERNEL_ADDRESS + 8999 };
    assert_eq!(
        overlapping.encode(),
        Err(ManifestError::Overlap { first: 0, second: 1, address: KERNEL_ADDRESS + 8999 })
    );
    overlapping.segments[1].placement = Placement::Fixed { address: KERNEL_ADDRESS + 9000 };
    assert!(overlapping.encode().is_ok());

    let mut short = sample();
    short.chunks.pop();
    assert_eq!(short.encode(), Err(ManifestError::ChunkCount { segments: 9, table: 8 }));

    let mut empty = sample();
    empty.segments.clear();
    assert_eq!(empty.encode(), Err(ManifestError::SegmentCount(0)));
    empty.segments = vec![sample().segments[0].clone(); 65];
    assert_eq!(empty.encode(), Err(ManifestError::SegmentCount(65)));

    let mut zero = sample();
    zero.chunks[2].zero = true;
    assert_eq!(zero.encode(), Err(ManifestError::ZeroChunk(2)));

    let mut long = sample();
    long.notes = vec!["x".repeat(1 << 20)];
    assert!(matches!(long.encode(), Err(ManifestError::HeaderLength(_))));
}

#[test]
fn counts_beyond_the_input_are_refused_unallocated() {
    let mut bytes = sample().encode().unwrap();
    bytes[16..20].fill(0xff);
    assert!(matches!(Manifest::decode(&bytes), Err(ManifestError::Length { .. })));
    bytes[12..16].fill(0xff);
    assert_eq!(Manifest::decode(&bytes), Err(ManifestError::HeaderLength(u64::from(u32::MAX))));
    bytes[8] = 3;
    assert_eq!(Manifest::decode(&bytes), Err(ManifestError::Version(3)));
    bytes[0] = 0;
    assert!(matches!(Manifest::decode(&bytes), Err(ManifestError::Magic(_))));
}

#[test]
fn a_chunk_is_told_from_any_other() {
    for content in [noise(1, 4096), vec![0; 4096], vec![0; 1 << 20], noise(3, 1)] {
        let entry = ChunkEntry::of(&content);
        assert!(entry.has_key(&content) && entry.has_checksum(&content));
        for position in [0, content.len() / 2, content.len() - 1] {
            let mut other = content.clone();
            other[position] ^= 1;
            assert!(!entry.has_key(&other) && !entry.has_checksum(&other));
        }
    }
    assert!(ChunkEntry::of(&[0; 5000]).zero && !ChunkEntry::of(&[1]).zero);
}

fn any_manifest() -> impl Strategy<Value = Manifest> {
    let sizes = (1usize..40_000, 0usize..40_000, 0u32..9);
    (sizes, any::<u64>(), ".{0,40}", proptest::collection::vec(".{0,40}", 0..5)).prop_map(
        |((kernel, initrd, shift), seed, cmdline, notes)| {
            let mut kernel = noise(seed, kernel);
            if seed % 3 == 0 {
                let half = kernel.len() / 2;
                kernel[half..].fill(0);
            }
            let initrd = noise(seed ^ 1, initrd);
            let mut made = manifest(&kernel, &initrd, MIN_CHUNK_SIZE << shift);
            if initrd.is_empty() {
                made.segments.pop();
            } else {
                made.segments[1].memory_length += seed % 5000;
            }
            made.kernel.setup_header = (seed % 2 == 0).then(|| noise(seed, 120));
            made.cmdline = cmdline.replace('\0', " ");
            made.notes = notes;
            made
        },
    )
}

proptest! {
    #[test]
    fn any_manifest_survives(manifest in any_manifest()) {
        let bytes = manifest.encode().unwrap();
        prop_assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
    }

    #[test]
    fn hostile_bytes_never_panic(
        manifest in any_manifest(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = manifest.encode().unwrap();
        for (index, value) in changes {
            let position = index.index(bytes.len().min(1200));
            bytes[position] = value;
        }
        if let Ok(decoded) = Manifest::decode(&bytes) {
            // Whatever passes keeps the rules, so it can be written again.
            prop_assert!(decoded.encode().is_ok());
        }
        let _ = Manifest::decode(&bytes[8..]);
    }
}

/// The sample with a disk of these bytes.
fn with_disk(data: &[u8]) -> Manifest {
    let mut manifest = sample();
    let chunks: Vec<_> = data.chunks(4096).map(ChunkEntry::of).collect();
    let length = u64::try_from(data.len()).unwrap();
    manifest.segments.push(Segment {
        kind: SegmentKind::Block,
        placement: Placement::Device,
        data_length: length,
        memory_length: length,
        first_chunk: u32::try_from(manifest.chunks.len()).unwrap(),
        chunk_count: u32::try_from(chunks.len()).unwrap(),
    });
    manifest.chunks.extend(chunks);
    manifest
}

#[test]
fn a_disk_is_a_segment_that_no_load_brings() {
    let manifest = with_disk(&noise(3, 9 * 512));
    let bytes = manifest.encode().unwrap();
    assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
    assert_eq!(manifest.disk().unwrap().0, 2);
    assert_eq!(manifest.loaded_bytes(), sample().loaded_bytes());
    assert_eq!(manifest.data_bytes(), manifest.loaded_bytes() + 9 * 512);
}

#[test]
fn programs_that_know_no_disks_refuse_an_image_with_one_and_read_all_others() {
    let version = |bytes: &[u8]| u32::from_le_bytes(bytes[8..12].try_into().unwrap());
    let mut plain = sample().encode().unwrap();
    let mut disk = with_disk(&noise(3, 512)).encode().unwrap();
    assert_eq!((version(&plain), version(&disk)), (1, 2));
    plain[8] = 2;
    disk[8] = 1;
    assert_eq!(Manifest::decode(&plain), Err(ManifestError::DiskVersion { version: 2 }));
    assert_eq!(Manifest::decode(&disk), Err(ManifestError::DiskVersion { version: 1 }));
}

#[test]
fn a_disk_keeps_the_rules_of_disks() {
    let good = with_disk(&noise(3, 1024));
    let mut second = good.clone();
    second.segments.push(good.segments[2].clone());
    second.chunks.push(second.chunks[second.chunks.len() - 1]);
    second.segments[3].first_chunk = u32::try_from(good.chunks.len()).unwrap();
    assert_eq!(second.encode(), Err(ManifestError::SecondDisk(3)));
    let refused = |change: fn(&mut Segment)| {
        let mut bad = good.clone();
        change(&mut bad.segments[2]);
        matches!(bad.encode(), Err(ManifestError::Segment { segment: 2, .. }))
    };
    assert!(refused(|disk| disk.placement = Placement::Fixed { address: 0 }));
    assert!(refused(|disk| disk.kind = SegmentKind::Initrd));
    assert!(refused(|disk| disk.data_length -= 1));
    assert!(refused(|disk| disk.memory_length += 512));
    assert!(refused(|disk| {
        disk.data_length = (u64::from(MAX_DISK_CHUNKS) + 1) * 4096;
        disk.memory_length = disk.data_length;
        disk.chunk_count = MAX_DISK_CHUNKS + 1;
    }));
}
