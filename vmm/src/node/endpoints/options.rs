//! How a node's endpoints are set up.
#![allow(clippy::doc_markdown, reason = "documentation comments here are help texts")]

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use endpoint::moving::damping::DampingOptions;

use crate::api::client::NodeAddress;

/// Virtual endpoints of the node's VMs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Virtual endpoints")]
pub struct EndpointOptions {
    /// This host's name in the directory of endpoints; by default the system's.
    #[arg(long, value_name = "NAME")]
    pub host_name: Option<String>,

    /// Where the directory of endpoints is: local, for this host alone, or etcd=URL+URL, the members of an etcd
    /// that hosts share.
    #[arg(long, value_name = "WHERE", default_value_t)]
    pub directory: DirectorySpec,

    /// Another host, to whose VMs endpoints can move: NAME=ADDRESS,tunnel=IP, where its agent is (unix:/PATH
    /// or https://HOST:PORT) and where its tunnel ends. For each one.
    #[arg(long, value_name = "HOST")]
    pub peer: Vec<PeerSpec>,

    /// The tunnel (VXLAN) between a bridge of this host and those of its peers:
    /// bridge=NAME,local=IP[,network=N][,port=N]. Its interface, or of a bridge of Open vSwitch a port for each peer, is
    /// made, and stays when the agent ends, as VMs do; the next agent makes it anew.
    #[arg(long, value_name = "TUNNEL")]
    pub tunnel: Option<TunnelSpec>,

    /// How often an endpoint may be moved: MOVES/SECONDS, or off. One that is to move more often is frozen until
    /// somebody thaws it, since two that each want it would move it for ever.
    #[arg(long, value_name = "RATE", default_value = "5/180", value_parser = damping)]
    pub damping: DampingOptions,

    /// PEM file with the authorities that peers' certificates must come from.
    #[arg(long, value_name = "FILE")]
    pub peer_tls_ca: Option<PathBuf>,

    /// PEM file with the certificate that this agent shows to its peers.
    #[arg(long, value_name = "FILE", requires = "peer_tls_key")]
    pub peer_tls_cert: Option<PathBuf>,

    /// PEM file with its key.
    #[arg(long, value_name = "FILE", requires = "peer_tls_cert")]
    pub peer_tls_key: Option<PathBuf>,
}

/// Where the directory is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DirectorySpec {
    /// In the agent, for this host alone.
    #[default]
    Local,
    /// In etcd, with these members.
    Etcd(Vec<String>),
}

/// Another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSpec {
    /// Its name.
    pub name: String,
    /// Where its agent is.
    pub agent: NodeAddress,
    /// Where its tunnel ends.
    pub tunnel: IpAddr,
}

/// A tunnel to other hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelSpec {
    /// The bridge that it is of.
    pub bridge: String,
    /// This host's end.
    pub local: IpAddr,
    /// The number of the virtual network (VNI).
    pub network: u32,
    /// The UDP port.
    pub port: u16,
}

fn damping(text: &str) -> Result<DampingOptions, EndpointOptionError> {
    if text == "off" {
        return Ok(DampingOptions { moves: usize::MAX, window: Duration::from_secs(1) });
    }
    let wrong = || EndpointOptionError::Damping(text.to_owned());
    let (moves, seconds) = text.split_once('/').ok_or_else(wrong)?;
    let moves = moves.parse().ok().filter(|moves| (1..=1000).contains(moves));
    let seconds = seconds.parse().ok().filter(|seconds| (1..=86_400).contains(seconds));
    let window = Duration::from_secs(seconds.ok_or_else(wrong)?);
    Ok(DampingOptions { moves: moves.ok_or_else(wrong)?, window })
}

/// Why a text is none of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointOptionError {
    /// No directory.
    #[error("'{0}' is no directory: local, or etcd=URL+URL such as etcd=http://10.0.0.1:2379")]
    Directory(String),
    /// No peer.
    #[error(
        "'{0}' is no host: NAME=ADDRESS,tunnel=IP, such as h2=https://10.0.0.2:8443,tunnel=10.0.0.2"
    )]
    Peer(String),
    /// No rate.
    #[error("'{0}' is no rate of moves: MOVES/SECONDS such as 5/180, or off")]
    Damping(String),
    /// No tunnel.
    #[error("'{0}' is no tunnel: bridge=NAME,local=IP[,network=N][,port=N]")]
    Tunnel(String),
}

impl FromStr for DirectorySpec {
    type Err = EndpointOptionError;

    fn from_str(text: &str) -> Result<Self, EndpointOptionError> {
        let wrong = || EndpointOptionError::Directory(text.to_owned());
        match text.split_once('=') {
            None if text == "local" => Ok(Self::Local),
            Some(("etcd", members)) => {
                let members: Vec<String> = members.split('+').map(str::to_owned).collect();
                let is_url = |member: &String| member.starts_with("http://");
                if members.iter().all(is_url) { Ok(Self::Etcd(members)) } else { Err(wrong()) }
            }
            _ => Err(wrong()),
        }
    }
}

impl std::fmt::Display for DirectorySpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Etcd(members) => write!(f, "etcd={}", members.join("+")),
        }
    }
}

impl FromStr for PeerSpec {
    type Err = EndpointOptionError;

    fn from_str(text: &str) -> Result<Self, EndpointOptionError> {
        let wrong = || EndpointOptionError::Peer(text.to_owned());
        let (name, rest) = text.split_once('=').ok_or_else(wrong)?;
        let (agent, tunnel) = rest.rsplit_once(",tunnel=").ok_or_else(wrong)?;
        let agent = agent.parse().map_err(|_| wrong())?;
        let tunnel = tunnel.parse().map_err(|_| wrong())?;
        if name.is_empty() {
            return Err(wrong());
        }
        Ok(Self { name: name.to_owned(), agent, tunnel })
    }
}

impl FromStr for TunnelSpec {
    type Err = EndpointOptionError;

    fn from_str(text: &str) -> Result<Self, EndpointOptionError> {
        let wrong = || EndpointOptionError::Tunnel(text.to_owned());
        let (mut bridge, mut local, mut network, mut port) = (None, None, 0x766d, 4789);
        for word in text.split(',') {
            match word.split_once('=') {
                Some(("bridge", name)) if !name.is_empty() => bridge = Some(name.to_owned()),
                Some(("local", address)) => local = Some(address.parse().map_err(|_| wrong())?),
                Some(("network", number)) => {
                    let number = number.parse().ok().filter(|number| *number < 1 << 24);
                    network = number.ok_or_else(wrong)?;
                }
                Some(("port", number)) => port = number.parse().map_err(|_| wrong())?,
                _ => return Err(wrong()),
            }
        }
        let (bridge, local) = (bridge.ok_or_else(wrong)?, local.ok_or_else(wrong)?);
        Ok(Self { bridge, local, network, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for text in ["local", "etcd=http://10.0.0.1:2379+http://10.0.0.2:2379"] {
            assert_eq!(text.parse::<DirectorySpec>().unwrap().to_string(), text);
        }
        let peer: PeerSpec = "h2=https://10.0.0.2:8443,tunnel=10.1.0.2".parse().unwrap();
        assert_eq!((&*peer.name, peer.tunnel), ("h2", "10.1.0.2".parse().unwrap()));
        let tunnel: TunnelSpec = "bridge=vmm0,local=10.1.0.1".parse().unwrap();
        assert_eq!((&*tunnel.bridge, tunnel.port), ("vmm0", 4789));
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in ["", "etcd", "etcd=10.0.0.1:2379", "consul=x"] {
            assert!(text.parse::<DirectorySpec>().is_err(), "{text}");
        }
        for text in
            ["h2", "h2=https://a:1", "=https://a:1,tunnel=10.0.0.1", "h2=https://a:1,tunnel=x"]
        {
            assert!(text.parse::<PeerSpec>().is_err(), "{text}");
        }
        for text in ["", "5", "0/1", "5/0", "5/90000", "x/1"] {
            assert!(damping(text).is_err(), "{text}");
        }
        assert_eq!(damping("5/180"), Ok(DampingOptions::default()));
        for text in ["", "bridge=a", "local=10.0.0.1", "bridge=a,local=10.0.0.1,network=16777216"] {
            assert!(text.parse::<TunnelSpec>().is_err(), "{text}");
        }
    }
}
