//! Connections of a service that its server does not have yet: they are in the listener's queue, or their handshake is
//! under way. They would be left behind by a move, and their clients reset.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// States that clients take for a connection: established, half of a handshake, closed by the client (`TCP_ESTABLISHED`,
/// `TCP_SYN_RECV`, `TCP_CLOSE_WAIT`).
const OPEN: [&str; 3] = ["01", "03", "08"];

/// How many connections there are at `service` besides the `handed` that its server has. Ask when nothing more comes:
/// frames are held and all that had come is processed ([`drain`](super::drain())).
///
/// # Errors
/// The kernel's list cannot be read.
pub fn unaccepted(service: SocketAddr, handed: usize) -> io::Result<usize> {
    let file = if service.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
    Ok(count(&fs::read_to_string(file)?, service).saturating_sub(handed))
}

fn count(list: &str, service: SocketAddr) -> usize {
    // The list is read in pieces, and has one twice if others come and go meanwhile.
    let peers = list.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, peer, state) = (words.next()?, words.next()?, words.next()?);
        (address(local) == Some(service) && OPEN.contains(&state)).then_some(peer)
    });
    peers.collect::<HashSet<_>>().len()
}

/// `50004D0A:1B58`: words of the address as the processor has them, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let text = address.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(text, 16).ok()?.to_ne_bytes())
    };
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, place) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *place = word(at)?;
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_is_in_the_listeners_queue_is_counted_until_it_is_accepted() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(loopback).unwrap();
            let service = listener.local_addr().unwrap();
            assert_eq!(unaccepted(service, 0).unwrap(), 0);
            let _clients = [(); 2].map(|()| TcpStream::connect(service).unwrap());
            assert_eq!(unaccepted(service, 0).unwrap(), 2);
            let _one = listener.accept().unwrap();
            assert_eq!((unaccepted(service, 1).unwrap(), unaccepted(service, 2).unwrap()), (1, 0));
        }
    }

    #[test]
    fn lines_that_are_none_count_for_nothing() {
        let service = "10.77.0.80:7000".parse().unwrap();
        let line =
            |local: &str, state: &str| format!("head\n 0: {local} 0100007F:1 {state} rest\n");
        let own = if cfg!(target_endian = "little") { "50004D0A:1B58" } else { "0A4D0050:1B58" };
        assert_eq!(count(&line(own, "01"), service), 1);
        assert_eq!(count(&line(own, "0A"), service), 0);
        for wrong in ["", "x", "50004D0A", "5000:1B58", "50004D0A:zz", "50004D0\u{e9}:1B58"] {
            assert_eq!(count(&line(wrong, "01"), service), 0, "{wrong}");
        }
    }
}
