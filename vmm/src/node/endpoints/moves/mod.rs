//! Moves: what [`endpoint::moving`] wants done, done. Each has a thread at the host that the endpoint leaves.
//!
//! What is to be done at the destination is an [`Order`], whether that is on this node or on another.
//!
//! | Module | What |
//! |---|---|
//! | here | the controller |
//! | [`source`] | the source's side |
//! | [`destination`] | the destination's side |
//! | [`state`] | the state on its way |
//! | [`recovery`] | what an agent or a host that is gone has left |

mod destination;
mod recovery;
mod source;
mod state;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use endpoint::directory::DirectoryError;
use endpoint::moving::{
    Action, Answer, Event, Move, NoMove, Notice, Outcome as End, Side, Task, Ticket,
};
use endpoint::name::Name;
use endpoint::range::Range;
use endpoint::record::{Home, Owner, Phase, Record};
use endpoint::rights;

pub use self::destination::Order;
use self::destination::What;
use self::state::State;
use super::error::EndpointError;
use super::guests::{Deed, Outcome, Passage};
use super::store::Begun;
use super::{Endpoints, Selection, count};
use crate::api::endpoint::{MoveInfo, MoveStep};
use crate::node::moment;

/// Moves at a time.
const MOST_MOVES: usize = 64;
/// How long a guest may take for an errand.
const ERRAND_PATIENCE: Duration = Duration::from_secs(15);
/// How long a move may take until it is decided.
const MOVE_PATIENCE: Duration = Duration::from_secs(40);
/// How long frames are held, if nobody ends it before.
const HOLD_PATIENCE: Duration = Duration::from_secs(60);
/// How long what has been decided is tried.
const END_PATIENCE: Duration = Duration::from_secs(60);
/// Between one attempt and the next.
const PAUSE: Duration = Duration::from_millis(50);

/// The moves of this node.
#[derive(Debug, Default)]
pub struct Moves {
    active: Mutex<HashMap<u64, Arc<Active>>>,
    /// States on their way, by move.
    states: Mutex<HashMap<u64, State>>,
    /// Ranges that come from other hosts, since when.
    coming: Mutex<HashMap<Range, Instant>>,
    /// Moves of which an order is carried out just now, by number.
    obeying: Mutex<HashSet<u64>>,
    /// Since when moves that nobody carries on are decided, by number.
    decided: Mutex<HashMap<u64, Instant>>,
    /// The last order of each range.
    heeded: Mutex<HashMap<Range, Ticket>>,
    last: Mutex<u64>,
}

/// A move that goes on.
#[derive(Debug)]
struct Active {
    number: u64,
    service: Name,
    range: Range,
    from: Home,
    to: Home,
    /// The VM that it leaves, if it is of this node.
    source: Option<u64>,
    stateless: bool,
    is_lost: [AtomicBool; 2],
    reason: Mutex<Option<String>>,
}

impl Active {
    fn note(&self, why: impl Into<String>) {
        // The first is what the others come of.
        lock(&self.reason).get_or_insert_with(|| why.into());
    }

    fn is_lost(&self, side: Side) -> &AtomicBool {
        &self.is_lost[usize::from(side == Side::Destination)]
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Moves {
    /// A VM of this node has ended: its moves hear of it.
    pub fn lost(&self, vm: u64) {
        for active in lock(&self.active).values() {
            if active.source == Some(vm) {
                active.is_lost(Side::Source).store(true, Ordering::Release);
            }
        }
    }

    /// A number that no move had.
    fn number(&self) -> u64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.map_or(0, |now| u64::try_from(now.as_micros()).unwrap_or(0));
        let mut last = lock(&self.last);
        *last = now.max(last.saturating_add(1));
        *last
    }

    /// Whether the order with this ticket is not older than what was done.
    fn heed(&self, range: Range, ticket: Ticket) -> bool {
        let mut heeded = lock(&self.heeded);
        let last = heeded.entry(range).or_default();
        let is_new = ticket >= *last;
        if is_new {
            *last = ticket;
        }
        is_new
    }
}

impl Endpoints {
    /// Moves identifiers to another VM; returns when that is over.
    pub(super) fn move_to(
        &self,
        asker: Option<u64>,
        selection: &Selection,
        to: &str,
        stateless: bool,
    ) -> Result<MoveInfo, EndpointError> {
        let record = self.select_one(asker, selection)?;
        let deed = if stateless { rights::Deed::Split } else { rights::Deed::Move };
        self.permit(asker, deed, &record, 1)?;
        self.move_record(&record, to, stateless)
    }

    /// Where `to` is: a VM of this node, HOST/VM, or any VM of this node that may.
    fn place(&self, record: &Record, to: &str) -> Result<Home, EndpointError> {
        if to == "any" {
            let guests = self.guests().lock();
            let may = |name: &str| name != record.home.port() || record.home.host() != self.host();
            let mut able = guests.iter().filter(|(_, guest)| {
                let rights = guest.spec.rights();
                may(&guest.name)
                    && guest.is_connected()
                    && guest.port.is_some()
                    && rights.announce(&record.service, 0, 1).is_ok()
            });
            let found = able.next().map(|(_, guest)| guest.name.clone());
            drop(able);
            drop(guests);
            let name = found.ok_or_else(|| EndpointError::NoPlace(record.service.to_string()))?;
            return self.home(&name);
        }
        if to.contains('/') { Ok(to.parse()?) } else { self.home(to) }
    }

    /// Moves a range.
    pub(super) fn move_record(
        &self,
        record: &Record,
        to: &str,
        stateless: bool,
    ) -> Result<MoveInfo, EndpointError> {
        let to = self.place(record, to)?;
        let source = self.number_of(record.home.port())?;
        let heir: Owner = to.host().parse()?;
        if to.host() == self.host() {
            let destination = self.may_serve(to.port(), &record.service)?;
            let ((bridge, _), (other, _)) = (self.port_of(source)?, self.port_of(destination)?);
            if bridge != other {
                let (from, to) = (record.home.port().to_owned(), to.port().to_owned());
                return Err(EndpointError::OtherBridge(from, bridge, to));
            }
        } else {
            self.peer(to.host())?;
        }
        // What is frozen, or moves, or is there, is refused before it counts.
        let (state, actions) = Move::begin(record.clone(), to.clone(), heir)?;
        if self.is_busy(record.range) {
            return Err(NoMove::Busy("moving").into());
        }
        self.admit(record)?;
        let active = Arc::new(Active {
            number: self.0.moves.number(),
            service: record.service.clone(),
            range: record.range,
            from: record.home.clone(),
            to,
            source: Some(source),
            stateless,
            is_lost: Default::default(),
            reason: Mutex::new(None),
        });
        self.carry_through(&active, state, actions)
    }

    /// Does all of a move, on this thread.
    fn carry_through(
        &self,
        active: &Arc<Active>,
        mut state: Move,
        mut actions: Vec<Action>,
    ) -> Result<MoveInfo, EndpointError> {
        let moves = &self.0.moves;
        {
            let mut all = lock(&moves.active);
            if all.values().any(|other| other.range.overlaps(active.range)) {
                return Err(NoMove::Busy("moving").into());
            }
            if all.len() >= MOST_MOVES {
                return Err(EndpointError::Busy(MOST_MOVES));
            }
            all.insert(active.number, active.clone());
        }
        let begun = Begun {
            number: active.number,
            service: active.service.clone(),
            range: active.range,
            from: active.from.clone(),
            to: active.to.clone(),
            stateless: active.stateless,
        };
        if let Err(error) = self.0.store.begin(begun) {
            lock(&moves.active).remove(&active.number);
            return Err(EndpointError::System("note the move", error));
        }
        let destination =
            (active.to.host() == self.host()).then(|| self.number_of(active.to.port()).ok());
        let waiting =
            State { source: active.source, destination: destination.flatten(), bytes: Vec::new() };
        lock(&moves.states).entry(active.number).or_insert(waiting);
        let since = Instant::now();
        let (mut steps, mut held) = (Vec::new(), None::<Instant>);
        let mut held_us = 0;
        let (mut is_late, mut decided) = (false, None::<Instant>);
        let mut looked = false;
        let mut told_lost = [false; 2];
        while state.outcome().is_none() {
            let mut next = Vec::new();
            for action in std::mem::take(&mut actions) {
                match action {
                    Action::Do(ticket, task) => {
                        let name = name(&task);
                        // What is asked for again and again is not asked for at once again.
                        if matches!(task, Task::Look) && looked {
                            thread::sleep(PAUSE);
                        }
                        looked |= matches!(task, Task::Look);
                        let started = Instant::now();
                        if matches!(task, Task::Hold) {
                            held = Some(started);
                        }
                        moment::before("move", name);
                        let answer = self.perform(active, &state, ticket, task.clone());
                        steps.push(MoveStep { name: name.to_owned(), us: micros(started) });
                        if matches!(task, Task::Release) && answer == Answer::Done {
                            held_us = held.map_or(0, micros);
                        }
                        if answer == Answer::Unanswered {
                            thread::sleep(PAUSE);
                        }
                        next.extend(state.handle(Event::Answered(ticket, answer)));
                    }
                    Action::Discard(ticket) => {
                        let order = self.order(active, ticket, What::Discard);
                        if let Outcome::Refused(why) = self.at(active, &order) {
                            log::debug!("move {}: {why}", active.number);
                        }
                    }
                    Action::Notify(Notice::Aborting(step)) => {
                        active.note(format!("it did not get further than {step:?}"));
                    }
                    Action::Notify(_) => {}
                }
            }
            actions = next;
            for (side, told) in [Side::Source, Side::Destination].into_iter().zip(&mut told_lost) {
                if !*told && active.is_lost(side).load(Ordering::Acquire) {
                    *told = true;
                    active.note(format!("the {side:?} is lost"));
                    actions.extend(state.handle(Event::Lost(side)));
                }
            }
            if !is_late && since.elapsed() > MOVE_PATIENCE {
                is_late = true;
                actions.extend(state.handle(Event::TimedOut));
            }
            // Nothing waits for ever for a guest that does not do what was decided.
            if state.step() >= endpoint::moving::Step::Opening {
                let since = *decided.get_or_insert_with(Instant::now);
                if since.elapsed() > END_PATIENCE {
                    decided = Some(Instant::now());
                    for side in [Side::Source, Side::Destination] {
                        actions.extend(state.handle(Event::Lost(side)));
                    }
                    actions.extend(state.handle(Event::HoldEnded));
                }
            }
            if actions.is_empty() && state.outcome().is_none() {
                // It waits for an answer that was given to another order.
                thread::sleep(PAUSE);
                actions.extend(state.handle(Event::TimedOut));
                if actions.is_empty() {
                    break;
                }
            }
        }
        let bytes = lock(&moves.states).remove(&active.number).map_or(0, |state| state.bytes.len());
        lock(&moves.active).remove(&active.number);
        self.0.store.end(active.number);
        let counts = &self.0.counts;
        let outcome = match state.outcome() {
            Some(End::Moved) => {
                count(&counts.moved);
                "moved"
            }
            Some(End::Orphan) => {
                count(&counts.orphaned);
                "orphan"
            }
            Some(End::Superseded) => "superseded",
            Some(End::Aborted) | None => {
                count(&counts.aborted);
                "aborted"
            }
        };
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        counts.held_us.fetch_add(held_us, Ordering::Relaxed);
        counts.state_bytes.fetch_add(bytes, Ordering::Relaxed);
        let reason = if outcome == "moved" { None } else { lock(&active.reason).clone() };
        let took = |step: &MoveStep| format!("{} {:.1}", step.name, ms(step.us));
        log::info!(
            "{} from {} to {}: {outcome}{}; held {:.1} ms, {bytes} bytes of state; {} ms",
            active.service,
            active.from,
            active.to,
            reason.as_ref().map(|why| format!(" ({why})")).unwrap_or_default(),
            ms(held_us),
            steps.iter().map(took).collect::<Vec<_>>().join(", ")
        );
        for home in [&active.from, &active.to] {
            let guests = self.guests().lock();
            let guest = guests.named(home.port()).filter(|_| home.host() == self.host());
            if let Some((_, guest)) = guest {
                log::debug!("{home}: {:?}", guest.counted());
            }
        }
        Ok(MoveInfo {
            number: active.number,
            from: active.from.to_string(),
            to: active.to.to_string(),
            outcome: outcome.to_owned(),
            reason,
            state_bytes: bytes,
            held_us,
            us: micros(since),
            steps,
        })
    }

    fn order(&self, active: &Active, ticket: Ticket, what: What) -> Order {
        let sent = lock(&self.0.moves.states).get(&active.number).map_or(0, |s| s.bytes.len());
        Order {
            number: active.number,
            revision: ticket.revision,
            turn: ticket.number,
            service: active.service.clone(),
            range: active.range,
            from: active.from.clone(),
            vm: active.to.port().to_owned(),
            what,
            bytes: u64::try_from(sent).unwrap_or(u64::MAX),
            stateless: active.stateless,
        }
    }

    /// Has the destination's host do something.
    fn at(&self, active: &Active, order: &Order) -> Outcome {
        if active.to.host() == self.host() {
            return self.obey(order);
        }
        match self.peer(active.to.host()) {
            Ok(peer) => peer.order(order),
            Err(error) => Outcome::Refused(error.to_string()),
        }
    }

    fn answer(active: &Active, outcome: Outcome) -> Answer {
        match outcome {
            Outcome::Done => Answer::Done,
            Outcome::Refused(why) => {
                active.note(why);
                Answer::Refused
            }
            Outcome::Silent => {
                active.note("a guest does not answer");
                Answer::Unanswered
            }
        }
    }

    fn done(active: &Active, done: Result<(), EndpointError>) -> Answer {
        match done {
            Ok(()) => Answer::Done,
            Err(error) => {
                active.note(error.to_string());
                Answer::Refused
            }
        }
    }

    /// Does what a move wants done.
    fn perform(&self, active: &Active, state: &Move, ticket: Ticket, task: Task) -> Answer {
        let far = |what| Self::answer(active, self.at(active, &self.order(active, ticket, what)));
        match task {
            Task::Record(change) => match self.change(&change) {
                Ok(records) => {
                    let found = records.into_iter().find(|record| record.range == active.range);
                    Answer::Record(found.map(Box::new))
                }
                Err(EndpointError::Directory(DirectoryError::Unreachable(why))) => {
                    active.note(why);
                    Answer::Unanswered
                }
                Err(error) => {
                    active.note(error.to_string());
                    Answer::Refused
                }
            },
            Task::Look => match self.0.directory.find(active.range.first()) {
                Ok(entry) => {
                    let record = entry.map(|entry| entry.record);
                    let same = record.filter(|record| record.range == active.range);
                    Answer::Record(same.map(Box::new))
                }
                Err(_) => Answer::Unanswered,
            },
            Task::Prepare => far(What::Prepare),
            Task::Hold => Self::done(active, self.hold_at(active)),
            Task::EndMark => Self::done(active, self.drain_source(active)),
            Task::Stop => self.stop(active),
            Task::Send => self.send_state(active),
            Task::Resume => far(What::Resume),
            Task::Open => far(What::Open),
            Task::Release => {
                let is_moved = state.record().home == active.to;
                let here = self.release_here(active, is_moved);
                let is_far = active.to.host() != self.host();
                let is_next = is_moved && is_far && here == Answer::Done;
                if is_next { far(What::Release) } else { here }
            }
            Task::Announce => far(What::Announce),
            Task::Continue => self.at_source(active, Deed::Continue, Some(Passage::OPEN)),
            Task::Free => self.at_source(active, Deed::Free, None),
        }
    }
}

/// For people.
fn ms(us: u64) -> f64 {
    Duration::from_micros(us).as_secs_f64() * 1e3
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// What a step is called.
fn name(task: &Task) -> &'static str {
    match task {
        Task::Record(change) => match change.to.first().map(|record| &record.phase) {
            Some(Phase::Preparing { .. }) => "claim",
            Some(Phase::Moving { .. }) => "redirect",
            Some(Phase::Home | Phase::Frozen) => {
                let stays = change.from.first().map(|record| &record.home)
                    == change.to.first().map(|record| &record.home);
                if stays { "undo" } else { "commit" }
            }
            None => "withdraw",
        },
        Task::Look => "look",
        Task::Prepare => "prepare",
        Task::Hold => "hold",
        Task::EndMark => "drain",
        Task::Stop => "stop",
        Task::Send => "send",
        Task::Resume => "resume",
        Task::Open => "open",
        Task::Release => "release",
        Task::Announce => "announce",
        Task::Continue => "continue",
        Task::Free => "free",
    }
}
