//! The bridges of this node, as switches that know where identifiers are.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::virtio::net::mac::MacAddress;
use endpoint::range::Range;
use endpoint::vid::Vid;
use vswitch::bridge::netlink::Route;
use vswitch::bridge::{self, BridgeSwitch, links};
use vswitch::ovs::database::{self, Database, Kind};
use vswitch::ovs::{self, OvsSwitch, Rest};
use vswitch::{Change, Flow, Hold, Limit, PlaneError, Port, Statistics, Switch, SwitchError};

use super::error::EndpointError;
use super::options::TunnelSpec;

/// How long it may take until what was sent to a VM before has arrived there.
const MARK_PATIENCE: Duration = Duration::from_secs(5);

/// A bridge as a switch.
#[derive(Debug)]
pub enum Carrier {
    /// The kernel's.
    Bridge(BridgeSwitch),
    /// Open vSwitch's, with its name.
    Ovs(OvsSwitch, String),
}

impl Deref for Carrier {
    type Target = dyn Switch;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Bridge(switch) => switch,
            Self::Ovs(switch, _) => switch,
        }
    }
}

impl Carrier {
    fn open(bridge: &str) -> Result<Self, PlaneError> {
        match (BridgeSwitch::open(bridge), database::management(bridge)) {
            (Err(_), Some(socket)) => {
                let switch = OvsSwitch::open(&socket, Rest::Bridge)?;
                Ok(Self::Ovs(switch, bridge.to_owned()))
            }
            (opened, _) => opened.map(Self::Bridge),
        }
    }

    /// A VM's interface, which is on the bridge, is a port whose identifiers the switch knows; it may send by its
    /// own address, too.
    fn attach(&self, interface: &str, own: MacAddress) -> Result<Port, PlaneError> {
        match self {
            Self::Bridge(switch) => switch.attach(interface, bridge::Role::Guest(None)),
            Self::Ovs(switch, _) => {
                let number = Database::open()?.number(interface)?;
                switch.attach(interface, number, ovs::Role::Guest(None), Some(own.octets()))
            }
        }
    }

    fn detach(&self, port: Port) -> Result<(), PlaneError> {
        match self {
            Self::Bridge(switch) => switch.detach(port),
            Self::Ovs(switch, _) => switch.detach(port),
        }
    }

    /// Makes the tunnel to other hosts, which have these tunnel endpoints.
    fn open_tunnel(&self, tunnel: &TunnelSpec, peers: &[IpAddr]) -> Result<(), PlaneError> {
        match self {
            Self::Bridge(switch) => {
                let name = format!("vx{:06x}", tunnel.network);
                make_tunnel(&name, tunnel)?;
                switch.attach(&name, bridge::Role::Tunnel)?;
                peers.iter().try_for_each(|peer| switch.add_peer(*peer))
            }
            Self::Ovs(switch, name) => {
                let mut database = Database::open()?;
                for remote in peers {
                    let TunnelSpec { local, network, port, .. } = *tunnel;
                    let kind = Kind::Tunnel { local, remote: *remote, network, port };
                    let number = database.add(name, &tunnel_name(network, *remote), kind)?;
                    switch.attach_tunnel(*remote, number)?;
                }
                Ok(())
            }
        }
    }

    /// Says on the networks of the bridge that these identifiers are here now.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn announce(&self, vids: impl Iterator<Item = Vid>) -> Result<(), PlaneError> {
        match self {
            Self::Bridge(switch) => switch.announce(vids),
            Self::Ovs(switch, name) => switch.announce(name, vids),
        }
    }
}

/// The name of a tunnel's port, the same each time: another agent's is replaced.
fn tunnel_name(network: u32, remote: IpAddr) -> String {
    let hash = blake3::hash(format!("{network} {remote}").as_bytes());
    format!("vx{}", &hash.to_hex()[..10])
}

/// The bridges, by name.
#[derive(Debug, Default)]
pub struct Switches {
    all: Mutex<BTreeMap<String, Arc<Carrier>>>,
    /// How often those of Open vSwitch were connected to.
    seen: Mutex<HashMap<String, u64>>,
}

/// The identifiers of a range.
pub fn vids(range: Range) -> impl Iterator<Item = Vid> {
    (range.lo()..=range.hi()).filter_map(move |request| range.vid(request))
}

impl Switches {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Carrier>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bridge of this name.
    ///
    /// # Errors
    /// There is none, or the kernel or Open vSwitch refuses.
    pub fn open(&self, bridge: &str) -> Result<Arc<Carrier>, PlaneError> {
        let mut all = self.lock();
        if let Some(switch) = all.get(bridge) {
            return Ok(switch.clone());
        }
        let switch = Arc::new(Carrier::open(bridge)?);
        all.insert(bridge.to_owned(), switch.clone());
        Ok(switch)
    }

    /// Makes a VM's interface a port whose identifiers the switch knows, besides the VM's `own` address.
    ///
    /// # Errors
    /// There is no such bridge or interface, or who carries its frames refuses.
    pub fn attach(
        &self,
        bridge: &str,
        interface: &str,
        own: MacAddress,
    ) -> Result<Port, PlaneError> {
        self.open(bridge)?.attach(interface, own)
    }

    /// Makes the tunnel of a bridge to other hosts, which have these tunnel endpoints.
    ///
    /// # Errors
    /// There is no such bridge, or who carries its frames refuses.
    pub fn open_tunnel(&self, tunnel: &TunnelSpec, peers: &[IpAddr]) -> Result<(), PlaneError> {
        self.open(&tunnel.bridge)?.open_tunnel(tunnel, peers)
    }

    /// A VM's interface is gone.
    pub fn detach(&self, bridge: &str, port: Port) {
        let switch = self.lock().get(bridge).cloned();
        if let Some(switch) = switch
            && let Err(error) = switch.detach(port)
        {
            log::debug!("{port} of {bridge}: {error}");
        }
    }

    /// All bridges.
    pub fn all(&self) -> Vec<(String, Arc<Carrier>)> {
        self.lock().iter().map(|(name, switch)| (name.clone(), switch.clone())).collect()
    }

    /// What all of them have counted.
    pub fn statistics(&self) -> Vec<Statistics> {
        self.all().iter().filter_map(|(_, switch)| switch.statistics().ok()).collect()
    }

    /// Looks for the daemons of Open vSwitch: one that has started again gets its flows. Whether there was one
    /// that may have missed some.
    pub fn look(&self) -> bool {
        let mut has_missed = false;
        for (bridge, switch) in self.all() {
            let Carrier::Ovs(switch, _) = &*switch else { continue };
            match switch.look() {
                Ok(times) => {
                    let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                    let before = seen.insert(bridge, times);
                    has_missed |= before.is_some_and(|before| before != times);
                }
                Err(error) => log::debug!("{bridge}: {error}"),
            }
        }
        has_missed
    }
}

/// The interface of a tunnel; one that an agent before this one has left is replaced.
fn make_tunnel(name: &str, tunnel: &TunnelSpec) -> Result<(), PlaneError> {
    let failed = || PlaneError::kernel(format!("make the tunnel {name}"));
    let mut route = Route::open().map_err(failed())?;
    if let Some(old) = links::named(&mut route, name).map_err(failed())? {
        links::delete(&mut route, old.index).map_err(failed())?;
    }
    links::create_vxlan(&mut route, name, tunnel.network, tunnel.local, tunnel.port)
        .map(drop)
        .map_err(failed())
}

/// What a switch knows, asked once for a whole range.
fn flows_of(switch: &Carrier) -> HashMap<Vid, Flow> {
    switch.flows().into_iter().map(|flow| (flow.vid, flow)).collect()
}

/// Sends frames to all identifiers of a range to `port`, or drops them; those that are held are left alone.
///
/// # Errors
/// The switch refuses: then all is as before.
pub fn point(switch: &Carrier, range: Range, port: Option<Port>) -> Result<(), EndpointError> {
    let known = flows_of(switch);
    let mut changes = Vec::new();
    for vid in vids(range) {
        match (known.get(&vid), port) {
            (Some(flow), _) if flow.moving.is_some() => {}
            (Some(flow), Some(port)) if flow.home == port => {}
            (Some(_), Some(port)) => changes.push(Change::Update { vid, port }),
            (None, Some(port)) => changes.push(Change::Add { vid, port }),
            (Some(_), None) => changes.push(Change::Delete { vid }),
            (None, None) => {}
        }
    }
    if changes.is_empty() { Ok(()) } else { Ok(switch.sync(&changes)?) }
}

/// Points all identifiers of a range to `to` and holds their frames there, for `owner`, at most for `patience`.
///
/// # Errors
/// One is not held: none is then.
pub fn hold(
    switch: &Carrier,
    range: Range,
    to: Port,
    owner: u64,
    patience: Duration,
) -> Result<(), EndpointError> {
    let deadline = Instant::now() + patience;
    let hold = Hold { owner, to, deadline, limit: Limit::default() };
    for vid in vids(range) {
        if let Err(error) = switch.hold(vid, hold) {
            for before in vids(range).take_while(|before| *before != vid) {
                let _ = switch.cancel(before, owner);
            }
            return Err(error.into());
        }
    }
    Ok(())
}

/// Ends the hold of a range, so that frames go to `home`.
///
/// # Errors
/// The switch refuses.
pub fn release(
    switch: &Carrier,
    range: Range,
    home: Option<Port>,
    owner: u64,
) -> Result<(), EndpointError> {
    let known = flows_of(switch);
    for vid in vids(range) {
        let ended = match known.get(&vid).and_then(|flow| flow.moving) {
            Some((to, own)) if own == owner && Some(to) == home => switch.release(vid, owner),
            Some((_, own)) if own == owner => switch.cancel(vid, owner),
            _ => continue,
        };
        match ended {
            // Its deadline has passed just now.
            Ok(_) | Err(SwitchError::NotHeld(_) | SwitchError::Unknown(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    point(switch, range, home)
}

/// Waits until all that was sent to `port` before has arrived there; whether it has.
///
/// # Errors
/// The port is gone.
pub fn drain(switch: &Carrier, port: Port) -> Result<bool, EndpointError> {
    Ok(switch.mark(port)?.passed(MARK_PATIENCE)?)
}
