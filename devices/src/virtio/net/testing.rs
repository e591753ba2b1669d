//! Frames for tests.

use std::net::Ipv6Addr;

pub(super) fn ethernet(source: [u8; 6], kind: u16, content: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &source, &kind.to_be_bytes(), content].concat()
}

pub(super) fn arp(sender: [u8; 6], ip: [u8; 4]) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, 1][..], &sender, &ip, &[0; 6], &[10, 0, 0, 1]].concat()
}

pub(super) fn ipv4(source: [u8; 4], protocol: u8, content: &[u8]) -> Vec<u8> {
    ipv4_to(source, [10, 0, 0, 1], protocol, content)
}

pub(super) fn ipv4_to(
    source: [u8; 4],
    destination: [u8; 4],
    protocol: u8,
    content: &[u8],
) -> Vec<u8> {
    let [high, low] = u16::try_from(20 + content.len()).unwrap().to_be_bytes();
    let header = [0x45, 0, high, low, 0, 0, 0, 0, 64, protocol, 0, 0];
    [&header[..], &source, &destination, content].concat()
}

pub(super) fn ipv6(source: &str, next: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    let source = source.parse::<Ipv6Addr>().unwrap().octets();
    let destination = "ff02::1".parse::<Ipv6Addr>().unwrap().octets();
    [&[0x60, 0, 0, 0, high, low, next, 255][..], &source, &destination, content].concat()
}

pub(super) fn udp(source: u16, destination: u16) -> Vec<u8> {
    [&source.to_be_bytes()[..], &destination.to_be_bytes(), &[0, 8, 0, 0]].concat()
}

pub(super) fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut segment = [&source.to_be_bytes()[..], &destination.to_be_bytes(), &[0; 16]].concat();
    (segment[12], segment[13]) = (0x50, flags);
    segment
}

pub(super) fn icmpv6(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0][..], body].concat()
}
