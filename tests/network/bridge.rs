//! Ports of a bridge that there is.

use crate::{Bare, isolated, json, mac, open, run, taps};

const EVERYBODY: [u8; 6] = [0xff; 6];
const KIND: u16 = 0x88b5; // For experiments

fn bridge() {
    run("ip", &["link", "add", "br0", "mtu", "1400", "type", "bridge"]);
    run("ip", &["link", "set", "br0", "up"]);
}

#[test]
fn a_port_is_set_up_and_goes_with_its_descriptor() {
    isolated("bridge::a_port_is_set_up_and_goes_with_its_descriptor", || {
        bridge();
        let vm = Bare::open("bridge=br0,mac=02:00:00:00:00:01,ip=10.0.0.2/24,isolated", "a");
        let tap = vm.network.tap.clone();
        let link = &json("ip", &["-j", "-d", "link", "show", &tap])[0];
        assert_eq!((&link["master"], &link["mtu"]), (&"br0".into(), &1400.into()), "{link:#}");
        assert_eq!(link["ifalias"], "vmm name=a mac=02:00:00:00:00:01 ip=10.0.0.2");
        assert_eq!(link["address"], "fe:00:00:00:00:01");
        let port = &link["linkinfo"]["info_slave_data"];
        for (flag, on) in
            [("learning", false), ("flood", false), ("isolated", true), ("locked", true)]
        {
            assert_eq!(port[flag], on, "{flag}: {port:#}");
        }
        assert!(vm.network.locked);
        let entries = json("bridge", &["-j", "fdb", "show", "dev", &tap]);
        let own = entries.as_array().unwrap().iter().find(|e| e["mac"] == "02:00:00:00:00:01");
        assert_eq!(own.unwrap()["state"], "static", "{entries:#}");
        assert_eq!(vm.network.device.mtu, 1400);
        assert_eq!(vm.network.command_line, "ip=10.0.0.2:::255.255.255.0:a::off");
        drop(vm);
        assert_eq!(taps(), 0);
        let entries = run("bridge", &["fdb", "show"]);
        assert!(!entries.contains("02:00:00:00:00:01"), "{entries}");
    });
}

#[test]
fn the_bridge_itself_does_not_hear_a_vm_under_anothers_address() {
    isolated("bridge::the_bridge_itself_does_not_hear_a_vm_under_anothers_address", || {
        bridge();
        let (a, b) = (Bare::open("bridge=br0", "a"), Bare::open("bridge=br0", "b"));
        a.send(
            EVERYBODY,
            mac("02:00:00:00:00:99"),
            KIND,
            b"a stranger's..............................",
        );
        a.send(EVERYBODY, b.mac(), KIND, b"as if b's.................................");
        a.send(b.mac(), a.mac(), KIND, b"its own...................................");
        assert!(b.hears(b"its own", true));
        assert!(!b.hears(b"a stranger's", false) && !b.hears(b"as if b's", false));
        // Frames to b go to b still, and to nobody else.
        let c = Bare::open("bridge=br0", "c");
        c.send(b.mac(), c.mac(), KIND, b"for b alone...............................");
        assert!(b.hears(b"for b alone", true));
        c.send(EVERYBODY, c.mac(), KIND, b"for all...................................");
        assert!(a.hears(b"for all", true));
        assert!(!a.hears(b"for b alone", false));
    });
}

#[test]
fn isolated_vms_do_not_hear_each_other() {
    isolated("bridge::isolated_vms_do_not_hear_each_other", || {
        bridge();
        let [a, b] = ["a", "b"].map(|name| Bare::open("bridge=br0,isolated", name));
        let c = Bare::open("bridge=br0", "c");
        a.send(EVERYBODY, a.mac(), KIND, b"from a....................................");
        c.send(EVERYBODY, c.mac(), KIND, b"from c....................................");
        assert!(c.hears(b"from a", true) && b.hears(b"from c", true));
        b.send(EVERYBODY, b.mac(), KIND, b"from b....................................");
        assert!(c.hears(b"from b", true));
        assert!(!a.hears(b"from b", false) && !b.hears(b"from a", false));
    });
}

#[test]
fn nobody_gets_what_another_has() {
    isolated("bridge::nobody_gets_what_another_has", || {
        bridge();
        let first = "bridge=br0,mac=02:00:00:00:00:01,ip=10.0.0.2/24,ip6=fd00::2/64";
        let vm = open(first, "a").unwrap();
        for (spec, named) in [
            ("bridge=br0,mac=02:00:00:00:00:01", "02:00:00:00:00:01 is on br0"),
            ("bridge=br0,ip=10.0.0.2/24", "has 10.0.0.2"),
            ("bridge=br0,ip6=fd00::2/64", "has fd00::2"),
            ("bridge=br0,mtu=1401", "mtu=1401 is more than the 1400"),
            ("bridge=br1", "no bridge 'br1'"),
            ("bridge=lo", "no bridge"),
        ] {
            let error = open(spec, "b").unwrap_err().to_string();
            assert!(error.contains(named), "{spec}: {error}");
            assert_eq!(taps(), 1, "{spec} leaves nothing");
        }
        drop(vm);
        open(first, "b").unwrap();
    });
}
