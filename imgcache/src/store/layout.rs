//! The files of a store, and the ways in which they are written, read and locked.
//!
//! ```text
//! FORMAT           says that the folder is a store, and which version
//! lock             flock: shared by pushes, boots, removals and checks; exclusive for gc
//! packs/ID         the new chunks of one push; ID is random
//! packs/ID.idx     which chunks the pack has, and its seal
//! manifests/ID     an encoded manifest
//! manifests/ID.at  in which pack each of its chunks is
//! names/NAME       the id of the manifest that the name stands for
//! tmp/             work in progress; whatever is here when gc runs was abandoned
//! ```
//!
//! A file comes into its final place by rename, complete and synced, so that it is there whole or
//! not at all.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::error::StoreError;
use super::pack::PackId;
use crate::image::name::ImageName;
use crate::key::ManifestId;

const FORMAT: &str = "vmm image store 1\n";
const FOLDERS: [&str; 4] = ["packs", "manifests", "names", "tmp"];
/// Between two attempts to take a lock.
const LOCK_POLL: Duration = Duration::from_millis(5);
/// The largest file that is read whole: the manifest of the largest image, and its index.
const MAX_TABLE_BYTES: u64 = 2 << 30;

/// Where the files of a store are.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    root: PathBuf,
}

/// A lock on the store or on a pack; released when dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// A file under `tmp/` that is removed unless it is put in its place.
#[derive(Debug)]
pub(super) struct TempFile {
    pub(super) file: File,
    path: PathBuf,
    placed: bool,
}

impl Layout {
    /// The store in `root`, made if it is not there.
    pub(super) fn create(root: &Path) -> Result<Self, StoreError> {
        let layout = Self { root: root.to_owned() };
        let format = root.join("FORMAT");
        // It is written last, so what it stands in is complete, and perhaps read-only.
        if format.exists() {
            return Self::open(root);
        }
        for folder in FOLDERS {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(StoreError::io("create", &path))?;
        }
        let lock = layout.lock_path();
        let created = File::options().create(true).append(true).open(&lock);
        created.map_err(StoreError::io("create", &lock))?;
        let mut file = layout.temp_file()?;
        file.write_all(FORMAT.as_bytes())?;
        file.place(&format)?;
        sync_folder(root)?;
        Self::open(root)
    }

    /// The store that is in `root`.
    pub(super) fn open(root: &Path) -> Result<Self, StoreError> {
        let layout = Self { root: root.to_owned() };
        let not = |reason: String| StoreError::NotAStore { path: root.to_owned(), reason };
        let path = root.join("FORMAT");
        match read_bounded(&path, 256) {
            Ok(text) if text == FORMAT.as_bytes() => Ok(layout),
            Ok(text) => {
                Err(not(format!("FORMAT is {:?}", String::from_utf8_lossy(&text).trim_end())))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(match root.try_exists() {
                Ok(false) => StoreError::NoFolder(root.to_owned()),
                _ => not("it has no file FORMAT".to_owned()),
            }),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn packs(&self) -> PathBuf {
        self.root.join("packs")
    }

    pub(super) fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    pub(super) fn names(&self) -> PathBuf {
        self.root.join("names")
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(super) fn pack(&self, id: PackId) -> PathBuf {
        self.packs().join(id.to_string())
    }

    pub(super) fn index(&self, id: PackId) -> PathBuf {
        self.packs().join(format!("{id}.idx"))
    }

    pub(super) fn manifest(&self, id: &ManifestId) -> PathBuf {
        self.manifests().join(id.to_string())
    }

    pub(super) fn locations(&self, id: &ManifestId) -> PathBuf {
        self.manifests().join(format!("{id}.at"))
    }

    pub(super) fn name(&self, name: &ImageName) -> PathBuf {
        self.names().join(name.to_file_name())
    }

    fn lock_path(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Takes the store's lock to push, boot, remove or check: keeps gc out.
    pub(super) fn lock_shared(&self, patience: Duration) -> Result<Lock, StoreError> {
        lock_within(&self.lock_path(), false, patience)
    }

    /// Takes the store's lock to collect garbage: keeps everybody out.
    pub(super) fn lock_exclusive(&self, patience: Duration) -> Result<Lock, StoreError> {
        lock_within(&self.lock_path(), true, patience)
    }

    /// A new, empty file under `tmp/`, open for reading and writing.
    pub(super) fn temp_file(&self) -> Result<TempFile, StoreError> {
        let folder = self.tmp();
        let id = PackId::random().map_err(StoreError::io("name a file in", &folder))?;
        let path = folder.join(id.to_string());
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(StoreError::io("create", &path))?;
        Ok(TempFile { file, path, placed: false })
    }

    /// The names of the files in `folder`, sorted; those that are not UTF-8 are not the store's.
    pub(super) fn file_names(folder: &Path) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        let entries = fs::read_dir(folder).map_err(StoreError::io("list", folder))?;
        for entry in entries {
            let entry = entry.map_err(StoreError::io("list", folder))?;
            names.extend(entry.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }
}

fn lock_within(path: &Path, exclusive: bool, patience: Duration) -> Result<Lock, StoreError> {
    // A lock needs no write permission, so that a read-only store can be booted from.
    let file = File::open(path).map_err(StoreError::io("open", path))?;
    let begin = Instant::now();
    loop {
        let attempt = if exclusive { file.try_lock() } else { file.try_lock_shared() };
        match attempt {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", path)(error)),
            Err(TryLockError::WouldBlock) => {}
        }
        let waited = begin.elapsed();
        if waited >= patience {
            return Err(StoreError::Locked { path: path.to_owned(), exclusive, waited });
        }
        thread::sleep(LOCK_POLL.min(patience.saturating_sub(waited)));
    }
}

impl TempFile {
    pub(super) fn write_all(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(bytes).map_err(StoreError::io("write", &self.path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_all().map_err(StoreError::io("sync", &self.path))
    }

    /// Syncs the file and gives it its final name; the caller syncs the folder.
    pub(super) fn place(self, path: &Path) -> Result<(), StoreError> {
        self.sync()?;
        self.rename(path)
    }

    /// Gives the file, synced already, its final name; the caller syncs the folder.
    pub(super) fn rename(mut self, path: &Path) -> Result<(), StoreError> {
        fs::rename(&self.path, path).map_err(StoreError::io("create", path))?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.placed {
            // gc removes what cannot be removed here.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the names in `folder` durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    let opened = File::open(folder).map_err(StoreError::io("open", folder))?;
    opened.sync_all().map_err(StoreError::io("sync", folder))
}

/// Removes `path`; whether it was there.
pub(super) fn remove(path: &Path) -> Result<bool, StoreError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StoreError::io("remove", path)(error)),
    }
}

/// The content of `path`; `None` if there is no such file.
pub(super) fn read_table(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match read_bounded(path, MAX_TABLE_BYTES) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("read", path)(error)),
    }
}

fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    if length > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{length} bytes; at most {limit} are allowed"),
        ));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}
