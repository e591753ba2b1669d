//! A directory in this process, for one host: those who use it share it.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::name::Pattern;
use crate::range::Range;
use crate::record::{Entry, Home, Owner, Record};
use crate::table::{Table, key};
use crate::vid::Vid;

use super::{Change, Directory, DirectoryError, Lease, Update, Updates, rules};

/// A directory in this process.
#[derive(Debug)]
pub struct LocalDirectory {
    state: Arc<Mutex<State>>,
    /// Tells the thread that looks when leases end that there is another; it ends with this.
    wake: Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    table: Table,
    leases: BTreeMap<Owner, Given>,
    watchers: Vec<Sender<Update>>,
    reserved: Vec<Vid>,
    /// The last change's.
    revision: u64,
    /// The highest epoch of what has been withdrawn.
    floor: u64,
    token: u64,
}

/// A lease.
#[derive(Debug)]
struct Given {
    token: u64,
    ttl: Duration,
    end: Instant,
}

impl LocalDirectory {
    /// An empty one. Ranges with one of the addresses `reserved` are refused: those that interfaces of the host have.
    ///
    /// # Errors
    /// There can be no more threads.
    pub fn new(reserved: Vec<Vid>) -> Result<Self, std::io::Error> {
        let state = Arc::new(Mutex::new(State { reserved, ..State::default() }));
        let (wake, woken) = channel();
        let watched = Arc::clone(&state);
        thread::Builder::new().name("leases".into()).spawn(move || end_leases(&watched, &woken))?;
        Ok(Self { state, wake })
    }

    /// One that has `records`, which another has kept before: epochs go on from theirs.
    ///
    /// # Errors
    /// There can be no more threads.
    pub fn with(records: Vec<Record>, reserved: Vec<Vid>) -> Result<Self, std::io::Error> {
        let this = Self::new(reserved)?;
        let mut state = lock(&this.state);
        state.floor = records.iter().map(|record| record.epoch).max().unwrap_or_default();
        for record in records {
            state.revision += 1;
            let revision = state.revision;
            state.table.put(Record { revision, ..record });
        }
        drop(state);
        Ok(this)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        state.end_leases();
        state
    }
}

/// State is whole at any time: it is changed only after all checks.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells watchers of leases that end, until nobody has the directory.
fn end_leases(state: &Mutex<State>, woken: &Receiver<()>) {
    loop {
        let next = {
            let mut state = lock(state);
            state.end_leases();
            state.leases.values().map(|lease| lease.end).min()
        };
        let wait = next.map(|end| end.saturating_duration_since(Instant::now()));
        match woken.recv_timeout(wait.unwrap_or(Duration::from_secs(3600))) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return lock(state).watchers.clear(),
        }
    }
}

impl State {
    fn end_leases(&mut self) {
        let now = Instant::now();
        let ended: Vec<_> = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.end <= now)
            .map(|(owner, _)| owner.clone())
            .collect();
        for owner in ended {
            self.end(owner);
        }
    }

    fn end(&mut self, owner: Owner) {
        self.leases.remove(&owner);
        self.table.set_alive(&owner, false);
        self.tell(&Update::Owner { owner, is_alive: false });
    }

    fn tell(&mut self, update: &Update) {
        self.watchers.retain(|watcher| watcher.send(update.clone()).is_ok());
    }

    fn lease(&mut self, lease: &Lease) -> Result<&mut Given, DirectoryError> {
        let given = self.leases.get_mut(&lease.owner).filter(|given| given.token == lease.token);
        given.ok_or_else(|| DirectoryError::LeaseLost(lease.owner.clone()))
    }
}

impl Directory for LocalDirectory {
    fn open(&self, owner: &Owner, ttl: Duration) -> Result<Lease, DirectoryError> {
        let mut state = self.state();
        if state.leases.contains_key(owner) {
            return Err(DirectoryError::OwnerExists(owner.clone()));
        }
        state.token += 1;
        let token = state.token;
        state.leases.insert(owner.clone(), Given { token, ttl, end: Instant::now() + ttl });
        state.table.set_alive(owner, true);
        state.tell(&Update::Owner { owner: owner.clone(), is_alive: true });
        let _ = self.wake.send(()); // its thread ends with self only
        Ok(Lease { owner: owner.clone(), ttl, token, id: 0 })
    }

    fn renew(&self, lease: &Lease) -> Result<(), DirectoryError> {
        let mut state = self.state();
        let given = state.lease(lease)?;
        given.end = Instant::now() + given.ttl;
        Ok(())
    }

    fn close(&self, lease: &Lease) -> Result<(), DirectoryError> {
        let mut state = self.state();
        state.lease(lease)?;
        state.end(lease.owner.clone());
        Ok(())
    }

    fn change(&self, lease: &Lease, change: &Change) -> Result<Vec<Record>, DirectoryError> {
        let mut state = self.state();
        state.lease(lease)?;
        let mut put =
            rules::check(change, &lease.owner, &state.table, state.floor, &state.reserved)?;
        state.floor =
            if change.is_of_shape() { rules::floor(change, state.floor) } else { state.floor };
        state.revision += 1;
        for record in &mut put {
            record.revision = state.revision;
        }
        let removed: Vec<_> = change.from.iter().map(|record| record.range).collect();
        for range in &removed {
            state.table.remove(key(*range));
        }
        for record in &put {
            state.table.put(record.clone());
        }
        state.tell(&Update::Records { removed, put: put.clone() });
        Ok(put)
    }

    fn find(&self, vid: Vid) -> Result<Option<Entry>, DirectoryError> {
        let state = self.state();
        Ok(state.table.find(vid).map(|record| state.table.entry(record)))
    }

    fn services(&self, pattern: &Pattern) -> Result<Vec<Entry>, DirectoryError> {
        let state = self.state();
        Ok(state.table.services(pattern).map(|record| state.table.entry(record)).collect())
    }

    fn list(&self) -> Result<Vec<Entry>, DirectoryError> {
        let state = self.state();
        Ok(state.table.records().map(|record| state.table.entry(record)).collect())
    }

    fn watch(&self) -> Result<Updates, DirectoryError> {
        let mut state = self.state();
        let (sender, updates) = channel();
        let records = state.table.records().cloned().collect();
        let owners = state.table.owners().cloned().collect();
        let _ = sender.send(Update::All { records, owners }); // its receiver is here
        state.watchers.push(sender);
        Ok(updates)
    }

    fn ranges_at(&self, home: &Home) -> Result<Vec<Range>, DirectoryError> {
        Ok(self.state().table.ranges_at(home).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::conformance;

    #[test]
    fn it_is_a_directory() {
        conformance::all(&|| Arc::new(LocalDirectory::new(vec![conformance::reserved()]).unwrap()));
    }
}
