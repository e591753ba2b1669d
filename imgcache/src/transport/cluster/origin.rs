//! Chunks that no node has, from the origin: one host fetches each and puts it at its nodes.
//!
//! Who fetches is decided by the first node of the chunk: `mg <key> N<ttl> v` leaves an empty item
//! there and gives the first who asks a token (`W`), everybody else learns that it is given out
//! (`Z`) and asks again after a while (memcached, doc/protocol.txt, "Meta Get", the flags N, W and
//! Z). Who has waited for long, or finds no node to ask, goes to the origin himself.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::board::{Board, Outcome, Stop, Task, Work};
use super::error::NodeError;
use super::links::LinkKind;
use super::load::{Load, ORIGIN_NAP, Tally};
use super::node::Node;
use super::tcp::connection::{Claim, Put, PutAnswer};
use crate::record::{ItemKey, Kind};
use crate::transport::ChunkRead;

/// For how many seconds a token is given out. Longer than the patience of those who wait for it,
/// who then go themselves.
const TOKEN_SECONDS: u32 = 10;
/// The first pause before asking again, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// A chunk that somebody else fetches.
struct Waiting<'m> {
    work: Work<'m>,
    since: Instant,
    pause: Duration,
    next: Instant,
}

/// A thread that reads from the origin.
pub(super) struct OriginWorker<'l, 'm> {
    load: &'l Load<'l>,
    board: &'l Board<'m>,
    waiting: VecDeque<Waiting<'m>>,
    tally: Tally,
}

impl<'l, 'm> OriginWorker<'l, 'm> {
    pub(super) fn new(load: &'l Load<'l>, board: &'l Board<'m>) -> Self {
        Self { load, board, waiting: VecDeque::new(), tally: load.new_tally() }
    }

    pub(super) fn run(mut self) {
        loop {
            let now = Instant::now();
            let next = self.waiting.iter().map(|one| one.next).min();
            let patience =
                next.map_or(ORIGIN_NAP, |next| next.saturating_duration_since(now)).min(ORIGIN_NAP);
            match self.board.take_for_origin(patience) {
                Err(()) => break,
                Ok(Some(work)) => {
                    let since = Instant::now();
                    self.bring(Waiting { work, since, pause: PAUSES.0, next: since });
                }
                Ok(None) => {
                    let now = Instant::now();
                    for _ in 0..self.waiting.len() {
                        let Some(one) = self.waiting.pop_front() else { break };
                        if one.next <= now {
                            self.bring(one);
                        } else {
                            self.waiting.push_back(one);
                        }
                    }
                }
            }
        }
        self.load.add(&self.tally);
    }

    /// Brings a chunk, or leaves it waiting for somebody else.
    fn bring(&mut self, mut one: Waiting<'m>) {
        let key = ItemKey::chunk(&one.work.task.key);
        let until = self.load.session.cluster.soon(0).min(self.load.deadline);
        let mut claimed = None;
        for number in one.work.task.candidates.current() {
            let node = &self.load.topology.nodes[number];
            let buffer = &mut *one.work.buffer;
            match node.with(until, |connection| connection.claim(&key, TOKEN_SECONDS, buffer)) {
                Ok(claim) => {
                    claimed = Some((number, claim));
                    break;
                }
                Err(error) => log::debug!("cache node {}: {error}", node.name()),
            }
        }
        match claimed {
            Some((number, Claim::Hit)) if self.accepts(&one.work) => {
                self.tally.supplied(number, LinkKind::Tcp, one.work.buffer.len(), one.since);
                self.board.arrived(1, None);
            }
            Some((_, Claim::Taken)) if one.since.elapsed() < self.load.options.claim_patience => {
                one.next = Instant::now() + one.pause;
                one.pause = (one.pause * 2).min(PAUSES.1);
                self.waiting.push_back(one);
            }
            // Won, or what is there is not the chunk, or nobody can be asked.
            _ => self.fetch(one),
        }
    }

    fn accepts(&self, work: &Work<'_>) -> bool {
        (self.load.accept)(work.task.index, work.buffer)
    }

    /// Reads a chunk from the origin and puts it where it belongs.
    fn fetch(&mut self, one: Waiting<'m>) {
        let Work { task, buffer } = one.work;
        let read = ChunkRead { index: task.index, key: task.key, buffer: &mut *buffer };
        let result = self
            .load
            .session
            .origin()
            .and_then(|origin| origin.fetch(vec![read], self.load.accept));
        if let Err(error) = result {
            self.board.stop(Stop::Origin(task, error));
            return;
        }
        self.tally.fetched(buffer.len(), one.since);
        self.put(&task, buffer);
        self.board.arrived(1, None);
    }

    fn put(&self, task: &Task, value: &[u8]) {
        let key = ItemKey::chunk(&task.key);
        let item = [Put { key: &key, kind: Kind::Chunk, value, add: false }];
        for (number, outcome) in task.results().take(task.candidates.current().len()) {
            let node: &Arc<Node> = &self.load.topology.nodes[number];
            let failed = matches!(outcome, Outcome::Failed | Outcome::Slow);
            if failed || !node.breaker.is_closed(Instant::now()) {
                continue;
            }
            let until = self.load.session.cluster.soon(0).min(self.load.deadline);
            let put = node.with(until, |connection| connection.put(&item));
            let told = match put {
                Ok(answers) => match answers.first() {
                    Some(PutAnswer::Refused(reply)) => reply.clone(),
                    // The load does not wait for that; who misses it next puts it there.
                    Some(PutAnswer::Busy(_)) => "it has no memory at the moment".into(),
                    Some(PutAnswer::Stored | PutAnswer::Kept) | None => continue,
                },
                Err(error @ NodeError::LeftAlone { .. }) => {
                    log::debug!("cache node {}: {error}", node.name());
                    continue;
                }
                Err(error) => error.to_string(),
            };
            log::info!("cache node {} did not take chunk {}: {told}", node.name(), task.index);
        }
    }
}
