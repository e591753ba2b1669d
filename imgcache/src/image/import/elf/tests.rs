use super::super::testing::{ElfBuilder, LOAD_ADDRESS, PVH_ENTRY, Part, note, put};
use super::super::{ImportOptions, import_kernel};
use super::*;

fn import(elf: &ElfBuilder) -> Result<ImportedKernel, ImportError> {
    import_bytes(&elf.build())
}

fn import_bytes(image: &[u8]) -> Result<ImportedKernel, ImportError> {
    import_kernel(&image, &ImportOptions::default())
}

#[test]
fn segments_are_sorted_and_stripped_of_trailing_zeros() {
    let kernel = import(&ElfBuilder::linux()).unwrap();
    assert_eq!(kernel.entries, BootEntries { linux64: Some(LOAD_ADDRESS), pvh32: Some(PVH_ENTRY) });
    let [text, bss] = kernel.segments.as_slice() else { panic!("{:?}", kernel.segments) };
    assert_eq!((text.address, text.memory_length), (LOAD_ADDRESS, 0x2000));
    assert!(text.data.starts_with(&[0x90; 64]) && text.data.ends_with(b"(builder)\n"));
    assert_eq!((bss.address, bss.memory_length), (LOAD_ADDRESS + 0x20_0000, 0x3000));
    assert!(bss.data.is_empty());
    assert_eq!(kernel.version.as_deref(), Some("6.1.0-test"));
}

#[test]
fn every_prefix_is_an_error() {
    let image = ElfBuilder::linux().build();
    assert!(import_bytes(&image).is_ok());
    for length in 0..image.len() {
        import_bytes(&image[..length]).unwrap_err();
    }
}

#[test]
fn bytes_behind_the_executable_are_told() {
    let mut image = ElfBuilder::linux().build();
    image.extend_from_slice(&[1; 77]);
    let kernel = import_bytes(&image).unwrap();
    assert!(kernel.notes.iter().any(|note| note.contains("ignored 77 bytes")), "{kernel:?}");
}

#[test]
fn headers_of_other_machines_and_files_are_refused() {
    let image = ElfBuilder::linux().build();
    for (offset, value, field, words) in [
        (4, 1, "EI_CLASS", "64-bit"),
        (5, 2, "EI_DATA", "little-endian"),
        (6, 0, "EI_VERSION", "version"),
        (16, 1, "e_type", "module"),
        (16, 3, "e_type", "position-independent"),
        (18, 183, "e_machine", "aarch64"),
        (54, 32, "e_phentsize", "56"),
        (57, 1, "e_phnum", "128"),
    ] {
        let mut image = image.clone();
        image[offset] = value;
        let message = import_bytes(&image).unwrap_err().to_string();
        assert!(message.contains(field) && message.contains(words), "{message}");
    }
}

#[test]
fn extreme_numbers_in_the_headers_are_errors() {
    let image = ElfBuilder::linux().build();
    for number in [0xffff_ffff, u64::MAX, u64::MAX - 0xfff, 1 << 63] {
        // e_phoff, then offset, p_filesz of the loads and of the note.
        for offset in [32, 64 + 8, 64 + 32, 64 + 56 + 8, 64 + 56 + 32, 64 + 112 + 32] {
            let mut image = image.clone();
            put(&mut image, offset, &number.to_le_bytes());
            let error = import_bytes(&image).unwrap_err();
            assert!(matches!(error, ImportError::Truncated { .. }), "{error}");
        }
    }
    for (offset, number) in
        [(64 + 24, u64::MAX - 7), (64 + 24, u64::MAX), (64 + 40, u64::MAX), (64 + 40, 7)]
    {
        let mut image = image.clone();
        put(&mut image, offset, &number.to_le_bytes());
        let error = import_bytes(&image).unwrap_err();
        assert!(matches!(error, ImportError::ProgramHeader { index: 0, .. }), "{error}");
    }
    let mut huge = image;
    put(&mut huge, 64 + 40, &(1_u64 << 40).to_le_bytes());
    assert!(matches!(import_bytes(&huge).unwrap_err(), ImportError::TooLarge { .. }));
}

#[test]
fn segments_must_be_disjoint_and_above_the_first_mebibyte() {
    let with = |address, length| {
        let mut elf = ElfBuilder::linux();
        elf.parts.push(Part::load(address, vec![1], length));
        import(&elf)
    };
    assert!(with(LOAD_ADDRESS + 0x2000, 0x1000).is_ok(), "adjacent segments are disjoint");
    for (address, length) in [
        (LOAD_ADDRESS, 1),
        (LOAD_ADDRESS + 0x1fff, 1),
        (LOAD_ADDRESS - 0x1000, 0x1001),
        (LOAD_ADDRESS - 0x1000, 0x10_0000),
    ] {
        let error = with(address, length).unwrap_err();
        assert!(matches!(error, ImportError::Overlap { .. }), "{error}");
    }
    let low = with(0xf_ffff, 1).unwrap_err().to_string();
    assert!(low.contains("p_paddr is 0xfffff: below 1 MiB"), "{low}");
    let mut nothing = ElfBuilder::linux();
    nothing.parts.retain(|part| part.kind == PT_NOTE);
    assert!(matches!(import(&nothing).unwrap_err(), ImportError::NoSegments));
}

#[test]
fn entries_must_be_in_bytes_that_are_loaded() {
    for entry in [0, LOAD_ADDRESS - 1, LOAD_ADDRESS + 0x1fff, u64::MAX] {
        let mut elf = ElfBuilder { entry, ..ElfBuilder::linux() };
        let kernel = import(&elf).unwrap();
        assert_eq!(kernel.entries, BootEntries { linux64: None, pvh32: Some(PVH_ENTRY) });
        elf.parts.retain(|part| part.kind != PT_NOTE);
        let error = import(&elf).unwrap_err();
        assert!(
            matches!(error, ImportError::EntryOutside { kind: "64-bit", address } if address == entry)
        );
    }
    let mut elf = ElfBuilder::linux();
    elf.parts[1].data = note(b"Xen\0", 18, &[0, 0, 0, 0x40]);
    let error = import(&elf).unwrap_err();
    assert!(
        matches!(error, ImportError::EntryOutside { kind: "PVH", address: 0x4000_0000 }),
        "{error}"
    );
}

/// The PVH entry that an executable with these notes has.
fn pvh_of(notes: Vec<u8>) -> Result<Option<u64>, ImportError> {
    let mut elf = ElfBuilder::linux();
    elf.parts[1].data = notes;
    import(&elf).map(|kernel| kernel.entries.pvh32)
}

#[test]
fn pvh_entries_have_4_or_8_bytes_and_the_name_xen() {
    let entry = PVH_ENTRY.to_le_bytes();
    assert_eq!(pvh_of(note(b"Xen\0", 18, &entry[..4])).unwrap(), Some(PVH_ENTRY));
    assert_eq!(pvh_of(note(b"Xen\0", 18, &entry)).unwrap(), Some(PVH_ENTRY));
    assert_eq!(pvh_of(note(b"Xen\0", 17, &entry)).unwrap(), None);
    assert_eq!(pvh_of(note(b"Xem\0", 18, &entry)).unwrap(), None);
    assert_eq!(pvh_of(note(b"Xen\0\0", 18, &entry)).unwrap(), None);
    for description in [&[0; 5][..], &[], &u64::MAX.to_le_bytes()] {
        let error = pvh_of(note(b"Xen\0", 18, description)).unwrap_err();
        assert!(matches!(error, ImportError::Note { offset: 240.., .. }), "{error}");
    }
}

#[test]
fn hostile_notes_end() {
    // Notes of no size at all, by the thousand, then the real one.
    let mut notes = vec![0; 12 * 10_000];
    notes.extend_from_slice(&note(b"Xen\0", 18, &PVH_ENTRY.to_le_bytes()));
    assert_eq!(pvh_of(notes).unwrap(), Some(PVH_ENTRY));
    assert_eq!(pvh_of(vec![0; 11]).unwrap(), None, "a rest too short for a note");
    for field in [0, 4] {
        for size in [u32::MAX, u32::MAX - 3, u32::MAX - 11, 0x7fff_ffff, 64] {
            let mut notes = note(b"Xen\0", 18, &[0; 4]);
            put(&mut notes, field, &size.to_le_bytes());
            let error = pvh_of(notes).unwrap_err();
            assert!(matches!(error, ImportError::Note { .. }), "{error}");
        }
    }
    let error = pvh_of(vec![0; (1 << 20) + 1]).unwrap_err();
    assert!(error.to_string().contains("more than 1 MiB of notes"), "{error}");
}
