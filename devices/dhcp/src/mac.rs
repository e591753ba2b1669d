//! The address of a client's interface, which is who it is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "MacForm", into = "MacForm")]
pub struct Mac([u8; 6]);

/// What cannot be a client's address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not the address of one interface; write six octets as 02:00:00:00:00:01")]
pub struct MacError(String);

/// As it is written: words for people, octets for machines.
#[derive(Serialize, Deserialize)]
struct MacForm(String);

impl Mac {
    /// The address of these octets, if it can be one interface's: not of a group, and not of nobody.
    pub fn new(octets: [u8; 6]) -> Option<Self> {
        (octets[0] & 1 == 0 && octets != [0; 6]).then_some(Self(octets))
    }

    /// Its octets.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, octet) in self.0.iter().enumerate() {
            let colon = if number == 0 { "" } else { ":" };
            write!(f, "{colon}{octet:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let wrong = || MacError(text.chars().take(32).collect());
        let mut octets = [0; 6];
        let mut words = text.split(':');
        for octet in &mut octets {
            let word = words.next().filter(|word| word.len() == 2).ok_or_else(wrong)?;
            if !word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *octet = u8::from_str_radix(word, 16).map_err(|_| wrong())?;
        }
        Self::new(octets).filter(|_| words.next().is_none()).ok_or_else(wrong)
    }
}

impl TryFrom<MacForm> for Mac {
    type Error = MacError;

    fn try_from(form: MacForm) -> Result<Self, MacError> {
        form.0.parse()
    }
}

impl From<Mac> for MacForm {
    fn from(mac: Mac) -> Self {
        Self(mac.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mac = Mac::new([2, 0xab, 0, 1, 2, 3]).unwrap();
        assert_eq!(mac.to_string().parse(), Ok(mac));
        for wrong in
            ["", "02:00:00:00:00", "02:00:00:00:00:01:02", "+2:00:00:00:00:01", "01:00:00:00:00:01"]
        {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
        assert_eq!(Mac::new([0; 6]), None);
    }
}
