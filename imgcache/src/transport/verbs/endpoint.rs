//! What the two sides of a connection tell each other of themselves, over a connection that they have
//! already, and how that is written.
//!
//! One line, fields in this order, one space between them:
//! ```text
//! gid=<32 hexadecimal digits> lid=<0-65535> qpn=<2-16777215> psn=<0-16777215> mtu=<256|...|4096> reads=<1-255>
//! ```
//! The version of it is that of the protocol that carries it. Numbers are decimal without leading
//! zeros or signs, so that each endpoint has one form.

use std::fmt;
use std::str::FromStr;

/// The longest that an endpoint's text can be, in bytes.
pub const MAX_TEXT: usize = 96;
/// Queue and packet numbers have 24 bits.
const NUMBERS: u32 = 1 << 24;

/// One side of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// The port's address, in network order. With RoCE over IPv4 `::ffff:a.b.c.d`.
    pub gid: [u8; 16],
    /// The port's local address in an InfiniBand subnet; 0 on Ethernet.
    pub lid: u16,
    /// The queue's number, 24 bits.
    pub qpn: u32,
    /// The first packet's number, 24 bits; random.
    pub psn: u32,
    /// Bytes in the largest packet that its port sends now: a power of two from 256 to 4096.
    pub mtu: u16,
    /// READs that it answers at once.
    pub reads: u8,
}

/// Why a text is no endpoint, or none that can be connected to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// The text is too long.
    #[error("an RDMA endpoint has at most {MAX_TEXT} bytes, not {0}")]
    TooLong(usize),
    /// A field is missing, not in its place, or not in its form or range.
    #[error("no RDMA endpoint: its field '{0}' is missing or wrong")]
    Field(&'static str),
    /// There is more than the fields.
    #[error("no RDMA endpoint: there is more after its fields")]
    Trailing,
    /// The address is none of a single port.
    #[error("the RDMA endpoint has the address {0:02x?}, which no port has")]
    Address([u8; 16]),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "gid={:032x} lid={} qpn={} psn={} mtu={} reads={}",
            u128::from_be_bytes(self.gid),
            self.lid,
            self.qpn,
            self.psn,
            self.mtu,
            self.reads
        )
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        if text.len() > MAX_TEXT {
            return Err(EndpointError::TooLong(text.len()));
        }
        let mut fields = text.split(' ');
        let mut next = |name| {
            let value = fields.next().and_then(|field| field.strip_prefix(name)?.strip_prefix('='));
            value.ok_or(EndpointError::Field(name))
        };
        let endpoint = Self {
            gid: gid(next("gid")?).ok_or(EndpointError::Field("gid"))?,
            lid: number(next("lid")?).ok_or(EndpointError::Field("lid"))?,
            qpn: number(next("qpn")?).ok_or(EndpointError::Field("qpn"))?,
            psn: number(next("psn")?).ok_or(EndpointError::Field("psn"))?,
            mtu: number(next("mtu")?).ok_or(EndpointError::Field("mtu"))?,
            reads: number(next("reads")?).ok_or(EndpointError::Field("reads"))?,
        };
        if fields.next().is_some() {
            return Err(EndpointError::Trailing);
        }
        endpoint.check()?;
        Ok(endpoint)
    }
}

impl Endpoint {
    /// Whether all fields are in their ranges and the address can be one port's.
    ///
    /// # Errors
    /// The first field that is not.
    pub fn check(&self) -> Result<(), EndpointError> {
        if !(2..NUMBERS).contains(&self.qpn) {
            return Err(EndpointError::Field("qpn"));
        }
        if self.psn >= NUMBERS {
            return Err(EndpointError::Field("psn"));
        }
        if !self.mtu.is_power_of_two() || !(256..=4096).contains(&self.mtu) {
            return Err(EndpointError::Field("mtu"));
        }
        if self.reads == 0 {
            return Err(EndpointError::Field("reads"));
        }
        // All zero, all of a group, or IPv4's broadcast, groups and "this host".
        let v4 = self.gid[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        let group = self.gid[0] == 0xff || (v4 && self.gid[12] >= 224);
        if group || self.gid == [0; 16] || (v4 && self.gid[12] == 0) {
            return Err(EndpointError::Address(self.gid));
        }
        Ok(())
    }
}

fn gid(text: &str) -> Option<[u8; 16]> {
    let lower = text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    (text.len() == 32 && lower).then(|| u128::from_str_radix(text, 16).ok())?.map(u128::to_be_bytes)
}

fn number<N: FromStr>(text: &str) -> Option<N> {
    let plain = text.bytes().all(|c| c.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "gid=00000000000000000000ffff0a630001 lid=0 qpn=17 psn=9 mtu=4096 reads=16";

    #[test]
    fn the_form_is_fixed() {
        let endpoint: Endpoint = TEXT.parse().unwrap();
        assert_eq!(endpoint.gid[12..], [10, 99, 0, 1]);
        assert_eq!((endpoint.qpn, endpoint.psn, endpoint.mtu, endpoint.reads), (17, 9, 4096, 16));
        assert_eq!(endpoint.to_string(), TEXT);
    }

    #[test]
    fn what_is_out_of_form_or_range_is_refused_by_name() {
        for (from, to, field) in [
            ("gid=0", "gid=", "gid"),
            ("0a63", "0A63", "gid"),
            ("gid=0000", "gid=+000", "gid"),
            ("lid=0", "lid=65536", "lid"),
            ("lid=0", "lid=00", "lid"),
            ("qpn=17", "qpn=1", "qpn"),
            ("qpn=17", "qpn=16777216", "qpn"),
            ("qpn=17", "qpn=+17", "qpn"),
            ("psn=9", "psn=16777216", "psn"),
            ("psn=9", "psn=", "psn"),
            ("mtu=4096", "mtu=1500", "mtu"),
            ("mtu=4096", "mtu=8192", "mtu"),
            ("reads=16", "reads=0", "reads"),
            ("reads=16", "reads=256", "reads"),
            (" reads=16", "", "reads"),
            ("lid=0 qpn=17", "qpn=17 lid=0", "lid"),
            ("lid=0 ", "lid=0  ", "qpn"),
        ] {
            let text = TEXT.replacen(from, to, 1);
            assert_eq!(text.parse::<Endpoint>(), Err(EndpointError::Field(field)), "{text}");
        }
        assert_eq!(format!("{TEXT} x=1").parse::<Endpoint>(), Err(EndpointError::Trailing));
        assert_eq!(format!("{TEXT}\n").parse::<Endpoint>(), Err(EndpointError::Field("reads")));
        let long = format!("{TEXT}{}", " ".repeat(MAX_TEXT));
        assert_eq!(long.parse::<Endpoint>(), Err(EndpointError::TooLong(long.len())));
    }

    #[test]
    fn addresses_of_groups_and_of_nobody_are_refused() {
        for gid in [
            "00000000000000000000000000000000",
            "ff020000000000000000000000000001",
            "00000000000000000000ffffffffffff",
            "00000000000000000000ffffe0000001",
            "00000000000000000000ffff00000000",
        ] {
            let text = TEXT.replace("00000000000000000000ffff0a630001", gid);
            assert!(matches!(text.parse::<Endpoint>(), Err(EndpointError::Address(_))), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_endpoint_is_read_as_it_was_written(
            gid: [u8; 16], lid: u16, qpn in 2..NUMBERS, psn in 0..NUMBERS,
            mtu in prop::sample::select(vec![256_u16, 512, 1024, 2048, 4096]), reads in 1..=255_u8,
        ) {
            let endpoint = Endpoint { gid, lid, qpn, psn, mtu, reads };
            let text = endpoint.to_string();
            prop_assert!(text.len() <= MAX_TEXT);
            match text.parse::<Endpoint>() {
                Ok(read) => prop_assert_eq!(read, endpoint),
                Err(error) => prop_assert_eq!(error, EndpointError::Address(gid)),
            }
        }

        /// Whatever comes is refused, or has exactly this form.
        #[test]
        fn nothing_else_is_taken(text in "[ -~]{0,100}", at in 0..TEXT.len(), byte in 0_u8..128) {
            let mut damaged = TEXT.as_bytes().to_vec();
            damaged[at] = byte;
            for text in [text, String::from_utf8(damaged).unwrap()] {
                if let Ok(endpoint) = text.parse::<Endpoint>() {
                    prop_assert_eq!(endpoint.to_string(), text);
                }
            }
        }
    }
}
