//! Three hosts, each a network namespace with a bridge, joined by VXLAN.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use vswitch::bridge::{BridgeSwitch, Role, links, netlink::Route};
use vswitch::{Port, Switch, sys};

use crate::rig::{Guest, TapGuest, content, frame, in_namespace, ip, own, vid};

const HOSTS: usize = 3;
const MOVES: u32 = 30;

/// A host: a switch with one guest.
struct Host {
    switch: BridgeSwitch,
    guest: Port,
    tap: OwnedFd,
}

fn address(host: usize) -> IpAddr {
    format!("10.77.0.{}", host + 1).parse().unwrap()
}

/// In a namespace of its own: tells who it is, waits for its wire, and makes itself a host.
fn host(number: usize, tell: &Sender<u32>, wired: &Receiver<()>) -> Host {
    let thread = u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
    tell.send(thread).unwrap();
    wired.recv().unwrap();
    ip(&format!("addr add {}/24 dev wire{number}", address(number)));
    ip(&format!("link set wire{number} up"));
    let mut route = Route::open().unwrap();
    let bridge = links::create_bridge(&mut route, "sw0").unwrap();
    links::up(&mut route, bridge).unwrap();
    links::create_vxlan(&mut route, "vx0", 77, address(number), 4789).unwrap();
    let switch = BridgeSwitch::open("sw0").unwrap();
    switch.attach("vx0", Role::Tunnel).unwrap();
    for peer in (0..HOSTS).filter(|peer| *peer != number) {
        switch.add_peer(address(peer)).unwrap();
    }
    let (tap, name) = sys::tap("guest%d").unwrap();
    let guest = switch.attach(&name, Role::Guest(None)).unwrap();
    Host { switch, guest, tap }
}

fn hosts() -> Vec<Host> {
    ip("link add hub type bridge");
    ip("link set hub up");
    let mut threads = Vec::new();
    for number in 0..HOSTS {
        let (tell, told) = channel();
        let (wire, wired) = channel();
        let thread = thread::spawn(move || in_namespace(move || host(number, &tell, &wired)));
        let pid = told.recv().unwrap();
        ip(&format!("link add hub{number} type veth peer name wire{number} netns {pid}"));
        ip(&format!("link set hub{number} master hub up"));
        wire.send(()).unwrap();
        threads.push(thread);
    }
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn moves_between_hosts_lose_nothing() {
    in_namespace(|| {
        let hosts = hosts();
        let [client, first, second] = &hosts[..] else { panic!("three hosts") };
        client.switch.add(own(0), client.guest).unwrap();
        for server in [first, second] {
            server.switch.add(vid(1), server.guest).unwrap();
            server.switch.add(own(0), Port::Remote(address(0))).unwrap();
        }
        client.switch.add(vid(1), Port::Remote(address(1))).unwrap();

        let end = Arc::new(AtomicBool::new(false));
        let takers: Vec<_> = [first, second]
            .into_iter()
            .map(|server| {
                let mut guest = TapGuest(server.tap.try_clone().unwrap());
                let end = Arc::clone(&end);
                thread::spawn(move || {
                    let mut contents = Vec::new();
                    loop {
                        let ending = end.load(Ordering::Acquire);
                        match guest.receive(Duration::from_millis(100)) {
                            Some(frame) => contents.push(content(&frame)),
                            None if ending => return contents,
                            None => {}
                        }
                    }
                })
            })
            .collect();
        let mut sender = TapGuest(client.tap.try_clone().unwrap());
        let start = Instant::now();
        let mut sent = 0;
        for turn in 0..MOVES {
            for _ in 0..100 {
                sender.send(&frame(own(0), vid(1), sent));
                sent += 1;
                while start.elapsed() < Duration::from_micros(100) * sent {
                    thread::sleep(Duration::from_micros(50));
                }
            }
            let to = if turn % 2 == 0 { 2 } else { 1 };
            client.switch.update(vid(1), Port::Remote(address(to))).unwrap();
        }
        end.store(true, Ordering::Release);
        let received: Vec<_> = takers.into_iter().map(|taker| taker.join().unwrap()).collect();
        assert!(received.iter().all(|contents| !contents.is_empty() && contents.is_sorted()));
        let count: usize = received.iter().map(Vec::len).sum();
        let all: HashSet<_> = received.into_iter().flatten().collect();
        assert_eq!((count, all.len()), (all.len(), usize::try_from(sent).unwrap()));

        // Back, home and away again: nothing is left in the tunnel that was.
        client.switch.update(vid(1), client.guest).unwrap();
        assert_eq!(client.switch.delete(vid(1)).unwrap(), client.guest);
        sender.send(&frame(own(0), vid(1), sent));
        let until = Instant::now() + crate::rig::PATIENCE;
        while client.switch.statistics().unwrap().unknown != Some(1) {
            assert!(Instant::now() < until, "the frame is unknown");
            thread::sleep(Duration::from_millis(1));
        }
        // Answers come back.
        TapGuest(first.tap.try_clone().unwrap()).send(&frame(vid(1), own(0), 9));
        let answer = sender.receive(crate::rig::PATIENCE).unwrap();
        assert_eq!(content(&answer), 9);
    });
}
