//! `endpoint up` and `endpoint down`: the interface by which this VM has a service's identifier.

use std::net::IpAddr;

use clap::Args;
use guest_agent::calls::endpoint::{Endpoint, Vid};
use guest_agent::interface::{self, Interface};
use serde::Serialize;

use super::super::exit::Exit;
use super::super::{CliError, Global};

/// Make the network interface by which this VM has a service's identifier and its IP address.
///
/// It is a macvlan on the VM's card. What is sent from the address leaves by it; the card itself is as before,
/// but that it is not asked for the address. A VM to which the service may move needs it as well, with the same
/// address: until then nothing of it passes. Needs a network card and CAP_NET_ADMIN.
#[derive(Debug, Args)]
pub(super) struct UpCommand {
    /// The service: its first identifier is asked of the device, this VM's own if it has one.
    service: String,

    /// The service's address, with the bits of its network, as 10.0.0.100/24.
    #[arg(long, value_name = "ADDRESS/BITS", value_parser = address)]
    address: (IpAddr, u8),

    /// By which other networks are reached.
    #[arg(long, value_name = "ADDRESS")]
    gateway: Option<IpAddr>,

    /// The VM's network card.
    #[arg(long, value_name = "CARD", default_value = "eth0")]
    dev: String,

    /// The name of the interface; 'ep-' and the service by default.
    #[arg(long, value_name = "INTERFACE")]
    name: Option<String>,

    /// The identifier, without asking the device.
    #[arg(long, value_name = "IDENTIFIER")]
    vid: Option<Vid>,
}

fn address(text: &str) -> Result<(IpAddr, u8), String> {
    let parts = text.split_once('/');
    let parsed = parts.and_then(|(address, bits)| address.parse().ok().zip(bits.parse().ok()));
    parsed.ok_or_else(|| "an address has the bits of its network, as 10.0.0.100/24".to_owned())
}

#[derive(Debug, Serialize)]
struct Up<'a> {
    interface: &'a str,
    vid: Vid,
    address: String,
}

/// The identifier that a VM has an interface for: its own, else the one that may come.
fn choose(found: &[Endpoint]) -> Option<Vid> {
    let own = found.iter().find(|one| one.own);
    own.or(found.first()).map(|one| one.vid)
}

fn name(service: &str, name: Option<&String>) -> String {
    name.cloned().unwrap_or_else(|| interface::usual_name(service))
}

impl UpCommand {
    pub(super) fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let vid = match self.vid {
            Some(vid) => vid,
            None => choose(&options.driver()?.resolve(&self.service, None)?)
                .ok_or_else(|| CliError::NoService(self.service.clone()))?,
        };
        let (address, bits) = self.address;
        let interface = Interface {
            name: name(&self.service, self.name.as_ref()),
            card: self.dev.clone(),
            vid,
            address,
            bits,
            gateway: self.gateway,
        };
        interface.up()?;
        let text = format!("{}: {vid} {address}/{bits}\n", interface.name);
        let address = format!("{address}/{bits}");
        options.print(&Up { interface: &interface.name, vid, address }, &text)?;
        Ok(Exit::Success)
    }
}

/// Take the interface of a service away, with its address and routes.
///
/// The service stays announced: 'withdraw' gives it up.
#[derive(Debug, Args)]
pub(super) struct DownCommand {
    /// The service.
    service: String,

    /// The name of the interface; 'ep-' and the service by default.
    #[arg(long, value_name = "INTERFACE")]
    name: Option<String>,
}

#[derive(Debug, Serialize)]
struct Down<'a> {
    interface: &'a str,
    /// Whether there was one.
    removed: bool,
}

impl DownCommand {
    pub(super) fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let interface = name(&self.service, self.name.as_ref());
        let removed = interface::down(&interface)?;
        let text = if removed { String::new() } else { format!("there is no {interface}\n") };
        options.print(&Down { interface: &interface, removed }, &text)?;
        Ok(Exit::Success)
    }
}

#[cfg(test)]
mod tests {
    use guest_agent::calls::endpoint::{Form, Phase};

    use super::*;

    #[test]
    fn an_address_has_the_bits_of_its_network() {
        assert_eq!(address("10.0.0.5/24"), Ok(("10.0.0.5".parse().unwrap(), 24)));
        assert_eq!(address("fd07::5/64"), Ok(("fd07::5".parse().unwrap(), 64)));
        for wrong in ["10.0.0.5", "10.0.0.5/", "/24", "10.0.0.5/256", "host/24"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn its_own_identifier_is_preferred() {
        let one = |last, own| Endpoint {
            service: "web".to_owned(),
            form: Form::Prefix,
            low: 0,
            high: 0,
            vid: Vid([2, 0, 0, 0, 0, last]),
            epoch: 1,
            phase: Phase::Home,
            own,
        };
        assert_eq!(choose(&[]), None);
        assert_eq!(choose(&[one(1, false), one(2, false)]), Some(Vid([2, 0, 0, 0, 0, 1])));
        assert_eq!(choose(&[one(1, false), one(2, true)]), Some(Vid([2, 0, 0, 0, 0, 2])));
    }
}
