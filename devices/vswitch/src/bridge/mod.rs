//! A Linux bridge, by netlink; between hosts, VXLAN.
//!
//! A flow is a static entry of the bridge's forwarding table. Ports learn nothing and get no unknown frames:
//! these go to a sink, a TAP that drops and counts. A guest's port is locked: the bridge drops what comes
//! from it by an address that is not there.
//!
//! A hold is the queue of the destination's TAP, which must exist and be read by nobody yet: the entry is
//! pointed there first, then the old home drains and stops. The queue counts frames, not bytes
//! (`txqueuelen`); it drops, and counts, what is above. A hold that is given up is read out of the queue again,
//! if the switch was given the TAP's descriptor, and sent to the old home; frames that are on another processor in
//! that moment, some microseconds of them, can overtake the last ones of the queue.
//!
//! What it cannot tell: how many frames it forwarded or held, and how many it dropped because of their sender.

pub mod announce;
pub mod links;
pub mod netlink;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use endpoint::vid::Vid;
use netlink_packet_route::link::{BridgePortState, InfoBridgePort};

use self::netlink::Route;
use crate::controller::Controller;
use crate::mark::ETHERTYPE;
use crate::plane::{Held, Plane, PlaneError, Seen, Step};
use crate::probe::Probe;
use crate::switch::{Limit, Port, Statistics};
use crate::sys;

/// What is behind a port.
#[derive(Debug)]
pub enum Role {
    /// A guest, with the descriptor of its TAP, or a copy of it, if what is held for it can be taken back. The
    /// interface then stays until the port is [detached](BridgeSwitch::detach).
    Guest(Option<OwnedFd>),
    /// A network: the bridge learns there, and lets every address in.
    Uplink,
    /// The VXLAN interface to the other hosts; a bridge has one.
    Tunnel,
}

/// How a port is muted.
#[derive(Debug, PartialEq, Eq)]
enum Muted {
    /// What it sends is dropped.
    Filter,
    /// The kernel knows no such filter: it is cut off, both ways.
    CutOff,
}

#[derive(Debug)]
struct Attached {
    name: String,
    role: Role,
    probe: Arc<Probe>,
    muted: Option<Muted>,
    /// How many moves away from here are underway, while the old home may go on sending.
    leaving: u32,
    queue: u32,
    /// What had been dropped before.
    dropped: u64,
}

/// The sink of unknown frames.
#[derive(Debug)]
struct Sink {
    _tap: OwnedFd,
    index: u32,
}

/// A bridge, as its controller sees it.
#[derive(Debug)]
pub struct BridgePlane {
    route: Route,
    bridge: u32,
    name: String,
    ports: BTreeMap<u32, Attached>,
    tunnel: Option<u32>,
    sink: Sink,
    flood: bool,
}

/// A switch that is a Linux bridge.
pub type BridgeSwitch = Controller<BridgePlane>;

impl BridgeSwitch {
    /// The bridge `name` of this thread's network namespace. Its own settings are left as they are.
    ///
    /// # Errors
    /// There is none, or the kernel refuses.
    pub fn open(name: &str) -> Result<Self, PlaneError> {
        Self::new(BridgePlane::open(name)?)
    }

    /// Puts the interface `name` of this thread's network namespace, which is the bridge's, on the bridge as a
    /// port, and switches it on.
    ///
    /// # Errors
    /// There is no such interface, or the kernel refuses.
    pub fn attach(&self, name: &str, role: Role) -> Result<Port, PlaneError> {
        self.with_plane(|plane| plane.attach(name, role))
    }

    /// Forgets a port, whose interface may be gone. What is pointed there is lost until it is updated.
    ///
    /// # Errors
    /// There is no such port.
    pub fn detach(&self, port: Port) -> Result<(), PlaneError> {
        self.with_plane(|plane| {
            let index = plane.local(port)?;
            plane.ports.remove(&index);
            plane.tunnel = plane.tunnel.filter(|tunnel| *tunnel != index);
            Ok(())
        })
    }

    /// Says on the networks of the bridge that these identifiers are here now, so that switches there which
    /// are not ours know it too; of the first 256 of them.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn announce(&self, vids: impl Iterator<Item = Vid>) -> Result<(), PlaneError> {
        let bridge = self.with_plane(|plane| plane.bridge);
        announce::announce(bridge, vids)
    }

    /// Sends what is for groups, and all, to the host with this tunnel endpoint too.
    ///
    /// # Errors
    /// There is no tunnel, or the kernel refuses.
    pub fn add_peer(&self, host: IpAddr) -> Result<(), PlaneError> {
        self.with_plane(|plane| {
            let tunnel = plane.tunnel.ok_or(PlaneError::NoPort(Port::Remote(host)))?;
            links::add_peer(&mut plane.route, tunnel, host)
                .map_err(PlaneError::kernel(format!("reach {host} by the tunnel")))
        })
    }
}

impl BridgePlane {
    fn open(name: &str) -> Result<Self, PlaneError> {
        let mut route =
            Route::open().map_err(PlaneError::kernel("ask the kernel about networks"))?;
        let looks = || PlaneError::kernel(format!("look for the bridge {name}"));
        let found = links::named(&mut route, name).map_err(looks())?;
        let bridge = found.filter(|link| link.is_bridge).ok_or_else(|| PlaneError::System {
            what: format!("use {name} as a bridge"),
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        let sink = Sink::make(&mut route, bridge.index)?;
        let (name, ports) = (name.to_owned(), BTreeMap::new());
        Ok(Self { route, bridge: bridge.index, name, ports, tunnel: None, sink, flood: false })
    }

    fn attach(&mut self, name: &str, role: Role) -> Result<Port, PlaneError> {
        let what = format!("put {name} on {}", self.name);
        let failed = || PlaneError::kernel(what.clone());
        let route = &mut self.route;
        let link = links::named(route, name).map_err(failed())?.ok_or(PlaneError::System {
            what: what.clone(),
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        let index = link.index;
        links::join(route, index, self.bridge).map_err(failed())?;
        let flags = vec![
            InfoBridgePort::Learning(matches!(role, Role::Uplink)),
            InfoBridgePort::Locked(matches!(role, Role::Guest(_))),
            // What is at no port of this host is at one of another.
            InfoBridgePort::UnicastFlood(self.flood || matches!(role, Role::Tunnel)),
        ];
        links::set_port(route, index, flags).map_err(failed())?;
        let queue = Limit::default().frames;
        if matches!(role, Role::Guest(_)) {
            links::set_queue(route, index, queue).map_err(failed())?;
        }
        links::up(route, index).map_err(failed())?;
        // At an interface that is down the socket's first frame would be an error.
        let probe = Probe::open(index, None)?;
        if matches!(role, Role::Tunnel) {
            self.tunnel = Some(index);
        }
        let (name, dropped) = (name.to_owned(), link.dropped);
        let port = Attached { name, role, probe, muted: None, leaving: 0, queue, dropped };
        self.ports.insert(index, port);
        Ok(Port::Local(index))
    }

    /// The interface of a local port.
    fn local(&self, port: Port) -> Result<u32, PlaneError> {
        match port {
            Port::Local(index) if self.ports.contains_key(&index) => Ok(index),
            _ => Err(PlaneError::NoPort(port)),
        }
    }

    /// The bridge's port by which `port` is reached.
    fn by(&self, port: Port) -> Result<u32, PlaneError> {
        match port {
            Port::Local(_) => self.local(port),
            Port::Remote(_) => self.tunnel.ok_or(PlaneError::NoPort(port)),
        }
    }

    /// While an identifier moves away from a port, its old home may go on sending.
    fn leave(&mut self, port: Port, begins: bool) -> Result<(), PlaneError> {
        let Port::Local(index) = port else { return Ok(()) };
        let Some(attached) = self.ports.get_mut(&index) else { return Ok(()) };
        if !matches!(attached.role, Role::Guest(_)) {
            return Ok(());
        }
        let before = attached.leaving;
        let now = if begins { before + 1 } else { before.saturating_sub(1) };
        if (before == 0) != (now == 0) {
            let flags = vec![InfoBridgePort::Locked(now == 0)];
            match links::set_port(&mut self.route, index, flags) {
                // The old home is gone: what moves away from there moves all the same.
                Err(error) if error.is(libc::ENODEV) => {}
                done => {
                    let what = format!("lock or unlock {}", attached.name);
                    done.map_err(PlaneError::kernel(what))?;
                }
            }
        }
        attached.leaving = now;
        Ok(())
    }

    /// Sends what waits at the port `from`, of which nobody else reads, to `to`.
    fn take_back(&mut self, from: Port, to: Port, most: u32) -> Result<(), PlaneError> {
        let (Ok(from), Ok(to)) = (self.local(from), self.by(to)) else { return Ok(()) };
        let (Some(from), Some(to)) = (self.ports.get(&from), self.ports.get(&to)) else {
            return Ok(());
        };
        let Role::Guest(Some(tap)) = &from.role else { return Ok(()) };
        to.probe.take_back(tap, most)
    }
}

impl Sink {
    fn make(route: &mut Route, bridge: u32) -> Result<Self, PlaneError> {
        let (tap, name) =
            sys::tap("vsink%d").map_err(PlaneError::system("make the sink of unknown frames"))?;
        sys::drop_all(tap.as_fd()).map_err(PlaneError::system("close the sink"))?;
        let mut make = || {
            let Some(link) = links::named(route, &name)? else { return Ok(0) };
            links::join(route, link.index, bridge)?;
            let flags = vec![
                InfoBridgePort::Learning(false),
                InfoBridgePort::UnicastFlood(true),
                InfoBridgePort::MulticastFlood(false),
                InfoBridgePort::BroadcastFlood(false),
            ];
            links::set_port(route, link.index, flags)?;
            links::up(route, link.index)?;
            Ok(link.index)
        };
        let index = make().map_err(PlaneError::kernel("put the sink on the bridge"))?;
        Ok(Self { _tap: tap, index })
    }
}

impl Plane for BridgePlane {
    fn check(&mut self, port: Port) -> Result<(), PlaneError> {
        self.by(port).map(|_| ())
    }

    fn point(&mut self, Step { vid, from, to }: Step) -> Result<(), PlaneError> {
        let failed = || PlaneError::kernel(format!("point {vid} on {}", self.name));
        let (failed, failed_too) = (failed(), failed());
        // A port that is gone has taken its entries along.
        let from_by = from.and_then(|from| self.by(from).ok());
        let to_by = to.map(|to| self.by(to)).transpose()?;
        let route = &mut self.route;
        // The tunnel first: it must know before frames come.
        if let (Some(Port::Remote(host)), Some(tunnel)) = (to, to_by) {
            links::tunnel(route, vid, tunnel, host).map_err(failed)?;
        }
        let done = match (from_by, to_by) {
            (_, Some(to)) => links::point(route, vid, to),
            (Some(from), None) => links::unpoint(route, vid, from),
            (None, None) => Ok(()),
        };
        let was_remote = matches!(from, Some(Port::Remote(_)));
        let is_remote = matches!(to, Some(Port::Remote(_)));
        if let Some(tunnel) = self.tunnel {
            // What is left in the tunnel when this fails, the bridge sends nothing to.
            match done.is_ok() {
                true if was_remote && !is_remote => _ = links::untunnel(route, vid, tunnel),
                false if is_remote && !was_remote => _ = links::untunnel(route, vid, tunnel),
                _ => {}
            }
        }
        done.map_err(failed_too)
    }

    fn hold(&mut self, held: &Held) -> Result<(), PlaneError> {
        let Held { vid, home, to, limit } = *held;
        if let Port::Local(index) = to
            && let Some(port) = self.ports.get_mut(&index)
        {
            if port.muted == Some(Muted::CutOff) {
                let what = format!("hold {vid} at {}, which is cut off: unmute it", port.name);
                return Err(PlaneError::Unsupported { plane: "bridge of this kernel", what });
            }
            if port.queue != limit.frames {
                links::set_queue(&mut self.route, index, limit.frames)
                    .map_err(PlaneError::kernel(format!("set the queue of {}", port.name)))?;
                port.queue = limit.frames;
            }
        }
        self.leave(home, true)?;
        self.point(Step { vid, from: Some(home), to: Some(to) }).inspect_err(|_| {
            // It stays as it was; a port that is not locked again is counted as being left.
            let _ = self.leave(home, false);
        })
    }

    fn release(&mut self, held: &Held, commit: bool) -> Result<(), PlaneError> {
        let Held { vid, home, to, limit } = *held;
        if !commit && to != home {
            // Most before the old home gets new ones, then those that came while the entry was changed.
            self.take_back(to, home, limit.frames.saturating_mul(2))?;
            self.point(Step { vid, from: Some(to), to: Some(home) })?;
            if let Some(port) = self.by(home).ok().and_then(|index| self.ports.get(&index)) {
                port.probe.settle();
            }
            self.take_back(to, home, limit.frames)?;
        }
        self.leave(home, false)
    }

    fn mute(&mut self, port: Port, muted: bool) -> Result<(), PlaneError> {
        let index = self.local(port)?;
        let Some(attached) = self.ports.get_mut(&index) else {
            return Err(PlaneError::NoPort(port));
        };
        let route = &mut self.route;
        let failed = PlaneError::kernel(format!("mute or unmute {}", attached.name));
        let done = match (&attached.muted, muted) {
            (None, true) => {
                let filter = sys::dropper(ETHERTYPE).ok();
                let number = filter.as_ref().and_then(|fd| u32::try_from(fd.as_raw_fd()).ok());
                if number.is_some_and(|fd| links::add_filter(route, index, fd).is_ok()) {
                    attached.muted = Some(Muted::Filter);
                    return Ok(());
                }
                let state = InfoBridgePort::State(BridgePortState::Disabled);
                links::set_port(route, index, vec![state]).map(|()| Some(Muted::CutOff))
            }
            (Some(Muted::Filter), false) => links::remove_filter(route, index).map(|()| None),
            (Some(Muted::CutOff), false) => {
                let state = InfoBridgePort::State(BridgePortState::Forwarding);
                links::set_port(route, index, vec![state]).map(|()| None)
            }
            (Some(_), true) | (None, false) => return Ok(()),
        };
        attached.muted = done.map_err(failed)?;
        Ok(())
    }

    fn mark(&mut self, port: Port, nonce: u64) -> Result<Seen, PlaneError> {
        let index = self.local(port)?;
        let attached = self.ports.get(&index).ok_or(PlaneError::NoPort(port))?;
        Ok(attached.probe.mark(nonce))
    }

    fn flood_unknown(&mut self, flood: bool) -> Result<(), PlaneError> {
        let set = |route: &mut Route, index, flood| {
            match links::set_port(route, index, vec![InfoBridgePort::UnicastFlood(flood)]) {
                // A guest that went without a word.
                Err(error) if error.is(libc::ENODEV) => Ok(()),
                done => {
                    done.map_err(PlaneError::kernel(format!("set flooding at interface {index}")))
                }
            }
        };
        set(&mut self.route, self.sink.index, !flood)?;
        for (index, port) in &self.ports {
            if !matches!(port.role, Role::Tunnel) {
                set(&mut self.route, *index, flood)?;
            }
        }
        self.flood = flood;
        Ok(())
    }

    fn statistics(&mut self) -> Result<Statistics, PlaneError> {
        let failed = || PlaneError::kernel("ask for the counters of ports");
        let sink = links::numbered(&mut self.route, self.sink.index).map_err(failed())?;
        let (mut overflow, mut forged) = (0, 0);
        for (index, port) in &self.ports {
            let link = links::numbered(&mut self.route, *index).map_err(failed())?;
            if matches!(port.role, Role::Guest(_)) {
                overflow += link.unwrap_or_default().dropped.saturating_sub(port.dropped);
            }
            forged += port.probe.forged();
        }
        Ok(Statistics {
            overflow: Some(overflow),
            unknown: sink.map(|sink| sink.dropped),
            forged: Some(forged),
            ..Statistics::default()
        })
    }
}
