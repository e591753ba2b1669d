//! What a command line is refused with.

use super::{MAX_KEY_LIST, MAX_PUSH_RECORDS, PUSH_RECORD};

/// Why a command is not carried out. Its text is the reply, without the end of the line, and the
/// same as memcached's where that has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such command, or not with so many words.
    #[error("ERROR")]
    Unknown,
    /// A key or number that is none.
    #[error("CLIENT_ERROR bad command line format")]
    BadFormat,
    /// More behind a `delete` than it takes.
    #[error("CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]")]
    DeleteUsage,
    /// An expiration time that is none.
    #[error("CLIENT_ERROR invalid exptime argument")]
    BadExpiry,
    /// The number of `incr` or `decr`.
    #[error("CLIENT_ERROR invalid numeric delta argument")]
    BadDelta,
    /// The number behind a meta flag.
    #[error("CLIENT_ERROR bad token in command line format")]
    BadToken,
    /// A meta flag that is there twice, or is not ASCII.
    #[error("CLIENT_ERROR duplicate flag")]
    DuplicateFlag,
    /// A meta flag that does not exist.
    #[error("CLIENT_ERROR invalid flag")]
    UnknownFlag,
    /// Anything wrong with the flags of `md` or `ma`.
    #[error("CLIENT_ERROR invalid or duplicate flag")]
    BadFlags,
    /// A key that is said to be base64 and is not.
    #[error("CLIENT_ERROR error decoding key")]
    BadKeyEncoding,
    /// Behind the flag `M` there is exactly one character.
    #[error("CLIENT_ERROR incorrect length for M token")]
    ModeLength,
    /// A mode that `ms` does not have.
    #[error("CLIENT_ERROR invalid mode for ms M token")]
    SetMode,
    /// A mode that `ma` does not have.
    #[error("CLIENT_ERROR invalid mode for ma M token")]
    ArithmeticMode,
    /// The flag `J` of `ma`.
    #[error("CLIENT_ERROR invalid numeric initial value")]
    BadInitial,
    /// The flag `D` of `ma`.
    #[error("CLIENT_ERROR invalid numeric delta value")]
    BadDeltaFlag,
    /// More flags than `mg` takes.
    #[error("CLIENT_ERROR options flags are too long")]
    TooManyGetFlags,
    /// More flags than another meta command takes.
    #[error("CLIENT_ERROR options flags too long")]
    TooManyFlags,
    /// More than 31 bytes behind the flag `O`.
    #[error("CLIENT_ERROR opaque token too long")]
    OpaqueTooLong,
    /// `stats` of a kind that would list keys, which are not kept.
    #[error("CLIENT_ERROR stats cachedump not allowed")]
    CacheDump,
    /// `watch`, which memcached refuses in these words when it is switched off.
    #[error("CLIENT_ERROR watch commands not allowed")]
    Watch,
    /// `shutdown`, in the same way.
    #[error("ERROR: shutdown not enabled")]
    Shutdown,
    /// `slabs reassign`, in the same way.
    #[error("CLIENT_ERROR slab reassignment disabled")]
    SlabReassign,
    /// `lru_crawler crawl` and `metadump`, in the same way.
    #[error("CLIENT_ERROR lru crawler disabled")]
    Crawler,
    /// `cache_memlimit`: the memory has the size that the program was started with.
    #[error("MEMLIMIT_ADJUST_FAILED out of bounds or unable to adjust")]
    MemoryLimit,
    /// A line without an end, after which the connection ends.
    #[error("CLIENT_ERROR line too long")]
    LineTooLong,
    /// A list of index keys that is not a multiple of 16 bytes, or too long.
    #[error("CLIENT_ERROR a key list has a multiple of 16 bytes, at most {MAX_KEY_LIST}")]
    KeyList,
    /// A list of chunks to be pushed that is empty, too long, or ends in the middle of one.
    #[error("CLIENT_ERROR a push has 1 to {MAX_PUSH_RECORDS} chunks of {PUSH_RECORD} bytes each")]
    PushList,
}
