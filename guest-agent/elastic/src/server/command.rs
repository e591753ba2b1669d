//! What an operator or a policy commands, and how a server does it.

use std::sync::mpsc::channel;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{ServerError, Shared, live, lock};
use crate::Peer;
use crate::node::{End, Kind, Node, StartError};
use crate::range::Range;

/// What an operator or a policy asks of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Hand this range to a peer.
    Split(Peer, Range),
    /// Hand everything to a peer.
    Move(Peer),
    /// Take everything that a peer has.
    Merge(Peer),
    /// Copy everything to a peer and keep it up to date.
    Mirror(Peer),
    /// End all mirrors and transfers that began here.
    Abort,
    /// Become the owner of what is mirrored here from a peer that is dead.
    Promote(Peer),
    /// Say what there is.
    Status,
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// It was done.
    Done,
    /// It was not.
    Failed(String),
    /// What there is.
    Status {
        /// What the server owns.
        owned: Vec<Range>,
        /// Objects in it.
        objects: u64,
        /// Bytes of their values.
        bytes: u64,
        /// Requests answered since it started.
        served: u64,
        /// Transfers that began here and are not over; mirrors are among them.
        outgoing: usize,
        /// Transfers to here.
        incoming: usize,
    },
}

impl Shared {
    pub(super) fn command(self: &Arc<Self>, command: &Command) -> Report {
        let result = match command {
            Command::Split(peer, range) => self.transfer(Kind::Move, *peer, *range),
            Command::Move(peer) => self.all(Kind::Move, *peer),
            Command::Mirror(peer) => self.all(Kind::Mirror, *peer),
            Command::Merge(peer) => self.merge(*peer),
            Command::Abort => {
                self.with(|node| {
                    let ids: Vec<_> = node.outgoing().map(|(id, ..)| id).collect();
                    for id in ids {
                        node.abort(id);
                    }
                });
                self.until(|node| node.outgoing().count() == 0)
            }
            Command::Promote(from) => self.promote(*from),
            Command::Status => {
                return self.with(|node| {
                    let owned: Vec<_> = node.owned().iter().map(|(range, _)| *range).collect();
                    let sizes = owned.iter().map(|range| node.objects().size(*range));
                    let (objects, bytes) =
                        sizes.fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1));
                    let (outgoing, incoming) = (node.outgoing().count(), node.incoming().count());
                    Report::Status {
                        owned,
                        objects,
                        bytes,
                        served: node.served(),
                        outgoing,
                        incoming,
                    }
                });
            }
        };
        match result {
            Ok(()) => Report::Done,
            Err(error) => Report::Failed(error.to_string()),
        }
    }

    /// Begins a transfer and waits for its end.
    fn transfer(self: &Arc<Self>, kind: Kind, peer: Peer, range: Range) -> Result<(), ServerError> {
        let (sender, ended) = channel();
        let id = {
            // The end must not come before somebody waits for it.
            let mut state = lock(&self.state);
            let id = state.node.start(kind, range, peer)?;
            state.waiting.insert(id, sender);
            id
        };
        self.with(|_| ());
        let wait = Duration::from_secs(120);
        match ended.recv_timeout(wait) {
            Ok(End::Done) => Ok(()),
            Ok(End::Aborted) => Err(ServerError::Aborted(id)),
            Err(_) => Err(ServerError::Timeout(id, wait)),
        }
    }

    fn all(self: &Arc<Self>, kind: Kind, peer: Peer) -> Result<(), ServerError> {
        let mut owned: Vec<_> =
            self.with(|node| node.owned().iter().map(|(range, _)| *range).collect());
        owned.sort_unstable();
        // Neighbours in one transfer.
        owned.dedup_by(|next, last| {
            last.joined(*next).is_some_and(|whole| {
                *last = whole;
                true
            })
        });
        owned.into_iter().try_for_each(|range| self.transfer(kind, peer, range))
    }

    /// The peer hands over all it has, and then has nothing to do.
    fn merge(self: &Arc<Self>, peer: Peer) -> Result<(), ServerError> {
        let command = Command::Move(self.config.me);
        let local =
            self.local.0.read().unwrap_or_else(PoisonError::into_inner).get(&peer).and_then(live);
        let report = if let Some(peer) = local {
            peer.command(&command)
        } else {
            let address = self.routes.address(peer).unwrap_or_default();
            crate::client::command(&address, self.config.secret, &command)
                .map_err(|error| ServerError::Refused(peer, error.to_string()))?
        };
        match report {
            Report::Done => Ok(()),
            Report::Failed(why) => Err(ServerError::Refused(peer, why)),
            Report::Status { .. } => {
                Err(ServerError::Refused(peer, "it answered something else".into()))
            }
        }
    }

    fn promote(self: &Arc<Self>, from: Peer) -> Result<(), ServerError> {
        let ranges = self.with(|node| {
            let incoming =
                node.incoming().filter(|(id, kind, _)| id.source == from && *kind == Kind::Mirror);
            let ranges: Vec<_> = incoming.map(|(_, _, range)| range).collect();
            ranges.iter().try_for_each(|range| node.promote(*range).map(drop)).map(|()| ranges)
        })?;
        if ranges.is_empty() {
            return Err(StartError::NoMirror(Range::ALL).into());
        }
        self.until(|node| node.incoming().all(|(_, _, range)| !ranges.contains(&range)))?;
        let ours = |range: &Range| {
            self.routes.home(range.first()).is_some_and(|(home, _)| home == self.config.me)
        };
        match ranges.iter().find(|range| !ours(range)) {
            Some(range) => Err(StartError::NoMirror(*range).into()),
            None => Ok(()),
        }
    }

    fn until(self: &Arc<Self>, done: impl Fn(&Node) -> bool) -> Result<(), ServerError> {
        let end = Instant::now() + Duration::from_secs(30);
        while !self.with(|node| done(node)) {
            if Instant::now() >= end {
                return Err(ServerError::Refused(
                    self.config.me,
                    "the routes do not answer".into(),
                ));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}
