//! The words that say which identifiers of a service something is about.

use std::str::FromStr;

use ::endpoint::name::Name;
use clap::{Args, ValueEnum};

use crate::api::endpoint::EndpointRange;

/// The first and the last request of a range, as `LO-HI`, or the only one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    lo: u32,
    hi: u32,
}

/// Why a text is no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no range of requests: say LO-HI, as 0-255, or one number; LO is not above HI")]
pub struct BoundsError(String);

impl FromStr for Bounds {
    type Err = BoundsError;

    fn from_str(text: &str) -> Result<Self, BoundsError> {
        let bad = || BoundsError(text.to_owned());
        // A sign would be taken by the parser of numbers.
        let number = |digits: &str| {
            let is_number = !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit());
            digits.parse().ok().filter(|_| is_number).ok_or_else(bad)
        };
        let (lo, hi) = text.split_once('-').unwrap_or((text, text));
        let bounds = Self { lo: number(lo)?, hi: number(hi)? };
        if bounds.lo <= bounds.hi { Ok(bounds) } else { Err(bad()) }
    }
}

/// Where identifiers have their service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// In front: one service's identifiers follow each other.
    Prefix,
    /// Behind: identifiers of one request number are neighbours.
    Suffix,
}

/// Which of a service's identifiers.
#[derive(Debug, Clone, Args)]
pub struct RangeOptions {
    /// Requests of the range, LO-HI or one number. Without it all that there are of the service; to announce,
    /// request 0 alone.
    #[arg(long, value_name = "LO-HI")]
    range: Option<Bounds>,

    /// Where the identifiers have their service; prefix when they are announced.
    #[arg(long, value_enum, value_name = "FORM")]
    form: Option<Form>,
}

impl RangeOptions {
    /// The same as the API has it.
    pub fn to_api(&self) -> EndpointRange {
        let form = self.form.map(|form| match form {
            Form::Prefix => "prefix".to_owned(),
            Form::Suffix => "suffix".to_owned(),
        });
        let (lo, hi) = (self.range.map(|bounds| bounds.lo), self.range.map(|bounds| bounds.hi));
        EndpointRange { form, lo, hi }
    }
}

/// A service, and which of its identifiers.
#[derive(Debug, Clone, Args)]
pub struct Which {
    /// Name of the service, as web or rsmgr.slurm.
    #[arg(value_name = "SERVICE")]
    pub service: Name,

    #[command(flatten)]
    pub range: RangeOptions,
}

/// Where something is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target(String);

/// Why a text says no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no place of an endpoint: say VM, HOST/VM, or any")]
pub struct TargetError(String);

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let mut parts = text.split('/');
        let is_some = |part: Option<&str>| part.is_some_and(|part| !part.is_empty());
        let good = is_some(parts.next())
            && parts.next().is_none_or(|vm| !vm.is_empty())
            && parts.next().is_none()
            && !text.contains(|c: char| c.is_whitespace() || c.is_control());
        if good { Ok(Self(text.to_owned())) } else { Err(TargetError(text.to_owned())) }
    }
}

impl Target {
    /// As the API has it.
    pub fn to_api(&self) -> String {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_are_vms_with_or_without_their_host() {
        for text in ["b", "host-2/b", "any"] {
            assert_eq!(text.parse::<Target>().unwrap().to_api(), text);
        }
        for text in ["", "/", "a/", "/b", "a/b/c", "a b", "a\n"] {
            assert!(text.parse::<Target>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_range_is_two_numbers_or_one() {
        assert_eq!("0-255".parse(), Ok(Bounds { lo: 0, hi: 255 }));
        assert_eq!("7".parse(), Ok(Bounds { lo: 7, hi: 7 }));
        for text in ["", "-", "1-", "-1", "+1", "2-1", "1-2-3", "4294967296", "a", "1 - 2"] {
            assert!(text.parse::<Bounds>().is_err(), "{text:?}");
        }
        let none = RangeOptions { range: None, form: None };
        assert_eq!(none.to_api(), EndpointRange::default());
    }

    proptest! {
        #[test]
        fn ranges_are_read_as_they_are_written(a: u32, b: u32) {
            let (lo, hi) = (a.min(b), a.max(b));
            prop_assert_eq!(format!("{lo}-{hi}").parse(), Ok(Bounds { lo, hi }));
            prop_assert_eq!(format!("{hi}-{lo}").parse::<Bounds>().is_ok(), lo == hi);
        }

        #[test]
        fn no_text_is_too_strange_to_be_refused(text in ".{0,40}") {
            let _ = text.parse::<Bounds>();
            let _ = text.parse::<Target>();
        }
    }
}
