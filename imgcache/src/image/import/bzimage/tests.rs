use super::super::testing::{
    ALL_COMPRESSIONS, BZIMAGE_PAYLOAD, BZIMAGE_SETUP, BzImageBuilder, ElfBuilder, LOAD_ADDRESS,
    PVH_ENTRY, put,
};
use super::super::{ImportOptions, import_kernel};
use super::*;

fn import(image: &[u8]) -> Result<ImportedKernel, ImportError> {
    import_kernel(&image, &ImportOptions::default())
}

fn import_kept(image: &[u8]) -> Result<ImportedKernel, ImportError> {
    import_kernel(&image, &ImportOptions { as_is: true, ..ImportOptions::default() })
}

/// A valid image with other bytes at `offset`.
fn changed(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = BzImageBuilder::linux(Compression::Gzip).build();
    put(&mut image, offset, bytes);
    image
}

#[test]
fn the_payload_of_every_compression_becomes_the_kernel() {
    let plain = import(&ElfBuilder::linux().build()).unwrap();
    for compression in ALL_COMPRESSIONS {
        let image = BzImageBuilder::linux(compression).build();
        let kernel = import(&image).unwrap();
        assert_eq!(kernel.format, KernelFormat::BzImage);
        assert_eq!(kernel.compression, Some(compression));
        assert_eq!(kernel.segments, plain.segments);
        let entries = BootEntries { linux64: Some(LOAD_ADDRESS), pvh32: Some(PVH_ENTRY) };
        assert_eq!(kernel.entries, entries);
        assert_eq!(kernel.setup_header.as_deref(), Some(&image[0x1f1..0x26c]));
        assert_eq!((kernel.initrd_addr_max, kernel.cmdline_max), (0x7fff_ffff, 2047));
        assert!(kernel.can_load_initrd_above_4g);
        assert_eq!(kernel.version.as_deref(), Some("6.1.0-test"));
        let notes = kernel.notes.join("\n");
        assert!(notes.contains("protocol 2.15"), "{notes}");
        assert!(notes.contains(&format!("unpacked the {compression} payload at 0x820")), "{notes}");
        assert!(notes.contains("ignored 11 bytes behind the ELF"), "{notes}");
        assert!(!notes.contains("behind the payload"), "{notes}");
    }
}

#[test]
fn as_is_loads_the_protected_mode_kernel() {
    let image = BzImageBuilder::linux(Compression::Xz).build();
    let kernel = import_kept(&image).unwrap();
    let [segment] = kernel.segments.as_slice() else { panic!("{:?}", kernel.segments) };
    assert_eq!((segment.address, segment.memory_length), (LOAD_ADDRESS, 0x10_0000));
    assert!(segment.data == image[BZIMAGE_SETUP..]);
    let entries = BootEntries { linux64: Some(LOAD_ADDRESS + 0x200), pvh32: None };
    assert_eq!((kernel.entries, kernel.compression), (entries, None));
    assert_eq!(kernel.setup_header.as_deref(), Some(&image[0x1f1..0x26c]));
    assert!(kernel.version.is_some());

    let fixed = import_kept(&changed(0x234, &[0])).unwrap();
    assert_eq!(fixed.segments[0].address, 0x10_0000);
    assert_eq!(fixed.entries.linux64, Some(0x10_0200));
}

#[test]
fn every_prefix_is_an_error() {
    for compression in ALL_COMPRESSIONS {
        let image = BzImageBuilder::linux(compression).build();
        for length in 0..image.len() {
            let cut = &image[..length];
            import(cut).unwrap_err();
            import_kept(cut).unwrap_err();
        }
    }
}

#[test]
fn a_payload_cut_inside_a_whole_file_is_an_error() {
    for compression in ALL_COMPRESSIONS {
        let image = BzImageBuilder::linux(compression).build();
        let length: [u8; 4] = image[0x24c..0x250].try_into().unwrap();
        for shorter in 0..u32::from_le_bytes(length) {
            let mut image = image.clone();
            put(&mut image, 0x24c, &shorter.to_le_bytes());
            import(&image).unwrap_err();
        }
    }
}

#[test]
fn headers_that_cannot_be_used_are_named() {
    for (offset, bytes, words) in [
        (0x206, &[0x0b, 0x02][..], "version is 0x20b: the 64-bit entry needs protocol 2.12"),
        (0x206, &[0, 0], "version is 0x0"),
        (0x201, &[0x61], "jump is 0x61"),
        (0x201, &[0xff], "jump is 0xff"),
        (0x211, &[0], "zImage"),
        (0x236, &[2], "32-bit kernel"),
        (0x24c, &[0; 4], "does not tell where its payload is"),
        (0x248, &[0xff; 4], "payload_offset is 0xffffffff"),
        (0x24c, &[0xff; 4], "payload_length is 0xffffffff"),
        (0x248, &[0; 4], "no known compression"),
        (0x1f4, &[0xff; 4], "the protected-mode kernel at offset 0x600 is 68719476720 bytes long"),
        (0x1f1, &[0xff], "the protected-mode kernel at offset 0x20000"),
    ] {
        let message = import(&changed(offset, bytes)).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn as_is_checks_where_it_would_load() {
    for (offset, bytes, words) in [
        (0x258, &0xf_f000_u64.to_le_bytes()[..], "below 1 MiB"),
        (0x258, &(LOAD_ADDRESS + 0x1000).to_le_bytes(), "kernel_alignment is 0x200000"),
        (0x258, &[0xff; 8], "overflows"),
        (0x230, &[0; 4], "kernel_alignment is 0x0"),
        (0x260, &[0xff; 4], "larger than the limit"),
        (0x1f4, &[0x20, 0, 0, 0], "too short"),
    ] {
        let message = import_kept(&changed(offset, bytes)).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn zero_setup_sectors_stand_for_four() {
    let image = BzImageBuilder::linux(Compression::Zstd).build();
    let mut old = image[..BZIMAGE_SETUP].to_vec();
    old[0x1f1] = 0;
    old.resize(5 * 512, 0);
    old.extend_from_slice(&image[BZIMAGE_SETUP..]);
    assert_eq!(import(&old).unwrap().segments, import(&image).unwrap().segments);
}

#[test]
fn a_payload_of_another_length_than_recorded_is_damaged() {
    for compression in ALL_COMPRESSIONS.into_iter().filter(|c| *c != Compression::Gzip) {
        let mut builder = BzImageBuilder::linux(compression);
        builder.recorded_length += 1;
        let error = import(&builder.build()).unwrap_err();
        assert!(matches!(error, ImportError::UnpackedLength { offset: 0x820, .. }), "{error}");
    }
}

#[test]
fn a_payload_that_is_no_kernel_is_named() {
    let mut arm = vec![0; 64];
    put(&mut arm, 0x38, b"ARM\x64");
    let error = import(&BzImageBuilder::around(arm, Compression::Gzip).build()).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("inside the gzip data at offset 0x820"), "{message}");
    assert!(message.contains("aarch64"), "{message}");

    let elf = ElfBuilder::linux().build();
    let mut raw = changed(BZIMAGE_SETUP + BZIMAGE_PAYLOAD, &[0; 8]);
    put(&mut raw, BZIMAGE_SETUP + BZIMAGE_PAYLOAD, &elf[..8]);
    let message = import(&raw).unwrap_err().to_string();
    assert!(message.contains("not compressed: use as-is"), "{message}");
}

#[test]
fn a_bomb_stops_at_the_limit() {
    let options = ImportOptions { max_kernel_size: 1 << 20, ..ImportOptions::default() };
    for compression in ALL_COMPRESSIONS {
        let bomb = BzImageBuilder::around(vec![0; 32 << 20], compression).build();
        let error = import_kernel(&bomb, &options).unwrap_err();
        assert!(matches!(error, ImportError::TooLarge { limit: 0x10_0000, .. }), "{error}");
    }
}

#[test]
fn the_version_is_optional_and_printable() {
    assert_eq!(import(&changed(0x20e, &[0, 0])).unwrap().version.as_deref(), Some("6.1.0-test"));
    assert!(import(&changed(0x20e, &[0xff, 0xff])).is_ok());
    let odd = import(&changed(0x280, b"\n\x1b[1m\xff \0")).unwrap();
    assert_eq!(odd.version.as_deref(), Some("[1m\u{fffd}"));
}
