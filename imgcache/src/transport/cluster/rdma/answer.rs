//! What a node answers to `rdma`, as `docs/cache-protocol.md` has it:
//! ```text
//! RDMA <announcement> <address> <key> <endpoint>
//! ```

use std::str::FromStr;

use crate::index::announce::{Announcement, AnnouncementError};
use crate::transport::verbs::{Endpoint, EndpointError, Remote};

/// The right to read the memory of a node through one queue. No place that the announcement has is beyond the last
/// address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RdmaAnswer {
    /// What is where in the memory.
    pub announcement: Announcement,
    /// Where the memory begins, and the key to it.
    pub base: Remote,
    /// The node's end of the connection.
    pub endpoint: Endpoint,
}

/// Why an answer gives no rights.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RdmaAnswerError {
    /// What it says of the memory.
    #[error(transparent)]
    Announcement(#[from] AnnouncementError),
    /// What it says of the queue.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// A word is missing, or no number.
    #[error("address and key are not there")]
    Words,
    /// The memory cannot be there.
    #[error("{bytes} bytes from {address:#x} on are beyond the last address")]
    Beyond {
        /// Where it begins.
        address: u64,
        /// Its length in bytes.
        bytes: u64,
    },
}

impl RdmaAnswer {
    /// What such an answer begins with.
    pub const WORD: &str = "RDMA ";
}

impl FromStr for RdmaAnswer {
    type Err = RdmaAnswerError;

    fn from_str(text: &str) -> Result<Self, RdmaAnswerError> {
        let rest = text.strip_prefix(Self::WORD).ok_or(RdmaAnswerError::Words)?;
        let words: Vec<&str> = rest.splitn(9, ' ').collect();
        let [announcement @ .., address, key, endpoint] = &words[..] else {
            return Err(RdmaAnswerError::Words);
        };
        let announcement: Announcement = announcement.join(" ").parse()?;
        let address: u64 = address.parse().map_err(|_| RdmaAnswerError::Words)?;
        let key = key.parse().map_err(|_| RdmaAnswerError::Words)?;
        let bytes = announcement.exported.bytes;
        if address.checked_add(bytes).is_none() {
            return Err(RdmaAnswerError::Beyond { address, bytes });
        }
        let endpoint = endpoint.parse()?;
        Ok(Self { announcement, base: Remote { address, key }, endpoint })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: &str =
        "gid=00000000000000000000ffff0a090001 lid=0 qpn=17 psn=1 mtu=1024 reads=16";

    #[test]
    fn an_answer_is_understood() {
        let text = format!("RDMA 00000000000000ff 8 4096 8192 65536 2000 4194304 77 {ENDPOINT}");
        let RdmaAnswer { announcement, base, endpoint } = text.parse().unwrap();
        assert_eq!((announcement.index, base.address, base.key), (4096, 4_194_304, 77));
        assert_eq!(endpoint.to_string(), ENDPOINT);
    }

    #[test]
    fn nonsense_gives_no_rights() {
        for text in [
            "",
            "RDMA",
            "RDMA 00000000000000ff 8 4096 8192 65536 2000 4194304 77",
            "00000000000000ff 8 4096 8192 65536 2000 4194304 77 E",
            "RDMA 00000000000000ff 8 4096 8192 65536 2000 18446744073709500000 77 E",
            "RDMA 00000000000000ff 8 4096 8192 65536 2000 4194304 4294967296 E",
            "RDMA 00000000000000ff 9 4096 8192 65536 2000 4194304 77 E",
            "RDMA 00000000000000ff 8 4096 8192 65536 2000 4194304 77 gid=0",
        ] {
            let answer = text.replace('E', ENDPOINT).parse::<RdmaAnswer>();
            assert!(answer.is_err(), "{text}");
        }
    }
}
