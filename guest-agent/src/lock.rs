//! Locks between the processes that use the device. Two registers make one address, so one process at
//! a time may submit; and there is one event ring, which is of whoever has set it up.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

/// Folders in which locks can be, the first that takes one. All processes of a guest see the same ones.
const FOLDERS: [&str; 2] = ["/run", "/dev"];

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
#[error("cannot lock '{}': {source}", .path.display())]
pub struct LockError {
    /// The file, in the folder tried last.
    pub path: PathBuf,
    /// The system's error.
    pub source: io::Error,
}

/// A file that processes lock.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

/// A lock that is held.
#[derive(Debug)]
pub struct Held<'a>(&'a Lock);

impl Lock {
    /// The lock of this name.
    ///
    /// # Errors
    /// If the file can be made nowhere.
    pub fn named(name: &str) -> Result<Self, LockError> {
        let mut result = Self::at(&Path::new(FOLDERS[0]).join(name));
        for folder in &FOLDERS[1..] {
            result = result.or_else(|_| Self::at(&Path::new(folder).join(name)));
        }
        result
    }

    /// The lock that this file is.
    ///
    /// # Errors
    /// If it can be neither opened nor made.
    pub fn at(path: &Path) -> Result<Self, LockError> {
        let error = |source| LockError { path: path.to_owned(), source };
        let flags =
            i32::try_from(OFlags::NOFOLLOW.bits()).map_err(|e| error(io::Error::other(e)))?;
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        let file = options.open(path).map_err(error)?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Waits for the lock.
    ///
    /// # Errors
    /// As `flock(2)`.
    pub fn hold(&self) -> Result<Held<'_>, LockError> {
        loop {
            match flock(&self.file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Held(self)),
                Err(Errno::INTR) => (),
                Err(error) => return Err(self.error(error)),
            }
        }
    }

    /// Takes the lock until this object is dropped; false if another process has it.
    ///
    /// # Errors
    /// As `flock(2)`.
    pub fn keep(&self) -> Result<bool, LockError> {
        match flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
            Err(error) => Err(self.error(error)),
        }
    }

    fn error(&self, error: Errno) -> LockError {
        LockError { path: self.path.clone(), source: error.into() }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // It cannot fail for a file that is open; and closing it gives the lock back too.
        let _ = flock(&self.0.file, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_of_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let (one, other) = (Lock::at(&path).unwrap(), Lock::at(&path).unwrap());
        let held = one.hold().unwrap();
        assert!(!other.keep().unwrap());
        drop(held);
        assert!(other.keep().unwrap());
        assert!(!one.keep().unwrap());
        drop(other);
        drop(one.hold().unwrap());
        let error = Lock::at(&folder.path().join("no/lock")).unwrap_err();
        assert!(error.to_string().contains("no/lock"), "{error}");
    }
}
