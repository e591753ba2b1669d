//! How images are kept as memcached items, so that any memcached is a store for them.
//!
//! | item | key | value | client flags |
//! |---|---|---|---|
//! | chunk | `c/<chunk key, 64 hex digits>` | its content | `0x766d6301` |
//! | manifest piece | `m/<manifest id, 64 hex digits>/<n>` | bytes `n * 512 KiB` and on | `0x766d6302` |
//! | name | `n/<image name>` | a [`NameRecord`] | `0x766d6303` |
//!
//! The flags tell the kind to a node that keeps no keys. Piece 0 begins with the manifest's prefix,
//! from which the number of pieces follows. A node knows an item by its [`IndexKey`] alone, and
//! placement starts from that too, so that whoever lists a node's index can tell where each item
//! belongs.

use std::fmt;

use crate::image::name::{ImageName, MAX_NAME_LENGTH};
use crate::index::IndexKey;
use crate::key::{ChunkKey, ManifestId};

/// Bytes of a manifest in each piece but the last.
pub const PIECE_BYTES: usize = 512 << 10;
/// The same number.
pub(crate) const PIECE_BYTES_U64: u64 = 512 << 10;
/// The longest name record, in bytes.
pub const MAX_NAME_RECORD_BYTES: usize = 512;
/// The longest key of an item, in bytes; memcached takes 250.
pub const MAX_KEY_BYTES: usize = 2 + MAX_NAME_LENGTH;
/// What a name record of this version begins with.
const NAME_RECORD_HEAD: &str = "vmm-name 1";

/// What an item holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The content of a chunk.
    Chunk,
    /// Part of a manifest.
    ManifestPiece,
    /// What an image name stands for.
    Name,
}

impl Kind {
    /// The client flags of items of this kind.
    pub const fn flags(self) -> u32 {
        match self {
            Self::Chunk => 0x766d_6301,
            Self::ManifestPiece => 0x766d_6302,
            Self::Name => 0x766d_6303,
        }
    }

    /// The kind of an item with these client flags, if it is one of ours.
    pub fn from_flags(flags: u32) -> Option<Self> {
        [Self::Chunk, Self::ManifestPiece, Self::Name].into_iter().find(|k| k.flags() == flags)
    }
}

/// The key of an item: printable ASCII without spaces.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ItemKey {
    bytes: [u8; MAX_KEY_BYTES],
    length: usize,
}

impl ItemKey {
    /// The item with the content of a chunk.
    pub fn chunk(key: &ChunkKey) -> Self {
        Self::of(&[b"c/", hex(&key.0).as_bytes()])
    }

    /// The item with piece `number` of a manifest.
    pub fn manifest_piece(id: &ManifestId, number: u32) -> Self {
        Self::of(&[b"m/", hex(&id.0).as_bytes(), format!("/{number}").as_bytes()])
    }

    /// The item that tells what a name stands for.
    pub fn name(name: &ImageName) -> Self {
        Self::of(&[b"n/", name.as_str().as_bytes()])
    }

    /// The parts are never longer than [`MAX_KEY_BYTES`] in all: an [`ImageName`] is bounded, and the
    /// others have 77 bytes at most.
    fn of(parts: &[&[u8]]) -> Self {
        let mut bytes = [0; MAX_KEY_BYTES];
        let mut length = 0;
        for byte in parts.iter().flat_map(|part| part.iter()).take(MAX_KEY_BYTES) {
            bytes[length] = *byte;
            length += 1;
        }
        Self { bytes, length }
    }

    /// The chunk, if it is the item of one.
    pub fn chunk_key(&self) -> Option<ChunkKey> {
        self.as_str().strip_prefix("c/")?.parse().ok()
    }

    /// The key as memcached sees it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// What a node's index knows the item by.
    pub fn index_key(&self) -> IndexKey {
        IndexKey::of(self.as_bytes())
    }
}

fn hex(bytes: &[u8; 32]) -> impl std::ops::Deref<Target = str> {
    blake3::Hash::from_bytes(*bytes).to_hex()
}

impl fmt::Display for ItemKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ItemKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ItemKey({self})")
    }
}

/// How many pieces a manifest of `length` bytes has.
pub fn piece_count(length: u64) -> u32 {
    let pieces = length.div_ceil(PIECE_BYTES_U64);
    u32::try_from(pieces).unwrap_or(u32::MAX)
}

/// What a name stands for, since when.
///
/// Written as four lines: `vmm-name 1`, `name <image name>`, `manifest <64 hex digits>` and
/// `revision <decimal>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameRecord {
    /// The name; it is in the record since a node does not keep keys.
    pub name: ImageName,
    /// The manifest that it stands for.
    pub manifest: ManifestId,
    /// When that was decided, in nanoseconds since the Unix epoch, and above every earlier one.
    pub revision: u64,
}

/// Why bytes are not a name record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameRecordError {
    /// Longer than any record.
    #[error("name record of {0} bytes; at most {MAX_NAME_RECORD_BYTES} are allowed")]
    Length(usize),
    /// Not text, or a line is missing, or one too many.
    #[error("not a name record: line {line} is {found:?}, expected '{expected}'")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is there.
        found: String,
        /// What should be.
        expected: &'static str,
    },
    /// A version that this program does not know.
    #[error("name record of version {0:?}: this program knows version 1")]
    Version(String),
    /// The record of another name.
    #[error("the record of '{expected}' names '{found}'")]
    OtherName {
        /// The name that was asked for.
        expected: ImageName,
        /// The name in the record.
        found: ImageName,
    },
}

impl NameRecord {
    /// The record as it is stored.
    pub fn encode(&self) -> String {
        let Self { name, manifest, revision } = self;
        format!("{NAME_RECORD_HEAD}\nname {name}\nmanifest {manifest}\nrevision {revision}\n")
    }

    /// Reads a record, which need not be trusted.
    ///
    /// # Errors
    /// If it is not exactly one record of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, NameRecordError> {
        const EXPECTED: [&str; 5] = [
            NAME_RECORD_HEAD,
            "name NAME",
            "manifest ID",
            "revision NANOSECONDS",
            "no more than four lines, each ended",
        ];
        if bytes.len() > MAX_NAME_RECORD_BYTES {
            return Err(NameRecordError::Length(bytes.len()));
        }
        let text = String::from_utf8_lossy(bytes);
        let lines: Vec<&str> = text.split('\n').collect();
        let wrong = |index: usize| NameRecordError::Line {
            line: index + 1,
            found: lines.get(index).copied().unwrap_or_default().to_owned(),
            expected: EXPECTED[index],
        };
        let value = |index: usize, word: &str| {
            lines
                .get(index)
                .and_then(|line| line.strip_prefix(word)?.strip_prefix(' '))
                .ok_or_else(|| wrong(index))
        };
        let version = value(0, "vmm-name")?;
        if version != "1" {
            return Err(NameRecordError::Version(version.to_owned()));
        }
        let name = value(1, "name")?.parse().map_err(|_| wrong(1))?;
        let manifest = value(2, "manifest")?.parse().map_err(|_| wrong(2))?;
        let revision = value(3, "revision")?.parse().map_err(|_| wrong(3))?;
        if lines.len() != 5 || !lines[4].is_empty() {
            return Err(wrong(4));
        }
        Ok(Self { name, manifest, revision })
    }

    /// Reads the record of `name`.
    ///
    /// # Errors
    /// As [`Self::decode`], and if it is the record of another name.
    pub fn decode_for(name: &ImageName, bytes: &[u8]) -> Result<Self, NameRecordError> {
        let record = Self::decode(bytes)?;
        if record.name != *name {
            let (expected, found) = (name.clone(), record.name);
            return Err(NameRecordError::OtherName { expected, found });
        }
        Ok(record)
    }

    /// Of two records of one name, the one that holds: the later, and of two at the same time the
    /// same one for everybody who compares them.
    #[must_use]
    pub fn newer(self, other: Self) -> Self {
        let rank = |record: &Self| (record.revision, record.manifest);
        if rank(&other) > rank(&self) { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(name: &str, seed: u8, revision: u64) -> NameRecord {
        NameRecord { name: name.parse().unwrap(), manifest: ManifestId([seed; 32]), revision }
    }

    #[test]
    fn keys_are_as_documented() {
        let hex = "ab".repeat(32);
        assert_eq!(ItemKey::chunk(&ChunkKey([0xab; 32])).as_str(), format!("c/{hex}"));
        let piece = ItemKey::manifest_piece(&ManifestId([0xab; 32]), u32::MAX);
        assert_eq!(piece.as_str(), format!("m/{hex}/4294967295"));
        let longest = "a".repeat(MAX_NAME_LENGTH);
        let name = ItemKey::name(&longest.parse().unwrap());
        assert_eq!(name.as_str(), format!("n/{longest}"));
        assert_eq!(name.index_key().0, blake3::hash(name.as_bytes()).as_bytes()[..16]);
    }

    #[test]
    fn flags_tell_the_kind() {
        for kind in [Kind::Chunk, Kind::ManifestPiece, Kind::Name] {
            assert_eq!(Kind::from_flags(kind.flags()), Some(kind));
        }
        assert_eq!(Kind::from_flags(0), None);
    }

    #[test]
    fn pieces_cover_a_manifest() {
        let piece = u64::try_from(PIECE_BYTES).unwrap();
        for (length, pieces) in [(1, 1), (piece, 1), (piece + 1, 2), (u64::MAX, u32::MAX)] {
            assert_eq!(piece_count(length), pieces);
        }
    }

    #[test]
    fn a_bad_record_is_named() {
        let good = record("a", 1, 7).encode();
        let refused = |text: &str| NameRecord::decode(text.as_bytes()).unwrap_err().to_string();
        assert!(refused("").contains("line 1"));
        assert!(refused("vmm-name 2\nname a\n").contains("version \"2\""));
        assert!(refused(&good.replace("name a", "name ../a")).contains("line 2"));
        assert!(refused(&good.replace("0101", "01x1")).contains("line 3"));
        assert!(refused(&good.replace("revision 7", "revision -7")).contains("line 4"));
        assert!(refused(good.trim_end()).contains("line 5"));
        assert!(refused(&format!("{good}more\n")).contains("line 5"));
        assert!(refused(&" ".repeat(513)).contains("513"));
        let other = "b".parse().unwrap();
        let error = NameRecord::decode_for(&other, good.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("'b' names 'a'"), "{error}");
    }

    proptest! {
        #[test]
        fn records_come_back(name in "[a-z0-9][a-z0-9:/.]{0,127}", seed: u8, revision: u64) {
            let Ok(name) = name.parse::<ImageName>() else { return Ok(()) };
            let record = NameRecord { name, manifest: ManifestId([seed; 32]), revision };
            let text = record.encode();
            prop_assert!(text.len() <= MAX_NAME_RECORD_BYTES);
            prop_assert_eq!(NameRecord::decode(text.as_bytes()).unwrap(), record);
        }

        #[test]
        fn any_bytes_are_taken_or_refused(bytes: Vec<u8>) {
            if let Ok(record) = NameRecord::decode(&bytes) {
                prop_assert_eq!(NameRecord::decode(record.encode().as_bytes()), Ok(record));
            }
        }

        #[test]
        fn everybody_agrees_on_the_newest(
            records in proptest::collection::vec((any::<u8>(), 0u64..4), 1..6)
        ) {
            let all = records.iter().map(|(seed, revision)| record("a", *seed, *revision));
            let forwards = all.clone().reduce(NameRecord::newer);
            let backwards = all.rev().reduce(NameRecord::newer);
            prop_assert_eq!(forwards, backwards);
        }
    }
}
