//! A virtual identifier: a 48-bit locally administered unicast address (IEEE 802, U/L bit set, I/G bit
//! clear), so that every Ethernet switch can forward by it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A virtual identifier.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Vid([u8; 6]);

/// Why something is no virtual identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidVid {
    /// Not six bytes in hexadecimal.
    #[error("'{0}' is no identifier: six bytes in hexadecimal are expected, as 0e:12:00:00:00:01")]
    Text(String),
    /// An address that a group or a manufacturer has.
    #[error(
        "{0} is no identifier: its first byte must be locally administered and of one receiver (x2, x6, xA, xE)"
    )]
    Reserved(String),
}

impl Vid {
    /// The identifier with these bytes, as they are in a frame.
    ///
    /// # Errors
    /// A group's address, or one that is globally administered (all zeros and broadcast are among them).
    pub fn new(bytes: [u8; 6]) -> Result<Self, InvalidVid> {
        if bytes[0] & 0b11 == 0b10 {
            Ok(Self(bytes))
        } else {
            Err(InvalidVid::Reserved(hex(bytes)))
        }
    }

    /// Its bytes, as they are in a frame.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

fn hex(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

impl fmt::Display for Vid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(self.0))
    }
}

impl fmt::Debug for Vid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vid({self})")
    }
}

impl FromStr for Vid {
    type Err = InvalidVid;

    fn from_str(text: &str) -> Result<Self, InvalidVid> {
        let wrong = || InvalidVid::Text(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Self::new(bytes) }
    }
}

impl TryFrom<String> for Vid {
    type Error = InvalidVid;

    fn try_from(text: String) -> Result<Self, InvalidVid> {
        text.parse()
    }
}

impl From<Vid> for String {
    fn from(vid: Vid) -> Self {
        vid.to_string()
    }
}
