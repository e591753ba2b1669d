//! Answers a VM's requests for its address (RFC 2131) where they are made, in its own device: nobody
//! else can ask or answer, and the host needs no server and no socket.

use std::net::Ipv4Addr;

use dhcproto::Encodable;
use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use serde::{Deserialize, Serialize};

use super::mac::MacAddress;
use super::packet::{Content, Frame, IPV4};

/// The longest request that is looked at: what fits a packet.
const MOST_REQUEST_BYTES: usize = 1500;
/// Who answers where there is no gateway: an address of the link's own.
const NO_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);
/// The broadcast bit of a request's flags.
const BROADCAST: u16 = 0x8000;
const FOR_EVER: u32 = u32::MAX;

/// What a VM is told when it asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its address.
    pub address: Ipv4Addr,
    /// How many bits of it are its network's.
    pub prefix: u8,
    /// Who carries what is for elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<Ipv4Addr>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<String>,
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is to no DHCP server.
    Not,
    /// It is, and there is no answer; it goes nowhere else.
    Unanswered,
    /// This frame, without virtio's header, is the answer.
    Answer(Vec<u8>),
}

/// The answerer of one VM.
#[derive(Clone, Debug)]
pub struct Answerer {
    mac: MacAddress,
    mtu: u16,
    lease: Lease,
}

impl Answerer {
    /// One that gives `lease` to the VM at `mac`.
    pub fn new(mac: MacAddress, mtu: u16, lease: Lease) -> Self {
        Self { mac, mtu, lease }
    }

    /// Looks whether `frame`, which begins with its Ethernet header, is to a DHCP server, and answers.
    pub fn take(&self, frame: &[u8]) -> Taken {
        Frame::parse(frame).map_or(Taken::Not, |frame| self.take_frame(&frame))
    }

    pub(super) fn take_frame(&self, frame: &Frame<'_>) -> Taken {
        let packet = Some(frame).filter(|frame| frame.kind == IPV4).and_then(Frame::packet);
        match packet.map(|packet| packet.content) {
            Some(Content::Udp { source: 68, destination: 67, data }) => {
                self.answer(data).map_or(Taken::Unanswered, Taken::Answer)
            }
            Some(Content::Udp { destination: 67, .. }) => Taken::Unanswered,
            _ => Taken::Not,
        }
    }

    fn server(&self) -> Ipv4Addr {
        self.lease.gateway.unwrap_or(NO_GATEWAY)
    }

    fn answer(&self, request: &[u8]) -> Option<Vec<u8>> {
        // Request, Ethernet, six octets; then the client's address.
        let own = request.get(..3) == Some(&[1, 1, 6])
            && request.get(28..34) == Some(&self.mac.octets()[..]);
        if !own || request.len() > MOST_REQUEST_BYTES {
            return None;
        }
        let request = Request::parse(request)?;
        let kind = match request.kind {
            MessageType::Discover => MessageType::Offer,
            MessageType::Inform => MessageType::Ack,
            MessageType::Request => {
                if request.server.is_some_and(|server| server != self.server()) {
                    return None;
                }
                let wanted = request.wanted.unwrap_or(request.address);
                if wanted == self.lease.address { MessageType::Ack } else { MessageType::Nak }
            }
            _ => return None,
        };
        let reply = self.reply(&request, kind);
        let broadcast = kind == MessageType::Nak || request.flags & BROADCAST != 0;
        self.frame(&reply.to_vec().ok()?, broadcast)
    }

    fn reply(&self, request: &Request, kind: MessageType) -> Message {
        let mut reply = Message::default();
        reply
            .set_opcode(Opcode::BootReply)
            .set_xid(request.transaction)
            .set_flags(request.flags.into())
            .set_chaddr(&self.mac.octets());
        let lease = &self.lease;
        let informs = request.kind == MessageType::Inform;
        if informs {
            reply.set_ciaddr(request.address);
        } else if kind != MessageType::Nak {
            reply.set_yiaddr(lease.address);
        }
        let options = reply.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(self.server()));
        if kind == MessageType::Nak {
            return reply;
        }
        if !informs {
            options.insert(DhcpOption::AddressLeaseTime(FOR_EVER));
        }
        options.insert(DhcpOption::SubnetMask(mask(lease.prefix)));
        options.insert(DhcpOption::InterfaceMtu(self.mtu));
        if let Some(gateway) = lease.gateway {
            options.insert(DhcpOption::Router(vec![gateway]));
        }
        if !lease.dns.is_empty() {
            options.insert(DhcpOption::DomainNameServer(lease.dns.clone()));
        }
        if let Some(name) = &lease.host_name {
            options.insert(DhcpOption::Hostname(name.clone()));
        }
        reply
    }

    /// The frame that carries `message` to the VM.
    fn frame(&self, message: &[u8], broadcast: bool) -> Option<Vec<u8>> {
        let (source, mac) = (self.server().octets(), self.mac.octets());
        let destination = if broadcast { [255; 4] } else { self.lease.address.octets() };
        let to = if broadcast { [255; 6] } else { mac };
        let udp_length = u16::try_from(8 + message.len()).ok()?;
        let length = udp_length.checked_add(20)?;

        let mut frame = Vec::with_capacity(14 + usize::from(length));
        frame.extend(to);
        // As if from next door: the VM's address with a bit turned over.
        let [first, rest @ ..] = mac;
        frame.push(first ^ 4);
        frame.extend(rest);
        frame.extend(IPV4.to_be_bytes());

        let mut ip = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        ip[2..4].copy_from_slice(&length.to_be_bytes());
        ip[12..16].copy_from_slice(&source);
        ip[16..].copy_from_slice(&destination);
        let sum = checksum(&[&ip]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(ip);

        let [high, low] = udp_length.to_be_bytes();
        let udp = [0, 67, 0, 68, high, low, 0, 0];
        let pseudo = [0, 17, high, low];
        let sum = match checksum(&[&source, &destination, &pseudo, &udp, message]) {
            0 => u16::MAX,
            sum => sum,
        };
        frame.extend(&udp[..6]);
        frame.extend(sum.to_be_bytes());
        frame.extend(message);
        Some(frame)
    }
}

/// What counts of a request. The crate that writes the answers is not asked to read: of some options its
/// decoder asserts what a guest may make untrue.
#[derive(Debug)]
struct Request {
    transaction: u32,
    flags: u16,
    /// The address that the client says it has.
    address: Ipv4Addr,
    kind: MessageType,
    wanted: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
}

impl Request {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (fixed, rest) = bytes.split_at_checked(236)?;
        let mut options = rest.strip_prefix(&[99, 130, 83, 99])?;
        let word = |at: usize| fixed[at..].first_chunk::<4>().copied();
        let (mut kind, mut wanted, mut server) = (None, None, None);
        let address = |value: &[u8]| <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from);
        // Each turn takes at least a byte.
        while let [code, after @ ..] = options {
            options = after;
            match *code {
                0 => continue,
                255 => break,
                _ => {}
            }
            let (&length, after) = after.split_first()?;
            let (value, after) = after.split_at_checked(length.into())?;
            options = after;
            match OptionCode::from(*code) {
                OptionCode::MessageType => kind = Some(MessageType::from(*value.first()?)),
                OptionCode::RequestedIpAddress => wanted = Some(address(value)?),
                OptionCode::ServerIdentifier => server = Some(address(value)?),
                _ => {}
            }
        }
        Some(Self {
            transaction: u32::from_be_bytes(word(4)?),
            flags: u16::from_be_bytes([fixed[10], fixed[11]]),
            address: word(12)?.into(),
            kind: kind?,
            wanted,
            server,
        })
    }
}

/// The mask of a network whose addresses begin with `prefix` bits in common.
fn mask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0))
}

/// The internet checksum of `parts`, all but the last of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u64 = words
        .map(|word| u64::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded & 0xffff).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use dhcproto::{Decodable, Decoder};
    use proptest::prelude::*;

    use super::super::testing::{ethernet, ipv4_to};
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn answerer() -> Answerer {
        let lease = Lease {
            address: [10, 0, 0, 2].into(),
            prefix: 24,
            gateway: Some([10, 0, 0, 1].into()),
            dns: vec![[10, 0, 0, 1].into()],
            host_name: Some("a".into()),
        };
        Answerer::new(MacAddress::new(MAC).unwrap(), 1400, lease)
    }

    fn request(kind: MessageType, change: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut message = Message::default();
        message.set_chaddr(&MAC).set_xid(77);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        change(&mut message);
        let mut datagram = vec![0, 68, 0, 67, 0, 0, 0, 0];
        datagram.extend(message.to_vec().unwrap());
        ethernet(MAC, IPV4, &ipv4_to([0; 4], [255; 4], 17, &datagram))
    }

    fn answer(kind: MessageType, change: impl FnOnce(&mut Message)) -> Option<(Vec<u8>, Message)> {
        let frame = match answerer().take(&request(kind, change)) {
            Taken::Answer(frame) => frame,
            Taken::Unanswered => return None,
            Taken::Not => panic!("a request"),
        };
        let message = Message::decode(&mut Decoder::new(&frame[42..])).unwrap();
        Some((frame, message))
    }

    #[test]
    fn an_offer_has_all_that_the_lease_says() {
        let (frame, offer) = answer(MessageType::Discover, |_| {}).unwrap();
        assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
        assert_eq!((offer.xid(), offer.yiaddr()), (77, [10, 0, 0, 2].into()));
        for option in [
            DhcpOption::SubnetMask([255, 255, 255, 0].into()),
            DhcpOption::Router(vec![[10, 0, 0, 1].into()]),
            DhcpOption::DomainNameServer(vec![[10, 0, 0, 1].into()]),
            DhcpOption::InterfaceMtu(1400),
            DhcpOption::Hostname("a".into()),
            DhcpOption::AddressLeaseTime(u32::MAX),
        ] {
            assert!(offer.opts().iter().any(|(_, found)| *found == option), "{option:?}");
        }
        assert_eq!(frame[..6], MAC);
        assert_eq!(frame[30..34], [10, 0, 0, 2]);
        assert_eq!(checksum(&[&frame[14..34]]), 0);
        let [high, low] = u16::try_from(frame.len() - 34).unwrap().to_be_bytes();
        assert_eq!(checksum(&[&frame[26..34], &[0, 17, high, low], &frame[34..]]), 0);
    }

    #[test]
    fn the_vms_address_is_granted_and_no_other() {
        let asks = |address: [u8; 4]| {
            move |message: &mut Message| {
                message.opts_mut().insert(DhcpOption::RequestedIpAddress(address.into()));
            }
        };
        let kind = |found: Option<(Vec<u8>, Message)>| found.unwrap().1.opts().msg_type();
        let granted = answer(MessageType::Request, asks([10, 0, 0, 2]));
        assert_eq!(kind(granted), Some(MessageType::Ack));
        let (frame, refused) = answer(MessageType::Request, asks([10, 0, 0, 3])).unwrap();
        assert_eq!(refused.opts().msg_type(), Some(MessageType::Nak));
        assert_eq!((refused.yiaddr(), &frame[..6]), ([0; 4].into(), &[255; 6][..]));
        let renewed = answer(MessageType::Request, |message| {
            message.set_ciaddr([10, 0, 0, 2]);
        });
        assert_eq!(kind(renewed), Some(MessageType::Ack));
        let informed = answer(MessageType::Inform, |_| {}).unwrap().1;
        assert_eq!(informed.yiaddr(), Ipv4Addr::UNSPECIFIED);
        assert!(informed.opts().get(OptionCode::AddressLeaseTime).is_none());
    }

    #[test]
    fn what_is_not_for_here_is_not_answered_and_goes_nowhere() {
        for kind in [MessageType::Decline, MessageType::Release, MessageType::Offer] {
            assert!(answer(kind, |_| {}).is_none(), "{kind:?}");
        }
        let other = answer(MessageType::Discover, |message| {
            message.set_chaddr(&[2, 0, 0, 0, 0, 9]);
        });
        assert!(other.is_none());
        let elsewhere = answer(MessageType::Request, |message| {
            message.opts_mut().insert(DhcpOption::ServerIdentifier([1, 2, 3, 4].into()));
        });
        assert!(elsewhere.is_none());
        let mut web = request(MessageType::Discover, |_| {});
        web[37] = 80;
        assert_eq!(answerer().take(&web), Taken::Not, "for the network");
    }

    #[test]
    fn masks() {
        for (prefix, octets) in [(0, [0; 4]), (8, [255, 0, 0, 0]), (32, [255; 4])] {
            assert_eq!(mask(prefix), Ipv4Addr::from(octets));
        }
    }

    proptest! {
        #[test]
        fn hostile_requests_are_answered_to_the_vm_or_not_at_all(
            options in proptest::collection::vec(any::<u8>(), 0..400),
            flips in proptest::collection::vec((0_usize..280, any::<u8>()), 0..4),
        ) {
            let mut frame = request(MessageType::Discover, |_| {});
            frame.truncate(42 + 240);
            frame.extend(options);
            for (at, byte) in flips {
                frame[42 + at.min(239)] = byte;
            }
            if let Taken::Answer(answer) = answerer().take(&frame) {
                prop_assert!(answer[..6] == MAC || answer[..6] == [255; 6]);
                prop_assert!(answer.len() < 1400);
            }
        }
    }
}
