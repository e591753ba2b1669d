//! A guest's disk: what its image has, read from wherever the image is when the guest needs it, and what
//! the guest has written, in a file of the VM's own.
//!
//! - `backend`: the device's end;
//! - `worker`: the thread that carries out requests;
//! - `fetch`: the threads that bring chunks;
//! - `chunks`: those that are kept;
//! - [`overlay`] and [`map`]: what was written.
//!
//! Opening files ([`open_overlay`]) is apart from making the device ([`device`]), which takes open ones:
//! a VM that may open nothing is given them.

mod backend;
mod chunks;
mod counters;
mod fetch;
pub mod map;
pub mod overlay;
#[cfg(test)]
mod tests;
mod worker;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::virtio::VirtioDevice;
use devices::virtio::blk::Block;
use imgcache::image::manifest::Manifest;
use imgcache::key::ManifestId;
use imgcache::lazy::ChunkSource;
use rustix::fs::{Mode, OFlags};

use self::backend::LazyDisk;
pub use self::counters::{Counters, DiskReport};
use self::overlay::{Overlay, OverlayError};
use crate::spec::disk::DiskSpec;

/// Why a VM has no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The image has none.
    #[error(
        "the image has no disk: push it with one ('vmm image push --disk FILE'), or leave out --disk"
    )]
    NoDisk,
    /// The file of the overlay.
    #[error("cannot open the overlay '{}': {source}", path.display())]
    Open {
        /// The file, or the folder where one was to be made.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The overlay.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// Threads and events.
    #[error("cannot start the disk's threads: {0}")]
    Start(#[source] io::Error),
}

/// How many queues a disk has.
pub const QUEUES: usize = 1;

/// What is said of the disk of an image: without a word, one that is there is attached read-only.
///
/// # Errors
/// A disk is asked for, and the image has none.
pub fn wanted(spec: Option<&DiskSpec>, manifest: &Manifest) -> Result<DiskSpec, DiskError> {
    match (spec, manifest.disk()) {
        (None, None) | (Some(DiskSpec::None {}), _) => Ok(DiskSpec::None {}),
        (None, Some(_)) => Ok(DiskSpec::Ro {}),
        (Some(_), None) => Err(DiskError::NoDisk),
        (Some(spec), Some(_)) => Ok(spec.clone()),
    }
}

/// Opens the file that a disk's overlay is in, if it is to have one: the named one, or one without a
/// name that is gone with the VM, in `$TMPDIR` or `/var/tmp`.
///
/// # Errors
/// The host's refusal.
pub fn open_overlay(spec: &DiskSpec) -> Result<Option<File>, DiskError> {
    let DiskSpec::Overlay { file, .. } = spec else { return Ok(None) };
    let failed = |path: &Path, source| DiskError::Open { path: path.to_owned(), source };
    if let Some(path) = file {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        return Ok(Some(options.open(path).map_err(|error| failed(path, error))?));
    }
    let folder =
        std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(&folder, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|error| failed(&folder, error.into()))?;
    Ok(Some(file.into()))
}

/// A disk's device, and what it counts.
#[derive(Debug)]
pub struct Disk {
    /// The device.
    pub device: Box<dyn VirtioDevice>,
    /// What it counts.
    pub counters: Arc<Counters>,
}

/// Makes the device of the disk that `spec` asks for, of the source's image; `overlay` is what
/// [`open_overlay`] opened. Nothing if there is to be none.
///
/// # Errors
/// The image has no disk, the overlay is none of this disk's, or the host gives no thread.
pub fn device(
    spec: &DiskSpec,
    id: &ManifestId,
    source: Arc<dyn ChunkSource>,
    overlay: Option<File>,
) -> Result<Option<Disk>, DiskError> {
    if matches!(spec, DiskSpec::None {}) {
        return Ok(None);
    }
    let segment = source.manifest().disk().ok_or(DiskError::NoDisk)?.1.clone();
    let length = segment.data_length;
    let overlay = match (spec, overlay) {
        (DiskSpec::Overlay { file: Some(_), size }, Some(file)) => {
            Some(Overlay::kept(file, id, length, *size)?)
        }
        (DiskSpec::Overlay { size, .. }, Some(file)) => Some(Overlay::scratch(file, length, *size)),
        _ => None,
    };
    let counters = Arc::new(Counters::default());
    let disk = LazyDisk::start(source, id, &segment, overlay, Arc::clone(&counters))
        .map_err(DiskError::Start)?;
    Ok(Some(Disk { device: Box::new(Block::new(Box::new(disk))), counters }))
}
