//! Ranges of virtual identifiers: those of one service, between two requests.
//!
//! An identifier has the bits of its service, and those of the request, which spread what clients ask
//! over the servers. `S` and `s` are a service's bits, `r` a request's:
//!
//! - prefix form `SE:ss:ss:rr:rr:rr`: 20 bits of service, 24 of request;
//! - suffix form `rE:rr:rr:rr:ss:ss`: 16 bits of service, 28 of request.
//!
//! The upper half of a service's bits is its region, the hash of its name's first level; the lower half is the
//! hash of the rest, or zero. Region zero is reserved: no name has it. (Kulkarni et al., Figure 2.)

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::{InvalidName, Name, Pattern};
use crate::vid::{InvalidVid, Vid};

/// The lower half of the first byte of each identifier.
const MARK: u8 = 0x0e;

/// Where in an identifier its service is.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// At its beginning.
    #[default]
    Prefix,
    /// At its end.
    Suffix,
}

/// Why something is no range of identifiers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRange {
    /// Its end is before its beginning, or beyond the requests that there are.
    #[error(
        "requests {lo:#x} to {hi:#x} are no range: the first is the lower, the last at most {most:#x}"
    )]
    Bounds {
        /// The first.
        lo: u32,
        /// The last.
        hi: u32,
        /// The last that there is in this form.
        most: u32,
    },
    /// A service's bits that no name has.
    #[error("service {0:#x} is reserved or does not exist: take one that is the hash of a name")]
    Service(u32),
    /// No text of a range or identifier.
    #[error(
        "'{0}' is no identifier: vid:SERVICE, vid:SERVICE/REQUEST, vid:SERVICE/FIRST-LAST or \
             0e:12:00:00:00:01 are expected, requests as 0x01f3"
    )]
    Text(String),
    /// Its name is none.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Its bytes are none.
    #[error(transparent)]
    Vid(#[from] InvalidVid),
}

impl Form {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Prefix, Self::Suffix];

    /// Bits of half of a service.
    const fn half(self) -> u32 {
        match self {
            Self::Prefix => 10,
            Self::Suffix => 8,
        }
    }

    /// The last request that there is.
    pub const fn last_request(self) -> u32 {
        match self {
            Self::Prefix => (1 << 24) - 1,
            Self::Suffix => (1 << 28) - 1,
        }
    }

    /// The bits of the service called `name`. Two names may have the same: a directory refuses the second.
    pub fn service(self, name: &Name) -> u32 {
        let (region, rest) = name.hashes();
        (self.scale(region) << self.half()) | rest.map_or(0, |rest| self.scale(rest))
    }

    /// The bits of the services that `pattern` can stand for.
    pub fn region(self, pattern: &Pattern) -> RangeInclusive<u32> {
        if let Some(name) = pattern.name() {
            let service = self.service(&name);
            return service..=service;
        }
        let first = self.scale(pattern.region_hash()) << self.half();
        first..=first | ((1 << self.half()) - 1)
    }

    /// `hash` as half of a service, never zero.
    fn scale(self, hash: u64) -> u32 {
        let values = (1 << self.half()) - 1;
        u32::try_from(hash % values).map_or(1, |value| value + 1)
    }

    /// The service and the request of `vid`, if it is an identifier of this form.
    pub fn parts(self, vid: Vid) -> Option<(u32, u32)> {
        let [first, ref rest @ ..] = vid.bytes();
        if first & 0x0f != MARK {
            return None;
        }
        let [upper @ .., middle, low, lowest] = *rest;
        let upper = u32::from_be_bytes([0, first >> 4, upper[0], upper[1]]);
        Some(match self {
            Self::Prefix => (upper, u32::from_be_bytes([0, middle, low, lowest])),
            Self::Suffix => {
                (u32::from_be_bytes([0, 0, low, lowest]), (upper << 8) | u32::from(middle))
            }
        })
    }

    /// The identifier of `service` and `request`; both fit.
    fn compose(self, service: u32, request: u32) -> Vid {
        let (upper, lower) = match self {
            Self::Prefix => (service, request),
            Self::Suffix => (request >> 8, ((request & 0xff) << 16) | service),
        };
        let ([_, first, upper @ ..], [_, lower @ ..]) = (upper.to_be_bytes(), lower.to_be_bytes());
        let bytes = [(first << 4) | MARK, upper[0], upper[1], lower[0], lower[1], lower[2]];
        Vid::new(bytes).expect("the mark is that of a local unicast address")
    }
}

/// Identifiers of one service, between two requests, both of them included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Range {
    form: Form,
    service: u32,
    lo: u32,
    hi: u32,
}

/// A range as it is written; it may be none.
#[derive(Serialize, Deserialize)]
struct Fields {
    form: Form,
    service: u32,
    lo: u32,
    hi: u32,
}

impl Range {
    /// The requests `lo` to `hi` of the service with these bits.
    ///
    /// # Errors
    /// A reserved service; bounds that are none.
    pub fn new(form: Form, service: u32, lo: u32, hi: u32) -> Result<Self, InvalidRange> {
        if service >> form.half() == 0 || service >> (2 * form.half()) != 0 {
            return Err(InvalidRange::Service(service));
        }
        let most = form.last_request();
        if lo > hi || hi > most {
            return Err(InvalidRange::Bounds { lo, hi, most });
        }
        Ok(Self { form, service, lo, hi })
    }

    /// All requests of the service called `name`.
    pub fn whole(form: Form, name: &Name) -> Self {
        Self { form, service: form.service(name), lo: 0, hi: form.last_request() }
    }

    /// The requests `lo` to `hi` of the service called `name`.
    ///
    /// # Errors
    /// Bounds that are none.
    pub fn of(form: Form, name: &Name, lo: u32, hi: u32) -> Result<Self, InvalidRange> {
        Self::new(form, form.service(name), lo, hi)
    }

    /// Where its identifiers have their service.
    pub fn form(self) -> Form {
        self.form
    }

    /// Its service's bits.
    pub fn service(self) -> u32 {
        self.service
    }

    /// Its first request.
    pub fn lo(self) -> u32 {
        self.lo
    }

    /// Its last request.
    pub fn hi(self) -> u32 {
        self.hi
    }

    /// How many identifiers it has.
    pub fn count(self) -> u64 {
        u64::from(self.hi - self.lo) + 1
    }

    /// The identifier of `request`, if that is in it.
    pub fn vid(self, request: u32) -> Option<Vid> {
        (self.lo..=self.hi).contains(&request).then(|| self.form.compose(self.service, request))
    }

    /// Its first identifier.
    pub fn first(self) -> Vid {
        self.form.compose(self.service, self.lo)
    }

    /// Where a request that hashes to `hash` goes, evenly.
    pub fn pick(self, hash: u64) -> Vid {
        let offset = u32::try_from(hash % self.count()).unwrap_or_default();
        self.form.compose(self.service, self.lo + offset)
    }

    /// Whether `vid` is in it.
    pub fn contains(self, vid: Vid) -> bool {
        self.form.parts(vid).is_some_and(|(service, request)| {
            service == self.service && (self.lo..=self.hi).contains(&request)
        })
    }

    /// Whether all of `other` is in it.
    pub fn covers(self, other: Self) -> bool {
        (self.form, self.service) == (other.form, other.service)
            && self.lo <= other.lo
            && other.hi <= self.hi
    }

    /// Whether some identifier is in both.
    pub fn overlaps(self, other: Self) -> bool {
        match (self.form, other.form) {
            (Form::Prefix, Form::Suffix) => self.crosses(other),
            (Form::Suffix, Form::Prefix) => other.crosses(self),
            _ => self.service == other.service && self.lo <= other.hi && other.lo <= self.hi,
        }
    }

    /// Whether this range of prefix form and `suffix`, of the other, have an identifier in common: only one
    /// byte of those that can be is not given by the services.
    fn crosses(self, suffix: Self) -> bool {
        (0..=0xff).any(|free| {
            (self.lo..=self.hi).contains(&((free << 16) | suffix.service))
                && (suffix.lo..=suffix.hi).contains(&((self.service << 8) | free))
        })
    }

    /// It in two: until before `at`, and from there.
    ///
    /// # Errors
    /// One of them would be empty.
    pub fn split(self, at: u32) -> Result<(Self, Self), InvalidRange> {
        if at <= self.lo || at > self.hi {
            return Err(InvalidRange::Bounds { lo: at, hi: self.hi, most: self.hi });
        }
        Ok((Self { hi: at - 1, ..self }, Self { lo: at, ..self }))
    }

    /// It and `other` as one, if they are beside each other.
    pub fn merge(self, other: Self) -> Option<Self> {
        let (first, second) = if self.lo <= other.lo { (self, other) } else { (other, self) };
        let is_beside = (first.form, first.service) == (second.form, second.service)
            && first.hi.checked_add(1) == Some(second.lo);
        is_beside.then_some(Self { hi: second.hi, ..first })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.first(), self.form.compose(self.service, self.hi))
    }
}

impl TryFrom<Fields> for Range {
    type Error = InvalidRange;

    fn try_from(fields: Fields) -> Result<Self, InvalidRange> {
        Self::new(fields.form, fields.service, fields.lo, fields.hi)
    }
}

impl From<Range> for Fields {
    fn from(range: Range) -> Self {
        Self { form: range.form, service: range.service, lo: range.lo, hi: range.hi }
    }
}

/// What people write for identifiers: `vid:dhcp/0x01f3`, `vid:0e:12:00:00:00:01`, `0e:12:00:00:00:01`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// One identifier.
    Vid(Vid),
    /// Requests of a service; all of them where none are given.
    Service {
        /// The service.
        name: Name,
        /// The first and the last.
        requests: Option<(u32, u32)>,
    },
}

impl Address {
    /// The range that it is in `form`.
    ///
    /// # Errors
    /// Requests that there are not, or an identifier without service.
    pub fn range(&self, form: Form) -> Result<Range, InvalidRange> {
        match self {
            Self::Vid(vid) => {
                let (service, request) =
                    form.parts(*vid).ok_or_else(|| InvalidRange::Text(vid.to_string()))?;
                Range::new(form, service, request, request)
            }
            Self::Service { name, requests: None } => Ok(Range::whole(form, name)),
            Self::Service { name, requests: Some((lo, hi)) } => Range::of(form, name, *lo, *hi),
        }
    }
}

impl FromStr for Address {
    type Err = InvalidRange;

    fn from_str(text: &str) -> Result<Self, InvalidRange> {
        let wrong = || InvalidRange::Text(text.to_owned());
        let Some(said) = text.strip_prefix("vid:") else { return Ok(Self::Vid(text.parse()?)) };
        if said.contains(':') {
            return Ok(Self::Vid(said.parse()?));
        }
        let Some((name, requests)) = said.split_once('/') else {
            return Ok(Self::Service { name: said.parse()?, requests: None });
        };
        let number = |text: &str| match text.strip_prefix("0x") {
            Some(digits) if digits.bytes().all(|c| c.is_ascii_hexdigit()) => {
                u32::from_str_radix(digits, 16).map_err(|_| wrong())
            }
            None if text.bytes().all(|c| c.is_ascii_digit()) => text.parse().map_err(|_| wrong()),
            _ => Err(wrong()),
        };
        let (lo, hi) = requests.split_once('-').unwrap_or((requests, requests));
        Ok(Self::Service { name: name.parse()?, requests: Some((number(lo)?, number(hi)?)) })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vid(vid) => write!(f, "vid:{vid}"),
            Self::Service { name, requests: None } => write!(f, "vid:{name}"),
            Self::Service { name, requests: Some((lo, hi)) } if lo == hi => {
                write!(f, "vid:{name}/{lo:#06x}")
            }
            Self::Service { name, requests: Some((lo, hi)) } => {
                write!(f, "vid:{name}/{lo:#06x}-{hi:#06x}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn form() -> impl Strategy<Value = Form> {
        prop_oneof![Just(Form::Prefix), Just(Form::Suffix)]
    }

    prop_compose! {
        fn range()(form in form(), seed: u32, a: u32, b: u32) -> Range {
            let bits = 2 * form.half();
            let service = (seed & ((1 << bits) - 1)) | (1 << (bits - 1));
            let (a, b) = (a & form.last_request(), b & form.last_request());
            Range::new(form, service, a.min(b), a.max(b)).unwrap()
        }
    }

    #[test]
    fn bits_are_where_the_form_says() {
        let vid = Range::new(Form::Prefix, 0x51234, 0x0a_bbcc, 0x0a_bbcc).unwrap().first();
        assert_eq!(vid.to_string(), "5e:12:34:0a:bb:cc");
        let vid = Range::new(Form::Suffix, 0x5123, 0x70a_bbcc, 0x70a_bbcc).unwrap().first();
        assert_eq!(vid.to_string(), "7e:0a:bb:cc:51:23");
    }

    #[test]
    fn reserved_and_missing_services_are_refused() {
        for (form, service) in
            [(Form::Prefix, 0x3ff), (Form::Prefix, 1 << 20), (Form::Suffix, 0xff)]
        {
            assert_eq!(Range::new(form, service, 0, 1), Err(InvalidRange::Service(service)));
        }
        assert!(matches!(Range::new(Form::Prefix, 0x400, 2, 1), Err(InvalidRange::Bounds { .. })));
        assert!(matches!(
            Range::new(Form::Prefix, 0x400, 0, 1 << 24),
            Err(InvalidRange::Bounds { .. })
        ));
        assert!(
            serde_json::from_str::<Range>(r#"{"form":"prefix","service":1,"lo":0,"hi":0}"#)
                .is_err()
        );
    }

    #[test]
    fn texts_are_read_and_written() {
        for text in [
            "vid:dhcp/0x01f3",
            "vid:dhcp",
            "vid:rsmgr.slurm/0x0000-0xffff",
            "vid:0e:12:00:00:00:01",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("0e:12:00:00:00:01".parse::<Address>(), "vid:0e:12:00:00:00:01".parse());
        assert_eq!("vid:dhcp/499".parse::<Address>(), "vid:dhcp/0x1f3".parse());
        for wrong in
            ["dhcp", "vid:", "vid:*/1", "vid:a/", "vid:a/0x", "vid:a/1-", "vid:a/+1", "vid:a/0x+1"]
        {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
        let beyond: Address = "vid:dhcp/0x1000000".parse().unwrap();
        assert!(beyond.range(Form::Prefix).is_err() && beyond.range(Form::Suffix).is_ok());
        let foreign: Address = "02:12:00:00:00:01".parse().unwrap();
        assert!(foreign.range(Form::Prefix).is_err());
    }

    #[test]
    fn implementations_are_in_the_region_of_their_name() {
        for form in Form::ALL {
            let region = form.region(&"rsmgr.*".parse().unwrap());
            for name in ["rsmgr", "rsmgr.slurm", "rsmgr.pbs.eu"] {
                assert!(region.contains(&form.service(&name.parse().unwrap())), "{name}");
            }
        }
    }

    proptest! {
        #[test]
        fn an_identifier_has_the_parts_it_was_made_of(range in range(), hash: u64) {
            let vid = range.pick(hash);
            prop_assert!(range.contains(vid));
            let (service, request) = range.form().parts(vid).unwrap();
            prop_assert_eq!(service, range.service());
            prop_assert_eq!(range.vid(request), Some(vid));
        }

        #[test]
        fn what_is_split_is_merged_to_the_same(range in range(), at: u32) {
            match range.split(at & range.form().last_request()) {
                Ok((first, second)) => {
                    prop_assert!(!first.overlaps(second) && range.covers(first) && range.covers(second));
                    prop_assert_eq!(first.count() + second.count(), range.count());
                    prop_assert_eq!(second.merge(first), Some(range));
                }
                Err(_) => prop_assert!(range.split(range.lo()).is_err()),
            }
        }

        #[test]
        fn ranges_overlap_if_an_identifier_is_in_both(one in range(), other in range(), hash: u64) {
            prop_assert_eq!(one.overlaps(other), other.overlaps(one));
            prop_assert!(!other.contains(one.pick(hash)) || one.overlaps(other));
        }

        /// An identifier of one form is one of the other too.
        #[test]
        fn forms_overlap_where_they_meet(range in range(), hash: u64) {
            let vid = range.pick(hash);
            let other = if range.form() == Form::Prefix { Form::Suffix } else { Form::Prefix };
            if let Ok(single) = Address::Vid(vid).range(other) {
                prop_assert!(single.overlaps(range));
            }
        }

        #[test]
        fn services_of_names_are_never_reserved(text in "[a-z]{1,9}(\\.[a-z]{1,9}){0,3}", form in form()) {
            let name: Name = text.parse().unwrap();
            let whole = Range::whole(form, &name);
            prop_assert_eq!(Range::new(form, whole.service(), whole.lo(), whole.hi()), Ok(whole));
        }

        #[test]
        fn nothing_that_is_said_panics(text in "(vid:)?.{0,60}") {
            let _ = text.parse::<Address>();
        }
    }
}
