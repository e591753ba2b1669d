//! What a directory knows of a range of identifiers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::range::Range;

/// The most bytes of the name of a host, port or owner.
const LONGEST: usize = 128;

/// Why something is no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPlace {
    /// No host and port.
    #[error("'{0}' is no place: HOST/PORT is expected, as h1/web-3")]
    Home(String),
    /// No word.
    #[error("'{0}' is no name of an owner: 1 to 128 letters, digits and .-_: are expected")]
    Owner(String),
}

/// Whether `text` is a word that may be in keys and messages.
fn is_word(text: &str) -> bool {
    (1..=LONGEST).contains(&text.len())
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || b".-_:".contains(&c))
}

/// Where a service runs: a host, and there a port of its switch or a VM's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Home {
    host: String,
    port: String,
}

impl Home {
    /// The port `port` of `host`.
    ///
    /// # Errors
    /// One of them is no word.
    pub fn new(host: &str, port: &str) -> Result<Self, InvalidPlace> {
        if is_word(host) && is_word(port) {
            Ok(Self { host: host.to_owned(), port: port.to_owned() })
        } else {
            Err(InvalidPlace::Home(format!("{host}/{port}")))
        }
    }

    /// The host.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port or the VM.
    pub fn port(&self) -> &str {
        &self.port
    }
}

impl FromStr for Home {
    type Err = InvalidPlace;

    fn from_str(text: &str) -> Result<Self, InvalidPlace> {
        let (host, port) =
            text.split_once('/').ok_or_else(|| InvalidPlace::Home(text.to_owned()))?;
        Self::new(host, port)
    }
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.port)
    }
}

/// Who keeps records alive and may change them: usually the agent of a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Owner(String);

impl Owner {
    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Owner {
    type Err = InvalidPlace;

    fn from_str(text: &str) -> Result<Self, InvalidPlace> {
        if is_word(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidPlace::Owner(text.to_owned()))
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is written as text and may be none.
macro_rules! text {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = InvalidPlace;

            fn try_from(text: String) -> Result<Self, InvalidPlace> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    };
}
text!(Home);
text!(Owner);

/// What happens to a range.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It is at its home.
    #[default]
    Home,
    /// It is at its home, and another place makes itself ready for it.
    Preparing {
        /// That place.
        to: Home,
        /// Who keeps it alive there, and may change the record.
        heir: Owner,
    },
    /// Its frames go to another place and are held there, until the service runs there. Its home is still
    /// the old one.
    Moving {
        /// That place.
        to: Home,
        /// Who keeps it alive there, and may change the record.
        heir: Owner,
    },
    /// It is at its home and stays there, because it was moved too often or somebody said so.
    Frozen,
}

impl Phase {
    /// The place and the owner that may get it.
    pub fn heir(&self) -> Option<(&Home, &Owner)> {
        match self {
            Self::Preparing { to, heir } | Self::Moving { to, heir } => Some((to, heir)),
            Self::Home | Self::Frozen => None,
        }
    }

    /// As people read it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Home => "home",
            Self::Preparing { .. } => "preparing",
            Self::Moving { .. } => "moving",
            Self::Frozen => "frozen",
        }
    }
}

/// What is known of a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The identifiers.
    pub range: Range,
    /// The service, whose hash their bits are.
    pub service: Name,
    /// Where it runs.
    pub home: Home,
    /// Where copies of its state are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<Home>,
    /// What happens to it.
    #[serde(default)]
    pub phase: Phase,
    /// Who keeps it alive.
    pub owner: Owner,
    /// Rises whenever frames are to go elsewhere; the highest wins everywhere. The directory sets it.
    #[serde(default)]
    pub epoch: u64,
    /// Differs after each change of this record. The directory sets it.
    #[serde(default, skip_serializing)]
    pub revision: u64,
}

impl Record {
    /// `range` of `service`, at `home`; epoch and revision are the directory's.
    pub fn new(range: Range, service: Name, home: Home, owner: Owner) -> Self {
        let (mirrors, phase, epoch, revision) = (Vec::new(), Phase::Home, 0, 0);
        Self { range, service, home, mirrors, phase, owner, epoch, revision }
    }

    /// The same in another phase.
    #[must_use]
    pub fn with_phase(&self, phase: Phase) -> Self {
        Self { phase, ..self.clone() }
    }

    /// The same range, at `home`, kept by `owner`.
    #[must_use]
    pub fn at(&self, home: Home, owner: Owner) -> Self {
        Self { home, owner, phase: Phase::Home, ..self.clone() }
    }

    /// The same of another range.
    #[must_use]
    pub fn with_range(&self, range: Range) -> Self {
        Self { range, ..self.clone() }
    }

    /// Where its frames are to go.
    pub fn route(&self) -> &Home {
        match &self.phase {
            Phase::Moving { to, .. } => to,
            _ => &self.home,
        }
    }
}

/// A record, and whether its owner is alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What is known.
    pub record: Record,
    /// Its owner's lease has ended: it may be taken over.
    pub is_orphan: bool,
}

impl Entry {
    /// What happens to it, as people read it.
    pub fn phase(&self) -> &'static str {
        if self.is_orphan { "orphan" } else { self.record.phase.name() }
    }
}
