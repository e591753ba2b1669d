//! Connects VMs to networks: what needs privileges of the host's network, apart from the device that
//! is made of it.
//!
//! [`open`] makes a TAP interface that lives as long as its descriptor, puts it on a bridge, and settles
//! what the VM is there: its addresses, MTU, limits. The [`Attachment`] is a descriptor and a
//! [`Network`] that can be written down; so one process can open, and another, which may not,
//! make the device ([`Attachment::from_parts`], [`Attachment::into_device`]).

pub mod addresses;
pub mod bridge;
pub mod nat;
pub mod netlink;
pub mod nft;
pub mod ovs;
pub mod tap;

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use devices::virtio::VirtioDevice;
use devices::virtio::net::counters::Counters;
use devices::virtio::net::dhcp::Lease;
use devices::virtio::net::identifiers::IdentifierTable;
use devices::virtio::net::mac::MacAddress;
use devices::virtio::net::{MAX_MTU, Net, NetConfig};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use self::bridge::Port;
use self::netlink::{NetlinkError, Route};
use self::tap::TapFile;
use crate::spec::net::{AddressBy, NetMode, NetSpec, NetSpecError};

/// The MTU of Ethernet, where nothing else is said.
pub const DEFAULT_MTU: u16 = 1500;

/// Why a VM is not connected.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The description.
    #[error(transparent)]
    Spec(#[from] NetSpecError),
    /// The host's network did not do as asked.
    #[error("cannot {what}: {source}{}", hint(source))]
    Kernel {
        /// What was tried.
        what: String,
        /// The reason.
        source: NetlinkError,
    },
    /// A file or descriptor of the host's.
    #[error("cannot {what}: {source}{}", privilege(source))]
    System {
        /// What was tried.
        what: String,
        /// The reason.
        source: io::Error,
    },
    /// There is no such interface.
    #[error("there is no bridge '{0}' in this network namespace: make it, or use --net nat")]
    NoBridge(String),
    /// The interface is not a bridge.
    #[error(
        "'{0}' is a network interface, but no bridge of Linux, nor one of an Open vSwitch that runs"
    )]
    NotABridge(String),
    /// A bridge of Open vSwitch.
    #[error(transparent)]
    Switch(#[from] vswitch::PlaneError),
    /// The MTU is more than the bridge carries.
    #[error("mtu={wanted} is more than the {most} of {bridge}")]
    Mtu {
        /// What was asked for.
        wanted: u16,
        /// What there is.
        most: u32,
        /// The bridge.
        bridge: String,
    },
    /// Somebody has the Ethernet address.
    #[error(
        "{mac} is on {bridge} already: another VM has it, or was heard from there in the last \
         minutes; give the VM another name, or another mac="
    )]
    MacTaken {
        /// The address.
        mac: MacAddress,
        /// The bridge.
        bridge: String,
    },
    /// Somebody has the IP address.
    #[error("another VM on {bridge}, that at {port}, has {address}")]
    AddressTaken {
        /// The address.
        address: std::net::IpAddr,
        /// The bridge.
        bridge: String,
        /// The other's interface.
        port: String,
    },
    /// No address is left.
    #[error("no address of {0} is free: end a VM, or give the network another subnet=")]
    Full(Ipv4Net),
    /// The address is not of the network.
    #[error("{address} is not in {network}, the network of {bridge}")]
    Elsewhere {
        /// The address.
        address: Ipv4Net,
        /// The network.
        network: Ipv4Net,
        /// Its bridge.
        bridge: &'static str,
    },
    /// The bridge has another network than asked for.
    #[error("{bridge} has {found}, not {wanted}: leave subnet= out, or 'vmm net rm' it first")]
    OtherSubnet {
        /// The bridge.
        bridge: &'static str,
        /// Its network.
        found: Ipv4Net,
        /// What was asked for.
        wanted: Ipv4Net,
    },
    /// The network is one that the host is in already.
    #[error("{wanted} overlaps {found}, which this host is in: choose another subnet=")]
    Overlaps {
        /// What was to be used.
        wanted: Ipv4Net,
        /// What is there.
        found: Ipv4Net,
    },
    /// The bridge is in use.
    #[error("{ports} VMs are on {bridge}: end them first")]
    InUse {
        /// The bridge.
        bridge: &'static str,
        /// How many ports it has.
        ports: usize,
    },
    /// The descriptor is not what was said.
    #[error("fd={fd} is no TAP interface with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR: {why}")]
    NoTap {
        /// The descriptor's number.
        fd: i32,
        /// What it is.
        why: String,
    },
}

impl NetError {
    fn kernel(what: impl Into<String>) -> impl FnOnce(NetlinkError) -> Self {
        move |source| Self::Kernel { what: what.into(), source }
    }

    fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what: what.into(), source }
    }
}

fn hint(error: &NetlinkError) -> &'static str {
    match error {
        NetlinkError::Kernel(error) | NetlinkError::Socket(error) => privilege(error),
        NetlinkError::Answer(_) => "",
    }
}

fn privilege(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied {
        "; it takes CAP_NET_ADMIN, or a TAP that somebody else opened, with --net fd=N"
    } else {
        ""
    }
}

/// What a VM is on its network: all that making its device takes, but for the descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The host's interface.
    pub tap: String,
    /// The bridge that it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// The VM's IPv4 address and its network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ipv4Net>,
    /// The same of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Ipv6Net>,
    /// Who carries what is for elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Whether the bridge itself drops what is sent under another's Ethernet address.
    #[serde(default)]
    pub locked: bool,
    /// Words for the kernel's command line; empty if there are none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub command_line: String,
    /// What the device is made of.
    pub device: NetConfig,
}

impl Network {
    /// The command line of a boot, with the words of the network before its `own`, so that these win.
    pub fn command_line_with(&self, own: Option<&str>) -> Option<String> {
        let words = [self.command_line.as_str(), own.unwrap_or("")];
        let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
        (!words.is_empty()).then(|| words.join(" "))
    }
}

/// A VM's end of its network.
#[derive(Debug)]
pub struct Attachment {
    tap: OwnedFd,
    network: Network,
}

/// Connects the VM that is called `name`; `None` if it is to have no network.
///
/// # Errors
/// The network is not there or not to be changed, or an address is taken.
pub fn open(spec: &NetSpec, name: &str) -> Result<Option<Attachment>, NetError> {
    spec.check()?;
    let mac = spec.mac.unwrap_or_else(|| addresses::mac_of(name));
    match spec.mode {
        NetMode::None => Ok(None),
        NetMode::Fd => {
            let (tap, interface) = tap::given(spec.fd.unwrap_or(-1))?;
            let mtu = spec.mtu.unwrap_or(DEFAULT_MTU);
            let network = network(spec, name, mac, mtu, interface, spec.gateway);
            Ok(Some(Attachment { tap, network }))
        }
        NetMode::Bridge => {
            let mut route = Route::open()?;
            let name_of_bridge = spec.bridge.clone().unwrap_or_default();
            let bridge = bridge::find(&mut route, &name_of_bridge)?;
            attach(route, spec, name, mac, &bridge, None).map(Some)
        }
        NetMode::Nat => {
            let mut route = Route::open()?;
            let (bridge, own) = nat::ensure(&mut route, spec.subnet, spec.mtu)?;
            attach(route, spec, name, mac, &bridge, Some(own)).map(Some)
        }
    }
}

/// Makes an interface and puts it on `bridge`; `own` is the bridge's address if it is the host's own.
fn attach(
    mut route: Route,
    spec: &NetSpec,
    name: &str,
    mac: MacAddress,
    bridge: &bridge::Bridge,
    own: Option<Ipv4Net>,
) -> Result<Attachment, NetError> {
    let most = u16::try_from(bridge.mtu).unwrap_or(MAX_MTU).min(MAX_MTU);
    let mtu = spec.mtu.unwrap_or(most);
    if mtu > most {
        let bridge = bridge.name.clone();
        return Err(NetError::Mtu { wanted: mtu, most: most.into(), bridge });
    }
    if let (Some(own), Some(ip)) = (own, spec.ip)
        && (!own.contains(&ip.addr()) || ip.prefix_len() != own.prefix_len())
    {
        let network = own.trunc();
        return Err(NetError::Elsewhere { address: ip, network, bridge: nat::BRIDGE });
    }
    let (tap, interface) = tap::create(bridge.carrier)?;
    let mut port = Port::join(&mut route, bridge, &interface, mac, spec.isolated)?;
    let wanted = addresses::Wanted { name, mac, ip: spec.ip, ip6: spec.ip6, own };
    let ip = port.claim(&mut route, bridge, &wanted)?;
    port.up(&mut route)?;

    let mut resolved = NetSpec { ip, ..spec.clone() };
    if own.is_some() && resolved.dns.is_empty() {
        resolved.dns = addresses::host_dns();
    }
    let gateway = spec.gateway.or(own.map(|own| own.addr()));
    let mut network = network(&resolved, name, mac, mtu, interface, gateway);
    network.bridge = Some(bridge.name.clone());
    network.locked = port.locked;
    Ok(Attachment { tap, network })
}

fn network(
    spec: &NetSpec,
    name: &str,
    mac: MacAddress,
    mtu: u16,
    tap: String,
    gateway: Option<Ipv4Addr>,
) -> Network {
    let lease = spec.ip.filter(|_| spec.address == AddressBy::Dhcp).map(|ip| Lease {
        address: ip.addr(),
        prefix: ip.prefix_len(),
        gateway,
        dns: spec.dns.clone(),
        host_name: Some(name.to_owned()),
    });
    let mut words = Vec::new();
    if let Some(ip) = spec.ip.filter(|_| lease.is_none()) {
        words.push(addresses::kernel_word(ip, gateway, &spec.dns, name));
    }
    if let Some(ip6) = spec.ip6 {
        words.push(format!("vmm.ip6={ip6}"));
    }
    Network {
        tap,
        bridge: None,
        ip: spec.ip,
        ip6: spec.ip6,
        gateway: gateway.filter(|_| spec.ip.is_some()),
        locked: false,
        command_line: words.join(" "),
        device: NetConfig {
            mac,
            mtu,
            ipv4: spec.ip.map(|ip| ip.addr()),
            ipv6: spec.ip6.map(|ip| ip.addr()),
            allow_in: spec.allow_in.clone(),
            allow_out: spec.allow_out.clone(),
            receive: spec.receive_limit(),
            send: spec.send_limit(),
            lease,
        },
    }
}

impl Attachment {
    /// Of parts that were opened elsewhere.
    pub fn from_parts(tap: OwnedFd, network: Network) -> Self {
        Self { tap, network }
    }

    /// What can be given to who makes the device.
    pub fn into_parts(self) -> (OwnedFd, Network) {
        (self.tap, self.network)
    }

    /// What the VM is on its network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The VM's device, and what it counts. Takes no privilege.
    ///
    /// # Errors
    /// The host gives no descriptor to wait with.
    pub fn into_device(self) -> Result<NetDevice, NetError> {
        let tap = Box::new(TapFile::new(self.tap));
        let device = Net::new(tap, self.network.device)
            .map_err(NetError::system("make the network device"))?;
        let (counters, identifiers) = (device.counters(), device.identifiers());
        Ok(NetDevice { device: Box::new(device), counters, identifiers })
    }
}

/// A VM's network device, and what is beside it.
#[expect(missing_debug_implementations, reason = "a device has none")]
pub struct NetDevice {
    /// The device.
    pub device: Box<dyn VirtioDevice>,
    /// What it counts.
    pub counters: Arc<Counters>,
    /// What it knows of virtual endpoints.
    pub identifiers: IdentifierTable,
}
