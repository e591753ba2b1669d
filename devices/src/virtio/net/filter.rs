//! No guest says that it is another: what a frame gives as its sender must be the VM's own.
//!
//! The Ethernet source and the sender of ARP always; and where addresses were given to the VM, IP
//! sources, and what neighbour discovery says of them. Then nothing but ARP and IP passes, of the
//! families of which the VM has an address, and no answer of a DHCP server or router.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::mac::MacAddress;
use super::packet::{ARP, Content, Frame, IPV4, IPV6, Packet};

/// Who a VM is on its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) mac: MacAddress,
    pub(super) ipv4: Option<Ipv4Addr>,
    pub(super) ipv6: Option<Ipv6Addr>,
}

/// Who a frame says has sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    /// The VM.
    Vm,
    /// Somebody that the VM is not.
    Another,
    /// A service of the VM's that has no voice there now.
    Muted,
    /// It is of a kind, or a family, in which the VM has no address: most guests send some unasked.
    Unknown,
}

const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
const DHCPV6_SERVER: u16 = 547;

/// Types of messages.
pub(super) mod icmpv6 {
    pub const QUERY: u8 = 130;
    pub const REPORT: u8 = 131;
    pub const DONE: u8 = 132;
    pub const ROUTER_SOLICITATION: u8 = 133;
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    pub const REDIRECT: u8 = 137;
    pub const REPORT_2: u8 = 143;
}

impl Identity {
    /// Whether the VM is the sender of `frame`.
    pub(super) fn judge(&self, frame: &Frame<'_>) -> Sender {
        if frame.source != self.mac.octets() {
            return Sender::Another;
        }
        let restricted = self.ipv4.is_some() || self.ipv6.is_some();
        let own = match frame.kind {
            ARP if self.ipv4.is_some() || !restricted => self.may_send_arp(frame),
            IPV4 if self.ipv4.is_some() => frame.packet().is_some_and(|p| self.may_send_ipv4(&p)),
            IPV6 if self.ipv6.is_some() => frame.packet().is_some_and(|p| self.may_send_ipv6(&p)),
            _ if restricted => return Sender::Unknown,
            _ => true,
        };
        if own { Sender::Vm } else { Sender::Another }
    }

    fn may_send_arp(&self, frame: &Frame<'_>) -> bool {
        let Some(arp) = frame.arp() else { return false };
        let own = match self.ipv4 {
            // Without an address of its own it asks whether somebody has the one it wants.
            Some(ip) => arp.sender_ip == ip || arp.sender_ip.is_unspecified(),
            None => true,
        };
        own && arp.sender == self.mac.octets()
    }

    pub(super) fn may_send_ipv4(&self, packet: &Packet<'_>) -> bool {
        let own = self.ipv4.map(IpAddr::V4) == Some(packet.source);
        match packet.content {
            Content::Udp { source: DHCP_SERVER, .. } => false,
            Content::Udp { source: DHCP_CLIENT, destination: DHCP_SERVER, .. } => {
                own || packet.source.is_unspecified()
            }
            _ => own,
        }
    }

    pub(super) fn may_send_ipv6(&self, packet: &Packet<'_>) -> bool {
        use icmpv6::{
            DONE, NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION, QUERY, REDIRECT, REPORT,
            REPORT_2, ROUTER_ADVERTISEMENT, ROUTER_SOLICITATION,
        };
        let IpAddr::V6(source) = packet.source else { return false };
        let own = self.is_own(source);
        match packet.content {
            Content::Udp { source: DHCPV6_SERVER, .. } => false,
            Content::Control6 { kind: ROUTER_ADVERTISEMENT | REDIRECT | QUERY, .. } => false,
            Content::Control6 { kind: NEIGHBOUR_ADVERTISEMENT, body } => {
                own && self.names_itself(body, 20)
                    && target(body).is_some_and(|target| self.is_own(target))
            }
            Content::Control6 { kind: NEIGHBOUR_SOLICITATION, body } => {
                // Without an address it asks whether anybody has the one that it wants.
                let asks = source.is_unspecified()
                    && target(body).is_some_and(|target| self.is_own(target));
                (own || asks) && self.names_itself(body, 20)
            }
            Content::Control6 { kind: ROUTER_SOLICITATION, body } => {
                (own || source.is_unspecified()) && self.names_itself(body, 4)
            }
            Content::Control6 { kind: REPORT | REPORT_2 | DONE, .. } => {
                own || source.is_unspecified()
            }
            _ => own,
        }
    }

    /// The VM's IPv6 address, or the link's own that is made of its Ethernet address.
    fn is_own(&self, address: Ipv6Addr) -> bool {
        self.ipv6 == Some(address) || link_local(self.mac) == address
    }

    /// Whether all link-layer addresses among the options of neighbour discovery, from `at` on, are
    /// the VM's.
    fn names_itself(&self, body: &[u8], at: usize) -> bool {
        let Some(mut options) = body.get(at..) else { return false };
        while let [kind, units, ..] = *options {
            let length = usize::from(units) * 8;
            let (1.., Some(option)) = (units, options.get(..length)) else { return false };
            if matches!(kind, 1 | 2) && option[2..8] != self.mac.octets() {
                return false;
            }
            options = &options[length..];
        }
        options.is_empty()
    }
}

/// The address that neighbour discovery is about.
pub(super) fn target(body: &[u8]) -> Option<Ipv6Addr> {
    body.get(4..)?.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets))
}

/// The address of the link's own that is made of an Ethernet address (RFC 4291, appendix A).
fn link_local(mac: MacAddress) -> Ipv6Addr {
    let mac = mac.octets();
    let mut octets =
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, 0, 0, 0];
    octets[13..].copy_from_slice(&mac[3..]);
    Ipv6Addr::from(octets)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{arp, ethernet, icmpv6 as icmp6, ipv4, ipv6, udp};
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const IP: [u8; 4] = [10, 0, 0, 2];

    fn identity(ipv4: bool, ipv6: bool) -> Identity {
        Identity {
            mac: MacAddress::new(MAC).unwrap(),
            ipv4: ipv4.then(|| IP.into()),
            ipv6: ipv6.then(|| "2001:db8::2".parse().unwrap()),
        }
    }

    fn passes(identity: &Identity, frame: &[u8]) -> bool {
        Frame::parse(frame).is_some_and(|frame| identity.judge(&frame) == Sender::Vm)
    }

    #[test]
    fn an_ethernet_source_and_an_arp_sender_are_always_the_vms() {
        for id in [identity(false, false), identity(true, false), identity(true, true)] {
            assert!(passes(&id, &ethernet(MAC, ARP, &arp(MAC, IP))));
            assert!(!passes(&id, &ethernet(OTHER, ARP, &arp(MAC, IP))));
            assert!(!passes(&id, &ethernet(MAC, ARP, &arp(OTHER, IP))));
            assert!(!passes(&id, &ethernet(MAC, ARP, &arp(MAC, IP)[..17])));
            assert!(passes(&id, &ethernet(MAC, ARP, &arp(MAC, [0; 4]))));
        }
    }

    #[test]
    fn without_addresses_anything_else_passes_and_with_them_nothing_but_ip() {
        let lldp = ethernet(MAC, 0x88cc, &[0; 40]);
        let tagged = ethernet(MAC, 0x8100, &[0; 40]);
        for frame in [lldp, tagged] {
            assert!(passes(&identity(false, false), &frame));
            let frame = Frame::parse(&frame).unwrap();
            assert_eq!(identity(true, false).judge(&frame), Sender::Unknown);
        }
        let v6 = ethernet(MAC, IPV6, &ipv6("2001:db8::2", 17, &udp(1, 2)));
        assert!(!passes(&identity(true, false), &v6), "it has no such address");
        assert!(passes(&identity(false, true), &v6));
        assert!(!passes(&identity(false, true), &ethernet(MAC, ARP, &arp(MAC, IP))));
    }

    #[test]
    fn ipv4_sources_are_the_vms() {
        let id = identity(true, false);
        let from = |ip, source, destination| {
            passes(&id, &ethernet(MAC, IPV4, &ipv4(ip, 17, &udp(source, destination))))
        };
        assert!(from(IP, 5, 6));
        assert!(!from([10, 0, 0, 3], 5, 6));
        assert!(!from([0; 4], 5, 6));
        assert!(from([0; 4], 68, 67), "it asks for an address");
        assert!(!from([10, 0, 0, 3], 68, 67));
        assert!(!from(IP, 67, 68), "it gives no addresses");
    }

    #[test]
    fn ipv6_sources_and_what_is_said_of_neighbours_are_the_vms() {
        let id = identity(false, true);
        let sends = |source: &str, next, content: &[u8]| {
            passes(&id, &ethernet(MAC, IPV6, &ipv6(source, next, content)))
        };
        let own = "2001:db8::2";
        assert!(sends(own, 17, &udp(1, 2)));
        assert!(sends("fe80::ff:fe00:1", 17, &udp(1, 2)));
        assert!(!sends("fe80::ff:fe00:2", 17, &udp(1, 2)));
        assert!(!sends("2001:db8::3", 17, &udp(1, 2)));
        assert!(!sends("::", 17, &udp(1, 2)));
        assert!(!sends(own, 17, &udp(547, 546)));
        let about = |kind, target: &str, option: [u8; 6]| {
            let mut body = vec![0; 4];
            body.extend(target.parse::<Ipv6Addr>().unwrap().octets());
            body.extend([if kind == 136 { 2 } else { 1 }, 1]);
            body.extend(option);
            icmp6(kind, &body)
        };
        assert!(sends(own, 58, &about(136, own, MAC)));
        assert!(!sends(own, 58, &about(136, "2001:db8::3", MAC)));
        assert!(!sends(own, 58, &about(136, own, OTHER)));
        assert!(sends(own, 58, &about(135, "2001:db8::3", MAC)), "it looks for somebody");
        assert!(!sends("::", 58, &about(135, "2001:db8::3", MAC)));
        assert!(sends("::", 58, &icmp6(143, &[0; 8])));
        for kind in [134, 137, 130] {
            assert!(!sends(own, 58, &icmp6(kind, &[0; 40])), "{kind}");
        }
        // Behind a header for each hop, and hidden behind too many.
        let mut hop = vec![58, 0, 1, 4, 0, 0, 0, 0];
        hop.extend(icmp6(134, &[0; 40]));
        assert!(!sends(own, 0, &hop));
        let mut many = [0, 0, 1, 4, 0, 0, 0, 0].repeat(20);
        many.extend(icmp6(128, &[0; 8]));
        assert!(!sends(own, 0, &many));
        // In pieces.
        let mut pieces = vec![58, 0, 0, 1, 0, 0, 0, 1];
        pieces.extend(icmp6(134, &[0; 40]));
        assert!(!sends(own, 44, &pieces));
    }

    proptest! {
        #[test]
        fn whatever_passes_has_the_vms_ethernet_address(
            mut frame in proptest::collection::vec(any::<u8>(), 0..120),
            kind in prop::sample::select(vec![ARP, IPV4, IPV6, 0x8100]),
            v4 in any::<bool>(), v6 in any::<bool>(), own in any::<bool>(),
        ) {
            if frame.len() >= 14 {
                frame[12..14].copy_from_slice(&kind.to_be_bytes());
                if own {
                    frame[6..12].copy_from_slice(&MAC);
                }
            }
            let id = identity(v4, v6);
            if passes(&id, &frame) {
                prop_assert_eq!(&frame[6..12], &MAC);
                prop_assert!(kind != 0x8100 || !(v4 || v6));
                if v4 && kind == IPV4 {
                    prop_assert!(frame[26..30] == IP || frame[26..30] == [0; 4]);
                }
            }
        }
    }
}
