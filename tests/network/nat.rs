//! The host's own bridge.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use vmm::net::{NetError, nat};

use crate::{Bare, isolated, json, mac, open, run, taps};

/// An IPv4 packet with a datagram of `data`.
fn datagram(source: [u8; 4], destination: [u8; 4], data: &[u8]) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes).unwrap().to_be_bytes();
    let [total, udp] = [length(28 + data.len()), length(8 + data.len())];
    let mut header =
        [0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[12..16].copy_from_slice(&source);
    header[16..].copy_from_slice(&destination);
    let words = header.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&header[..], &[3, 9, 3, 9, udp[0], udp[1], 0, 0], data].concat()
}

#[test]
fn vms_reach_elsewhere_under_the_hosts_address() {
    isolated("nat::vms_reach_elsewhere_under_the_hosts_address", || {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let outside = thread::spawn(move || {
            // SAFETY: of all that threads share, descriptors are not among what becomes this one's own.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
                .unwrap();
            ready.send(rustix::thread::gettid()).unwrap();
            while !std::path::Path::new("/proc/thread-self/net/dev_snmp6/out1").exists() {
                thread::yield_now();
            }
            run("ip", &["addr", "add", "198.51.100.2/24", "dev", "out1"]);
            run("ip", &["link", "set", "out1", "up"]);
            let socket = UdpSocket::bind("198.51.100.2:777").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            ready.send(rustix::thread::gettid()).unwrap();
            let mut buffer = [0; 100];
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            (buffer[..length].to_vec(), from.ip().to_string())
        });
        let tid = is_ready.recv().unwrap().as_raw_nonzero().get().to_string();
        run("ip", &["link", "add", "out0", "type", "veth", "peer", "name", "out1", "netns", &tid]);
        run("ip", &["addr", "add", "198.51.100.1/24", "dev", "out0"]);
        run("ip", &["link", "set", "out0", "up"]);
        is_ready.recv().unwrap();
        let vm = Bare::open("nat", "a");
        let source = vm.network.device.ipv4.unwrap().octets();
        let packet = datagram_to(source);
        vm.send(mac("02:76:6d:6e:61:74"), vm.mac(), 0x0800, &packet);
        let (data, from) = outside.join().unwrap();
        assert_eq!((&data[..], from.as_str()), (&b"hello"[..], "198.51.100.1"));
    });
}

fn datagram_to(source: [u8; 4]) -> Vec<u8> {
    let mut packet = datagram(source, [198, 51, 100, 2], b"hello");
    // To port 777.
    packet[22..24].copy_from_slice(&777_u16.to_be_bytes());
    packet
}

#[test]
fn many_vms_at_once_have_an_address_each_and_leave_none_behind() {
    isolated("nat::many_vms_at_once_have_an_address_each_and_leave_none_behind", || {
        let start = |number: u32| {
            move || open("nat,subnet=10.9.8.0/26", &format!("vm-{number}")).unwrap().into_parts()
        };
        let threads: Vec<_> = (0..60).map(|number| thread::spawn(start(number))).collect();
        let vms: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let addresses: BTreeSet<_> = vms.iter().map(|(_, network)| network.ip.unwrap()).collect();
        assert_eq!((addresses.len(), taps()), (60, 60));
        assert!(
            addresses.iter().all(|ip| ip.addr().octets() != [10, 9, 8, 1] && ip.prefix_len() == 26)
        );
        let last = open("nat", "the last").unwrap();
        assert!(matches!(open("nat", "one more").unwrap_err(), NetError::Full(_)));
        assert!(matches!(nat::remove().unwrap_err(), NetError::InUse { ports: 61, .. }));
        drop((vms, last));
        assert_eq!(taps(), 0);
        // The same name, when it is free, has the same address.
        let again = |name| open("nat", name).unwrap().network().ip;
        assert_eq!(again("vm-1"), again("vm-1"));
        assert!(nat::remove().unwrap());
        assert!(!nat::remove().unwrap());
        assert!(!run("ip", &["-br", "link"]).contains(nat::BRIDGE));
    });
}

#[test]
fn the_bridge_is_what_the_first_made_it_and_what_is_missing_comes_back() {
    isolated("nat::the_bridge_is_what_the_first_made_it_and_what_is_missing_comes_back", || {
        run("ip", &["addr", "add", "10.7.0.9/24", "dev", "lo"]);
        let error = open("nat,subnet=10.7.0.0/16", "a").unwrap_err().to_string();
        assert!(error.contains("10.7.0.9/24"), "{error}");
        let vm = open("nat,subnet=10.9.0.0/20,mtu=9000", "a").unwrap();
        let network = vm.network();
        assert_eq!(network.gateway, Some([10, 9, 0, 1].into()));
        assert_eq!(network.device.mtu, 9000);
        let word = format!("ip={}::10.9.0.1:255.255.240.0:a::off", network.ip.unwrap().addr());
        assert!(network.command_line.starts_with(&word), "{}", network.command_line);
        assert!(matches!(
            open("nat,subnet=10.8.0.0/20", "b").unwrap_err(),
            NetError::OtherSubnet { .. }
        ));
        for (spec, named) in [
            ("nat,ip=10.8.0.2/20", "not in 10.9.0.0/20"),
            ("nat,ip=10.9.0.2/24", "not in 10.9.0.0/20"),
            ("nat,ip=10.9.0.1/20", "has 10.9.0.1"),
        ] {
            let error = open(spec, "b").unwrap_err().to_string();
            assert!(error.contains(named), "{spec}: {error}");
        }
        assert_eq!(
            open("nat,ip=10.9.0.77/20", "b").unwrap().network().ip.unwrap().to_string(),
            "10.9.0.77/20"
        );
        // As after somebody flushed all addresses and switched forwarding off.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        run("ip", &["link", "set", nat::BRIDGE, "down"]);
        drop(open("nat", "c").unwrap());
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(), "1\n");
        let link = &json("ip", &["-j", "link", "show", nat::BRIDGE])[0];
        assert!(link["flags"].as_array().unwrap().contains(&"UP".into()), "{link}");
        drop(vm);
    });
}
