//! What the next agent has to know: the directory, if it is in this process, and the moves that are under way.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use endpoint::name::Name;
use endpoint::range::Range;
use endpoint::record::{Home, Record};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A move that was begun here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Its number.
    pub number: u64,
    /// Of which service.
    pub service: Name,
    /// Of which identifiers.
    pub range: Range,
    /// From where.
    pub from: Home,
    /// Where to.
    pub to: Home,
    /// The service brings its state over by itself.
    pub stateless: bool,
}

/// The files.
#[derive(Debug)]
pub struct Store {
    records: PathBuf,
    lease: PathBuf,
    moves: PathBuf,
    begun: Mutex<Vec<Begun>>,
}

impl Store {
    /// In this folder.
    pub fn open(folder: &Path) -> Self {
        let moves = folder.join("moves");
        let begun = Mutex::new(read(&moves).unwrap_or_default());
        let (records, lease) = (folder.join("endpoints"), folder.join("lease"));
        Self { records, lease, moves, begun }
    }

    /// The file for the lease of a directory of many hosts.
    pub fn lease(&self) -> PathBuf {
        self.lease.clone()
    }

    /// The records that were written last.
    pub fn records(&self) -> Vec<Record> {
        read(&self.records).unwrap_or_default()
    }

    /// Writes all records.
    ///
    /// # Errors
    /// The file system's.
    pub fn keep(&self, records: &[Record]) -> io::Result<()> {
        write(&self.records, &records)
    }

    /// The moves that have not ended, as far as is known.
    pub fn begun(&self) -> Vec<Begun> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A move begins: it is written down before anything of it is done.
    ///
    /// # Errors
    /// The file system's.
    pub fn begin(&self, begun: Begun) -> io::Result<()> {
        let mut all = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| other.number != begun.number);
        all.push(begun);
        write(&self.moves, &*all)
    }

    /// A move has ended.
    pub fn end(&self, number: u64) {
        let mut all = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|begun| begun.number != number);
        if let Err(error) = write(&self.moves, &*all) {
            // The next agent finds that it has ended.
            log::warn!("{}: {error}", self.moves.display());
        }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            log::error!("{}: {error}: what it says of endpoints is lost", path.display());
            return None;
        }
    };
    serde_json::from_slice(&text)
        .inspect_err(|error| log::error!("{}: {error}: it is left aside", path.display()))
        .ok()
}

/// Whole or not at all.
fn write<T: Serialize + ?Sized>(path: &Path, what: &T) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(what)?)?;
    fs::rename(new, path)
}
