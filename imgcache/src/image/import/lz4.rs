//! The legacy LZ4 frame as Linux reads it (`lib/decompress_unlz4.c`).
//!
//! A magic number, then blocks: a 32-bit little-endian compressed length and that many bytes, each
//! block unpacking to at most 8 MiB on its own. There is no end mark: the stream ends with the
//! file, at a zero length (the padding of a ramdisk), or where fewer than four bytes are left. The
//! magic number between two blocks joins two streams.

use std::io::{self, Read};

use super::source::Window;

const MAGIC: u32 = 0x184c_2102;
/// Unpacked size of every block but the last.
const BLOCK: usize = 8 << 20;
/// The longest that LZ4 makes a block that does not compress.
const MAX_PACKED_BLOCK: usize = BLOCK + BLOCK / 255 + 16;

/// Unpacks one legacy stream, block by block.
pub(super) struct LegacyLz4Reader<'w, 'a> {
    input: &'w mut Window<'a>,
    packed: Vec<u8>,
    block: Vec<u8>,
    /// Length of the unpacked bytes in `block`.
    length: usize,
    /// How many of them the consumer has taken.
    taken: usize,
}

impl<'w, 'a> LegacyLz4Reader<'w, 'a> {
    pub(super) fn new(input: &'w mut Window<'a>) -> io::Result<Self> {
        let mut magic = [0; 4];
        input.read_exact(&mut magic)?;
        if u32::from_le_bytes(magic) != MAGIC {
            return Err(io::Error::other("no legacy lz4 stream"));
        }
        Ok(Self { input, packed: Vec::new(), block: Vec::new(), length: 0, taken: 0 })
    }

    /// Unpacks the next block; an empty one stands for the end of the stream.
    fn next_block(&mut self) -> io::Result<()> {
        (self.length, self.taken) = (0, 0);
        while self.length == 0 {
            let packed_length = match self.input.peek()?.map(u32::from_le_bytes) {
                None | Some(0) => return Ok(()),
                Some(length) => length,
            };
            self.input.read_exact(&mut [0; 4])?;
            if packed_length == MAGIC {
                continue;
            }
            let size = usize::try_from(packed_length)
                .ok()
                .filter(|size| *size <= MAX_PACKED_BLOCK)
                .ok_or_else(|| {
                    io::Error::other(format!("a block of {packed_length} bytes is too long"))
                })?;
            if size as u64 > self.input.remaining() {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("a block of {packed_length} bytes reaches beyond the end"),
                ));
            }
            self.packed.resize(size, 0);
            self.input.read_exact(&mut self.packed)?;
            self.block.resize(BLOCK, 0);
            self.length = lz4_flex::block::decompress_into(&self.packed, &mut self.block)
                .map_err(io::Error::other)?;
        }
        Ok(())
    }
}

impl Read for LegacyLz4Reader<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.length && !buf.is_empty() {
            self.next_block()?;
        }
        let length = buf.len().min(self.length - self.taken);
        buf[..length].copy_from_slice(&self.block[self.taken..self.taken + length]);
        self.taken += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::Source;
    use super::*;

    fn unpack(stream: &[u8]) -> io::Result<(Vec<u8>, u64)> {
        let mut window = Source::new(&stream).unwrap().window(0, stream.len() as u64);
        let mut data = Vec::new();
        LegacyLz4Reader::new(&mut window)?.read_to_end(&mut data)?;
        Ok((data, window.position()))
    }

    fn block(data: &[u8]) -> Vec<u8> {
        let packed = lz4_flex::block::compress(data);
        let mut block = u32::try_from(packed.len()).unwrap().to_le_bytes().to_vec();
        block.extend_from_slice(&packed);
        block
    }

    #[test]
    fn blocks_and_joined_streams_unpack_until_the_padding() {
        let big: Vec<u8> = (0..=255).cycle().take(BLOCK).collect();
        let mut stream = MAGIC.to_le_bytes().to_vec();
        stream.extend_from_slice(&block(&big));
        stream.extend_from_slice(&block(b"second"));
        stream.extend_from_slice(&MAGIC.to_le_bytes());
        stream.extend_from_slice(&block(b"joined"));
        let end = stream.len() as u64;
        stream.extend_from_slice(&[0; 6]);
        let (data, position) = unpack(&stream).unwrap();
        assert!(data[..BLOCK] == big[..]);
        assert_eq!(&data[BLOCK..], b"secondjoined");
        assert_eq!(position, end);
    }

    #[test]
    fn impossible_blocks_are_errors() {
        for length in [u32::MAX, 0x0090_0000, 5] {
            let mut stream = MAGIC.to_le_bytes().to_vec();
            stream.extend_from_slice(&length.to_le_bytes());
            stream.extend_from_slice(&[0xff; 3]);
            assert!(unpack(&stream).is_err(), "{length:#x}");
        }
        let mut stream = MAGIC.to_le_bytes().to_vec();
        stream.extend_from_slice(&block(&vec![0; BLOCK + 1]));
        assert!(unpack(&stream).is_err(), "a block beyond 8 MiB");
    }
}
