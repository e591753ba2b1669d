//! What every switch does.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use endpoint::vid::Vid;
use serde::{Deserialize, Serialize};

use crate::plane::{PlaneError, Waiter};

/// Where frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Port {
    /// A port of this switch: an interface's number on a bridge, `OpenFlow`'s number of the port in Open
    /// vSwitch, the number that was given when it was added in user space.
    Local(u32),
    /// Another host, by the address of its VXLAN tunnel endpoint.
    Remote(IpAddr),
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(number) => write!(f, "port {number}"),
            Self::Remote(address) => write!(f, "host {address}"),
        }
    }
}

/// One change of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// An identifier that there was none of gets a home.
    Add {
        /// The identifier.
        vid: Vid,
        /// Its home.
        port: Port,
    },
    /// An identifier gets another home.
    Update {
        /// The identifier.
        vid: Vid,
        /// Its new home.
        port: Port,
    },
    /// An identifier has no home any more.
    Delete {
        /// The identifier.
        vid: Vid,
    },
}

impl Change {
    /// The identifier that it is about.
    pub fn vid(&self) -> Vid {
        match self {
            Self::Add { vid, .. } | Self::Update { vid, .. } | Self::Delete { vid } => *vid,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add { vid, port } => write!(f, "add {vid} at {port}"),
            Self::Update { vid, port } => write!(f, "update {vid} to {port}"),
            Self::Delete { vid } => write!(f, "delete {vid}"),
        }
    }
}

/// How much is held of one identifier; whichever is reached first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Frames.
    pub frames: u32,
    /// Bytes of frames, headers included. Queues of the kernel count frames only.
    pub bytes: u64,
}

impl Default for Limit {
    /// 10,000 frames or 16 MiB: half a second at 20,000 frames/s.
    fn default() -> Self {
        Self { frames: 10_000, bytes: 16 << 20 }
    }
}

/// How an identifier is held while it moves.
#[derive(Clone, Copy, Debug)]
pub struct Hold {
    /// Who holds: only it can release. Any number that two movers do not share.
    pub owner: u64,
    /// Where the identifier is to be. The hold re-points first: a frame that comes from now on goes there
    /// or, if the hold is not released, back.
    pub to: Port,
    /// When the hold ends by itself, in favour of the last committed home.
    pub deadline: Instant,
    /// How much is held; what comes above it is dropped and counted.
    pub limit: Limit,
}

/// What a switch knows of an identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// The identifier.
    pub vid: Vid,
    /// Its last committed home.
    pub home: Port,
    /// Where it will be when the hold is released, and who holds.
    pub moving: Option<(Port, u64)>,
}

/// What a switch has counted since it was started. `None`: its plane cannot tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Frames that were handed to a port.
    pub forwarded: Option<u64>,
    /// Frames that waited in a hold.
    pub held: Option<u64>,
    /// Frames that wait in holds now.
    pub holding: Option<u64>,
    /// Frames that were dropped because a hold was full.
    pub overflow: Option<u64>,
    /// Frames to identifiers without a home that were dropped.
    pub unknown: Option<u64>,
    /// Frames that reached a port that had ceased to be their identifier's home while they were underway.
    pub stale: Option<u64>,
    /// Frames that were dropped because their sender is not at the port that they came from.
    pub spoofed: Option<u64>,
    /// Frames that were dropped because a port is muted.
    pub muted: Option<u64>,
    /// Frames that look like answers to marks and are none: no mark, or one of another port.
    pub forged: Option<u64>,
    /// Frames that were dropped because a port's receiver did not take them in time.
    pub congested: Option<u64>,
    /// Flows.
    pub flows: u64,
    /// Holds that were begun.
    pub holds: u64,
    /// Holds that were released to the destination.
    pub released: u64,
    /// Holds whose owner gave up.
    pub cancelled: u64,
    /// Holds that ended at their deadline.
    pub expired: u64,
    /// Batches that were rolled back.
    pub rolled_back: u64,
}

/// Why a switch did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// There is a home already.
    #[error("{vid} is at {home} already: update it, or delete it first")]
    Exists {
        /// The identifier.
        vid: Vid,
        /// Where it is.
        home: Port,
    },
    /// There is no home.
    #[error("{0} has no home here: add it first")]
    Unknown(Vid),
    /// Somebody moves it.
    #[error("{vid} is held by {owner:#x}: wait until it releases, or its deadline passes")]
    Held {
        /// The identifier.
        vid: Vid,
        /// Who holds.
        owner: u64,
    },
    /// Nobody holds it, or not any more.
    #[error(
        "{0} is not held: the hold's deadline has passed, or there was none; look where it is now"
    )]
    NotHeld(Vid),
    /// The deadline has passed already.
    #[error("the deadline of the hold of {0} has passed already: give it some time")]
    Late(Vid),
    /// Nothing could be held.
    #[error(
        "a hold of {0} that may hold nothing: give it a limit of one frame and its bytes at least"
    )]
    NoRoom(Vid),
    /// What carries the frames.
    #[error(transparent)]
    Plane(#[from] PlaneError),
}

/// Why a batch was not applied: nothing of it is in force, apart from `unrestored`.
#[derive(Debug, thiserror::Error)]
#[error("entry {index} ({change}): {source}; {}", state(unrestored))]
pub struct SyncError {
    /// The entry that failed, counted from 0.
    pub index: usize,
    /// That entry.
    pub change: Change,
    /// Why.
    pub source: SwitchError,
    /// Identifiers whose former home could not be put back: their frames may go to either.
    pub unrestored: Vec<Vid>,
}

fn state(unrestored: &[Vid]) -> String {
    if unrestored.is_empty() {
        return "all entries before it were rolled back".into();
    }
    let names: Vec<_> = unrestored.iter().map(Vid::to_string).collect();
    format!("update these again, they could not be rolled back: {}", names.join(", "))
}

/// A marker that is underway.
#[derive(Debug)]
pub struct Mark {
    /// Through which port.
    pub port: Port,
    /// By what its answer is known.
    pub nonce: u64,
    pub(crate) waiter: Box<dyn Waiter>,
}

impl Mark {
    /// Waits up to `patience` until everything that was to be delivered through the port before the mark has
    /// been; whether it has.
    ///
    /// # Errors
    /// The port is gone.
    pub fn passed(&mut self, patience: Duration) -> Result<bool, PlaneError> {
        self.waiter.wait(patience)
    }
}

/// A switch that forwards by virtual identifier. Any thread may ask it.
pub trait Switch: Send + Sync {
    /// Gives `vid` a home.
    ///
    /// # Errors
    /// It has one, there is no such port, or what carries the frames refuses.
    fn add(&self, vid: Vid, port: Port) -> Result<(), SwitchError>;

    /// Gives `vid` another home at once, without holding anything; the former one.
    ///
    /// # Errors
    /// It has none, somebody holds it, there is no such port, or what carries the frames refuses.
    fn update(&self, vid: Vid, port: Port) -> Result<Port, SwitchError>;

    /// Takes its home from `vid`: frames to it are unknown from now on. The former one.
    ///
    /// # Errors
    /// It has none, somebody holds it, or what carries the frames refuses.
    fn delete(&self, vid: Vid) -> Result<Port, SwitchError>;

    /// Makes all of `changes`, or none.
    ///
    /// # Errors
    /// An entry failed; it is named, and what was applied is rolled back.
    fn sync(&self, changes: &[Change]) -> Result<(), SyncError>;

    /// All identifiers with a home, in their order.
    fn flows(&self) -> Vec<Flow>;

    /// Points `vid` to where it moves, and holds its frames until they are released.
    ///
    /// # Errors
    /// It has no home, somebody holds it already, there is no such port, the hold would end at once, or what
    /// carries the frames refuses.
    fn hold(&self, vid: Vid, hold: Hold) -> Result<(), SwitchError>;

    /// Commits the move: what was held is delivered at the destination in its order, then what is new. The
    /// new home.
    ///
    /// # Errors
    /// It is not held (any more), or by somebody else, or what carries the frames refuses.
    fn release(&self, vid: Vid, owner: u64) -> Result<Port, SwitchError>;

    /// Gives the move up: what was held is delivered at the last committed home in its order. That home.
    ///
    /// # Errors
    /// As of [`release`](Self::release).
    fn cancel(&self, vid: Vid, owner: u64) -> Result<Port, SwitchError>;

    /// Lets nothing through that the port sends, apart from answers to marks. What is for it still
    /// reaches it.
    ///
    /// # Errors
    /// There is no such port, or what carries the frames refuses.
    fn mute(&self, port: Port) -> Result<(), SwitchError>;

    /// Lets through again what the port sends.
    ///
    /// # Errors
    /// There is no such port, or what carries the frames refuses.
    fn unmute(&self, port: Port) -> Result<(), SwitchError>;

    /// Sends a marker (see [`mark`](crate::mark)) through `port`, behind everything that goes there already.
    ///
    /// # Errors
    /// There is no such port, or what carries the frames refuses.
    fn mark(&self, port: Port) -> Result<Mark, SwitchError>;

    /// Whether frames to unknown identifiers are flooded; if not, which is so at first, they are dropped.
    ///
    /// # Errors
    /// What carries the frames refuses.
    fn flood_unknown(&self, flood: bool) -> Result<(), SwitchError>;

    /// What has been counted.
    ///
    /// # Errors
    /// What carries the frames does not tell.
    fn statistics(&self) -> Result<Statistics, SwitchError>;
}
