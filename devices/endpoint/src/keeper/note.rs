//! Where a host notes its lease, for the keeper that comes after this one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use crate::directory::Lease;

/// A file that has the lease. Whoever can read it can change the host's records: it is its owner's alone.
#[derive(Debug, Clone)]
pub struct Note(PathBuf);

impl Note {
    /// The file at `path`, whose folder is there.
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// The lease, if there is one that can be read.
    pub(super) fn read(&self) -> Option<Lease> {
        serde_json::from_slice(&fs::read(&self.0).ok()?).ok()
    }

    /// Notes `lease`: all of it, or what was noted before stays.
    pub(super) fn write(&self, lease: &Lease) -> io::Result<()> {
        let new = self.0.with_extension("new");
        let _ = fs::remove_file(&new); // of one that was killed; its mode may be another
        let mut file: File = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(lease)?)?;
        drop(file);
        fs::rename(&new, &self.0)
    }
}
