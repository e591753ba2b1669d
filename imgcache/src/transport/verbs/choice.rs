//! Which of a host's devices is used.
//!
//! With RoCE a port has the addresses of its network interface (`::ffff:a.b.c.d` for those of IPv4, as in the
//! specification of RoCE version 2, InfiniBand architecture volume 1, annex A17). So where an address of this
//! host is known, the one from which it reaches a peer or the one at which it is reached, the device of that
//! interface is known too. Ports in an InfiniBand subnet have addresses of their own.

use std::net::{IpAddr, Ipv6Addr};

use super::device::{Device, Gid, GidKind, LinkLayer, Port};

/// A port, and the address of it that is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice<'d> {
    pub(super) device: &'d Device,
    pub(super) port: u8,
    pub(super) gid: Gid,
}

/// The device that has the first of `addresses` which any has, or else the first of InfiniBand, or else the
/// first. None if none can be used.
pub(super) fn choose<'d>(devices: &'d [Device], addresses: &[IpAddr]) -> Option<Choice<'d>> {
    let usable = || {
        devices.iter().flat_map(|device| {
            let ports = device.ports.iter().filter(|port| port.check(&device.name).is_ok());
            ports.map(move |port| (device, port))
        })
    };
    let found = |(device, port): (&'d Device, &Port), gid: &Gid| Choice {
        device,
        port: port.number,
        gid: *gid,
    };
    let by_address = addresses.iter().find_map(|address| {
        usable().find_map(|one| one.1.gid_of(*address).map(|gid| found(one, gid)))
    });
    by_address.or_else(|| {
        let infiniband = usable().find(|(_, port)| port.link == LinkLayer::InfiniBand);
        let one = infiniband.or_else(|| usable().next())?;
        one.1.preferred_gid().map(|gid| found(one, gid))
    })
}

impl Port {
    /// Its address that is `address`, with packets that routers forward.
    fn gid_of(&self, address: IpAddr) -> Option<&Gid> {
        self.gids.iter().find(|gid| gid.is(address))
    }
}

impl Gid {
    /// Whether it is this address of the host.
    pub fn is(&self, address: IpAddr) -> bool {
        let address = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        self.kind == GidKind::RoceV2 && Ipv6Addr::from(self.address) == address
    }
}

#[cfg(test)]
mod tests {
    use super::super::device::{Driver, Limits, PortState};
    use super::*;

    fn port(number: u8, link: LinkLayer, state: PortState, addresses: &[&str]) -> Port {
        let gid = |(index, address): (u32, &&str)| {
            let kind =
                if link == LinkLayer::Ethernet { GidKind::RoceV2 } else { GidKind::InfiniBand };
            let address = address.parse::<Ipv6Addr>().unwrap().octets();
            Gid { index, address, kind, interface: 2 }
        };
        let gids = (0..).zip(addresses).map(gid).collect();
        Port { number, state, link, active_mtu: 1024, max_transfer: 1 << 30, lid: 0, gids }
    }

    fn device(name: &str, ports: Vec<Port>) -> Device {
        let limits = Limits {
            queues: 1,
            queue_depth: 1,
            completions: 1,
            regions: 1,
            region_bytes: 1,
            reads_answered: 1,
            reads_outstanding: 1,
            windows: 0,
        };
        Device { name: name.into(), node_guid: 1, driver: Driver::Unknown, limits, ports }
    }

    fn chosen(devices: &[Device], addresses: &[&str]) -> Option<(String, u8, String)> {
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        choose(devices, &addresses)
            .map(|choice| (choice.device.name.clone(), choice.port, choice.gid.to_string()))
    }

    #[test]
    fn the_port_that_has_the_address_is_used() {
        use LinkLayer::{Ethernet, InfiniBand};
        use PortState::{Active, Down};
        let all = [
            device("roce", vec![port(1, Ethernet, Active, &["::ffff:10.0.0.1", "fe80::1"])]),
            device(
                "two",
                vec![
                    port(1, Ethernet, Down, &["::ffff:10.0.3.1"]),
                    port(
                        2,
                        Ethernet,
                        Active,
                        &["::ffff:10.0.2.1", "::ffff:10.0.1.1", "2001:db8::1"],
                    ),
                ],
            ),
            device("ib", vec![port(1, InfiniBand, Active, &["fe80::9", "::ffff:10.0.9.1"])]),
        ];
        let is = |name: &str, port, gid: &str| Some((name.to_owned(), port, gid.to_owned()));
        assert_eq!(chosen(&all, &["10.0.1.1"]), is("two", 2, "::ffff:10.0.1.1"));
        assert_eq!(chosen(&all, &["2001:db8::1"]), is("two", 2, "2001:db8::1"));
        // The first that any has.
        assert_eq!(
            chosen(&all, &["127.0.0.1", "10.0.0.1", "10.0.1.1"]),
            is("roce", 1, "::ffff:10.0.0.1")
        );
        // One without a link is of no use, and addresses of InfiniBand are no addresses of the host.
        for nobody in [&["10.0.3.1"][..], &["10.0.9.1"], &[]] {
            assert_eq!(chosen(&all, nobody).map(|one| one.0), Some("ib".into()), "{nobody:?}");
        }
        assert_eq!(chosen(&all[..2], &["127.0.0.1"]), is("roce", 1, "::ffff:10.0.0.1"));
        assert_eq!(chosen(&[], &["127.0.0.1"]), None);
    }
}
