//! What is in a frame, as far as filters look: addresses and ports. Whatever cannot be told for sure
//! is no packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(super) const ETHERNET_BYTES: usize = 14;
pub(super) const ARP: u16 = 0x0806;
pub(super) const IPV4: u16 = 0x0800;
pub(super) const IPV6: u16 = 0x86dd;

const ICMP: u8 = 1;
const IGMP: u8 = 2;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Most extension headers of an IPv6 packet that are looked behind.
const MOST_EXTENSIONS: usize = 6;

/// An Ethernet frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    pub(super) destination: [u8; 6],
    pub(super) source: [u8; 6],
    pub(super) kind: u16,
    pub(super) content: &'a [u8],
}

/// An IP packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) content: Content<'a>,
}

/// What an IP packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content<'a> {
    /// TCP; `opens` is the first segment of a connection.
    Tcp {
        destination: u16,
        opens: bool,
    },
    Udp {
        source: u16,
        destination: u16,
        data: &'a [u8],
    },
    /// ICMP and IGMP of IPv4.
    Control,
    /// ICMP of IPv6, its type and what follows its checksum; whole, not in fragments.
    Control6 {
        kind: u8,
        body: &'a [u8],
    },
    /// What is not the first fragment of a packet.
    Fragment,
    Other,
}

/// An ARP packet for Ethernet and IPv4.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arp {
    pub(super) sender: [u8; 6],
    pub(super) sender_ip: Ipv4Addr,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(array_at(bytes, at)?))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

impl<'a> Frame<'a> {
    pub(super) fn parse(frame: &'a [u8]) -> Option<Self> {
        Some(Self {
            destination: array_at(frame, 0)?,
            source: array_at(frame, 6)?,
            kind: u16_at(frame, 12)?,
            content: &frame[ETHERNET_BYTES..],
        })
    }

    pub(super) fn arp(&self) -> Option<Arp> {
        let known = [0, 1, 8, 0, 6, 4]; // Ethernet, IPv4, and the lengths of their addresses
        if self.kind != ARP || self.content.get(..6)? != known {
            return None;
        }
        Some(Arp {
            sender: array_at(self.content, 8)?,
            sender_ip: Ipv4Addr::from(array_at::<4>(self.content, 14)?),
        })
    }

    pub(super) fn packet(&self) -> Option<Packet<'a>> {
        match self.kind {
            IPV4 => ipv4(self.content),
            IPV6 => ipv6(self.content),
            _ => None,
        }
    }
}

fn ipv4(bytes: &[u8]) -> Option<Packet<'_>> {
    let first = *bytes.first()?;
    let header = usize::from(first & 15) * 4;
    if first >> 4 != 4 || header < 20 {
        return None;
    }
    let fragment = u16_at(bytes, 6)?;
    let address = |at| array_at::<4>(bytes, at).map(|octets| IpAddr::V4(octets.into()));
    let (source, destination) = (address(12)?, address(16)?);
    let payload = bytes.get(header..)?;
    let content = match fragment & 0x1fff {
        0 => upper(bytes[9], payload, fragment & 0x2000 != 0)?,
        // It would be laid over the ports or the flags of the first one (RFC 3128).
        1 => return None,
        _ => Content::Fragment,
    };
    // ICMPv6 over IPv4 is nothing.
    let content =
        if matches!(content, Content::Control6 { .. }) { Content::Other } else { content };
    Some(Packet { source, destination, content })
}

fn ipv6(bytes: &[u8]) -> Option<Packet<'_>> {
    if bytes.first()? >> 4 != 6 {
        return None;
    }
    let address = |at| array_at::<16>(bytes, at).map(|octets| IpAddr::V6(Ipv6Addr::from(octets)));
    let (source, destination) = (address(8)?, address(24)?);
    let (mut next, mut rest) = (bytes[6], bytes.get(40..)?);
    let mut fragments = false;
    for _ in 0..=MOST_EXTENSIONS {
        let length = match next {
            0 | 43 | 60 | 135 => (usize::from(*rest.get(1)?) + 1) * 8,
            51 => (usize::from(*rest.get(1)?) + 2) * 4,
            44 => {
                let fragment = u16_at(rest, 2)?;
                if fragment & !7 != 0 {
                    return Some(Packet { source, destination, content: Content::Fragment });
                }
                fragments |= fragment & 1 != 0;
                8
            }
            _ => {
                let content = upper(next, rest, fragments)?;
                let content = if content == Content::Control { Content::Other } else { content };
                return Some(Packet { source, destination, content });
            }
        };
        next = *rest.first()?;
        rest = rest.get(length..)?;
    }
    None
}

/// What protocol `number` carries; `more` fragments may follow.
fn upper(number: u8, bytes: &[u8], more: bool) -> Option<Content<'_>> {
    Some(match number {
        TCP => {
            const SYN_ACK: u8 = 0x12;
            const SYN: u8 = 0x02;
            let opens = *bytes.get(13)? & SYN_ACK == SYN;
            Content::Tcp { destination: u16_at(bytes, 2)?, opens }
        }
        UDP => Content::Udp {
            source: u16_at(bytes, 0)?,
            destination: u16_at(bytes, 2)?,
            data: bytes.get(8..)?,
        },
        // Nobody takes these in fragments (RFC 6980), and we could not see all of them.
        ICMPV6 if more => return None,
        ICMPV6 => Content::Control6 { kind: *bytes.first()?, body: bytes.get(4..)? },
        ICMP | IGMP => Content::Control,
        _ => Content::Other,
    })
}
