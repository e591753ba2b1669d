//! The network interface by which a guest has a virtual identifier: a macvlan on the guest's card, with the
//! identifier as its Ethernet address, the service's IP address, and routes of its own.
//!
//! What is sent from that address leaves by it, and what is asked for that address on the card is not answered
//! there: otherwise peers would learn the card's address, which does not move.

mod netlink;

use std::fs;
use std::io;
use std::net::IpAddr;

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use self::netlink::{Plan, Route};
use crate::calls::endpoint::Vid;

/// Bytes of an interface's name at most: `IFNAMSIZ` without its zero.
const NAME_BYTES: usize = 15;
/// What the names of interfaces begin with that are made here.
const PREFIX: &str = "ep-";

/// Why there is no interface, or still one.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// No interface of this name.
    #[error("there is no network interface '{0}'; 'ip link' lists them")]
    Missing(String),
    /// There is one already.
    #[error(
        "there is a network interface '{0}' already; take it down first, or choose another name"
    )]
    Exists(String),
    /// A name that no interface can have.
    #[error(
        "'{0}' cannot be the name of a network interface; 1 to 15 bytes without '/' and spaces can"
    )]
    Name(String),
    /// An address that no service can have.
    #[error(
        "{address}/{bits} cannot be a service's address; give that of a host with the bits of its network, as 10.0.0.5/24"
    )]
    Address {
        /// The address.
        address: IpAddr,
        /// Bits of its network.
        bits: u8,
    },
    /// The gateway is of another family.
    #[error("the gateway {0} is of another family than the service's address")]
    Gateway(IpAddr),
    /// The kernel's refusal.
    #[error(
        "the kernel does not {what} '{name}': {source}; it needs CAP_NET_ADMIN, and for macvlan its module"
    )]
    Kernel {
        /// What it was to do.
        what: &'static str,
        /// The interface.
        name: String,
        /// Its reason.
        source: io::Error,
    },
}

/// An interface to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The card that it is on.
    pub card: String,
    /// Its Ethernet address.
    pub vid: Vid,
    /// The service's address.
    pub address: IpAddr,
    /// Bits of the network that the address is in.
    pub bits: u8,
    /// By which hosts outside of the network are reached, if they are.
    pub gateway: Option<IpAddr>,
}

/// The usual name of the interface of a service: the service's, or one made of its hash if that cannot be one.
pub fn usual_name(service: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let fits = service.len() <= NAME_BYTES - PREFIX.len() && service.bytes().all(plain);
    if fits && !service.is_empty() {
        return format!("{PREFIX}{service}");
    }
    // FNV-1a: it is only to differ.
    let hash = service
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{PREFIX}{hash:08x}")
}

fn check_name(name: &str) -> Result<(), InterfaceError> {
    let wrong = |byte: u8| byte == b'/' || byte.is_ascii_whitespace() || byte == 0;
    let bad = name.is_empty() || name.len() > NAME_BYTES || name == "." || name == "..";
    if bad || name.bytes().any(wrong) { Err(InterfaceError::Name(name.into())) } else { Ok(()) }
}

/// The number of an interface, if there is one of this name.
fn index(name: &str) -> Result<Option<u32>, InterfaceError> {
    check_name(name)?;
    let kernel = |source: rustix::io::Errno| InterfaceError::Kernel {
        what: "look for",
        name: name.to_owned(),
        source: source.into(),
    };
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    let socket = socket_with(family, SocketType::DGRAM, flags, None).map_err(kernel)?;
    match name_to_index(&socket, name) {
        Ok(index) => Ok(Some(index)),
        Err(rustix::io::Errno::NODEV) => Ok(None),
        Err(error) => Err(kernel(error)),
    }
}

impl Interface {
    fn check(&self) -> Result<(), InterfaceError> {
        let most = if self.address.is_ipv4() { 32 } else { 128 };
        let no_host = self.address.is_unspecified() || self.address.is_multicast();
        if no_host || self.address.is_loopback() || !(1..=most).contains(&self.bits) {
            return Err(InterfaceError::Address { address: self.address, bits: self.bits });
        }
        match self.gateway {
            Some(gateway) if gateway.is_ipv4() != self.address.is_ipv4() => {
                Err(InterfaceError::Gateway(gateway))
            }
            _ => Ok(()),
        }
    }

    /// Makes the interface, with its address and routes, and brings it up. Nothing is left if it fails.
    ///
    /// # Errors
    /// There is one of its name, or no such card; the kernel's refusal.
    pub fn up(&self) -> Result<(), InterfaceError> {
        self.check()?;
        if index(&self.name)?.is_some() {
            return Err(InterfaceError::Exists(self.name.clone()));
        }
        let card = index(&self.card)?.ok_or_else(|| InterfaceError::Missing(self.card.clone()))?;
        let mut route = Route::open().map_err(self.failed("open netlink for"))?;
        route.create(&self.name, card, self.vid.0).map_err(self.failed("make the interface"))?;
        self.set_up(&mut route).inspect_err(|_| {
            // What went wrong first is what counts.
            let _ = down(&self.name);
        })
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> InterfaceError {
        let name = self.name.clone();
        move |source| InterfaceError::Kernel { what, name, source }
    }

    fn set_up(&self, route: &mut Route) -> Result<(), InterfaceError> {
        let missing = || InterfaceError::Missing(self.name.clone());
        let index = index(&self.name)?.ok_or_else(missing)?;
        self.settings().map_err(self.failed("take settings for"))?;
        let (address, bits, gateway) = (self.address, self.bits, self.gateway);
        let plan = Plan { index, address, bits, gateway };
        route.add_address(&plan).map_err(self.failed("give an address to"))?;
        route.set_up(index).map_err(self.failed("bring up"))?;
        route.add_routes(&plan).map_err(self.failed("add routes by"))?;
        route.add_rule(&plan).map_err(self.failed("add a rule for"))?;
        // A server that moves asks its own kernel by it whether all has been processed that has arrived.
        if let Some(loopback) = self::index("lo")? {
            route.set_up(loopback).map_err(self.failed("bring up the loopback beside"))?;
        }
        Ok(())
    }

    /// Each address is answered for, and asked from, on its own interface only.
    fn settings(&self) -> io::Result<()> {
        for name in [&self.card, &self.name] {
            // Slashes and dots change places in names of settings; in paths they do not.
            let folder = format!("/proc/sys/net/ipv4/conf/{name}");
            fs::write(format!("{folder}/arp_ignore"), "1")?;
            fs::write(format!("{folder}/arp_announce"), "2")?;
        }
        if self.address.is_ipv4() {
            // Otherwise the kernel gives it an address by itself, and speaks of it. There may be no IPv6.
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.name), "1");
        }
        Ok(())
    }
}

/// Takes an interface away that was made here, with its address, routes and rules; false if there was none.
///
/// # Errors
/// The kernel's refusal.
pub fn down(name: &str) -> Result<bool, InterfaceError> {
    let Some(index) = index(name)? else { return Ok(false) };
    let failed = |what| {
        let name = name.to_owned();
        move |source| InterfaceError::Kernel { what, name, source }
    };
    let mut route = Route::open().map_err(failed("open netlink for"))?;
    // Only what was made here has rules to a table of its number.
    route.remove_rules(index).map_err(failed("remove the rules for"))?;
    route.remove(index).map_err(failed("remove"))?;
    Ok(true)
}

#[cfg(test)]
mod tests;
