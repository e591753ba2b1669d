//! Receivers that get everything and look for what is theirs, in user space or by a filter in the kernel,
//! against those that a switch hands only what is theirs (figure 10).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vswitch::bridge::{BridgeSwitch, Role, links, netlink::Route};
use vswitch::frame::Header;
use vswitch::{Port, Switch, sys};

use crate::rig::{ETHERTYPE, Guest, PATIENCE, TapGuest, content, frame, ip, own, vid};

/// Requests that are underway at once.
const WINDOW: u32 = 64;
const ETH_P_ALL: u16 = 3;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Filter {
    Promiscuous,
    Socket,
    Switch,
}

/// Answers what is for identifier `number`, until `end`.
fn serve(socket: OwnedFd, number: u16, end: &AtomicBool) {
    let mut guest = TapGuest(socket);
    let (asked, own) = (vid(number), own(usize::from(number)));
    while !end.load(Ordering::Acquire) {
        let Some(request) = guest.next(Duration::from_millis(20)) else { continue };
        let Some(header) = Header::of(&request) else { continue };
        if header.destination == asked.bytes() && header.kind == ETHERTYPE {
            let back = Header { destination: header.source, source: own.bytes(), ..header };
            guest.send(&back.frame(&request[14..]));
        }
    }
}

fn run(
    switch: &BridgeSwitch,
    ports: &[Port],
    client: &mut TapGuest,
    requests: u32,
    filter: Filter,
) -> f64 {
    let mut route = Route::open().unwrap();
    let end = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for (port, number) in ports.iter().zip(1..) {
        let index = links::named(&mut route, &format!("in{number}")).unwrap().unwrap().index;
        let socket = sys::packet_socket(index, ETH_P_ALL, false).unwrap();
        sys::set_receive_buffer(socket.as_fd(), 8 << 20).unwrap();
        sys::promiscuous(socket.as_fd(), index).unwrap();
        match filter {
            Filter::Promiscuous => {}
            Filter::Socket => sys::receive_only(socket.as_fd(), vid(number).bytes()).unwrap(),
            Filter::Switch => switch.add(vid(number), *port).unwrap(),
        }
        let end = Arc::clone(&end);
        threads.push(thread::spawn(move || serve(socket, number, &end)));
    }
    switch.flood_unknown(filter != Filter::Switch).unwrap();
    let count = u16::try_from(ports.len()).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    let (mut sent, mut answered) = (0, 0);
    let start = Instant::now();
    while answered < requests {
        while sent < requests && sent - answered < WINDOW {
            client.send(&frame(own(0), vid(random.u16(1..=count)), sent));
            sent += 1;
        }
        let answer = client.receive(PATIENCE).expect("an answer");
        assert!(content(&answer) < sent);
        answered += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    end.store(true, Ordering::Release);
    for thread in threads {
        thread.join().unwrap();
    }
    if filter == Filter::Switch {
        for number in 1..=count {
            switch.delete(vid(number)).unwrap();
        }
    }
    seconds
}

/// Within a namespace: the seconds of each way, the least of three turns.
pub fn measure(receivers: u16, requests: u32) -> Value {
    let mut route = Route::open().unwrap();
    let bridge = links::create_bridge(&mut route, "sw0").unwrap();
    links::up(&mut route, bridge).unwrap();
    let switch = BridgeSwitch::open("sw0").unwrap();
    let (tap, name) = sys::tap("client%d").unwrap();
    let port = switch.attach(&name, Role::Guest(None)).unwrap();
    switch.add(own(0), port).unwrap();
    let mut client = TapGuest(tap);
    let mut ports = Vec::new();
    for number in 1..=receivers {
        ip(&format!("link add rx{number} type veth peer name in{number}"));
        ip(&format!("link set in{number} up"));
        let port = switch.attach(&format!("rx{number}"), Role::Guest(None)).unwrap();
        switch.add(own(usize::from(number)), port).unwrap();
        ports.push(port);
    }
    let ways = [Filter::Promiscuous, Filter::Socket, Filter::Switch];
    let mut least = [f64::INFINITY; 3];
    for _ in 0..3 {
        for (least, filter) in least.iter_mut().zip(ways) {
            *least = least.min(run(&switch, &ports, &mut client, requests, filter));
        }
    }
    let [promiscuous, socket, by_switch] = least;
    println!("  promiscuous {promiscuous:.3}, socket filter {socket:.3}, switch {by_switch:.3}");
    json!({
        "receivers": receivers,
        "requests": requests,
        "promiscuous_s": promiscuous,
        "socket_filter_s": socket,
        "switch_s": by_switch,
    })
}
