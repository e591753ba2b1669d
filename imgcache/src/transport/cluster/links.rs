//! By what the chunks of a node come: decided for each load and node, and told in its report.
//!
//! The memory of a node on this host is read in place, that of another by RDMA where both sides can, and
//! what is left by the memcached protocol.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::error::NodeError;
use super::node::Node;
use super::shared::SharedArena;
use crate::cluster::address::NodeAddress;
use crate::index::announce::Announcement;
use crate::parallel::lock;
use crate::transport::verbs::{Domain, Fabric, LinkLayer, VerbsError};

/// What chunks come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// Out of the node's memory, on this host.
    Shared,
    /// Out of the node's memory, by RDMA READ.
    Rdma,
    /// By the memcached protocol.
    #[default]
    Tcp,
}

/// What chunks shall come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinkChoice {
    /// The fastest there is for each node.
    #[default]
    Auto,
    /// This, or an error.
    Only(LinkKind),
}

/// Not one of `auto`, `shared`, `rdma`, `tcp`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no way to read a node: expected auto, shared, rdma or tcp")]
pub struct InvalidLink(String);

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "shared",
            Self::Rdma => "rdma",
            Self::Tcp => "tcp",
        })
    }
}

impl fmt::Display for LinkChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(kind) => kind.fmt(f),
        }
    }
}

impl FromStr for LinkChoice {
    type Err = InvalidLink;

    fn from_str(text: &str) -> Result<Self, InvalidLink> {
        match text {
            "auto" => Ok(Self::Auto),
            "shared" => Ok(Self::Only(LinkKind::Shared)),
            "rdma" => Ok(Self::Only(LinkKind::Rdma)),
            "tcp" => Ok(Self::Only(LinkKind::Tcp)),
            _ => Err(InvalidLink(text.to_owned())),
        }
    }
}

impl LinkChoice {
    /// Whether `kind` may be used.
    fn allows(self, kind: LinkKind) -> bool {
        match self {
            Self::Auto => true,
            Self::Only(only) => only == kind,
        }
    }
}

/// What the chunks of a node come by in a load.
#[derive(Debug)]
pub(super) enum Chosen {
    /// This memory.
    Shared(Arc<SharedArena>),
    /// RDMA, in this domain; and why nothing faster.
    Rdma(Domain, String),
    /// The memcached protocol; and why nothing faster.
    Tcp(String),
}

impl Chosen {
    /// Why it is nothing faster.
    pub(super) fn reason(&self) -> Option<&str> {
        match self {
            Self::Shared(_) => None,
            Self::Rdma(_, reason) | Self::Tcp(reason) => Some(reason),
        }
    }

    /// The name of the RDMA device of this host.
    pub(super) fn device(&self) -> Option<&str> {
        match self {
            Self::Rdma(domain, _) => Some(&domain.fabric().device().name),
            Self::Shared(_) | Self::Tcp(_) => None,
        }
    }
}

/// Decides by what the chunks of `node` come.
///
/// # Errors
/// What was asked for cannot be had: why.
pub(super) fn choose(
    node: &Node,
    choice: LinkChoice,
    devices: &LocalDevices,
    deadline: Instant,
) -> Result<Chosen, NodeError> {
    let mut reasons = Vec::new();
    if choice.allows(LinkKind::Shared) {
        match node.sharing.arena(node, deadline) {
            Ok(arena) => return Ok(Chosen::Shared(arena)),
            Err(reason) => reasons.push(format!("shared: {reason}")),
        }
    }
    if choice.allows(LinkKind::Rdma) {
        match devices.domain_to(node.address()) {
            Ok((domain, why)) => {
                reasons.extend(why);
                return Ok(Chosen::Rdma(domain, reasons.join("; ")));
            }
            Err(reason) => reasons.push(format!("rdma: {reason}")),
        }
    }
    if choice.allows(LinkKind::Tcp) {
        let reason = if reasons.is_empty() { "asked for".into() } else { reasons.join("; ") };
        return Ok(Chosen::Tcp(reason));
    }
    Err(NodeError::NoLink(reasons.join("; ")))
}

/// The RDMA devices of this host, each opened when it is first needed: one for each address from which this
/// host reaches nodes.
#[derive(Debug, Default)]
pub(super) struct LocalDevices(Mutex<Vec<Opened>>);

/// A domain of the device for what is reached from one address, or why there is none.
#[derive(Debug)]
struct Opened {
    /// None of all peers of which that is not known.
    local: Option<IpAddr>,
    domain: Result<Domain, String>,
}

/// Where the kernel lists RDMA devices.
const DEVICES: &str = "/sys/class/infiniband";

impl LocalDevices {
    /// Whether the kernel has any. Loading the library to ask it takes longer than connecting to a node.
    pub(super) fn are_likely() -> bool {
        std::fs::read_dir(DEVICES).is_ok_and(|mut devices| devices.next().is_some())
    }

    /// A domain of the device by which `peer` is reached. If it is not known which that is, of another, and why.
    fn domain_to(&self, peer: &NodeAddress) -> Result<(Domain, Option<String>), String> {
        if !Self::are_likely() {
            return Err(VerbsError::NoDevice.to_string());
        }
        let local = addresses_to(peer).next().map(|(_, local)| local);
        let mut opened = lock(&self.0);
        let known = opened.iter().find(|one| one.local == local);
        let domain = if let Some(known) = known {
            known.domain.clone()
        } else {
            let addresses: Vec<IpAddr> = local.into_iter().collect();
            let domain = Fabric::open_for(&addresses).and_then(|fabric| fabric.domain());
            let domain = domain.map_err(|error| error.to_string());
            opened.push(Opened { local, domain: domain.clone() });
            domain
        }?;
        Ok((domain.clone(), guessed(domain.fabric(), local)))
    }
}

/// Why it is a guess that a peer which is reached from the address `local` is reached by `fabric`, if it is.
fn guessed(fabric: &Fabric, local: Option<IpAddr>) -> Option<String> {
    // Subnets of InfiniBand have addresses of their own.
    if fabric.port().link == LinkLayer::InfiniBand {
        return None;
    }
    let name = &fabric.device().name;
    match local {
        Some(local) if fabric.gid().is(local) => None,
        Some(local) => Some(format!("rdma: no device has the address {local}, so {name} is used")),
        None => Some(format!("rdma: it is not known what leads to the node, so {name} is used")),
    }
}

/// The memory of a node, if it is on this host.
#[derive(Debug, Default)]
pub(super) struct Sharing(Mutex<Option<Arc<SharedArena>>>);

impl Sharing {
    /// The memory; of the node as it runs now.
    fn arena(&self, node: &Node, deadline: Instant) -> Result<Arc<SharedArena>, String> {
        let mut known = lock(&self.0);
        if let Some(arena) = known.as_ref().filter(|arena| arena.is_alive()) {
            return Ok(Arc::clone(arena));
        }
        let (path, announced) = socket_of(node, deadline)?;
        let patience = deadline.saturating_duration_since(Instant::now()).min(PATIENCE);
        let arena = SharedArena::of_socket(&path, patience)
            .map(Arc::new)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        if announced.is_some_and(|announced| announced != arena.boot_id()) {
            return Err(format!("{}: another node is there", path.display()));
        }
        *known = Some(Arc::clone(&arena));
        Ok(arena)
    }
}

/// How long a node may take to hand over its memory.
const PATIENCE: Duration = Duration::from_secs(1);

/// The addresses of a peer, each with the one from which this host would send to it. Nothing is sent for that,
/// so that a node elsewhere, or one that is down, costs no time.
fn addresses_to(peer: &NodeAddress) -> impl Iterator<Item = (IpAddr, IpAddr)> {
    let addresses = match peer {
        NodeAddress::Tcp { host, port } => (host.as_str(), *port).to_socket_addrs().ok(),
        NodeAddress::Unix(_) => None,
    };
    addresses.into_iter().flatten().filter_map(|peer| {
        let any: IpAddr = match peer {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(peer).ok()?;
        Some((peer.ip(), socket.local_addr().ok()?.ip()))
    })
}

/// Whether what is sent to this address stays on this host: the system would send it from the same address.
pub(super) fn is_on_this_host(address: &NodeAddress) -> bool {
    matches!(address, NodeAddress::Unix(_))
        || addresses_to(address).any(|(peer, local)| peer == local)
}

/// The socket of this host at which the node hands over its memory; and the boot id of the node, if it was
/// not asked at that socket.
fn socket_of(node: &Node, deadline: Instant) -> Result<(PathBuf, Option<u64>), String> {
    if let NodeAddress::Unix(path) = node.address() {
        return Ok((path.clone(), None));
    }
    if !is_on_this_host(node.address()) {
        return Err("it is on another host".into());
    }
    let stats = match node.with(deadline, |connection| connection.stats("rdma")) {
        Ok(stats) => stats,
        // As stock memcached does.
        Err(NodeError::Refused { .. }) => Vec::new(),
        Err(error) => return Err(error.to_string()),
    };
    let stat = |wanted| stats.iter().find(|(name, _)| name == wanted).map(|(_, value)| value);
    let socket = stat("socket").ok_or("it has no socket for that: imgcached --unix PATH")?;
    let announcement: Announcement = stat("announcement")
        .and_then(|text| text.parse().ok())
        .ok_or("it does not say which start of it it is")?;
    Ok((Path::new(socket).to_owned(), Some(announcement.exported.boot_id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_this_host_is_known_without_asking_it() {
        let tcp = |host: &str| NodeAddress::Tcp { host: host.into(), port: 9 };
        assert!(is_on_this_host(&tcp("127.0.0.1")) && is_on_this_host(&tcp("localhost")));
        assert!(is_on_this_host(&NodeAddress::Unix("/nobody".into())));
        // Reserved for documentation (RFC 5737).
        assert!(!is_on_this_host(&tcp("192.0.2.1")));
    }
}
