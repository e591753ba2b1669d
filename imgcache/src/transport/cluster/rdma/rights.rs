//! What a node is told, and tells, before its memory is read: `rdma` in `docs/cache-protocol.md`.

use std::time::{Duration, Instant};

use crate::index::announce::{Announcement, AnnouncementError};
use crate::index::entry::Entry;
use crate::index::table::BUCKET_BYTES;
use crate::transport::cluster::error::NodeError;
use crate::transport::cluster::node::Node;
use crate::transport::cluster::tcp::connection::Connection;
use crate::transport::verbs::{Endpoint, EndpointError, Remote};

/// How long a node lets itself be read if it hears no more.
pub(super) const TTL: Duration = Duration::from_secs(10);

/// The right to read the memory of a node, for as long as the connection lives that it was given on.
#[derive(Debug)]
pub(super) struct Rights {
    pub(super) announcement: Announcement,
    /// Where the region begins, and the key to it.
    base: Remote,
    pub(super) endpoint: Endpoint,
    lease: u64,
    renewed: Instant,
}

/// Why the answer of a node gives no rights.
#[derive(Debug, thiserror::Error)]
enum Unclear {
    #[error("{0}")]
    Announcement(#[from] AnnouncementError),
    #[error("{0}")]
    Endpoint(#[from] EndpointError),
    #[error("address and key are not there")]
    Words,
    #[error("the region is beyond the last address")]
    Beyond,
}

impl Rights {
    /// Asks, on a connection to the node, for the right to read what `keys` name (index keys, one after
    /// the other) through the queue at `endpoint`.
    ///
    /// # Errors
    /// The connection's failure; [`NodeError::Refused`] if the node does not speak RDMA, holds too much
    /// already, or ends.
    pub(super) fn ask(
        node: &Node,
        connection: &mut Connection,
        endpoint: &Endpoint,
        keys: &[u8],
    ) -> Result<Self, NodeError> {
        let refused = |reply| NodeError::Refused { what: "RDMA".into(), reply };
        // Who does not know leases would take the list of keys for commands.
        if !node.knows_leases(connection)? {
            return Err(refused("it is no imgcached".into()));
        }
        let (lease, renewed) = (crate::transport::cluster::random(), Instant::now());
        connection.lease(lease, TTL, keys)?;
        let reply =
            connection.command(&[format!("rdma {lease:016x} {endpoint}\r\n").as_bytes()])?;
        let Some(rest) = reply.strip_prefix("RDMA ") else { return Err(refused(reply)) };
        let (announcement, base, endpoint) =
            understand(rest).map_err(|error| refused(format!("{error}, in {reply:?}")))?;
        Ok(Self { announcement, base, endpoint, lease, renewed })
    }

    /// Whether they may have ended by time. The node's clock began later than this one.
    pub(super) fn have_expired(&self) -> bool {
        self.renewed.elapsed() >= TTL
    }

    /// Asks for more time when half of it has passed.
    ///
    /// # Errors
    /// The connection's failure, that the node does not want to, or that there is nothing left that it could
    /// prolong.
    pub(super) fn keep(&mut self, connection: &mut Connection) -> Result<(), NodeError> {
        if self.have_expired() {
            return Err(NodeError::Expired);
        }
        if self.renewed.elapsed() < TTL / 2 {
            return Ok(());
        }
        let now = Instant::now();
        connection.lease(self.lease, TTL, &[])?;
        self.renewed = now;
        Ok(())
    }

    /// Gives them back, having read `bytes`.
    pub(super) fn release(&self, connection: &mut Connection, bytes: u64) {
        // If it cannot be told, it runs out.
        let _ = connection.release(self.lease, bytes);
    }

    /// Where bucket `number` of the index is.
    pub(super) fn bucket(&self, number: u64) -> Remote {
        let offset = self.announcement.index + number * BUCKET_BYTES as u64;
        self.at(offset)
    }

    /// Where the content of `entry` is, of which it was checked that it is inside the region.
    pub(super) fn content(&self, entry: &Entry) -> Remote {
        self.at(entry.offset)
    }

    /// `offset` is inside the region, and the region ends below the last address.
    fn at(&self, offset: u64) -> Remote {
        Remote { address: self.base.address + offset, key: self.base.key }
    }
}

/// Announcement (6 words), address, key, endpoint.
fn understand(text: &str) -> Result<(Announcement, Remote, Endpoint), Unclear> {
    let words: Vec<&str> = text.splitn(9, ' ').collect();
    let [announcement @ .., address, key, endpoint] = &words[..] else {
        return Err(Unclear::Words);
    };
    let announcement: Announcement = announcement.join(" ").parse()?;
    let address: u64 = address.parse().map_err(|_| Unclear::Words)?;
    let key = key.parse().map_err(|_| Unclear::Words)?;
    if address.checked_add(announcement.exported.bytes).is_none() {
        return Err(Unclear::Beyond);
    }
    Ok((announcement, Remote { address, key }, endpoint.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: &str =
        "gid=00000000000000000000ffff0a090001 lid=0 qpn=17 psn=1 mtu=1024 reads=16";

    #[test]
    fn an_answer_is_understood() {
        let text = format!("00000000000000ff 8 4096 8192 65536 2000 4194304 77 {ENDPOINT}");
        let (announcement, base, endpoint) = understand(&text).unwrap();
        assert_eq!((announcement.index, base.address, base.key), (4096, 4_194_304, 77));
        assert_eq!(endpoint.to_string(), ENDPOINT);
        let rights = Rights { announcement, base, endpoint, lease: 1, renewed: Instant::now() };
        assert_eq!(rights.bucket(7).address, 4_194_304 + 4096 + 7 * 512);
    }

    #[test]
    fn nonsense_gives_no_rights() {
        for text in [
            "",
            "00000000000000ff 8 4096 8192 65536 2000 4194304 77",
            "00000000000000ff 8 4096 8192 65536 2000 18446744073709500000 77 E",
            "00000000000000ff 8 4096 8192 65536 2000 4194304 4294967296 E",
            "00000000000000ff 9 4096 8192 65536 2000 4194304 77 E",
            "00000000000000ff 8 4096 8192 65536 2000 4194304 77 gid=0",
        ] {
            assert!(understand(&text.replace('E', ENDPOINT)).is_err(), "{text}");
        }
    }
}
