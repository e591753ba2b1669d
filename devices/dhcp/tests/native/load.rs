//! Many clients at once, which ask until each has an address.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dhcp::mac::Mac;
use dhcp::serve::packet::PacketSocket;
use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a client waits for an answer before it begins again.
const RETRY: Duration = Duration::from_millis(300);
const CLIENT_PORT: u16 = 68;

/// The client with this number.
pub fn client(number: usize) -> Mac {
    let [.., a, b, c] = number.to_be_bytes();
    Mac::new([2, 0x88, 0, a, b, c]).unwrap()
}

/// Clients that ask.
#[derive(Clone)]
pub struct Load {
    pub clients: usize,
    pub in_flight: usize,
    pub patience: Duration,
    /// How many are done.
    pub done: Arc<AtomicUsize>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    pub took: Duration,
    /// From each client's first word to its lease, in order.
    pub each: Vec<Duration>,
    pub leases: BTreeMap<Mac, Ipv4Addr>,
    pub retries: usize,
    /// The longest time in which nobody got a lease.
    pub gap: Duration,
}

struct Client {
    number: usize,
    began: Instant,
    spoke: Instant,
}

impl Load {
    pub fn new(clients: usize) -> Self {
        let patience = Duration::from_secs(60);
        Self { clients, in_flight: 64, patience, done: Arc::default() }
    }

    /// Asks at `interface` until all have an address, or patience ends.
    pub fn run(&self, interface: &str) -> Outcome {
        let socket = PacketSocket::open(interface, CLIENT_PORT).unwrap();
        let start = Instant::now();
        let mut outcome = Outcome::default();
        let (mut flying, mut next, mut last) = (HashMap::new(), 0, start);
        let mut buffer = vec![0; 2048];
        while outcome.leases.len() < self.clients && start.elapsed() < self.patience {
            while flying.len() < self.in_flight && next < self.clients {
                let now = Instant::now();
                flying.insert(client(next), Client { number: next, began: now, spoke: now });
                say(&socket, next, None);
                next += 1;
            }
            let mut polled = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)];
            let _ = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 }));
            while let Some(frame) = socket.receive(&mut buffer).unwrap() {
                let Some(answer) = read(frame) else { continue };
                let Some(mac) = answer.chaddr().first_chunk().and_then(|mac| Mac::new(*mac)) else {
                    continue;
                };
                let Some(client) = flying.get_mut(&mac) else { continue };
                match answer.opts().msg_type() {
                    Some(MessageType::Offer) => {
                        client.spoke = Instant::now();
                        say(&socket, client.number, Some(&answer));
                    }
                    Some(MessageType::Ack) => {
                        let now = Instant::now();
                        outcome.each.push(now - client.began);
                        outcome.gap = outcome.gap.max(now - last);
                        last = now;
                        outcome.leases.insert(mac, answer.yiaddr());
                        self.done.fetch_add(1, Ordering::Relaxed);
                        flying.remove(&mac);
                    }
                    _ => {
                        client.spoke = Instant::now();
                        say(&socket, client.number, None);
                    }
                }
            }
            for client in flying.values_mut().filter(|client| client.spoke.elapsed() > RETRY) {
                client.spoke = Instant::now();
                outcome.retries += 1;
                say(&socket, client.number, None);
            }
        }
        outcome.took = start.elapsed();
        outcome.each.sort();
        outcome
    }
}

/// Looks for a server, or asks for what was offered.
fn say(socket: &PacketSocket, number: usize, offer: Option<&Message>) {
    let mac = client(number);
    let mut message = Message::default();
    message.set_chaddr(&mac.octets()).set_xid(u32::try_from(number).unwrap());
    let kind = if offer.is_some() { MessageType::Request } else { MessageType::Discover };
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    if let Some(offer) = offer {
        message.opts_mut().insert(DhcpOption::RequestedIpAddress(offer.yiaddr()));
        if let Some(server) = offer.opts().get(OptionCode::ServerIdentifier) {
            message.opts_mut().insert(server.clone());
        }
    }
    let builder =
        PacketBuilder::ethernet2(mac.octets(), [255; 6]).ipv4([0; 4], [255; 4], 64).udp(68, 67);
    let mut frame = Vec::new();
    builder.write(&mut frame, &message.to_vec().unwrap()).unwrap();
    let _ = socket.send(&frame); // who is not heard asks again
}

fn read(frame: &[u8]) -> Option<Message> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(TransportSlice::Udp(udp)) = packet.transport else { return None };
    Message::decode(&mut Decoder::new(udp.payload())).ok()
}
