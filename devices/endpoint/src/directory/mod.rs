//! The directory: which range of identifiers is where.
//!
//! A record is changed only by who has seen its last change, so of two that change it at once one is refused.
//! The epoch of a record rises whenever its frames are to go elsewhere, and never falls, not even when
//! it is withdrawn and announced anew: a switch keeps what has the highest.
//!
//! Each record has an owner, whose lease keeps all its records alive. When the lease has ended they are
//! orphans: still known, and free to be taken over. A home that cannot renew its lease mutes itself before
//! that ([`crate::keeper`]).

use std::fmt;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::name::{Name, Pattern};
use crate::range::Range;
use crate::record::{Entry, Home, Owner, Record};
use crate::vid::Vid;

pub mod cache;
#[cfg(test)]
pub(crate) mod conformance;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod local;
mod rules;

/// The most records of one change: an etcd server takes no more (`--max-txn-ops`), with what else is in it.
pub const MOST_CHANGES: usize = 60;

/// Why a directory did not do something.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DirectoryError {
    /// Somebody else has identifiers of this range.
    #[error(
        "{range} overlaps {} of {}, which {} has at {}: ask there for a split",
        .held.range, .held.service, .held.owner, .held.home
    )]
    Overlap {
        /// What was wanted.
        range: Range,
        /// What there is.
        held: Box<Record>,
    },
    /// Another service's name has the same hash.
    #[error("the names {name} and {other} have the same identifiers: take another name")]
    Collision {
        /// The name that was announced.
        name: Name,
        /// The one that there is.
        other: Name,
    },
    /// A name whose identifiers these are not.
    #[error("{range} are no identifiers of {name}: make the range of the name")]
    Foreign {
        /// The identifiers.
        range: Range,
        /// The name.
        name: Name,
    },
    /// An address that a network interface has.
    #[error("{range} contains {address}, the address of an interface: leave that out")]
    Reserved {
        /// What was wanted.
        range: Range,
        /// The address.
        address: Vid,
    },
    /// The record is not what it was thought to be.
    #[error("{range} has changed (revision {seen} was seen, {current} is there): look again")]
    Stale {
        /// The range.
        range: Range,
        /// What the change was based on.
        seen: u64,
        /// What there is; 0 if nothing.
        current: u64,
    },
    /// Only its owner changes a record, and who is to get it.
    #[error("{range} is {owner}'s, who is alive: {by} may not change it")]
    NotOwner {
        /// The range.
        range: Range,
        /// Its owner.
        owner: Owner,
        /// Who wanted to.
        by: Owner,
    },
    /// The lease has ended, or was never given.
    #[error(
        "the lease of {0} has ended: mute its endpoints, open another, look what is still theirs"
    )]
    LeaseLost(Owner),
    /// An owner of this name is alive.
    #[error("there is an owner {0} already: take another name, or wait until its lease has ended")]
    OwnerExists(Owner),
    /// More than one change may have, or nothing.
    #[error("a change of {0} records: do 1 to {MOST_CHANGES} at once")]
    Size(usize),
    /// The directory could not be asked; whether it has done what it was asked to is not known.
    #[error("the directory does not answer: {0}; look what there is before trying again")]
    Unreachable(String),
    /// Something is stored that is no record.
    #[error("the directory has at {key} what is no record ({why}): remove it by hand")]
    Damaged {
        /// Where.
        key: String,
        /// What is wrong with it.
        why: String,
    },
}

/// An owner's lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The owner.
    pub owner: Owner,
    /// How long it is from each renewal.
    pub ttl: Duration,
    /// What only the owner knows: with it goes the right to change its records.
    pub(crate) token: u64,
    /// The same lease for the directory's server.
    pub(crate) id: i64,
}

/// What is to be changed, all of it or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Records as they were seen; they are no more, except for what `put` says.
    pub from: Vec<Record>,
    /// Records that are to be. Their epochs and revisions are set by the directory.
    pub to: Vec<Record>,
}

impl Change {
    /// These records are new.
    pub fn announce(records: Vec<Record>) -> Self {
        Self { from: Vec::new(), to: records }
    }

    /// `from`, as it was seen, becomes `to`.
    pub fn update(from: Record, to: Record) -> Self {
        Self { from: vec![from], to: vec![to] }
    }

    /// These records, as they were seen, are no more.
    pub fn withdraw(records: Vec<Record>) -> Self {
        Self { from: records, to: Vec::new() }
    }

    /// Whether the records afterwards have other ranges than those before.
    pub(crate) fn is_of_shape(&self) -> bool {
        !self.from.iter().map(|record| record.range).eq(self.to.iter().map(|record| record.range))
    }
}

/// What watchers are told. What is in one update has happened at once.
#[derive(Debug, Clone)]
pub enum Update {
    /// All that there is: at the beginning, and when changes have been missed.
    All {
        /// The records.
        records: Vec<Record>,
        /// The owners that are alive.
        owners: Vec<Owner>,
    },
    /// Some records have changed.
    Records {
        /// Ranges that are no more; what is put afterwards may begin where they did.
        removed: Vec<Range>,
        /// Records that are new, or have changed.
        put: Vec<Record>,
    },
    /// An owner has come, or its lease has ended.
    Owner {
        /// The owner.
        owner: Owner,
        /// Whether it is alive.
        is_alive: bool,
    },
}

/// Changes of a directory, in order. They end when the directory has been dropped.
pub type Updates = Receiver<Update>;

/// A directory. All of it blocks at most for the time that its backend is patient.
pub trait Directory: fmt::Debug + Send + Sync {
    /// A lease for `owner`. It may become longer than `ttl`, never shorter: take that of the answer.
    ///
    /// # Errors
    /// An owner of this name is alive, or the directory does not answer.
    fn open(&self, owner: &Owner, ttl: Duration) -> Result<Lease, DirectoryError>;

    /// The lease begins anew.
    ///
    /// # Errors
    /// It has ended, or the directory does not answer.
    fn renew(&self, lease: &Lease) -> Result<(), DirectoryError>;

    /// The lease ends now.
    ///
    /// # Errors
    /// It has ended, or the directory does not answer.
    fn close(&self, lease: &Lease) -> Result<(), DirectoryError>;

    /// `change`, by who has `lease`; returns the records as they are now.
    ///
    /// # Errors
    /// Each of [`DirectoryError`]; then nothing is changed, except perhaps by one that was not answered.
    fn change(&self, lease: &Lease, change: &Change) -> Result<Vec<Record>, DirectoryError>;

    /// What is known of `vid`.
    ///
    /// # Errors
    /// The directory does not answer.
    fn find(&self, vid: Vid) -> Result<Option<Entry>, DirectoryError>;

    /// What is known of services that `pattern` stands for.
    ///
    /// # Errors
    /// The directory does not answer.
    fn services(&self, pattern: &Pattern) -> Result<Vec<Entry>, DirectoryError>;

    /// All that is known, in the order of ranges.
    ///
    /// # Errors
    /// The directory does not answer.
    fn list(&self) -> Result<Vec<Entry>, DirectoryError>;

    /// All that there is, and from then each change.
    ///
    /// # Errors
    /// The directory does not answer.
    fn watch(&self) -> Result<Updates, DirectoryError>;

    /// H: where `vid` is.
    ///
    /// # Errors
    /// The directory does not answer.
    fn home_of(&self, vid: Vid) -> Result<Option<Home>, DirectoryError> {
        Ok(self.find(vid)?.map(|entry| entry.record.home))
    }

    /// The inverse of H: the ranges at `home`.
    ///
    /// # Errors
    /// The directory does not answer.
    fn ranges_at(&self, home: &Home) -> Result<Vec<Range>, DirectoryError> {
        let entries = self.list()?.into_iter();
        Ok(entries
            .filter(|entry| entry.record.home == *home)
            .map(|entry| entry.record.range)
            .collect())
    }
}
