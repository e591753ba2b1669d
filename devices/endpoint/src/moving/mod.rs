//! The states of a move, without any input or output: what has happened goes in, what is to be done comes out.
//!
//! A move is claimed in the directory, prepared at the destination, redirected (frames are held there from then on),
//! drained of what came before, stopped, sent, resumed without a voice, and committed. Then the destination is opened,
//! what was held released to it, and the source freed.
//!
//! The directory alone decides. Before the commit is recorded any failure leads back to the source, afterwards
//! to the destination; of a commit and an abort at once the directory takes one. So the destination gets its
//! voice only after the commit, and the source gets it back only after the abort, each of which is recorded.
//!
//! Orders may be late, or done without an answer. Each has a ticket; who gets one does nothing that has a lower ticket
//! than what it has done, and heeds no record older than that ([`duty`]).
//!
//! Whoever does not answer will, or its lease ends: then say [`Event::Lost`]. What is lost is mute
//! ([`crate::keeper`]). A hold has a deadline of its own: then say [`Event::HoldEnded`].

use crate::directory::Change;
use crate::record::{Home, Owner, Phase, Record};

pub mod damping;
#[cfg(test)]
mod tests;

/// The order in which orders were given: the revision of the record that was known, and a number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    /// The record's revision.
    pub revision: u64,
    /// The number of the order.
    pub number: u64,
}

/// What is to be done. Done twice it is as done once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Change the directory; the answer is the record as it is then.
    Record(Change),
    /// Look what the directory has of the range.
    Look,
    /// The destination makes itself ready, without a voice: room, memory, versions.
    Prepare,
    /// The switches send frames to the destination and hold them there.
    Hold,
    /// A mark follows the last frame to the source; when it has arrived, all have.
    EndMark,
    /// The source stops and is mute.
    Stop,
    /// The source's state goes to the destination.
    Send,
    /// The destination runs, without a voice.
    Resume,
    /// The destination gets its voice.
    Open,
    /// What is held goes where the directory says that the endpoint is, in order. It is done if nothing is held.
    Release,
    /// The destination says on its network that it is there.
    Announce,
    /// The source runs and has its voice, as before.
    Continue,
    /// The source forgets the endpoint. It stays mute.
    Free,
}

/// What comes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Do this and say how it went. An order before this one is not waited for any more.
    Do(Ticket, Task),
    /// The destination forgets the endpoint. Nobody waits for it: without a commit it never gets a voice.
    Discard(Ticket),
    /// For people, and for whom else it may concern.
    Notify(Notice),
}

/// What has become of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// It begins to go back.
    Aborting(Step),
    /// It was to be aborted, but is committed or about to be.
    TooLate,
    /// It is over.
    Ended(Outcome),
}

/// How a move has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The service is at the destination.
    Moved,
    /// The service is at the source.
    Aborted,
    /// The directory says where it is, but who had it there is lost.
    Orphan,
    /// Somebody else has changed the record: the service is where that says.
    Superseded,
}

/// How far a move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// It is written into the directory that there is one.
    Claiming,
    /// The destination makes itself ready.
    Preparing,
    /// It is written into the directory where frames go.
    Redirecting,
    /// The switches begin to hold.
    Holding,
    /// What was on the way to the source arrives there.
    Draining,
    /// The source stops.
    Stopping,
    /// State goes over.
    Sending,
    /// The destination resumes.
    Resuming,
    /// It is written into the directory that the service is at the destination.
    Committing,
    /// The destination gets its voice.
    Opening,
    /// What was held is released to it.
    Releasing,
    /// It says where it is.
    Announcing,
    /// The source forgets.
    Freeing,
    /// It is written into the directory that the service stays.
    Undoing,
    /// The source goes on.
    Continuing,
    /// What was held is released to the source.
    Returning,
    /// It is over.
    Ended(Outcome),
}

/// How a task went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// It is not done, and will not be.
    Refused,
    /// There is no answer: it may be done, now or later.
    Unanswered,
    /// The record as the directory has it; none if the range is not announced any more.
    Record(Option<Box<Record>>),
}

/// One side of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where the service was.
    Source,
    /// Where it is to be.
    Destination,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// How an order went.
    Answered(Ticket, Answer),
    /// Somebody wants it to end.
    Abort,
    /// It has taken too long.
    TimedOut,
    /// A side is dead, or its lease has ended.
    Lost(Side),
    /// The hold's deadline has passed, and what was held is released.
    HoldEnded,
}

/// Why there is no move.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoMove {
    /// It stays where it is.
    #[error("{0} is frozen: thaw it first")]
    Frozen(Home),
    /// It moves already.
    #[error("it is {0} already: wait until that has ended, or abort it")]
    Busy(&'static str),
    /// It is there.
    #[error("it is at {0} already")]
    SamePlace(Home),
}

/// A move, as who controls it sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    from: Home,
    owner: Owner,
    to: Home,
    heir: Owner,
    /// The record as it was seen last.
    record: Record,
    step: Step,
    /// Of what is waited for.
    ticket: Ticket,
    /// The source may have been told to stop.
    may_be_stopped: bool,
    /// The switches may hold.
    may_be_held: bool,
    is_source_lost: bool,
    is_destination_lost: bool,
    /// Somebody else has changed the record.
    is_superseded: bool,
}

impl Move {
    /// Begins to move what `record` says to `to`, where `heir` keeps it.
    ///
    /// # Errors
    /// It is frozen, moves, or is there.
    pub fn begin(record: Record, to: Home, heir: Owner) -> Result<(Self, Vec<Action>), NoMove> {
        match &record.phase {
            Phase::Home => {}
            Phase::Frozen => return Err(NoMove::Frozen(record.home)),
            phase => return Err(NoMove::Busy(phase.name())),
        }
        if record.home == to {
            return Err(NoMove::SamePlace(to));
        }
        let mut this = Self::new(record, to, heir);
        let phase = Phase::Preparing { to: this.to.clone(), heir: this.heir.clone() };
        let write = this.write(this.record.with_phase(phase));
        let actions = vec![this.go(Step::Claiming, write)];
        Ok((this, actions))
    }

    fn new(record: Record, to: Home, heir: Owner) -> Self {
        Self {
            from: record.home.clone(),
            owner: record.owner.clone(),
            to,
            heir,
            ticket: Ticket { revision: record.revision, number: 0 },
            record,
            step: Step::Claiming,
            may_be_stopped: false,
            may_be_held: false,
            is_source_lost: false,
            is_destination_lost: false,
            is_superseded: false,
        }
    }

    /// Takes over the move that `record` tells of, whose controller is gone; none if it tells of none. It goes back,
    /// except that who has all state goes on (`has_state`) when the source is lost.
    pub fn recover(
        record: Record,
        is_source_lost: bool,
        has_state: bool,
    ) -> Option<(Self, Vec<Action>)> {
        let (to, heir) = record.phase.heir()?;
        let (to, heir) = (to.clone(), heir.clone());
        let is_redirected = matches!(record.phase, Phase::Moving { .. });
        let mut this = Self::new(record, to, heir);
        (this.may_be_stopped, this.may_be_held) = (is_redirected, is_redirected);
        this.is_source_lost = is_source_lost;
        // Orders of the one before may have had this revision too.
        this.ticket.number = u64::from(u32::MAX);
        let actions = if is_redirected && is_source_lost && has_state {
            vec![this.go(Step::Resuming, Task::Resume)]
        } else {
            this.undo()
        };
        Some((this, actions))
    }

    /// How far it is.
    pub fn step(&self) -> Step {
        self.step
    }

    /// The record as it was seen last.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Where it goes.
    pub fn to(&self) -> &Home {
        &self.to
    }

    /// How it has ended, if it has.
    pub fn outcome(&self) -> Option<Outcome> {
        if let Step::Ended(outcome) = self.step { Some(outcome) } else { None }
    }

    /// What is to be done after `event`.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Answered(ticket, answer) if ticket == self.ticket => self.answered(answer),
            Event::Answered(..) => Vec::new(),
            Event::Abort if self.step < Step::Committing => self.undo(),
            Event::Abort if self.step < Step::Undoing => vec![Action::Notify(Notice::TooLate)],
            Event::Abort => Vec::new(),
            Event::TimedOut if self.step < Step::Opening => self.undo(),
            Event::TimedOut => Vec::new(),
            Event::Lost(Side::Source) => self.source_lost(),
            Event::Lost(Side::Destination) => self.destination_lost(),
            Event::HoldEnded => {
                self.may_be_held = false;
                match self.step {
                    // Without a hold nothing is stopped: its frames would be lost.
                    Step::Holding | Step::Draining | Step::Stopping => self.undo(),
                    Step::Releasing => self.released(),
                    Step::Returning => self.returned(),
                    _ => Vec::new(),
                }
            }
        }
    }

    fn source_lost(&mut self) -> Vec<Action> {
        self.is_source_lost = true;
        match self.step {
            step if step < Step::Resuming => self.undo(),
            Step::Freeing => self.freed(),
            Step::Continuing => self.continued(),
            _ => Vec::new(),
        }
    }

    fn destination_lost(&mut self) -> Vec<Action> {
        self.is_destination_lost = true;
        match self.step {
            step if step <= Step::Committing => self.undo(),
            Step::Opening => self.opened(),
            Step::Announcing => self.announced(),
            _ => Vec::new(),
        }
    }

    fn answered(&mut self, answer: Answer) -> Vec<Action> {
        match self.step {
            Step::Claiming | Step::Redirecting => match answer {
                Answer::Record(Some(record)) => self.recorded(*record),
                _ => self.undo(),
            },
            Step::Committing | Step::Undoing => match answer {
                Answer::Record(Some(record)) => self.seen(*record),
                Answer::Record(None) => self.superseded(),
                _ => vec![self.go(self.step, Task::Look)],
            },
            Step::Preparing => self.then(&answer, |this| {
                let phase = Phase::Moving { to: this.to.clone(), heir: this.heir.clone() };
                let write = this.write(this.record.with_phase(phase));
                this.go(Step::Redirecting, write)
            }),
            Step::Holding => self.then(&answer, |this| this.go(Step::Draining, Task::EndMark)),
            Step::Draining => self.then(&answer, |this| {
                this.may_be_stopped = true;
                this.go(Step::Stopping, Task::Stop)
            }),
            Step::Stopping => self.then(&answer, |this| this.go(Step::Sending, Task::Send)),
            Step::Sending => self.then(&answer, |this| this.go(Step::Resuming, Task::Resume)),
            Step::Resuming => self.then(&answer, Self::commit),
            // From here there is but one way: what does not answer is asked again.
            Step::Opening => self.insist(&answer, Task::Open, Self::opened),
            Step::Releasing => self.insist(&answer, Task::Release, Self::released),
            Step::Announcing => self.announced(),
            Step::Freeing => self.insist(&answer, Task::Free, Self::freed),
            Step::Continuing => self.insist(&answer, Task::Continue, Self::continued),
            Step::Returning => self.insist(&answer, Task::Release, Self::returned),
            Step::Ended(_) => Vec::new(),
        }
    }

    /// The next step if the last is done, or back.
    fn then(&mut self, answer: &Answer, next: impl FnOnce(&mut Self) -> Action) -> Vec<Action> {
        if *answer == Answer::Done { vec![next(self)] } else { self.undo() }
    }

    /// The next step when the last is done. What refuses now will not do it: it is given up.
    fn insist(
        &mut self,
        answer: &Answer,
        task: Task,
        next: impl FnOnce(&mut Self) -> Vec<Action>,
    ) -> Vec<Action> {
        match answer {
            Answer::Unanswered | Answer::Record(_) => vec![self.go(self.step, task)],
            // Nothing that is held is left behind: it is asked again until the hold's deadline.
            Answer::Refused if task == Task::Release => vec![self.go(self.step, task)],
            Answer::Refused => {
                match self.step {
                    Step::Opening => self.is_destination_lost = true,
                    Step::Continuing => self.is_source_lost = true,
                    _ => {}
                }
                next(self)
            }
            Answer::Done => next(self),
        }
    }

    /// Gives an order.
    fn go(&mut self, step: Step, task: Task) -> Action {
        self.step = step;
        let revision = self.record.revision.max(self.ticket.revision);
        self.ticket = Ticket { revision, number: self.ticket.number.saturating_add(1) };
        Action::Do(self.ticket, task)
    }

    fn end(&mut self, outcome: Outcome) -> Vec<Action> {
        self.step = Step::Ended(outcome);
        vec![Action::Notify(Notice::Ended(outcome))]
    }

    /// The record becomes `to`, if it is still what was seen.
    fn write(&self, to: Record) -> Task {
        Task::Record(Change::update(self.record.clone(), to))
    }

    /// What is claimed or redirected is written.
    fn recorded(&mut self, record: Record) -> Vec<Action> {
        let is_redirected = matches!(record.phase, Phase::Moving { .. });
        self.record = record;
        match self.step {
            Step::Redirecting if is_redirected => {
                self.may_be_held = true;
                vec![self.go(Step::Holding, Task::Hold)]
            }
            _ => vec![self.go(Step::Preparing, Task::Prepare)],
        }
    }

    fn commit(&mut self) -> Action {
        let write = self.write(self.record.at(self.to.clone(), self.heir.clone()));
        self.go(Step::Committing, write)
    }

    /// Goes back. What the directory has is looked up first, for a write before may be done without an answer.
    fn undo(&mut self) -> Vec<Action> {
        if self.step >= Step::Undoing {
            return Vec::new();
        }
        vec![Action::Notify(Notice::Aborting(self.step)), self.go(Step::Undoing, Task::Look)]
    }

    /// What the directory has, when it is to be committed or undone.
    fn seen(&mut self, record: Record) -> Vec<Action> {
        let is_written = record.revision > self.record.revision;
        self.record = record;
        let is_ours =
            self.record.phase.heir().is_none_or(|(to, heir)| (to, heir) == (&self.to, &self.heir));
        if (&self.record.home, &self.record.owner) == (&self.to, &self.heir) {
            return vec![self.go(Step::Opening, Task::Open)];
        }
        if (&self.record.home, &self.record.owner) != (&self.from, &self.owner) || !is_ours {
            return self.superseded();
        }
        let is_back = self.record.phase.heir().is_none();
        match self.step {
            Step::Committing if !is_back => vec![self.commit()],
            // Written once more, so that no write before it is done late.
            _ if !is_back || (self.step == Step::Undoing && !is_written) => {
                let phase = if is_back { self.record.phase.clone() } else { Phase::Home };
                let write = self.write(self.record.with_phase(phase));
                vec![self.go(Step::Undoing, write)]
            }
            _ => self.undone(),
        }
    }

    /// The directory says that the service stays at the source.
    fn undone(&mut self) -> Vec<Action> {
        let mut actions = vec![Action::Discard(self.ticket)];
        if self.may_be_stopped && !self.is_source_lost {
            actions.push(self.go(Step::Continuing, Task::Continue));
        } else {
            actions.extend(self.continued());
        }
        actions
    }

    fn continued(&mut self) -> Vec<Action> {
        if self.may_be_held {
            vec![self.go(Step::Returning, Task::Release)]
        } else {
            self.returned()
        }
    }

    fn returned(&mut self) -> Vec<Action> {
        self.may_be_held = false;
        self.end(match (self.is_superseded, self.is_source_lost) {
            (true, _) => Outcome::Superseded,
            (false, true) => Outcome::Orphan,
            (false, false) => Outcome::Aborted,
        })
    }

    /// Somebody else says where the service is: what this move has done is taken back, and both sides see to it.
    fn superseded(&mut self) -> Vec<Action> {
        self.is_superseded = true;
        let mut actions = vec![Action::Discard(self.ticket)];
        actions.extend(self.continued());
        actions
    }

    fn opened(&mut self) -> Vec<Action> {
        if self.may_be_held {
            vec![self.go(Step::Releasing, Task::Release)]
        } else {
            self.released()
        }
    }

    fn released(&mut self) -> Vec<Action> {
        self.may_be_held = false;
        if self.is_destination_lost {
            self.announced()
        } else {
            vec![self.go(Step::Announcing, Task::Announce)]
        }
    }

    fn announced(&mut self) -> Vec<Action> {
        if self.is_source_lost { self.freed() } else { vec![self.go(Step::Freeing, Task::Free)] }
    }

    fn freed(&mut self) -> Vec<Action> {
        self.end(if self.is_destination_lost { Outcome::Orphan } else { Outcome::Moved })
    }
}

/// What a place does about an endpoint by its record, without being told: what puts right what an order that was
/// lost, or a controller that is, has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Run, with a voice.
    Serve,
    /// Stay as it is: orders decide. Who was not running has no voice.
    Stay,
    /// Forget it; be mute.
    Forget,
}

/// What `place` is to do by `record`. Heed no record whose revision is lower than that of the last order's ticket.
pub fn duty(place: &Home, record: Option<&Record>) -> Duty {
    let Some(record) = record else { return Duty::Forget };
    match &record.phase {
        Phase::Moving { to, .. } if *place == record.home || place == to => Duty::Stay,
        _ if *place == record.home => Duty::Serve,
        Phase::Preparing { to, .. } if place == to => Duty::Stay,
        _ => Duty::Forget,
    }
}
