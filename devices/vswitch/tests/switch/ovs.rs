//! Open vSwitch, with a daemon and a folder of its own for each test.

#[path = "../../../../tests/common/ovs.rs"]
pub mod daemons;

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use vswitch::bridge::{links, netlink::Route};
use vswitch::ovs::{OvsSwitch, Rest, Role};
use vswitch::sys;

use self::daemons::{Daemons, Datapath};
use crate::rig::{Guest, Rig, TapGuest};

/// Within a namespace.
pub fn rig() -> Rig {
    fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
    let daemons = Daemons::start(Datapath::User, "sw0", "fail_mode=secure");
    let switch = OvsSwitch::open(Path::new(&daemons.path("sw0.mgmt")), Rest::Dropped).unwrap();
    let mut route = Route::open().unwrap();
    let (mut taps, mut ports) = (Vec::new(), Vec::new());
    for number in 1..=3 {
        let (tap, name) = sys::tap("guest%d").unwrap();
        let index = links::named(&mut route, &name).unwrap().unwrap().index;
        links::up(&mut route, index).unwrap();
        daemons.control(&format!(
            "add-port sw0 {name} -- set interface {name} ofport_request={number}"
        ));
        let copy = tap.try_clone().unwrap();
        ports.push(switch.attach(&name, number, Role::Guest(Some(copy)), None).unwrap());
        taps.push(tap);
    }
    // A number that OpenFlow has for no port: Open vSwitch refuses the flow, not the port.
    let gone = switch.attach("guest0", 0xffff_ff10, Role::Guest(None), None).unwrap();
    let boxed = |tap: OwnedFd| -> Box<dyn Guest> { Box::new(TapGuest(tap)) };
    Rig {
        switch: Box::new(switch),
        ports,
        guests: taps.into_iter().map(boxed).collect(),
        gone,
        counts_spoofed: false,
        counts_held: false,
        counts_overflow: true,
        settle: Duration::from_millis(50),
        _keep: Some(Box::new(daemons)),
    }
}
