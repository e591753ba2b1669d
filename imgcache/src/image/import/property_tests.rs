//! Arbitrary and damaged files: import never panics, and what it accepts is sound.

use proptest::prelude::*;

use super::testing::{ALL_COMPRESSIONS, BzImageBuilder, ElfBuilder, compress, cpio_archive};
use super::{ImportOptions, import_initrd, import_kernel};

/// Limits low enough for many cases, and both ways to import.
fn options() -> [ImportOptions; 2] {
    [false, true].map(|as_is| ImportOptions {
        as_is,
        max_kernel_size: 1 << 24,
        max_initrd_size: 1 << 22,
        ..ImportOptions::default()
    })
}

/// Imports `file` as a kernel and checks what every accepted kernel promises.
fn check_kernel(file: &[u8]) {
    for options in options() {
        let Ok(kernel) = import_kernel(&file, &options) else { continue };
        let mut end = 1 << 20;
        let mut total = 0;
        for segment in &kernel.segments {
            assert!(segment.address >= end, "{kernel:?}");
            assert!(segment.data.len() as u64 <= segment.memory_length, "{kernel:?}");
            assert!(segment.memory_length > 0, "{kernel:?}");
            end = segment.address.checked_add(segment.memory_length).unwrap();
            total += segment.memory_length;
        }
        assert!(total <= options.max_kernel_size, "{kernel:?}");
        let entries = [kernel.entries.linux64, kernel.entries.pvh32];
        assert!(entries.iter().any(Option::is_some), "{kernel:?}");
        for entry in entries.into_iter().flatten() {
            let is_in = |s: &super::KernelSegment| (s.address..s.end()).contains(&entry);
            assert!(kernel.segments.iter().any(is_in), "{kernel:?}");
        }
    }
}

/// Imports `file` as a ramdisk and checks what every accepted ramdisk promises.
fn check_initrd(file: &[u8]) {
    for options in options() {
        let mut written = Vec::new();
        let Ok(initrd) = import_initrd(&file, &options, &mut written) else { continue };
        assert_eq!(initrd.length, written.len() as u64);
        assert!(initrd.length <= options.max_initrd_size);
        let mut end = 0;
        for part in &initrd.parts {
            assert!(part.offset >= end && part.length > 0, "{initrd:?}");
            end = part.offset + part.length;
        }
        assert!(end <= file.len() as u64, "{initrd:?}");
        if !options.as_is {
            // Importing the result changes nothing any more.
            let mut again = Vec::new();
            import_initrd(&written, &options, &mut again).unwrap();
            assert!(again == written);
        }
    }
}

/// Changes to a file: bytes overwritten with extreme or arbitrary numbers, and a cut.
fn damage() -> impl Strategy<Value = (Vec<(usize, u32)>, Option<usize>)> {
    let number = prop_oneof![
        any::<u32>(),
        prop::sample::select(vec![0, 1, 0x7fff_ffff, u32::MAX, u32::MAX - 3, 0x10_0000]),
    ];
    (
        prop::collection::vec((any::<usize>(), number), 0..4),
        prop::option::weighted(0.2, any::<usize>()),
    )
}

fn apply(file: &mut Vec<u8>, (changes, cut): &(Vec<(usize, u32)>, Option<usize>)) {
    for (offset, number) in changes {
        let offset = offset % file.len();
        for (byte, new) in file[offset..].iter_mut().zip(number.to_le_bytes()) {
            *byte = new;
        }
    }
    if let Some(length) = cut {
        file.truncate(length % file.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_bytes(
        magic in prop::sample::select(vec![
            &b""[..], b"\x7fELF\x02\x01\x01", b"070701", b"\x1f\x8b\x08", b"\xfd7zXZ\0",
            b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18", b"\x5d\0\0", b"BZh9",
        ]),
        bytes in prop::collection::vec(any::<u8>(), 0..2048),
    ) {
        let file = [magic, &bytes].concat();
        check_kernel(&file);
        check_initrd(&file);
    }

    #[test]
    fn damaged_executables(damage in damage()) {
        let mut file = ElfBuilder::linux().build();
        apply(&mut file, &damage);
        check_kernel(&file);
        for compression in ALL_COMPRESSIONS {
            let mut content = file.clone();
            content.push(1);
            check_kernel(&BzImageBuilder::around(content, compression).build());
        }
    }

    #[test]
    fn damaged_bzimages(damage in damage(), compression in prop::sample::select(&ALL_COMPRESSIONS[..])) {
        let mut file = BzImageBuilder::linux(compression).build();
        apply(&mut file, &damage);
        check_kernel(&file);
    }

    #[test]
    fn damaged_ramdisks(
        damage in damage(),
        compression in prop::sample::select(&ALL_COMPRESSIONS[..]),
        content in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let archive = cpio_archive(&content);
        let mut raw = archive.clone();
        apply(&mut raw, &damage);
        check_initrd(&raw);
        check_initrd(&compress(compression, &raw));
        let mut file = [&archive[..], &compress(compression, &archive)].concat();
        apply(&mut file, &damage);
        check_initrd(&file);
    }

    #[test]
    fn arbitrary_program_headers(
        loads in prop::collection::vec((0_u64..0x40_0000, 0_usize..64, 0_u64..0x1_0000), 0..6),
        entry in 0_u64..0x40_0000,
    ) {
        let mut elf = ElfBuilder::linux();
        elf.entry = entry;
        elf.parts.extend(loads.into_iter().map(|(address, length, memory)| {
            super::testing::Part::load(address, vec![7; length], memory)
        }));
        check_kernel(&elf.build());
    }
}
