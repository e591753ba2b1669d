//! What goes wrong with `TCP_REPAIR`, if one does not know: each is a test.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::clients::{Client, Load};
use common::network::{Lab, SERVICE, SERVICE6};
use common::single::{carry, own, pair, refusal};
use common::switch::TestRoute;
use common::{Homes, repeats};
use continuation::mover::Route;
use continuation::repair::{self, RepairError};
use continuation::state::ConnectionState;
use rustix::net::{AddressFamily, Protocol, SocketType};

fn option(socket: impl AsFd, level: i32, name: i32) -> u32 {
    let mut value: u32 = 0;
    let mut size = libc::socklen_t::try_from(size_of_val(&value)).unwrap();
    // SAFETY: the kernel writes at most `size` bytes to `value`; both are on the stack.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut size,
        )
    };
    assert_eq!(result, 0);
    value
}

fn set_option(socket: impl AsFd, level: i32, name: i32, value: &[u8]) -> bool {
    let size = libc::socklen_t::try_from(value.len()).unwrap();
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `size` bytes of `value`.
    unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), size) == 0 }
}

/// What the kernel says of sizes: segment, buffers.
fn sizes(server: &TcpStream) -> [u32; 3] {
    [
        option(server, libc::IPPROTO_TCP, libc::TCP_MAXSEG),
        option(server, libc::SOL_SOCKET, libc::SO_SNDBUF),
        option(server, libc::SOL_SOCKET, libc::SO_RCVBUF),
    ]
}

#[test]
fn segments_and_buffers_are_what_they_were_after_many_moves() {
    for (service, mark) in [(SERVICE, true), (SERVICE, false), (SERVICE6, true)] {
        let lab = Lab::new();
        let (mut client, mut server) = pair(&lab, service, mark);
        server.set_nodelay(true).unwrap();
        let mut answer = [0; 3];
        let before = sizes(&server);
        for number in 0..repeats(50, 200) {
            // With something in both queues.
            client.write_all(b"abc").unwrap();
            server.peek(&mut [0; 3]).unwrap();
            server.write_all(b"xyz").unwrap();
            server = carry(&lab, number % 2, server);
            server.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"abc");
            client.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"xyz");
        }
        assert_eq!(sizes(&server), before, "{service} {mark}");
        assert!(server.nodelay().unwrap());
    }
}

/// Tells the echo below to end when the test fails as well: a failure is told only when its threads have ended.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Gives back what comes until `stop` is set. A peer that never stops sending does not keep it, nor does one that
/// reads nothing.
///
/// Whoever has `turn` may use the socket: what is written to one that is being frozen lands in the queue that is
/// chosen just then, be it the one of what was received.
fn echo_until(mut stream: TcpStream, turn: &Mutex<()>, stop: &AtomicBool) {
    let mut buffer = vec![0; 64 << 10];
    let mut rest = 0..0;
    while !stop.load(Ordering::Acquire) {
        thread::yield_now();
        let _turn = turn.lock().unwrap();
        let done = if rest.is_empty() {
            stream.read(&mut buffer).inspect(|length| rest = 0..*length)
        } else {
            stream.write(&buffer[rest.clone()]).inspect(|length| rest.start += length)
        };
        match done {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

#[test]
fn a_connection_that_is_not_held_is_noticed_and_goes_on() {
    let lab = Lab::new();
    let (client, mut server) = pair(&lab, SERVICE, true);
    server.set_nonblocking(true).unwrap();
    let load = Client::start(client, Load::Bulk);
    let (turn, stop) = (Mutex::new(()), AtomicBool::new(false));
    thread::scope(|scope| {
        let _ends = Ends(&stop);
        let echo = server.try_clone().unwrap();
        scope.spawn(|| echo_until(echo, &turn, &stop));
        let (mut noticed, mut attempts, since) = (false, 0, Instant::now());
        // How many it takes depends on the machine; a deadline only keeps a failure from lasting.
        while !noticed {
            assert!(load.goes_on(1), "nothing comes back after {attempts} attempts");
            assert!(since.elapsed() < Duration::from_secs(60), "{attempts} attempts, none noticed");
            attempts += 1;
            let _turn = turn.lock().unwrap();
            // Nothing holds frames.
            match repair::freeze(server, &own()) {
                Ok(frozen) => server = frozen.thaw().unwrap().unwrap(),
                Err((back, error)) => {
                    noticed |= matches!(error, RepairError::NotStill { .. });
                    server = back;
                }
            }
        }
        assert!(load.goes_on(1), "nothing comes back after it was noticed");
        server.shutdown(Shutdown::Both).unwrap();
    });
    drop(load); // it was cut off
}

#[test]
fn a_queue_larger_than_the_buffer_is_restored() {
    let lab = Lab::new();
    let (mut client, server) = pair(&lab, SERVICE, true);
    // The peer fills the window while the server does not read; then the buffer is made small.
    client.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut sent = 0;
    let mut piece = vec![0; 4096];
    loop {
        common::words::fill(sent, &mut piece);
        match client.write(&piece) {
            Ok(length) => sent += length as u64,
            Err(_) => break,
        }
    }
    repair::mark_migratable(&server, 4096).unwrap();
    let before = sizes(&server);
    let mut server = carry(&lab, 0, server);
    assert_eq!(sizes(&server), before);
    client.shutdown(Shutdown::Write).unwrap();
    let mut all = Vec::new();
    server.read_to_end(&mut all).unwrap();
    assert_eq!(all.len() as u64, sent);
    assert_eq!(common::words::wrong(0, &all), None);
}

#[test]
fn a_connection_whose_peer_has_ended_moves_and_ends() {
    for service in [SERVICE, SERVICE6] {
        let lab = Lab::new();
        let (mut client, mut server) = pair(&lab, service, true);
        client.write_all(b"last").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        server.peek(&mut [0; 4]).unwrap();
        thread::sleep(Duration::from_millis(20)); // its end arrives behind it
        for from in [0, 1, 0] {
            server = carry(&lab, from, server);
        }
        let mut all = Vec::new();
        server.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"last");
        server.write_all(b"answer").unwrap();
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"answer");
    }
}

#[test]
fn what_cannot_move_is_refused_by_name() {
    let lab = Lab::new();
    let (mut client, server) = pair(&lab, SERVICE, false);
    let (server, error) = {
        // MSG_OOB.
        rustix::net::send(&client, b"!", rustix::net::SendFlags::OOB).unwrap();
        thread::sleep(Duration::from_millis(20));
        refusal(&lab, server)
    };
    assert!(matches!(error, RepairError::Urgent), "{error}");
    drop(server);
    let _ = client.read(&mut [0; 1]);

    let listener = lab.homes[0].run(|| TcpListener::bind("10.7.0.100:7001").unwrap());
    let error = repair::movable(&listener, &*own()).unwrap_err();
    assert!(matches!(error, RepairError::Listening), "{error}");
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = repair::movable(&udp, &*own()).unwrap_err();
    assert!(matches!(error, RepairError::NotTcp(17)), "{error}");

    let (_client, server) = pair(&lab, "10.7.0.100:7002", false);
    server.shutdown(Shutdown::Write).unwrap();
    let (_, error) = refusal(&lab, server);
    assert!(matches!(error, RepairError::NotEstablished(_)), "{error}");

    let number = std::num::NonZero::new(262).unwrap();
    let mptcp = Some(Protocol::from_raw(number));
    // A kernel may be without it.
    if let Ok(socket) = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, mptcp) {
        let error = repair::movable(&socket, &*own()).unwrap_err();
        assert!(matches!(error, RepairError::Multipath), "{error}");
    }
}

#[test]
fn a_connection_that_the_kernel_encrypts_is_refused() {
    let lab = Lab::new();
    let (_client, server) = pair(&lab, SERVICE, false);
    // Not every kernel has it, and none is moved where it is not.
    if set_option(&server, libc::IPPROTO_TCP, libc::TCP_ULP, b"tls") {
        let (_, error) = refusal(&lab, server);
        assert!(matches!(&error, RepairError::UpperLayer(name) if name == "tls"), "{error}");
    }
}

/// `struct tcp_md5sig`: the peer's address, and a key.
fn key(peer: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![0; 128];
    bytes.extend([0, 0, 6, 0, 0, 0, 0, 0]);
    bytes.extend([b'k'; 6]);
    bytes.resize(216, 0);
    bytes[..2].copy_from_slice(&u16::try_from(libc::AF_INET).unwrap().to_ne_bytes());
    bytes[4..8].copy_from_slice(&peer);
    bytes
}

#[test]
fn a_connection_with_signed_segments_is_refused() {
    let lab = Lab::new();
    let listener = lab.homes[0].run(|| TcpListener::bind(SERVICE).unwrap());
    let set = |socket: &dyn AsFd, peer| {
        set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_MD5SIG, &key(peer))
    };
    if !set(&listener, [10, 7, 0, 1]) {
        return; // a kernel without it
    }
    let client = lab.client.run(|| {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        assert!(set(&socket, [10, 7, 0, 100]));
        let address: std::net::SocketAddr = SERVICE.parse().unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        socket
    });
    let (server, _) = listener.accept().unwrap();
    let (_server, error) = refusal(&lab, server);
    assert!(matches!(error, RepairError::Signed("TCP-MD5")), "{error}");
    drop(client);
}

#[test]
fn an_address_that_is_not_here_and_a_connection_that_is_are_refused() {
    let lab = Lab::new();
    let (mut client, server) = pair(&lab, SERVICE, true);
    let mut route = TestRoute::new(&lab, 0, 1);
    route.hold().unwrap();
    route.drain().unwrap();
    let frozen = lab.homes[0].run(|| repair::freeze(server, &own())).unwrap();
    let state = frozen.state.clone();
    let error = lab.homes[0].run(|| repair::restore(&state, &own())).unwrap_err();
    assert!(matches!(error, RepairError::InUse { .. }), "{error}");
    let error = lab.client.run(|| repair::restore(&state, &own())).unwrap_err();
    assert!(matches!(error, RepairError::NotHere(_)), "{error}");
    // What is restored and not started leaves without a word, and can come again.
    for _ in 0..3 {
        drop(lab.homes[1].run(|| repair::restore(&state, &own())).unwrap());
    }
    let mut server = frozen.thaw().unwrap().unwrap();
    route.revert().unwrap();
    client.write_all(b"on").unwrap();
    let mut answer = [0; 2];
    server.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"on");
}

/// Without a hold a segment is lost: it costs time, and no byte.
#[test]
fn a_move_that_loses_frames_loses_no_byte() {
    let mut homes = Homes::new();
    let client = Client::start(homes.connect(SERVICE.parse().unwrap()), Load::Paced);
    for _ in 0..repeats(3, 20) {
        assert!(client.goes_on(256));
        homes.lab.switch.drop_frames(true);
        thread::sleep(Duration::from_millis(1));
        homes.try_move().unwrap();
        homes.lab.switch.drop_frames(false);
        assert!(client.goes_on(256));
    }
    client.finish().unwrap();
}

/// States that lie in a way that only the kernel can see: no move, and no harm.
#[test]
fn a_state_with_other_numbers_harms_nobody_else() {
    let lab = Lab::new();
    let (mut client, mut server) = pair(&lab, SERVICE, true);
    let (mut other, mut others) = pair(&lab, "10.7.0.100:7001", true);
    let frozen = lab.homes[0].run(|| repair::freeze(server, &own())).unwrap();
    let mut lie = frozen.state.clone();
    lie.send.end = lie.send.end.wrapping_add(1 << 20);
    lie.receive.end = lie.receive.end.wrapping_sub(1 << 20);
    lie.window.rcv_wup = lie.receive.end;
    lie.window.snd_wl1 = lie.receive.end;
    let lie = ConnectionState::decode(&lie.encode()).unwrap();
    // It is muted there, so that nobody hears it.
    let liar = lab.homes[1].run(|| repair::restore(&lie, &own())).unwrap().start().unwrap();
    server = frozen.thaw().unwrap().unwrap();
    for (one, two) in [(&mut client, &mut server), (&mut other, &mut others)] {
        one.write_all(b"word").unwrap();
        let mut found = [0; 4];
        two.read_exact(&mut found).unwrap();
        assert_eq!(&found, b"word");
    }
    drop(liar);
}
