//! A pack: the file with the chunks that one push brought, and how to tell that it is untouched.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::str::FromStr;

/// Chunks of a segment keep their offset in it modulo this, in bytes, so that 2 MiB of a segment
/// can be mapped into a guest as one huge page.
pub(super) const HUGE_PAGE: u64 = 2 << 20;
/// The least alignment of a segment in a pack, in bytes.
const PAGE: u64 = 4 << 10;

/// The random name of a pack.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PackId(pub(super) [u8; 16]);

impl PackId {
    pub(super) fn random() -> io::Result<Self> {
        let mut id = [0; 16];
        let mut filled = 0;
        while let Some(rest) = id.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
        }
        Ok(Self(id))
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackId({self})")
    }
}

impl FromStr for PackId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let canonical = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if text.len() != 32 || !text.chars().all(canonical) {
            return Err(());
        }
        u128::from_str_radix(text, 16).map(|id| Self(id.to_be_bytes())).map_err(|_| ())
    }
}

/// What a file's status was when its content was last known to be right.
///
/// Whoever writes to the file changes its ctime, which no system call sets; so a file whose status
/// still equals its seal still holds what was sealed, as far as the file system goes. Damage below
/// the file system is left to the chunks' checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seal {
    device: u64,
    inode: u64,
    size: u64,
    mtime: i64,
    mtime_nsec: i64,
    ctime: i64,
    ctime_nsec: i64,
}

impl Seal {
    /// Bytes of the encoding.
    pub(super) const BYTES: usize = 7 * 8;

    /// The status of `file` now.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let status = file.metadata()?;
        Ok(Self {
            device: status.dev(),
            inode: status.ino(),
            size: status.size(),
            mtime: status.mtime(),
            mtime_nsec: status.mtime_nsec(),
            ctime: status.ctime(),
            ctime_nsec: status.ctime_nsec(),
        })
    }

    pub(super) fn encode(&self) -> [u8; Self::BYTES] {
        let fields = [
            self.device.to_le_bytes(),
            self.inode.to_le_bytes(),
            self.size.to_le_bytes(),
            self.mtime.to_le_bytes(),
            self.mtime_nsec.to_le_bytes(),
            self.ctime.to_le_bytes(),
            self.ctime_nsec.to_le_bytes(),
        ];
        let mut bytes = [0; Self::BYTES];
        for (place, field) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(fields) {
            *place = field;
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8; Self::BYTES]) -> Self {
        let mut fields = bytes.as_chunks::<8>().0.iter().copied();
        let mut next = || fields.next().unwrap_or_default();
        Self {
            device: u64::from_le_bytes(next()),
            inode: u64::from_le_bytes(next()),
            size: u64::from_le_bytes(next()),
            mtime: i64::from_le_bytes(next()),
            mtime_nsec: i64::from_le_bytes(next()),
            ctime: i64::from_le_bytes(next()),
            ctime_nsec: i64::from_le_bytes(next()),
        }
    }
}

/// Decides where the segments of a push go in its pack.
#[derive(Debug, Default)]
pub(super) struct Allocator {
    end: u64,
}

impl Allocator {
    /// Where the next segment begins. `length` is in bytes; `None` if it is not known yet.
    ///
    /// A segment of a huge page or more has all the huge pages that it touches to itself, so that
    /// they are zero where it is not.
    pub(super) fn begin(&mut self, length: Option<u64>) -> Option<u64> {
        let align = if length.is_none_or(|length| length >= HUGE_PAGE) { HUGE_PAGE } else { PAGE };
        self.end = self.end.checked_next_multiple_of(align)?;
        Some(self.end)
    }

    /// Ends the segment that `begin` placed at `start`, now that its length is known.
    pub(super) fn finish(&mut self, start: u64, length: u64) -> Option<()> {
        let align = if length >= HUGE_PAGE { HUGE_PAGE } else { PAGE };
        self.end = start.checked_add(length)?.checked_next_multiple_of(align)?;
        Some(())
    }

    /// Length that the file must have: whole huge pages.
    pub(super) fn file_length(&self) -> Option<u64> {
        self.end.checked_next_multiple_of(HUGE_PAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_reversible_and_differ() {
        let id = PackId::random().unwrap();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_ne!(id, PackId::random().unwrap());
        assert!("AB".repeat(16).parse::<PackId>().is_err());
        assert!("ab".repeat(15).parse::<PackId>().is_err());
        assert!(format!("+{}", "a".repeat(31)).parse::<PackId>().is_err());
    }

    #[test]
    fn seals_are_reversible() {
        let seal = Seal {
            device: 1,
            inode: 2,
            size: u64::MAX,
            mtime: -4,
            mtime_nsec: 5,
            ctime: i64::MIN,
            ctime_nsec: 7,
        };
        assert_eq!(Seal::decode(&seal.encode()), seal);
    }

    #[test]
    fn large_segments_have_their_huge_pages_to_themselves() {
        let mut allocator = Allocator::default();
        assert_eq!(allocator.begin(Some(100)), Some(0));
        allocator.finish(0, 100).unwrap();
        assert_eq!(allocator.begin(Some(5000)), Some(4096));
        allocator.finish(4096, 5000).unwrap();
        assert_eq!(allocator.begin(None), Some(HUGE_PAGE));
        allocator.finish(HUGE_PAGE, HUGE_PAGE + 1).unwrap();
        assert_eq!(allocator.begin(Some(1)), Some(3 * HUGE_PAGE));
        allocator.finish(3 * HUGE_PAGE, 1).unwrap();
        assert_eq!(allocator.file_length(), Some(4 * HUGE_PAGE));
    }
}
