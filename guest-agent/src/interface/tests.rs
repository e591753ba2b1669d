use std::process::Command;

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::*;

/// Runs `work` in a network namespace of its own, which ends with it.
#[allow(unsafe_code)] // The library call for it is one; the crate itself has none.
fn alone(work: impl FnOnce() + Send + 'static) {
    let inside = || {
        // SAFETY: of all that threads share, descriptors are not among what becomes this one's own.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        work();
    };
    std::thread::spawn(inside).join().unwrap();
}

fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn interface(name: &str, address: &str, bits: u8) -> Interface {
    Interface {
        name: name.to_owned(),
        card: "eth0".to_owned(),
        vid: Vid([0x0e, 0x53, 0, 0, 0, 1]),
        address: address.parse().unwrap(),
        bits,
        gateway: None,
    }
}

fn card() {
    ip("link add eth0 type veth peer name other");
    ip("addr add 10.7.0.1/24 dev eth0");
    ip("link set eth0 up");
    ip("link set other up");
}

#[test]
fn what_is_sent_from_the_address_leaves_by_the_interface() {
    alone(|| {
        card();
        let mut web = interface("ep-web", "10.7.0.100", 24);
        web.gateway = Some("10.7.0.254".parse().unwrap());
        web.up().unwrap();
        let link = ip("-d link show ep-web");
        assert!(link.contains("0e:53:00:00:00:01") && link.contains("mode bridge"), "{link}");
        for (to, route) in [("10.7.0.9", "dev ep-web"), ("192.0.2.1", "via 10.7.0.254 dev ep-web")]
        {
            let by = ip(&format!("route get {to} from 10.7.0.100"));
            assert!(by.contains(route), "{by}");
        }
        // The card's own way is as before.
        assert!(ip("route get 10.7.0.9").contains("dev eth0 src 10.7.0.1"));
        assert!(ip("-6 addr show ep-web").is_empty());
        let ignore = fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/arp_ignore").unwrap();
        assert_eq!(ignore.trim(), "1");
        assert!(matches!(web.up(), Err(InterfaceError::Exists(_))));
        let mut second = interface("ep-b", "10.7.0.101", 24);
        second.vid.0[5] = 2;
        second.up().unwrap();
        assert!(down("ep-web").unwrap());
        assert!(!down("ep-web").unwrap());
        let rules = ip("rule show");
        assert!(!rules.contains("10.7.0.100") && rules.contains("10.7.0.101"), "{rules}");
        assert!(ip("route get 10.7.0.9 from 10.7.0.101").contains("dev ep-b"));
    });
}

#[test]
fn ipv6_has_its_address_at_once() {
    alone(|| {
        card();
        let web = interface("ep-web", "fd07::100", 64);
        web.up().unwrap();
        let addresses = ip("-6 addr show dev ep-web");
        assert!(addresses.contains("fd07::100/64"), "{addresses}");
        assert!(!addresses.contains("fd07::100/64 scope global tentative"), "{addresses}");
        let by = ip("-6 route get fd07::9 from fd07::100");
        assert!(by.contains("dev ep-web"), "{by}");
        assert!(down("ep-web").unwrap());
        assert!(!ip("-6 rule show").contains("fd07::100"));
    });
}

#[test]
fn what_cannot_be_leaves_nothing() {
    alone(|| {
        card();
        let error = interface("ep-web", "10.7.0.1", 33).up().unwrap_err();
        assert!(matches!(error, InterfaceError::Address { bits: 33, .. }), "{error}");
        let mut none = interface("ep-web", "10.7.0.100", 24);
        none.card = "eth9".to_owned();
        assert!(matches!(none.up(), Err(InterfaceError::Missing(_))));
        let mut unreachable = interface("ep-web", "10.7.0.100", 24);
        unreachable.gateway = Some("192.0.2.1".parse().unwrap());
        let error = unreachable.up().unwrap_err();
        assert!(matches!(error, InterfaceError::Kernel { what: "add routes by", .. }), "{error}");
        assert_eq!(index("ep-web").unwrap(), None);
        unreachable.gateway = Some("fd07::1".parse().unwrap());
        assert!(matches!(unreachable.up(), Err(InterfaceError::Gateway(_))));
    });
}

#[test]
fn names_are_of_services_and_fit() {
    assert_eq!(usual_name("web"), "ep-web");
    let (long, other) = (usual_name("rsmgr.cpu.and.more"), usual_name("rsmgr.cpu.and.less"));
    assert_eq!(long.len(), 11);
    assert_ne!(long, other);
    for wrong in ["", ".", "a/b", "a b", "sixteen-letters-"] {
        assert!(matches!(index(wrong), Err(InterfaceError::Name(_))), "{wrong}");
    }
}
