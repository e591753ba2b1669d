//! What a VM may send that has virtual identifiers: for each that has a voice what is its own, and from
//! its own Ethernet address packets of these services too (a host's addresses belong to the host, not to
//! an interface: RFC 1122, section 3.3.4.2). But that a service's address is to be found at some Ethernet
//! address, only its identifier says, and nothing at all is said for one that has no voice.

use std::net::IpAddr;

use endpoint::frames::ETHERTYPE;

use super::filter::{Identity, Sender, icmpv6, target};
use super::identifiers::{Identifiers, Table};
use super::mac::MacAddress;
use super::packet::{ARP, Content, Frame, IPV4, IPV6, Packet};

impl Identity {
    /// Whether the VM, or an identifier of `table`, is the sender of `frame`.
    pub(super) fn judge_among(&self, frame: &Frame<'_>, table: &Table) -> Sender {
        if frame.source == self.mac.octets() {
            return self.judge_own(frame, table);
        }
        let Some(identifiers) = table.find(frame.source) else { return Sender::Another };
        if !identifiers.may_send || table.is_over() {
            return Sender::Muted;
        }
        self.judge_identifier(frame, identifiers)
    }

    /// What has the VM's own Ethernet address, which may have a service's address of IP.
    fn judge_own(&self, frame: &Frame<'_>, table: &Table) -> Sender {
        let service = |address| {
            if self.has(address) { None } else { table.may_send_from(address) }
        };
        if let Some(arp) = frame.arp() {
            let is_services = service(arp.sender_ip.into()).is_some();
            return if is_services { Sender::Another } else { self.judge(frame) };
        }
        let Some(packet) = frame.packet() else { return self.judge(frame) };
        let speaks = service(packet.source);
        if let Content::Control6 { kind, body } = packet.content {
            let about = match kind {
                icmpv6::NEIGHBOUR_ADVERTISEMENT => target(body).and_then(|at| service(at.into())),
                icmpv6::NEIGHBOUR_SOLICITATION | icmpv6::ROUTER_SOLICITATION => speaks,
                _ => None,
            };
            if about.is_some() {
                return Sender::Another;
            }
        }
        match speaks {
            None => self.judge(frame),
            Some(false) => Sender::Muted,
            Some(true) if !self.is_restricted() => Sender::Vm,
            Some(true) => verdict(Self::at(self.mac, Some(packet.source)).may_send(&packet)),
        }
    }

    /// What has the Ethernet address of an identifier that has a voice.
    fn judge_identifier(&self, frame: &Frame<'_>, of: &Identifiers) -> Sender {
        // Whoever found the identifiers found one; it is no group's.
        let Ok(mac) = MacAddress::new(frame.source) else { return Sender::Another };
        let own = Self::at(mac, of.address);
        let is_known = match frame.kind {
            ARP | IPV4 => own.ipv4.or(self.ipv4).is_some(),
            IPV6 => own.ipv6.or(self.ipv6).is_some(),
            // Anything else could have anything in it, as a tag has.
            kind => kind == ETHERTYPE,
        };
        if self.is_restricted() && !is_known {
            return Sender::Unknown;
        }
        let any = of.address.is_none() && !self.is_restricted();
        verdict(match frame.kind {
            ARP => frame.arp().is_some_and(|arp| {
                let at = arp.sender_ip;
                arp.sender == frame.source && (any || own.ipv4 == Some(at) || at.is_unspecified())
            }),
            IPV4 | IPV6 if any => true,
            IPV4 | IPV6 => frame.packet().is_some_and(|packet| {
                own.may_send(&packet) || self.may_send(&packet) || self.may_serve(&packet, of)
            }),
            _ => true,
        })
    }

    /// Whether addresses were given to the VM.
    fn is_restricted(&self) -> bool {
        self.ipv4.is_some() || self.ipv6.is_some()
    }

    fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ipv4 == Some(address),
            IpAddr::V6(address) => self.ipv6 == Some(address),
        }
    }

    /// Who has `mac` and `address`.
    fn at(mac: MacAddress, address: Option<IpAddr>) -> Self {
        let mut own = Self { mac, ipv4: None, ipv6: None };
        match address {
            Some(IpAddr::V4(address)) => own.ipv4 = Some(address),
            Some(IpAddr::V6(address)) => own.ipv6 = Some(address),
            None => {}
        }
        own
    }

    fn may_send(&self, packet: &Packet<'_>) -> bool {
        match packet.source {
            IpAddr::V4(_) => self.may_send_ipv4(packet),
            IpAddr::V6(_) => self.may_send_ipv6(packet),
        }
    }

    /// Whether this is an answer of a DHCP server, and the VM one that may be one: with an address of its
    /// own it may not.
    fn may_serve(&self, packet: &Packet<'_>, of: &Identifiers) -> bool {
        let serves = matches!(packet.content, Content::Udp { source: 67 | 547, .. });
        serves && !self.is_restricted() && of.address == Some(packet.source)
    }
}

fn verdict(own: bool) -> Sender {
    if own { Sender::Vm } else { Sender::Another }
}

#[cfg(test)]
mod tests;
