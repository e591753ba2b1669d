use super::super::testing::{cpio_archive, cpio_entry, put};
use super::*;

/// Walks over `stream` in pieces of `piece` bytes. Returns the output and the walker.
fn walk(stream: &[u8], piece: usize) -> Result<(Vec<u8>, Walker), ImportError> {
    let mut written = Vec::new();
    let mut output = Output::new(&mut written, 1 << 20);
    let mut walker = Walker::new(0);
    for bytes in stream.chunks(piece) {
        let taken = walker.feed(bytes, &mut output)?;
        if taken < bytes.len() {
            return Err(not_cpio(walker.position(), &bytes[taken..]));
        }
    }
    walker.finish()?;
    Ok((written, walker))
}

#[test]
fn pieces_of_any_size_give_the_same_walk() {
    let archive = cpio_archive(b"hello");
    let mut stream = archive.clone();
    stream.resize(stream.len().next_multiple_of(512), 0);
    stream.extend_from_slice(&archive);
    stream.extend_from_slice(&[0; 3]);
    let expected = [&archive[..], &archive].concat();
    for piece in [1, 2, 3, 7, 110, 111, 512, usize::MAX] {
        let (written, walker) = walk(&stream, piece).unwrap();
        assert!(written == expected, "pieces of {piece}");
        assert_eq!((walker.archives, walker.entries), (2, 4));
        assert_eq!(walker.position(), stream.len() as u64);
    }
}

#[test]
fn every_prefix_is_an_error_or_nothing() {
    let archive = cpio_archive(&[0xaa; 50]);
    for length in 1..archive.len() {
        walk(&archive[..length], 64).err().unwrap();
    }
    let (written, walker) = walk(&[0; 100], 64).unwrap();
    assert_eq!((written.len(), walker.archives), (0, 0));
}

#[test]
fn names_may_be_padded_with_zeros_up_to_path_max() {
    for size in [11, 12, 4095, 4096] {
        let mut name = "TRAILER!!!".to_owned();
        name.extend(std::iter::repeat_n('\0', size - 11));
        let (_, walker) = walk(&cpio_entry("070701", &name, 0, b""), 100).unwrap();
        assert_eq!((walker.archives, walker.entries), (1, 0));
    }
}

#[test]
fn header_fields_are_checked_and_named() {
    let entry = cpio_entry("070701", "file", 0o100_644, b"abc");
    let namesize = 6 + 8 * 11;
    for (offset, bytes, words) in [
        (0, &b"070707"[..], "old (odc) cpio archive"),
        (0, b"07070x", "no newc cpio archive at offset 0x0"),
        (6 + 48, b"+0000001", "field filesize is '+0000001'"),
        (6 + 8, b"0000 1A4", "field mode is '0000 1A4': not 8 hexadecimal digits"),
        (namesize, b"00000000", "field namesize is '00000000'"),
        (namesize, b"00001001", "between 1 and 4096"),
        (namesize, b"FFFFFFFF", "field namesize is 'FFFFFFFF'"),
        (110 + 4, b"x", "does not end with a zero byte"),
        (6 + 48, b"FFFFFFFF", "ends at 0x78 without its TRAILER!!!"),
    ] {
        let mut entry = entry.clone();
        put(&mut entry, offset, bytes);
        let message = walk(&entry, 50).err().unwrap().to_string();
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn lower_case_digits_are_digits() {
    let mut archive = cpio_archive(&[1; 0xab]);
    archive.make_ascii_lowercase();
    let trailer = archive.windows(10).position(|w| w == b"trailer!!!").unwrap();
    put(&mut archive, trailer, TRAILER);
    assert_eq!(walk(&archive, 64).unwrap().1.entries, 2);
}

#[test]
fn checksums_of_070702_are_verified() {
    let mut archive = cpio_archive(b"content");
    let content = archive.windows(7).position(|w| w == b"content").unwrap();
    archive[content] ^= 1;
    let error = walk(&archive, 3).err().unwrap();
    assert!(matches!(error, ImportError::CpioChecksum { offset: 116, .. }), "{error}");
}

#[test]
fn archives_start_on_multiples_of_four() {
    let mut stream = cpio_archive(b"x");
    let offset = stream.len() as u64 + 2;
    stream.extend_from_slice(&[0; 2]);
    stream.extend_from_slice(&cpio_archive(b"y"));
    let error = walk(&stream, 64).err().unwrap();
    assert!(matches!(error, ImportError::Misaligned { offset: o } if o == offset), "{error}");
}

#[test]
fn nothing_that_is_no_archive_reaches_the_output() {
    let mut written = Vec::new();
    let mut output = Output::new(&mut written, 1 << 20);
    let mut walker = Walker::new(0);
    assert_eq!(walker.feed(b"\x7fELF", &mut output).unwrap(), 0);
    walker.feed(&[b'0'; 200], &mut output).unwrap_err();
    assert!(written.is_empty());
}

#[test]
fn padding_counts_towards_the_limit() {
    let error = walk(&vec![0; (1 << 20) + 1], 4096).err().unwrap();
    assert!(matches!(error, ImportError::TooLarge { limit: 0x10_0000, .. }), "{error}");
}
