//! What a server's mirrors agree to: how far they are, when they heard it, and who they are.

use std::collections::BTreeSet;

use super::{Progress, Replica, Role, Serving, majority};
use crate::mirror::{MOST_MIRRORS, Node, Step};
use crate::table::Millis;

impl Replica {
    /// What a majority of `mirrors` has at least, of what `each` says of one; the server is as far as can be.
    fn of_majority<T: Ord + Copy>(
        &self,
        serving: &Serving,
        mirrors: &BTreeSet<Node>,
        most: T,
        each: impl Fn(&Progress) -> Option<T>,
    ) -> Option<T> {
        if mirrors.is_empty() {
            return Some(most);
        }
        let of = |node: &Node| {
            if *node == self.me { Some(most) } else { serving.progress.get(node).and_then(&each) }
        };
        let mut all: Vec<_> = mirrors.iter().map(of).collect();
        all.sort_unstable();
        all.into_iter().rev().nth(majority(mirrors.len()) - 1).flatten()
    }

    pub(super) fn heard_by(&self, serving: &Serving, mirrors: &BTreeSet<Node>) -> Option<Millis> {
        self.of_majority(serving, mirrors, Millis::MAX, |progress| progress.heard)
    }

    /// Looks how many steps a majority has now; if the mirrors have agreed to be others, they are.
    pub(super) fn commit(&mut self, now: Millis) {
        let Role::Server(serving) = &self.role else { return };
        let acked = |mirrors: &BTreeSet<Node>| {
            self.of_majority(serving, mirrors, self.index, |progress| progress.acked).unwrap_or(0)
        };
        let mut committed = acked(&self.config.mirrors);
        let mut agreed = false;
        if let Some((old, step)) = &serving.old {
            committed = committed.min(acked(old));
            agreed = committed >= *step;
        }
        if let Role::Server(serving) = &mut self.role {
            serving.committed = serving.committed.max(committed);
            if agreed {
                serving.old = None;
                serving.settled = true;
                self.commit(now);
                self.take_in(now);
            }
        }
    }

    /// Makes somebody a mirror who has all that there is.
    pub(super) fn take_in(&mut self, now: Millis) {
        let Role::Server(serving) = &self.role else { return };
        if !serving.settled || serving.old.is_some() || self.config.mirrors.len() >= MOST_MIRRORS {
            return;
        }
        let ready = |node: &&Node| {
            let acked = serving.progress.get(node).and_then(|progress| progress.acked);
            acked.is_some() && !self.config.mirrors.contains(node)
        };
        let Some(node) = self.peers.iter().find(ready).copied() else { return };
        let old = self.config.mirrors.clone();
        let mut config = self.config.clone();
        config.mirrors.insert(node);
        config.alone = false;
        let step = self.index + 1;
        if let Role::Server(serving) = &mut self.role {
            serving.old = Some((old, step));
        }
        self.step(vec![Step::Config(config)], now);
    }
}
