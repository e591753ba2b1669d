//! What a node is told, and tells, before its memory is read: `rdma` in `docs/cache-protocol.md`.

use std::time::{Duration, Instant};

use super::answer::RdmaAnswer;
use crate::index::announce::Announcement;
use crate::index::entry::Entry;
use crate::index::table::BUCKET_BYTES;
use crate::transport::cluster::error::NodeError;
use crate::transport::cluster::node::Node;
use crate::transport::cluster::tcp::connection::Connection;
use crate::transport::verbs::{Endpoint, Remote};

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

impl Rights {
    /// Asks, on a connection to the node, for the right to read what `keys` name (index keys, one after
    /// the other) through the queue at `endpoint`.
    ///
    /// # Errors
    /// The connection's failure; [`NodeError::Refused`] if the node does not speak RDMA, holds too much
    /// already, or ends; [`NodeError::Expired`] if this host stood still while it asked.
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
        if !reply.starts_with(RdmaAnswer::WORD) {
            // Whoever stands still between the two commands has no lease any more at the second.
            let late = renewed.elapsed() >= TTL;
            return Err(if late { NodeError::Expired } else { refused(reply) });
        }
        let RdmaAnswer { announcement, base, endpoint } =
            reply.parse().map_err(|error| refused(format!("{error}, in {reply:?}")))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_where_the_answer_says() {
        let text = "RDMA 00000000000000ff 8 4096 8192 65536 2000 4194304 77 \
                    gid=00000000000000000000ffff0a090001 lid=0 qpn=17 psn=1 mtu=1024 reads=16";
        let RdmaAnswer { announcement, base, endpoint } = text.parse().unwrap();
        let rights = Rights { announcement, base, endpoint, lease: 1, renewed: Instant::now() };
        assert_eq!(rights.bucket(7).address, 4_194_304 + 4096 + 7 * 512);
        assert!(!rights.have_expired());
        let Some(before) = Instant::now().checked_sub(TTL) else { return };
        assert!(Rights { renewed: before, ..rights }.have_expired());
    }
}
