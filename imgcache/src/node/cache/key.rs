//! What the node needs to know of a memcached key.

use crate::index::IndexKey;
use crate::key::ChunkKey;
pub use crate::record::Kind;

/// A memcached key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    index: IndexKey,
    kind: Option<Kind>,
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
            [b'm', b'/', ..] => Some(Kind::ManifestPiece),
            [b'n', b'/', ..] => Some(Kind::Name),
            _ if chunk.is_some() => Some(Kind::Chunk),
            _ => None,
        };
        Self { index: IndexKey::of(key), kind, chunk }
    }

    /// What the index calls it.
    pub fn index(&self) -> IndexKey {
        self.index
    }

    /// What it is the key of, by its form; none for an item that is no image's.
    pub fn kind(&self) -> Option<Kind> {
        self.kind
    }

    /// The hash that the content must have, if this is the key of a chunk.
    pub fn chunk(&self) -> Option<ChunkKey> {
        self.chunk
    }
}

/// The kinds that are counted apart, in the order of [`PerKind`]; none for any other item.
const KINDS: [(Option<Kind>, &str); 4] = [
    (Some(Kind::Chunk), "chunk"),
    (Some(Kind::ManifestPiece), "manifest"),
    (Some(Kind::Name), "name"),
    (None, "other"),
];

/// A number for each kind of items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerKind([u64; 4]);

impl PerKind {
    /// That of `kind`.
    pub fn get(&self, kind: Option<Kind>) -> u64 {
        self.0[position(kind)]
    }

    /// That of `kind`, to be changed.
    pub fn get_mut(&mut self, kind: Option<Kind>) -> &mut u64 {
        &mut self.0[position(kind)]
    }

    /// All of them, with words for statistics.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
        KINDS.into_iter().map(|(kind, name)| (name, self.get(kind)))
    }

    /// The sum.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

fn position(kind: Option<Kind>) -> usize {
    KINDS.iter().position(|(known, _)| *known == kind).unwrap_or(KINDS.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_form_and_flags() {
        let digits = "ab".repeat(32);
        let chunk = Key::new(format!("c/{digits}").as_bytes());
        assert_eq!(chunk.chunk().unwrap().to_string(), digits);
        assert_eq!(chunk.kind(), Some(Kind::Chunk));
        assert_eq!(Key::new(b"c/12").kind(), None);
        assert_eq!(Key::new(format!("c/{digits}0").as_bytes()).chunk(), None);
        assert_eq!(Key::new(b"m/x/0").kind(), Some(Kind::ManifestPiece));
        assert_eq!(Key::new(b"n/debian").kind(), Some(Kind::Name));
        assert_eq!(Key::new(b"").kind(), None);
        assert_eq!(Kind::from_flags(0x766d_6303), Some(Kind::Name));
        let mut numbers = PerKind::default();
        for (kind, _) in KINDS {
            *numbers.get_mut(kind) += 2;
        }
        assert_eq!((numbers.get(Some(Kind::Name)), numbers.total()), (2, 8));
    }
}
