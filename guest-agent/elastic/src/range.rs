//! Ranges of identifiers, and the keys that are in them.
//!
//! An identifier here is a number of 64 bits, the hash of a key. Where an Ethernet address has room for
//! fewer bits of a request, its request field is the identifier's upper bits, so that a range of request
//! fields is a range of identifiers.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Identifiers from `first` to `last`, both among them: no range is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u64, u64)", into = "(u64, u64)")]
pub struct Range {
    first: u64,
    last: u64,
}

/// The first identifier of a range is behind its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a range from {first:#x} to {last:#x} is empty: give its lower end first")]
pub struct EmptyRange {
    /// The end that was given first.
    pub first: u64,
    /// The end that was given last.
    pub last: u64,
}

impl Range {
    /// Every identifier.
    pub const ALL: Self = Self { first: 0, last: u64::MAX };

    /// From `first` to `last`.
    ///
    /// # Errors
    /// When `first` is behind `last`.
    pub fn new(first: u64, last: u64) -> Result<Self, EmptyRange> {
        if first <= last { Ok(Self { first, last }) } else { Err(EmptyRange { first, last }) }
    }

    /// The lowest identifier.
    pub fn first(self) -> u64 {
        self.first
    }

    /// The highest identifier.
    pub fn last(self) -> u64 {
        self.last
    }

    /// Whether `id` is in it.
    pub fn contains(self, id: u64) -> bool {
        (self.first..=self.last).contains(&id)
    }

    /// Whether all of `other` is in it: the assertion of Algorithm 1.
    pub fn covers(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Whether an identifier is in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// What is in both.
    pub fn common(self, other: Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last)).ok()
    }

    /// What remains of it below and above `other`.
    pub fn without(self, other: Self) -> (Option<Self>, Option<Self>) {
        let end = other.first.checked_sub(1).map(|end| end.min(self.last));
        let start = other.last.checked_add(1).map(|start| start.max(self.first));
        let below = end.and_then(|last| Self::new(self.first, last).ok());
        let above = start.and_then(|first| Self::new(first, self.last).ok());
        (below, above)
    }

    /// Its lower and upper half; none of a range of one identifier.
    pub fn halves(self) -> Option<(Self, Self)> {
        let middle = self.first + (self.last - self.first) / 2;
        let upper = Self::new(middle.checked_add(1)?, self.last).ok()?;
        Some((Self { first: self.first, last: middle }, upper))
    }

    /// Both as one range, when nothing is between them.
    pub fn joined(self, other: Self) -> Option<Self> {
        let (low, high) = if self <= other { (self, other) } else { (other, self) };
        let adjacent = low.last.checked_add(1).is_none_or(|next| high.first <= next);
        adjacent.then(|| Self { first: low.first, last: low.last.max(high.last) })
    }
}

impl TryFrom<(u64, u64)> for Range {
    type Error = EmptyRange;

    fn try_from((first, last): (u64, u64)) -> Result<Self, EmptyRange> {
        Self::new(first, last)
    }
}

impl From<Range> for (u64, u64) {
    fn from(range: Range) -> Self {
        (range.first, range.last)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}-{:#018x}", self.first, self.last)
    }
}

/// Names of objects have at most so many bytes.
pub const NAME_MAX: usize = 1024;

/// The name of an object, and where among the identifiers it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    id: u64,
    name: Arc<[u8]>,
}

impl Key {
    /// The key of this name. Whoever computes it has the same identifier, in any release.
    pub fn of(name: &[u8]) -> Self {
        Self { id: twox_hash::XxHash3_64::oneshot(name), name: name.into() }
    }

    /// Where it is among the identifiers.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// What sorts before every other key of this identifier.
    pub(crate) fn lowest(id: u64) -> Self {
        Self { id, name: [].into() }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{}", self.id, String::from_utf8_lossy(&self.name))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn range() -> impl Strategy<Value = Range> {
        // Near both ends, where arithmetic would overflow.
        let end = prop_oneof![0..20_u64, (u64::MAX - 20)..=u64::MAX];
        (end.clone(), end).prop_map(|(a, b)| Range::new(a.min(b), a.max(b)).unwrap())
    }

    proptest! {
        #[test]
        fn parts_are_what_the_whole_was(whole in range(), part in range(), id in any::<u64>()) {
            let ids = [id, part.first, part.last, whole.first, whole.last, part.first.wrapping_sub(1)];
            for id in ids {
                let (below, above) = whole.without(part);
                let pieces = [below, above, whole.common(part)];
                let count = pieces.iter().flatten().filter(|piece| piece.contains(id)).count();
                prop_assert_eq!(count, usize::from(whole.contains(id)));
            }
            prop_assert_eq!(whole.overlaps(part), whole.common(part).is_some());
            prop_assert_eq!(whole.covers(part), whole.common(part) == Some(part));
        }

        #[test]
        fn halves_join(whole in range()) {
            if let Some((low, high)) = whole.halves() {
                prop_assert!(!low.overlaps(high));
                prop_assert_eq!(low.joined(high), Some(whole));
                prop_assert_eq!(high.joined(low), Some(whole));
            } else {
                prop_assert_eq!(whole.first, whole.last);
            }
        }
    }

    #[test]
    fn an_empty_range_is_refused_from_a_file_too() {
        assert!(Range::new(2, 1).is_err());
        assert!(serde_json::from_str::<Range>("[2, 1]").is_err());
        let apart = Range::new(0, 1).unwrap().joined(Range::new(3, 4).unwrap());
        assert_eq!(apart, None);
    }

    #[test]
    fn identifiers_of_names_stay_what_they_are() {
        assert_eq!(Key::of(b"").id(), 0x2d06_8005_38d3_94c2);
    }
}
