//! Keeps what a host has alive in the directory, and mutes it before others may take it over.
//!
//! A lease begins anew when the directory has heard of its renewal, which is after it was sent. So the end of
//! it is reckoned here from the moment of sending, and what is had is muted some time before: by as much as two
//! hosts' clocks may run apart in one lease, and as long as muting takes. Time that the host was suspended counts.
//!
//! A host whose program ends, to start again in a newer version or because it was killed, need not be mute
//! for as long as a lease is: with a [`Note`] the next keeper goes on with the lease of the one before. Only one
//! program may have the note.
//!
//! What has been muted is unmuted when a renewal has succeeded, if the directory says afterwards that it is still
//! at home here. While the lease is held nobody else takes it over.

mod note;

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

pub use self::note::Note;
use crate::directory::{Directory, DirectoryError, Lease};
use crate::record::{Owner, Record};

/// How often it is looked whether the host was suspended, of which waiting threads hear nothing.
const LOOK: Duration = Duration::from_millis(200);

/// How leases are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeeperOptions {
    /// How long a lease is.
    pub lease: Duration,
    /// How long from one renewal to the next.
    pub renewal: Duration,
    /// How long before the end of the lease all is muted.
    pub margin: Duration,
}

impl Default for KeeperOptions {
    /// Clocks that run apart by a tenth are broken.
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            renewal: Duration::from_secs(3),
            margin: Duration::from_secs(1),
        }
    }
}

/// Why there is no keeper.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The times do not fit.
    #[error(
        "a lease of {0:?}, renewed each {1:?}, muted {2:?} before: let there be time for two renewals before muting"
    )]
    Times(Duration, Duration, Duration),
    /// The lease was not given.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// There is no thread for it.
    #[error("no thread to renew the lease: {0}")]
    Thread(#[from] io::Error),
}

/// What a host's endpoints are behind. Its calls come one at a time, and must be quick: no call of the directory.
pub trait Gate: Send {
    /// Nothing passes any more, neither in nor out.
    fn mute(&mut self);

    /// What is at home here by these records passes again; all else stays muted, and so does what a move
    /// has stopped: whoever is to get that may have got it since the records were read.
    fn unmute(&mut self, records: &[Record]);
}

impl fmt::Debug for dyn Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

/// Keeps an owner's lease until it is dropped; then all is muted and the lease ends, or, with a [`Note`], all stays
/// as it is until the lease ends by itself or another keeper goes on with it.
#[derive(Debug)]
pub struct Keeper {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    directory: Arc<dyn Directory>,
    owner: Owner,
    options: KeeperOptions,
    note: Option<Note>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    lease: Lease,
    /// When all is muted, by [`now`].
    deadline: Duration,
    is_muted: bool,
    is_ending: bool,
    gate: Box<dyn Gate>,
}

/// Time since the host started, suspended or not.
fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

impl KeeperOptions {
    /// When to mute what has a lease of `ttl`, whose renewal was sent at `sent`.
    fn deadline(&self, sent: Duration, ttl: Duration) -> Duration {
        sent + ttl.saturating_sub(self.margin)
    }
}

impl Keeper {
    /// Opens a lease for `owner` and keeps it, or goes on with the one that is noted. All that the owner has
    /// already is unmuted: a host that starts again finds its own.
    ///
    /// # Errors
    /// Times that do not fit; the lease is not given; no threads.
    pub fn start(
        directory: Arc<dyn Directory>,
        owner: Owner,
        options: KeeperOptions,
        gate: Box<dyn Gate>,
        note: Option<Note>,
    ) -> Result<Self, KeeperError> {
        let KeeperOptions { lease, renewal, margin } = options;
        if renewal.is_zero() || renewal.saturating_mul(2) > lease.saturating_sub(margin) {
            return Err(KeeperError::Times(lease, renewal, margin));
        }
        let noted = note.as_ref().and_then(Note::read).filter(|noted| noted.owner == owner);
        let mut sent = now();
        let lease = if let Some(noted) = noted.filter(|noted| directory.renew(noted).is_ok()) {
            noted
        } else {
            sent = now();
            directory.open(&owner, lease)?
        };
        write_down(note.as_ref(), &lease);
        let deadline = options.deadline(sent, lease.ttl);
        let state = State { lease, deadline, is_muted: true, is_ending: false, gate };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let shared = Arc::new(Shared { directory, owner, options, note, state, changed });
        shared.unmute();
        let mut keeper = Self { shared: Arc::clone(&shared), threads: Vec::new() };
        let watched = Arc::clone(&shared);
        let watch = thread::Builder::new().name("fence".into()).spawn(move || watched.watch())?;
        keeper.threads.push(watch);
        let renew = thread::Builder::new().name("renewal".into()).spawn(move || shared.renew())?;
        keeper.threads.push(renew);
        Ok(keeper)
    }

    /// The lease, for changes.
    pub fn lease(&self) -> Lease {
        self.shared.state().lease.clone()
    }

    /// Whether all is muted, because the lease may have ended.
    pub fn is_muted(&self) -> bool {
        self.shared.state().is_muted
    }

    /// How long all still passes if the lease is not renewed; nothing if it is muted.
    pub fn remaining(&self) -> Duration {
        let state = self.shared.state();
        if state.is_muted { Duration::ZERO } else { state.deadline.saturating_sub(now()) }
    }

    /// What `change` makes of the gate, unless all is muted: so that nothing new is let through then.
    pub fn with_gate<T>(&self, change: impl FnOnce(&mut dyn Gate) -> T) -> Option<T> {
        let mut state = self.shared.state();
        state.mute_if_late();
        if state.is_muted { None } else { Some(change(&mut *state.gate)) }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.is_ending = true;
        let is_left = self.shared.note.is_some();
        if !is_left {
            state.mute();
        }
        let lease = state.lease.clone();
        drop(state);
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // it has muted all at its end, whatever it was
        }
        if is_left {
            return;
        }
        if let Err(error) = self.shared.directory.close(&lease) {
            log::info!("the lease of {} ends by itself: {error}", self.shared.owner);
        }
    }
}

/// Without its note a lease is only not found again.
fn write_down(note: Option<&Note>, lease: &Lease) {
    if let Some(Err(error)) = note.map(|note| note.write(lease)) {
        log::warn!(
            "the lease of {} is not noted, another keeper waits for its end: {error}",
            lease.owner
        );
    }
}

impl State {
    fn mute(&mut self) {
        if !self.is_muted {
            self.is_muted = true;
            self.gate.mute();
        }
    }

    fn mute_if_late(&mut self) {
        if now() >= self.deadline {
            self.mute();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mutes all when its time has come, whatever the renewal waits for.
    fn watch(&self) {
        let mut state = self.state();
        while !state.is_ending {
            state.mute_if_late();
            let left = state.deadline.saturating_sub(now());
            let wait = if state.is_muted { LOOK } else { left.min(LOOK) };
            state =
                self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Renews the lease until the end.
    fn renew(&self) {
        let mut next = now() + self.options.renewal;
        loop {
            let mut state = self.state();
            while now() < next {
                if state.is_ending {
                    return;
                }
                let wait = next.saturating_sub(now()).min(LOOK);
                state = self
                    .changed
                    .wait_timeout(state, wait)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            let lease = state.lease.clone();
            drop(state);
            let sent = now();
            let result = match self.directory.renew(&lease) {
                Ok(()) => Ok(lease),
                Err(DirectoryError::LeaseLost(_)) => {
                    // Others may have taken all by now.
                    self.state().mute();
                    self.directory.open(&self.owner, self.options.lease)
                }
                Err(error) => Err(error),
            };
            match result {
                Ok(lease) => {
                    // A slow disk keeps nobody from muting.
                    if self.state().lease != lease {
                        write_down(self.note.as_ref(), &lease);
                    }
                    let mut state = self.state();
                    state.deadline = self.options.deadline(sent, lease.ttl);
                    state.lease = lease;
                    let is_muted = state.is_muted;
                    drop(state);
                    if is_muted {
                        self.unmute();
                    }
                    next = sent + self.options.renewal;
                }
                Err(error) => {
                    log::debug!("the lease of {} is not renewed: {error}", self.owner);
                    // Sooner than usual: the directory may come back before all is muted.
                    next = now() + self.options.renewal / 4;
                }
            }
            self.changed.notify_all();
        }
    }

    /// Lets through what is still at home here. What cannot be looked up stays muted until the next renewal.
    fn unmute(&self) {
        let entries = match self.directory.list() {
            Ok(entries) => entries,
            Err(error) => return log::debug!("{} stays muted: {error}", self.owner),
        };
        let own = |record: &Record| record.owner == self.owner;
        let records: Vec<_> = entries.into_iter().map(|entry| entry.record).filter(own).collect();
        let mut state = self.state();
        if !state.is_ending && now() < state.deadline {
            state.is_muted = false;
            state.gate.unmute(&records);
        }
    }
}

#[cfg(test)]
mod tests;
