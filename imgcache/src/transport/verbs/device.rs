//! The host's RDMA devices: which there are, what they can do, and why there is none.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::Path;

use super::context::{Context, Opened};
use super::error::VerbsError;

/// Where the kernel lists its devices.
const SYSFS: &str = "/sys/class/infiniband";

/// What an RDMA device is and can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name, as in `/sys/class/infiniband`.
    pub name: String,
    /// The number that it has of its maker.
    pub node_guid: u64,
    /// What drives it.
    pub driver: Driver,
    /// Its bounds.
    pub limits: Limits,
    /// Its ports.
    pub ports: Vec<Port>,
}

/// What drives a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Driver {
    /// The kernel's emulation over any network interface, soft-RoCE. It does not check the bounds of
    /// memory windows.
    Rxe,
    /// Hardware, by the name of the kernel's driver.
    Hardware(String),
    /// Another emulation.
    Unknown,
}

/// Bounds of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Queues.
    pub queues: u32,
    /// Requests that a queue holds.
    pub queue_depth: u32,
    /// Entries of a completion queue.
    pub completions: u32,
    /// Registrations.
    pub regions: u32,
    /// Bytes of one registration.
    pub region_bytes: u64,
    /// READs of one queue that the device answers at once.
    pub reads_answered: u8,
    /// READs of one queue that the device has outstanding at once.
    pub reads_outstanding: u8,
    /// Memory windows; 0 if the device has none of type 2, which are bound to one queue.
    pub windows: u32,
}

/// A port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its number, from 1.
    pub number: u8,
    /// Whether anything can be sent.
    pub state: PortState,
    /// What it is connected to.
    pub link: LinkLayer,
    /// Bytes in the largest packet that can be sent now.
    pub active_mtu: u16,
    /// Bytes of the largest transfer.
    pub max_transfer: u32,
    /// Its local address in an InfiniBand subnet; 0 on Ethernet.
    pub lid: u16,
    /// Its addresses.
    pub gids: Vec<Gid>,
}

/// The state of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortState {
    /// No link.
    Down,
    /// There is a link, and the subnet manager has not set it up yet.
    Starting,
    /// It can be used.
    Active,
}

/// What a port is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkLayer {
    /// An InfiniBand subnet.
    InfiniBand,
    /// Ethernet: RDMA is carried in UDP (RoCE).
    Ethernet,
}

/// An address of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gid {
    /// Its place in the port's table.
    pub index: u32,
    /// The address, in network order.
    pub address: [u8; 16],
    /// How packets with it are carried.
    pub kind: GidKind,
    /// The index of the network interface; 0 if there is none.
    pub interface: u32,
}

/// How packets are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GidKind {
    /// In an InfiniBand subnet.
    InfiniBand,
    /// In Ethernet frames of their own (RoCE version 1), which are not routed.
    RoceV1,
    /// In UDP (RoCE version 2).
    RoceV2,
}

/// The devices of this host that can be used.
///
/// Those that cannot are logged, unless there are only such.
///
/// # Errors
/// Why there is none: no library, no support in the kernel, no device, no driver, no permission.
pub fn devices() -> Result<Vec<Device>, VerbsError> {
    let mut usable = Vec::new();
    let mut refused = Vec::new();
    for opened in Context::open_all()? {
        match opened.and_then(|opened| Device::new(&opened)) {
            Ok(device) => usable.push(device),
            Err(error) => refused.push(error),
        }
    }
    if usable.is_empty() {
        let kernel = names(Path::new(SYSFS));
        return Err(refused.into_iter().next().unwrap_or(if kernel.is_empty() {
            VerbsError::NoDevice
        } else {
            VerbsError::Driver { devices: kernel }
        }));
    }
    for error in refused {
        log::warn!("{error}");
    }
    Ok(usable)
}

impl Device {
    pub(super) fn new(opened: &Opened) -> Result<Self, VerbsError> {
        let (limits, node_guid) = opened.limits()?;
        let ports = opened.ports()?;
        let name = opened.name().to_owned();
        Ok(Self {
            driver: Driver::of(&Path::new(SYSFS).join(&name)),
            name,
            node_guid,
            limits,
            ports,
        })
    }

    /// Whether the device refuses remote access outside the bounds of a memory window. Where it does
    /// not, whoever has a window's key can reach all of the region that it was bound in.
    pub fn window_bounds_enforced(&self) -> bool {
        self.limits.windows > 0 && matches!(self.driver, Driver::Hardware(_))
    }

    /// The first port that can be used now.
    pub fn usable_port(&self) -> Option<&Port> {
        self.ports.iter().find(|port| port.check(&self.name).is_ok())
    }
}

impl Driver {
    fn of(folder: &Path) -> Self {
        if let Ok(link) = folder.join("device/driver").read_link() {
            let name = link.file_name().unwrap_or_default();
            return Self::Hardware(name.to_string_lossy().into_owned());
        }
        // The name of the network interface below it, which of all drivers only rxe shows.
        if folder.join("parent").is_file() { Self::Rxe } else { Self::Unknown }
    }
}

impl Port {
    /// The address to use: of those that routers forward the one of IPv4, then of IPv6, and of these
    /// that of a network before that of a link.
    pub fn preferred_gid(&self) -> Option<&Gid> {
        self.gids.iter().max_by_key(|gid| (gid.rank(), std::cmp::Reverse(gid.index)))
    }

    /// Whether it can be used now.
    pub(super) fn check(&self, device: &str) -> Result<(), VerbsError> {
        let reason = match self.state {
            PortState::Down => "it has no link",
            PortState::Starting => "the subnet manager has not set it up",
            PortState::Active if self.gids.is_empty() => "it has no address",
            PortState::Active => return Ok(()),
        };
        Err(VerbsError::Port { device: device.to_owned(), port: self.number, reason })
    }
}

impl Gid {
    fn rank(&self) -> u8 {
        let address = Ipv6Addr::from(self.address);
        match self.kind {
            GidKind::RoceV1 => 0,
            GidKind::InfiniBand => 1,
            GidKind::RoceV2 if address.to_ipv4_mapped().is_some() => 4,
            GidKind::RoceV2 if address.is_unicast_link_local() => 2,
            GidKind::RoceV2 => 3,
        }
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv6Addr::from(self.address).fmt(f)
    }
}

/// The names of the devices that the kernel has.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_devices_says_why() {
        match devices() {
            Ok(devices) => assert!(devices.iter().all(|device| !device.ports.is_empty())),
            Err(
                error @ (VerbsError::Library { .. }
                | VerbsError::Kernel { .. }
                | VerbsError::NoDevice
                | VerbsError::Driver { .. }
                | VerbsError::Permission { .. }
                | VerbsError::Unusable { .. }),
            ) => assert!(!error.to_string().is_empty()),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn drivers_are_told_by_what_sysfs_shows() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Driver::of(folder.path()), Driver::Unknown);
        std::fs::write(folder.path().join("parent"), "dummy0\n").unwrap();
        assert_eq!(Driver::of(folder.path()), Driver::Rxe);
        std::fs::create_dir(folder.path().join("device")).unwrap();
        std::os::unix::fs::symlink("/x/mlx5_core", folder.path().join("device/driver")).unwrap();
        assert_eq!(Driver::of(folder.path()), Driver::Hardware("mlx5_core".into()));
    }

    fn gid(index: u32, address: &str, kind: GidKind) -> Gid {
        let address = address.parse::<Ipv6Addr>().unwrap().octets();
        Gid { index, address, kind, interface: 2 }
    }

    #[test]
    fn an_address_of_a_routed_network_is_preferred() {
        let all = [
            gid(7, "::ffff:10.0.0.1", GidKind::RoceV2),
            gid(9, "::ffff:10.0.0.2", GidKind::RoceV2),
            gid(3, "2001:db8::1", GidKind::RoceV2),
            gid(1, "fe80::1", GidKind::RoceV2),
            gid(0, "fe80::1", GidKind::RoceV1),
        ];
        for first in 0..all.len() {
            let mut gids = all[first..].to_vec();
            gids.reverse();
            let port = Port {
                number: 1,
                state: PortState::Active,
                link: LinkLayer::Ethernet,
                active_mtu: 1024,
                max_transfer: 1 << 30,
                lid: 0,
                gids,
            };
            assert_eq!(port.preferred_gid(), Some(&all[first]));
        }
    }
}
