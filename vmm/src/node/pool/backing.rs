//! What the pool's files are made of, so that they are in 2 MiB pages and nobody but the agent can
//! change them.
//!
//! With the right to mount, a tmpfs of the agent's own with `huge=always`, whatever the host's setting
//! for shared memory is. It outlives an agent that was killed: the next one finds what is there.
//! Without, memory files, sealed once they are filled; in 2 MiB pages only if the host's setting
//! (`shmem_enabled`) is such.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

/// What the pool is made of.
#[derive(Debug)]
pub enum Backing {
    /// A tmpfs mounted at this folder.
    Tmpfs(PathBuf),
    /// Memory files.
    Memfd,
}

/// A file of the pool that is being filled.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    path: Option<PathBuf>,
}

impl Backing {
    /// The best there is, for `limit` bytes; of a tmpfs at `folder`.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(folder: &Path, limit: u64) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let options = format!("huge=always,size={limit},mode=0700");
        let options = std::ffi::CString::new(options)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let mounted = if is_mount_point(folder)? {
            mount_remount(folder, flags, options.as_c_str())
        } else {
            mount("vmm-pool", folder, "tmpfs", flags, options.as_c_str())
        };
        match mounted {
            Ok(()) => Ok(Self::Tmpfs(folder.to_owned())),
            Err(error) => {
                log::info!(
                    "the pool is made of memory files, no tmpfs can be mounted at {}: {error}",
                    folder.display()
                );
                Ok(Self::Memfd)
            }
        }
    }

    /// What to call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tmpfs(_) => "tmpfs",
            Self::Memfd => "memfd",
        }
    }

    /// The folder of files that outlive the agent, if there is one.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Tmpfs(folder) => Some(folder),
            Self::Memfd => None,
        }
    }

    /// A new file; `name` is its place below the folder once it is finished.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn create(&self, name: &str) -> io::Result<NewFile> {
        match self {
            Self::Memfd => {
                let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
                Ok(NewFile { file: memfd_create("vmm-pool", flags)?.into(), path: None })
            }
            Self::Tmpfs(folder) => {
                let path = folder.join(name);
                if let Some(parent) = path.parent() {
                    fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
                }
                let new = unfinished(&path);
                let mut options = File::options();
                let options = options.read(true).write(true).create(true).truncate(true);
                let file = options.mode(0o400).open(new)?;
                Ok(NewFile { file, path: Some(path) })
            }
        }
    }

    /// Removes what was finished as `name`. Who has it mapped keeps it.
    pub fn remove(&self, name: &str) {
        if let Self::Tmpfs(folder) = self
            && let Err(error) = fs::remove_file(folder.join(name))
        {
            log::warn!("cannot remove {name} from the pool: {error}");
        }
    }

    /// Gives all of it back. What VMs have mapped stays with them.
    pub fn end(&self) {
        if let Self::Tmpfs(folder) = self
            && let Err(error) = unmount(folder, UnmountFlags::DETACH)
        {
            log::warn!("cannot unmount {}: {error}", folder.display());
        }
    }
}

impl NewFile {
    /// The file, to be filled.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Nobody can change it from now on; returns it for reading. No writable mapping may be left.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn finish(self) -> io::Result<File> {
        let Some(path) = &self.path else {
            let all = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
            fcntl_add_seals(&self.file, all)?;
            return self.file.try_clone();
        };
        // A descriptor that cannot write is what VMs get.
        let file = File::open(unfinished(path))?;
        fs::rename(unfinished(path), path)?;
        Ok(file)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // There is none any more if it was finished.
            let _ = fs::remove_file(unfinished(path));
        }
    }
}

/// The file that belongs to `path` and has its name with `end` behind it.
pub fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(end);
    name.into()
}

/// The name of a file that is being filled.
fn unfinished(path: &Path) -> PathBuf {
    beside(path, "new")
}

/// Whether something is mounted at `folder`.
fn is_mount_point(folder: &Path) -> io::Result<bool> {
    let parent = folder.parent().unwrap_or(Path::new("/"));
    Ok(fs::metadata(folder)?.dev() != fs::metadata(parent)?.dev())
}
