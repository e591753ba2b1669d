//! What a client may ask.

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use super::{Refusal, token};

/// Base64 as memcached takes it: padded, and whatever is in the bits that do not count.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// A command, borrowed from the line that it came in. A data block follows where [`Self::data`]
/// says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command<'a> {
    /// `get`, `gets`, `gat`, `gats`.
    Get(Get<'a>),
    /// `set`, `add`, `replace`, `append`, `prepend`, `cas`.
    Store(Store<'a>),
    /// `delete`.
    Delete(Delete<'a>),
    /// `incr`, `decr`.
    Arithmetic(Arithmetic<'a>),
    /// `touch`.
    Touch(Touch<'a>),
    /// `mg`.
    MetaGet(Meta<'a>),
    /// `ms`, with how it stores and the bytes of its data block.
    MetaSet(Meta<'a>, Mode, u32),
    /// `md`.
    MetaDelete(Meta<'a>),
    /// `ma`.
    MetaArithmetic(Meta<'a>, Direction),
    /// `me`.
    MetaDebug(MetaKey<'a>),
    /// `mn`.
    MetaNoop,
    /// `flush_all`.
    FlushAll {
        /// When; at once if never.
        delay: Expiry,
        /// No reply is wanted.
        quiet: bool,
    },
    /// `stats`.
    Stats(StatsTopic),
    /// `version`.
    Version,
    /// `verbosity`.
    Verbosity {
        /// From 0.
        level: u32,
        /// No reply is wanted.
        quiet: bool,
    },
    /// `quit`.
    Quit,
    /// `lease`: pins the items of a list for a time.
    Lease {
        /// Chosen by the client.
        id: u64,
        /// For how long, in milliseconds.
        ttl: u64,
        /// Bytes of the list of index keys that follows.
        data: u32,
    },
    /// `release`: ends a lease.
    Release {
        /// The lease.
        id: u64,
        /// Bytes that the client read by itself under the lease.
        bytes_read: u64,
    },
    /// `pin`: keeps the items of an image until `unpin`.
    Pin {
        /// The manifest's id.
        image: [u8; 32],
        /// Bytes of the list of index keys that follows.
        data: u32,
    },
    /// `unpin`.
    Unpin {
        /// The manifest's id.
        image: [u8; 32],
    },
    /// `rdma`: connects a queue of the client, which may then read under its lease.
    Rdma {
        /// The lease.
        lease: u64,
        /// The client's end of the connection, as it wrote it.
        endpoint: &'a str,
    },
    /// `push`: begins to write chunks by RDMA.
    Push {
        /// Bytes of the list of chunks that follows.
        data: u32,
        /// The client's end of the connection, as it wrote it.
        endpoint: &'a str,
    },
    /// `pushed`: ends it.
    Pushed {
        /// The push.
        id: u64,
        /// Of how many of its slots the client knows that they are written, from the first on.
        written: u32,
    },
    /// `share`: hands over the node's memory, to a client on the same host.
    Share,
}

/// `get` and the like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Get<'a> {
    /// The keys, each a valid one, between spaces.
    pub(super) keys: &'a [u8],
    /// The CAS value is wanted: `gets`, `gats`.
    pub cas: bool,
    /// A new expiration time: `gat`, `gats`.
    pub touch: Option<Expiry>,
}

impl<'a> Get<'a> {
    /// Bytes at the end of the line that hold the keys, and spaces.
    pub fn keys_length(&self) -> usize {
        self.keys.len()
    }

    /// The keys.
    pub fn keys(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        token::words(self.keys)
    }
}

/// How a value is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Whatever is there.
    Set,
    /// Only if nothing is there.
    Add,
    /// Only if something is there.
    Replace,
    /// Behind what is there.
    Append,
    /// In front of what is there.
    Prepend,
    /// Only if what is there has the CAS value.
    Cas,
}

/// `set` and the like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store<'a> {
    /// The key.
    pub key: &'a [u8],
    /// How.
    pub mode: Mode,
    /// The client's own.
    pub flags: u32,
    /// Expiration time.
    pub expiry: Expiry,
    /// Bytes of the data block that follows.
    pub data: u32,
    /// For [`Mode::Cas`], else 0.
    pub cas: u64,
    /// No reply is wanted.
    pub quiet: bool,
}

/// `delete`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delete<'a> {
    /// The key.
    pub key: &'a [u8],
    /// No reply is wanted.
    pub quiet: bool,
}

/// Up or down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Wraps around at 2^64.
    Increment,
    /// Stops at 0.
    Decrement,
}

/// `incr`, `decr`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arithmetic<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Up or down.
    pub direction: Direction,
    /// By how much.
    pub delta: u64,
    /// No reply is wanted.
    pub quiet: bool,
}

/// `touch`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touch<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The new expiration time.
    pub expiry: Expiry,
    /// No reply is wanted.
    pub quiet: bool,
}

/// Key of a meta command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetaKey<'a> {
    /// As it is on the line.
    pub word: &'a [u8],
    /// It is base64.
    pub is_binary: bool,
}

impl<'a> MetaKey<'a> {
    pub(super) fn new(word: &'a [u8], is_binary: bool) -> Result<Self, Refusal> {
        let key = Self { word: token::key(word)?, is_binary };
        if is_binary && BASE64.decode(word).map_or(true, |bytes| bytes.is_empty()) {
            return Err(Refusal::BadKeyEncoding);
        }
        Ok(key)
    }

    /// The key itself.
    pub fn bytes(&self) -> Cow<'a, [u8]> {
        if self.is_binary {
            // Checked when it was made.
            Cow::Owned(BASE64.decode(self.word).unwrap_or_default())
        } else {
            Cow::Borrowed(self.word)
        }
    }
}

/// Key and flags of `mg`, `ms`, `md` or `ma`. As in memcached, a flag that another of them knows is
/// accepted and means nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta<'a> {
    /// The key.
    pub key: MetaKey<'a>,
    /// The flags as they came.
    pub(super) flags: &'a [u8],
    /// `u`: the item does not count as used.
    pub no_bump: bool,
    /// `q`: the usual reply is not wanted.
    pub quiet: bool,
    /// `v`: the value is wanted.
    pub value: bool,
    /// `I`.
    pub invalidate: bool,
    /// `N`: expiration time of an item that is made on a miss.
    pub vivify: Option<Expiry>,
    /// `T`: new expiration time.
    pub touch: Option<Expiry>,
    /// `R`: the item is to be fetched anew if it expires before that.
    pub recache: Option<Expiry>,
    /// `F`.
    pub client_flags: u32,
    /// `C`.
    pub cas: Option<u64>,
    /// `E`, which memcached has from 1.6.21 on: the CAS value that the item is to get.
    pub new_cas: Option<u64>,
    /// `J`.
    pub initial: u64,
    /// `D`.
    pub delta: u64,
}

impl<'a> Meta<'a> {
    /// The flags in the order in which they came: a character, and what is behind it.
    pub fn flags(&self) -> impl Iterator<Item = (u8, &'a [u8])> + use<'a> {
        token::words(self.flags)
            .filter_map(|word| word.split_first().map(|(&flag, rest)| (flag, rest)))
    }
}

/// When something expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// Never.
    Never,
    /// It already has.
    Past,
    /// In so many seconds, at most [`Self::LONGEST`].
    In(u32),
    /// At a Unix time in seconds, beyond [`Self::LONGEST`].
    At(u32),
}

impl Expiry {
    /// 30 days in seconds: a larger number is a Unix time.
    pub const LONGEST: u32 = 60 * 60 * 24 * 30;

    /// What `number` means on the wire.
    pub fn from_number(number: i64) -> Self {
        match u32::try_from(number) {
            Ok(0) => Self::Never,
            Ok(seconds) if seconds <= Self::LONGEST => Self::In(seconds),
            Ok(time) => Self::At(time),
            Err(_) if number < 0 => Self::Past,
            Err(_) => Self::At(u32::MAX),
        }
    }

    /// The number on the wire.
    pub fn number(self) -> i64 {
        match self {
            Self::Never => 0,
            Self::Past => -1,
            Self::In(number) | Self::At(number) => i64::from(number),
        }
    }

    /// The Unix time in seconds at which it expires, if it is `now`; 0 for never.
    pub fn unix_time(self, now: u32) -> u32 {
        match self {
            Self::Never => 0,
            Self::Past => 1,
            Self::In(seconds) => now.saturating_add(seconds),
            Self::At(time) => time,
        }
    }
}

/// What is asked of `stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatsTopic {
    /// The general ones.
    General,
    /// Items by class.
    Items,
    /// Memory by class.
    Slabs,
    /// Items by size.
    Sizes,
    /// How the program was started.
    Settings,
    /// Connections.
    Connections,
    /// Counters back to 0.
    Reset,
    /// Images that are held.
    Images,
    /// What placement goes by.
    Placement,
    /// Leases.
    Leases,
    /// How the memory is read from afar.
    Rdma,
}

impl StatsTopic {
    /// All of them with their words.
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::General, ""),
        (Self::Items, "items"),
        (Self::Slabs, "slabs"),
        (Self::Sizes, "sizes"),
        (Self::Settings, "settings"),
        (Self::Connections, "conns"),
        (Self::Reset, "reset"),
        (Self::Images, "image"),
        (Self::Placement, "placement"),
        (Self::Leases, "leases"),
        (Self::Rdma, "rdma"),
    ];
}

impl<'a> Command<'a> {
    /// The command in `line`, which has no end any more.
    ///
    /// # Errors
    /// What it is refused with, and what is to be skipped.
    pub fn parse(line: &'a [u8]) -> Result<Self, Refused> {
        super::classic::parse(line)
    }

    /// Bytes of the data block that follows, without its own end; `None` if none does.
    pub fn data(&self) -> Option<u32> {
        match self {
            Self::Store(store) => Some(store.data),
            Self::MetaSet(_, _, data)
            | Self::Lease { data, .. }
            | Self::Pin { data, .. }
            | Self::Push { data, .. } => Some(*data),
            _ => None,
        }
    }
}

/// A command line that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// No reply is wanted, not even this one.
    pub quiet: bool,
    /// Bytes of a data block that follows nevertheless, without its end.
    pub data: Option<u32>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, quiet: false, data: None }
    }
}
