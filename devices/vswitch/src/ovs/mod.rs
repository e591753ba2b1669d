//! Open vSwitch, by `OpenFlow` 1.3.
//!
//! A hold is the queue of the destination's TAP, as on a [bridge](crate::bridge). A barrier is answered before
//! the datapath's cache is: frames go to the old home for up to some milliseconds more, so a mark waits for
//! [`UNDERWAY`] first, which is measured, and no promise of Open vSwitch.
//!
//! Its daemon may be killed and started again at any time: it gets all flows again with the next change,
//! or when the switch [looks](OvsSwitch::look) for it.

mod connection;
pub mod database;
mod flows;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use endpoint::vid::Vid;
use rovs_openflow::Flow;

use self::connection::Connection;
use self::flows::{cookie, without};
use crate::bridge::{announce, links, netlink::Route};
use crate::controller::Controller;
use crate::plane::{Held, Plane, PlaneError, Seen, Step};
use crate::probe::Probe;
use crate::switch::{Limit, Port, Statistics};

/// How long frames are underway by the flows of before.
pub const UNDERWAY: Duration = Duration::from_millis(20);

/// What becomes of frames that are not an identifier's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// They are dropped and counted, but for those to groups: the bridge has no flows but the switch's.
    Dropped,
    /// They go where the bridge leads them by itself (`NORMAL`), as do those of ports that are not the switch's.
    /// Flows of others stay; those of the switch come before them.
    Bridge,
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
    /// By which address the guest may send besides its identifiers.
    own: Option<[u8; 6]>,
    probe: Arc<Probe>,
    queue: u32,
    dropped: u64,
}

/// A bridge of Open vSwitch, as its controller sees it.
#[derive(Debug)]
pub struct OvsPlane {
    connection: Connection,
    rest: Rest,
    route: Route,
    ports: BTreeMap<u32, Attached>,
    /// The ports of tunnels, by the host at their other end.
    tunnels: BTreeMap<IpAddr, u32>,
}

/// A switch that is a bridge of Open vSwitch.
pub type OvsSwitch = Controller<OvsPlane>;

impl OvsSwitch {
    /// The bridge whose management socket (`BRIDGE.mgmt`) is at `socket`. All its flows are replaced, or, if
    /// others may have some ([`Rest::Bridge`]), those of a switch.
    ///
    /// # Errors
    /// Nobody is there, or refuses.
    pub fn open(socket: &Path, rest: Rest) -> Result<Self, PlaneError> {
        let connection = Connection::open(socket, rest)?;
        let route = Route::open().map_err(PlaneError::kernel("ask the kernel about networks"))?;
        let (ports, tunnels) = (BTreeMap::new(), BTreeMap::new());
        Self::new(OvsPlane { connection, rest, route, ports, tunnels })
    }

    /// Takes the port that has `OpenFlow`'s number `number` and the interface `name` in this thread's network
    /// namespace, which is up. A guest may send by `own`, its interface's own address, and is reached by it.
    ///
    /// # Errors
    /// There is no such interface, or somebody refuses.
    pub fn attach(
        &self,
        name: &str,
        number: u32,
        role: Role,
        own: Option<[u8; 6]>,
    ) -> Result<Port, PlaneError> {
        self.with_plane(|plane| plane.attach(name, number, role, own))
    }

    /// Takes the port with `OpenFlow`'s number `number` as the tunnel to the host with the tunnel endpoint `host`.
    ///
    /// # Errors
    /// The daemon refuses.
    pub fn attach_tunnel(&self, host: IpAddr, number: u32) -> Result<Port, PlaneError> {
        self.with_plane(|plane| {
            plane.send("take a tunnel", &[flows::arrives(number)])?;
            plane.tunnels.insert(host, number);
            Ok(Port::Remote(host))
        })
    }

    /// Forgets a port, whose interface may be gone. What is pointed there is lost until it is updated.
    ///
    /// # Errors
    /// There is no such port.
    pub fn detach(&self, port: Port) -> Result<(), PlaneError> {
        self.with_plane(|plane| plane.detach(port))
    }

    /// Says on the networks of the bridge `name` that these identifiers are here now, so that switches there
    /// which are not ours know it too; of the first 256 of them.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn announce(&self, name: &str, vids: impl Iterator<Item = Vid>) -> Result<(), PlaneError> {
        let link = self.with_plane(|plane| links::named(&mut plane.route, name));
        let link = link.map_err(PlaneError::kernel(format!("look for {name}")))?;
        // A bridge without an interface of its own is announced by what its guests send.
        link.map_or(Ok(()), |link| announce::announce(link.index, vids))
    }

    /// Looks whether the daemon is there, and gives one that has started again all flows; how often it was
    /// connected to.
    ///
    /// # Errors
    /// It is not there.
    pub fn look(&self) -> Result<u64, PlaneError> {
        self.with_plane(|plane| {
            plane.send("answer", &[])?;
            Ok(plane.connection.times())
        })
    }
}

impl OvsPlane {
    fn attach(
        &mut self,
        name: &str,
        number: u32,
        role: Role,
        own: Option<[u8; 6]>,
    ) -> Result<Port, PlaneError> {
        let what = format!("find the interface {name}");
        let link = links::named(&mut self.route, name).map_err(PlaneError::kernel(what.clone()))?;
        let source = std::io::ErrorKind::NotFound.into();
        let link = link.ok_or(PlaneError::System { what, source })?;
        let mut queue = link.queue;
        let mut flows = Vec::new();
        match role {
            Role::Guest(_) => {
                queue = Limit::default().frames;
                links::set_queue(&mut self.route, link.index, queue)
                    .map_err(PlaneError::kernel(format!("set the queue of {name}")))?;
                flows.push(flows::spoofs(number));
                if let Some(own) = own {
                    flows.extend(flows::receives(own, number, true));
                    flows.push(flows::sends(own, number));
                }
            }
            Role::Uplink => flows.push(flows::lets_in(number)),
        }
        self.send("take a port", &flows)?;
        let probe = Probe::open(link.index, Some(UNDERWAY))?;
        let (index, dropped) = (link.index, link.dropped);
        self.ports.insert(number, Attached { index, role, own, probe, queue, dropped });
        Ok(Port::Local(number))
    }

    fn detach(&mut self, port: Port) -> Result<(), PlaneError> {
        let number = self.local(port)?;
        // Another port may get its number, and is not to be what this one was.
        let mut flows: Vec<Flow> =
            self.connection.of_port(number).into_iter().map(without).collect();
        if let Some(Attached { own: Some(own), .. }) = self.ports.remove(&number) {
            flows.extend(flows::receives_not(own));
        }
        self.send("forget a port", &flows)
    }

    fn send(&mut self, what: &str, flows: &[Flow]) -> Result<(), PlaneError> {
        self.connection.send(what, flows)
    }

    fn local(&self, port: Port) -> Result<u32, PlaneError> {
        match port {
            Port::Local(number) if self.ports.contains_key(&number) => Ok(number),
            Port::Local(_) => Err(PlaneError::NoPort(port)),
            Port::Remote(host) => self.tunnels.get(&host).copied().ok_or(PlaneError::NoPort(port)),
        }
    }

    /// The flows of an identifier at `to`.
    fn there(&self, vid: [u8; 6], to: Port) -> Result<Vec<Flow>, PlaneError> {
        let number = self.local(to)?;
        let is_here = matches!(to, Port::Local(_));
        let mut flows = flows::receives(vid, number, is_here).to_vec();
        // What it sends at another host comes by the tunnel.
        flows.extend(is_here.then(|| flows::sends(vid, number)));
        Ok(flows)
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
            None => flows.extend(flows::receives_not(vid)),
        }
        let former = from.filter(|_| from != to).and_then(|from| self.local(from).ok());
        flows.extend(former.map(|former| without(flows::sends(vid, former))));
        let done = self.send("point an identifier", &flows);
        if done.is_err() {
            // Whatever was accepted of it, as it was.
            let mut back = flows::receives_not(vid).to_vec();
            if let Some(to) = to.filter(|_| to != from).and_then(|to| self.local(to).ok()) {
                back.push(without(flows::sends(vid, to)));
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
        let mute = flows::mutes(number);
        self.send("mute or unmute a port", &[if muted { mute } else { without(mute) }])
    }

    fn mark(&mut self, port: Port, nonce: u64) -> Result<Seen, PlaneError> {
        let number = self.local(port)?;
        let attached = self.ports.get(&number).ok_or(PlaneError::NoPort(port))?;
        Ok(attached.probe.mark(nonce))
    }

    fn flood_unknown(&mut self, on: bool) -> Result<(), PlaneError> {
        if self.rest == Rest::Bridge {
            return Err(PlaneError::Unsupported {
                plane: "bridge of Open vSwitch",
                what: "flood frames to unknown identifiers, or not: others decide that".into(),
            });
        }
        let all = flows::floods();
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
        let unknown = match self.rest {
            Rest::Dropped => Some(self.connection.count(flows::ALL, cookie::UNKNOWN)?),
            Rest::Bridge => None,
        };
        Ok(Statistics {
            overflow: Some(overflow),
            unknown,
            spoofed: Some(self.connection.count(0, cookie::SPOOFED)?),
            forged: Some(forged),
            ..Statistics::default()
        })
    }
}
