//! A membership file that may change while it is used.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::{Members, MembersError, io_error};
use crate::parallel::lock;

/// A membership file that is looked at again whenever it is used.
#[derive(Debug)]
pub struct MembersFile {
    path: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    stamp: Stamp,
    members: Arc<Members>,
}

/// What tells one version of a file from another: device, inode, size, and time of change.
type Stamp = (u64, u64, u64, i64, i64);

impl MembersFile {
    /// Opens the file at `path`, which must be valid now.
    ///
    /// # Errors
    /// As [`Members::read`].
    pub fn open(path: &Path) -> Result<Self, MembersError> {
        let stamp = stamp(path)?;
        let members = Arc::new(Members::read(path)?);
        Ok(Self { path: path.to_owned(), seen: Mutex::new(Seen { stamp, members }) })
    }

    /// The members as the file has them now.
    ///
    /// A file that has become unreadable, invalid, or older than what was seen is refused with a
    /// warning, once for each version of it; what was seen before stays in use.
    pub fn current(&self) -> Arc<Members> {
        let mut seen = lock(&self.seen);
        let now = match stamp(&self.path) {
            Ok(now) => now,
            Err(error) => {
                if seen.stamp != Stamp::default() {
                    log::warn!("{error}; staying with epoch {}", seen.members.epoch);
                    seen.stamp = Stamp::default();
                }
                return Arc::clone(&seen.members);
            }
        };
        if now != seen.stamp {
            seen.stamp = now;
            match Members::read(&self.path) {
                Ok(new) if new.epoch < seen.members.epoch => log::warn!(
                    "membership file '{}' went back to epoch {}; staying with epoch {}",
                    self.path.display(),
                    new.epoch,
                    seen.members.epoch
                ),
                Ok(new) => seen.members = Arc::new(new),
                Err(error) => log::warn!("{error}; staying with epoch {}", seen.members.epoch),
            }
        }
        Arc::clone(&seen.members)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn stamp(path: &Path) -> Result<Stamp, MembersError> {
    let meta = fs::metadata(path).map_err(io_error("look at", path))?;
    Ok((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
}
