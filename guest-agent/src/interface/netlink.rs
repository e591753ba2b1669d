//! What is asked of the kernel's network: a message, its acknowledgement, and the next.
//!
//! The messages are the library's. Answers are no more than an error number, which is read here: so the part
//! of the library that reads messages is not in every guest's ramdisk.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_ERROR,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoMacVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVlanMode,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Types of messages (<linux/rtnetlink.h>).
const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;

/// Bytes of a message's header.
const HEADER_BYTES: usize = 16;
/// The table of an interface has its number behind this; the kernel's own, and those that people number, are
/// below.
const FIRST_TABLE: u32 = 0xe9_0000;
/// Before the main table's rule, which is 32766.
const PRIORITY: u32 = 1000;
/// Rules that are removed at most: one is made for each interface.
const MOST_RULES: u32 = 64;

/// What an interface gets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) index: u32,
    pub(super) address: IpAddr,
    pub(super) bits: u8,
    pub(super) gateway: Option<IpAddr>,
}

impl Plan {
    fn family(&self) -> AddressFamily {
        if self.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
    }

    /// The network that the address is in.
    fn network(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(ip) => {
                let host = u32::MAX.checked_shr(self.bits.into()).unwrap_or(0);
                Ipv4Addr::from_bits(ip.to_bits() & !host).into()
            }
            IpAddr::V6(ip) => {
                let host = u128::MAX.checked_shr(self.bits.into()).unwrap_or(0);
                Ipv6Addr::from_bits(ip.to_bits() & !host).into()
            }
        }
    }
}

fn table(index: u32) -> u32 {
    FIRST_TABLE.wrapping_add(index)
}

/// The kernel's network, of this thread's namespace.
#[derive(Debug)]
pub(super) struct Route {
    socket: Socket,
    sequence: u32,
}

impl Route {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes a macvlan on the interface with number `card`. Those of one card reach each other.
    pub(super) fn create(&mut self, name: &str, card: u32, mac: [u8; 6]) -> io::Result<()> {
        let mode = InfoData::MacVlan(vec![InfoMacVlan::Mode(MacVlanMode::Bridge)]);
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Link(card),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::MacVlan), LinkInfo::Data(mode)]),
        ];
        self.ask(NEW_LINK, NLM_F_CREATE | NLM_F_EXCL, &message)
    }

    pub(super) fn set_up(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.ask(NEW_LINK, 0, &message)
    }

    pub(super) fn remove(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.ask(DELETE_LINK, 0, &message)
    }

    /// The address, without a route in the main table, which would lead what the card sends over here; and
    /// without asking whether somebody has it, as the service's old home does.
    pub(super) fn add_address(&mut self, plan: &Plan) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = plan.family();
        message.header.prefix_len = plan.bits;
        message.header.scope = AddressScope::Universe;
        message.header.index = plan.index;
        message.attributes = vec![
            AddressAttribute::Local(plan.address),
            AddressAttribute::Address(plan.address),
            AddressAttribute::Flags(AddressFlags::Noprefixroute | AddressFlags::Nodad),
        ];
        self.ask(NEW_ADDRESS, NLM_F_CREATE | NLM_F_EXCL, &message)
    }

    /// The network, and by the gateway all others, in the interface's own table.
    pub(super) fn add_routes(&mut self, plan: &Plan) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = plan.family();
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = RouteScope::Link;
        message.header.destination_prefix_length = plan.bits;
        let common = [RouteAttribute::Table(table(plan.index)), RouteAttribute::Oif(plan.index)];
        message.attributes = common.to_vec();
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(plan.network())));
        self.ask(NEW_ROUTE, NLM_F_CREATE | NLM_F_EXCL, &message)?;
        if let Some(gateway) = plan.gateway {
            message.header.destination_prefix_length = 0;
            message.header.scope = RouteScope::Universe;
            message.attributes = common.to_vec();
            message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
            self.ask(NEW_ROUTE, NLM_F_CREATE | NLM_F_EXCL, &message)?;
        }
        Ok(())
    }

    /// What is sent from the address looks into that table first.
    pub(super) fn add_rule(&mut self, plan: &Plan) -> io::Result<()> {
        let mut message = rule(plan.family(), plan.index);
        message.header.src_len = if plan.address.is_ipv4() { 32 } else { 128 };
        message.header.action = RuleAction::ToTable;
        message.attributes.push(RuleAttribute::Source(plan.address));
        message.attributes.push(RuleAttribute::Priority(PRIORITY));
        self.ask(NEW_RULE, NLM_F_CREATE | NLM_F_EXCL, &message)
    }

    /// Removes all rules to the interface's table.
    pub(super) fn remove_rules(&mut self, index: u32) -> io::Result<()> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for _ in 0..MOST_RULES {
                match self.ask(DELETE_RULE, 0, &rule(family, index)) {
                    Ok(()) => {}
                    Err(error) => match error.raw_os_error() {
                        Some(libc::ENOENT) => break,
                        // A kernel without IPv6.
                        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => break,
                        _ => return Err(error),
                    },
                }
            }
        }
        Ok(())
    }

    /// Sends a message and waits for its acknowledgement.
    fn ask(&mut self, kind: u16, flags: u16, message: &impl Emitable) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER_BYTES + message.buffer_len();
        let mut request = vec![0; length];
        let said = u32::try_from(length).map_err(io::Error::other)?;
        request[0..4].copy_from_slice(&said.to_ne_bytes());
        request[4..6].copy_from_slice(&kind.to_ne_bytes());
        request[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        request[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        message.emit(&mut request[HEADER_BYTES..]);
        self.socket.send(&request, 0)?;
        let mut answer = Vec::with_capacity(8 << 10);
        loop {
            answer.clear();
            match self.socket.recv(&mut answer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if let Some(result) = result(&answer, self.sequence) {
                return result;
            }
        }
    }
}

fn rule(family: AddressFamily, index: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.attributes.push(RuleAttribute::Table(table(index)));
    message
}

/// What an answer says of the request with this number; nothing if it is not of that.
fn result(mut answer: &[u8], sequence: u32) -> Option<io::Result<()>> {
    loop {
        let head: &[u8; 20] = answer.first_chunk()?;
        let number = |at: usize| {
            let bytes = head.get(at..).and_then(|rest| rest.first_chunk::<4>());
            u32::from_ne_bytes(*bytes.unwrap_or(&[0; 4]))
        };
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        if kind == NLMSG_ERROR && number(8) == sequence {
            return Some(match number(16).cast_signed() {
                0 => Ok(()),
                negative => Err(io::Error::from_raw_os_error(negative.saturating_neg())),
            });
        }
        let length = usize::try_from(number(0)).ok().filter(|length| *length >= HEADER_BYTES)?;
        answer = answer.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn networks_are_what_the_bits_say() {
        let network = |address: &str, bits| {
            let address = address.parse().unwrap();
            Plan { index: 1, address, bits, gateway: None }.network().to_string()
        };
        assert_eq!(network("10.7.3.100", 24), "10.7.3.0");
        assert_eq!(network("10.7.3.100", 32), "10.7.3.100");
        assert_eq!(network("10.7.3.100", 1), "0.0.0.0");
        assert_eq!(network("fd07::1:2", 64), "fd07::");
        assert_eq!(network("fd07::1:2", 128), "fd07::1:2");
    }

    #[test]
    fn an_answer_is_the_error_of_its_request() {
        let message = |sequence: u32, error: i32| {
            let mut bytes = vec![0; 36];
            bytes[0] = 36;
            bytes[4] = 2;
            bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
            bytes[16..20].copy_from_slice(&error.to_ne_bytes());
            bytes
        };
        assert!(matches!(result(&message(7, 0), 7), Some(Ok(()))));
        let refused = result(&[message(6, 0), message(7, -17)].concat(), 7).unwrap().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EEXIST));
        assert!(result(&message(6, 0), 7).is_none());
    }

    proptest! {
        #[test]
        fn any_answer_ends(bytes in proptest::collection::vec(any::<u8>(), 0..200), sequence: u32) {
            let _ = result(&bytes, sequence);
        }
    }
}
