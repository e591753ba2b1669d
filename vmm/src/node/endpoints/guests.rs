//! The VMs of this node that may have endpoints: the connection to each, what its network device lets through, and
//! the errands that it was given.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::net::IpAddr;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use control_abi::event::endpoint as value;
use control_abi::status::Error as Status;
use devices::virtio::net::identifiers::{IdentifierCounts, Identifiers, Receive};
use endpoint::name::Name;
use endpoint::range::Range;
use serde::{Deserialize, Serialize};
use vswitch::Port;

use super::error::EndpointError;
use crate::api::endpoint::FlowChange;
use crate::endpoint::link::{ToVm, encode};
use crate::spec::endpoint::EndpointSpec;

/// How long a VM's process may take to take a message.
const SEND_PATIENCE: Duration = Duration::from_secs(1);
/// How long it may take to do as it is told about its network device.
const IN_FORCE_PATIENCE: Duration = Duration::from_secs(2);
/// When a guest that has not answered is told again that there is an errand.
const AGAIN: Duration = Duration::from_secs(2);
/// The most changes of flows that a guest can note.
pub const MOST_STAGED: usize = 64;

/// What a guest is to do in a move, by its number on the control device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Deed {
    /// Be ready for what comes.
    Prepare = 1,
    /// Stand still and send the state.
    Stop = 2,
    /// Take the state up without a voice.
    Resume = 3,
    /// Go on with a voice.
    Open = 4,
    /// Go on as before.
    Continue = 5,
    /// Forget what has gone.
    Free = 6,
    /// Forget what was to come.
    Discard = 7,
}

/// Something for a guest to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errand {
    /// What.
    pub deed: Deed,
    /// In which move.
    pub number: u64,
    /// Of which service.
    pub service: Name,
    /// With which identifiers.
    pub range: Range,
    /// Bytes of the state that waits.
    pub bytes: u64,
}

/// How an errand went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is done.
    Done,
    /// It is not, and why.
    Refused(String),
    /// The VM does not answer, or is gone.
    Silent,
}

/// What a VM's device lets through of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage {
    /// What becomes of frames to it.
    pub receive: Receive,
    /// Whether the guest may send as it.
    pub may_send: bool,
}

/// A range in a VM's table.
#[derive(Debug, Clone, Copy)]
struct Entry {
    passage: Passage,
    /// The address that goes with its service.
    address: Option<IpAddr>,
}

impl Passage {
    /// As at its home.
    pub const OPEN: Self = Self { receive: Receive::Deliver, may_send: true };
    /// As where it is to be.
    pub const HELD: Self = Self { receive: Receive::Hold, may_send: false };
}

/// A VM.
#[derive(Debug)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// What it may.
    pub spec: EndpointSpec,
    /// The bridge that it is on, and its port there.
    pub port: Option<(String, Port)>,
    link: Option<Arc<UnixStream>>,
    table: BTreeMap<Range, Entry>,
    /// Of the table that was sent last, and of that which is in force.
    sent: u64,
    in_force: u64,
    counted: IdentifierCounts,
    errands: Vec<Given>,
    /// Changes of flows that wait for SYNC.
    pub staged: Vec<FlowChange>,
}

#[derive(Debug)]
struct Given {
    errand: Errand,
    /// When the guest was told of it; it has taken it since if `is_taken`.
    told: Instant,
    is_taken: bool,
}

/// All of them, by their number on the node.
#[derive(Debug, Default)]
pub struct Guests {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub struct State {
    all: BTreeMap<u64, Guest>,
    /// What guests have answered, until who waits has taken it.
    answers: HashMap<(u64, u64, Deed), Outcome>,
    /// Until when tables are valid, if they have to be renewed.
    valid: Option<Instant>,
    is_muted: bool,
}

impl Guests {
    /// What there is, for as long as it is looked at.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tables have to be renewed, the first time before `valid`.
    pub fn valid_until(&self, valid: Instant) {
        self.lock().valid = Some(valid);
    }

    /// Adds a VM, or connects to it anew.
    pub fn connect(&self, number: u64, guest: Guest) {
        let mut state = self.lock();
        if let Some(old) = state.all.get_mut(&number) {
            old.hang_up();
            old.link = guest.link;
        } else {
            state.all.insert(number, guest);
        }
        state.push(number);
        drop(state);
        self.changed.notify_all();
    }

    /// The connection to a VM has broken.
    pub fn disconnect(&self, number: u64, link: &Arc<UnixStream>) {
        let mut state = self.lock();
        if let Some(guest) = state.all.get_mut(&number)
            && guest.link.as_ref().is_some_and(|own| Arc::ptr_eq(own, link))
        {
            guest.hang_up();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// A VM has ended.
    pub fn remove(&self, number: u64) -> Option<Guest> {
        let mut state = self.lock();
        let guest = state.all.remove(&number).map(|mut guest| {
            guest.hang_up();
            guest
        });
        drop(state);
        self.changed.notify_all();
        guest
    }

    /// Says what a VM's device lets through of `range`, or that it is none of its identifiers any more; returns
    /// when that is so.
    ///
    /// # Errors
    /// The VM does not say that it is.
    pub fn pass(
        &self,
        number: u64,
        (service, range): (&Name, Range),
        passage: Option<Passage>,
    ) -> Result<(), EndpointError> {
        let mut state = self.lock();
        let guest = state.all.get_mut(&number).ok_or_else(|| gone(number))?;
        match passage {
            Some(passage) => {
                let address = guest.spec.address_of(service);
                guest.table.insert(range, Entry { passage, address })
            }
            None => guest.table.remove(&range),
        };
        state.push(number);
        self.wait_in_force(state, number)
    }

    /// Takes a VM's voice from a range, without waiting until that is so.
    pub fn silence(&self, number: u64, range: Range) {
        let mut state = self.lock();
        let entry = state.all.get_mut(&number).and_then(|guest| guest.table.get_mut(&range));
        if let Some(entry) = entry.filter(|entry| entry.passage.may_send) {
            entry.passage.may_send = false;
            state.push(number);
        }
    }

    /// Leaves of all tables only what `is_own` of, by the name of the VM and the range.
    pub fn retain(&self, is_own: impl Fn(&str, Range) -> bool) {
        let mut state = self.lock();
        for guest in state.all.values_mut() {
            let Guest { name, table, .. } = guest;
            table.retain(|range, _| is_own(name, *range));
        }
    }

    fn wait_in_force(
        &self,
        mut state: MutexGuard<'_, State>,
        number: u64,
    ) -> Result<(), EndpointError> {
        let wanted = state.all.get(&number).map_or(0, |guest| guest.sent);
        let begun = Instant::now();
        loop {
            let guest = state.all.get(&number).ok_or_else(|| gone(number))?;
            if guest.in_force >= wanted {
                return Ok(());
            }
            let left = IN_FORCE_PATIENCE.saturating_sub(begun.elapsed());
            if left.is_zero() || guest.link.is_none() {
                return Err(EndpointError::NoVm(guest.name.clone()));
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A VM's table is in force.
    pub fn in_force(&self, number: u64, table: u64, counted: IdentifierCounts) {
        if let Some(guest) = self.lock().all.get_mut(&number) {
            guest.in_force = guest.in_force.max(table);
            guest.counted = counted;
        }
        self.changed.notify_all();
    }

    /// Nothing passes any more, at any VM; or what was said does again.
    pub fn mute(&self, on: bool) {
        let mut state = self.lock();
        if state.is_muted == on {
            return;
        }
        state.is_muted = on;
        let numbers: Vec<u64> = state.all.keys().copied().collect();
        let told = if on { value::MUTED } else { value::UNMUTED };
        for number in numbers {
            state.push(number);
            if let Some(guest) = state.all.get_mut(&number) {
                guest.say(&ToVm::Raise { value: told });
            }
        }
    }

    /// The lease holds for so much longer: so do tables.
    pub fn extend(&self, valid: Duration) {
        let mut state = self.lock();
        if state.is_muted || valid.is_zero() {
            return;
        }
        state.valid = Some(Instant::now() + valid);
        state.all.values_mut().for_each(|guest| guest.say(&ToVm::Extend { valid }));
    }

    /// Gives a guest an errand and waits for its answer, at most for `patience`, or until `is_over`.
    pub fn run(
        &self,
        number: u64,
        errand: &Errand,
        patience: Duration,
        is_over: impl Fn() -> bool,
    ) -> Outcome {
        let key = (number, errand.number, errand.deed);
        let mut state = self.lock();
        state.answers.remove(&key);
        let Some(guest) = state.all.get_mut(&number) else { return Outcome::Silent };
        guest.errands.retain(|given| given.errand.number != errand.number);
        guest.give(errand.clone());
        let begun = Instant::now();
        let outcome = loop {
            if let Some(outcome) = state.answers.remove(&key) {
                break outcome;
            }
            let Some(guest) = state.all.get_mut(&number) else { break Outcome::Silent };
            guest.remind();
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() || is_over() {
                break Outcome::Silent;
            }
            let waited = self.changed.wait_timeout(state, left.min(Duration::from_millis(200)));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        if let Some(guest) = state.all.get_mut(&number) {
            guest.errands.retain(|given| given.errand != *errand);
        }
        outcome
    }

    /// A guest has answered an errand; `deed` is none if it does not say which.
    ///
    /// # Errors
    /// It has no such errand.
    pub fn answer(
        &self,
        number: u64,
        of: u64,
        deed: Option<u32>,
        outcome: Outcome,
    ) -> Result<(), EndpointError> {
        let mut state = self.lock();
        let guest = state.all.get_mut(&number).ok_or_else(|| gone(number))?;
        let is_it = |given: &Given| {
            given.errand.number == of && deed.is_none_or(|deed| given.errand.deed as u32 == deed)
        };
        let at = guest.errands.iter().position(is_it);
        let at = at.ok_or(EndpointError::Guest("the guest answers an errand that it has not"))?;
        let errand = guest.errands.remove(at).errand;
        state.answers.insert((number, of, errand.deed), outcome);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }
}

fn gone(number: u64) -> EndpointError {
    EndpointError::NoVm(format!("number {number}"))
}

impl State {
    /// A VM.
    pub fn get(&self, number: u64) -> Option<&Guest> {
        self.all.get(&number)
    }

    /// A VM, to be changed.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut Guest> {
        self.all.get_mut(&number)
    }

    /// The VM of this name.
    pub fn named(&self, name: &str) -> Option<(u64, &Guest)> {
        self.all
            .iter()
            .find(|(_, guest)| guest.name == name)
            .map(|(number, guest)| (*number, guest))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Guest)> {
        self.all.iter().map(|(number, guest)| (*number, guest))
    }

    /// Sends a VM its table.
    fn push(&mut self, number: u64) {
        let is_muted = self.is_muted;
        let valid = self.valid.map(|end| end.saturating_duration_since(Instant::now()));
        let Some(guest) = self.all.get_mut(&number) else { return };
        guest.sent += 1;
        let identifiers = |(range, entry): (&Range, &Entry)| Identifiers {
            range: *range,
            address: entry.address,
            receive: entry.passage.receive,
            may_send: entry.passage.may_send,
        };
        let table =
            if is_muted { Vec::new() } else { guest.table.iter().map(identifiers).collect() };
        guest.say(&ToVm::Set { number: guest.sent, table, valid });
    }
}

impl Guest {
    /// One that is connected.
    pub fn new(
        name: String,
        spec: EndpointSpec,
        port: Option<(String, Port)>,
        link: Arc<UnixStream>,
    ) -> Self {
        let (counted, errands, staged) = (IdentifierCounts::default(), Vec::new(), Vec::new());
        let (table, link) = (BTreeMap::new(), Some(link));
        Self { name, spec, port, link, table, sent: 0, in_force: 0, counted, errands, staged }
    }

    /// What its device lets through of `range`.
    pub fn passage(&self, range: Range) -> Option<Passage> {
        self.table.get(&range).map(|entry| entry.passage)
    }

    /// What its device has counted.
    pub fn counted(&self) -> IdentifierCounts {
        self.counted
    }

    /// Whether there is a connection to it.
    pub fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// Says something to its process, which has [`SEND_PATIENCE`] to take it.
    pub fn say(&mut self, message: &ToVm) {
        let Some(link) = &self.link else { return };
        let sent = match encode(message) {
            Ok(bytes) => (&**link).write_all(&bytes),
            Err(error) => Err(std::io::Error::other(error)),
        };
        if let Err(error) = sent {
            log::warn!("VM '{}' takes nothing of its endpoints: {error}", self.name);
            self.hang_up();
        }
    }

    /// Ends a command of its guest.
    pub fn complete(&mut self, ticket: u64, result: Result<Vec<u8>, Status>) {
        self.say(&match result {
            Ok(output) => ToVm::Done { ticket, output },
            Err(error) => ToVm::Failed { ticket, status: error.status() },
        });
    }

    fn hang_up(&mut self) {
        if let Some(link) = self.link.take() {
            let _ = link.shutdown(Shutdown::Both);
        }
    }

    fn give(&mut self, errand: Errand) {
        self.errands.push(Given { errand, told: Instant::now(), is_taken: false });
        self.say(&ToVm::Raise { value: value::ERRAND });
    }

    /// Tells it again of errands that it should have answered by now.
    fn remind(&mut self) {
        let mut is_late = false;
        for given in self.errands.iter_mut().filter(|given| given.told.elapsed() >= AGAIN) {
            (given.told, given.is_taken, is_late) = (Instant::now(), false, true);
        }
        if is_late {
            self.say(&ToVm::Raise { value: value::ERRAND });
        }
    }

    /// The next errand that it has not taken, of `service` if one is named.
    pub fn next_errand(&mut self, service: Option<&str>) -> Option<Errand> {
        let is_it = |given: &&mut Given| {
            let of = given.errand.service.as_str();
            !given.is_taken && service.is_none_or(|service| service == of)
        };
        let given = self.errands.iter_mut().find(is_it)?;
        given.is_taken = true;
        Some(given.errand.clone())
    }

    /// Whether it is to do this now.
    pub fn is_at(&self, number: u64, deed: Deed) -> bool {
        self.errands.iter().any(|given| (given.errand.number, given.errand.deed) == (number, deed))
    }
}

/// Has a connection that is lost not hold anybody up.
///
/// # Errors
/// The system's.
pub fn set_up(link: &UnixStream) -> std::io::Result<()> {
    link.set_write_timeout(Some(SEND_PATIENCE))
}
