//! What a host knows of a directory: a copy in memory that follows its changes, so that nothing that is
//! looked up waits for the network.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::name::Pattern;
use crate::range::Range;
use crate::record::{Entry, Home, Record};
use crate::table::{Table, key};
use crate::vid::Vid;

use super::{Directory, DirectoryError, Update};

/// How many updates a follower may be behind.
const MOST_WAITING: usize = 1024;

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The directory cannot be watched.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// There is no thread for it.
    #[error("no thread to follow the directory: {0}")]
    Thread(#[from] io::Error),
}

/// A copy of a directory.
#[derive(Debug, Clone)]
pub struct Cache(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    table: RwLock<Table>,
    state: Mutex<State>,
    /// There is another version, or no more.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    has_ended: bool,
    /// Who is told what this cache has applied.
    followers: Vec<SyncSender<Update>>,
}

impl Cache {
    /// A copy of `directory`. It knows all that there is when this returns, and follows until the directory
    /// has been dropped.
    ///
    /// # Errors
    /// The directory does not answer; there is no thread.
    pub fn new(directory: &dyn Directory) -> Result<Self, CacheError> {
        let updates = directory.watch()?;
        let shared = Arc::new(Shared::default());
        let first = updates.recv();
        let first = first.map_err(|_| DirectoryError::Unreachable("it ended".into()))?;
        shared.apply(&first);
        let weak = Arc::downgrade(&shared);
        thread::Builder::new().name("directory".into()).spawn(move || {
            for update in updates {
                let Some(shared) = weak.upgrade() else { return };
                shared.apply(&update);
            }
            if let Some(shared) = weak.upgrade() {
                shared.end();
            }
        })?;
        Ok(Self(shared))
    }

    /// What is known of `vid`.
    pub fn find(&self, vid: Vid) -> Option<Entry> {
        let table = self.0.read();
        table.find(vid).map(|record| table.entry(record))
    }

    /// H: where `vid` is.
    pub fn home_of(&self, vid: Vid) -> Option<Home> {
        self.0.read().home_of(vid).cloned()
    }

    /// Where frames for `vid` are to go, and the epoch of that.
    pub fn route(&self, vid: Vid) -> Option<(Home, u64)> {
        self.0.read().find(vid).map(|record| (record.route().clone(), record.epoch))
    }

    /// The inverse of H: the ranges at `home`.
    pub fn ranges_at(&self, home: &Home) -> Vec<Range> {
        self.0.read().ranges_at(home).collect()
    }

    /// What is known of services that `pattern` stands for.
    pub fn services(&self, pattern: &Pattern) -> Vec<Entry> {
        let table = self.0.read();
        table.services(pattern).map(|record| table.entry(record)).collect()
    }

    /// All that is known.
    pub fn list(&self) -> Vec<Entry> {
        let table = self.0.read();
        table.records().map(|record| table.entry(record)).collect()
    }

    /// Applies what a change has answered, so that who has made it finds it here at once.
    pub fn learn(&self, removed: Vec<Range>, put: Vec<Record>) {
        self.0.apply(&Update::Records { removed, put });
    }

    /// Waits until `is_so` of what is known, at most `patience`; whether it was.
    pub fn wait(&self, patience: Duration, mut is_so: impl FnMut(&Self) -> bool) -> bool {
        let deadline = Instant::now() + patience;
        let mut seen = self.0.state().version;
        loop {
            if is_so(self) {
                return true;
            }
            let mut state = self.0.state();
            while state.version == seen && !state.has_ended {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return false;
                }
                state = self
                    .0
                    .changed
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            if state.has_ended && state.version == seen {
                return false;
            }
            seen = state.version;
        }
    }

    /// All there is, and then each update that this cache applies: what a host's switch follows. Who is too
    /// slow for it sees the end of it, and follows anew; nobody holds the cache up.
    pub fn follow(&self) -> Receiver<Update> {
        let (sender, updates) = sync_channel(MOST_WAITING);
        let mut state = self.0.state();
        let _ = sender.try_send(self.0.all()); // it is empty, and its receiver here
        state.followers.push(sender);
        updates
    }

    /// Whether the directory has ended: what is known here grows old.
    pub fn has_ended(&self) -> bool {
        self.0.state().has_ended
    }
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Update {
        let table = self.read();
        Update::All {
            records: table.records().cloned().collect(),
            owners: table.owners().cloned().collect(),
        }
    }

    fn apply(&self, update: &Update) {
        // Before the table, so that followers are told in the order in which it changes.
        let mut state = self.state();
        let mut table = self.write();
        match update {
            Update::All { records, owners } => *table = Table::new(records.clone(), owners.clone()),
            Update::Records { removed, put } => apply(&mut table, removed, put),
            Update::Owner { owner, is_alive } => table.set_alive(owner, *is_alive),
        }
        drop(table);
        state.version += 1;
        state.followers.retain(|follower| follower.try_send(update.clone()).is_ok());
        self.changed.notify_all();
    }

    fn end(&self) {
        let mut state = self.state();
        state.has_ended = true;
        state.followers.clear();
        self.changed.notify_all();
    }
}

/// Puts what is not older than what is there: who has made a change may have learnt it before.
fn apply(table: &mut Table, removed: &[Range], put: &[Record]) {
    let newest = put.iter().map(|record| record.revision).max();
    for range in removed {
        let is_newer = table.get(key(*range)).is_some_and(|known| {
            known.range != *range || newest.is_some_and(|newest| known.revision > newest)
        });
        if !is_newer {
            table.remove(key(*range));
        }
    }
    for record in put {
        let is_newer =
            table.overlapping(record.range).any(|known| known.revision > record.revision);
        if !is_newer {
            table.put(record.clone());
        }
    }
}
