//! Builders of small kernels and ramdisks for the tests.

use std::io::Read;

use liblzma::stream::{LzmaOptions, Stream};

use super::compression::Compression;

pub(super) const ALL_COMPRESSIONS: [Compression; 6] = [
    Compression::Gzip,
    Compression::Xz,
    Compression::Zstd,
    Compression::Lz4,
    Compression::Lzma,
    Compression::Bzip2,
];

/// `data` as one stream of `compression`.
pub(super) fn compress(compression: Compression, data: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    match compression {
        Compression::Gzip => {
            let level = flate2::Compression::default();
            flate2::bufread::GzEncoder::new(data, level).read_to_end(&mut packed).unwrap();
        }
        Compression::Xz => {
            liblzma::bufread::XzEncoder::new(data, 0).read_to_end(&mut packed).unwrap();
        }
        Compression::Lzma => {
            let options = LzmaOptions::new_preset(0).unwrap();
            let stream = Stream::new_lzma_encoder(&options).unwrap();
            liblzma::bufread::XzEncoder::new_stream(data, stream).read_to_end(&mut packed).unwrap();
        }
        Compression::Zstd => {
            packed = ruzstd::encoding::compress_to_vec(
                data,
                ruzstd::encoding::CompressionLevel::Fastest,
            );
        }
        Compression::Lz4 => {
            packed.extend_from_slice(&[0x02, 0x21, 0x4c, 0x18]);
            for block in data.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                packed.extend_from_slice(&u32::try_from(block.len()).unwrap().to_le_bytes());
                packed.extend_from_slice(&block);
            }
        }
        Compression::Bzip2 => {
            let level = bzip2::Compression::fast();
            bzip2::bufread::BzEncoder::new(data, level).read_to_end(&mut packed).unwrap();
        }
    }
    packed
}

pub(super) fn put(image: &mut [u8], offset: usize, bytes: &[u8]) {
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// A program header and what it points to.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) kind: u32,
    pub(super) address: u64,
    pub(super) data: Vec<u8>,
    /// `p_filesz` and `p_memsz` where they are to differ from the length of `data`.
    pub(super) file_length: Option<u64>,
    pub(super) memory_length: Option<u64>,
}

impl Part {
    pub(super) fn load(address: u64, data: Vec<u8>, memory_length: u64) -> Self {
        Self { kind: 1, address, data, file_length: None, memory_length: Some(memory_length) }
    }

    pub(super) fn note(data: Vec<u8>) -> Self {
        Self { kind: 4, address: 0, data, file_length: None, memory_length: None }
    }
}

/// A note of an ELF file.
pub(super) fn note(name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for number in [name.len(), description.len()] {
        note.extend_from_slice(&u32::try_from(number).unwrap().to_le_bytes());
    }
    note.extend_from_slice(&kind.to_le_bytes());
    for part in [name, description] {
        note.extend_from_slice(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// An ELF-64 executable: header, program headers, then the parts one behind the other.
#[derive(Debug, Clone)]
pub(super) struct ElfBuilder {
    pub(super) entry: u64,
    pub(super) parts: Vec<Part>,
}

pub(super) const LOAD_ADDRESS: u64 = 0x100_0000;
pub(super) const PVH_ENTRY: u64 = LOAD_ADDRESS + 0x10;

impl ElfBuilder {
    /// A kernel of two segments and a note, as Linux has them.
    pub(super) fn linux() -> Self {
        let mut text = vec![0x90; 64];
        text.extend_from_slice(b"Linux version %s\0Linux version 6.1.0-test (builder)\n\0");
        text.extend_from_slice(&[0; 100]);
        let entry = u32::try_from(PVH_ENTRY).unwrap().to_le_bytes();
        let mut notes = note(b"Linux\0", 1, b"abc");
        notes.extend_from_slice(&note(b"Xen\0", 18, &entry));
        Self {
            entry: LOAD_ADDRESS,
            // Not in the order of addresses, and the notes not last, so that they need a sort and
            // every prefix of the file lacks something.
            parts: vec![
                Part::load(LOAD_ADDRESS + 0x20_0000, vec![0; 8], 0x3000),
                Part::note(notes),
                Part::load(LOAD_ADDRESS, text, 0x2000),
            ],
        }
    }

    pub(super) fn build(&self) -> Vec<u8> {
        let count = self.parts.len();
        let mut image = vec![0; 64 + 56 * count];
        put(&mut image, 0, b"\x7fELF\x02\x01\x01");
        put(&mut image, 16, &[2, 0, 62, 0, 1]);
        put(&mut image, 24, &self.entry.to_le_bytes());
        put(&mut image, 32, &64_u64.to_le_bytes());
        put(&mut image, 52, &[64, 0, 56, 0, u8::try_from(count).unwrap(), 0, 64, 0]);
        for (index, part) in self.parts.iter().enumerate() {
            let length = part.data.len() as u64;
            let header = 64 + 56 * index;
            let offset = image.len() as u64;
            put(&mut image, header, &part.kind.to_le_bytes());
            put(&mut image, header + 8, &offset.to_le_bytes());
            put(&mut image, header + 24, &part.address.to_le_bytes());
            put(&mut image, header + 32, &part.file_length.unwrap_or(length).to_le_bytes());
            put(&mut image, header + 40, &part.memory_length.unwrap_or(length).to_le_bytes());
            put(&mut image, header + 48, &4_u64.to_le_bytes());
            image.extend_from_slice(&part.data);
        }
        image
    }
}

/// A bzImage of two setup sectors around a payload.
#[derive(Debug, Clone)]
pub(super) struct BzImageBuilder {
    /// What the compressed payload unpacks to.
    pub(super) content: Vec<u8>,
    pub(super) compression: Compression,
    /// The unpacked length recorded behind the payload.
    pub(super) recorded_length: u32,
}

pub(super) const BZIMAGE_SETUP: usize = 3 * 512;
pub(super) const BZIMAGE_PAYLOAD: usize = 0x220;

impl BzImageBuilder {
    pub(super) fn linux(compression: Compression) -> Self {
        let mut content = ElfBuilder::linux().build();
        content.extend_from_slice(b"relocations");
        Self::around(content, compression)
    }

    pub(super) fn around(content: Vec<u8>, compression: Compression) -> Self {
        let recorded_length = u32::try_from(content.len()).unwrap();
        Self { content, compression, recorded_length }
    }

    pub(super) fn build(&self) -> Vec<u8> {
        let mut payload = compress(self.compression, &self.content);
        if self.compression != Compression::Gzip {
            payload.extend_from_slice(&self.recorded_length.to_le_bytes());
        }
        let kernel_length = (BZIMAGE_PAYLOAD + payload.len()).next_multiple_of(16);
        let number = |value: usize| u32::try_from(value).unwrap().to_le_bytes();

        let mut image = vec![0; BZIMAGE_SETUP + kernel_length];
        put(&mut image, 0x1f1, &[2]);
        put(&mut image, 0x1f4, &number(kernel_length / 16));
        put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
        put(&mut image, 0x202, b"HdrS\x0f\x02");
        put(&mut image, 0x20e, &[0x80, 0]);
        put(&mut image, 0x211, &[1]);
        put(&mut image, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
        put(&mut image, 0x230, &0x20_0000_u32.to_le_bytes());
        put(&mut image, 0x234, &[1, 21, 3, 0]);
        put(&mut image, 0x238, &2047_u32.to_le_bytes());
        put(&mut image, 0x248, &number(BZIMAGE_PAYLOAD));
        put(&mut image, 0x24c, &number(payload.len()));
        put(&mut image, 0x258, &LOAD_ADDRESS.to_le_bytes());
        put(&mut image, 0x260, &0x10_0000_u32.to_le_bytes());
        put(&mut image, 0x280, b"6.1.0-test (builder@host) #1 SMP\0");
        put(&mut image, BZIMAGE_SETUP + 0x200, &[0xfa]);
        put(&mut image, BZIMAGE_SETUP + BZIMAGE_PAYLOAD, &payload);
        image
    }
}

/// An entry of a cpio archive with its padding. `magic` is 070701 or 070702.
pub(super) fn cpio_entry(magic: &str, name: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let sum = content.iter().fold(0_u32, |sum, byte| sum + u32::from(*byte));
    let check = if magic == "070702" { sum } else { 0 };
    let mut entry = format!(
        "{magic}{:08X}{mode:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{check:08X}",
        1, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1
    )
    .into_bytes();
    entry.extend_from_slice(name.as_bytes());
    entry.push(0);
    entry.resize(entry.len().next_multiple_of(4), 0);
    entry.extend_from_slice(content);
    entry.resize(entry.len().next_multiple_of(4), 0);
    entry
}

/// A cpio archive of a folder and a file with `content`.
pub(super) fn cpio_archive(content: &[u8]) -> Vec<u8> {
    let mut archive = cpio_entry("070701", "etc", 0o040_755, b"");
    archive.extend_from_slice(&cpio_entry("070702", "etc/file", 0o100_644, content));
    archive.extend_from_slice(&cpio_entry("070701", "TRAILER!!!", 0, b""));
    archive
}
