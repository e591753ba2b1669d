//! Content keys: what chunks and manifests are called.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The key of a chunk: the BLAKE3 hash of its content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ChunkKey(pub [u8; 32]);

/// The id of a manifest: the BLAKE3 hash of its encoding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ManifestId(pub [u8; 32]);

/// A text that is not 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a key: expected 64 hexadecimal digits")]
pub struct InvalidKey(pub String);

fn parse_hex(text: &str) -> Result<[u8; 32], InvalidKey> {
    blake3::Hash::from_hex(text).map(Into::into).map_err(|_| InvalidKey(text.to_owned()))
}

macro_rules! hex_key {
    ($name:ident) => {
        impl $name {
            /// The key of `content`.
            pub fn of(content: &[u8]) -> Self {
                Self(*blake3::hash(content).as_bytes())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = InvalidKey;

            fn from_str(text: &str) -> Result<Self, InvalidKey> {
                parse_hex(text).map(Self)
            }
        }

        impl From<$name> for String {
            fn from(key: $name) -> Self {
                key.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidKey;

            fn try_from(text: String) -> Result<Self, InvalidKey> {
                parse_hex(&text).map(Self)
            }
        }
    };
}

hex_key!(ChunkKey);
hex_key!(ManifestId);
