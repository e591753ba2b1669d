//! Connections that a move would leave behind: those that the server of a service does not have yet, or has no more. Of
//! the former, in the listener's queue or in the middle of their handshake, a move would leave the clients reset. The
//! latter the kernel ends by itself, when the peer has the last bytes: a move would leave their clients waiting for
//! these, for ever. A server has none of them if it closes what is delivered
//! ([`is_delivered`](crate::service::Continuation::is_delivered)).

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// States that clients take for a connection: established, half of a handshake, closed by the client (`TCP_ESTABLISHED`,
/// `TCP_SYN_RECV`, `TCP_CLOSE_WAIT`).
const OPEN: [&str; 3] = ["01", "03", "08"];
/// States in which something was written, and not acknowledged, before a program closed the connection (`TCP_FIN_WAIT1`,
/// `TCP_LAST_ACK`, `TCP_CLOSING`).
const ENDING: [&str; 3] = ["04", "09", "0B"];
/// A peer that does not acknowledge it when it is sent so often again is gone, and is not waited for: the kernel gives
/// up then, too (`tcp_orphan_retries`). Fewer are not enough: a host whose agent starts again may be mute for seconds.
const MOST_REPEATS: u32 = 8;

/// How many connections there are at `service` besides the `handed` that its server has, as far as a move would harm
/// them. Ask when nothing more comes: frames are held and all that had come is processed ([`drain`](super::drain())).
///
/// # Errors
/// The kernel's list cannot be read.
pub fn left_behind(service: SocketAddr, handed: usize) -> io::Result<usize> {
    let file = if service.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
    Ok(count(&fs::read_to_string(file)?, service).saturating_sub(handed))
}

fn count(list: &str, service: SocketAddr) -> usize {
    // The list is read in pieces, and has one twice if others come and go meanwhile.
    let peers = list.lines().skip(1).filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [_, local, peer, state, rest @ ..] = words.as_slice() else { return None };
        // Behind the queues and the timer.
        let repeats = rest.get(2).and_then(|text| u32::from_str_radix(text, 16).ok());
        let is_ending = ENDING.contains(state) && repeats.is_some_and(|n| n <= MOST_REPEATS);
        let counts = OPEN.contains(state) || is_ending;
        (counts && address(local) == Some(service)).then_some(*peer)
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
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn what_is_in_the_listeners_queue_is_counted_until_it_is_accepted() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(loopback).unwrap();
            let service = listener.local_addr().unwrap();
            assert_eq!(left_behind(service, 0).unwrap(), 0);
            let _clients = [(); 2].map(|()| TcpStream::connect(service).unwrap());
            assert_eq!(left_behind(service, 0).unwrap(), 2);
            let _one = listener.accept().unwrap();
            assert_eq!(
                (left_behind(service, 1).unwrap(), left_behind(service, 2).unwrap()),
                (1, 0)
            );
        }
    }

    #[test]
    fn what_was_closed_is_counted_until_the_peer_has_it_all() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let service = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(service).unwrap();
        let (mut one, _) = listener.accept().unwrap();
        // More than the client has room for, since it reads nothing.
        one.set_nonblocking(true).unwrap();
        while one.write(&[7; 16384]).is_ok() {}
        drop(one);
        assert_eq!(left_behind(service, 0).unwrap(), 1);
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        let begun = Instant::now();
        while left_behind(service, 0).unwrap() != 0 {
            assert!(begun.elapsed() < Duration::from_secs(10));
        }
    }

    #[test]
    fn a_peer_that_is_gone_is_not_waited_for() {
        let service = "10.77.0.80:7000".parse().unwrap();
        let own = if cfg!(target_endian = "little") { "50004D0A:1B58" } else { "0A4D0050:1B58" };
        let line = |state, repeats: u32| {
            format!("head\n 0: {own} 0100007F:1 {state} 1:0 01:5 {repeats:08X} 0 0 0\n")
        };
        for state in ["04", "09", "0B"] {
            assert_eq!(count(&line(state, 0), service), 1);
            assert_eq!(count(&line(state, 8), service), 1);
            assert_eq!(count(&line(state, 9), service), 0);
        }
        assert_eq!(count(&line("06", 0), service), 0);
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
