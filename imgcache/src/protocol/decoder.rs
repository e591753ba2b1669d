//! Commands out of a stream that arrives in pieces of any size.

use super::command::{Command, Refused};
use super::{MAX_KEYS_LINE, MAX_LINE};

/// Why a connection is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A line without an end.
    #[error("a line of more than {MAX_LINE} bytes ({MAX_KEYS_LINE} where it names many keys)")]
    LineTooLong,
    /// The first byte is that of the binary protocol.
    #[error("the client speaks memcached's binary protocol, which is not spoken here")]
    Binary,
    /// A request of a web browser, or of somebody who makes one send it.
    #[error("an HTTP request")]
    Http,
}

/// What the input begins with.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Nothing that is complete: more input is needed.
    More,
    /// So many bytes that are to be thrown away.
    Skip(usize),
    /// A command in the first bytes, so many of them. If a data block belongs to it
    /// ([`Command::data`]), that comes next and is the caller's: its bytes and the two of its end.
    Command(usize, Command<'a>),
    /// A command that is refused. What belongs to it is skipped by the decoder.
    Refused(usize, Refused),
    /// The connection is to be closed.
    Close(Violation),
}

/// Where in the stream the input begins.
#[derive(Debug, Default)]
pub struct Decoder {
    is_started: bool,
    /// Bytes of the input that have no end of line among them.
    scanned: usize,
    skip: Skip,
}

#[derive(Debug, Default)]
enum Skip {
    #[default]
    Nothing,
    Bytes(u64),
    Line,
}

const BINARY_REQUEST: u8 = 0x80;

impl Decoder {
    /// Looks at `input`: what came and was not consumed. The caller removes what a step consumes
    /// and otherwise only ever appends to it.
    pub fn step<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        match self.skip {
            Skip::Nothing => {}
            _ if input.is_empty() => return Step::More,
            Skip::Bytes(left) => return self.skip_bytes(left, input.len()),
            Skip::Line => {
                let end = input.iter().position(|&byte| byte == b'\n');
                if end.is_some() {
                    self.skip = Skip::Nothing;
                }
                return Step::Skip(end.map_or(input.len(), |end| end + 1));
            }
        }
        if !self.is_started && input.first() == Some(&BINARY_REQUEST) {
            return Step::Close(Violation::Binary);
        }
        let new = input.get(self.scanned..).unwrap_or_default();
        let Some(end) = new.iter().position(|&byte| byte == b'\n') else {
            self.scanned = input.len();
            // The carriage return may be the first half of the line's end.
            let is_too_long = is_too_long(input.strip_suffix(b"\r").unwrap_or(input));
            return if is_too_long { Step::Close(Violation::LineTooLong) } else { Step::More };
        };
        let end = self.scanned + end;
        let line = &input[..end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        self.scanned = 0;
        self.is_started = true;
        if is_too_long(line) {
            return Step::Close(Violation::LineTooLong);
        }
        match Command::parse(line) {
            Ok(command) => Step::Command(end + 1, command),
            Err(_) if is_http(line) => Step::Close(Violation::Http),
            Err(refused) => {
                if let Some(data) = refused.data {
                    self.skip_data(data);
                }
                Step::Refused(end + 1, refused)
            }
        }
    }

    fn skip_bytes(&mut self, left: u64, length: usize) -> Step<'static> {
        let skipped = usize::try_from(left).map_or(length, |left| left.min(length));
        let left = left.saturating_sub(skipped as u64);
        self.skip = if left == 0 { Skip::Nothing } else { Skip::Bytes(left) };
        Step::Skip(skipped)
    }

    /// Throws away a data block of `length` bytes and its end.
    pub fn skip_data(&mut self, length: u32) {
        self.skip = Skip::Bytes(u64::from(length) + 2);
    }

    /// Throws away what comes up to the end of the line: where a data block was not followed by
    /// its end, what is left of it must not be taken for commands.
    pub fn skip_line(&mut self) {
        self.skip = Skip::Line;
    }

    /// Whether the stream could end here without anything being cut off, if the input is empty.
    pub fn is_between_commands(&self) -> bool {
        matches!(self.skip, Skip::Nothing)
    }
}

/// Whether a line that begins with `line` is longer than it may be.
fn is_too_long(line: &[u8]) -> bool {
    let Some(start) = line.get(..MAX_LINE) else { return false };
    if line.len() <= MAX_LINE {
        return false;
    }
    let names_keys = [&b"get "[..], b"gets ", b"gat ", b"gats "];
    let has_keys = names_keys.iter().any(|name| start.trim_ascii_start().starts_with(name));
    !has_keys || line.len() > MAX_KEYS_LINE
}

fn is_http(line: &[u8]) -> bool {
    line.rsplit(|&byte| byte == b' ').next().is_some_and(|word| word.starts_with(b"HTTP/"))
}
