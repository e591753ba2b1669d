//! The socket device as its driver and programs of the host see it.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use devices::virtio::VirtioDevice;
use devices::virtio::vsock::packet::{
    Header, Operation, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND,
};
use devices::virtio::vsock::{GUEST_CIDS, MAX_PACKETS, Settings, SocketPrefix, Vsock};
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{DRIVER_OK, FEATURES_OK, INTERRUPT_STATUS, NEEDS_RESET, NEXT, STATUS, WRITE};
use crate::vsock_driver::{CID, Driver, EVENT, PACKET, RECEIVE, TRANSMIT, data, packet, parse};

const ROOM: usize = 64 << 10;
const SHORT: Duration = Duration::from_millis(20);

fn driver() -> Driver {
    Driver::new(Settings::default(), 64)
}

fn line(stream: &mut UnixStream) -> String {
    let (mut line, mut byte) = (String::new(), [0]);
    while !line.ends_with('\n') {
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0].into());
    }
    line
}

/// Whether it was closed; what it has sent and nobody read makes that a reset.
fn is_at_end(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

/// A connection that the host asks for and the guest accepts; returns the host's port.
fn accepted(driver: &mut Driver, words: &[u8]) -> (UnixStream, u32) {
    let mut host = driver.host(words);
    let request = driver.expect(Operation::Request);
    let port = request.source_port;
    driver.send(&packet(Operation::Response, request.destination_port, port), &[]);
    assert_eq!(line(&mut host), format!("OK {port}\n"));
    (host, port)
}

/// A connection that the guest asks for.
fn dialled(driver: &mut Driver) -> (UnixStream, UnixListener) {
    let listener = driver.listener(80);
    let host = driver.connect(&listener, 9, 80);
    (host, listener)
}

fn counts(driver: &Driver) -> devices::virtio::vsock::Counts {
    driver.transport.device().counters().counts()
}

#[test]
fn the_configuration_space_has_the_identifier_and_nothing_can_be_written() {
    let mut driver = driver();
    driver.write(0x100, 77);
    assert_eq!((driver.read(0x08), driver.read(0x100), driver.read(0x104)), (19, CID, 0));
    assert_eq!(driver.read(0x108), u32::MAX);
    let mut byte = [9; 3];
    driver.transport.device().read_config(6, &mut byte);
    assert_eq!(byte, [0, 0, 9]);
    driver.transport.device().read_config(u64::MAX, &mut byte);
}

#[test]
fn identifiers_that_have_a_meaning_are_refused() {
    for cid in [0, 1, 2, u32::MAX] {
        assert!(!GUEST_CIDS.contains(&cid));
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("v")).unwrap();
        let error = Vsock::new(cid, listener, Box::new(SocketPrefix::new("v"))).unwrap_err();
        assert!(error.to_string().starts_with(&cid.to_string()), "{error}");
    }
}

#[test]
fn a_program_of_the_host_reaches_one_of_the_guest() {
    let mut driver = driver();
    let mut host = driver.host(b"CONNECT 52\nwhat comes behind the line");
    let request = driver.expect(Operation::Request);
    assert_eq!((request.source_cid, request.destination_cid), (2, 3));
    assert_eq!((request.source_port, request.destination_port), (1 << 30, 52));
    assert_eq!((request.kind, request.room, request.forwarded), (1, 65536, 0));
    driver.send(&packet(Operation::Response, 52, 1 << 30), &[]);
    assert_eq!(line(&mut host), "OK 1073741824\n");
    let content = driver.content(26);
    assert_eq!(content, b"what comes behind the line");

    driver.send(&data(52, 1 << 30, 5), b"hello");
    let mut answer = [0; 5];
    host.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
    assert_ne!(driver.read(INTERRUPT_STATUS) & 1, 0);
    let counts = counts(&driver);
    assert_eq!((counts.accepted, counts.open, counts.bytes_to_guest), (1, 1, 26));
    assert_eq!(counts.bytes_from_guest, 5);

    // Each has a port of its own.
    let (_other, port) = accepted(&mut driver, b"connect 52\n");
    assert_eq!(port, (1 << 30) + 1);
}

#[test]
fn a_line_may_come_in_parts() {
    let mut driver = driver();
    let mut host = driver.host(b"");
    for part in ["CONN", "ECT", " 5", "2"] {
        host.write_all(part.as_bytes()).unwrap();
        driver.wait();
        assert!(driver.packets().is_empty());
        assert!(!driver.host_is_due(Duration::ZERO), "waits without spinning");
    }
    host.write_all(b"\n").unwrap();
    assert_eq!(driver.expect(Operation::Request).destination_port, 52);
}

#[test]
fn what_is_no_line_is_closed_and_the_guest_hears_nothing() {
    let mut driver = driver();
    for words in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"CONNECT 99999999999\n", &[b'C'; 100]] {
        let mut host = driver.host(words);
        driver.wait();
        assert!(is_at_end(&mut host));
    }
    let host = driver.host(b"CONNECT");
    drop(host);
    driver.wait();
    assert!(driver.packets().is_empty());
    assert_eq!((counts(&driver).refused, counts(&driver).open), (4, 0));
}

#[test]
fn a_guest_that_does_not_listen_closes_the_hosts_connection() {
    let mut driver = driver();
    let mut host = driver.host(b"CONNECT 52\n");
    let request = driver.expect(Operation::Request);
    driver.send(&packet(Operation::Reset, 52, request.source_port), &[]);
    assert!(is_at_end(&mut host));
    assert!(driver.packets().is_empty());
}

#[test]
fn a_program_that_goes_before_the_guest_answers_is_taken_back() {
    let mut driver = driver();
    let host = driver.host(b"CONNECT 52\n");
    let request = driver.expect(Operation::Request);
    drop(host);
    let reset = driver.expect(Operation::Reset);
    assert_eq!((reset.source_port, reset.destination_port), (request.source_port, 52));
    // Too late, and told so.
    driver.send(&packet(Operation::Response, 52, request.source_port), &[]);
    driver.expect(Operation::Reset);
    assert_eq!(counts(&driver).open, 0);
}

#[test]
fn a_program_of_the_guest_reaches_one_of_the_host() {
    let mut driver = driver();
    let listener = driver.listener(1024);
    driver.send(&packet(Operation::Request, 9, 1024), &[]);
    let response = driver.expect(Operation::Response);
    assert_eq!((response.source_cid, response.destination_cid), (2, 3));
    assert_eq!((response.source_port, response.destination_port), (1024, 9));
    let (mut host, _) = listener.accept().unwrap();
    driver.send(&data(9, 1024, 4), b"ping");
    let mut ping = [0; 4];
    host.read_exact(&mut ping).unwrap();
    host.write_all(&ping).unwrap();
    assert_eq!(driver.content(4), b"ping");
    assert_eq!((counts(&driver).dialled, counts(&driver).open), (1, 1));
}

#[test]
fn where_nobody_listens_the_guest_is_refused() {
    let mut driver = driver();
    driver.send(&packet(Operation::Request, 9, 1024), &[]);
    let reset = driver.expect(Operation::Reset);
    assert_eq!((reset.source_port, reset.destination_port), (1024, 9));
    // A socket that nobody accepts from any more is there, and answers as much.
    drop(driver.listener(1025));
    driver.send(&packet(Operation::Request, 9, 1025), &[]);
    driver.expect(Operation::Reset);
    assert_eq!((counts(&driver).refused, counts(&driver).open), (2, 0));
}

#[test]
fn packets_of_no_connection_are_reset_and_resets_are_not() {
    let mut driver = driver();
    for operation in [
        Operation::Response,
        Operation::Shutdown,
        Operation::Data,
        Operation::CreditUpdate,
        Operation::CreditRequest,
    ] {
        driver.send(&packet(operation, 9, 80), &[]);
        driver.expect(Operation::Reset);
    }
    driver.send(&packet(Operation::Reset, 9, 80), &[]);
    // Other types, other hosts, and what nobody knows.
    let seqpacket = Header { kind: 2, ..packet(Operation::Request, 9, 80) };
    driver.send(&seqpacket, &[]);
    assert_eq!(driver.expect(Operation::Reset).kind, 2);
    driver.send(&Header { destination_cid: 7, ..packet(Operation::Request, 9, 80) }, &[]);
    assert_eq!(driver.expect(Operation::Reset).source_cid, 7);
    driver.send(&Header { operation: 8, ..packet(Operation::Request, 9, 80) }, &[]);
    driver.expect(Operation::Reset);
    // Somebody else's.
    driver.send(&Header { source_cid: 4, ..packet(Operation::Request, 9, 80) }, &[]);
    assert!(driver.packets().is_empty());
    assert_eq!(counts(&driver).malformed, 1);
}

#[test]
fn the_guest_is_sent_no_more_than_it_has_room_for() {
    let mut driver = driver();
    let (mut host, _listener) = dialled(&mut driver);
    host.set_nonblocking(true).unwrap();
    let mut sent = 0;
    while let Ok(count) = host.write(&[7; 10_000]) {
        sent += count;
        driver.settle();
    }
    assert!(sent > 2 * ROOM);
    // All that is allowed, and one question, which is not repeated.
    let packets = driver.some_packets();
    let (last, content) = packets.split_last().unwrap();
    assert_eq!(last.0.operation, Operation::CreditRequest as u16);
    let bytes = |packets: &[(Header, Vec<u8>)]| -> usize {
        assert!(packets.iter().all(|(header, _)| header.operation == Operation::Data as u16));
        packets.iter().map(|(_, content)| content.len()).sum()
    };
    assert_eq!(bytes(content), ROOM);
    assert!(!driver.host_is_due(Duration::ZERO), "waits without spinning");
    let forwarded = |forwarded| Header { forwarded, ..packet(Operation::CreditUpdate, 9, 80) };
    driver.send(&forwarded(0), &[]);
    assert!(driver.packets().is_empty());

    driver.send(&forwarded(1000), &[]);
    let packets = driver.some_packets();
    let (last, content) = packets.split_last().unwrap();
    assert_eq!(last.0.operation, Operation::CreditRequest as u16);
    assert_eq!(bytes(content), 1000);
    // What makes no sense allows nothing.
    driver.send(&forwarded(u32::MAX), &[]);
    driver.send(&Header { room: 0, ..forwarded(65536) }, &[]);
    assert!(driver.packets().is_empty());
}

#[test]
fn a_program_that_does_not_read_holds_up_its_own_connection_only() {
    let mut driver = driver();
    let listener = driver.listener(80);
    let mut slow = driver.connect(&listener, 9, 80);
    let mut quick = driver.connect(&listener, 10, 80);
    // Until the socket and the buffer are full.
    let mut sent = 0_u32;
    let told = loop {
        driver.send(&data(9, 80, 4096), &[3; 4096]);
        sent += 4096;
        let packets = driver.packets();
        if let Some((header, _)) = packets.last() {
            assert_eq!(header.operation, Operation::CreditUpdate as u16);
        }
        driver.send(&packet(Operation::CreditRequest, 9, 80), &[]);
        let told = driver.expect(Operation::CreditUpdate);
        if sent - told.forwarded == told.room {
            break told;
        }
    };
    assert_eq!(told.room, 65536);
    assert!(!driver.host_is_due(Duration::ZERO), "waits without spinning");

    driver.send(&data(10, 80, 4), b"ping");
    let mut ping = [0; 4];
    quick.read_exact(&mut ping).unwrap();
    quick.write_all(&ping).unwrap();
    assert_eq!(driver.content(4), b"ping");

    let mut content = vec![0; sent as usize];
    let mut read = 0;
    while read < content.len() {
        read += slow.read(&mut content[read..]).unwrap();
        driver.settle();
    }
    assert!(content.iter().all(|&byte| byte == 3));
    // The guest hears that there is room again, without asking.
    let updates = driver.some_packets();
    assert!(updates.iter().all(|(header, _)| header.operation == Operation::CreditUpdate as u16));
    let told = updates.last().unwrap().0;
    assert!(sent - told.forwarded < 32 << 10, "{told:?}");
}

#[test]
fn a_guest_that_sends_more_than_it_may_is_reset() {
    let mut driver = driver();
    let (_host, _listener) = dialled(&mut driver);
    for _ in 0..1000 {
        driver.send(&data(9, 80, 4096), &[3; 4096]);
        let packets = driver.packets();
        if packets.iter().any(|(header, _)| header.operation == Operation::Reset as u16) {
            assert_eq!(counts(&driver).violations, 1);
            return;
        }
    }
    panic!("nothing stops it");
}

#[test]
fn connections_end_by_halves() {
    let mut driver = driver();
    let (mut host, _listener) = dialled(&mut driver);
    // The host's half.
    host.write_all(b"last words").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    let packets = driver.some_packets();
    let [(words, content), (shutdown, _)] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!((words.length, &content[..]), (10, &b"last words"[..]));
    assert_eq!(shutdown.operation, Operation::Shutdown as u16);
    assert_eq!(shutdown.flags, SHUTDOWN_SEND);
    // The guest's goes on.
    driver.send(&data(9, 80, 2), b"so");
    let mut so = [0; 2];
    host.read_exact(&mut so).unwrap();
    let shutdown = |flags| Header { flags, ..packet(Operation::Shutdown, 9, 80) };
    driver.send(&shutdown(SHUTDOWN_SEND), &[]);
    assert!(is_at_end(&mut host));
    // Nothing more may come from the guest, and what only the guest has to say is said.
    driver.send(&shutdown(SHUTDOWN_RECEIVE), &[]);
    let packets = driver.some_packets();
    let last = packets.last().unwrap().0;
    assert_eq!(last.operation, Operation::Reset as u16);
    assert_eq!(counts(&driver).open, 0);
}

#[test]
fn a_guest_that_receives_no_more_breaks_the_hosts_pipe_only() {
    let mut driver = driver();
    let (mut host, _listener) = dialled(&mut driver);
    let shutdown = Header { flags: SHUTDOWN_RECEIVE, ..packet(Operation::Shutdown, 9, 80) };
    driver.send(&shutdown, &[]);
    assert_eq!(host.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    driver.send(&data(9, 80, 2), b"so");
    let mut so = [0; 2];
    host.read_exact(&mut so).unwrap();
    assert_eq!(counts(&driver).open, 1);
}

#[test]
fn content_after_the_end_of_sending_is_a_violation() {
    let mut driver = driver();
    let (mut host, _listener) = dialled(&mut driver);
    let shutdown = Header { flags: SHUTDOWN_SEND, ..packet(Operation::Shutdown, 9, 80) };
    driver.send(&shutdown, &[]);
    driver.send(&data(9, 80, 2), b"so");
    driver.expect(Operation::Reset);
    assert!(is_at_end(&mut host));
}

#[test]
fn a_program_that_is_gone_shuts_down_both_ways() {
    let mut driver = driver();
    let (host, _listener) = dialled(&mut driver);
    drop(host);
    let shutdown = driver.expect(Operation::Shutdown);
    assert_eq!(shutdown.flags, SHUTDOWN_BOTH);
    // Nobody reads that, and it is no reason to reset.
    driver.send(&data(9, 80, 2), b"so");
    assert!(driver.packets().is_empty());
    driver.send(&packet(Operation::Reset, 9, 80), &[]);
    assert!(driver.packets().is_empty());
    assert_eq!(counts(&driver).open, 0);
}

#[test]
fn what_a_guest_sent_before_it_closed_arrives_however_late_it_is_read() {
    let mut driver = driver();
    let (mut host, listener) = dialled(&mut driver);
    let (mut sent, mut told) = (0_u32, 0);
    while sent - told < 65536 {
        driver.send(&data(9, 80, 4096), &[5; 4096]);
        sent += 4096;
        driver.send(&packet(Operation::CreditRequest, 9, 80), &[]);
        told = driver.some_packets().last().unwrap().0.forwarded;
    }
    let shutdown = Header { flags: SHUTDOWN_BOTH, ..packet(Operation::Shutdown, 9, 80) };
    driver.send(&shutdown, &[]);
    // The guest's part is over: its port is free.
    driver.expect(Operation::Reset);
    let _again = driver.connect(&listener, 9, 80);
    let mut content: Vec<u8> = Vec::new();
    let mut chunk = [0; 5000];
    loop {
        match host.read(&mut chunk).unwrap() {
            0 => break,
            count => content.extend(&chunk[..count]),
        }
        driver.settle();
    }
    assert_eq!(content, vec![5; sent as usize]);
    assert_eq!(counts(&driver).open, 1);
}

#[test]
fn who_keeps_others_waiting_is_closed_in_time() {
    let settings = Settings {
        handshake_timeout: SHORT,
        request_timeout: SHORT,
        close_timeout: SHORT,
        drain_timeout: SHORT,
        ..Settings::default()
    };
    let mut driver = Driver::new(settings, 64);
    // A program that says nothing.
    let mut silent = driver.host(b"CONN");
    while counts(&driver).timed_out == 0 {
        driver.wait();
    }
    assert!(is_at_end(&mut silent));
    assert!(driver.packets().is_empty());
    // A guest that does not answer.
    let mut host = driver.host(b"CONNECT 52\n");
    let request = driver.expect(Operation::Request);
    let reset = driver.expect(Operation::Reset);
    assert_eq!((reset.source_port, reset.destination_port), (request.source_port, 52));
    assert!(is_at_end(&mut host));
    // A guest that does not see that the program is gone.
    let (host, _listener) = dialled(&mut driver);
    drop(host);
    let packets = loop {
        let packets = driver.some_packets();
        if packets.iter().any(|(header, _)| header.operation == Operation::Reset as u16) {
            break packets;
        }
        assert_eq!(packets[0].0.operation, Operation::Shutdown as u16);
    };
    assert_eq!(packets.last().unwrap().0.destination_port, 9);
    let counts = counts(&driver);
    assert_eq!((counts.timed_out, counts.open), (3, 0));
}

#[test]
fn what_nobody_reads_of_a_guest_that_is_gone_is_dropped_in_time() {
    let settings = Settings { drain_timeout: SHORT, ..Settings::default() };
    let mut driver = Driver::new(settings, 64);
    let (_host, _listener) = dialled(&mut driver);
    let (mut sent, mut told) = (0_u32, 0);
    while sent - told < 65536 {
        driver.send(&data(9, 80, 4096), &[5; 4096]);
        sent += 4096;
        driver.send(&packet(Operation::CreditRequest, 9, 80), &[]);
        told = driver.some_packets().last().unwrap().0.forwarded;
    }
    driver.send(&packet(Operation::Reset, 9, 80), &[]);
    while counts(&driver).open > 0 {
        driver.wait();
    }
    assert_eq!(counts(&driver).timed_out, 1);
}

#[test]
fn there_are_as_many_connections_as_there_is_room_for() {
    let settings = Settings { max_connections: 2, max_handshakes: 1, ..Settings::default() };
    let mut driver = Driver::new(settings, 64);
    let listener = driver.listener(80);
    let first = driver.connect(&listener, 9, 80);
    let _second = driver.connect(&listener, 10, 80);
    driver.send(&packet(Operation::Request, 11, 80), &[]);
    assert_eq!(driver.expect(Operation::Reset).destination_port, 11);
    assert_eq!(counts(&driver).refused, 1);
    // A program of the host waits for its turn, without the device spinning.
    let _host = driver.host(b"CONNECT 52\n");
    driver.wait();
    assert!(driver.packets().is_empty());
    assert!(!driver.host_is_due(Duration::ZERO));
    drop(first);
    driver.expect(Operation::Shutdown);
    driver.send(&packet(Operation::Reset, 9, 80), &[]);
    driver.expect(Operation::Request);
}

#[test]
fn programs_that_say_nothing_do_not_keep_others_from_being_accepted_for_ever() {
    let settings = Settings { max_handshakes: 2, handshake_timeout: SHORT, ..Settings::default() };
    let mut driver = Driver::new(settings, 64);
    let silent = [(); 5].map(|()| driver.host(b""));
    let _host = driver.host(b"CONNECT 52\n");
    driver.expect(Operation::Request);
    drop(silent);
}

#[test]
fn a_second_request_on_the_same_ports_ends_the_connection() {
    let mut driver = driver();
    let (mut host, _listener) = dialled(&mut driver);
    driver.send(&packet(Operation::Request, 9, 80), &[]);
    driver.expect(Operation::Reset);
    assert!(is_at_end(&mut host));
    assert_eq!(counts(&driver).violations, 1);
}

#[test]
fn without_buffers_of_the_guest_nothing_spins_and_nothing_is_lost() {
    let mut driver = Driver::new(Settings::default(), 0);
    let mut host = driver.host(b"CONNECT 52\n");
    host.set_nonblocking(true).unwrap();
    driver.wait();
    assert!(!driver.host_is_due(Duration::ZERO));
    driver.offer_buffers(1);
    let request = driver.expect(Operation::Request);
    driver.send(&packet(Operation::Response, 52, request.source_port), &[]);
    let mut welcome = [0; 14];
    host.read_exact(&mut welcome).unwrap();
    // The only buffer is used again and again.
    let content: Vec<u8> = (0..60_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    host.write_all(&content).unwrap();
    assert_eq!(driver.content(content.len()), content);
}

/// The device stops where it would have to remember more answers than it wants to, and goes on.
#[test]
fn a_flood_of_packets_without_buffers_for_answers_is_held_back() {
    let mut driver = Driver::new(Settings::default(), 0);
    driver
        .memory
        .write_slice(&packet(Operation::Data, 9, 80).encode(), GuestAddress(PACKET))
        .unwrap();
    let mut taken = 0;
    for _ in 0..20 {
        for _ in 0..200 {
            driver.offer(TRANSMIT, 0, &[(PACKET, 44, 0)]);
        }
        driver.write(0x50, 1);
        driver.settle();
        let count = driver.take_used(TRANSMIT).len();
        taken += count;
        if count < 200 {
            break;
        }
    }
    assert_eq!(taken, 256);
    assert!(!driver.host_is_due(Duration::ZERO), "waits without spinning");
    driver.offer_buffers(16);
    let resets = driver.packets();
    assert_eq!(resets.len(), 400);
    assert_eq!(driver.take_used(TRANSMIT).len(), 400 - 256);
}

#[test]
fn a_turn_is_bounded_and_another_one_follows() {
    let mut driver = driver();
    let (_host, _listener) = dialled(&mut driver);
    driver.take_used(TRANSMIT);
    let update = packet(Operation::CreditUpdate, 9, 80);
    driver.memory.write_slice(&update.encode(), GuestAddress(PACKET)).unwrap();
    let packets = 2 * MAX_PACKETS + 10;
    for _ in 0..packets {
        driver.offer(TRANSMIT, 0, &[(PACKET, 44, 0)]);
    }
    driver.transport.handle_queue_event(TRANSMIT);
    for expected in [MAX_PACKETS, MAX_PACKETS, 10] {
        assert_eq!(driver.take_used(TRANSMIT).len(), expected);
        assert_eq!(driver.host_is_due(Duration::ZERO), expected == MAX_PACKETS);
        driver.transport.handle_host_event();
    }
}

#[test]
fn packets_may_be_cut_as_the_driver_likes() {
    let mut driver = driver();
    let (mut host, _listener) = dialled(&mut driver);
    let content: Vec<u8> = (0..200).collect();
    let whole = [&data(9, 80, 200).encode()[..], &content].concat();
    driver.memory.write_slice(&whole, GuestAddress(PACKET)).unwrap();
    let cuts: [&[u32]; 5] =
        [&[244], &[44, 200], &[20, 30, 194], &[44, 50, 50, 50, 50], &[44, 0, 1, 199]];
    for cut in cuts {
        let mut at = PACKET;
        let mut descriptors = Vec::new();
        for &length in cut {
            descriptors.push((at, length, NEXT));
            at += u64::from(length);
        }
        descriptors.last_mut().unwrap().2 = 0;
        driver.send_descriptors(&descriptors);
        let mut read = vec![0; 200];
        host.read_exact(&mut read).unwrap();
        assert_eq!(read, content, "{cut:?}");
    }
    // A buffer that is cut, with a part that the device may not write.
    let mut driver = Driver::new(Settings::default(), 0);
    let descriptors =
        [(PACKET, 40, WRITE | NEXT), (PACKET + 0x1000, 99, NEXT), (PACKET + 0x2000, 40, WRITE)];
    driver.offer(RECEIVE, 0, &descriptors);
    driver.write(0x50, 0);
    let _host = driver.host(b"CONNECT 52\n");
    driver.wait();
    assert_eq!(driver.take_used(RECEIVE), [(0, 44)]);
    let mut bytes = vec![0; 44];
    driver.memory.read_slice(&mut bytes[..40], GuestAddress(PACKET)).unwrap();
    driver.memory.read_slice(&mut bytes[40..], GuestAddress(PACKET + 0x2000)).unwrap();
    assert_eq!(parse(&bytes).0.operation, Operation::Request as u16);
}

#[test]
fn packets_that_are_none_are_counted_and_buffers_without_room_given_back() {
    let mut driver = driver();
    let (_host, _listener) = dialled(&mut driver);
    driver.send_descriptors(&[(PACKET, 43, 0)]);
    driver.send_descriptors(&[(PACKET, 44, WRITE)]);
    driver.send_descriptors(&[(u64::MAX - 10, 44, 0)]);
    assert_eq!(counts(&driver).malformed, 3);
    assert!(driver.packets().is_empty());
    // Less content than is said; more than any packet has.
    for length in [100, u32::MAX] {
        let header = Header { length, ..data(9, 80, 0) };
        driver.send(&header, &[1; 99]);
        driver.expect(Operation::Reset);
    }

    let mut driver = Driver::new(Settings::default(), 0);
    for (head, descriptor) in
        [(0, (PACKET, 44, WRITE)), (1, (PACKET, 4096, 0)), (2, (u64::MAX - 10, 4096, WRITE))]
    {
        driver.offer(RECEIVE, head, &[descriptor]);
    }
    let _host = driver.host(b"CONNECT 52\n");
    driver.wait();
    assert_eq!(driver.take_used(RECEIVE), [(0, 0), (1, 0), (2, 0)]);
    assert_eq!(counts(&driver).malformed, 3);
    driver.offer_buffers(1);
    driver.expect(Operation::Request);
}

#[test]
fn programs_that_come_before_the_driver_wait_for_it() {
    let mut driver = Driver::idle(Settings::default());
    let mut host = driver.host(b"CONNECT 52\n");
    driver.settle();
    assert!(!driver.host_is_due(Duration::ZERO));
    driver.start();
    driver.offer_buffers(4);
    let request = driver.expect(Operation::Request);
    driver.send(&packet(Operation::Response, 52, request.source_port), &[]);
    assert_eq!(line(&mut host), format!("OK {}\n", request.source_port));
}

#[test]
fn a_reset_closes_everything_and_the_device_works_again() {
    let mut driver = driver();
    let (mut host, _) = accepted(&mut driver, b"CONNECT 52\n");
    let mut requested = driver.host(b"CONNECT 53\n");
    driver.expect(Operation::Request);
    driver.write(STATUS, 0);
    assert!(is_at_end(&mut host) && is_at_end(&mut requested));
    assert_eq!(counts(&driver).open, 0);
    driver.settle();
    driver.start();
    driver.offer_buffers(8);
    let (_host, port) = accepted(&mut driver, b"CONNECT 52\n");
    assert_eq!(port, (1 << 30) + 2);
}

#[test]
fn broken_rings_close_everything_until_a_reset() {
    for queue in [RECEIVE, TRANSMIT] {
        let mut driver = Driver::new(Settings::default(), 0);
        driver.offer_buffers(2);
        let (mut host, port) = accepted(&mut driver, b"CONNECT 52\n");
        driver.settle();
        driver.take_used(RECEIVE);
        // Two were used, and one of them offered again; here comes one that there is not.
        for _ in 0..3 {
            driver.offer(queue, 3, &[(PACKET, 4096, WRITE)]);
        }
        let size = u64::from(crate::vsock_driver::SIZES[queue]);
        let ring = crate::vsock_driver::available(queue) + 4;
        for slot in 0..size {
            driver.memory.write_obj(u16::MAX, GuestAddress(ring + 2 * slot)).unwrap();
        }
        host.write_all(b"x").unwrap();
        driver.settle();
        driver.transport.handle_queue_event(queue);
        assert_eq!(driver.read(STATUS), DRIVER_OK | NEEDS_RESET, "queue {queue} port {port}");
        assert!(is_at_end(&mut host));
        assert!(!driver.host_is_due(Duration::ZERO), "waits without spinning");
        driver.start();
        driver.offer_buffers(2);
        accepted(&mut driver, b"CONNECT 52\n");
    }
}

#[test]
fn a_driver_that_leaves_out_a_queue_is_not_started() {
    let mut driver = Driver::idle(Settings::default());
    for status in [1, 3] {
        driver.write(STATUS, status);
    }
    driver.write(0x24, 1);
    driver.write(0x20, 1);
    driver.write(STATUS, FEATURES_OK);
    driver.write(STATUS, DRIVER_OK);
    assert_eq!(driver.read(STATUS), FEATURES_OK | NEEDS_RESET);
}

#[test]
fn a_guest_that_was_restored_hears_that_its_connections_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v");
    let listener = UnixListener::bind(&path).unwrap();
    let mut device = Vsock::new(CID, listener, Box::new(SocketPrefix::new(&path))).unwrap();
    device.reset_transport();
    // What a transport would do with the queues of a driver.
    let mut driver = driver();
    driver.offer_event_buffer();
    driver.settle();
    let queues = crate::vsock_hostile::queues();
    device.activate(0, queues).unwrap();
    device.reset_transport();
    let progress = device.process_host_event(&driver.memory).unwrap();
    assert!(progress.interrupt);
    assert_eq!(driver.take_used(EVENT), [(0, 4)]);
    let event: u32 = driver.memory.read_obj(GuestAddress(0x8000)).unwrap();
    assert_eq!(event, 0);
}
