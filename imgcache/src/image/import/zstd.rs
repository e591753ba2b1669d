//! One zstd frame (RFC 8878) as a reader, with the checks that the decoder leaves to its user.

use std::io::{self, Read};

use ruzstd::decoding::StreamingDecoder;

/// Largest window that is accepted: what Linux accepts (`ZSTD_WINDOWLOG` 27).
const MAX_WINDOW: u64 = 128 << 20;

/// Unpacks one frame and verifies its checksum and content size where it has them.
pub(super) struct ZstdReader<R: Read> {
    decoder: StreamingDecoder<R, ruzstd::decoding::FrameDecoder>,
    unpacked: u64,
}

impl<R: Read> ZstdReader<R> {
    pub(super) fn new(input: R) -> io::Result<Self> {
        let decoder = StreamingDecoder::new_with_max_window_size(input, MAX_WINDOW)
            .map_err(io::Error::other)?;
        Ok(Self { decoder, unpacked: 0 })
    }

    fn check_end(&self) -> io::Result<()> {
        let frame = &self.decoder.decoder;
        // Zero also stands for a size that the frame does not record.
        let recorded = frame.content_size();
        if recorded != 0 && recorded != self.unpacked {
            return Err(io::Error::other(format!(
                "the frame unpacks to {} bytes, but records {recorded}",
                self.unpacked
            )));
        }
        match (frame.get_checksum_from_data(), frame.get_calculated_checksum()) {
            (Some(recorded), computed) if computed != Some(recorded) => {
                Err(io::Error::other(format!("the checksum {recorded:#010x} does not match")))
            }
            _ => Ok(()),
        }
    }
}

impl<R: Read> Read for ZstdReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let length = self.decoder.read(buf)?;
        if length == 0 {
            self.check_end()?;
        }
        self.unpacked += length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame by hand: single segment, one raw block, a checksum.
    fn frame(content: [u8; 4], recorded_size: u8, checksum: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0b0010_0100, recorded_size];
        frame.extend_from_slice(&[1 | (4 << 3), 0, 0]);
        frame.extend_from_slice(&content);
        frame.extend_from_slice(&checksum);
        frame
    }

    fn unpack(frame: &[u8]) -> io::Result<Vec<u8>> {
        let mut data = Vec::new();
        ZstdReader::new(frame)?.read_to_end(&mut data)?;
        Ok(data)
    }

    #[test]
    fn checksum_and_size_are_verified() {
        // The low half of XXH64("abcd"), as the zstd command writes it.
        let checksum = [0xcc, 0x92, 0x5d, 0xd2];
        assert_eq!(unpack(&frame(*b"abcd", 4, checksum)).unwrap(), b"abcd");
        let wrong_sum = unpack(&frame(*b"abce", 4, checksum)).unwrap_err().to_string();
        assert!(wrong_sum.contains("checksum"), "{wrong_sum}");
        let wrong_size = unpack(&frame(*b"abcd", 5, checksum)).unwrap_err().to_string();
        assert!(wrong_size.contains("records 5"), "{wrong_size}");
    }
}
