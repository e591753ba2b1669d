//! Address translation by `nf_tables`, set up by its netlink protocol: a table with one chain and one
//! rule (Linux, `include/uapi/linux/netfilter/nf_tables.h`). No crate speaks it under a licence that fits and
//! without a C library.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::netlink::{Channel, NetlinkError, split};

const SUBSYSTEM: u16 = 10; // NFNL_SUBSYS_NFTABLES
const IPV4: u8 = 2; // NFPROTO_IPV4
const ERROR: u16 = 2; // NLMSG_ERROR

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;

const CHAIN: &str = "postrouting";
const HOOK_POSTROUTING: u32 = 4;
const PRIORITY_SOURCE_NAT: u32 = 100;
const REGISTER: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const SOURCE_OFFSET: u32 = 12;
const DESTINATION_OFFSET: u32 = 16;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// Attributes, one behind the other.
#[derive(Debug, Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn text(self, kind: u16, text: &str) -> Self {
        self.put(kind, &[text.as_bytes(), &[0]].concat())
    }

    fn number(self, kind: u16, number: u32) -> Self {
        self.put(kind, &number.to_be_bytes())
    }

    fn nest(self, kind: u16, inner: &Self) -> Self {
        const NESTED: u16 = 1 << 15;
        self.put(kind | NESTED, &inner.0)
    }

    /// An expression of a rule.
    fn expression(self, name: &str, data: &Self) -> Self {
        self.nest(1, &Self::default().text(1, name).nest(2, data))
    }
}

/// Messages that are done all or not at all.
#[derive(Debug)]
struct Batch<'a> {
    channel: &'a mut Channel,
    bytes: Vec<u8>,
    awaited: Vec<u32>,
}

impl<'a> Batch<'a> {
    fn new(channel: &'a mut Channel) -> Self {
        let mut batch = Self { channel, bytes: Vec::new(), awaited: Vec::new() };
        batch.message(BATCH_BEGIN, 0, 0, SUBSYSTEM, &Attributes::default());
        batch
    }

    fn add(&mut self, kind: u16, flags: u16, attributes: &Attributes) {
        let sequence = self.message(SUBSYSTEM << 8 | kind, flags | NLM_F_ACK, IPV4, 0, attributes);
        self.awaited.push(sequence);
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        attributes: &Attributes,
    ) -> u32 {
        let sequence = self.channel.number();
        let message = message(kind, flags, sequence, family, resource, attributes);
        self.bytes.extend(message);
        sequence
    }

    fn commit(mut self) -> Result<(), NetlinkError> {
        self.message(BATCH_END, 0, 0, SUBSYSTEM, &Attributes::default());
        self.channel.send(&self.bytes)?;
        let mut awaited = self.awaited;
        while !awaited.is_empty() {
            let bytes = self.channel.receive()?;
            for message in split(&bytes) {
                if let Some(sequence) = acknowledged(message)? {
                    awaited.retain(|other| *other != sequence);
                }
            }
        }
        Ok(())
    }
}

/// One message with the headers of netlink and of its netfilter part.
fn message(
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    attributes: &Attributes,
) -> Vec<u8> {
    let length = u32::try_from(20 + attributes.0.len()).unwrap_or(u32::MAX);
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend([0; 4]);
    message.extend([family, 0]);
    message.extend(resource.to_be_bytes());
    message.extend(&attributes.0);
    message
}

/// The request that `message` says was done; `None` if it says something else.
fn acknowledged(message: &[u8]) -> Result<Option<u32>, NetlinkError> {
    let kind = message.get(4..).and_then(<[u8]>::first_chunk).map(|kind| u16::from_ne_bytes(*kind));
    if kind != Some(ERROR) {
        return Ok(None);
    }
    let word = |at: usize| message.get(at..).and_then(<[u8]>::first_chunk::<4>).copied();
    let (Some(sequence), Some(code)) = (word(8), word(16)) else {
        return Err(NetlinkError::Answer("an error without a number".into()));
    };
    match i32::from_ne_bytes(code) {
        0 => Ok(Some(u32::from_ne_bytes(sequence))),
        code => Err(NetlinkError::Kernel(std::io::Error::from_raw_os_error(code.saturating_neg()))),
    }
}

/// Whether there is a table called `name`.
fn exists(channel: &mut Channel, name: &str) -> Result<bool, NetlinkError> {
    let attributes = Attributes::default().text(1, name);
    let kind = SUBSYSTEM << 8 | GET_TABLE;
    let sequence = channel.number();
    channel.send(&message(kind, NLM_F_ACK, sequence, IPV4, 0, &attributes))?;
    loop {
        let bytes = channel.receive()?;
        for message in split(&bytes) {
            match acknowledged(message) {
                Ok(None) => {}
                Ok(Some(_)) => return Ok(true),
                Err(error) if error.is(libc::ENOENT) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Has packets from `network` to elsewhere go under this host's address, by a table called `name`; one
/// that is there stays as it is.
///
/// # Errors
/// The kernel's refusal.
pub fn ensure_masquerade(name: &str, network: Ipv4Net) -> Result<(), NetlinkError> {
    let mut channel = Channel::open(NETLINK_NETFILTER)?;
    if exists(&mut channel, name)? {
        return Ok(());
    }
    let mut batch = Batch::new(&mut channel);
    batch.add(NEW_TABLE, NLM_F_CREATE | NLM_F_EXCL, &Attributes::default().text(1, name));
    let hook = Attributes::default().number(1, HOOK_POSTROUTING).number(2, PRIORITY_SOURCE_NAT);
    let chain = Attributes::default().text(1, name).text(3, CHAIN).nest(4, &hook).text(7, "nat");
    batch.add(NEW_CHAIN, NLM_F_CREATE, &chain);
    let expressions = within(Attributes::default(), SOURCE_OFFSET, network, EQUAL);
    let expressions = within(expressions, DESTINATION_OFFSET, network, NOT_EQUAL);
    let expressions = expressions.expression("masq", &Attributes::default());
    let rule = Attributes::default().text(1, name).text(2, CHAIN).nest(4, &expressions);
    batch.add(NEW_RULE, NLM_F_CREATE, &rule);
    match batch.commit() {
        // Somebody else was faster.
        Err(error) if error.is(libc::EEXIST) => Ok(()),
        done => done,
    }
}

/// Adds: the address at `offset` of the IP header is, or is not, in `network`.
fn within(expressions: Attributes, offset: u32, network: Ipv4Net, comparison: u32) -> Attributes {
    let value = |address: Ipv4Addr| Attributes::default().put(1, &address.octets());
    let load = Attributes::default()
        .number(1, REGISTER)
        .number(2, NETWORK_HEADER)
        .number(3, offset)
        .number(4, 4);
    let mask = Attributes::default()
        .number(1, REGISTER)
        .number(2, REGISTER)
        .number(3, 4)
        .nest(4, &value(network.netmask()))
        .nest(5, &value(Ipv4Addr::UNSPECIFIED));
    let compare = Attributes::default()
        .number(1, REGISTER)
        .number(2, comparison)
        .nest(3, &value(network.network()));
    expressions
        .expression("payload", &load)
        .expression("bitwise", &mask)
        .expression("cmp", &compare)
}

/// Takes the table called `name` away, if there is one.
///
/// # Errors
/// The kernel's refusal.
pub fn remove(name: &str) -> Result<(), NetlinkError> {
    let mut channel = Channel::open(NETLINK_NETFILTER)?;
    let mut batch = Batch::new(&mut channel);
    batch.add(DELETE_TABLE, 0, &Attributes::default().text(1, name));
    match batch.commit() {
        Err(error) if error.is(libc::ENOENT) => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_not_their_lengths() {
        let attributes = Attributes::default().text(1, "ab").number(2, 1);
        assert_eq!(attributes.0, [7, 0, 1, 0, b'a', b'b', 0, 0, 8, 0, 2, 0, 0, 0, 0, 1]);
        let nested = Attributes::default().nest(3, &Attributes::default().put(1, &[9]));
        assert_eq!(nested.0, [12, 0, 3, 0x80, 5, 0, 1, 0, 9, 0, 0, 0]);
    }

    #[test]
    fn what_the_kernel_says_of_a_request() {
        let said = |code: i32| {
            let mut bytes = vec![36, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
            bytes.extend(code.to_ne_bytes());
            acknowledged(&bytes)
        };
        assert_eq!(said(0).unwrap(), Some(7));
        assert!(said(-libc::ENOENT).unwrap_err().is(libc::ENOENT));
        assert_eq!(acknowledged(&[0; 20]).unwrap(), None);
        assert!(acknowledged(&[0, 0, 0, 0, 2, 0]).is_err());
    }
}
