//! What a running server tells those that ask at its socket, and the asking.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::Counts;
use crate::mac::Mac;
use crate::mirror::replica::{Replica, Stage};
use crate::table::{Millis, Use};

/// The name of the socket in the state directory.
pub const SOCKET: &str = "socket";
/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest report, in bytes: that of the largest table.
const MOST_BYTES: u64 = 256 << 20;

/// A lease, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// The client.
    pub mac: Mac,
    /// Its name.
    pub name: Option<String>,
    /// What the address is to it.
    pub usage: Use,
    /// How long it still has it, in seconds; nothing if it has no end.
    pub seconds: Option<u64>,
    /// Whether a boot record says so.
    pub recorded: bool,
}

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Who it is.
    pub node: String,
    /// What it is at the moment.
    pub stage: Stage,
    /// Who serves since when: the number of the epoch.
    pub epoch: u64,
    /// How many steps it knows.
    pub index: u64,
    /// The mirrors of whoever serves.
    pub mirrors: Vec<String>,
    /// How many of them can be reached.
    pub reached: usize,
    /// How many have to be.
    pub needed: usize,
    /// What became of requests.
    pub counts: Counts,
    /// All leases, by address.
    pub leases: Vec<Lease>,
}

impl Report {
    pub(super) fn new(replica: &Replica, counts: Counts, now: Millis) -> Self {
        let table = replica.table();
        let mut leases = BTreeMap::new();
        for (address, entry) in table.entries().filter(|(_, entry)| entry.usage != Use::Former) {
            let left = entry.until.saturating_sub(now).div_ceil(1000);
            let record = table.record(entry.client).filter(|record| record.address == address);
            let name = record.and_then(|record| record.name.clone()).or(entry.name.clone());
            let lease = Lease {
                address,
                mac: entry.client,
                name,
                usage: entry.usage,
                seconds: (entry.until != Millis::MAX).then_some(left),
                recorded: record.is_some(),
            };
            leases.insert(address, lease);
        }
        let (reached, needed) = replica.reached();
        let position = replica.position();
        Self {
            node: format!("{:016x}", replica.node()),
            stage: replica.stage(now),
            epoch: position.epoch,
            index: position.index,
            mirrors: replica.config().mirrors.iter().map(|node| format!("{node:016x}")).collect(),
            reached,
            needed,
            counts,
            leases: leases.into_values().collect(),
        }
    }

    /// Gives it to whoever has asked; a thread's work, as it may take its time.
    pub(super) fn give(&self, mut to: UnixStream) {
        let give = || -> io::Result<()> {
            to.set_nonblocking(false)?;
            to.set_write_timeout(Some(PATIENCE))?;
            to.write_all(&serde_json::to_vec(self)?)?;
            to.shutdown(Shutdown::Both)
        };
        if let Err(error) = { give }() {
            log::debug!("somebody who asked has not taken the answer: {error}");
        }
    }
}

/// Asks the server whose state is in `folder`.
///
/// # Errors
/// None runs, or its answer cannot be read.
pub fn ask(folder: &Path) -> io::Result<Report> {
    let stream = UnixStream::connect(folder.join(SOCKET))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = Vec::new();
    stream.take(MOST_BYTES).read_to_end(&mut answer)?;
    Ok(serde_json::from_slice(&answer)?)
}
