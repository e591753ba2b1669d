//! The virtual endpoints of this node's VMs: who may do what, the directory, the switch, and moves.
//!
//! ```text
//!  guest -- control device -- VM's process -- links ---.            vmm endpoint, vmm flow
//!                                                       v                     |  HTTP
//!                          calls: rights, fields --> Endpoints <--------------'
//!                                                     |    |   \
//!                                   directory, lease -'    |    `- moves: one thread each, by
//!                                                  switches      endpoint::moving; errands for guests
//! ```
//!
//! The directory decides where an endpoint is. This node's part of the network follows it: what its switch knows, and
//! what the network device of each VM lets through. A node that cannot renew its lease mutes all of it before others
//! may take it over; so do the VMs' processes by themselves if the node is gone.

mod calls;
mod error;
mod guests;
mod links;
mod moves;
mod open;
pub mod options;
mod peers;
mod ranges;
mod store;
mod switches;

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use control_abi::event::endpoint as value;
use control_abi::operation::Operation;
use endpoint::directory::cache::Cache;
use endpoint::directory::{Change, Directory};
use endpoint::keeper::{Gate, Keeper};
use endpoint::moving::damping::{Damping, DampingOptions};
use endpoint::name::{Name, Pattern};
use endpoint::range::{Form, Range};
use endpoint::record::{Home, Owner, Record};

use self::calls::GuestCall;
pub use self::error::EndpointError;
pub use self::guests::Outcome;
use self::guests::{Errand, Guest, Guests, Passage};
use self::links::{Heard, Links};
use self::moves::Moves;
pub use self::moves::Order;
use self::peers::Peer;
use self::store::Store;
use self::switches::Switches;
use crate::api::VmInfo;
use crate::api::endpoint::{
    AnnounceEndpoint, EndpointAction, EndpointDone, EndpointInfo, EndpointRange, FlowChange,
    FlowInfo,
};
use crate::endpoint::link::{FromVm, ToVm};

/// The endpoints of a node.
#[derive(Debug, Clone)]
pub struct Endpoints(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    host: String,
    owner: Owner,
    directory: Arc<dyn Directory>,
    /// Whether the directory is in this process, and so to be written down.
    is_own: bool,
    cache: Cache,
    keeper: Keeper,
    guests: Arc<Guests>,
    switches: Switches,
    /// The agents of other hosts, by their names.
    peers: BTreeMap<String, Peer>,
    store: Store,
    moves: Moves,
    links: Mutex<Option<Links>>,
    /// Guests' commands that may wait, for the threads that carry them out.
    calls: Mutex<Option<std::sync::mpsc::SyncSender<GuestCall>>>,
    damping: Mutex<HashMap<Range, Damping>>,
    damped: DampingOptions,
    since: Instant,
    counts: Counts,
}

/// What has happened, counted.
#[derive(Debug, Default)]
struct Counts {
    calls: AtomicU64,
    refused: AtomicU64,
    moved: AtomicU64,
    aborted: AtomicU64,
    orphaned: AtomicU64,
    frozen: AtomicU64,
    held_us: AtomicU64,
    state_bytes: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Which identifiers something is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// Of this service.
    pub service: Name,
    /// Of this form, if it is said.
    pub form: Option<Form>,
    /// From this request on.
    pub lo: Option<u32>,
    /// Up to this one.
    pub hi: Option<u32>,
}

impl Selection {
    fn read(service: &str, range: &EndpointRange) -> Result<Self, EndpointError> {
        let form = range.form.as_deref().map(|form| match form {
            "prefix" => Ok(Form::Prefix),
            "suffix" => Ok(Form::Suffix),
            other => Err(EndpointError::Form(other.to_owned())),
        });
        let (form, service) = (form.transpose()?, service.parse()?);
        Ok(Self { service, form, lo: range.lo, hi: range.hi })
    }

    /// Whether `record` is what it is about.
    fn is(&self, record: &Record) -> bool {
        record.service == self.service
            && self.form.is_none_or(|form| form == record.range.form())
            && self.lo.is_none_or(|lo| lo == record.range.lo())
            && self.hi.is_none_or(|hi| hi == record.range.hi())
    }

    /// The range that is named, one identifier if no bounds are.
    fn range(&self) -> Result<Range, EndpointError> {
        let lo = self.lo.unwrap_or_default();
        let hi = self.hi.unwrap_or(lo);
        Ok(Range::of(self.form.unwrap_or_default(), &self.service, lo, hi)?)
    }
}

/// What the lease is about: all that this node's VMs have.
struct Fence {
    host: String,
    guests: Arc<Guests>,
}

impl Gate for Fence {
    fn mute(&mut self) {
        log::warn!("the lease is not renewed: this node's endpoints are mute");
        self.guests.mute(true);
    }

    fn unmute(&mut self, records: &[Record]) {
        let is_home =
            |record: &Record, vm: &str| record.home.host() == self.host && record.home.port() == vm;
        let is_own = |vm: &str, range: Range| {
            records.iter().any(|record| record.range == range && is_home(record, vm))
        };
        self.guests.retain(is_own);
        self.guests.mute(false);
    }
}

impl Endpoints {
    fn guests(&self) -> &Guests {
        &self.0.guests
    }

    /// The host, as others know it.
    pub fn host(&self) -> &str {
        &self.0.host
    }

    fn home(&self, vm: &str) -> Result<Home, EndpointError> {
        Ok(Home::new(&self.0.host, vm)?)
    }

    fn home_of_vm(&self, vm: u64) -> Option<Home> {
        let guests = self.guests().lock();
        guests.get(vm).and_then(|guest| self.home(&guest.name).ok())
    }

    /// Records of services.
    fn services(&self, pattern: &Pattern) -> Vec<Record> {
        self.0.cache.services(pattern).into_iter().map(|entry| entry.record).collect()
    }

    /// Whether nobody keeps a record alive.
    fn is_orphan(&self, record: &Record) -> bool {
        self.0.cache.find(record.range.first()).is_some_and(|entry| entry.is_orphan)
    }

    /// The records whose home is a VM of this node.
    fn records_at(&self, home: &Home) -> Vec<Record> {
        let all = self.0.cache.list().into_iter().map(|entry| entry.record);
        all.filter(|record| record.home == *home).collect()
    }

    /// Changes the directory; returns when this node knows.
    fn change(&self, change: &Change) -> Result<Vec<Record>, EndpointError> {
        if self.0.keeper.is_muted() {
            return Err(EndpointError::Muted);
        }
        let records = self.0.directory.change(&self.0.keeper.lease(), change)?;
        self.keep();
        // Who asks next sees it.
        let removed = change.from.iter().map(|record| record.range).collect();
        self.0.cache.learn(removed, records.clone());
        Ok(records)
    }

    /// Writes the directory down, if it is in this process.
    fn keep(&self) {
        if !self.0.is_own {
            return;
        }
        let kept = self.0.directory.list().map_err(std::io::Error::other).and_then(|entries| {
            let records: Vec<Record> = entries.into_iter().map(|entry| entry.record).collect();
            self.0.store.keep(&records)
        });
        if let Err(error) = kept {
            log::error!("the directory of endpoints is not written down: {error}");
        }
    }

    /// A VM is ready or runs: if it may have endpoints, its process is connected to.
    pub fn vm_lives(&self, info: &VmInfo, socket: &std::path::Path) {
        let Some(spec) = info.spec.endpoint.clone() else { return };
        let connected = self.guests().lock().get(info.number).is_some_and(Guest::is_connected);
        if connected {
            return;
        }
        if let Err(error) = self.connect(info, spec, socket) {
            log::warn!("VM '{}' is without its endpoints: {error}", info.name);
        }
    }

    fn connect(
        &self,
        info: &VmInfo,
        spec: crate::spec::endpoint::EndpointSpec,
        socket: &std::path::Path,
    ) -> Result<(), EndpointError> {
        let mut link =
            UnixStream::connect(socket).map_err(EndpointError::system("reach the VM's process"))?;
        guests::set_up(&link)
            .and_then(|()| link.write_all(b"endpoints\n"))
            .map_err(EndpointError::system("speak with the VM's process"))?;
        let port = match &info.network {
            Some(network) => match &network.bridge {
                Some(bridge) => {
                    let own = network
                        .mac
                        .parse()
                        .map_err(|_| EndpointError::Guest("it has no address"))?;
                    let port = self.0.switches.attach(bridge, &network.tap, own)?;
                    Some((bridge.clone(), port))
                }
                None => None,
            },
            None => None,
        };
        let link = Arc::new(link);
        let guest = Guest::new(info.name.to_string(), spec, port, link.clone());
        self.guests().connect(info.number, guest);
        if let Some(links) = &*self.0.links.lock().unwrap_or_else(PoisonError::into_inner) {
            links.add(info.number, link);
        }
        // What it had before this agent came.
        let home = self.home(info.name.as_str())?;
        for record in self.records_at(&home) {
            self.serve_at(info.number, &record)?;
        }
        Ok(())
    }

    /// A VM has ended: what it had is withdrawn.
    pub fn vm_ended(&self, number: u64) {
        let Some(guest) = self.guests().remove(number) else { return };
        let Ok(home) = self.home(&guest.name) else { return };
        // First: entries of an interface that is gone are gone with it, and cannot be taken away.
        if let Some((bridge, port)) = &guest.port {
            self.0.switches.detach(bridge, *port);
        }
        self.0.moves.lost(number);
        for record in self.records_at(&home) {
            // One that moves is left to the move, which hears of the loss.
            if record.phase.heir().is_some() {
                continue;
            }
            if let Some((bridge, _)) = &guest.port
                && let Ok(switch) = self.0.switches.open(bridge)
                && let Err(error) = switches::point(&switch, record.range, None)
            {
                log::debug!("{}: {error}", record.range);
            }
            if let Err(error) = self.change(&Change::withdraw(vec![record])) {
                log::warn!("the endpoints of '{}' stay in the directory: {error}", guest.name);
            }
        }
    }

    /// Lets frames to a range reach a VM of this node, and the guest send as it.
    fn serve_at(&self, vm: u64, record: &Record) -> Result<(), EndpointError> {
        let (name, port) = {
            let guests = self.guests().lock();
            let guest = guests.get(vm).ok_or(EndpointError::Guest("the VM is gone"))?;
            (guest.name.clone(), guest.port.clone())
        };
        let (bridge, port) = port.ok_or(EndpointError::NoBridge(name))?;
        let switch = self.0.switches.open(&bridge)?;
        let change = |_: &mut dyn Gate| switches::point(&switch, record.range, Some(port));
        self.0.keeper.with_gate(change).ok_or(EndpointError::Muted)??;
        self.guests().pass(vm, (&record.service, record.range), Some(Passage::OPEN))
    }

    fn next_errand(&self, vm: u64, service: Option<&str>) -> Option<Errand> {
        self.guests().lock().get_mut(vm).and_then(|guest| guest.next_errand(service))
    }

    fn errand_answered(
        &self,
        vm: u64,
        number: u64,
        deed: Option<u32>,
        outcome: Outcome,
    ) -> Result<(), EndpointError> {
        self.guests().answer(vm, number, deed, outcome)
    }

    fn now(&self) -> std::time::Duration {
        self.0.since.elapsed()
    }

    /// Whether a range may move once more; it is frozen if not.
    fn admit(&self, record: &Record) -> Result<(), EndpointError> {
        let now = self.now();
        let mut all = self.0.damping.lock().unwrap_or_else(PoisonError::into_inner);
        let damping = all.entry(record.range).or_insert_with(|| Damping::new(self.0.damped));
        if damping.admit(now) {
            return Ok(());
        }
        drop(all);
        count(&self.0.counts.frozen);
        self.freeze_record(record)?;
        Err(EndpointError::Damped(record.service.to_string()))
    }

    /// Tells the guest at `home` of something.
    fn raise(&self, home: &Home, value: u64) {
        let mut guests = self.guests().lock();
        let number = guests.named(home.port()).map(|(number, _)| number);
        if let Some(guest) = number.and_then(|number| guests.get_mut(number)) {
            guest.say(&ToVm::Raise { value });
        }
    }

    fn freeze_record(&self, record: &Record) -> Result<Record, EndpointError> {
        let frozen = record.with_phase(endpoint::record::Phase::Frozen);
        let record = self.one(&Change::update(record.clone(), frozen))?;
        self.raise(&record.home, value::FROZEN);
        Ok(record)
    }

    /// A change of one record.
    fn one(&self, change: &Change) -> Result<Record, EndpointError> {
        let mut records = self.change(change)?;
        records.pop().ok_or(EndpointError::Guest("the directory answers with nothing"))
    }

    /// What is known of services, by name or pattern; of all without.
    ///
    /// # Errors
    /// It is no name or pattern.
    pub fn list(&self, pattern: Option<&str>) -> Result<Vec<EndpointInfo>, EndpointError> {
        let records = match pattern {
            Some(pattern) => self.services(&pattern.parse()?),
            None => self.0.cache.list().into_iter().map(|entry| entry.record).collect(),
        };
        Ok(records.iter().map(|record| self.info(record)).collect())
    }

    fn info(&self, record: &Record) -> EndpointInfo {
        let is_here = record.home.host() == self.0.host;
        let guests = self.guests().lock();
        let listening = is_here.then(|| {
            let guest = guests.named(record.home.port()).map(|(_, guest)| guest);
            guest.is_some_and(|guest| guest.passage(record.range).is_some())
        });
        drop(guests);
        let phase = if self.is_orphan(record) { "orphan" } else { record.phase.name() };
        EndpointInfo {
            service: record.service.to_string(),
            form: form_name(record.range.form()).to_owned(),
            lo: record.range.lo(),
            hi: record.range.hi(),
            vid: record.range.first().to_string(),
            home: record.home.to_string(),
            mirrors: record.mirrors.iter().map(Home::to_string).collect(),
            phase: phase.to_owned(),
            to: record.phase.heir().map(|(to, _)| to.to_string()),
            owner: record.owner.to_string(),
            epoch: record.epoch,
            listening,
        }
    }

    /// Makes identifiers known as those of a VM of this node.
    ///
    /// # Errors
    /// Why not.
    pub fn announce(&self, what: &AnnounceEndpoint) -> Result<EndpointInfo, EndpointError> {
        let selection = Selection::read(&what.service, &what.range)?;
        let vm = self.number_of(&what.vm)?;
        let record = self.announce_at(vm, &selection)?;
        if what.listen {
            self.serve_at(vm, &record)?;
        }
        Ok(self.info(&record))
    }

    fn number_of(&self, vm: &str) -> Result<u64, EndpointError> {
        let guests = self.guests().lock();
        let found = guests.named(vm).map(|(number, _)| number);
        found.ok_or_else(|| EndpointError::NoVm(vm.to_owned()))
    }

    /// Does something with identifiers of a service, for the operator.
    ///
    /// # Errors
    /// Why not.
    pub fn act(
        &self,
        service: &str,
        action: &EndpointAction,
    ) -> Result<EndpointDone, EndpointError> {
        let select = |range: &EndpointRange| Selection::read(service, range);
        let (records, moved) = match action {
            EndpointAction::Listen { range } => (self.listen(None, &select(range)?)?, None),
            EndpointAction::Withdraw { range } => {
                self.withdraw(None, &select(range)?)?;
                (Vec::new(), None)
            }
            EndpointAction::Move { range, to, stateless } => {
                let selection = select(range)?;
                let moved = self.move_to(None, &selection, to, *stateless)?;
                (self.services(&Pattern::from(&selection.service)), Some(moved))
            }
            EndpointAction::Split { range, at, to } => {
                self.split(None, &select(range)?, *at, to.as_deref())?
            }
            EndpointAction::Merge { range } => (vec![self.merge(None, &select(range)?)?], None),
            EndpointAction::Mirror { range, to, remove } => {
                (self.mirror(None, &select(range)?, to, *remove)?, None)
            }
            EndpointAction::Freeze { range } => (self.freeze(&select(range)?, true)?, None),
            EndpointAction::Thaw { range } => (self.freeze(&select(range)?, false)?, None),
        };
        let endpoints = records.iter().map(|record| self.info(record)).collect();
        Ok(EndpointDone { endpoints, moved })
    }

    /// Where frames to identifiers go.
    pub fn flows(&self) -> Vec<FlowInfo> {
        let guests = self.guests().lock();
        let names: HashMap<(&str, vswitch::Port), &str> = guests
            .iter()
            .filter_map(|(_, guest)| {
                let (bridge, port) = guest.port.as_ref()?;
                Some(((bridge.as_str(), *port), guest.name.as_str()))
            })
            .collect();
        let mut flows = Vec::new();
        for (bridge, switch) in self.0.switches.all() {
            let name = |port: vswitch::Port| {
                let known = names.get(&(bridge.as_str(), port)).map(|name| (*name).to_owned());
                known.unwrap_or_else(|| port.to_string())
            };
            flows.extend(switch.flows().into_iter().map(|flow| FlowInfo {
                bridge: bridge.clone(),
                vid: flow.vid.to_string(),
                home: name(flow.home),
                moving: flow.moving.map(|(to, _)| name(to)),
            }));
        }
        flows
    }

    /// Makes changes of flows, all or none.
    ///
    /// # Errors
    /// The entry that failed.
    pub fn sync(&self, changes: &[FlowChange]) -> Result<Vec<FlowInfo>, EndpointError> {
        self.sync_for(None, changes)?;
        Ok(self.flows())
    }

    /// For metrics: names, and how often.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &self.0.counts;
        let (mut held, mut overflow, mut muted, mut unknown) = (0u64, 0u64, 0u64, 0u64);
        {
            let guests = self.guests().lock();
            for (_, guest) in guests.iter() {
                let counted = guest.counted();
                held = held.saturating_add(counted.held);
                overflow = overflow.saturating_add(counted.overflow);
                muted = muted.saturating_add(counted.muted);
                unknown = unknown.saturating_add(counted.unknown);
            }
        }
        let (mut holds, mut expired, mut forged, mut unknown_here) = (0u64, 0u64, 0u64, 0u64);
        for statistics in self.0.switches.statistics() {
            holds = holds.saturating_add(statistics.holds);
            expired = expired.saturating_add(statistics.expired);
            forged = forged.saturating_add(statistics.forged.unwrap_or_default());
            unknown_here = unknown_here.saturating_add(statistics.unknown.unwrap_or_default());
        }
        vec![
            ("calls_total", of(&counts.calls)),
            ("calls_refused_total", of(&counts.refused)),
            ("moves_total", of(&counts.moved)),
            ("moves_aborted_total", of(&counts.aborted)),
            ("moves_orphaned_total", of(&counts.orphaned)),
            ("frozen_total", of(&counts.frozen)),
            ("held_microseconds_total", of(&counts.held_us)),
            ("state_bytes_total", of(&counts.state_bytes)),
            ("frames_held_total", held),
            ("frames_overflow_total", overflow),
            ("frames_muted_total", muted),
            ("frames_unknown_total", unknown),
            ("switch_holds_total", holds),
            ("switch_holds_expired_total", expired),
            ("switch_marks_forged_total", forged),
            ("switch_frames_unknown_total", unknown_here),
        ]
    }

    /// Carries a command out and answers it.
    fn serve(&self, call: &GuestCall) {
        count(&self.0.counts.calls);
        let result = self.carry_out(call).map_err(|error| {
            count(&self.0.counts.refused);
            log::debug!("VM {}: {}: {error}", call.vm, call.operation.label());
            error.status()
        });
        if let Some(guest) = self.guests().lock().get_mut(call.vm) {
            guest.complete(call.ticket, result);
        }
    }
}

/// Hears guests for the endpoints, and does not keep them alive.
struct Hearing(std::sync::Weak<Inner>);

impl Heard for Hearing {
    fn message(&mut self, vm: u64, message: FromVm) {
        let Some(endpoints) = self.0.upgrade().map(Endpoints) else { return };
        match message {
            FromVm::InForce { number, counted } => {
                endpoints.guests().in_force(vm, number, counted);
            }
            FromVm::Call { ticket, operation, input, data, room } => {
                let Some(operation) = Operation::from_number(operation) else { return };
                let call = GuestCall { vm, ticket, operation, input, data, room };
                if call.is_quick() {
                    endpoints.serve(&call);
                } else {
                    endpoints.hand_over(call);
                }
            }
        }
    }

    fn broken(&mut self, vm: u64, link: &Arc<UnixStream>) {
        if let Some(endpoints) = self.0.upgrade().map(Endpoints) {
            endpoints.guests().disconnect(vm, link);
        }
    }
}

fn form_name(form: Form) -> &'static str {
    match form {
        Form::Prefix => "prefix",
        Form::Suffix => "suffix",
    }
}
