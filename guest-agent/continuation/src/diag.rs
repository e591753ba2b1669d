//! What the kernel tells of a connection by netlink only: whether its segments are signed.
//!
//! See `linux/inet_diag.h`; the attribute is given to who has `CAP_NET_ADMIN`.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use crate::wire::Reader;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const INET_DIAG_INFO: u8 = 2;
const INET_DIAG_MD5SIG: u16 = 18;
/// Of `struct nlmsghdr` and `struct inet_diag_msg`, in bytes.
const HEADER: usize = 16;
const MESSAGE: usize = 72;

/// Whether the connection has keys of TCP-MD5. A kernel that cannot tell, or finds no such connection in this
/// network namespace, is taken for no.
pub(crate) fn is_signed(local: SocketAddr, peer: SocketAddr) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC;
    let kind = Some(netlink::SOCK_DIAG);
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, kind)?;
    rustix::net::send(&socket, &request(local, peer), SendFlags::empty())?;
    let mut answer = [0; 8192];
    // The kernel has answered when the call that asked returns.
    let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::DONTWAIT)?;
    Ok(has_keys(answer.get(..length).unwrap_or(&answer)))
}

fn request(local: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut to = vec![0; HEADER];
    // Of TCP; and its inner state, without which the kernel leaves out what is looked for.
    to.extend([u8::try_from(family).unwrap_or(0), 6, 1 << (INET_DIAG_INFO - 1), 0]);
    to.extend(u32::MAX.to_ne_bytes()); // in all states
    to.extend(local.port().to_be_bytes());
    to.extend(peer.port().to_be_bytes());
    for ip in [local.ip(), peer.ip()] {
        let mut octets = [0; 16];
        match ip {
            IpAddr::V4(ip) => octets[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => octets = ip.octets(),
        }
        to.extend(octets);
    }
    to.extend([0; 4]); // on any interface
    to.extend([0xff; 8]); // without a cookie
    let length = u32::try_from(to.len()).unwrap_or(0);
    to[..4].copy_from_slice(&length.to_ne_bytes());
    to[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    to[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    to
}

fn has_keys(answer: &[u8]) -> bool {
    let mut from = Reader(answer);
    let Some(length) = from.array().map(u32::from_ne_bytes) else { return false };
    if from.array().map(u16::from_ne_bytes) == Some(NLMSG_ERROR) {
        return false;
    }
    let end = usize::try_from(length).unwrap_or(0).min(answer.len());
    let mut attributes = answer.get(HEADER + MESSAGE..end).unwrap_or_default();
    while let [a, b, c, d, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        if u16::from_ne_bytes([c, d]) == INET_DIAG_MD5SIG {
            return true;
        }
        if length < 4 {
            return false;
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            has_keys(&bytes);
        }
    }

    #[test]
    fn the_attribute_is_found_behind_others() {
        let mut answer = vec![0; HEADER + MESSAGE];
        answer.extend([5, 0, 8, 0, 3, 0, 0, 0]);
        answer.extend([4, 0, 18, 0]);
        answer[0] = u8::try_from(answer.len()).unwrap();
        answer[4] = 20;
        assert!(has_keys(&answer));
        answer[0] -= 4;
        assert!(!has_keys(&answer), "it is behind the end");
    }
}
