//! What a switch asks the kernel about interfaces, ports of a bridge and forwarding entries.

use std::net::IpAddr;

use endpoint::vid::Vid;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVxlan,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{NetlinkError, Route};

/// An interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Whether it is a bridge.
    pub is_bridge: bool,
    /// How many frames wait for it at most.
    pub queue: u32,
    /// Frames for it that were dropped.
    pub dropped: u64,
    /// Frames that went out by it.
    pub sent: u64,
}

fn read(message: &LinkMessage) -> Link {
    let mut link = Link { index: message.header.index, ..Link::default() };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::TxQueueLen(frames) => link.queue = *frames,
            LinkAttribute::Stats64(stats) => {
                link.dropped = stats.tx_dropped;
                link.sent = stats.tx_packets;
            }
            LinkAttribute::LinkInfo(infos) => {
                link.is_bridge |= infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
            }
            _ => {}
        }
    }
    link
}

fn get(route: &mut Route, message: LinkMessage) -> Result<Option<Link>, NetlinkError> {
    match route.request(RouteNetlinkMessage::GetLink(message), 0) {
        Ok(answers) => Ok(answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(read(link)),
            _ => None,
        })),
        Err(error) if error.is(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The interface called `name`, if there is one.
///
/// # Errors
/// The kernel's refusal.
pub fn named(route: &mut Route, name: &str) -> Result<Option<Link>, NetlinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    get(route, message)
}

/// The interface with this number, if there is one.
///
/// # Errors
/// The kernel's refusal.
pub fn numbered(route: &mut Route, index: u32) -> Result<Option<Link>, NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    get(route, message)
}

/// Makes an interface; its number.
fn create(
    route: &mut Route,
    name: &str,
    kind: InfoKind,
    data: InfoData,
) -> Result<u32, NetlinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
        .attributes
        .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]));
    route.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)?;
    let link = named(route, name)?;
    link.map(|link| link.index).ok_or_else(|| NetlinkError::Answer(format!("{name} is gone")))
}

/// Makes a bridge; its number. It is not up.
///
/// # Errors
/// The kernel's refusal.
pub fn create_bridge(route: &mut Route, name: &str) -> Result<u32, NetlinkError> {
    // Snooping would have groups filtered that nobody asked for.
    let data = InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)]);
    create(route, name, InfoKind::Bridge, data)
}

/// Makes a VXLAN interface (RFC 7348) that learns nothing, with UDP `port`; its number. It is not up.
///
/// # Errors
/// The kernel's refusal.
pub fn create_vxlan(
    route: &mut Route,
    name: &str,
    network: u32,
    local: IpAddr,
    port: u16,
) -> Result<u32, NetlinkError> {
    let local = match local {
        IpAddr::V4(address) => InfoVxlan::Local(address),
        IpAddr::V6(address) => InfoVxlan::Local6(address),
    };
    let data =
        vec![InfoVxlan::Id(network), local, InfoVxlan::Port(port), InfoVxlan::Learning(false)];
    create(route, name, InfoKind::Vxlan, InfoData::Vxlan(data))
}

/// Takes an interface away.
///
/// # Errors
/// The kernel's refusal.
pub fn delete(route: &mut Route, index: u32) -> Result<(), NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    route.request(RouteNetlinkMessage::DelLink(message), 0).map(drop)
}

fn change(
    route: &mut Route,
    index: u32,
    attributes: Vec<LinkAttribute>,
) -> Result<(), NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    route.request(RouteNetlinkMessage::SetLink(message), 0).map(|_| ())
}

/// Puts an interface on a bridge.
///
/// # Errors
/// The kernel's refusal.
pub fn join(route: &mut Route, index: u32, bridge: u32) -> Result<(), NetlinkError> {
    change(route, index, vec![LinkAttribute::Controller(bridge)])
}

/// Has `frames` wait for an interface at most.
///
/// # Errors
/// The kernel's refusal.
pub fn set_queue(route: &mut Route, index: u32, frames: u32) -> Result<(), NetlinkError> {
    change(route, index, vec![LinkAttribute::TxQueueLen(frames)])
}

/// Switches an interface on.
///
/// # Errors
/// The kernel's refusal.
pub fn up(route: &mut Route, index: u32) -> Result<(), NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    route.request(RouteNetlinkMessage::SetLink(message), 0).map(|_| ())
}

/// Sets what a bridge does at a port.
///
/// # Errors
/// The kernel's refusal.
pub fn set_port(
    route: &mut Route,
    index: u32,
    flags: Vec<InfoBridgePort>,
) -> Result<(), NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(flags)),
    ]));
    route.request(RouteNetlinkMessage::NewLink(message), 0).map(|_| ())
}

fn entry(address: [u8; 6], index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(address.to_vec()));
    message
}

/// Points `vid` to a bridge's port, wherever it was.
///
/// Static (`NUD_NOARP`): a permanent entry would be the bridge's own, and take all its frames. Sticky: a
/// port that learns does not move it.
///
/// # Errors
/// The kernel's refusal.
pub fn point(route: &mut Route, vid: Vid, port: u32) -> Result<(), NetlinkError> {
    let mut message = entry(vid.bytes(), port);
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller | NeighbourFlags::Sticky;
    route
        .request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
        .map(|_| ())
}

/// Takes a bridge's entry of `vid` away.
///
/// # Errors
/// The kernel's refusal.
pub fn unpoint(route: &mut Route, vid: Vid, port: u32) -> Result<(), NetlinkError> {
    let mut message = entry(vid.bytes(), port);
    message.header.flags = NeighbourFlags::Controller;
    route.request(RouteNetlinkMessage::DelNeighbour(message), 0).map(|_| ())
}

fn to_host(address: [u8; 6], tunnel: u32, host: IpAddr) -> NeighbourMessage {
    let mut message = entry(address, tunnel);
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    let host = match host {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message.attributes.push(NeighbourAttribute::Destination(host));
    message
}

/// Has a VXLAN interface send what is for `vid` to `host`.
///
/// # Errors
/// The kernel's refusal.
pub fn tunnel(route: &mut Route, vid: Vid, tunnel: u32, host: IpAddr) -> Result<(), NetlinkError> {
    let message = to_host(vid.bytes(), tunnel, host);
    route
        .request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
        .map(|_| ())
}

/// Takes a VXLAN interface's entry of `vid` away.
///
/// # Errors
/// The kernel's refusal.
pub fn untunnel(route: &mut Route, vid: Vid, tunnel: u32) -> Result<(), NetlinkError> {
    let mut message = entry(vid.bytes(), tunnel);
    message.header.flags = NeighbourFlags::Own;
    route.request(RouteNetlinkMessage::DelNeighbour(message), 0).map(|_| ())
}

/// Has a VXLAN interface send what is for groups, and all, to `host` too.
///
/// # Errors
/// The kernel's refusal.
pub fn add_peer(route: &mut Route, tunnel: u32, host: IpAddr) -> Result<(), NetlinkError> {
    let message = to_host([0; 6], tunnel, host);
    route
        .request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_APPEND)
        .map(|_| ())
}

fn traffic_control(index: u32, kind: &str) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(index).unwrap_or_default();
    message.header.parent = TcHandle::CLSACT;
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    message
}

/// Has the program `filter` look at what an interface receives.
///
/// # Errors
/// The kernel's refusal; it may know neither `clsact` nor `cls_bpf`.
pub fn add_filter(route: &mut Route, index: u32, filter: u32) -> Result<(), NetlinkError> {
    let mut qdisc = traffic_control(index, "clsact");
    qdisc.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
    match route.request(RouteNetlinkMessage::NewQueueDiscipline(qdisc), NLM_F_CREATE | NLM_F_EXCL) {
        Ok(_) => {}
        Err(error) if error.is(libc::EEXIST) => {}
        Err(error) => return Err(error),
    }
    let mut message = traffic_control(index, "bpf");
    set_place(&mut message);
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(filter)),
        TcOption::Bpf(TcFilterBpfOption::ProgName("vswitch-mute".into())),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    route
        .request(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE | NLM_F_EXCL)
        .map(|_| ())
}

/// Takes the program of [`add_filter`] away.
///
/// # Errors
/// The kernel's refusal.
pub fn remove_filter(route: &mut Route, index: u32) -> Result<(), NetlinkError> {
    let mut message = traffic_control(index, "bpf");
    set_place(&mut message);
    route.request(RouteNetlinkMessage::DelTrafficFilter(message), 0).map(|_| ())
}

/// A filter's place: of what is received, first of all, whatever its protocol.
fn set_place(message: &mut TcMessage) {
    const PRIORITY: u32 = 1;
    const ETH_P_ALL: u16 = 3;
    message.header.parent = TcHandle { major: TcHandle::CLSACT.major, minor: 0xfff2 };
    message.header.info = (PRIORITY << 16) | u32::from(ETH_P_ALL.to_be());
}
