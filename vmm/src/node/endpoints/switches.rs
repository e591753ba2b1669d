//! The bridges of this node, as switches that know where identifiers are.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use endpoint::range::Range;
use endpoint::vid::Vid;
use vswitch::bridge::netlink::Route;
use vswitch::bridge::{BridgeSwitch, Role, links};
use vswitch::{Change, Flow, Hold, Limit, PlaneError, Port, Statistics, Switch, SwitchError};

use super::error::EndpointError;
use super::options::TunnelSpec;

/// How long it may take until what was sent to a VM before has arrived there.
const MARK_PATIENCE: Duration = Duration::from_secs(5);

/// The bridges, by name.
#[derive(Debug, Default)]
pub struct Switches(Mutex<BTreeMap<String, Arc<BridgeSwitch>>>);

/// The identifiers of a range.
pub fn vids(range: Range) -> impl Iterator<Item = Vid> {
    (range.lo()..=range.hi()).filter_map(move |request| range.vid(request))
}

impl Switches {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<BridgeSwitch>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bridge of this name.
    ///
    /// # Errors
    /// There is none, or the kernel refuses.
    pub fn open(&self, bridge: &str) -> Result<Arc<BridgeSwitch>, PlaneError> {
        let mut all = self.lock();
        if let Some(switch) = all.get(bridge) {
            return Ok(switch.clone());
        }
        let switch = Arc::new(BridgeSwitch::open(bridge)?);
        all.insert(bridge.to_owned(), switch.clone());
        Ok(switch)
    }

    /// Makes a VM's interface a port whose identifiers the switch knows.
    ///
    /// # Errors
    /// There is no such bridge or interface, or the kernel refuses.
    pub fn attach(&self, bridge: &str, interface: &str) -> Result<Port, PlaneError> {
        self.open(bridge)?.attach(interface, Role::Guest(None))
    }

    /// Makes the tunnel of a bridge to other hosts, which have these tunnel endpoints.
    ///
    /// # Errors
    /// There is no such bridge, or the kernel refuses.
    pub fn open_tunnel(&self, tunnel: &TunnelSpec, peers: &[IpAddr]) -> Result<(), PlaneError> {
        let switch = self.open(&tunnel.bridge)?;
        let name = format!("vx{:06x}", tunnel.network);
        make_tunnel(&name, tunnel)?;
        switch.attach(&name, Role::Tunnel)?;
        peers.iter().try_for_each(|peer| switch.add_peer(*peer))
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
    pub fn all(&self) -> Vec<(String, Arc<BridgeSwitch>)> {
        self.lock().iter().map(|(name, switch)| (name.clone(), switch.clone())).collect()
    }

    /// What all of them have counted.
    pub fn statistics(&self) -> Vec<Statistics> {
        self.all().iter().filter_map(|(_, switch)| switch.statistics().ok()).collect()
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
fn flows_of(switch: &BridgeSwitch) -> HashMap<Vid, Flow> {
    switch.flows().into_iter().map(|flow| (flow.vid, flow)).collect()
}

/// Sends frames to all identifiers of a range to `port`, or drops them; those that are held are left alone.
///
/// # Errors
/// The switch refuses: then all is as before.
pub fn point(switch: &BridgeSwitch, range: Range, port: Option<Port>) -> Result<(), EndpointError> {
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
    switch: &BridgeSwitch,
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
    switch: &BridgeSwitch,
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
pub fn drain(switch: &BridgeSwitch, port: Port) -> Result<bool, EndpointError> {
    Ok(switch.mark(port)?.passed(MARK_PATIENCE)?)
}
