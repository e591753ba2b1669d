//! Names of images: what a person types, and the file name that a store keeps it under.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes. A file name may have 255, and the encoding keeps the length.
pub const MAX_NAME_LENGTH: usize = 128;

/// Stands for `/` in file names; no name contains it.
const SLASH_IN_FILE_NAME: char = ',';

/// The name of an image, such as `debian:12` or `team/app@v2`.
///
/// 1 to 128 characters of `A-Z a-z 0-9 . _ : / @ + -`, the first a letter or digit, without `..`
/// and `//`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ImageName(String);

/// Why a text is not an image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No characters at all.
    #[error("an image name cannot be empty")]
    Empty,
    /// More than [`MAX_NAME_LENGTH`] bytes.
    #[error("an image name has at most {MAX_NAME_LENGTH} characters; this one has {length} bytes")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// The first character is neither letter nor digit.
    #[error("image name '{name}': must begin with a letter or digit, not {found:?}")]
    Start {
        /// The refused text.
        name: String,
        /// Its first character.
        found: char,
    },
    /// A character outside the alphabet.
    #[error(
        "image name '{name}': character {position} is {found:?}; \
         allowed are letters, digits and . _ : / @ + -"
    )]
    Character {
        /// The refused text.
        name: String,
        /// The offending character.
        found: char,
        /// Its position, counted from 1.
        position: usize,
    },
    /// `..` or `//`.
    #[error("image name '{name}': '{pair}' at character {position} is not allowed")]
    Pair {
        /// The refused text.
        name: String,
        /// The offending pair.
        pair: &'static str,
        /// Its position, counted from 1.
        position: usize,
    },
}

impl ImageName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The one path component that stands for this name in a store.
    pub fn to_file_name(&self) -> String {
        self.0.replace('/', SLASH_IN_FILE_NAME.encode_utf8(&mut [0; 4]))
    }

    /// The name that [`Self::to_file_name`] encoded as `file_name`.
    ///
    /// # Errors
    /// If no name has this encoding.
    pub fn from_file_name(file_name: &str) -> Result<Self, NameError> {
        file_name.replace(SLASH_IN_FILE_NAME, "/").parse()
    }
}

impl FromStr for ImageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check(text)?;
        Ok(Self(text.to_owned()))
    }
}

fn check(text: &str) -> Result<(), NameError> {
    let Some(first) = text.chars().next() else { return Err(NameError::Empty) };
    if text.len() > MAX_NAME_LENGTH {
        return Err(NameError::TooLong { length: text.len() });
    }
    let name = || text.to_owned();
    if !first.is_ascii_alphanumeric() {
        return Err(NameError::Start { name: name(), found: first });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._:/@+-".contains(c);
    if let Some((index, found)) = text.chars().enumerate().find(|(_, c)| !allowed(*c)) {
        return Err(NameError::Character { name: name(), found, position: index + 1 });
    }
    for pair in ["..", "//"] {
        if let Some(index) = text.find(pair) {
            return Err(NameError::Pair { name: name(), pair, position: index + 1 });
        }
    }
    Ok(())
}

impl TryFrom<String> for ImageName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        check(&text)?;
        Ok(Self(text))
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn says_what_is_wrong_and_where() {
        let refused = |text: &str| text.parse::<ImageName>().unwrap_err();
        assert_eq!(refused(""), NameError::Empty);
        assert_eq!(refused(&"a".repeat(129)), NameError::TooLong { length: 129 });
        assert_eq!(refused(".a"), NameError::Start { name: ".a".into(), found: '.' });
        assert_eq!(
            refused("ab c"),
            NameError::Character { name: "ab c".into(), found: ' ', position: 3 }
        );
        assert_eq!(
            refused("ab/../c"),
            NameError::Pair { name: "ab/../c".into(), pair: "..", position: 4 }
        );
        assert_eq!(
            refused("a//c"),
            NameError::Pair { name: "a//c".into(), pair: "//", position: 2 }
        );
        assert!(refused("a,b").to_string().contains("character 2 is ','"));
        assert!("a".repeat(128).parse::<ImageName>().is_ok());
    }

    #[test]
    fn serde_checks() {
        let name: ImageName = serde_json::from_str("\"debian:12\"").unwrap();
        assert_eq!(serde_json::to_string(&name).unwrap(), "\"debian:12\"");
        assert!(serde_json::from_str::<ImageName>("\"../x\"").is_err());
    }

    proptest! {
        #[test]
        fn file_names_are_reversible(text in "[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}") {
            if let Ok(name) = text.parse::<ImageName>() {
                let file = name.to_file_name();
                prop_assert!(!file.contains('/') && file.len() <= 255);
                prop_assert_eq!(ImageName::from_file_name(&file).unwrap(), name);
            } else {
                prop_assert!(text.contains("..") || text.contains("//"));
            }
        }

        #[test]
        fn any_text_is_taken_or_refused(text in "\\PC*") {
            if let Ok(name) = text.parse::<ImageName>() {
                prop_assert_eq!(name.as_str(), text);
            }
        }
    }
}
