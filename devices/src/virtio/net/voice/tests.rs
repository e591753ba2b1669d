use std::net::Ipv6Addr;

use endpoint::range::{Form, Range};
use proptest::prelude::*;

use super::super::identifiers::{IdentifierTable, Receive};
use super::super::testing::{arp, ethernet, icmpv6 as icmp6, ipv4, ipv6, udp};
use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const IP: [u8; 4] = [10, 0, 0, 2];
const SERVICE: [u8; 4] = [10, 7, 0, 100];
const SERVICE6: &str = "2001:db8::100";

fn range(request: u32) -> Range {
    Range::new(Form::Prefix, 0x12345, request, request).unwrap()
}

fn vid() -> [u8; 6] {
    range(1).first().bytes()
}

fn identity(ipv4: bool, ipv6: bool) -> Identity {
    Identity {
        mac: MacAddress::new(MAC).unwrap(),
        ipv4: ipv4.then(|| IP.into()),
        ipv6: ipv6.then(|| "2001:db8::2".parse().unwrap()),
    }
}

/// An identifier of its own with each of these addresses.
fn table(addresses: &[Option<IpAddr>], may_send: bool) -> IdentifierTable {
    let table = IdentifierTable::new().unwrap();
    let identifiers = (1..).zip(addresses).map(|(request, &address)| Identifiers {
        range: range(request),
        address,
        receive: Receive::Deliver,
        may_send,
    });
    table.set(identifiers.collect());
    table
}

fn judge(identity: &Identity, table: &IdentifierTable, frame: &[u8]) -> Sender {
    identity.judge_among(&Frame::parse(frame).unwrap(), &table.lock())
}

fn both() -> [Option<IpAddr>; 2] {
    [Some(SERVICE.into()), Some(SERVICE6.parse::<Ipv6Addr>().unwrap().into())]
}

fn about(kind: u8, of: &str, option: [u8; 6]) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(of.parse::<Ipv6Addr>().unwrap().octets());
    body.extend([if kind == 136 { 2 } else { 1 }, 1]);
    body.extend(option);
    icmp6(kind, &body)
}

#[test]
fn an_identifier_speaks_for_its_own_address_only() {
    let packet = |ip| ethernet(vid(), IPV4, &ipv4(ip, 17, &udp(5, 6)));
    for id in [identity(false, false), identity(true, false), identity(true, true)] {
        let table = table(&both(), true);
        let judged = |frame: &[u8]| judge(&id, &table, frame);
        assert_eq!(judged(&ethernet(vid(), ARP, &arp(vid(), SERVICE))), Sender::Vm);
        assert_eq!(judged(&ethernet(vid(), ARP, &arp(vid(), [0; 4]))), Sender::Vm, "it asks");
        assert_eq!(judged(&ethernet(vid(), ARP, &arp(MAC, SERVICE))), Sender::Another);
        assert_eq!(judged(&ethernet(vid(), ARP, &arp(vid(), [10, 7, 0, 101]))), Sender::Another);
        assert_eq!(judged(&ethernet(vid(), ARP, &arp(vid(), SERVICE)[..17])), Sender::Another);
        assert_eq!(judged(&packet(SERVICE)), Sender::Vm);
        assert_eq!(judged(&packet([10, 7, 0, 101])), Sender::Another);
        let own = if id.ipv4.is_some() { Sender::Vm } else { Sender::Another };
        assert_eq!(judged(&packet(IP)), own, "the VM's own");
        // Nobody has this one.
        let stranger = range(9).first().bytes();
        assert_eq!(judged(&ethernet(stranger, ARP, &arp(stranger, SERVICE))), Sender::Another);
        assert_eq!(judged(&ethernet(vid(), ETHERTYPE, &[0; 40])), Sender::Vm);
        let tagged = if id.ipv4.is_some() { Sender::Unknown } else { Sender::Vm };
        assert_eq!(judged(&ethernet(vid(), 0x8100, &[0; 40])), tagged);
    }
}

#[test]
fn without_an_address_it_may_have_any_where_the_vm_may() {
    let frames = [
        ethernet(vid(), ARP, &arp(vid(), [1, 2, 3, 4])),
        ethernet(vid(), IPV4, &ipv4([1, 2, 3, 4], 17, &udp(5, 6))),
    ];
    for frame in frames {
        assert_eq!(judge(&identity(false, false), &table(&[None], true), &frame), Sender::Vm);
        assert_eq!(judge(&identity(true, false), &table(&[None], true), &frame), Sender::Another);
    }
    let own = ethernet(vid(), IPV4, &ipv4(IP, 17, &udp(5, 6)));
    assert_eq!(judge(&identity(true, false), &table(&[None], true), &own), Sender::Vm);
}

#[test]
fn without_a_voice_nothing_is_said_of_a_service() {
    for id in [identity(false, false), identity(true, true)] {
        let silent = table(&both(), false);
        let judged = |frame: &[u8]| judge(&id, &silent, frame);
        assert_eq!(judged(&ethernet(vid(), ARP, &arp(vid(), SERVICE))), Sender::Muted);
        assert_eq!(judged(&ethernet(vid(), 0x8100, &[0; 40])), Sender::Muted);
        // Not as a host's address either.
        let reset = ethernet(MAC, IPV4, &ipv4(SERVICE, 17, &udp(5, 6)));
        assert_eq!(judged(&reset), Sender::Muted);
        let reset = ethernet(MAC, IPV6, &ipv6(SERVICE6, 17, &udp(5, 6)));
        assert_eq!(judged(&reset), Sender::Muted);
        let own = ethernet(MAC, IPV4, &ipv4(IP, 17, &udp(5, 6)));
        assert_eq!(judged(&own), Sender::Vm);
    }
}

#[test]
fn the_vms_own_address_carries_packets_of_a_service_but_claims_none() {
    for id in [identity(false, false), identity(true, false), identity(false, true)] {
        let table = table(&both(), true);
        let judged = |frame: &[u8]| judge(&id, &table, frame);
        let packet = ethernet(MAC, IPV4, &ipv4(SERVICE, 17, &udp(5, 6)));
        assert_eq!(judged(&packet), Sender::Vm);
        let packet = ethernet(MAC, IPV6, &ipv6(SERVICE6, 17, &udp(5, 6)));
        assert_eq!(judged(&packet), Sender::Vm);
        assert_eq!(judged(&ethernet(MAC, ARP, &arp(MAC, SERVICE))), Sender::Another);
        for kind in [135, 136] {
            let claim = ethernet(MAC, IPV6, &ipv6(SERVICE6, 58, &about(kind, SERVICE6, MAC)));
            assert_eq!(judged(&claim), Sender::Another, "{kind}");
        }
        if id.ipv4.is_some() {
            let other = ethernet(MAC, IPV4, &ipv4([10, 7, 0, 101], 17, &udp(5, 6)));
            assert_eq!(judged(&other), Sender::Another);
            assert_eq!(judged(&ethernet(MAC, ARP, &arp(MAC, IP))), Sender::Vm);
            let offer = ethernet(MAC, IPV4, &ipv4(SERVICE, 17, &udp(67, 68)));
            assert_eq!(judged(&offer), Sender::Another, "it gives no addresses");
        }
    }
}

#[test]
fn neighbours_are_told_of_an_identifier_by_itself() {
    let mut octets = vid();
    octets[0] ^= 2;
    let (upper, lower) = octets.split_at(3);
    let local = [&[0xfe, 0x80, 0, 0, 0, 0, 0, 0][..], upper, &[0xff, 0xfe], lower].concat();
    let local = Ipv6Addr::from(<[u8; 16]>::try_from(local).unwrap());
    let local = local.to_string();
    for id in [identity(false, false), identity(true, true)] {
        // The one that has an address of IPv6.
        let table = table(&both()[1..], true);
        let sends = |source: &str, content: &[u8]| {
            judge(&id, &table, &ethernet(vid(), IPV6, &ipv6(source, 58, content))) == Sender::Vm
        };
        for source in [SERVICE6, &local] {
            assert!(sends(source, &about(136, SERVICE6, vid())));
            assert!(sends(source, &about(136, &local, vid())));
            assert!(!sends(source, &about(136, SERVICE6, MAC)), "at another's address");
            assert!(!sends(source, &about(136, "2001:db8::3", vid())));
            assert!(sends(source, &about(135, "2001:db8::3", vid())), "it looks for somebody");
            assert!(!sends(source, &icmp6(134, &[0; 40])), "it is no router");
        }
        assert!(sends("::", &about(135, SERVICE6, vid())), "it asks whether somebody has it");
        assert!(!sends("2001:db8::3", &icmp6(128, &[0; 8])));
    }
    // A family in which neither has an address.
    let report = ethernet(vid(), IPV6, &ipv6("::", 58, &icmp6(143, &[0; 8])));
    let judged = judge(&identity(true, false), &table(&both()[..1], true), &report);
    assert_eq!(judged, Sender::Unknown);
}

#[test]
fn a_server_of_dhcp_answers_from_its_identifier_where_the_vm_may() {
    let offer = ethernet(vid(), IPV4, &ipv4(SERVICE, 17, &udp(67, 68)));
    let other = ethernet(vid(), IPV4, &ipv4(IP, 17, &udp(67, 68)));
    let table = table(&both(), true);
    assert_eq!(judge(&identity(false, false), &table, &offer), Sender::Vm);
    assert_eq!(judge(&identity(false, false), &table, &other), Sender::Another);
    assert_eq!(judge(&identity(true, false), &table, &offer), Sender::Another);
}

proptest! {
    #[test]
    fn identifiers_make_nothing_pass_that_is_not_theirs(
        mut frame in proptest::collection::vec(any::<u8>(), 14..120),
        kind in prop::sample::select(vec![ARP, IPV4, IPV6, ETHERTYPE, 0x8100]),
        source in 0..3_usize, v4 in any::<bool>(), v6 in any::<bool>(), may_send in any::<bool>(),
        service in any::<bool>(),
    ) {
        frame[12..14].copy_from_slice(&kind.to_be_bytes());
        frame[6..12].copy_from_slice(&[MAC, vid(), range(9).first().bytes()][source]);
        if service && kind == IPV4 && frame.len() >= 34 {
            frame[26..30].copy_from_slice(&SERVICE);
        }
        let (id, table) = (identity(v4, v6), table(&both(), may_send));
        let sender = judge(&id, &table, &frame);
        let without = id.judge(&Frame::parse(&frame).unwrap());
        prop_assert_eq!(sender == Sender::Muted, !may_send && (source == 1
            || source == 0 && service && Frame::parse(&frame).unwrap().packet().is_some()
                && kind == IPV4));
        match source {
            // Nothing else is changed for the VM itself.
            0 => prop_assert!(sender == without || kind != 0x8100),
            1 if sender == Sender::Vm => {
                prop_assert!(may_send);
                prop_assert!(kind != 0x8100 || !(v4 || v6));
                if kind == IPV4 {
                    let own = frame[26..30] == IP && v4;
                    prop_assert!(own || frame[26..30] == SERVICE || frame[26..30] == [0; 4]);
                }
            }
            1 => {}
            _ => prop_assert_eq!(sender, Sender::Another),
        }
    }
}
