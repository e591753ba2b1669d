//! What operations on endpoints take and give, as types.

use std::fmt;
use std::str::FromStr;

use control_abi::field::Tag;
use control_abi::operation::Operation;
use serde::{Serialize, Serializer};

use super::super::fields::{Input, Output};
use crate::driver::DriverError;

/// A virtual identifier: an Ethernet address, shown as such.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vid(pub [u8; 6]);

/// A text is no identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no identifier; write it as an Ethernet address, like 0e:53:00:00:00:01")]
pub struct BadVid(pub String);

impl FromStr for Vid {
    type Err = BadVid;

    fn from_str(text: &str) -> Result<Self, BadVid> {
        let bad = || BadVid(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(bad)?;
            // A sign is no digit of an address.
            let digits = part.bytes().all(|digit| digit.is_ascii_hexdigit()).then_some(part);
            *byte = u8::from_str_radix(digits.ok_or_else(bad)?, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for Vid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(at, byte)| {
            let colon = if at == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")
        })
    }
}

impl Serialize for Vid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

macro_rules! numbered {
    ($(#[doc = $doc:literal])+ $name:ident { $($(#[doc = $item_doc:literal])+ $item:ident = $number:literal, $label:literal;)+ }) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[doc = $item_doc])+ $item,)+
            /// One that this driver does not know.
            Other(u32),
        }

        impl $name {
            /// Its number in fields.
            pub const fn number(self) -> u32 {
                match self {
                    $(Self::$item => $number,)+
                    Self::Other(number) => number,
                }
            }
        }

        impl From<u32> for $name {
            fn from(number: u32) -> Self {
                match number {
                    $($number => Self::$item,)+
                    other => Self::Other(other),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$item => f.pad($label),)+
                    Self::Other(number) => f.pad(&number.to_string()),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

numbered! {
    /// Where identifiers have their service.
    Form {
        /// First.
        Prefix = 1, "prefix";
        /// Last.
        Suffix = 2, "suffix";
    }
}

numbered! {
    /// What happens to a range.
    Phase {
        /// It is served.
        Home = 1, "home";
        /// Another VM is being prepared for it.
        Preparing = 2, "preparing";
        /// It moves.
        Moving = 3, "moving";
        /// It stays where it is until it is thawed.
        Frozen = 4, "frozen";
        /// Nobody keeps it alive.
        Orphan = 5, "orphan";
    }
}

numbered! {
    /// A change of a table.
    Change {
        /// Something new.
        Add = 1, "add";
        /// Something else than before.
        Update = 2, "update";
        /// No more.
        Delete = 3, "delete";
    }
}

numbered! {
    /// What a VM is to do in a move.
    ErrandKind {
        /// Destination: be ready to take the service, without a voice.
        Prepare = 1, "prepare";
        /// Source: stop, and send the state.
        Stop = 2, "stop";
        /// Destination: take the state up, without a voice.
        Resume = 3, "resume";
        /// Destination: the move is decided, go on with a voice.
        Open = 4, "open";
        /// Source: the move has gone back, go on as before.
        Continue = 5, "continue";
        /// Source: forget what has gone.
        Free = 6, "free";
        /// Destination: forget what was to come.
        Discard = 7, "discard";
    }
}

/// Identifiers of a service. Without bounds: all that the VM has, or number 0 of what is announced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Range {
    /// The service.
    pub service: String,
    /// Where they have it; the prefix form if not said.
    pub form: Option<Form>,
    /// Number of the first request.
    pub low: Option<u32>,
    /// Number of the last one.
    pub high: Option<u32>,
}

impl Range {
    /// All of a service.
    pub fn all(service: &str) -> Self {
        Self { service: service.to_owned(), ..Self::default() }
    }

    pub(super) fn input(&self, operation: Operation) -> Result<Input, DriverError> {
        let mut input = Input::new(operation).text(Tag::Service, Some(&self.service))?;
        let numbers = [
            (Tag::Form, self.form.map(Form::number)),
            (Tag::Low, self.low),
            (Tag::High, self.high),
        ];
        for (tag, number) in numbers {
            if let Some(number) = number {
                input = input.u32(tag, number)?;
            }
        }
        Ok(input)
    }
}

/// A range of identifiers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Its service.
    pub service: String,
    /// Where the identifiers have it.
    pub form: Form,
    /// Number of the first request.
    pub low: u32,
    /// Number of the last one.
    pub high: u32,
    /// The first identifier, or the one that was asked for.
    pub vid: Vid,
    /// Where frames go changes with it.
    pub epoch: u64,
    /// What happens to it.
    pub phase: Phase,
    /// Whether it is this VM's.
    pub own: bool,
}

fn vids(output: &Output) -> impl Iterator<Item = Vid> {
    output.arguments().all(Tag::Vid).filter_map(|bytes| bytes.try_into().ok().map(Vid))
}

fn no_vid(operation: Operation) -> DriverError {
    DriverError::Malformed { operation, what: "there is no identifier in it".to_owned() }
}

impl Endpoint {
    pub(super) fn read(output: &Output) -> Result<Self, DriverError> {
        Ok(Self {
            service: output.text(Tag::Service)?,
            form: output.u32(Tag::Form)?.into(),
            low: output.u32(Tag::Low)?,
            high: output.u32(Tag::High)?,
            vid: vids(output).next().ok_or_else(|| no_vid(output.operation))?,
            epoch: output.u64(Tag::Epoch)?,
            phase: output.u32(Tag::Phase)?.into(),
            own: output.u32(Tag::Own)? == 1,
        })
    }
}

/// What the host wants of this VM in a move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Errand {
    /// What to do.
    pub errand: ErrandKind,
    /// In which move.
    #[serde(rename = "move")]
    pub number: u64,
    /// The service that moves.
    pub service: String,
    /// Which of its identifiers.
    pub form: Form,
    /// Number of the first request.
    pub low: u32,
    /// Number of the last one.
    pub high: u32,
    /// The first identifier.
    pub vid: Option<Vid>,
    /// Bytes of the state, where there is one.
    pub bytes: u64,
}

impl Errand {
    pub(super) fn read(output: &Output) -> Result<Self, DriverError> {
        let fields = output.arguments();
        Ok(Self {
            errand: output.u32(Tag::Errand)?.into(),
            number: output.u64(Tag::Move)?,
            service: output.text(Tag::Service)?,
            form: output.u32(Tag::Form)?.into(),
            low: output.u32(Tag::Low)?,
            high: output.u32(Tag::High)?,
            vid: vids(output).next(),
            bytes: fields.u64(Tag::Bytes).unwrap_or(0),
        })
    }
}

/// A move that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// Its number.
    #[serde(rename = "move")]
    pub number: u64,
    /// Where to.
    pub place: String,
    /// Microseconds for which the service stood still.
    #[serde(rename = "us")]
    pub microseconds: u64,
}

impl Moved {
    pub(super) fn read(output: &Output) -> Result<Self, DriverError> {
        Ok(Self {
            number: output.u64(Tag::Move)?,
            place: output.text(Tag::Place)?,
            microseconds: output.u64(Tag::Microseconds)?,
        })
    }
}

/// What SYNC has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Synced {
    /// How many changes have taken effect.
    pub count: u32,
    /// The change for which none has.
    pub failed: Option<FailedFlow>,
}

/// A change that cannot take effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailedFlow {
    /// Which.
    pub change: Change,
    /// Of which identifier.
    pub vid: Vid,
    /// Why not.
    pub message: String,
}

impl Synced {
    pub(super) fn read(output: &Output) -> Result<Self, DriverError> {
        let fields = output.arguments();
        let failed = match (fields.u32(Tag::Change), vids(output).next()) {
            (Some(change), Some(vid)) => Some(FailedFlow {
                change: change.into(),
                vid,
                message: fields.text(Tag::Message).unwrap_or_default().to_owned(),
            }),
            (None, None) => None,
            _ => return Err(no_vid(output.operation)),
        };
        Ok(Self { count: output.u32(Tag::Count)?, failed })
    }
}
