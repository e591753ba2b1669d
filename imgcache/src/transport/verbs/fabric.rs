//! A port that is in use, and the domains that keep what is registered with it apart.

use std::net::IpAddr;
use std::sync::Arc;

use super::choice::{self, Choice};
use super::context::{Context, DomainHandle, Opened};
use super::device::{Device, Gid, Port, devices};
use super::endpoint::Endpoint;
use super::error::VerbsError;

/// A port of an opened device.
#[derive(Debug, Clone)]
pub struct Fabric {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    context: Opened,
    device: Device,
    port: Port,
    gid: Gid,
}

/// A protection domain: queues reach only what is registered, and the windows that are bound, in their
/// own domain. A key of another domain is refused.
#[derive(Debug, Clone)]
pub struct Domain {
    pub(super) handle: Arc<DomainHandle>,
    fabric: Fabric,
}

impl Fabric {
    /// Opens the device `name`, its port `port` or else the first that can be used, with the port's
    /// [preferred address](Port::preferred_gid).
    ///
    /// # Errors
    /// There is no such device, it cannot be opened, or the port cannot be used now.
    pub fn open(name: &str, port: Option<u8>) -> Result<Self, VerbsError> {
        Self::open_with(name, port, |port| port.preferred_gid().copied())
    }

    /// Opens the first device that has a port which can be used.
    ///
    /// # Errors
    /// There is none; if there are devices, why the first cannot be used.
    pub fn open_any() -> Result<Self, VerbsError> {
        Self::open_for(&[])
    }

    /// Opens the device that has the first of `addresses` which any has: that by which this host sends from it,
    /// and is reached at it. Where no device has any of them, one of InfiniBand comes first, whose ports have no
    /// such addresses, and then the first that can be used.
    ///
    /// # Errors
    /// There is none; if there are devices, why the first cannot be used.
    pub fn open_for(addresses: &[IpAddr]) -> Result<Self, VerbsError> {
        let devices = devices()?;
        match choice::choose(&devices, addresses) {
            Some(Choice { device, port, gid }) => {
                // It may have lost the address since.
                let again = |port: &Port| port.gids.iter().find(|one| **one == gid).copied();
                Self::open_with(&device.name, Some(port), again)
            }
            None => Self::open(&devices.first().ok_or(VerbsError::NoDevice)?.name, None),
        }
    }

    fn open_with(
        name: &str,
        port: Option<u8>,
        gid: impl FnOnce(&Port) -> Option<Gid>,
    ) -> Result<Self, VerbsError> {
        let unknown = || VerbsError::UnknownDevice(name.to_owned());
        let mut found = Err(unknown());
        for opened in Context::open_all()? {
            match opened {
                Ok(context) if context.name() == name => found = Ok(context),
                Err(
                    error @ (VerbsError::Permission { .. }
                    | VerbsError::Unusable { .. }
                    | VerbsError::Call { .. }),
                ) if error.device() == Some(name) => found = Err(error),
                _ => (),
            }
        }
        let context = found?;
        let device = Device::new(&context)?;
        let chosen = match port {
            Some(number) => device.ports.iter().find(|port| port.number == number),
            None => device.usable_port().or(device.ports.first()),
        };
        let missing =
            |reason| VerbsError::Port { device: name.to_owned(), port: port.unwrap_or(1), reason };
        let port = chosen.ok_or_else(|| missing("there is none of this number"))?.clone();
        port.check(name)?;
        let gid = gid(&port).ok_or_else(|| missing("it has lost its address"))?;
        Ok(Self { shared: Arc::new(Shared { context, device, port, gid }) })
    }

    /// The device, as it was when it was opened.
    pub fn device(&self) -> &Device {
        &self.shared.device
    }

    /// The port, as it was when it was opened.
    pub fn port(&self) -> &Port {
        &self.shared.port
    }

    /// The address in use.
    pub fn gid(&self) -> &Gid {
        &self.shared.gid
    }

    /// Makes a protection domain.
    ///
    /// # Errors
    /// The device's.
    pub fn domain(&self) -> Result<Domain, VerbsError> {
        let handle = Arc::new(DomainHandle::new(&self.shared.context)?);
        Ok(Domain { handle, fabric: self.clone() })
    }
}

impl Domain {
    /// The port.
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// Whether the two are one.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.handle, &other.handle)
    }

    /// What this side tells the other of a queue with this number that begins at `psn`.
    pub(super) fn endpoint(&self, qpn: u32, psn: u32, reads: u8) -> Endpoint {
        let Shared { port, gid, .. } = &*self.fabric.shared;
        Endpoint { gid: gid.address, lid: port.lid, qpn, psn, mtu: port.active_mtu, reads }
    }
}
