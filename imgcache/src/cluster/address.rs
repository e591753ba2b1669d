//! Addresses of nodes and of whole caches, as people write them.
//!
//! A node is `HOST`, `HOST:PORT`, `[IPV6]:PORT` or `unix:/PATH`; port 11211 where none is given. A
//! cache is one of
//! - `memcached://NODE,NODE,...`: these nodes;
//! - `memcacheds://NODE,NODE,...`: these nodes, by TLS;
//! - `unix:/PATH`: one node on this host;
//! - `members:FILE`: the nodes that a [membership file](super::members) lists.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The port of memcached.
pub const DEFAULT_PORT: u16 = 11211;
/// The most nodes that a cache may have.
pub const MAX_NODES: usize = 1024;
/// The longest host name, in bytes (RFC 1035, 2.3.4).
const MAX_HOST: usize = 253;

/// How to reach a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum NodeAddress {
    /// By TCP.
    Tcp {
        /// Name or numeric address, an IPv6 address without its brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// By a socket of this host.
    Unix(PathBuf),
}

/// Where a cache is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheUrl {
    /// At these nodes, in the order in which they were written.
    Nodes {
        /// Their addresses; at least one, none twice.
        addresses: Vec<NodeAddress>,
        /// Whether they are spoken to by TLS.
        tls: bool,
    },
    /// At the nodes that this membership file lists.
    Members(PathBuf),
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It begins as no address of a cache does.
    #[error(
        "'{0}' is not the address of a cache: write memcached://HOST[:PORT],..., \
         memcacheds://HOST[:PORT],... (TLS), unix:/PATH or members:FILE"
    )]
    Scheme(String),
    /// No nodes at all.
    #[error("'{0}' names no node")]
    NoNodes(String),
    /// More than [`MAX_NODES`].
    #[error("{0} nodes; a cache has at most {MAX_NODES}")]
    TooMany(usize),
    /// One node twice.
    #[error("node '{0}' is named twice")]
    Twice(NodeAddress),
    /// A node that cannot be.
    #[error("'{text}' is not the address of a node: {reason}")]
    Node {
        /// What was written.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No file behind `members:`.
    #[error("'members:' wants the path of a file")]
    NoFile,
    /// A socket that is to be spoken to by TLS.
    #[error("'{0}' is a socket of this host, which is not spoken to by TLS")]
    UnixTls(NodeAddress),
}

impl FromStr for NodeAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = |reason| AddressError::Node { text: text.to_owned(), reason };
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') {
                Ok(Self::Unix(path.into()))
            } else {
                Err(wrong("the path of a socket begins with '/'"))
            };
        }
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(|| wrong("']' is missing"))?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(wrong("there is no IPv6 address between the brackets"));
            }
            match rest {
                "" => (host, None),
                rest => {
                    let port = rest.strip_prefix(':');
                    (host, Some(port.ok_or_else(|| wrong("only ':PORT' goes behind ']'"))?))
                }
            }
        } else {
            match text.split_once(':') {
                Some((_, rest)) if rest.contains(':') => {
                    return Err(wrong("an IPv6 address goes into brackets"));
                }
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
        if host.is_empty() || host.len() > MAX_HOST || !host.chars().all(allowed) {
            return Err(wrong("a host is named by letters, digits, '-' and '.'"));
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => port
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| wrong("a port is a number from 1 to 65535"))?,
        };
        Ok(Self::Tcp { host: host.to_owned(), port })
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<NodeAddress> for String {
    fn from(address: NodeAddress) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for NodeAddress {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl FromStr for CacheUrl {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(file) = text.strip_prefix("members:") {
            return if file.is_empty() {
                Err(AddressError::NoFile)
            } else {
                Ok(Self::Members(file.into()))
            };
        }
        if text.starts_with("unix:") {
            return Ok(Self::Nodes { addresses: vec![text.parse()?], tls: false });
        }
        let (list, tls) = match text.split_once("://") {
            Some(("memcached", list)) => (list, false),
            Some(("memcacheds", list)) => (list, true),
            _ => return Err(AddressError::Scheme(text.to_owned())),
        };
        let list = list.strip_suffix('/').unwrap_or(list);
        if list.is_empty() {
            return Err(AddressError::NoNodes(text.to_owned()));
        }
        let mut addresses: Vec<NodeAddress> = Vec::new();
        for part in list.split(',') {
            let address = part.parse()?;
            if addresses.contains(&address) {
                return Err(AddressError::Twice(address));
            }
            if tls && matches!(address, NodeAddress::Unix(_)) {
                return Err(AddressError::UnixTls(address));
            }
            if addresses.len() == MAX_NODES {
                return Err(AddressError::TooMany(list.split(',').count()));
            }
            addresses.push(address);
        }
        Ok(Self::Nodes { addresses, tls })
    }
}

impl fmt::Display for CacheUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Members(file) => write!(f, "members:{}", file.display()),
            Self::Nodes { addresses, tls } => {
                let list: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                write!(f, "memcached{}://{}", if *tls { "s" } else { "" }, list.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(text: &str) -> Result<NodeAddress, AddressError> {
        text.parse()
    }

    fn tcp(host: &str, port: u16) -> NodeAddress {
        NodeAddress::Tcp { host: host.into(), port }
    }

    #[test]
    fn nodes_are_read() {
        assert_eq!(node("a.example"), Ok(tcp("a.example", 11211)));
        assert_eq!(node("10.0.0.1:7"), Ok(tcp("10.0.0.1", 7)));
        assert_eq!(node("[::1]"), Ok(tcp("::1", 11211)));
        assert_eq!(node("[fe80::1]:99"), Ok(tcp("fe80::1", 99)));
        assert_eq!(node("unix:/run/m.sock"), Ok(NodeAddress::Unix("/run/m.sock".into())));
        for text in ["", ":1", "a:", "a:0", "a:65536", "::1", "[::1", "[::1]7", "[a]", "a b"] {
            assert!(node(text).is_err(), "{text}");
        }
        assert!(node("unix:m").unwrap_err().to_string().contains("begins with '/'"));
    }

    #[test]
    fn caches_are_read() {
        let url = |text: &str| text.parse::<CacheUrl>();
        let addresses = vec![tcp("a", 1), tcp("::1", 11211), NodeAddress::Unix("/s".into())];
        let expected = CacheUrl::Nodes { addresses, tls: false };
        assert_eq!(url("memcached://a:1,[::1],unix:/s"), Ok(expected));
        let expected = CacheUrl::Nodes { addresses: vec![tcp("b", 11211)], tls: true };
        assert_eq!(url("memcacheds://b/"), Ok(expected));
        assert_eq!(url("members:/etc/m.json"), Ok(CacheUrl::Members("/etc/m.json".into())));
        let expected =
            CacheUrl::Nodes { addresses: vec![NodeAddress::Unix("/s".into())], tls: false };
        assert_eq!(url("unix:/s"), Ok(expected));
        assert_eq!(url("memcached://a,a:11211"), Err(AddressError::Twice(tcp("a", 11211))));
        assert!(matches!(url("a:11211"), Err(AddressError::Scheme(_))));
        assert!(matches!(url("redis://a"), Err(AddressError::Scheme(_))));
        assert!(matches!(url("memcached://"), Err(AddressError::NoNodes(_))));
        assert!(matches!(url("memcached://a,,b"), Err(AddressError::Node { .. })));
        assert!(matches!(url("memcacheds://unix:/s"), Err(AddressError::UnixTls(_))));
        assert_eq!(url("members:"), Err(AddressError::NoFile));
        let many: Vec<_> = (0..=MAX_NODES).map(|n| format!("h{n}")).collect();
        let error = url(&format!("memcached://{}", many.join(","))).unwrap_err();
        assert_eq!(error, AddressError::TooMany(MAX_NODES + 1));
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(text in "\\PC{0,60}") {
            if let Ok(address) = text.parse::<NodeAddress>() {
                prop_assert_eq!(address.to_string().parse::<NodeAddress>(), Ok(address));
            }
            for scheme in ["memcached://", "memcacheds://", "members:", ""] {
                if let Ok(url) = format!("{scheme}{text}").parse::<CacheUrl>() {
                    prop_assert_eq!(url.to_string().parse::<CacheUrl>(), Ok(url));
                }
            }
        }
    }
}
