//! The structure that a command is: a header of 64 bytes, and what stands behind it.
//!
//! ```text
//!   0  u32 magic           "DCRC"
//!   4  u16 version         1
//!   6  u16 header_length   64
//!   8  u16 operation       its number
//!  10  u16 flags           bit 0: the input is behind the header
//!                          bit 1: the buffer is behind that, at the next multiple of 8
//!  12  u32 status          written by the device, last; 0 when submitted
//!  16  u64 sequence        the guest's own; comes back in the event of its completion
//!  24  u64 input_address   guest-physical; 0 if it is behind the header, or empty
//!  32  u32 input_length    bytes, at most 4032
//!  36  u32 buffer_length   bytes, at most 1 MiB; a command in one page holds less
//!  40  u64 buffer_address  guest-physical; 0 if it is behind the input, or empty
//!  48  u64 ticket          written by the device when it accepts a command
//!  56  u32 output_length   written by the device: bytes of the buffer that it has filled
//!  60  u32 reserved, zero
//! ```
//!
//! A command is aligned to 64 bytes, and with what is behind its header it lies within one page of
//! 4 KiB: so a program that knows the address of one page can submit one. Input and buffer elsewhere
//! are contiguous in guest-physical memory.
//!
//! The device copies header and input once, and looks at nothing but its copy. The buffer is read or
//! written when the command is carried out. A command whose status is "accepted" belongs to the device
//! until the status changes again.

use crate::status::Error;

/// What a command begins with: "DCRC".
pub const MAGIC: u32 = u32::from_le_bytes(*b"DCRC");
/// Version of the header.
pub const VERSION: u16 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: u16 = 64;
/// What a command's address is a multiple of.
pub const ALIGNMENT: u64 = 64;
/// The page that a command lies in.
pub const PAGE_BYTES: u64 = 4096;
/// Bytes of input at most.
pub const MAX_INPUT: u32 = 4096 - HEADER_BYTES as u32;
/// Bytes of a buffer at most.
pub const MAX_BUFFER: u32 = 1 << 20;

/// Offset of the status word.
pub const STATUS_OFFSET: u16 = 12;
/// Offset of the ticket.
pub const TICKET_OFFSET: u16 = 48;
/// Offset of the length of what was put into the buffer.
pub const OUTPUT_LENGTH_OFFSET: u16 = 56;

/// The input is behind the header.
pub const INLINE_INPUT: u16 = 1 << 0;
/// The buffer is behind the input.
pub const INLINE_BUFFER: u16 = 1 << 1;
const ALL_FLAGS: u16 = INLINE_INPUT | INLINE_BUFFER;

/// Name, offset and bytes of each word of the header.
pub const LAYOUT: &[(&str, u16, u16)] = &[
    ("magic", 0, 4),
    ("version", 4, 2),
    ("header_length", 6, 2),
    ("operation", 8, 2),
    ("flags", 10, 2),
    ("status", STATUS_OFFSET, 4),
    ("sequence", 16, 8),
    ("input_address", 24, 8),
    ("input_length", 32, 4),
    ("buffer_length", 36, 4),
    ("buffer_address", 40, 8),
    ("ticket", TICKET_OFFSET, 8),
    ("output_length", OUTPUT_LENGTH_OFFSET, 4),
    ("reserved", 60, 4),
];

/// Where input or buffer of a command are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// This many bytes after the start of the header.
    Inline(u16),
    /// At this guest-physical address.
    At(u64),
}

/// A header that was copied and checked, as far as it can be without knowing where RAM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Number of the operation, known or not.
    pub operation: u16,
    /// The guest's own number.
    pub sequence: u64,
    /// Where the input is.
    pub input: Place,
    /// Its bytes.
    pub input_length: u32,
    /// Where the buffer is.
    pub buffer: Place,
    /// Its bytes.
    pub buffer_length: u32,
}

impl Header {
    /// A command with this input and a buffer behind it, all in one page.
    ///
    /// # Errors
    /// [`Error::BadLength`] if that does not fit into a page.
    pub fn inline(
        operation: u16,
        sequence: u64,
        input_length: usize,
        buffer_length: usize,
    ) -> Result<Self, Error> {
        let input = u32::try_from(input_length).map_err(|_| Error::BadLength)?;
        let buffer = u32::try_from(buffer_length).map_err(|_| Error::BadLength)?;
        let behind = inline_buffer(INLINE_INPUT, input)?;
        let header = Self {
            operation,
            sequence,
            input: Place::Inline(HEADER_BYTES),
            input_length: input,
            buffer: Place::Inline(behind),
            buffer_length: buffer,
        };
        if header.extent() > PAGE_BYTES { Err(Error::BadLength) } else { Ok(header) }
    }

    /// Checks a copy of a header.
    ///
    /// # Errors
    /// What is wrong with it, the first thing in the order of the words.
    pub fn decode(bytes: &[u8; HEADER_BYTES as usize]) -> Result<Self, Error> {
        if u32_at(bytes, 0) != MAGIC {
            return Err(Error::BadMagic);
        }
        if u16_at(bytes, 4) != VERSION || u16_at(bytes, 6) != HEADER_BYTES {
            return Err(Error::BadVersion);
        }
        let flags = u16_at(bytes, 10);
        if flags & !ALL_FLAGS != 0 || u32_at(bytes, 60) != 0 {
            return Err(Error::BadFlags);
        }
        let (input_length, buffer_length) = (u32_at(bytes, 32), u32_at(bytes, 36));
        if input_length > MAX_INPUT || buffer_length > MAX_BUFFER {
            return Err(Error::BadLength);
        }
        let behind = inline_buffer(flags, input_length)?;
        let place = |flag, offset, address| match (flags & flag != 0, address) {
            (true, 0) => Ok(Place::Inline(offset)),
            (true, _) => Err(Error::BadFlags),
            (false, address) => Ok(Place::At(address)),
        };
        let header = Self {
            operation: u16_at(bytes, 8),
            sequence: u64_at(bytes, 16),
            input: place(INLINE_INPUT, HEADER_BYTES, u64_at(bytes, 24))?,
            input_length,
            buffer: place(INLINE_BUFFER, behind, u64_at(bytes, 40))?,
            buffer_length,
        };
        if header.extent() > PAGE_BYTES { Err(Error::BadLength) } else { Ok(header) }
    }

    /// As it is submitted.
    pub fn encode(&self) -> [u8; HEADER_BYTES as usize] {
        let mut bytes = [0; HEADER_BYTES as usize];
        let (mut flags, mut addresses) = (0, [0, 0]);
        match self.input {
            Place::Inline(_) => flags |= INLINE_INPUT,
            Place::At(address) => addresses[0] = address,
        }
        match self.buffer {
            Place::Inline(_) => flags |= INLINE_BUFFER,
            Place::At(address) => addresses[1] = address,
        }
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6..8].copy_from_slice(&HEADER_BYTES.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.operation.to_le_bytes());
        bytes[10..12].copy_from_slice(&flags.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&addresses[0].to_le_bytes());
        bytes[32..36].copy_from_slice(&self.input_length.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buffer_length.to_le_bytes());
        bytes[40..48].copy_from_slice(&addresses[1].to_le_bytes());
        bytes
    }

    /// Bytes from the start of the header to the end of what is behind it.
    pub fn extent(&self) -> u64 {
        let end = |place, length: u32| match place {
            Place::Inline(offset) => u64::from(offset) + u64::from(length),
            Place::At(_) => u64::from(HEADER_BYTES),
        };
        end(self.input, self.input_length).max(end(self.buffer, self.buffer_length))
    }
}

/// Where a buffer begins that is behind the header, and behind the input if that is there too.
fn inline_buffer(flags: u16, input_length: u32) -> Result<u16, Error> {
    let input = if flags & INLINE_INPUT == 0 { 0 } else { input_length };
    let offset = input
        .checked_next_multiple_of(8)
        .and_then(|aligned| u16::try_from(aligned).ok()?.checked_add(HEADER_BYTES));
    offset.ok_or(Error::BadLength)
}

/// The little-endian number at `at`; zero beyond the end.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

/// The little-endian number at `at`; zero beyond the end.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

/// The little-endian number at `at`; zero beyond the end.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        Header::inline(3, 9, 10, 100).unwrap()
    }

    #[test]
    fn the_words_of_the_header_fill_it() {
        let mut next = 0;
        for (name, offset, bytes) in LAYOUT {
            assert_eq!(*offset, next, "{name}");
            next += bytes;
        }
        assert_eq!(next, HEADER_BYTES);
    }

    #[test]
    fn a_buffer_behind_the_input_is_aligned() {
        assert_eq!(header().buffer, Place::Inline(80));
        assert_eq!(header().extent(), 180);
        assert_eq!(Header::decode(&header().encode()), Ok(header()));
        assert!(Header::inline(0, 0, 4032, 0).is_ok());
        assert_eq!(Header::inline(0, 0, 4025, 1), Err(Error::BadLength));
        assert_eq!(Header::inline(0, 0, usize::MAX, 0), Err(Error::BadLength));
    }

    #[test]
    fn each_wrong_word_has_its_error() {
        let cases: [(usize, &[u8], Error); 9] = [
            (0, b"DCRX", Error::BadMagic),
            (4, &[2, 0], Error::BadVersion),
            (6, &[65, 0], Error::BadVersion),
            (10, &[7, 0], Error::BadFlags),
            (60, &[0, 0, 0, 1], Error::BadFlags),
            (24, &[1], Error::BadFlags), // an address and a flag that says there is none
            (32, &[0xff; 4], Error::BadLength),
            (36, &[0, 0, 0x10, 1], Error::BadLength),
            (36, &[0xf8, 0x0f], Error::BadLength), // inline, beyond the page
        ];
        for (at, wrong, error) in cases {
            let mut bytes = header().encode();
            bytes[at..at + wrong.len()].copy_from_slice(wrong);
            assert_eq!(Header::decode(&bytes), Err(error), "{at}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_within_the_limits(mut bytes in any::<[u8; 64]>(), flags in 0u16..5) {
            bytes[..8].copy_from_slice(&header().encode()[..8]);
            bytes[10..12].copy_from_slice(&flags.to_le_bytes());
            bytes[34..36].fill(0);
            bytes[37..40].fill(0);
            bytes[60..].fill(0);
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert!(header.input_length <= MAX_INPUT && header.buffer_length <= MAX_BUFFER);
                prop_assert!(header.extent() <= PAGE_BYTES);
                let mut again = header.encode();
                // What the device writes is no part of what it was told.
                again[12..16].copy_from_slice(&bytes[12..16]);
                again[48..60].copy_from_slice(&bytes[48..60]);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
