//! The membership file: which nodes make up a cache, as JSON that people and programs edit.
//!
//! ```json
//! {
//!   "version": 1, "epoch": 7, "replicas": 2, "tls": false,
//!   "nodes": [
//!     { "name": "a", "address": "10.0.0.1:11211", "weight": 1, "state": "active" },
//!     { "name": "b", "address": "unix:/run/b.sock", "weight": 2, "state": "draining" }
//!   ],
//!   "previous": { "epoch": 6, "replicas": 1, "nodes": [] }
//! }
//! ```
//!
//! Every change has a higher epoch. While items move, `previous` is the node set that they are still
//! read from. A node that drains keeps what it has and is given nothing: placement leaves it out.

mod watch;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::watch::MembersFile;
use super::address::{MAX_NODES, NodeAddress};
use super::placement::{MAX_REPLICAS, Placement};

/// The version of the file that this program reads and writes.
pub const VERSION: u32 = 1;
/// The highest weight of a node.
pub const MAX_WEIGHT: u32 = 1_000_000;
/// The longest name of a node, in bytes.
pub const MAX_NODE_NAME: usize = 64;
/// The longest file, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The nodes of a cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Members {
    /// Version of the format, [`VERSION`].
    pub version: u32,
    /// Counts the changes; at least 1.
    pub epoch: u64,
    /// Nodes that hold each item, if there are as many.
    #[serde(default = "default_replicas")]
    pub replicas: u32,
    /// Whether the nodes are spoken to by TLS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tls: bool,
    /// The nodes.
    pub nodes: Vec<Member>,
    /// What is still read while items move to where `nodes` wants them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Previous>,
}

/// A node of a cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// What it is called; placement depends on it, so it stays when the address changes.
    pub name: String,
    /// Where it is.
    pub address: NodeAddress,
    /// Its share of the items relative to the others', 1 to [`MAX_WEIGHT`].
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// What it is used for.
    #[serde(default)]
    pub state: MemberState,
}

/// What a node is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// Reading and writing.
    #[default]
    Active,
    /// It is given nothing more; what it has is read by way of `previous`.
    Draining,
}

/// The node set of the epoch before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Previous {
    /// Its epoch.
    pub epoch: u64,
    /// Nodes that held each item.
    #[serde(default = "default_replicas")]
    pub replicas: u32,
    /// Its nodes.
    pub nodes: Vec<Member>,
}

fn default_replicas() -> u32 {
    2
}

fn default_weight() -> u32 {
    1
}

/// Why there is no membership.
#[derive(Debug, thiserror::Error)]
pub enum MembersError {
    /// The system refused something.
    #[error("cannot {action} membership file '{}': {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is not what the format says.
    #[error("membership file '{}': {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, and with which node.
        reason: String,
    },
    /// Somebody has changed the file meanwhile.
    #[error(
        "membership file '{}' has epoch {found} already, and epoch {new} is to be written: look at \
         it and try again", path.display()
    )]
    Outdated {
        /// The file.
        path: PathBuf,
        /// Its epoch.
        found: u64,
        /// The epoch that was to replace it.
        new: u64,
    },
}

impl Members {
    /// The nodes at `addresses`, each called by its address, with the default of replicas.
    pub fn of_addresses(addresses: &[NodeAddress], tls: bool) -> Self {
        let member = |address: &NodeAddress| Member {
            name: address.to_string(),
            address: address.clone(),
            weight: default_weight(),
            state: MemberState::Active,
        };
        let nodes = addresses.iter().map(member).collect();
        Self {
            version: VERSION,
            epoch: 1,
            replicas: default_replicas(),
            tls,
            nodes,
            previous: None,
        }
    }

    /// Every node that may hold something, each once: those of `nodes`, then those that only
    /// `previous` has.
    pub fn all(&self) -> Vec<&Member> {
        let mut all: Vec<&Member> = self.nodes.iter().collect();
        for member in self.previous.iter().flat_map(|previous| &previous.nodes) {
            if !self.nodes.iter().any(|node| node.name == member.name) {
                all.push(member);
            }
        }
        all
    }

    /// Where items belong; the node numbers are positions in [`Self::all`].
    pub fn placement(&self) -> Placement {
        let seats = self.nodes.iter().enumerate().filter(|(_, n)| n.state == MemberState::Active);
        Placement::new(
            seats.map(|(number, node)| (number, node.name.as_str(), node.weight)),
            usize::try_from(self.replicas).unwrap_or(MAX_REPLICAS),
        )
    }

    /// Where items were before, while they move; the node numbers are positions in [`Self::all`].
    pub fn previous_placement(&self) -> Option<Placement> {
        let previous = self.previous.as_ref()?;
        let all = self.all();
        let seats = previous.nodes.iter().filter_map(|node| {
            let number = all.iter().position(|one| one.name == node.name)?;
            Some((number, node.name.as_str(), node.weight))
        });
        let seats: Vec<_> = seats.collect();
        Some(Placement::new(seats, usize::try_from(previous.replicas).unwrap_or(MAX_REPLICAS)))
    }

    /// Checks every rule of the format.
    ///
    /// # Errors
    /// What is wrong, and with which node.
    pub fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("version {} is not supported; this is {VERSION}", self.version));
        }
        if self.epoch == 0 {
            return Err("epoch 0: the first is 1".into());
        }
        check_nodes("nodes", &self.nodes, self.replicas, self.tls)?;
        if !self.nodes.iter().any(|node| node.state == MemberState::Active) {
            return Err("no node is active".into());
        }
        let Some(previous) = &self.previous else { return Ok(()) };
        if previous.epoch >= self.epoch {
            return Err(format!(
                "previous has epoch {}, which is not before {}",
                previous.epoch, self.epoch
            ));
        }
        check_nodes("previous.nodes", &previous.nodes, previous.replicas, self.tls)?;
        for node in &previous.nodes {
            let now = self.nodes.iter().find(|one| one.name == node.name);
            if let Some(now) = now
                && now.address != node.address
            {
                return Err(format!(
                    "node '{}' is at {} and, in previous, at {}: a name has one address",
                    node.name, now.address, node.address
                ));
            }
        }
        Ok(())
    }

    /// Reads and checks the file.
    ///
    /// # Errors
    /// If it cannot be read, or breaks a rule.
    pub fn read(path: &Path) -> Result<Self, MembersError> {
        let invalid = |reason| MembersError::Invalid { path: path.to_owned(), reason };
        let file = File::open(path).map_err(io_error("open", path))?;
        let length = file.metadata().map_err(io_error("look at", path))?.len();
        if length > MAX_FILE_BYTES {
            return Err(invalid(format!("{length} bytes; at most {MAX_FILE_BYTES} are allowed")));
        }
        let mut text = String::new();
        io::Read::read_to_string(&mut io::Read::take(file, MAX_FILE_BYTES), &mut text)
            .map_err(io_error("read", path))?;
        let members: Self =
            serde_json::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        members.check().map_err(invalid)?;
        Ok(members)
    }

    /// Writes the file in one step: readers see the old one or the new one.
    ///
    /// # Errors
    /// [`MembersError::Outdated`] if the file there has this epoch or a later one; a rule that is
    /// broken; the system's refusal.
    pub fn write(&self, path: &Path) -> Result<(), MembersError> {
        let invalid = |reason| MembersError::Invalid { path: path.to_owned(), reason };
        self.check().map_err(invalid)?;
        let text = serde_json::to_string_pretty(self).map_err(|e| invalid(e.to_string()))?;
        let guard_path = beside(path, "lock");
        let guard = File::options()
            .create(true)
            .append(true)
            .open(&guard_path)
            .map_err(io_error("lock", &guard_path))?;
        guard.lock().map_err(io_error("lock", &guard_path))?;
        match Self::read(path) {
            Ok(there) if there.epoch >= self.epoch => {
                let (found, new) = (there.epoch, self.epoch);
                return Err(MembersError::Outdated { path: path.to_owned(), found, new });
            }
            Ok(_) => (),
            Err(MembersError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => (),
            // It would be replaced although nobody knows what it was.
            Err(error) => return Err(error),
        }
        let new = beside(path, "new");
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(text.as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&new, path)?;
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(io_error("write", path))
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MembersError {
    let path = path.to_owned();
    move |source| MembersError::Io { action, path, source }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

fn check_nodes(place: &str, nodes: &[Member], replicas: u32, tls: bool) -> Result<(), String> {
    let max = u32::try_from(MAX_REPLICAS).unwrap_or(u32::MAX);
    if !(1..=max).contains(&replicas) {
        return Err(format!("{place}: {replicas} replicas; from 1 to {max} are possible"));
    }
    if nodes.is_empty() || nodes.len() > MAX_NODES {
        return Err(format!("{place}: {} nodes; from 1 to {MAX_NODES} are possible", nodes.len()));
    }
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for (index, node) in nodes.iter().enumerate() {
        let wrong = |what: String| Err(format!("{place}[{index}] ('{}'): {what}", node.name));
        let printable = node.name.chars().all(|c| c.is_ascii_graphic());
        if node.name.is_empty() || node.name.len() > MAX_NODE_NAME || !printable {
            return wrong(format!("a name has 1 to {MAX_NODE_NAME} visible ASCII characters"));
        }
        if !names.insert(&node.name) {
            return wrong("another node has this name".into());
        }
        if !addresses.insert(&node.address) {
            return wrong(format!("another node has the address {}", node.address));
        }
        if !(1..=MAX_WEIGHT).contains(&node.weight) {
            return wrong(format!("weight {}; from 1 to {MAX_WEIGHT} are possible", node.weight));
        }
        if tls && matches!(node.address, NodeAddress::Unix(_)) {
            return wrong(format!("{} is not spoken to by TLS", node.address));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
