//! The encoding of arguments and results: a list of fields.
//!
//! ```text
//!   0  u16 tag
//!   2  u16 length    bytes of the value
//!   4  value         then zeros up to the next multiple of 4
//! ```
//!
//! Numbers have the length of their type. Text is UTF-8 without control characters unless said
//! otherwise. In an input each field must be one that its operation knows; of a result, a guest skips
//! what it does not know. In a list of things, each begins with the field that names it.

use crate::command::{u16_at, u32_at, u64_at};
use crate::status::Error;

/// Bytes before a field's value.
const HEAD_BYTES: usize = 4;

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// A number of 32 bits.
    U32,
    /// A number of 64 bits.
    U64,
    /// UTF-8 of at most this many bytes, without control characters.
    Text(u16),
    /// UTF-8 of at most this many bytes.
    Lines(u16),
    /// Anything, of at most this many bytes.
    Bytes(u16),
}

impl Type {
    /// As in documents.
    pub const fn label(self) -> &'static str {
        match self {
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::Text(_) => "text",
            Self::Lines(_) => "lines",
            Self::Bytes(_) => "bytes",
        }
    }

    /// Bytes of the longest value.
    pub const fn max(self) -> u16 {
        match self {
            Self::U32 => 4,
            Self::U64 => 8,
            Self::Text(max) | Self::Lines(max) | Self::Bytes(max) => max,
        }
    }

    fn has(self, value: &[u8]) -> bool {
        let fits = value.len() <= usize::from(self.max());
        match self {
            Self::U32 | Self::U64 => value.len() == usize::from(self.max()),
            Self::Text(_) => {
                let printable = |text: &str| !text.chars().any(char::is_control);
                fits && core::str::from_utf8(value).is_ok_and(printable)
            }
            Self::Lines(_) => fits && core::str::from_utf8(value).is_ok(),
            Self::Bytes(_) => fits,
        }
    }
}

macro_rules! tags {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $label:literal, $type:expr;)+) => {
        /// What a field is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Tag {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        /// All tags, by number.
        pub const TAGS: &[Tag] = &[$(Tag::$name),+];

        impl Tag {
            /// The tag with this number.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// Its number.
            pub const fn number(self) -> u16 {
                match self { $(Self::$name => $number,)+ }
            }

            /// Its name.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// What its value is.
            pub const fn value_type(self) -> Type {
                use Type::*;
                match self { $(Self::$name => $type,)+ }
            }

            /// What it means, in one line of Markdown.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+),)+ }
            }
        }
    };
}

tags! {
    /// A message; control characters are shown as such by the VMM.
    Message = 1, "message", Lines(1024);
    /// Severity: 1 error, 2 warning, 3 information, 4 debugging.
    Level = 2, "level", U32;
    /// The name of a metric or a mark.
    Name = 3, "name", Text(64);
    /// The value of the metric named before it.
    Value = 4, "value", U64;
    /// The name of an image.
    Image = 5, "image", Text(255);
    /// The identifier of an image's content: BLAKE3 of its manifest.
    Manifest = 6, "manifest", Bytes(32);
    /// Number of a chunk, in the order of the image's chunk table.
    Chunk = 7, "chunk", U32;
    /// First byte within the chunk.
    Offset = 8, "offset", U32;
    /// How many bytes.
    Length = 9, "length", U32;
    /// How many chunks the image has.
    Chunks = 10, "chunks", U32;
    /// Bytes of each chunk of the image but the last ones of its parts.
    ChunkBytes = 11, "chunk-bytes", U32;
    /// Bytes of all its chunks.
    Bytes = 12, "bytes", U64;
    /// The number of a VM, given by the host and never used again.
    Vm = 13, "vm", U64;
    /// The name of a VM.
    VmName = 14, "vm-name", Text(63);
    /// Bits of `RIGHTS`.
    Rights = 15, "rights", U32;
    /// The generation of the VM.
    Generation = 16, "generation", U32;
    /// Virtual processors.
    Cpus = 17, "cpus", U32;
    /// Bytes of RAM.
    Memory = 18, "memory", U64;
    /// How many VMs.
    Count = 19, "count", U32;
    /// Words for the kernel, behind those of the image.
    CommandLine = 20, "command-line", Text(1024);
    /// State of a VM: 1 loading, 2 running, 3 ended.
    State = 21, "state", U32;
    /// How a VM ended: the exit code of its process.
    ExitCode = 22, "exit-code", U32;
    /// The same in words.
    Outcome = 23, "outcome", Text(255);
    /// Milliseconds that the VM took until its guest said that it is ready.
    ReadyMilliseconds = 24, "ready-ms", U64;
    /// The first bytes that the guest printed.
    Console = 25, "console", Bytes(2048);
    /// Where the nodes of a cache are, separated by commas.
    Servers = 26, "servers", Text(1024);
    /// Only VMs with a higher number.
    After = 27, "after", U64;
    /// Milliseconds since the VM was started.
    Milliseconds = 28, "ms", U64;
    /// The ticket of a command.
    Ticket = 29, "ticket", U64;
    /// The name of a service, as `web` or `rsmgr.cpu`; where it says so, a pattern, as `rsmgr.*`.
    Service = 30, "service", Text(255);
    /// Where identifiers have their service: 1 first (prefix form), 2 last (suffix form).
    Form = 31, "form", U32;
    /// Number of the first request of a range.
    Low = 32, "low", U32;
    /// Number of the last one.
    High = 33, "high", U32;
    /// A virtual identifier: an Ethernet address.
    Vid = 34, "vid", Bytes(6);
    /// Where frames to a range go changes with this number; the highest wins.
    Epoch = 35, "epoch", U64;
    /// What happens to a range: 1 at home, 2 being prepared elsewhere, 3 moving, 4 frozen, 5 nobody keeps it alive.
    Phase = 36, "phase", U32;
    /// 1 if the range is this VM's, 0 if not.
    Own = 37, "own", U32;
    /// A VM, as `VM` or `HOST/VM`; where it says so, `any`.
    Place = 38, "place", Text(257);
    /// The number of a move.
    Move = 39, "move", U64;
    /// What a VM is to do in a move: 1 prepare for what comes, 2 stop and send the state, 3 take the state up without a voice, 4 go on with a voice, 5 go on as before (the move has gone back), 6 forget what has gone, 7 forget what was to come.
    Errand = 40, "errand", U32;
    /// The hash of a request.
    Hash = 41, "hash", U64;
    /// A change of a table: 1 add, 2 update, 3 delete.
    Change = 42, "change", U32;
    /// First byte of a piece of a state.
    At = 43, "at", U64;
    /// Number of the first request of the second part.
    Pivot = 44, "pivot", U32;
    /// Microseconds that something took.
    Microseconds = 45, "us", U64;
}

/// One field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// Number of its tag, known or not.
    pub tag: u16,
    /// Its value.
    pub value: &'a [u8],
}

/// The fields of a list, in their order. A list that is damaged ends with an error.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The fields in `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self) -> Option<Field<'a>> {
        let length = usize::from(u16_at(self.rest.get(..HEAD_BYTES)?, 2));
        let padded = length.next_multiple_of(4);
        let body = self.rest.get(HEAD_BYTES..HEAD_BYTES + padded)?;
        let (value, padding) = body.split_at(length);
        let zero = padding.iter().all(|byte| *byte == 0);
        let tag = u16_at(self.rest, 0);
        self.rest = &self.rest[HEAD_BYTES + padded..];
        zero.then_some(Field { tag, value })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        Some(self.take().ok_or_else(|| {
            self.rest = &[];
            Error::BadField
        }))
    }
}

/// How often a field may be in an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occurs {
    /// Once.
    Once,
    /// Once or not at all.
    Optional,
    /// Up to 64 times.
    Many,
}

/// The most fields of a kind that a list may have.
pub const MAX_REPEATED: u32 = 64;

/// An input that was checked against what its operation takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arguments<'a>(&'a [u8]);

impl<'a> Arguments<'a> {
    /// Checks `bytes`: a list of fields, each of them one of `takes`, as often as that says, and with a
    /// value of its type.
    ///
    /// # Errors
    /// [`Error::BadField`].
    pub fn check(bytes: &'a [u8], takes: &[(Tag, Occurs)]) -> Result<Self, Error> {
        for field in Fields::new(bytes) {
            let field = field?;
            let tag = Tag::from_number(field.tag).ok_or(Error::BadField)?;
            let known = takes.iter().any(|(known, _)| *known == tag);
            if !known || !tag.value_type().has(field.value) {
                return Err(Error::BadField);
            }
        }
        let arguments = Self(bytes);
        for (tag, occurs) in takes {
            let (mut all, mut count) = (arguments.all(*tag), 0_u32);
            while all.next().is_some() && count <= MAX_REPEATED {
                count += 1;
            }
            let right = match occurs {
                Occurs::Once => count == 1,
                Occurs::Optional => count <= 1,
                Occurs::Many => count <= MAX_REPEATED,
            };
            if !right {
                return Err(Error::BadField);
            }
        }
        Ok(arguments)
    }

    /// The fields of a result, as a guest reads them: what is damaged ends it, and what has no value of
    /// its type is not there.
    pub const fn of_result(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The values of all fields with this tag.
    pub fn all(&self, tag: Tag) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let fields = Fields::new(self.0).filter_map(Result::ok);
        fields
            .filter(move |field| field.tag == tag.number() && tag.value_type().has(field.value))
            .map(|field| field.value)
    }

    /// The number in the first field with this tag.
    pub fn u32(&self, tag: Tag) -> Option<u32> {
        self.all(tag).next().map(|value| u32_at(value, 0))
    }

    /// The number in the first field with this tag.
    pub fn u64(&self, tag: Tag) -> Option<u64> {
        self.all(tag).next().map(|value| u64_at(value, 0))
    }

    /// The text in the first field with this tag.
    pub fn text(&self, tag: Tag) -> Option<&'a str> {
        self.all(tag).next().and_then(|value| core::str::from_utf8(value).ok())
    }
}

/// Writes fields one after the other.
#[derive(Debug)]
pub struct Encoder<'a> {
    buffer: &'a mut [u8],
    length: usize,
}

impl<'a> Encoder<'a> {
    /// Writes into `buffer`.
    pub const fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, length: 0 }
    }

    /// Bytes written so far.
    pub const fn length(&self) -> usize {
        self.length
    }

    /// Adds a field.
    ///
    /// # Errors
    /// [`Error::BadLength`] if there is no room left, [`Error::BadField`] if it is no value of its
    /// type. Nothing is added then.
    pub fn bytes(&mut self, tag: Tag, value: &[u8]) -> Result<&mut Self, Error> {
        if !tag.value_type().has(value) {
            return Err(Error::BadField);
        }
        let length = u16::try_from(value.len()).map_err(|_| Error::BadLength)?;
        let total = HEAD_BYTES + value.len().next_multiple_of(4);
        let rest = self.buffer.get_mut(self.length..).unwrap_or_default();
        let place = rest.get_mut(..total).ok_or(Error::BadLength)?;
        place.fill(0);
        place[0..2].copy_from_slice(&tag.number().to_le_bytes());
        place[2..4].copy_from_slice(&length.to_le_bytes());
        place[HEAD_BYTES..HEAD_BYTES + value.len()].copy_from_slice(value);
        self.length += total;
        Ok(self)
    }

    /// Adds a field with a number of 32 bits.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes).
    pub fn u32(&mut self, tag: Tag, value: u32) -> Result<&mut Self, Error> {
        self.bytes(tag, &value.to_le_bytes())
    }

    /// Adds a field with a number of 64 bits.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes).
    pub fn u64(&mut self, tag: Tag, value: u64) -> Result<&mut Self, Error> {
        self.bytes(tag, &value.to_le_bytes())
    }

    /// Adds a field with text.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes).
    pub fn text(&mut self, tag: Tag, value: &str) -> Result<&mut Self, Error> {
        self.bytes(tag, value.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TAKES: &[(Tag, Occurs)] = &[
        (Tag::Image, Occurs::Once),
        (Tag::Cpus, Occurs::Optional),
        (Tag::Memory, Occurs::Optional),
        (Tag::Name, Occurs::Many),
    ];

    #[test]
    fn what_was_written_is_read() {
        let mut buffer = [0xff; 64];
        let mut encoder = Encoder::new(&mut buffer);
        encoder.text(Tag::Image, "debian").unwrap().u32(Tag::Cpus, 2).unwrap();
        encoder.u64(Tag::Memory, 1 << 40).unwrap().text(Tag::Name, "é").unwrap();
        let length = encoder.length();
        assert_eq!(length, 4 + 8 + 8 + 12 + 8);
        let arguments = Arguments::check(&buffer[..length], TAKES).unwrap();
        assert_eq!(arguments.text(Tag::Image), Some("debian"));
        assert_eq!(arguments.u32(Tag::Cpus), Some(2));
        assert_eq!(arguments.u64(Tag::Memory), Some(1 << 40));
        assert_eq!(arguments.all(Tag::Name).count(), 1);
        assert_eq!(arguments.u32(Tag::Chunk), None);
    }

    #[test]
    fn what_does_not_fit_is_not_written() {
        let mut buffer = [0; 10];
        let mut encoder = Encoder::new(&mut buffer);
        assert_eq!(encoder.text(Tag::Image, "debian").unwrap_err(), Error::BadLength);
        assert_eq!(encoder.bytes(Tag::Cpus, &[0; 5]).unwrap_err(), Error::BadField);
        assert_eq!(encoder.text(Tag::Image, "a\nb").unwrap_err(), Error::BadField);
        assert_eq!(encoder.length(), 0);
        encoder.u32(Tag::Cpus, 1).unwrap();
    }

    #[test]
    fn inputs_that_are_not_what_the_operation_takes_are_refused() {
        let list = |fields: &[(Tag, &[u8])]| {
            let (mut buffer, mut length) = ([0; 4096], 0);
            for (tag, value) in fields {
                let mut encoder = Encoder::new(&mut buffer[length..]);
                encoder.bytes(*tag, value).unwrap();
                length += encoder.length();
            }
            Arguments::check(&buffer[..length], TAKES).map(|_| ())
        };
        let image = (Tag::Image, &b"a"[..]);
        assert_eq!(list(&[image]), Ok(()));
        assert_eq!(list(&[]), Err(Error::BadField));
        assert_eq!(list(&[image, image]), Err(Error::BadField));
        assert_eq!(list(&[image, (Tag::Chunk, &[0; 4])]), Err(Error::BadField));
        assert_eq!(
            list(&[image, (Tag::Cpus, &[0; 4]), (Tag::Cpus, &[0; 4])]),
            Err(Error::BadField)
        );
        let mut many = [(Tag::Name, &b"n"[..]); 66];
        many[0] = image;
        assert_eq!(list(&many[..65]), Ok(()));
        assert_eq!(list(&many), Err(Error::BadField));
    }

    #[test]
    fn damaged_lists_are_refused() {
        let good = [5, 0, 1, 0, b'a', 0, 0, 0];
        assert!(Arguments::check(&good, TAKES).is_ok());
        for length in 1..good.len() {
            assert_eq!(Arguments::check(&good[..length], TAKES), Err(Error::BadField));
        }
        for (at, value) in [(0, 99), (2, 5), (4, 0xff), (4, b'\n'), (5, 1)] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(Arguments::check(&bad, TAKES), Err(Error::BadField), "{at}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end_and_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Fields::new(&bytes).count() <= bytes.len() / 4 + 1);
            let _ = Arguments::check(&bytes, TAKES);
        }
    }
}
