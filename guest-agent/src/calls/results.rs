//! What operations take and give, as types.

use std::fmt;

use control_abi::rights::RIGHTS;
use serde::{Serialize, Serializer};

/// Which VM this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// The VM's name.
    pub name: String,
    /// The image that it was booted from.
    pub image: String,
    /// The identifier of the image's content.
    pub manifest: Manifest,
    /// What it may do.
    pub rights: Rights,
    /// How often it was copied, restored or moved, and one.
    pub generation: u32,
    /// Virtual processors.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// Milliseconds since it was started.
    #[serde(rename = "ms")]
    pub milliseconds: u64,
}

/// The identifier of an image's content, shown in hexadecimal; of 32 bytes, or empty where it is not
/// known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest(pub Vec<u8>);

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Manifest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a guest may do: the bits of the register `RIGHTS`, shown by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights(pub u32);

impl Rights {
    /// The names of the bits that have one.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        RIGHTS.iter().filter(move |(bit, ..)| self.0 >> bit & 1 != 0).map(|(_, name, _)| *name)
    }
}

impl Serialize for Rights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.names())
    }
}

/// How bad a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something failed.
    Error = 1,
    /// Something is not as it should be.
    Warning = 2,
    /// Something happened.
    Information = 3,
    /// For whoever looks for a mistake.
    Debugging = 4,
}

/// What an image has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageStat {
    /// Its name.
    pub image: String,
    /// The identifier of its content.
    pub manifest: Manifest,
    /// How many chunks it has.
    pub chunks: u32,
    /// Bytes of each but the last ones of its parts.
    pub chunk_bytes: u32,
    /// Bytes of all.
    pub bytes: u64,
}

/// A VM to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewVm {
    /// The image's name.
    pub image: String,
    /// Bytes of RAM; the host's choice if not given.
    pub memory: Option<u64>,
    /// Virtual processors; the host's choice if not given.
    pub cpus: Option<u32>,
    /// Words for the kernel, behind those of the image.
    pub command_line: Option<String>,
    /// The VM's name, or of several the beginning of it; the host's choice if not given.
    pub name: Option<String>,
}

/// A VM that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StartedVm {
    /// Its number.
    pub vm: u64,
    /// Its name.
    pub name: String,
}

/// State of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Its image is being loaded.
    Loading,
    /// It runs.
    Running,
    /// It has ended.
    Ended,
    /// One that this driver does not know.
    Other(u32),
}

impl From<u32> for State {
    fn from(number: u32) -> Self {
        match number {
            1 => Self::Loading,
            2 => Self::Running,
            3 => Self::Ended,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loading => f.pad("loading"),
            Self::Running => f.pad("running"),
            Self::Ended => f.pad("ended"),
            Self::Other(number) => f.pad(&format!("state {number}")),
        }
    }
}

/// A VM among others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmSummary {
    /// Its number.
    pub vm: u64,
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
    /// Its state.
    pub state: State,
    /// How it ended.
    pub exit_code: Option<u32>,
}

/// How a VM fares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmStatus {
    /// What a list says too.
    #[serde(flatten)]
    pub summary: VmSummary,
    /// Bytes of RAM.
    pub memory: Option<u64>,
    /// Virtual processors.
    pub cpus: Option<u32>,
    /// Milliseconds since it was started.
    #[serde(rename = "ms")]
    pub milliseconds: Option<u64>,
    /// Milliseconds until its guest said that it is ready.
    #[serde(rename = "ready_ms")]
    pub ready_milliseconds: Option<u64>,
    /// How it ended, in words.
    pub outcome: Option<String>,
    /// The first bytes that its guest printed. As text where it is JSON.
    #[serde(serialize_with = "lossy")]
    pub console: Vec<u8>,
}

fn lossy<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(bytes))
}
