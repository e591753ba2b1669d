//! Bridges, of Linux or of Open vSwitch, and a VM's port of one.
//!
//! What a VM is, its port says: in the name that can be given to an interface (its alias), which goes
//! with it. So there is no list that could be wrong after a crash. Two that claim the same at once
//! see each other, because each claims before it looks; then both give way.
//!
//! The bridge itself is told where the VM's Ethernet address is, that nothing is to be learnt there, and,
//! where the kernel knows how (Linux 5.18), to drop what comes from any other.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use devices::virtio::net::mac::MacAddress;
use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{
    InfoBridgePort, InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkExtentMask, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::addresses::{self, Wanted};
use super::netlink::Route;
use super::{NetError, ovs};

/// How often an address is looked for that nobody claims at the same time.
const MOST_ATTEMPTS: u32 = 100;
/// What the aliases of VMs' ports begin with.
const ALIAS: &str = "vmm";

/// What a bridge is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// The kernel.
    Linux,
    /// Open vSwitch.
    Ovs,
}

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// What it is of.
    pub carrier: Carrier,
    /// Its name.
    pub name: String,
    /// The number of its interface; 0 if it has none.
    pub index: u32,
    /// The largest packet that it carries.
    pub mtu: u32,
}

/// The interface called `name`, if there is one.
///
/// # Errors
/// The kernel's refusal.
pub fn link(route: &mut Route, name: &str) -> Result<Option<LinkMessage>, NetError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    match route.request(RouteNetlinkMessage::GetLink(message), 0) {
        Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        })),
        Err(error) if error.is(libc::ENODEV) => Ok(None),
        Err(source) => Err(NetError::Kernel { what: format!("look for {name}"), source }),
    }
}

/// The bridge called `name`.
///
/// # Errors
/// There is none.
pub fn find(route: &mut Route, name: &str) -> Result<Bridge, NetError> {
    let found = link(route, name)?;
    let (mut is_bridge, mut mtu) = (false, ovs::DEFAULT_MTU);
    for attribute in found.iter().flat_map(|link| &link.attributes) {
        match attribute {
            LinkAttribute::Mtu(found) => mtu = *found,
            LinkAttribute::LinkInfo(infos) => {
                is_bridge |= infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
            }
            _ => {}
        }
    }
    let carrier = match &found {
        _ if is_bridge => Carrier::Linux,
        _ if ovs::is_there(name) => Carrier::Ovs,
        Some(_) => return Err(NetError::NotABridge(name.to_owned())),
        None => return Err(NetError::NoBridge(name.to_owned())),
    };
    let index = found.map_or(0, |link| link.header.index);
    Ok(Bridge { carrier, name: name.to_owned(), index, mtu })
}

/// A port of a bridge, as far as it says who is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claim {
    /// The interface's number.
    pub index: u32,
    /// Its name.
    pub port: String,
    /// What it says of itself; empty if it is no VM's.
    pub alias: String,
}

impl Claim {
    /// What the alias has behind `key`.
    pub fn word(&self, key: &str) -> Option<&str> {
        let mut words = self.alias.split(' ');
        if words.next() != Some(ALIAS) {
            return None;
        }
        words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    fn is_at(&self, mac: MacAddress) -> bool {
        self.word("mac").and_then(|text| text.parse().ok()) == Some(mac)
    }

    fn has(&self, address: IpAddr) -> bool {
        let key = if address.is_ipv4() { "ip" } else { "ip6" };
        self.word(key).and_then(|text| text.parse().ok()) == Some(address)
    }
}

/// The ports of `bridge`.
///
/// # Errors
/// The kernel's refusal.
pub fn ports(route: &mut Route, bridge: &Bridge) -> Result<Vec<Claim>, NetError> {
    let mut message = LinkMessage::default();
    let entered = match bridge.carrier {
        Carrier::Linux => {
            message.attributes.push(LinkAttribute::Controller(bridge.index));
            BTreeSet::new()
        }
        Carrier::Ovs => ovs::ports(&bridge.name)?,
    };
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let answers = route
        .dump(&RouteNetlinkMessage::GetLink(message))
        .map_err(NetError::kernel("list the ports of the bridge"))?;
    let mut ports = Vec::new();
    for answer in answers {
        let RouteNetlinkMessage::NewLink(link) = answer else { continue };
        let mut claim = Claim { index: link.header.index, ..Claim::default() };
        let mut controller = None;
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => claim.port = name,
                LinkAttribute::IfAlias(alias) => claim.alias = alias,
                LinkAttribute::Controller(index) => controller = Some(index),
                _ => {}
            }
        }
        let is_on = match bridge.carrier {
            Carrier::Linux => controller == Some(bridge.index),
            Carrier::Ovs => entered.contains(&claim.port),
        };
        if is_on {
            ports.push(claim);
        }
    }
    Ok(ports)
}

/// A VM's port.
#[derive(Debug)]
pub struct Port {
    index: u32,
    name: String,
    /// Whether the bridge drops what comes from other Ethernet addresses.
    pub locked: bool,
}

impl Port {
    /// Puts the interface `name`, of the VM at `mac`, on `bridge`. It is not up yet.
    ///
    /// # Errors
    /// The kernel's refusal, or the address is on the bridge already.
    pub fn join(
        route: &mut Route,
        bridge: &Bridge,
        name: &str,
        mac: MacAddress,
        isolated: bool,
    ) -> Result<Self, NetError> {
        let gone = || NetError::NoBridge(name.to_owned());
        let index = link(route, name)?.ok_or_else(gone)?.header.index;
        let mut port = Self { index, name: name.to_owned(), locked: false };
        let mut attributes =
            vec![LinkAttribute::Address(host_side(mac).to_vec()), LinkAttribute::Mtu(bridge.mtu)];
        let what = format!("put {name} on {}", bridge.name);
        if bridge.carrier == Carrier::Ovs {
            port.change(route, attributes).map_err(NetError::kernel(what))?;
            ovs::enter(route, &bridge.name, name, isolated)?;
            return Ok(port);
        }
        attributes.push(LinkAttribute::Controller(bridge.index));
        port.change(route, attributes).map_err(NetError::kernel(what))?;

        let flags = vec![
            InfoBridgePort::Learning(false),
            InfoBridgePort::UnicastFlood(false),
            InfoBridgePort::Isolated(isolated),
            InfoBridgePort::Locked(true),
        ];
        let mut message = port.message();
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(flags)),
        ]));
        route
            .request(RouteNetlinkMessage::NewLink(message), 0)
            .map_err(NetError::kernel(format!("set up {name} on {}", bridge.name)))?;
        port.locked = port.is_locked(route)?;
        port.announce(route, bridge, mac)?;
        Ok(port)
    }

    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        message
    }

    fn change(
        &self,
        route: &mut Route,
        attributes: Vec<LinkAttribute>,
    ) -> Result<(), super::netlink::NetlinkError> {
        let mut message = self.message();
        message.attributes = attributes;
        route.request(RouteNetlinkMessage::SetLink(message), 0).map(|_| ())
    }

    /// Whether the kernel knew what it was asked: older ones pass over it.
    fn is_locked(&self, route: &mut Route) -> Result<bool, NetError> {
        let Some(link) = link(route, &self.name)? else { return Ok(false) };
        let locked = |info: &LinkInfo| match info {
            LinkInfo::PortData(InfoPortData::BridgePort(flags)) => {
                flags.contains(&InfoBridgePort::Locked(true))
            }
            _ => false,
        };
        Ok(link.attributes.iter().any(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.iter().any(locked),
            _ => false,
        }))
    }

    /// Tells the bridge where `mac` is.
    fn announce(
        &self,
        route: &mut Route,
        bridge: &Bridge,
        mac: MacAddress,
    ) -> Result<(), NetError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = self.index;
        // Static: it does not age, and is not the host's own.
        message.header.state = NeighbourState::Noarp;
        message.header.flags = NeighbourFlags::Controller;
        let octets = mac.octets().to_vec();
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(octets));
        match route.request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_EXCL) {
            Ok(_) => Ok(()),
            Err(error) if error.is(libc::EEXIST) => {
                Err(NetError::MacTaken { mac, bridge: bridge.name.clone() })
            }
            Err(source) => {
                let what = format!("tell {} of {mac}", bridge.name);
                Err(NetError::Kernel { what, source })
            }
        }
    }

    /// Claims the addresses that the VM wants, or one that is free; the VM's IPv4 address.
    ///
    /// # Errors
    /// Another VM has it, or there is none.
    pub fn claim(
        &mut self,
        route: &mut Route,
        bridge: &Bridge,
        wanted: &Wanted<'_>,
    ) -> Result<Option<Ipv4Net>, NetError> {
        let mut taken = BTreeSet::new();
        for attempt in 0..MOST_ATTEMPTS {
            let ip = match (wanted.ip, wanted.own) {
                (Some(ip), _) => Some(ip),
                (None, None) => None,
                (None, Some(own)) => Some(
                    addresses::choose(own, &taken, wanted.name, attempt)
                        .ok_or(NetError::Full(own.trunc()))?,
                ),
            };
            self.say(route, wanted, ip)?;
            let others = ports(route, bridge)?;
            let others = others.iter().filter(|claim| claim.index != self.index);
            // A bridge of Linux has refused it already.
            if others.clone().any(|claim| claim.is_at(wanted.mac)) {
                return Err(NetError::MacTaken { mac: wanted.mac, bridge: bridge.name.clone() });
            }
            let addresses =
                [ip.map(|ip| IpAddr::V4(ip.addr())), wanted.ip6.map(|ip| IpAddr::V6(ip.addr()))];
            let addresses: Vec<_> = addresses.into_iter().flatten().collect();
            let rival = others
                .clone()
                .find_map(|claim| Some((claim, *addresses.iter().find(|a| claim.has(**a))?)));
            let hosts_own = wanted.own.map(|own| IpAddr::V4(own.addr()));
            let Some((claim, address)) = rival else {
                if let Some(address) = addresses.iter().find(|a| Some(**a) == hosts_own) {
                    let (bridge, port) = (bridge.name.clone(), bridge.name.clone());
                    return Err(NetError::AddressTaken { address: *address, bridge, port });
                }
                return Ok(ip);
            };
            if wanted.ip.is_some() || address.is_ipv6() {
                let (bridge, port) = (bridge.name.clone(), claim.port.clone());
                return Err(NetError::AddressTaken { address, bridge, port });
            }
            taken = others.filter_map(|c| c.word("ip")?.parse::<Ipv4Addr>().ok()).collect();
        }
        Err(NetError::Full(wanted.own.unwrap_or_default().trunc()))
    }

    /// Writes into the port's alias who is there.
    fn say(
        &self,
        route: &mut Route,
        wanted: &Wanted<'_>,
        ip: Option<Ipv4Net>,
    ) -> Result<(), NetError> {
        let ip = ip.map(|ip| format!(" ip={}", ip.addr())).unwrap_or_default();
        let ip6 = wanted.ip6.map(|ip| format!(" ip6={}", ip.addr())).unwrap_or_default();
        let alias = format!("{ALIAS} name={} mac={}{ip}{ip6}", wanted.name, wanted.mac);
        self.change(route, vec![LinkAttribute::IfAlias(alias)])
            .map_err(NetError::kernel(format!("name {}", self.name)))
    }

    /// Lets frames through.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn up(&self, route: &mut Route) -> Result<(), NetError> {
        up(route, self.index, &self.name)
    }
}

/// Switches an interface on.
pub(super) fn up(route: &mut Route, index: u32, name: &str) -> Result<(), NetError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    route
        .request(RouteNetlinkMessage::SetLink(message), 0)
        .map(|_| ())
        .map_err(NetError::kernel(format!("switch {name} on")))
}

/// The Ethernet address of the host's end: high, so that a bridge that takes the lowest of its ports
/// does not take this one, and not the VM's.
fn host_side(mac: MacAddress) -> [u8; 6] {
    let mut octets = mac.octets();
    octets[0] = if octets[0] == 0xfe { 0xfa } else { 0xfe };
    octets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_says_who_is_there() {
        let claim = |alias: &str| Claim { alias: alias.into(), ..Claim::default() };
        let vm = claim("vmm name=a mac=02:00:00:00:00:01 ip=10.0.0.2 ip6=fd00::2");
        assert_eq!(vm.word("name"), Some("a"));
        assert!(vm.has([10, 0, 0, 2].into()) && vm.has("fd00::2".parse().unwrap()));
        assert!(!vm.has([10, 0, 0, 3].into()));
        assert_eq!(claim("uplink ip=10.0.0.2").word("ip"), None);
        assert_eq!(claim("").word("ip"), None);
    }

    #[test]
    fn the_hosts_end_is_never_the_vms() {
        for first in [0x02, 0xfa, 0xfe] {
            let mac = MacAddress::new([first, 0, 0, 0, 0, 1]).unwrap();
            assert_ne!(host_side(mac), mac.octets());
            assert_eq!(host_side(mac)[0] & 1, 0);
        }
    }
}
