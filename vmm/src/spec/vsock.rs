//! `--vsock`: sockets between programs of the guest and of the host.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use devices::virtio::vsock::GUEST_CIDS;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where the socket of a VM that no agent manages is, unless said otherwise: in the working folder.
pub const DEFAULT_SOCKET: &str = "v.sock";
/// The longest path of a socket, in bytes: the system's limit of 107, less `_` and the ten digits of a
/// port, which a program that listens for the guest appends.
pub const MAX_PATH: usize = 96;

/// A virtio socket device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockSpec {
    /// The guest's context identifier: a number that means something to programs of the guest only, and
    /// that any number of VMs may have.
    #[schema(minimum = 3, maximum = 4_294_967_294_u32, example = 3)]
    #[serde(deserialize_with = "cid")]
    pub cid: u32,
    /// Where programs of the host connect to, and before `_PORT` those of the guest. An agent puts it
    /// into the folder of its VM instead.
    #[serde(skip)]
    pub socket: Option<PathBuf>,
}

/// Why a text is no description of such a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VsockSpecError {
    /// A word that is none.
    #[error("'{}' is none of cid=N and socket=PATH", .0.escape_default())]
    Word(String),
    /// No identifier, or one that has a meaning of its own.
    #[error("'{}' is no context identifier of a guest, which are 3 to 4294967294", .0.escape_default())]
    Cid(String),
    /// It is missing.
    #[error("cid=N is missing, such as cid=3")]
    NoCid,
    /// The path of a socket cannot be that.
    #[error("the path of a socket has 1 to {MAX_PATH} bytes, and '{}' has {}", .0.display(), .0.as_os_str().len())]
    Path(PathBuf),
}

fn cid<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let cid = u32::deserialize(deserializer)?;
    check(cid).map_err(serde::de::Error::custom)
}

fn check(cid: u32) -> Result<u32, VsockSpecError> {
    if GUEST_CIDS.contains(&cid) { Ok(cid) } else { Err(VsockSpecError::Cid(cid.to_string())) }
}

impl VsockSpec {
    /// Where the socket of a VM that no agent manages is.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| DEFAULT_SOCKET.into())
    }
}

impl FromStr for VsockSpec {
    type Err = VsockSpecError;

    fn from_str(text: &str) -> Result<Self, VsockSpecError> {
        // Last, as a path may have a comma.
        let (words, socket) = match text.split_once(",socket=") {
            Some((words, path)) => (words, Some(PathBuf::from(path))),
            None => (text, None),
        };
        if let Some(path) = &socket
            && !(1..=MAX_PATH).contains(&path.as_os_str().len())
        {
            return Err(VsockSpecError::Path(path.clone()));
        }
        let mut cid = None;
        for word in words.split(',').filter(|word| !word.is_empty()) {
            let Some(number) = word.strip_prefix("cid=") else {
                return Err(VsockSpecError::Word(word.into()));
            };
            let parsed = number.parse().map_err(|_| VsockSpecError::Cid(number.into()))?;
            cid = Some(check(parsed)?);
        }
        Ok(Self { cid: cid.ok_or(VsockSpecError::NoCid)?, socket })
    }
}

impl fmt::Display for VsockSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cid={}", self.cid)?;
        match &self.socket {
            Some(path) => write!(f, ",socket={}", path.display()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_read_as_it_is_written() {
        for text in ["cid=3", "cid=4294967294", "cid=7,socket=/run/a,b.sock"] {
            assert_eq!(text.parse::<VsockSpec>().unwrap().to_string(), text);
        }
        let spec: VsockSpec = "cid=3".parse().unwrap();
        assert_eq!(spec.socket(), PathBuf::from("v.sock"));
    }

    #[test]
    fn what_is_none_is_refused_with_what_it_should_be() {
        let long = format!("cid=3,socket=/{}", "x".repeat(MAX_PATH));
        for (text, named) in [
            ("", "cid=N"),
            ("socket=/x", "none of"),
            ("cid=2", "3 to"),
            ("cid=4294967295", "3 to"),
            ("cid=x", "3 to"),
            ("cid=3,port=5", "'port=5'"),
            ("cid=3,socket=", "1 to 96"),
            (&long, "97"),
        ] {
            let error = text.parse::<VsockSpec>().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
        for json in [r#"{"cid":2}"#, r#"{"cid":3,"socket":"/etc/x"}"#, "{}"] {
            assert!(serde_json::from_str::<VsockSpec>(json).is_err(), "{json}");
        }
        assert_eq!(serde_json::from_str::<VsockSpec>(r#"{"cid":3}"#).unwrap().cid, 3);
    }
}
