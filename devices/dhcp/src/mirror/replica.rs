//! One server's part in the group: what it does when it hears something, or nothing for long. No input or output.

mod agree;
mod hear;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    BEAT_MILLIS, Config, LEASE_MILLIS, Message, Node, Position, QUIET_MILLIS, RANK_MILLIS, State,
    Step,
};
use crate::journal::Record;
use crate::table::{Change, Millis, Table};

/// How long a server waits for answers before it asks again, in milliseconds.
const RETRY_MILLIS: Millis = 250;

/// What is to be done, in this order: nothing is sent before what was to be kept before it is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// To be kept.
    Keep(Record),
    /// To be sent.
    Send(Node, Message),
}

/// How a server that has no state begins, or one that has begins again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// As what it was; if it was nothing, as a mirror.
    Again,
    /// As the first server of a group with this number, if it was nothing.
    First(u64),
    /// As a server without mirrors, whatever it was: somebody knows that no other serves.
    Alone(u64),
}

/// What a server is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It answers clients.
    Serving,
    /// It would, and lacks mirrors.
    Waiting,
    /// It asks the mirrors whether it may serve.
    Asking,
    /// It is a mirror.
    Mirror,
    /// It is to become one, and no server has come yet.
    Fresh,
}

#[derive(Debug, Default)]
struct Progress {
    /// How many steps it has said that it has.
    acked: Option<u64>,
    /// When the server spoke whom it heard last.
    heard: Option<Millis>,
}

#[derive(Debug)]
struct Serving {
    /// The mirrors before the present ones, as long as those have not agreed, and the step that they are to agree to.
    old: Option<(BTreeSet<Node>, u64)>,
    /// Whether the taking over was agreed to.
    settled: bool,
    progress: BTreeMap<Node, Progress>,
    committed: u64,
    next_beat: Millis,
}

#[derive(Debug)]
enum Role {
    Mirror,
    Asking { epoch: u64, grants: BTreeSet<Node>, again: Millis },
    Server(Serving),
}

/// A server's part.
#[derive(Debug)]
pub struct Replica {
    me: Node,
    group: u64,
    promised: u64,
    /// The highest epoch that was heard of.
    highest: u64,
    config: Config,
    index: u64,
    table: Table,
    role: Role,
    /// Until when nobody else is let take over.
    quiet_until: Millis,
    peers: BTreeSet<Node>,
    stopped: bool,
    effects: Vec<Effect>,
}

fn majority(count: usize) -> usize {
    count / 2 + 1
}

impl Replica {
    /// The server whose journal says `records`; who it is must be there or is `fresh`.
    pub fn new(fresh: Node, records: Vec<Record>, start: Start, now: Millis) -> Self {
        let mut replica = Self {
            me: fresh,
            group: 0,
            promised: 0,
            highest: 0,
            config: Config::default(),
            index: 0,
            table: Table::default(),
            role: Role::Mirror,
            // It may have promised just before it ended.
            quiet_until: now + QUIET_MILLIS,
            peers: BTreeSet::new(),
            stopped: false,
            effects: Vec::new(),
        };
        let mut known = false;
        for record in records {
            match record {
                Record::Node(node) => (replica.me, known) = (node, true),
                Record::Promised(epoch) => replica.promised = replica.promised.max(epoch),
                Record::State(state) => replica.restore(state, now),
                Record::Steps(steps) => {
                    for step in &steps {
                        replica.apply(step, now);
                    }
                }
            }
        }
        if !known {
            replica.keep(Record::Node(replica.me));
        }
        replica.promised = replica.promised.max(replica.config.epoch);
        let begin = match start {
            Start::Again => None,
            Start::First(group) => (replica.config.epoch == 0).then_some((group, false)),
            Start::Alone(group) => Some((group, true)),
        };
        if let Some((group, alone)) = begin {
            if replica.group == 0 {
                replica.group = group;
            }
            replica.config.mirrors.clear();
            (replica.config.alone, replica.config.server) = (alone, replica.me);
            replica.serve(replica.promised + 1, now);
        }
        replica
    }

    /// Who this is.
    pub fn node(&self) -> Node {
        self.me
    }

    /// The group that it belongs to; 0 if to none yet.
    pub fn group(&self) -> u64 {
        self.group
    }

    /// The leases.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Who serves, as far as is known here.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How far it is.
    pub fn position(&self) -> Position {
        Position { epoch: self.config.epoch, index: self.index }
    }

    /// What was to be done since this was asked last.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The records that say all that is known here.
    pub fn records(&self, now: Millis) -> Vec<Record> {
        let state = Record::State(self.state(now));
        vec![Record::Node(self.me), Record::Promised(self.promised), state]
    }

    /// How many steps a majority has.
    pub fn committed(&self) -> u64 {
        match &self.role {
            Role::Server(serving) => serving.committed,
            _ => 0,
        }
    }

    /// Whether it may answer clients now.
    pub fn is_serving(&self, now: Millis) -> bool {
        let Role::Server(serving) = &self.role else { return false };
        let mirrored = self.config.alone || !self.config.mirrors.is_empty();
        let until = self.heard_by(serving, &self.config.mirrors);
        let old = serving.old.as_ref().map(|(old, _)| self.heard_by(serving, old));
        let fresh = |heard: Option<Millis>| {
            heard.is_some_and(|heard| now < heard.saturating_add(LEASE_MILLIS))
        };
        serving.settled && mirrored && fresh(until) && old.is_none_or(fresh)
    }

    /// What it is now.
    pub fn stage(&self, now: Millis) -> Stage {
        match self.role {
            _ if self.is_serving(now) => Stage::Serving,
            Role::Server(_) => Stage::Waiting,
            Role::Asking { .. } => Stage::Asking,
            Role::Mirror if self.config.epoch == 0 => Stage::Fresh,
            Role::Mirror if self.is_due(now) => Stage::Asking,
            Role::Mirror => Stage::Mirror,
        }
    }

    /// How many of the mirrors that have a say can be reached, itself among them, and how many have to be.
    pub fn reached(&self) -> (usize, usize) {
        let mirrors = &self.config.mirrors;
        let here = |node: &&Node| self.peers.contains(node) || **node == self.me;
        let needed = if mirrors.is_empty() { 0 } else { majority(mirrors.len()) };
        let needed = if needed == 0 && !self.config.alone { 1 } else { needed };
        (mirrors.iter().filter(here).count(), needed)
    }

    /// Makes `changes`, of the server that serves.
    pub fn propose(&mut self, changes: Vec<Change>, now: Millis) -> u64 {
        if matches!(self.role, Role::Server(_)) && !changes.is_empty() {
            self.step(changes.into_iter().map(Step::Change).collect(), now);
        }
        self.index
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Millis) {
        self.table.expire(now);
        match &mut self.role {
            Role::Server(serving) => {
                if now >= serving.next_beat {
                    serving.next_beat = now + BEAT_MILLIS;
                    let beat = Message::Beat { epoch: self.config.epoch, sent: now };
                    self.tell_all(&beat);
                }
            }
            Role::Asking { again, .. } => {
                if now >= *again {
                    self.role = Role::Mirror;
                    self.stand_if_due(now);
                }
            }
            Role::Mirror => self.stand_if_due(now),
        }
    }

    fn stand_if_due(&mut self, now: Millis) {
        let (reached, needed) = self.reached();
        // Whoever cannot win does not ask: each asking makes an epoch that the others have to outdo.
        if self.is_due(now) && (reached >= needed || self.config.mirrors.is_empty()) {
            self.stand(now);
        }
    }

    /// Its place among the mirrors; none if it is none.
    fn rank(&self) -> Option<u64> {
        let rank = self.config.mirrors.iter().position(|node| *node == self.me)?;
        u64::try_from(rank).ok()
    }

    fn is_due(&self, now: Millis) -> bool {
        let waited = self.rank().is_some_and(|rank| {
            now >= self.quiet_until.saturating_add(RANK_MILLIS.saturating_mul(rank))
        });
        // It served when it ended: nobody else has begun, or the mirrors know.
        let again = self.config.epoch > 0 && self.config.server == self.me;
        (waited || again) && !self.stopped
    }

    /// Asks the mirrors for an epoch of its own.
    fn stand(&mut self, now: Millis) {
        let epoch = self.promised.max(self.highest) + 1;
        self.highest = epoch;
        let mut grants = BTreeSet::new();
        if self.config.mirrors.contains(&self.me) {
            self.promise(epoch);
            grants.insert(self.me);
        }
        // No two wait equally long, or each might ask just before the other is granted.
        let wait = RETRY_MILLIS + self.rank().map_or(0, |rank| (rank + 1) * RANK_MILLIS);
        self.role = Role::Asking { epoch, grants, again: now + wait };
        let ask = Message::Ask { epoch, position: self.position() };
        for node in self.config.mirrors.clone() {
            self.send(node, ask.clone());
        }
        self.serve_if_granted(now);
    }

    fn serve_if_granted(&mut self, now: Millis) {
        let Role::Asking { epoch, grants, .. } = &self.role else { return };
        let (epoch, mirrors) = (*epoch, &self.config.mirrors);
        let granted = grants.iter().filter(|node| mirrors.contains(node)).count();
        if mirrors.is_empty() || granted >= majority(mirrors.len()) {
            self.serve(epoch, now);
        }
    }

    /// Begins to serve; whoever has to has agreed.
    fn serve(&mut self, epoch: u64, now: Millis) {
        let old = self.config.mirrors.clone();
        // Those that are there: the others are taken in when they come.
        let mut mirrors = match &self.role {
            Role::Asking { grants, .. } => grants.intersection(&old).copied().collect(),
            _ => BTreeSet::new(),
        };
        mirrors.remove(&self.me);
        let took_over = self.config.server != self.me;
        let alone = if took_over { mirrors.is_empty() } else { self.config.alone };
        self.promise(epoch);
        self.role = Role::Server(Serving {
            old: Some((old, self.index + 1)),
            settled: false,
            progress: BTreeMap::new(),
            committed: 0,
            next_beat: now,
        });
        let config = Config { epoch, server: self.me, mirrors, alone };
        let step = Step::Config(config);
        self.apply(&step, now);
        // With its number: a step alone does not tell the group.
        self.keep(Record::State(self.state(now)));
        for node in self.peers.clone() {
            self.send_state(node, now);
        }
        self.commit(now);
    }

    fn step(&mut self, steps: Vec<Step>, now: Millis) {
        let from = self.index;
        for step in &steps {
            self.apply(step, now);
        }
        self.keep(Record::Steps(steps.clone()));
        self.tell_all(&Message::Steps { epoch: self.config.epoch, from, steps, sent: now });
        self.commit(now);
    }

    fn apply(&mut self, step: &Step, now: Millis) {
        self.index += 1;
        match step {
            Step::Change(change) => self.table.apply(change, now),
            Step::Config(config) => self.config = config.clone(),
        }
    }

    fn state(&self, now: Millis) -> State {
        let (group, config) = (self.group, self.config.clone());
        State { group, config, index: self.index, changes: self.table.snapshot(now) }
    }

    fn restore(&mut self, state: State, now: Millis) {
        self.group = state.group;
        self.config = state.config;
        self.index = state.index;
        self.table = Table::restore(&state.changes, now);
    }

    fn promise(&mut self, epoch: u64) {
        self.highest = self.highest.max(epoch);
        if epoch > self.promised {
            self.promised = epoch;
            self.keep(Record::Promised(epoch));
        }
    }

    fn keep(&mut self, record: Record) {
        self.effects.push(Effect::Keep(record));
    }

    fn send(&mut self, node: Node, message: Message) {
        if self.peers.contains(&node) {
            self.effects.push(Effect::Send(node, message));
        }
    }

    fn send_state(&mut self, node: Node, now: Millis) {
        let message =
            Message::State { epoch: self.config.epoch, state: self.state(now), sent: now };
        self.send(node, message);
    }

    fn tell_all(&mut self, message: &Message) {
        for node in self.peers.clone() {
            self.send(node, message.clone());
        }
    }

    /// `node` can be reached.
    pub fn connected(&mut self, node: Node, now: Millis) {
        self.peers.insert(node);
        match &self.role {
            Role::Server(_) => self.send_state(node, now),
            Role::Asking { epoch, .. } if self.config.mirrors.contains(&node) => {
                let (epoch, position) = (*epoch, self.position());
                self.send(node, Message::Ask { epoch, position });
            }
            _ => {}
        }
    }

    /// It cannot any more.
    pub fn disconnected(&mut self, node: Node) {
        self.peers.remove(&node);
        if let Role::Server(serving) = &mut self.role
            && !self.config.mirrors.contains(&node)
        {
            serving.progress.remove(&node);
        }
    }

    /// This server ends: a mirror may take over at once.
    pub fn stop(&mut self) {
        self.stopped = true;
        if matches!(self.role, Role::Server(_)) {
            self.tell_all(&Message::Stop { epoch: self.config.epoch });
        }
        self.role = Role::Mirror;
    }
}
