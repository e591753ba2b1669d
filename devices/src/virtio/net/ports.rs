//! Which ports may be reached: of the VM from outside, and by the VM.
//!
//! Of TCP the first segment of a connection decides, of UDP each datagram, unless it answers one that
//! went the other way. Which these were is kept in a table of a fixed size, by a hash with a secret, in
//! which newer ones take the place of older: so a conversation may be cut off where a VM has hundreds
//! of others at a time, and whom the VM has written to may write back for as long as it is not.
//! ICMP passes, other protocols than these do not.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::packet::{ARP, Content, Frame};

/// Most ranges in one list.
const MOST_RULES: usize = 64;
/// Conversations that are remembered.
const FLOWS: usize = 1024;

/// Ports, as `tcp:22+tcp:80+udp:6000-6100`; `none` is none at all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRules(Vec<PortRange>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PortRange {
    protocol: Protocol,
    first: u16,
    last: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

/// What is no list of ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no list of ports: up to 64 of tcp:PORT, udp:PORT, tcp:FIRST-LAST or udp:FIRST-LAST, with \
     + between, or none"
)]
pub struct PortsError(String);

impl PortRules {
    fn has(&self, protocol: Protocol, port: u16) -> bool {
        let within = |range: &PortRange| {
            range.protocol == protocol && (range.first..=range.last).contains(&port)
        };
        self.0.iter().any(within)
    }
}

impl FromStr for PortRules {
    type Err = PortsError;

    fn from_str(text: &str) -> Result<Self, PortsError> {
        let error = || PortsError(text.chars().take(100).collect());
        if text == "none" {
            return Ok(Self::default());
        }
        let range = |word: &str| {
            let (protocol, ports) = word.split_once(':')?;
            let protocol = match protocol {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                _ => return None,
            };
            let number = |digits: &str| {
                let digits = digits.bytes().all(|byte| byte.is_ascii_digit()).then_some(digits)?;
                digits.parse::<u16>().ok().filter(|port| *port > 0)
            };
            let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(PortRange { protocol, first, last })
        };
        let rules: Option<Vec<_>> = text.split('+').take(MOST_RULES + 1).map(range).collect();
        rules.filter(|rules| rules.len() <= MOST_RULES).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for PortRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (index, range) in self.0.iter().enumerate() {
            let between = if index == 0 { "" } else { "+" };
            let protocol = match range.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            write!(f, "{between}{protocol}:{}", range.first)?;
            if range.last != range.first {
                write!(f, "-{}", range.last)?;
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for PortRules {
    type Error = PortsError;

    fn try_from(text: String) -> Result<Self, PortsError> {
        text.parse()
    }
}

impl From<PortRules> for String {
    fn from(rules: PortRules) -> Self {
        rules.to_string()
    }
}

/// The filter of both ways.
#[derive(Debug)]
pub(super) struct PortFilter {
    inward: Option<PortRules>,
    outward: Option<PortRules>,
    secret: RandomState,
    /// A hash of each conversation, at the place that another part of the hash says. 0 is none.
    flows: Vec<u32>,
}

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    In,
    Out,
}

impl PortFilter {
    /// A filter by what may be reached from outside, and from within; `None` is everything.
    pub(super) fn new(inward: Option<PortRules>, outward: Option<PortRules>) -> Self {
        let active = inward.is_some() || outward.is_some();
        let flows = vec![0; if active { FLOWS } else { 0 }];
        Self { inward, outward, secret: RandomState::new(), flows }
    }

    /// Whether `frame` may go this `way`.
    pub(super) fn passes(&mut self, way: Way, frame: &Frame<'_>) -> bool {
        if self.flows.is_empty() || frame.kind == ARP {
            return true;
        }
        let Some(packet) = frame.packet() else { return false };
        let rules = match way {
            Way::In => &self.inward,
            Way::Out => &self.outward,
        };
        let allowed = |protocol, port| rules.as_ref().is_none_or(|rules| rules.has(protocol, port));
        match packet.content {
            Content::Tcp { destination, opens } => !opens || allowed(Protocol::Tcp, destination),
            Content::Udp { source, destination, .. } => {
                let flow = match way {
                    Way::In => (packet.source, source, destination),
                    Way::Out => (packet.destination, destination, source),
                };
                if allowed(Protocol::Udp, destination) {
                    self.remember(flow);
                    return true;
                }
                // Addresses are asked for at the broadcast address, and answered from another.
                let dhcp = match way {
                    Way::In => (67, 68),
                    Way::Out => (68, 67),
                };
                (source, destination) == dhcp || self.knows(flow)
            }
            Content::Control | Content::Control6 { .. } | Content::Fragment => true,
            Content::Other => rules.is_none(),
        }
    }

    fn place(&self, flow: (IpAddr, u16, u16)) -> (usize, u32) {
        let hash = self.secret.hash_one(flow);
        let place = usize::try_from(hash % FLOWS as u64).unwrap_or(0);
        let mark = u32::try_from(hash >> 32).unwrap_or(0) | 1;
        (place, mark)
    }

    fn remember(&mut self, flow: (IpAddr, u16, u16)) {
        let (place, mark) = self.place(flow);
        self.flows[place] = mark;
    }

    fn knows(&self, flow: (IpAddr, u16, u16)) -> bool {
        let (place, mark) = self.place(flow);
        self.flows[place] == mark
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::{IPV4, IPV6};
    use super::super::testing::{ethernet, ipv4, ipv4_to, ipv6, tcp, udp};
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const VM: [u8; 4] = [10, 0, 0, 2];
    const PEER: [u8; 4] = [10, 0, 0, 9];

    fn rules(text: &str) -> PortRules {
        text.parse().unwrap()
    }

    fn passes(filter: &mut PortFilter, way: Way, content: &[u8], protocol: u8) -> bool {
        let (from, to) = if way == Way::In { (PEER, VM) } else { (VM, PEER) };
        let bytes = ethernet(MAC, IPV4, &ipv4_to(from, to, protocol, content));
        filter.passes(way, &Frame::parse(&bytes).unwrap())
    }

    #[test]
    fn rules_are_read_as_written() {
        for text in ["tcp:22+udp:53+tcp:8000-8999", "none", "udp:1-65535"] {
            assert_eq!(text.parse::<PortRules>().unwrap().to_string(), text);
        }
        assert_eq!("tcp:7-7".parse::<PortRules>().unwrap().to_string(), "tcp:7");
        let long = vec!["tcp:1"; 65].join("+");
        for text in ["", "tcp", "tcp:", "tcp:0", "tcp:65536", "tcp:9-8", "icmp:1", "tcp:1+", &long]
        {
            assert!(text.parse::<PortRules>().is_err(), "{text}");
        }
        assert!("tcp:+1".parse::<PortRules>().is_err());
    }

    #[test]
    fn connections_are_opened_where_the_rules_say() {
        let mut filter = PortFilter::new(Some(rules("tcp:22")), Some(rules("tcp:443")));
        for (way, port) in [(Way::In, 22), (Way::Out, 443)] {
            assert!(passes(&mut filter, way, &tcp(999, port, 0x02), 6));
            assert!(!passes(&mut filter, way, &tcp(999, 80, 0x02), 6));
            assert!(passes(&mut filter, way, &tcp(999, 80, 0x12), 6), "an answer");
            assert!(passes(&mut filter, way, &tcp(999, 80, 0x10), 6));
            assert!(!passes(&mut filter, way, &tcp(999, 80, 0x02)[..12], 6), "cut off");
            assert!(passes(&mut filter, way, &[8; 8], 1), "ICMP");
            assert!(!passes(&mut filter, way, &[8; 8], 47), "a tunnel");
        }
        let mut open = PortFilter::new(None, None);
        assert!(passes(&mut open, Way::In, &tcp(1, 80, 2), 6));
        let mut one_way = PortFilter::new(Some(rules("none")), None);
        assert!(passes(&mut one_way, Way::Out, &[0; 4], 47));
    }

    #[test]
    fn a_datagram_passes_where_the_rules_say_or_as_an_answer() {
        let mut filter = PortFilter::new(Some(rules("udp:53")), Some(rules("udp:123")));
        assert!(!passes(&mut filter, Way::In, &udp(123, 999), 17));
        assert!(passes(&mut filter, Way::Out, &udp(999, 123), 17));
        assert!(passes(&mut filter, Way::In, &udp(123, 999), 17), "the answer");
        assert!(!passes(&mut filter, Way::In, &udp(123, 998), 17));
        assert!(!passes(&mut filter, Way::Out, &udp(53, 999), 17));
        assert!(passes(&mut filter, Way::In, &udp(999, 53), 17));
        assert!(passes(&mut filter, Way::Out, &udp(53, 999), 17));
        assert!(passes(&mut filter, Way::Out, &udp(68, 67), 17), "it asks for an address");
        assert!(passes(&mut filter, Way::In, &udp(67, 68), 17));
    }

    #[test]
    fn what_hides_its_ports_does_not_pass() {
        let mut filter = PortFilter::new(Some(rules("tcp:22")), None);
        let mut check = |kind, content: &[u8]| {
            let bytes = ethernet(MAC, kind, content);
            filter.passes(Way::In, &Frame::parse(&bytes).unwrap())
        };
        assert!(!check(0x8100, &[0; 40]));
        let mut fragment = ipv4(PEER, 6, &tcp(1, 80, 2));
        fragment[7] = 1;
        assert!(!check(IPV4, &fragment), "laid over the flags");
        fragment[7] = 2;
        assert!(check(IPV4, &fragment), "without its beginning it is nothing");
        assert!(!check(IPV6, &ipv6("2001:db8::1", 6, &tcp(1, 80, 2))));
        assert!(check(IPV6, &ipv6("2001:db8::1", 6, &tcp(1, 22, 2))));
    }
}
