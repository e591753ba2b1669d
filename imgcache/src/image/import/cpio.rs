//! The walk through newc cpio archives, header by header, as Linux's `init/initramfs.c` walks them
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! An archive is a run of entries, the last called `TRAILER!!!`. An entry is a header of 110 bytes
//! in hexadecimal digits, the name padded to 4 bytes, the content padded to 4 bytes; all alignment
//! counts from the start of the stream. Zero bytes may stand between archives.

use super::error::ImportError;
use super::initrd::{Output, not_cpio, prefix};

const HEADER_LENGTH: usize = 110;
const MAGIC_LENGTH: usize = 6;
const MAGIC_NEWC: &[u8] = b"070701";
const MAGIC_CHECKED: &[u8] = b"070702";
const TRAILER: &[u8] = b"TRAILER!!!";
/// Linux's `PATH_MAX`, its terminating zero included.
const MAX_NAME: usize = 4096;
/// The header's fields behind the magic, of 8 digits each.
const FIELDS: [&str; 13] = [
    "ino",
    "mode",
    "uid",
    "gid",
    "nlink",
    "mtime",
    "filesize",
    "devmajor",
    "devminor",
    "rdevmajor",
    "rdevminor",
    "namesize",
    "check",
];
const MODE: usize = 1;
const FILE_SIZE: usize = 6;
const NAME_SIZE: usize = 11;
const CHECK: usize = 12;
const MODE_TYPE: u32 = 0o170_000;
const MODE_REGULAR: u32 = 0o100_000;

/// What the walk expects next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Zeros, or an archive's first byte.
    Between,
    Header,
    /// The name with its padding.
    Name,
    Content,
    /// The padding behind the content.
    Padding,
}

/// The entry that is being walked through.
#[derive(Debug, Default)]
struct Entry {
    start: u64,
    name_size: usize,
    /// Bytes still to come, of the content and of the padding behind it.
    content_left: u64,
    padding_left: u64,
    /// Of an entry with a checksum: the sum so far, and what it should become.
    sum: Option<(u32, u32)>,
    is_trailer: bool,
}

/// A walk over a stream that comes in pieces.
///
/// It passes archives on to the output as they are and drops the zeros between them. An archive is
/// a multiple of 4 bytes long, so each starts on a multiple of 4 in the output too.
pub(super) struct Walker {
    state: State,
    /// Where the walk is in the stream; alignment counts from the stream's start.
    position: u64,
    archive_start: u64,
    entry: Entry,
    /// The header, or the name with its padding, as far as it has come.
    collected: Vec<u8>,
    /// Archives walked to their end.
    pub(super) archives: u64,
    /// Entries walked to their end, trailers not counted.
    pub(super) entries: u64,
}

impl Walker {
    /// A walk that starts `position` bytes into the stream, between archives.
    pub(super) fn new(position: u64) -> Self {
        Self {
            state: State::Between,
            position,
            archive_start: position,
            entry: Entry::default(),
            collected: Vec::new(),
            archives: 0,
            entries: 0,
        }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn is_between_archives(&self) -> bool {
        self.state == State::Between
    }

    /// Checks that the stream may end here.
    pub(super) fn finish(&self) -> Result<(), ImportError> {
        if self.is_between_archives() {
            return Ok(());
        }
        if self.state == State::Header && self.collected.len() >= MAGIC_LENGTH {
            self.check_magic()?;
        }
        Err(ImportError::CpioTruncated { offset: self.archive_start, end: self.position })
    }

    /// Walks through `bytes` and returns how many it took: all, unless something that is neither
    /// zero nor the start of an archive comes between archives.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        output: &mut Output<'_>,
    ) -> Result<usize, ImportError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = match self.state {
                State::Between if rest[0] == MAGIC_NEWC[0] => {
                    self.start_archive()?;
                    0
                }
                State::Between => {
                    let zeros = rest.iter().take_while(|byte| **byte == 0).count();
                    output.drop_padding(zeros)?;
                    if zeros == 0 {
                        break;
                    }
                    zeros
                }
                State::Header | State::Name => self.collect(rest, output)?,
                State::Content => {
                    let part = prefix(rest, self.entry.content_left);
                    self.entry.content_left -= part.len() as u64;
                    if let Some((sum, _)) = &mut self.entry.sum {
                        *sum = part.iter().fold(*sum, |sum, b| sum.wrapping_add((*b).into()));
                    }
                    output.write(part)?;
                    part.len()
                }
                State::Padding => {
                    let part = prefix(rest, self.entry.padding_left);
                    self.entry.padding_left -= part.len() as u64;
                    output.write(part)?;
                    part.len()
                }
            };
            self.position += taken as u64;
            rest = &rest[taken..];
            self.end_finished_parts()?;
        }
        Ok(bytes.len() - rest.len())
    }

    fn start_archive(&mut self) -> Result<(), ImportError> {
        if !self.position.is_multiple_of(4) {
            return Err(ImportError::Misaligned { offset: self.position });
        }
        self.archive_start = self.position;
        self.expect_header(self.position);
        Ok(())
    }

    fn expect_header(&mut self, start: u64) {
        self.entry = Entry { start, ..Entry::default() };
        self.collected.clear();
        self.state = State::Header;
    }

    /// Collects a header or a name. It is passed on only when it is complete and checked, so what
    /// is no archive never reaches the output.
    fn collect(&mut self, bytes: &[u8], output: &mut Output<'_>) -> Result<usize, ImportError> {
        let wanted = match self.state {
            State::Header => HEADER_LENGTH,
            // Header and name together are padded to 4 bytes.
            _ => (HEADER_LENGTH + self.entry.name_size).next_multiple_of(4) - HEADER_LENGTH,
        };
        let part = &bytes[..bytes.len().min(wanted - self.collected.len())];
        self.collected.extend_from_slice(part);
        if self.collected.len() == wanted {
            self.state = if self.state == State::Header {
                self.check_header()?;
                State::Name
            } else {
                let name = self.check_name()?;
                output.notice(name);
                State::Content
            };
            output.write(&self.collected)?;
            self.collected.clear();
        }
        Ok(part.len())
    }

    /// Goes on behind content and padding that have come to their end, or are empty.
    fn end_finished_parts(&mut self) -> Result<(), ImportError> {
        if self.state == State::Content && self.entry.content_left == 0 {
            if let Some((computed, recorded)) = self.entry.sum
                && computed != recorded
            {
                let offset = self.entry.start;
                return Err(ImportError::CpioChecksum { offset, computed, recorded });
            }
            self.state = State::Padding;
        }
        if self.state == State::Padding && self.entry.padding_left == 0 {
            if self.entry.is_trailer {
                self.archives += 1;
                self.state = State::Between;
            } else {
                self.entries += 1;
                self.expect_header(self.position);
            }
        }
        Ok(())
    }

    fn check_magic(&self) -> Result<bool, ImportError> {
        match &self.collected[..MAGIC_LENGTH] {
            MAGIC_NEWC => Ok(false),
            MAGIC_CHECKED => Ok(true),
            _ => Err(not_cpio(self.entry.start, &self.collected)),
        }
    }

    fn check_header(&mut self) -> Result<(), ImportError> {
        let has_sums = self.check_magic()?;
        let mut values = [0; FIELDS.len()];
        for (index, digits) in self.collected[MAGIC_LENGTH..].chunks_exact(8).enumerate() {
            values[index] = parse_hex(digits).ok_or_else(|| {
                self.header_error(FIELDS[index], digits, "not 8 hexadecimal digits")
            })?;
        }
        let name_size = usize::try_from(values[NAME_SIZE]).unwrap_or(usize::MAX);
        if !(1..=MAX_NAME).contains(&name_size) {
            let digits = &self.collected[MAGIC_LENGTH + 8 * NAME_SIZE..][..8];
            return Err(self.header_error("namesize", digits, "must be between 1 and 4096"));
        }
        let content = u64::from(values[FILE_SIZE]);
        // Linux sums up regular files only.
        let is_summed = has_sums && content > 0 && values[MODE] & MODE_TYPE == MODE_REGULAR;
        self.entry = Entry {
            start: self.entry.start,
            name_size,
            content_left: content,
            padding_left: content.next_multiple_of(4) - content,
            sum: is_summed.then_some((0, values[CHECK])),
            is_trailer: false,
        };
        Ok(())
    }

    /// Checks the name, and returns it without the zeros behind it.
    fn check_name(&mut self) -> Result<&[u8], ImportError> {
        let name = &self.collected[..self.entry.name_size];
        if name.last() != Some(&0) {
            let end = &name[name.len().saturating_sub(16)..];
            return Err(self.header_error("name", end, "does not end with a zero byte"));
        }
        // Names may be padded with zeros to align the content.
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        self.entry.is_trailer = name == TRAILER;
        Ok(name)
    }

    fn header_error(&self, field: &'static str, value: &[u8], reason: &'static str) -> ImportError {
        let offset = self.entry.start;
        ImportError::CpioHeader { offset, field, value: value.to_vec(), reason }
    }
}

/// The value of 8 hexadecimal digits, without the sign that `from_str_radix` would take.
fn parse_hex(digits: &[u8]) -> Option<u32> {
    digits
        .iter()
        .try_fold(0_u32, |value, digit| Some(value << 4 | char::from(*digit).to_digit(16)?))
}

#[cfg(test)]
mod tests;
