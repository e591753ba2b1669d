//! Names of VMs and of tenants: words that are safe in paths, command lines and metrics.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The longest name, in bytes.
pub const MAX_LENGTH: usize = 63;

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{}' is no name of a {what}: it takes 1 to 63 letters, digits and - _ . and begins with a \
     letter or digit", text.escape_default()
)]
pub struct NameError {
    what: &'static str,
    text: String,
}

fn check(what: &'static str, text: &str) -> Result<(), NameError> {
    let letter = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let good = text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(letter);
    if good && text.len() <= MAX_LENGTH {
        return Ok(());
    }
    // Not all of what may be megabytes.
    Err(NameError { what, text: text.chars().take(2 * MAX_LENGTH).collect() })
}

/// The name of a VM.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String")]
#[schema(value_type = String, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", example = "web-1")]
pub struct VmName(String);

/// The name of a tenant; the default is the operator's own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String")]
#[schema(value_type = String, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", example = "acme")]
pub struct TenantName(String);

impl VmName {
    /// This name with a number behind it, shortened if it has to be.
    #[must_use]
    pub fn numbered(&self, number: u32) -> Self {
        let end = format!("-{number}");
        let kept = self.0.len().min(MAX_LENGTH - end.len());
        // All of it is ASCII, and the first letter stays.
        Self(format!("{}{end}", &self.0[..kept]))
    }

    /// A name for a fleet that was given none: no two are likely to be the same.
    pub fn of_a_fleet() -> Self {
        let mut bytes = [0; 4];
        // Should there be no random numbers, fleets can still be told apart by being named.
        let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK);
        let letter =
            |byte: &u8| char::from(b"abcdefghjkmnpqrstuvwxyz23456789ab"[usize::from(byte & 31)]);
        Self(format!("fleet-{}", bytes.iter().map(letter).collect::<String>()))
    }

    /// As people order names: those that differ in a number at the end by that number.
    pub fn cmp_natural(&self, other: &Self) -> std::cmp::Ordering {
        fn key(name: &VmName) -> (&str, Option<u64>, &str) {
            let stem = name.0.trim_end_matches(|c: char| c.is_ascii_digit());
            (stem, name.0[stem.len()..].parse().ok(), &name.0)
        }
        key(self).cmp(&key(other))
    }
}

impl Default for TenantName {
    fn default() -> Self {
        Self("default".into())
    }
}

/// What the API's document says of names of images.
#[derive(Debug, ToSchema)]
#[schema(
    as = ImageName,
    value_type = String,
    min_length = 1,
    max_length = 128,
    // Neither '..' nor '//' is in one.
    pattern = r"^[A-Za-z0-9]((\.(/\.)*/?|/(\./)*\.?)?[A-Za-z0-9_:@+-])*(\.(/\.)*/?|/(\./)*\.?)?$",
    example = "debian:12"
)]
pub struct ImageNameSchema(#[expect(dead_code, reason = "it describes")] String);

macro_rules! name {
    ($name:ident, $what:literal) => {
        impl $name {
            /// As text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check($what, text).map(|()| Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(VmName, "VM");
name!(TenantName, "tenant");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words() {
        for good in ["a", "web-1", "0.x_y", &"n".repeat(63)] {
            assert_eq!(good.parse::<VmName>().unwrap().as_str(), good);
        }
        for bad in ["", "-x", ".", "..", "a/b", "a b", "ä", &"n".repeat(64)] {
            assert!(bad.parse::<VmName>().is_err(), "{bad}");
            assert!(serde_json::from_value::<TenantName>(bad.into()).is_err(), "{bad}");
        }
    }
}
