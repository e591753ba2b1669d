//! What the node needs to know of a memcached key.

use crate::index::IndexKey;
use crate::key::ChunkKey;
use crate::record;

/// Client flags of a chunk of an image.
pub const CHUNK_FLAGS: u32 = record::Kind::Chunk.flags();
/// Client flags of a piece of a manifest.
pub const MANIFEST_FLAGS: u32 = record::Kind::ManifestPiece.flags();
/// Client flags of an image's name.
pub const NAME_FLAGS: u32 = record::Kind::Name.flags();

/// A memcached key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    index: IndexKey,
    kind: Kind,
    chunk: Option<ChunkKey>,
}

impl Key {
    /// The key of these bytes. Length and characters are the protocol's to check.
    pub fn new(key: &[u8]) -> Self {
        let chunk = key.strip_prefix(b"c/").and_then(|digits| {
            let digits: &[u8; 64] = digits.try_into().ok()?;
            std::str::from_utf8(digits).ok()?.parse().ok()
        });
        let kind = match key {
            [b'm', b'/', ..] => Kind::Manifest,
            [b'n', b'/', ..] => Kind::Name,
            _ if chunk.is_some() => Kind::Chunk,
            _ => Kind::Other,
        };
        Self { index: IndexKey::of(key), kind, chunk }
    }

    /// What the index calls it.
    pub fn index(&self) -> IndexKey {
        self.index
    }

    /// What it is the key of, by its form.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The hash that the content must have, if this is the key of a chunk.
    pub fn chunk(&self) -> Option<ChunkKey> {
        self.chunk
    }
}

/// Kinds of items that are counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A chunk of images.
    Chunk,
    /// A piece of a manifest.
    Manifest,
    /// An image's name.
    Name,
    /// Anything else.
    Other,
}

impl Kind {
    /// All kinds, in the order of [`PerKind`].
    pub const ALL: [Self; 4] = [Self::Chunk, Self::Manifest, Self::Name, Self::Other];

    /// The kind that client flags tell.
    pub fn of_flags(flags: u32) -> Self {
        match flags {
            CHUNK_FLAGS => Self::Chunk,
            MANIFEST_FLAGS => Self::Manifest,
            NAME_FLAGS => Self::Name,
            _ => Self::Other,
        }
    }

    /// A word for statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chunk => "chunk",
            Self::Manifest => "manifest",
            Self::Name => "name",
            Self::Other => "other",
        }
    }
}

/// A number for each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerKind([u64; 4]);

impl PerKind {
    /// That of `kind`.
    pub fn get(&self, kind: Kind) -> u64 {
        self.0[kind as usize]
    }

    /// That of `kind`, to be changed.
    pub fn get_mut(&mut self, kind: Kind) -> &mut u64 {
        &mut self.0[kind as usize]
    }

    /// The sum.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_form_and_flags() {
        let digits = "ab".repeat(32);
        let chunk = Key::new(format!("c/{digits}").as_bytes());
        assert_eq!(chunk.chunk().unwrap().to_string(), digits);
        assert_eq!(chunk.kind(), Kind::Chunk);
        assert_eq!(Key::new(b"c/12").kind(), Kind::Other);
        assert_eq!(Key::new(format!("c/{digits}0").as_bytes()).chunk(), None);
        assert_eq!(Key::new(b"m/x/0").kind(), Kind::Manifest);
        assert_eq!(Key::new(b"n/debian").kind(), Kind::Name);
        assert_eq!(Key::new(b"").kind(), Kind::Other);
        assert_eq!(Kind::of_flags(0x766d_6303), Kind::Name);
        let mut numbers = PerKind::default();
        for kind in Kind::ALL {
            *numbers.get_mut(kind) += 2;
        }
        assert_eq!((numbers.get(Kind::Name), numbers.total()), (2, 8));
    }
}
