//! What a node tells those who are to read its memory from afar: where the index is, and the content.
//!
//! ```text
//! <boot id, 16 hex digits> <buckets> <index> <content> <bytes> <quarantine ms>
//! ```
//! Decimal where not said otherwise; offsets and lengths in bytes of the exported region.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::reader::Exported;
use super::table::{GeometryError, TableGeometry};

/// The memory that a node exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// The table, and where content can be.
    pub exported: Exported,
    /// Where the table begins in the region, in bytes.
    pub index: u64,
    /// How long content that was removed stays as it was.
    pub quarantine: Duration,
}

/// Why a text announces nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnouncementError {
    /// Not the words that there should be.
    #[error("'{0}' does not announce memory")]
    Words(String),
    /// No such table.
    #[error(transparent)]
    Table(#[from] GeometryError),
    /// The parts do not lie in the region one after the other.
    #[error(
        "an index of {table} bytes at {index} and content from {content} on do not fit into {bytes} bytes"
    )]
    Layout {
        /// Bytes of the table.
        table: u64,
        /// Where it begins.
        index: u64,
        /// Where content begins.
        content: u64,
        /// Bytes of the region.
        bytes: u64,
    },
}

impl fmt::Display for Announcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { exported: Exported { boot_id, table, content, bytes, .. }, index, quarantine } =
            self;
        let (buckets, quarantine) = (table.buckets(), quarantine.as_millis());
        write!(f, "{boot_id:016x} {buckets} {index} {content} {bytes} {quarantine}")
    }
}

impl FromStr for Announcement {
    type Err = AnnouncementError;

    fn from_str(text: &str) -> Result<Self, AnnouncementError> {
        let wrong = || AnnouncementError::Words(text.chars().take(100).collect());
        let words: Vec<&str> = text.split(' ').collect();
        let [boot_id, numbers @ ..] = words.as_slice() else { return Err(wrong()) };
        let is_hex = boot_id.len() == 16 && boot_id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let boot_id = u64::from_str_radix(boot_id, 16).ok().filter(|_| is_hex).ok_or_else(wrong)?;
        let numbers: Vec<u64> =
            numbers.iter().map(|word| number(word)).collect::<Option<_>>().ok_or_else(wrong)?;
        let [buckets, index, content, bytes, quarantine] = numbers[..] else {
            return Err(wrong());
        };
        let table = TableGeometry::with_buckets(buckets)?;
        let ends = index.checked_add(table.bytes());
        // Words of the table are read whole.
        if !index.is_multiple_of(8) || ends.is_none_or(|end| end > content) || content > bytes {
            let table = table.bytes();
            return Err(AnnouncementError::Layout { table, index, content, bytes });
        }
        let exported = Exported { boot_id, table, region: 0, bytes, content };
        Ok(Self { exported, index, quarantine: Duration::from_millis(quarantine) })
    }
}

/// Digits only: no sign.
fn number(word: &str) -> Option<u64> {
    word.parse().ok().filter(|_| word.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_announced_is_understood(
            boot_id: u64, bits in 0..20_u32, index in 0..1_u64 << 40, gap in 0..1_u64 << 40,
            content_bytes in 0..1_u64 << 40, quarantine in 0..1_u64 << 32,
        ) {
            let table = TableGeometry::with_buckets(1 << bits).unwrap();
            let index = index / 8 * 8;
            let content = index + table.bytes() + gap;
            let bytes = content + content_bytes;
            let announcement = Announcement {
                exported: Exported { boot_id, table, region: 0, bytes, content },
                index,
                quarantine: Duration::from_millis(quarantine),
            };
            prop_assert_eq!(announcement.to_string().parse(), Ok(announcement));
        }

        #[test]
        fn nothing_is_understood_that_was_not_meant(text in "[0-9a-f +-]{0,60}") {
            if let Ok(announcement) = text.parse::<Announcement>() {
                prop_assert_eq!(
                    announcement.to_string().to_lowercase().split(' ').count(),
                    text.split(' ').count()
                );
                let Exported { table, content, bytes, .. } = announcement.exported;
                prop_assert!(announcement.index + table.bytes() <= content && content <= bytes);
            }
        }
    }

    #[test]
    fn a_layout_that_cannot_be_is_refused() {
        let parse = |text: &str| text.parse::<Announcement>();
        assert!(parse("00000000000000ff 8 4096 8192 8192 0").is_ok());
        for text in [
            "00000000000000ff 8 4097 8193 8192 0",
            "00000000000000ff 8 4100 8196 9000 0",
            "00000000000000ff 8 18446744073709551608 8192 8192 0",
            "00000000000000ff 8 4096 8191 8192 0",
            "00000000000000ff 8 4096 8192 8191 0",
        ] {
            assert!(matches!(parse(text), Err(AnnouncementError::Layout { .. })), "{text}");
        }
        assert!(matches!(
            parse("00000000000000ff 7 4096 8192 8192 0"),
            Err(AnnouncementError::Table(_))
        ));
        for text in ["", "ff 8 4096 8192 8192 0", "00000000000000ff 8 +4096 8192 8192 0"] {
            assert!(matches!(parse(text), Err(AnnouncementError::Words(_))), "{text}");
        }
    }
}
