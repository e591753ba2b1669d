//! Writes what clients are answered.

use std::net::Ipv4Addr;

use dhcproto::Encodable;
use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode, UnknownOption};

use super::frame::{CLIENT_PORT, Destination, SERVER_PORT};
use super::request::{BROADCAST, Request};
use crate::mac::Mac;
use crate::settings::{Settings, Told};

/// What relays and old clients expect at least, in bytes (RFC 1542, 2.1).
const LEAST_BYTES: usize = 300;

/// What a client is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant<'a> {
    /// Its address; none if it is only informed.
    pub address: Option<Ipv4Addr>,
    /// For how long, in seconds.
    pub seconds: u32,
    /// Its name.
    pub name: Option<&'a str>,
    /// What its record tells; the rest is as for all.
    pub told: Option<&'a Told>,
}

/// An answer, and whom it is to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Whom it is to.
    pub to: Destination,
    /// The message.
    pub message: Vec<u8>,
}

/// Answers `request`, which came from `source` on the link, with an offer or an acknowledgement of `grant`; without
/// one, with a refusal.
pub fn reply(
    settings: &Settings,
    request: &Request,
    source: Mac,
    kind: MessageType,
    grant: Option<&Grant<'_>>,
) -> Option<Reply> {
    let mut message = Message::default();
    let relayed = !request.relay.is_unspecified();
    // A client that is refused may have an address that is not this network's.
    let broadcast = grant.is_none() || request.flags & BROADCAST != 0;
    let flags = if broadcast { request.flags | BROADCAST } else { request.flags };
    message
        .set_opcode(Opcode::BootReply)
        .set_xid(request.transaction)
        .set_flags(flags.into())
        .set_giaddr(request.relay)
        .set_chaddr(&request.client.octets());
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(settings.identity));
    if let Some(bytes) = &request.relay_options {
        let code = OptionCode::RelayAgentInformation;
        options.insert(DhcpOption::Unknown(UnknownOption::new(code, bytes.clone())));
    }
    if let Some(grant) = grant {
        fill(&mut message, settings, request, kind, grant);
    }
    let to = if relayed {
        Destination { mac: source.octets(), address: request.relay, port: SERVER_PORT }
    } else if grant.is_some() && !request.address.is_unspecified() {
        Destination { mac: source.octets(), address: request.address, port: CLIENT_PORT }
    } else if let Some(address) = grant.and_then(|grant| grant.address).filter(|_| !broadcast) {
        Destination { mac: request.client.octets(), address, port: CLIENT_PORT }
    } else {
        Destination { mac: [255; 6], address: Ipv4Addr::BROADCAST, port: CLIENT_PORT }
    };
    let mut message = message.to_vec().ok()?;
    message.resize(message.len().max(LEAST_BYTES), 0);
    Some(Reply { to, message })
}

fn fill(
    message: &mut Message,
    settings: &Settings,
    request: &Request,
    kind: MessageType,
    grant: &Grant<'_>,
) {
    let (own, all) = (grant.told, &settings.told);
    let boot_file =
        own.and_then(|told| told.boot_file.as_ref()).or(all.boot_file.as_ref()).cloned();
    let boot_server =
        own.and_then(|told| told.boot_server.as_ref()).or(all.boot_server.as_ref()).cloned();
    message.set_ciaddr(request.address);
    if let Some(file) = &boot_file {
        message.set_fname_str(file);
    }
    let options = match grant.address {
        Some(address) => {
            let options = message.set_yiaddr(address).opts_mut();
            options.insert(DhcpOption::AddressLeaseTime(grant.seconds));
            options
        }
        None => message.opts_mut(),
    };
    if kind == MessageType::Ack && request.kind == MessageType::Discover {
        options.insert(DhcpOption::RapidCommit);
    }
    options.insert(DhcpOption::SubnetMask(settings.subnet.netmask()));
    if let Some(router) = own.and_then(|told| told.router).or(all.router) {
        options.insert(DhcpOption::Router(vec![router]));
    }
    let dns = own.map(|told| &told.dns).filter(|dns| !dns.is_empty()).unwrap_or(&all.dns);
    if !dns.is_empty() {
        options.insert(DhcpOption::DomainNameServer(dns.clone()));
    }
    if let Some(domain) = own.and_then(|told| told.domain.as_ref()).or(all.domain.as_ref()) {
        options.insert(DhcpOption::DomainName(domain.clone()));
    }
    if let Some(mtu) = own.and_then(|told| told.mtu).or(all.mtu) {
        options.insert(DhcpOption::InterfaceMtu(mtu));
    }
    if let Some(name) = grant.name {
        options.insert(DhcpOption::Hostname(name.to_owned()));
    }
    if let Some(server) = boot_server {
        options.insert(DhcpOption::TFTPServerName(server.into_bytes()));
    }
    if let Some(file) = boot_file {
        options.insert(DhcpOption::BootfileName(file.into_bytes()));
    }
}
