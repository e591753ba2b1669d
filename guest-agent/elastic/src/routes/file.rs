//! Routes in a file, for the processes of one host.
//!
//! A change is made under an exclusive lock and becomes valid by renaming, so that a process that is killed
//! leaves either the old table or the new one, and no lock.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::{Ask, Reply, Routes, Table};
use crate::Peer;
use crate::range::Range;

/// A table that is larger is not ours.
const TABLE_MAX: u64 = 64 << 20;

/// Routes that the processes of one host share.
#[derive(Debug, Clone)]
pub struct FileRoutes {
    table: PathBuf,
    lock: PathBuf,
}

impl FileRoutes {
    /// The routes in `folder`, which exists.
    pub fn new(folder: &Path) -> Self {
        Self { table: folder.join("routes.json"), lock: folder.join("routes.lock") }
    }

    /// The table as it is.
    ///
    /// # Errors
    /// When the file cannot be read, or is no table.
    pub fn read(&self) -> io::Result<Table> {
        match fs::metadata(&self.table) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Table::default()),
            Err(error) => return Err(error),
            Ok(found) if found.len() > TABLE_MAX => {
                let text = format!(
                    "{} has {} bytes: it is no table of routes",
                    self.table.display(),
                    found.len()
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            Ok(_) => {}
        }
        Ok(serde_json::from_slice(&fs::read(&self.table)?)?)
    }

    /// Changes the table; none was kept if it fails.
    fn change<T>(&self, act: impl FnOnce(&mut Table) -> T) -> io::Result<T> {
        let lock = File::options().create(true).truncate(false).write(true).open(&self.lock)?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let mut table = self.read()?;
        let result = act(&mut table);
        let new = self.table.with_extension("new");
        fs::write(&new, serde_json::to_vec(&table)?)?;
        fs::rename(&new, &self.table)?;
        Ok(result)
    }

    fn tell<T>(&self, result: io::Result<T>) -> Option<T> {
        result
            .inspect_err(|error| log::warn!("no routes from {}: {error}", self.table.display()))
            .ok()
    }
}

impl Routes for FileRoutes {
    fn ask(&self, ask: &Ask) -> Reply {
        let result = match ask {
            Ask::Settled { epoch, .. } => return Reply::Done(*epoch),
            Ask::Lookup { .. } => self.read().map(|mut table| table.ask(ask)),
            _ => self.change(|table| table.ask(ask)),
        };
        self.tell(result).unwrap_or(Reply::Unknown)
    }

    fn fence_all(&self, peer: Peer) -> Option<(u64, Vec<(Range, u64)>)> {
        self.tell(self.change(|table| table.fence_all(peer)))
    }

    fn home(&self, id: u64) -> Option<(Peer, u64)> {
        self.tell(self.read())?.home(id)
    }

    fn ranges(&self, peer: Peer) -> Vec<Range> {
        self.tell(self.read()).map(|table| table.ranges(peer)).unwrap_or_default()
    }

    fn announce(&self, range: Range, peer: Peer) -> Result<u64, Reply> {
        self.tell(self.change(|table| table.announce(range, peer))).unwrap_or(Err(Reply::Unknown))
    }

    fn address(&self, peer: Peer) -> Option<String> {
        self.tell(self.read())?.addresses.get(&peer).cloned()
    }

    fn set_address(&self, peer: Peer, address: &str) {
        self.tell(self.change(|table| table.addresses.insert(peer, address.to_owned())));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::thread;

    use super::*;

    #[test]
    fn changes_of_many_processes_are_all_kept() {
        let folder = tempfile::tempdir().unwrap();
        let routes = FileRoutes::new(folder.path());
        thread::scope(|scope| {
            for peer in 0..8 {
                let routes = routes.clone();
                scope.spawn(move || {
                    let first = u64::from(peer) * 100;
                    routes.announce(Range::new(first, first + 99).unwrap(), Peer(peer)).unwrap();
                });
            }
        });
        for peer in 0..8 {
            assert_eq!(routes.home(u64::from(peer) * 100 + 50).unwrap().0, Peer(peer));
        }
    }

    #[test]
    fn what_is_no_table_gives_no_answer_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let routes = FileRoutes::new(folder.path());
        fs::write(&routes.table, b"{\"entries\":7}").unwrap();
        assert_eq!(routes.fence_all(Peer(1)), None);
        assert_eq!(fs::read(&routes.table).unwrap(), b"{\"entries\":7}");
    }
}
