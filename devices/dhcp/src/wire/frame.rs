//! The frames that carry the messages: Ethernet, IPv4, UDP.

use std::net::Ipv4Addr;

use etherparse::{EtherType, LinkSlice, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use crate::mac::Mac;

/// The port of servers and relays.
pub const SERVER_PORT: u16 = 67;
/// The port of clients.
pub const CLIENT_PORT: u16 = 68;
const TIME_TO_LIVE: u8 = 64;

/// A frame that came for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incoming<'a> {
    /// Whose it is on the link.
    pub source: Mac,
    /// Whether it is to this link's address of ours, or to all.
    pub to: [u8; 6],
    /// The address that it is to.
    pub destination: Ipv4Addr,
    /// The message.
    pub data: &'a [u8],
}

/// Takes the message out of `frame`, if that is a datagram to a DHCP server. Its checksum is not looked at: between
/// interfaces of one host there is none yet.
pub fn parse(frame: &[u8]) -> Option<Incoming<'_>> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(LinkSlice::Ethernet2(ethernet)) = &packet.link else { return None };
    if ethernet.ether_type() != EtherType::IPV4 {
        return None;
    }
    let Some(NetSlice::Ipv4(ip)) = &packet.net else { return None };
    if ip.header().is_fragmenting_payload() {
        return None;
    }
    let Some(TransportSlice::Udp(udp)) = &packet.transport else { return None };
    if udp.destination_port() != SERVER_PORT {
        return None;
    }
    Some(Incoming {
        source: Mac::new(ethernet.source())?,
        to: ethernet.destination(),
        destination: ip.header().destination_addr(),
        data: udp.payload(),
    })
}

/// Whom an answer is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// On the link.
    pub mac: [u8; 6],
    /// On the network.
    pub address: Ipv4Addr,
    /// The port: a client's or a relay's.
    pub port: u16,
}

/// The frame that carries `message` from the server at `mac` and `address`; nothing for a message that fits no
/// packet.
pub fn build(to: Destination, mac: [u8; 6], address: Ipv4Addr, message: &[u8]) -> Option<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(mac, to.mac)
        .ipv4(address.octets(), to.address.octets(), TIME_TO_LIVE)
        .udp(SERVER_PORT, to.port);
    let mut frame = Vec::with_capacity(builder.size(message.len()));
    builder.write(&mut frame, message).ok()?;
    Some(frame)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(to_port: u16) -> Vec<u8> {
        let to = Destination { mac: [255; 6], address: Ipv4Addr::BROADCAST, port: to_port };
        build(to, [2, 0, 0, 0, 0, 1], Ipv4Addr::UNSPECIFIED, b"message").unwrap()
    }

    #[test]
    fn what_is_built_is_read() {
        let frame = frame(SERVER_PORT);
        let incoming = parse(&frame).unwrap();
        assert_eq!(incoming.data, b"message");
        assert_eq!(incoming.source.octets(), [2, 0, 0, 0, 0, 1]);
        assert_eq!((incoming.to, incoming.destination), ([255; 6], Ipv4Addr::BROADCAST));
    }

    #[test]
    fn what_is_to_others_is_not() {
        assert_eq!(parse(&frame(CLIENT_PORT)), None);
        assert_eq!(parse(&frame(SERVER_PORT)[..40]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
            flips in proptest::collection::vec((0_usize..42, any::<u8>()), 0..4),
        ) {
            let _ = parse(&bytes);
            let mut frame = frame(SERVER_PORT);
            for (at, byte) in flips {
                frame[at] = byte;
            }
            let _ = parse(&frame);
        }
    }
}
