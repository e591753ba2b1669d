//! The compressed formats in which Linux kernels and ramdisks come, and their decoders.
//!
//! The set and the magic numbers are those of Linux's `lib/decompress.c`. Every decoder reads
//! exactly one stream and takes not one byte more from its input, so that what follows the stream
//! can be looked at.

use std::fmt;
use std::io::{self, Read};

use liblzma::stream::Stream;
use serde::{Deserialize, Serialize};

use super::error::ImportError;
use super::lz4::LegacyLz4Reader;
use super::source::Window;
use super::zstd::ZstdReader;

/// A compressed format that is unpacked at import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// The .xz file format 1.2.
    Xz,
    /// RFC 8878.
    Zstd,
    /// The legacy frame of the LZ4 command (`lz4 -l`), the only LZ4 format that Linux reads.
    Lz4,
    /// The .lzma ("LZMA alone") format.
    Lzma,
    /// bzip2.
    Bzip2,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Lzma => "lzma",
            Self::Bzip2 => "bzip2",
        })
    }
}

/// The compressed format that the magic number at the start of `head` names, if it names one.
/// `offset` is the place of `head` in the file, for the error.
///
/// # Errors
/// [`ImportError::UnsupportedCompression`] for a compressed format that cannot be imported.
pub(super) fn detect(head: &[u8], offset: u64) -> Result<Option<Compression>, ImportError> {
    let unsupported = |name, advice| ImportError::UnsupportedCompression { name, offset, advice };
    match head {
        [0x1f, 0x8b, 8, ..] => Ok(Some(Compression::Gzip)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Ok(Some(Compression::Xz)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Some(Compression::Zstd)),
        [0x02, 0x21, 0x4c, 0x18, ..] => Ok(Some(Compression::Lz4)),
        [0x5d, 0, 0, ..] => Ok(Some(Compression::Lzma)),
        [b'B', b'Z', b'h', ..] => Ok(Some(Compression::Bzip2)),
        [0x89, b'L', b'Z', b'O', ..] => {
            Err(unsupported("lzo-compressed", "unpack it with lzop, or compress it as zstd"))
        }
        [0x04, 0x22, 0x4d, 0x18, ..] => Err(unsupported(
            "an lz4 frame",
            "Linux reads only the legacy format: compress it with lz4 -l",
        )),
        _ => Ok(None),
    }
}

/// Memory an xz or lzma decoder may take: dictionaries up to 128 MiB, the most Linux uses, and
/// room for the decoder.
const LZMA_MEMORY: u64 = 192 << 20;

/// A decoder of the one stream of `compression` that starts at `input`'s position.
///
/// # Errors
/// When the stream's header is already wrong, or the decoder has no memory.
pub(super) fn decoder<'w>(
    compression: Compression,
    input: &'w mut Window<'_>,
) -> io::Result<Box<dyn Read + 'w>> {
    let lzma = |input, stream| -> Box<dyn Read + 'w> {
        Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
    };
    Ok(match compression {
        Compression::Gzip => Box::new(flate2::bufread::GzDecoder::new(input)),
        Compression::Xz => lzma(input, Stream::new_stream_decoder(LZMA_MEMORY, 0)?),
        Compression::Lzma => lzma(input, Stream::new_lzma_decoder(LZMA_MEMORY)?),
        Compression::Zstd => Box::new(ZstdReader::new(input)?),
        Compression::Lz4 => Box::new(LegacyLz4Reader::new(input)?),
        Compression::Bzip2 => Box::new(bzip2::bufread::BzDecoder::new(input)),
    })
}

/// Unpacks the stream at `input`'s position into memory, at most `limit` bytes of it.
///
/// # Errors
/// [`ImportError::Unpack`] for damaged data, [`ImportError::TooLarge`] naming `what` beyond the
/// limit.
pub(super) fn unpack(
    compression: Compression,
    input: &mut Window<'_>,
    what: &'static str,
    limit: u64,
) -> Result<Vec<u8>, ImportError> {
    let offset = input.position();
    let mut data = Vec::new();
    decoder(compression, input)
        .and_then(|decoder| decoder.take(limit.saturating_add(1)).read_to_end(&mut data))
        .map_err(|source| ImportError::Unpack { compression, offset, source })?;
    if data.len() as u64 > limit {
        return Err(ImportError::TooLarge { what, limit });
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::super::source::Source;
    use super::super::testing::{ALL_COMPRESSIONS, compress};
    use super::*;

    #[test]
    fn every_format_round_trips_and_stops_at_its_last_byte() {
        let data: Vec<u8> = (0..200_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for compression in ALL_COMPRESSIONS {
            let packed = compress(compression, &data);
            let mut file = vec![0xee; 5];
            file.extend_from_slice(&packed);
            let end = file.len() as u64;
            // What follows must be no lz4 block length, for the legacy format has no end mark.
            file.extend_from_slice(&[0; 9]);
            assert_eq!(detect(&packed, 5).unwrap(), Some(compression));
            let mut window = Source::new(&file).unwrap().window(5, file.len() as u64);
            let unpacked = unpack(compression, &mut window, "data", 1 << 20).unwrap();
            assert!(unpacked == data, "{compression}");
            assert_eq!(window.position(), end, "{compression}");
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let zeros = vec![0; 40 << 20];
        for compression in ALL_COMPRESSIONS {
            let packed = compress(compression, &zeros);
            let mut window = Source::new(&packed).unwrap().window(0, packed.len() as u64);
            let error = unpack(compression, &mut window, "data", 1 << 20).unwrap_err();
            assert!(matches!(error, ImportError::TooLarge { limit: 0x10_0000, .. }), "{error}");
        }
    }

    #[test]
    fn a_stream_cut_anywhere_is_an_error_or_visibly_shorter() {
        let data: Vec<u8> = (0..500u16).flat_map(u16::to_le_bytes).collect();
        for compression in ALL_COMPRESSIONS {
            let packed = compress(compression, &data);
            for length in 0..packed.len() {
                let mut window = Source::new(&packed).unwrap().window(0, length as u64);
                let result = unpack(compression, &mut window, "data", 1 << 20);
                assert!(result.map_or(true, |short| short.len() < data.len()), "{compression}");
            }
        }
    }

    #[test]
    fn formats_that_cannot_be_imported_are_named() {
        let lzo = detect(b"\x89LZO\0\r\n\x1a\n", 0x200).unwrap_err();
        assert!(lzo.to_string().contains("0x200 is lzo-compressed"), "{lzo}");
        let frame = detect(&[0x04, 0x22, 0x4d, 0x18], 0).unwrap_err();
        assert!(frame.to_string().contains("lz4 -l"), "{frame}");
        assert_eq!(detect(b"070701", 0).unwrap(), None);
        assert_eq!(detect(b"", 0).unwrap(), None);
    }
}
