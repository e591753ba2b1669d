//! The import of a ramdisk: every archive in it unpacked, one behind the other.
//!
//! A ramdisk is what Linux's `init/initramfs.c` takes: newc cpio archives, each raw or compressed,
//! with zero bytes between them; distributions put raw archives with microcode before the
//! compressed main one. A raw archive starts on a multiple of 4 bytes. The result is the same
//! archives, all raw. Memory does not grow with the ramdisk: it is read once and streamed.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Read, Write};

use super::ImportOptions;
use super::added::{added_archive, parents};
use super::compression::{self, Compression};
use super::cpio::Walker;
use super::error::ImportError;
use super::source::{ReadAt, Source, Window};

/// A part of a ramdisk's file: raw archives in a row, or compressed data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitrdPart {
    /// How the part was compressed; none if it was passed through.
    pub compression: Option<Compression>,
    /// Where it starts in the file.
    pub offset: u64,
    /// Its length in the file, the zero bytes behind it included if it is raw.
    pub length: u64,
    /// Its length in the result.
    pub unpacked_length: u64,
}

/// What a ramdisk was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedInitrd {
    /// Its parts, in the order of the file and of the result.
    pub parts: Vec<InitrdPart>,
    /// Length of the result: what was written to the sink.
    pub length: u64,
    /// What was found and decided, in words.
    pub notes: Vec<String>,
}

/// More parts than any ramdisk has; each costs memory and a note.
const MAX_PARTS: usize = 1024;

/// Size of the pieces in which unpacked data is passed on.
const PIECE: usize = 128 << 10;

/// Unpacks the ramdisk in `source` and writes the result to `sink` from start to end. What was
/// written is of no use when an error is returned: archives are checked as they pass.
///
/// # Errors
/// Whatever makes the file no ramdisk, see [`ImportError`]; [`ImportError::Sink`] when `sink`
/// fails.
pub fn import_initrd(
    source: &dyn ReadAt,
    options: &ImportOptions,
    sink: &mut dyn Write,
) -> Result<ImportedInitrd, ImportError> {
    let source = Source::new(source)?;
    let mut output = Output::new(sink, options.max_initrd_size);
    if !options.as_is {
        output.look_for(options);
        let mut initrd = unpack(source, &mut output)?;
        add(options, &output.found.clone(), &mut initrd, &mut output)?;
        return Ok(initrd);
    }
    let mut initrd = pass_through(source, &mut output)?;
    if !options.added.is_empty() {
        // Which folders there are is only known of what is unpacked.
        let mut nothing = io::sink();
        let mut unpacked = Output::new(&mut nothing, options.max_initrd_size);
        unpacked.look_for(options);
        unpack(source, &mut unpacked)?;
        add(options, &unpacked.found, &mut initrd, &mut output)?;
    }
    Ok(initrd)
}

/// Adds the archive of the files that the options name, behind a ramdisk that has the folders `present`.
fn add(
    options: &ImportOptions,
    present: &BTreeSet<String>,
    initrd: &mut ImportedInitrd,
    output: &mut Output<'_>,
) -> Result<(), ImportError> {
    if options.added.is_empty() {
        return Ok(());
    }
    let archive = added_archive(&options.added, present)
        .ok_or(ImportError::TooLarge { what: "a file to add", limit: u64::from(u32::MAX) })?;
    if options.as_is {
        // Linux wants archives on a multiple of 4 bytes, and some decompressors want to see zeros.
        let zeros = [0; 8];
        let odd = output.length % 4;
        let count = if odd == 0 { 4 } else { 8 - odd };
        output.write(prefix(&zeros, count))?;
    }
    let offset = output.length;
    output.write(&archive)?;
    let paths: Vec<_> = options.added.iter().map(|file| file.path.as_str()).collect();
    initrd.notes.push(format!("added to the ramdisk at offset {offset:#x}: {}", paths.join(", ")));
    initrd.length = output.length;
    Ok(())
}

/// Unpacks all parts.
fn unpack(source: Source<'_>, output: &mut Output<'_>) -> Result<ImportedInitrd, ImportError> {
    let mut window = source.window(0, source.length());
    let mut parts = Vec::new();
    let mut notes = Vec::new();
    while window.remaining() > 0 {
        if parts.len() == MAX_PARTS {
            return Err(ImportError::TooLarge {
                what: "the number of the ramdisk's parts",
                limit: MAX_PARTS as u64,
            });
        }
        let (offset, before) = (window.position(), output.length);
        let mut walker = Walker::new(offset);
        walk_raw(&mut window, &mut walker, output)?;
        let compression = if walker.position() > offset {
            None
        } else {
            let head = source.head::<16>("the ramdisk", offset)?;
            let Some(compression) = compression::detect(&head, offset)? else {
                return Err(not_cpio(offset, &head));
            };
            walker = Walker::new(0);
            let streams = unpack_part(compression, &mut window, &mut walker, output)?;
            if streams > 1 {
                notes.push(format!(
                    "the archive at offset {offset:#x} spans {streams} {compression} streams"
                ));
            }
            Some(compression)
        };
        let unpacked_length = output.length - before;
        // Zeros between two compressed parts are no part.
        if compression.is_some() || walker.archives > 0 {
            let length = window.position() - offset;
            notes.push(format!(
                "ramdisk part {} at offset {offset:#x}: {}, {length} bytes, {} entries, \
                 {unpacked_length} bytes unpacked",
                parts.len(),
                compression.map_or_else(|| "raw cpio".to_owned(), |c| format!("{c} cpio")),
                walker.entries,
            ));
            parts.push(InitrdPart { compression, offset, length, unpacked_length });
        }
    }
    if parts.is_empty() {
        return Err(ImportError::EmptyRamdisk { length: source.length() });
    }
    Ok(ImportedInitrd { parts, length: output.length, notes })
}

/// Walks over raw archives and zeros up to something else or the end of the file.
fn walk_raw(
    window: &mut Window<'_>,
    walker: &mut Walker,
    output: &mut Output<'_>,
) -> Result<(), ImportError> {
    loop {
        let offset = window.position();
        let piece = fill(window, offset)?;
        if piece.is_empty() {
            return walker.finish();
        }
        let length = piece.len();
        let taken = walker.feed(piece, output)?;
        window.consume(taken);
        if taken < length {
            return Ok(());
        }
    }
}

/// Unpacks the compressed data at the window's position and walks over the archives in it. An
/// archive that ends in the next stream of the same format is followed there. Returns the number
/// of streams.
fn unpack_part(
    compression: Compression,
    window: &mut Window<'_>,
    walker: &mut Walker,
    output: &mut Output<'_>,
) -> Result<u64, ImportError> {
    let offset = window.position();
    let inside = |source| ImportError::Inside { compression, offset, source: Box::new(source) };
    let mut piece = vec![0; PIECE];
    let mut streams = 0;
    loop {
        streams += 1;
        let unpack = |source| ImportError::Unpack { compression, offset, source };
        let mut decoder = compression::decoder(compression, window).map_err(unpack)?;
        loop {
            let length = decoder.read(&mut piece).map_err(unpack)?;
            if length == 0 {
                break;
            }
            let taken = walker.feed(&piece[..length], output).map_err(|error| match error {
                ImportError::Sink { .. } | ImportError::TooLarge { .. } => error,
                error => inside(error),
            })?;
            if taken < length {
                return Err(inside(not_cpio(walker.position(), &piece[taken..length])));
            }
        }
        drop(decoder);
        let head = window.peek::<8>().map_err(|source| ImportError::Read {
            what: "the ramdisk",
            offset,
            source,
        })?;
        let goes_on = |head: [u8; 8]| matches!(compression::detect(&head, 0), Ok(Some(c)) if c == compression);
        if walker.is_between_archives() || !head.is_some_and(goes_on) {
            break;
        }
    }
    walker.finish().map_err(inside)?;
    if walker.archives == 0 {
        return Err(inside(ImportError::EmptyRamdisk { length: walker.position() }));
    }
    Ok(streams)
}

/// Writes the file as it is.
fn pass_through(
    source: Source<'_>,
    output: &mut Output<'_>,
) -> Result<ImportedInitrd, ImportError> {
    let mut window = source.window(0, source.length());
    loop {
        let offset = window.position();
        let piece = fill(&mut window, offset)?;
        let length = piece.len();
        if length == 0 {
            break;
        }
        output.write(piece)?;
        window.consume(length);
    }
    let length = output.length;
    if length == 0 {
        return Err(ImportError::EmptyRamdisk { length });
    }
    Ok(ImportedInitrd {
        parts: vec![InitrdPart { compression: None, offset: 0, length, unpacked_length: length }],
        length,
        notes: vec!["ramdisk kept as it is, unread: the guest unpacks it".to_owned()],
    })
}

fn fill<'w>(window: &'w mut Window<'_>, offset: u64) -> Result<&'w [u8], ImportError> {
    window.fill_buf().map_err(|source| ImportError::Read { what: "the ramdisk", offset, source })
}

/// Where the archives go. Counts the bytes and stops at the limit.
pub(super) struct Output<'s> {
    sink: &'s mut dyn Write,
    /// Bytes written.
    length: u64,
    /// Bytes seen: those written, and the padding that is dropped.
    seen: u64,
    limit: u64,
    /// Folders that something is to be put into, and those of them that there are.
    wanted: BTreeSet<String>,
    found: BTreeSet<String>,
}

impl<'s> Output<'s> {
    pub(super) fn new(sink: &'s mut dyn Write, limit: u64) -> Self {
        let (wanted, found) = (BTreeSet::new(), BTreeSet::new());
        Self { sink, length: 0, seen: 0, limit, wanted, found }
    }

    /// Looks for the folders that files are to be added to.
    fn look_for(&mut self, options: &ImportOptions) {
        let folders = options.added.iter().flat_map(|file| parents(&file.path));
        self.wanted = folders.map(str::to_owned).collect();
    }

    /// Takes notice of the name of an entry, which may begin with `/` or `./`.
    pub(super) fn notice(&mut self, name: &[u8]) {
        let Ok(name) = std::str::from_utf8(name) else { return };
        let name = name.trim_start_matches("./").trim_matches('/');
        if self.wanted.contains(name) {
            self.found.insert(name.to_owned());
        }
    }

    /// Passes on bytes of an archive.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        self.count(bytes.len())?;
        self.sink.write_all(bytes).map_err(|source| ImportError::Sink { source })?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Counts padding: it is dropped, but must not go on for ever.
    pub(super) fn drop_padding(&mut self, length: usize) -> Result<(), ImportError> {
        self.count(length)
    }

    fn count(&mut self, length: usize) -> Result<(), ImportError> {
        self.seen = self.seen.saturating_add(length as u64);
        if self.seen > self.limit {
            return Err(ImportError::TooLarge { what: "the unpacked ramdisk", limit: self.limit });
        }
        Ok(())
    }
}

/// At most `length` bytes from the start of `bytes`.
pub(super) fn prefix(bytes: &[u8], length: u64) -> &[u8] {
    &bytes[..usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len())]
}

/// The error for `bytes` at `offset`, which are neither an archive nor compressed.
pub(super) fn not_cpio(offset: u64, bytes: &[u8]) -> ImportError {
    let found = match bytes {
        [b'0', b'7', b'0', b'7', b'0', b'7', ..] => {
            "it is an old (odc) cpio archive, Linux wants cpio -H newc"
        }
        [0xc7, 0x71, ..] | [0x71, 0xc7, ..] => {
            "it is a binary cpio archive, Linux wants cpio -H newc"
        }
        [b'h', b's', b'q', b's', ..] => "it is a squashfs image, not an initramfs",
        [b'-', b'r', b'o', b'm', b'1', b'f', b's', ..] => "it is a romfs image, not an initramfs",
        [0x7f, b'E', b'L', b'F', ..] => "it is an ELF file",
        [b'M', b'Z', ..] => "it is an EFI PE image: is it the kernel?",
        _ => "its format is not known",
    };
    ImportError::NotCpio { offset, found, seen: bytes[..bytes.len().min(16)].to_vec() }
}

#[cfg(test)]
mod tests;
