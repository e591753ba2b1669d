//! Names of services, as `dhcp` or `rsmgr.slurm`, and patterns of them, as `rsmgr.*`.
//!
//! The first level is the region; those below it are implementations. Patterns have no wildcard in the
//! first level, so that one is always looked up as one range of identifiers (Kulkarni et al., section III).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

/// The most bytes of a name.
const LONGEST: usize = 255;
/// The most bytes of one of its levels, as in the names of hosts.
const LONGEST_LEVEL: usize = 63;
/// The most levels.
const MOST_LEVELS: usize = 8;
/// What matches any level.
const WILDCARD: &str = "*";

/// Why something is no name, or no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Letters that a name has not, or too many of them.
    #[error(
        "'{0}' names no service: up to 8 levels with dots between, each of 1 to 63 of a-z, 0-9 and \
         inner hyphens, are expected, as rsmgr.slurm"
    )]
    Text(String),
    /// A wildcard where only a name may be.
    #[error("'{0}' names no single service: say one without '*'")]
    Wildcard(String),
    /// A pattern of everything.
    #[error("'{0}' has a wildcard in its first level: name the region, as rsmgr.*")]
    FirstLevel(String),
}

/// The name of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// A pattern of names: `*` stands for one level, and at the end for one or more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

/// Whether `text` can be one level of a name.
fn is_level(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=LONGEST_LEVEL).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_sized(text: &str) -> bool {
    text.len() <= LONGEST && text.split('.').count() <= MOST_LEVELS
}

impl Name {
    /// It as it was said.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Hashes of its first level, and of those below if there are any. They never change: identifiers are
    /// made of them, by hosts of different releases.
    pub(crate) fn hashes(&self) -> (u64, Option<u64>) {
        let (first, rest) = match self.0.split_once('.') {
            Some((first, rest)) => (first, Some(rest)),
            None => (self.0.as_str(), None),
        };
        let hash = |text: &str| XxHash3_64::oneshot(text.as_bytes());
        (hash(first), rest.map(hash))
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.contains('*') {
            return Err(InvalidName::Wildcard(text.to_owned()));
        }
        if is_sized(text) && text.split('.').all(is_level) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::Text(text.to_owned()))
        }
    }
}

impl Pattern {
    /// Whether it stands for `name`.
    pub fn matches(&self, name: &Name) -> bool {
        let mut levels = name.0.split('.');
        let mut wanted = self.0.split('.').peekable();
        while let Some(want) = wanted.next() {
            let Some(level) = levels.next() else { return false };
            if want == WILDCARD && wanted.peek().is_none() {
                return true;
            }
            if want != WILDCARD && want != level {
                return false;
            }
        }
        levels.next().is_none()
    }

    /// The one name that it stands for, if it has no wildcard.
    pub fn name(&self) -> Option<Name> {
        self.0.parse().ok()
    }

    /// Hash of its first level.
    pub(crate) fn region_hash(&self) -> u64 {
        let first = self.0.split('.').next().unwrap_or_default();
        XxHash3_64::oneshot(first.as_bytes())
    }
}

impl FromStr for Pattern {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let mut levels = text.split('.');
        let first = levels.next().unwrap_or_default();
        if first.contains('*') {
            return Err(InvalidName::FirstLevel(text.to_owned()));
        }
        let is_right = is_level(first) && levels.all(|level| level == WILDCARD || is_level(level));
        if is_right && is_sized(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::Text(text.to_owned()))
        }
    }
}

impl From<&Name> for Pattern {
    fn from(name: &Name) -> Self {
        Self(name.0.clone())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_of_letters_digits_and_hyphens() {
        for right in ["dhcp", "rsmgr.slurm", "a.b.c.d.e.f.g.h", "kv-2.x9"] {
            assert_eq!(right.parse::<Name>().unwrap().to_string(), right);
        }
        let long = "a".repeat(64);
        for wrong in
            ["", ".", "a.", ".a", "A", "a b", "a/b", "-a", "a-", "a.b.c.d.e.f.g.h.i", &long]
        {
            assert!(matches!(wrong.parse::<Name>(), Err(InvalidName::Text(_))), "{wrong}");
        }
        assert!(matches!("rsmgr.*".parse::<Name>(), Err(InvalidName::Wildcard(_))));
    }

    #[test]
    fn wildcards_are_below_the_first_level() {
        for wrong in ["*", "*.slurm", "rs*.slurm"] {
            assert!(matches!(wrong.parse::<Pattern>(), Err(InvalidName::FirstLevel(_))), "{wrong}");
        }
        assert!(matches!("rsmgr.s*".parse::<Pattern>(), Err(InvalidName::Text(_))));
        let matches = |pattern: &str, name: &str| {
            pattern.parse::<Pattern>().unwrap().matches(&name.parse().unwrap())
        };
        assert!(matches("rsmgr.*", "rsmgr.slurm") && matches("rsmgr.*", "rsmgr.slurm.eu"));
        assert!(!matches("rsmgr.*", "rsmgr") && !matches("rsmgr.*", "rsmgr2.slurm"));
        assert!(
            matches("a.*.c", "a.b.c") && !matches("a.*.c", "a.b.d") && !matches("a.*.c", "a.b")
        );
        assert!(matches("dhcp", "dhcp") && !matches("dhcp", "dhcp.x"));
    }

    /// What hosts of other releases have computed.
    #[test]
    fn hashes_never_change() {
        let hashes = |text: &str| text.parse::<Name>().unwrap().hashes();
        assert_eq!(hashes("dhcp"), (14_745_635_286_994_666_733, None));
        let (region, rest) = hashes("rsmgr.slurm");
        assert_eq!(region, hashes("rsmgr").0);
        assert_eq!(rest, Some(hashes("slurm").0));
    }

    proptest! {
        #[test]
        fn nothing_that_is_said_panics(text in ".{0,300}") {
            let _ = text.parse::<Name>();
            let _ = text.parse::<Pattern>();
        }

        #[test]
        fn a_name_is_a_pattern_of_itself(text in "[a-z][a-z0-9]{0,8}(\\.[a-z0-9]{1,8}){0,4}") {
            let name: Name = text.parse().unwrap();
            prop_assert!(Pattern::from(&name).matches(&name));
            prop_assert_eq!(Pattern::from(&name).name(), Some(name));
        }
    }
}
