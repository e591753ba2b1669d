use super::super::testing::{ALL_COMPRESSIONS, compress, cpio_archive};
use super::*;

fn import(file: &[u8]) -> Result<(ImportedInitrd, Vec<u8>), ImportError> {
    let mut written = Vec::new();
    let initrd = import_initrd(&file, &ImportOptions::default(), &mut written)?;
    assert_eq!(initrd.length, written.len() as u64);
    assert_eq!(initrd.length, initrd.parts.iter().map(|p| p.unpacked_length).sum::<u64>());
    Ok((initrd, written))
}

#[test]
fn microcode_first_then_the_compressed_main_archive() {
    let early = cpio_archive(&[0x11; 700]);
    let main = cpio_archive(&vec![0x22; 300_000]);
    let raw_length = early.len().next_multiple_of(512);
    for compression in ALL_COMPRESSIONS {
        let mut file = early.clone();
        file.resize(raw_length, 0);
        let packed = compress(compression, &main);
        file.extend_from_slice(&packed);
        let (initrd, written) = import(&file).unwrap();
        assert!(written == [&early[..], &main].concat(), "{compression}");
        let part = |compression, offset: usize, length: usize, unpacked: usize| InitrdPart {
            compression,
            offset: offset as u64,
            length: length as u64,
            unpacked_length: unpacked as u64,
        };
        let parts = [
            part(None, 0, raw_length, early.len()),
            part(Some(compression), raw_length, packed.len(), main.len()),
        ];
        assert_eq!(initrd.parts, parts, "{compression}");
        assert_eq!(initrd.notes.len(), 2);
        assert!(initrd.notes[1].contains("2 entries"), "{:?}", initrd.notes);
    }
}

#[test]
fn any_order_and_any_padding_unpacks_on_multiples_of_four() {
    let archives: Vec<_> =
        (0..7_u8).map(|n| cpio_archive(&vec![n; 100 + usize::from(n)])).collect();
    let mut file = vec![0; 9];
    for (archive, compression) in archives.iter().zip(ALL_COMPRESSIONS) {
        file.extend_from_slice(&compress(compression, archive));
        // Linux's lz4 needs four zeros to see its end.
        file.extend_from_slice(&[0; 5]);
    }
    file.resize(file.len().next_multiple_of(4), 0);
    file.extend_from_slice(&archives[6]);
    let (initrd, written) = import(&file).unwrap();
    assert!(written == archives.concat());
    assert_eq!(initrd.parts.len(), 7);
    for part in &initrd.parts {
        assert!(part.unpacked_length.is_multiple_of(4));
    }
}

#[test]
fn an_archive_may_span_streams_of_one_format() {
    let archive = cpio_archive(&[7; 5000]);
    for compression in ALL_COMPRESSIONS {
        let mut file = Vec::new();
        for piece in archive.chunks(2000) {
            file.extend_from_slice(&compress(compression, piece));
        }
        let (initrd, written) = import(&file).unwrap();
        assert!(written == archive, "{compression}");
        assert_eq!(initrd.parts.len(), 1);
        // The legacy lz4 format joins streams by itself.
        let told = initrd.notes[0].contains(&format!("spans 3 {compression} streams"));
        assert_eq!(told, compression != Compression::Lz4, "{:?}", initrd.notes);
    }
}

#[test]
fn every_prefix_is_an_error() {
    let archive = cpio_archive(&[3; 30]);
    for compression in ALL_COMPRESSIONS {
        let mut file = archive.clone();
        file.extend_from_slice(&compress(compression, &archive));
        for length in 0..file.len() {
            // Between the two parts a ramdisk may end.
            let result = import(&file[..length]);
            assert_eq!(result.is_ok(), length == archive.len(), "{compression} cut at {length}");
        }
    }
}

#[test]
fn as_is_keeps_every_byte_unread() {
    let file = b"neither cpio nor compressed".to_vec();
    let options = ImportOptions { as_is: true, ..ImportOptions::default() };
    let mut written = Vec::new();
    let initrd = import_initrd(&file, &options, &mut written).unwrap();
    assert_eq!(written, file);
    assert_eq!(initrd.length, 27);
    let limited = ImportOptions { max_initrd_size: 26, ..options };
    let error = import_initrd(&file, &limited, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, ImportError::TooLarge { limit: 26, .. }), "{error}");
}

#[test]
fn what_is_no_ramdisk_is_named_with_its_place() {
    let archive = cpio_archive(b"x");
    let behind = |junk: &[u8]| [&archive[..], junk].concat();
    for (file, words) in [
        (vec![], "the ramdisk is empty: 0 bytes"),
        (vec![0; 600], "the ramdisk is empty: 600 bytes"),
        (b"hsqs....".to_vec(), "offset 0x0: it is a squashfs image"),
        (behind(b"\x89LZO\0\r\n\x1a\n"), "offset 0x16c is lzo-compressed"),
        (
            behind(b"hello, world, how are you"),
            "offset 0x16c: its format is not known; the bytes there are hello, world, ho",
        ),
        (behind(b"\x04\x22\x4d\x18"), "lz4 -l"),
        (behind(b"0"), "cpio archive at offset 0x16c ends at 0x16d"),
        (behind(b"0hello"), "no newc cpio archive at offset 0x16c"),
        (compress(Compression::Xz, b"text"), "inside the xz data at offset 0x0: no newc cpio"),
        (compress(Compression::Xz, b""), "inside the xz data at offset 0x0: the ramdisk is empty"),
        (
            compress(Compression::Gzip, &behind(b"junk")),
            "inside the gzip data at offset 0x0: no newc cpio archive at offset 0x16c",
        ),
        (compress(Compression::Zstd, &archive[..300]), "ends at 0x12c without its TRAILER"),
    ] {
        let message = import(&file).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn bombs_stop_at_the_limit() {
    let options = ImportOptions { max_initrd_size: 1 << 20, ..ImportOptions::default() };
    let content = cpio_archive(&vec![0; 8 << 20]);
    let mut padding = cpio_archive(b"");
    padding.resize(8 << 20, 0);
    for compression in ALL_COMPRESSIONS {
        for bomb in [&content, &padding] {
            let file = compress(compression, bomb);
            let error = import_initrd(&file, &options, &mut io::sink()).unwrap_err();
            assert!(matches!(error, ImportError::TooLarge { limit: 0x10_0000, .. }), "{error}");
        }
    }
}

#[test]
fn parts_are_counted() {
    let gzip = compress(Compression::Gzip, &cpio_archive(b""));
    let error = import(&gzip.repeat(MAX_PARTS + 1)).unwrap_err();
    assert!(error.to_string().contains("number of the ramdisk's parts"), "{error}");
    assert_eq!(import(&gzip.repeat(MAX_PARTS)).unwrap().0.parts.len(), MAX_PARTS);
}

#[test]
fn a_sink_that_fails_is_told_apart() {
    let mut full = [0; 10];
    for file in [cpio_archive(b""), compress(Compression::Gzip, &cpio_archive(b""))] {
        let mut sink = &mut full[..];
        let error = import_initrd(&file, &ImportOptions::default(), &mut sink).unwrap_err();
        assert!(matches!(error, ImportError::Sink { .. }), "{error}");
    }
}

#[test]
fn files_are_added_behind_all_archives_and_no_folder_twice() {
    use super::super::added::{AddedContent, AddedFile};
    let program = AddedContent::Program(b"#!".to_vec());
    let added = vec![AddedFile { path: "sbin/agent".into(), content: program }];
    let folder = "sbin";
    for (name, has_folder) in [("./sbin", true), ("/sbin", true), ("sbin", true), ("other", false)]
    {
        let file = AddedFile { path: name.into(), content: AddedContent::Link("usr/sbin".into()) };
        let archive = added_archive(&[file], &BTreeSet::new()).unwrap();
        let expected_folders = if has_folder { vec![folder.to_owned()] } else { Vec::new() };
        let expected = added_archive(&added, &expected_folders.into_iter().collect()).unwrap();
        for compression in ALL_COMPRESSIONS {
            let packed = compress(compression, &archive);
            let options = ImportOptions { added: added.clone(), ..ImportOptions::default() };
            let mut written = Vec::new();
            let initrd = import_initrd(&packed, &options, &mut written).unwrap();
            assert!(written == [&archive[..], &expected].concat(), "{name} {compression}");
            assert_eq!(initrd.length, written.len() as u64);
            assert!(initrd.notes.last().unwrap().contains("sbin/agent"));

            // As it is, it unpacks to the same.
            let options = ImportOptions { as_is: true, ..options };
            let mut written = Vec::new();
            let initrd = import_initrd(&packed, &options, &mut written).unwrap();
            assert_eq!(initrd.length, written.len() as u64);
            assert!(written.starts_with(&packed));
            let (_, unpacked) = import(&written).unwrap();
            assert!(
                unpacked == [&archive[..], &expected].concat(),
                "{name} {compression} as it is"
            );
        }
    }
}
