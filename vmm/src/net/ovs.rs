//! VMs' ports of bridges of Open vSwitch: entered in its database, from which they are taken away when their VMs
//! have ended; those of VMs that nobody saw end, when the next one comes.

use std::collections::BTreeSet;

use vswitch::ovs::database::{self, Database, Kind};

use super::netlink::Route;
use super::{NetError, bridge};

/// The largest packet on a bridge that has no interface of its own.
pub const DEFAULT_MTU: u32 = 1500;

/// Whether `name` is a bridge of an Open vSwitch that runs here.
pub fn is_there(name: &str) -> bool {
    database::management(name).is_some()
}

/// The names of the ports of a bridge, without that of the bridge itself.
///
/// # Errors
/// There is none, or the database does not answer.
pub fn ports(name: &str) -> Result<BTreeSet<String>, NetError> {
    let mut ports = Database::open()?.ports(name)?;
    ports.remove(name);
    Ok(ports)
}

/// Makes the interface `port` a port of a bridge, `isolated` from others that are.
///
/// # Errors
/// There is no such bridge, or the database or the daemon refuses.
pub fn enter(route: &mut Route, name: &str, port: &str, isolated: bool) -> Result<(), NetError> {
    let mut database = Database::open()?;
    // What the kernel does not tell may be there.
    database.sweep(|name| !matches!(bridge::link(route, name), Ok(None)))?;
    database.add(name, port, Kind::Guest { isolated })?;
    Ok(())
}

/// Takes the port of a VM that has ended away, if it is one of Open vSwitch.
pub fn leave(name: &str, port: &str) {
    if !is_there(name) {
        return;
    }
    if let Err(error) = Database::open().and_then(|mut database| database.remove(port)) {
        log::warn!("{port} stays entered as a port of {name}: {error}");
    }
}
