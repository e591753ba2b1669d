//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The Ethernet address of one interface: never a group's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

/// What is no interface's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no Ethernet address of an interface: six pairs of hexadecimal digits with colons \
     between, the first pair even, not all zero, such as 02:00:00:12:34:56"
)]
pub struct MacError(String);

impl MacAddress {
    /// An interface's address of these octets.
    ///
    /// # Errors
    /// It is a group's, or all zeros.
    pub fn new(octets: [u8; 6]) -> Result<Self, MacError> {
        if octets[0] & 1 != 0 || octets == [0; 6] {
            return Err(MacError(show(octets)));
        }
        Ok(Self(octets))
    }

    /// A locally administered address made of `seed`.
    pub fn local(mut seed: [u8; 6]) -> Self {
        seed[0] = seed[0] & !1 | 2;
        Self(seed)
    }

    /// Its octets.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

fn show(octets: [u8; 6]) -> String {
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show(self.0))
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let error = || MacError(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(error)?;
            if !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(error());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() {
            return Err(error());
        }
        Self::new(octets).map_err(|_| error())
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_written() {
        let address: MacAddress = "02:00:5e:AB:cd:0f".parse().unwrap();
        assert_eq!(address.octets(), [2, 0, 0x5e, 0xab, 0xcd, 0x0f]);
        assert_eq!(address.to_string(), "02:00:5e:ab:cd:0f");
        assert_eq!(MacAddress::local([0xff; 6]).to_string(), "fe:ff:ff:ff:ff:ff");
    }

    #[test]
    fn what_is_no_interfaces_address_is_refused() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "2:0:0:0:0:0",
            "+2:00:00:00:00:00",
            "01:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            "02-00-00-00-00-00",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }
}
