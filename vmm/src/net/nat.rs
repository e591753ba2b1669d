//! A bridge of the host's own, whose VMs reach elsewhere under the host's address.
//!
//! It is made for the first VM and stays; `vmm net rm` takes it away. Everything here finds out what is
//! there and adds what is missing, so that many VMs can be started at once, and one after a crash.

use std::fs;
use std::net::IpAddr;

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::bridge::{self, Bridge};
use super::netlink::Route;
use super::{DEFAULT_MTU, NetError, nft};

/// Its name, and that of the packet filter's table for it.
pub const BRIDGE: &str = "vmmnat0";

/// Its network unless asked otherwise: private, and not what others take first.
pub const SUBNET: &str = "10.213.0.0/16";

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// Octets of its Ethernet address: always the same, so that guests do not lose it.
const MAC: [u8; 6] = [0x02, b'v', b'm', b'n', b'a', b't'];

/// Finds the bridge, or makes it; it, and its address in its network.
///
/// # Errors
/// The kernel's refusal, or its network is another than `subnet`.
pub fn ensure(
    route: &mut Route,
    subnet: Option<Ipv4Net>,
    mtu: Option<u16>,
) -> Result<(Bridge, Ipv4Net), NetError> {
    if bridge::link(route, BRIDGE)?.is_none() {
        make(route)?;
    }
    let mut bridge = bridge::find(route, BRIDGE)?;
    let own = match addresses(route)?.into_iter().find(|(index, _)| *index == bridge.index) {
        Some((_, own)) => own,
        None => address(route, &bridge, subnet.unwrap_or_else(default_subnet))?,
    };
    if let Some(wanted) = subnet
        && wanted.trunc() != own.trunc()
    {
        return Err(NetError::OtherSubnet { bridge: BRIDGE, found: own.trunc(), wanted });
    }
    let mtu = u32::from(mtu.unwrap_or(DEFAULT_MTU));
    if mtu > bridge.mtu {
        let mut message = LinkMessage::default();
        message.header.index = bridge.index;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        route
            .request(RouteNetlinkMessage::SetLink(message), 0)
            .map_err(NetError::kernel(format!("set the MTU of {BRIDGE}")))?;
        bridge.mtu = mtu;
    }
    bridge::up(route, bridge.index, BRIDGE)?;
    forward()?;
    nft::ensure_masquerade(BRIDGE, own.trunc())
        .map_err(NetError::kernel("set up address translation (nf_tables)"))?;
    Ok((bridge, own))
}

/// Takes the bridge and its rules away; whether there was one.
///
/// # Errors
/// VMs are on it, or the kernel's refusal.
pub fn remove() -> Result<bool, NetError> {
    let mut route = Route::open()?;
    if bridge::link(&mut route, BRIDGE)?.is_none() {
        return Ok(false);
    }
    let bridge = bridge::find(&mut route, BRIDGE)?;
    let ports = bridge::ports(&mut route, &bridge)?.len();
    if ports > 0 {
        return Err(NetError::InUse { bridge: BRIDGE, ports });
    }
    let mut message = LinkMessage::default();
    message.header.index = bridge.index;
    route
        .request(RouteNetlinkMessage::DelLink(message), 0)
        .map_err(NetError::kernel(format!("remove {BRIDGE}")))?;
    nft::remove(BRIDGE).map_err(NetError::kernel("remove address translation (nf_tables)"))?;
    Ok(true)
}

fn default_subnet() -> Ipv4Net {
    SUBNET.parse().unwrap_or_default()
}

fn make(route: &mut Route) -> Result<(), NetError> {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(BRIDGE.into()),
        LinkAttribute::Address(MAC.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    match route.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL) {
        Ok(_) => Ok(()),
        // Somebody else was faster.
        Err(error) if error.is(libc::EEXIST) => Ok(()),
        Err(source) => Err(NetError::Kernel { what: format!("make the bridge {BRIDGE}"), source }),
    }
}

/// The IPv4 addresses of this host, with the numbers of their interfaces.
fn addresses(route: &mut Route) -> Result<Vec<(u32, Ipv4Net)>, NetError> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    let answers = route
        .dump(&RouteNetlinkMessage::GetAddress(message))
        .map_err(NetError::kernel("list this host's addresses"))?;
    let mut found = Vec::new();
    for answer in answers {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        for attribute in &message.attributes {
            if let AddressAttribute::Local(IpAddr::V4(address)) = attribute
                && let Ok(net) = Ipv4Net::new(*address, message.header.prefix_len)
            {
                found.push((message.header.index, net));
            }
        }
    }
    Ok(found)
}

/// Gives the bridge the first address of `subnet`.
fn address(route: &mut Route, bridge: &Bridge, subnet: Ipv4Net) -> Result<Ipv4Net, NetError> {
    let subnet = subnet.trunc();
    let overlaps = |(index, found): &(u32, Ipv4Net)| {
        *index != bridge.index
            && (found.contains(&subnet.network()) || subnet.contains(&found.addr()))
    };
    if let Some((_, found)) = addresses(route)?.into_iter().find(overlaps) {
        return Err(NetError::Overlaps { wanted: subnet, found });
    }
    let first = (u32::from(subnet.network()) + 1).into();
    let own = Ipv4Net::new(first, subnet.prefix_len()).unwrap_or(subnet);
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = own.prefix_len();
    message.header.index = bridge.index;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(own.addr())),
        AddressAttribute::Address(IpAddr::V4(own.addr())),
        AddressAttribute::Broadcast(own.broadcast()),
    ];
    match route.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL) {
        Ok(_) => Ok(own),
        Err(error) if error.is(libc::EEXIST) => Ok(own),
        Err(source) => Err(NetError::Kernel { what: format!("give {BRIDGE} {own}"), source }),
    }
}

/// Has the host carry packets between networks. It stays so: others may rely on it by the time that
/// nobody here does.
fn forward() -> Result<(), NetError> {
    let on =
        fs::read_to_string(FORWARDING).map_err(NetError::system(format!("read {FORWARDING}")))?;
    if on.trim() == "1" {
        return Ok(());
    }
    fs::write(FORWARDING, "1").map_err(NetError::system(format!("switch on {FORWARDING}")))
}
