//! Open vSwitch, by `OpenFlow` 1.3.
//!
//! Table 0 says who may send: what a port sends by an identifier that is there goes on to table 1, the rest is
//! dropped and counted. Table 1 says where frames go. The bridge's own ports are added by whoever runs it
//! (`ovs-vsctl`); its flows are all the switch's.
//!
//! A hold is the queue of the destination's TAP, as on a [bridge](crate::bridge). A barrier is answered before
//! the datapath's cache is: frames go to the old home for up to some milliseconds more, so a mark waits for
//! [`UNDERWAY`] first, which is measured, and no promise of Open vSwitch.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rovs_openflow::{
    ActionList, Flow, FlowCommand, FlowStatsRequest, InstructionList, Match, Message, MessageType,
    OfError, VConn,
};
use rovs_transport::Address;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::bridge::{links, netlink::Route};
use crate::controller::Controller;
use crate::mark::ETHERTYPE;
use crate::plane::{Held, Plane, PlaneError, Seen, Step};
use crate::probe::Probe;
use crate::switch::{Limit, Port, Statistics};

/// How long frames are underway by the flows of before.
pub const UNDERWAY: Duration = Duration::from_millis(20);
/// How long Open vSwitch is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// By what flows are known.
mod cookie {
    pub const SPOOFED: u64 = 0x7673_0001;
    pub const UNKNOWN: u64 = 0x7673_0002;
    pub const OTHER: u64 = 0x7673_0000;
}

/// The priorities of flows.
mod priority {
    pub const LEAST: u16 = 0;
    pub const FLOOD: u16 = 10;
    pub const UPLINK: u16 = 50;
    pub const VID: u16 = 100;
    pub const MUTED: u16 = 200;
    pub const MARK: u16 = 300;
}

/// What is behind a port.
#[derive(Debug)]
pub enum Role {
    /// A guest, with the descriptor of its TAP, or a copy of it, if what is held for it can be taken back.
    Guest(Option<OwnedFd>),
    /// A network: it may send by every address.
    Uplink,
}

#[derive(Debug)]
struct Attached {
    index: u32,
    role: Role,
    probe: Arc<Probe>,
    queue: u32,
    dropped: u64,
}

/// A bridge of Open vSwitch, as its controller sees it.
pub struct OvsPlane {
    runtime: Runtime,
    connection: VConn,
    number: u32,
    route: Route,
    ports: BTreeMap<u32, Attached>,
}

impl fmt::Debug for OvsPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OvsPlane").field("ports", &self.ports).finish_non_exhaustive()
    }
}

/// A switch that is a bridge of Open vSwitch.
pub type OvsSwitch = Controller<OvsPlane>;

impl OvsSwitch {
    /// The bridge whose management socket (`BRIDGE.mgmt`) is at `socket`. All its flows are replaced.
    ///
    /// # Errors
    /// Nobody is there, or refuses.
    pub fn open(socket: &Path) -> Result<Self, PlaneError> {
        Self::new(OvsPlane::open(socket)?)
    }

    /// Takes the port that has `OpenFlow`'s number `number` and the interface `name` in this thread's network
    /// namespace, which is up.
    ///
    /// # Errors
    /// There is no such interface, or somebody refuses.
    pub fn attach(&self, name: &str, number: u32, role: Role) -> Result<Port, PlaneError> {
        self.with_plane(|plane| plane.attach(name, number, role))
    }
}

/// A flow of table `table`.
fn flow(table: u8, priority: u16, matching: Match) -> Flow {
    Flow::add().table(table).priority(priority).cookie(cookie::OTHER).match_fields(matching)
}

/// What takes exactly this flow away.
fn without(mut flow: Flow) -> Flow {
    flow.command = FlowCommand::DeleteStrict;
    flow.instructions = InstructionList::new();
    flow.actions = ActionList::new();
    flow
}

fn on(flow: Flow) -> Flow {
    flow.instructions(InstructionList::new().goto_table(1))
}

/// What `vid` sends at `port` goes on.
fn sends(vid: [u8; 6], port: u32) -> Flow {
    on(flow(0, priority::VID, Match::new().in_port(port).eth_src(vid)))
}

/// What is for `vid`.
fn receives(vid: [u8; 6]) -> Flow {
    flow(1, priority::VID, Match::new().eth_dst(vid))
}

fn remote(what: &str) -> impl FnOnce(rovs_openflow::Error) -> PlaneError {
    move |error| PlaneError::Remote { what: what.into(), why: error.to_string() }
}

impl OvsPlane {
    fn open(socket: &Path) -> Result<Self, PlaneError> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(PlaneError::system("start a runtime"))?;
        let what = format!("connect to Open vSwitch at {}", socket.display());
        let address = Address::Unix(socket.to_owned());
        let connected =
            runtime.block_on(async { timeout(PATIENCE, VConn::connect(&address)).await });
        let connection = match connected {
            Ok(connection) => connection.map_err(remote(&what))?,
            Err(_) => return Err(PlaneError::Remote { what, why: "no answer in time".into() }),
        };
        let route = Route::open().map_err(PlaneError::kernel("ask the kernel about networks"))?;
        let number = 0x1000_0000; // apart from those that the connection counts by itself
        let mut plane = Self { runtime, connection, number, route, ports: BTreeMap::new() };
        let mut groups = Match::new();
        groups.eth_dst = Some([1, 0, 0, 0, 0, 0]);
        groups.eth_dst_mask = Some([1, 0, 0, 0, 0, 0]);
        let flood = ActionList::new().flood();
        plane.send(
            "set its flows up",
            &[
                Flow::delete(),
                flow(0, priority::MARK, Match::new().eth_type(ETHERTYPE)),
                flow(0, priority::LEAST, Match::new()).cookie(cookie::SPOOFED),
                flow(1, priority::VID, groups).actions(flood),
                flow(1, priority::LEAST, Match::new()).cookie(cookie::UNKNOWN),
            ],
        )?;
        Ok(plane)
    }

    fn attach(&mut self, name: &str, number: u32, role: Role) -> Result<Port, PlaneError> {
        let what = format!("find the interface {name}");
        let link = links::named(&mut self.route, name).map_err(PlaneError::kernel(what.clone()))?;
        let source = std::io::ErrorKind::NotFound.into();
        let link = link.ok_or(PlaneError::System { what, source })?;
        let mut queue = link.queue;
        match role {
            Role::Guest(_) => {
                queue = Limit::default().frames;
                links::set_queue(&mut self.route, link.index, queue)
                    .map_err(PlaneError::kernel(format!("set the queue of {name}")))?;
            }
            Role::Uplink => {
                let uplink = on(flow(0, priority::UPLINK, Match::new().in_port(number)));
                self.send("let a network in", &[uplink])?;
            }
        }
        let probe = Probe::open(link.index, Some(UNDERWAY))?;
        let attached = Attached { index: link.index, role, probe, queue, dropped: link.dropped };
        self.ports.insert(number, attached);
        Ok(Port::Local(number))
    }

    /// Sends `flows`, and waits until all are in force, or one is refused.
    fn send(&mut self, what: &str, flows: &[Flow]) -> Result<(), PlaneError> {
        let Self { runtime, connection, number, .. } = self;
        let version = connection.version();
        let mut next = || {
            *number = number.wrapping_add(1);
            *number
        };
        let mut messages: Vec<_> =
            flows.iter().map(|flow| flow.to_message(version, next())).collect();
        let first = messages.first().map_or(0, |message| message.header.xid);
        let barrier = next();
        messages.push(Message::new(
            version,
            MessageType::BarrierRequest,
            barrier,
            bytes_of_nothing(),
        ));
        let exchange = async {
            for message in &messages {
                connection.send_message(message).await?;
            }
            let mut refused = None;
            loop {
                let Message { mut header, body } = connection.recv_message().await?;
                match header.msg_type {
                    MessageType::BarrierReply if header.xid == barrier => return Ok(refused),
                    MessageType::Error if header.xid.wrapping_sub(first) < barrier - first => {
                        refused = Some(OfError::parse(&body)?);
                    }
                    MessageType::EchoRequest => {
                        header.msg_type = MessageType::EchoReply;
                        connection.send_message(&Message { header, body }).await?;
                    }
                    // What the switch tells unasked, or of a request that was given up.
                    _ => {}
                }
            }
        };
        let why = match runtime.block_on(async { timeout(PATIENCE, exchange).await }) {
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(error))) => error.to_string(),
            Ok(Err(error)) => return Err(remote(what)(error)),
            Err(_) => "no answer in time".into(),
        };
        Err(PlaneError::Remote { what: format!("have Open vSwitch {what}"), why })
    }

    fn local(&self, port: Port) -> Result<u32, PlaneError> {
        match port {
            Port::Local(number) if self.ports.contains_key(&number) => Ok(number),
            Port::Local(_) => Err(PlaneError::NoPort(port)),
            Port::Remote(_) => Err(PlaneError::Unsupported {
                plane: "bridge of Open vSwitch",
                what: format!("reach {port}: give it a port with a tunnel"),
            }),
        }
    }

    /// The flows of an identifier at `to`.
    fn there(&self, vid: [u8; 6], to: Port) -> Result<[Flow; 2], PlaneError> {
        let number = self.local(to)?;
        let output = ActionList::new().output(number);
        Ok([receives(vid).actions(output), sends(vid, number)])
    }

    fn take_back(&self, from: Port, to: Port, most: u32) -> Result<(), PlaneError> {
        let (from, to) = (self.local(from)?, self.local(to)?);
        match (self.ports.get(&from), self.ports.get(&to)) {
            (Some(Attached { role: Role::Guest(Some(tap)), .. }), Some(to)) => {
                to.probe.take_back(tap, most)
            }
            _ => Ok(()),
        }
    }

    /// How many frames the flow of table `table` with `cookie` has dropped.
    fn count(&mut self, table: u8, cookie: u64) -> Result<u64, PlaneError> {
        let request = FlowStatsRequest::new().table(table).cookie(cookie, u64::MAX);
        let Self { runtime, connection, .. } = self;
        let dump = async { timeout(PATIENCE, connection.dump_flows_filtered(request)).await };
        let late = |_| PlaneError::Remote { what: "count".into(), why: "no answer in time".into() };
        let flows = runtime.block_on(dump).map_err(late)?.map_err(remote("count"))?;
        Ok(flows.iter().map(|flow| flow.packet_count).sum())
    }
}

/// The body of a message without one, in whatever type the library has for it.
fn bytes_of_nothing<T: Default>() -> T {
    T::default()
}

impl Plane for OvsPlane {
    fn check(&mut self, port: Port) -> Result<(), PlaneError> {
        self.local(port).map(|_| ())
    }

    fn point(&mut self, Step { vid, from, to }: Step) -> Result<(), PlaneError> {
        let vid = vid.bytes();
        let mut flows = Vec::new();
        match to {
            Some(to) => flows.extend(self.there(vid, to)?),
            None => flows.push(without(receives(vid))),
        }
        let former = from.filter(|_| from != to).and_then(|from| self.local(from).ok());
        flows.extend(former.map(|former| without(sends(vid, former))));
        let done = self.send("point an identifier", &flows);
        if done.is_err() {
            // Whatever was accepted of it, as it was.
            let mut back = vec![without(receives(vid))];
            if let Some(to) = to.filter(|_| to != from).and_then(|to| self.local(to).ok()) {
                back.push(without(sends(vid, to)));
            }
            if let Some(from) = from {
                back.extend(self.there(vid, from)?);
            }
            let _ = self.send("point an identifier back", &back);
        }
        done
    }

    fn hold(&mut self, held: &Held) -> Result<(), PlaneError> {
        let number = self.local(held.to)?;
        if let Some(port) = self.ports.get_mut(&number)
            && port.queue != held.limit.frames
        {
            links::set_queue(&mut self.route, port.index, held.limit.frames)
                .map_err(PlaneError::kernel("set the queue of the destination"))?;
            port.queue = held.limit.frames;
        }
        // The old home may go on sending until it stops.
        let flows = self.there(held.vid.bytes(), held.to)?;
        self.send("point an identifier", &flows)
    }

    fn release(&mut self, held: &Held, commit: bool) -> Result<(), PlaneError> {
        let Held { vid, home, to, limit } = *held;
        if home == to {
            return Ok(());
        }
        if commit {
            return self.point(Step { vid, from: Some(home), to: Some(to) });
        }
        self.take_back(to, home, limit.frames.saturating_mul(2))?;
        self.point(Step { vid, from: Some(to), to: Some(home) })?;
        let number = self.local(home)?;
        if let Some(port) = self.ports.get(&number) {
            port.probe.settle();
        }
        self.take_back(to, home, limit.frames)
    }

    fn mute(&mut self, port: Port, muted: bool) -> Result<(), PlaneError> {
        let number = self.local(port)?;
        let mute = flow(0, priority::MUTED, Match::new().in_port(number));
        self.send("mute or unmute a port", &[if muted { mute } else { without(mute) }])
    }

    fn mark(&mut self, port: Port, nonce: u64) -> Result<Seen, PlaneError> {
        let number = self.local(port)?;
        let attached = self.ports.get(&number).ok_or(PlaneError::NoPort(port))?;
        Ok(attached.probe.mark(nonce))
    }

    fn flood_unknown(&mut self, on: bool) -> Result<(), PlaneError> {
        let all = flow(1, priority::FLOOD, Match::new()).actions(ActionList::new().flood());
        self.send("flood, or not", &[if on { all } else { without(all) }])
    }

    fn statistics(&mut self) -> Result<Statistics, PlaneError> {
        let (mut overflow, mut forged) = (0, 0);
        for port in self.ports.values() {
            let link = links::numbered(&mut self.route, port.index)
                .map_err(PlaneError::kernel("ask for the counters of ports"))?;
            if matches!(port.role, Role::Guest(_)) {
                overflow += link.unwrap_or_default().dropped.saturating_sub(port.dropped);
            }
            forged += port.probe.forged();
        }
        Ok(Statistics {
            overflow: Some(overflow),
            unknown: Some(self.count(1, cookie::UNKNOWN)?),
            spoofed: Some(self.count(0, cookie::SPOOFED)?),
            forged: Some(forged),
            ..Statistics::default()
        })
    }
}
