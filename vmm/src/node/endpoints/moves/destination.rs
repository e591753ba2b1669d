//! The destination's side of a move: what the host that an endpoint leaves wants done here, be it this one or another.

use std::time::Instant;

use endpoint::moving::Ticket;
use endpoint::name::Name;
use endpoint::range::Range;
use endpoint::record::Home;
use serde::{Deserialize, Serialize};

use super::super::error::EndpointError;
use super::super::guests::{Deed, Errand, Outcome, Passage};
use super::super::store::Begun;
use super::super::{Endpoints, switches};
use super::{END_PATIENCE, ERRAND_PATIENCE, MOVE_PATIENCE, lock};
use crate::node::moment;

/// What the destination's host is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The move.
    pub number: u64,
    /// Of two orders of a range, the older one is not carried out after the other.
    pub revision: u64,
    /// Among those of one revision.
    pub turn: u64,
    /// The service.
    pub service: Name,
    /// The identifiers.
    pub range: Range,
    /// Where it was.
    pub from: Home,
    /// The VM there.
    pub vm: String,
    /// What.
    pub what: What,
    /// Bytes of the state that was sent.
    pub bytes: u64,
    /// The service brings its state over by itself.
    pub stateless: bool,
}

/// What is to be done at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Be ready, and hold what comes.
    Prepare,
    /// Take the state up.
    Resume,
    /// Go on.
    Open,
    /// Let in what was held.
    Release,
    /// Tell networks beyond our switches that it is here.
    Announce,
    /// Forget it.
    Discard,
}

impl What {
    fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Resume => "resume",
            Self::Open => "open",
            Self::Release => "release",
            Self::Announce => "announce",
            Self::Discard => "discard",
        }
    }
}

impl Endpoints {
    /// Does what the host that an endpoint leaves wants done here.
    pub(in super::super) fn obey(&self, order: &Order) -> Outcome {
        let ticket = Ticket { revision: order.revision, number: order.turn };
        if !self.0.moves.heed(order.range, ticket) {
            return Outcome::Refused("a later order was carried out already".into());
        }
        // Meanwhile nobody here takes the move for one that is left.
        lock(&self.0.moves.obeying).insert(order.number);
        moment::before("order", order.what.name());
        let outcome = self.follow_order(order);
        lock(&self.0.moves.obeying).remove(&order.number);
        outcome
    }

    fn follow_order(&self, order: &Order) -> Outcome {
        let errand = |deed| Errand {
            deed,
            number: order.number,
            service: order.service.clone(),
            range: order.range,
            bytes: order.bytes,
        };
        let vm = match self.may_serve(&order.vm, &order.service) {
            Ok(vm) => vm,
            Err(_) if order.what == What::Discard => return Outcome::Done,
            Err(error) => return Outcome::Refused(error.to_string()),
        };
        let run = |deed| {
            if order.stateless {
                return Outcome::Done;
            }
            self.guests().run(vm, &errand(deed), ERRAND_PATIENCE, || false)
        };
        let pass = |passage| match self.guests().pass(vm, (&order.service, order.range), passage) {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Refused(error.to_string()),
        };
        match order.what {
            What::Prepare if self.is_leaving(order) => {
                Outcome::Refused("it is still leaving this host: try again".into())
            }
            What::Prepare => match run(Deed::Prepare) {
                Outcome::Done => {
                    let mut states = lock(&self.0.moves.states);
                    states.entry(order.number).or_default().destination = Some(vm);
                    drop(states);
                    if let Err(error) = self.note_coming(order) {
                        return Outcome::Refused(error.to_string());
                    }
                    // What comes from the other host is led to the VM, which holds it.
                    match pass(Some(Passage::HELD)) {
                        Outcome::Done => match self.lead_here(order, vm) {
                            Ok(()) => Outcome::Done,
                            Err(error) => Outcome::Refused(error.to_string()),
                        },
                        other => other,
                    }
                }
                other => other,
            },
            What::Resume => run(Deed::Resume),
            What::Open => {
                let speaks = Passage { may_send: true, ..Passage::HELD };
                match pass(Some(speaks)) {
                    Outcome::Done => match run(Deed::Open) {
                        // Its process is gone, and the connections with it; the service is here all the same.
                        Outcome::Refused(why) => {
                            log::warn!("move {}: connections are lost: {why}", order.number);
                            Outcome::Done
                        }
                        other => other,
                    },
                    other => other,
                }
            }
            What::Release => self.let_in(order),
            What::Announce => {
                // Those networks learn it too from what the new home sends.
                if let Err(error) = self.announce_here(order, vm) {
                    log::warn!("move {}: {error}", order.number);
                }
                Outcome::Done
            }
            What::Discard => {
                let _ = pass(None);
                let done = run(Deed::Discard);
                self.came_or_not(order);
                self.lead_back(order);
                done
            }
        }
    }

    /// A move from another host begins: should that be gone, this one ends it.
    fn note_coming(&self, order: &Order) -> Result<(), EndpointError> {
        if order.from.host() == self.host() {
            return Ok(());
        }
        let begun = Begun {
            number: order.number,
            service: order.service.clone(),
            range: order.range,
            from: order.from.clone(),
            to: self.home(&order.vm)?,
            stateless: order.stateless,
        };
        lock(&self.0.moves.coming).insert(order.range, Instant::now());
        self.0.store.begin(begun).map_err(EndpointError::system("note the move"))
    }

    /// Whether a move of a range has not quite ended. Committed, the directory has it at home, but its guests have
    /// not heard of that yet.
    pub(super) fn is_busy(&self, range: Range) -> bool {
        let is_at_it = lock(&self.0.moves.active).values().any(|a| a.range.overlaps(range));
        is_at_it || lock(&self.0.moves.coming).get(&range).is_some_and(is_fresh)
    }

    /// Whether the range that another host wants to move here has not quite left yet.
    fn is_leaving(&self, order: &Order) -> bool {
        let active = lock(&self.0.moves.active);
        active.values().any(|a| a.number != order.number && a.range.overlaps(order.range))
    }

    /// Leads frames to what another host moves here to the VM.
    fn lead_here(&self, order: &Order, vm: u64) -> Result<(), EndpointError> {
        if order.from.host() == self.host() {
            return Ok(());
        }
        let (bridge, port) = self.port_of(vm)?;
        switches::point(&*self.0.switches.open(&bridge)?, order.range, Some(port))
    }

    fn announce_here(&self, order: &Order, vm: u64) -> Result<(), EndpointError> {
        let (bridge, _) = self.port_of(vm)?;
        Ok(self.0.switches.open(&bridge)?.announce(switches::vids(order.range))?)
    }

    /// It stays at the other host.
    fn lead_back(&self, order: &Order) {
        if order.from.host() != self.host()
            && let Some(entry) = self.0.cache.find(order.range.first())
        {
            self.lead(&[entry.record]);
        }
    }

    /// Whether a range comes from another host just now.
    pub(in super::super) fn is_coming(&self, range: Range) -> bool {
        lock(&self.0.moves.coming).get(&range).is_some_and(is_fresh)
    }

    fn came_or_not(&self, order: &Order) {
        if order.from.host() != self.host() {
            lock(&self.0.moves.states).remove(&order.number);
            lock(&self.0.moves.coming).remove(&order.range);
            self.0.store.end(order.number);
        }
    }

    pub(super) fn let_in(&self, order: &Order) -> Outcome {
        let vm = match self.number_of(&order.vm) {
            Ok(vm) => vm,
            Err(error) => return Outcome::Refused(error.to_string()),
        };
        match self.guests().pass(vm, (&order.service, order.range), Some(Passage::OPEN)) {
            Ok(()) => {
                self.came_or_not(order);
                Outcome::Done
            }
            Err(error) => Outcome::Refused(error.to_string()),
        }
    }
}

/// Whether a host that moves something here may still be at it.
fn is_fresh(since: &Instant) -> bool {
    since.elapsed() < MOVE_PATIENCE + END_PATIENCE
}
