//! What is told of devices.

use imgcache::transport::verbs::{
    Driver, Fabric, GidKind, LinkLayer, PortState, VerbsError, devices,
};

#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn all_devices_are_listed_with_what_they_can_do() {
    let mut all = devices().unwrap();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(all.iter().map(|d| &*d.name).collect::<Vec<_>>(), ["rxe0", "rxe1"]);
    for (number, device) in (0_u8..).zip(&all) {
        assert_eq!(device.driver, Driver::Rxe);
        assert!(!device.window_bounds_enforced());
        let limits = device.limits;
        assert!(limits.windows > 0 && limits.queues > 100 && limits.regions > 100, "{limits:?}");
        assert!(limits.reads_answered >= 16 && limits.queue_depth >= 128, "{limits:?}");
        assert!(device.node_guid != 0 && limits.region_bytes > 1 << 40);
        let port = device.usable_port().unwrap();
        assert_eq!(
            (port.number, port.state, port.link),
            (1, PortState::Active, LinkLayer::Ethernet)
        );
        assert_eq!(port.active_mtu, 4096);
        assert!(port.max_transfer >= 1 << 20);
        let gid = port.preferred_gid().unwrap();
        assert_eq!(
            (gid.kind, gid.to_string()),
            (GidKind::RoceV2, format!("::ffff:10.98.{number}.1"))
        );
        assert_ne!(gid.interface, 0);
    }
}

#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn a_device_or_port_that_is_not_there_is_named() {
    assert!(
        matches!(Fabric::open("rxe9", None), Err(VerbsError::UnknownDevice(name)) if name == "rxe9")
    );
    assert!(matches!(Fabric::open("rxe0", Some(2)), Err(VerbsError::Port { port: 2, .. })));
    let fabric = Fabric::open("rxe1", Some(1)).unwrap();
    assert_eq!((&*fabric.device().name, fabric.port().number), ("rxe1", 1));
}
