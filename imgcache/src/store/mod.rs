//! The embedded store: images in a folder of this host, deduplicated by chunk.
//!
//! Everything in it can be read while other processes push, boot, remove and verify; only garbage
//! collection wants the store to itself, for a moment. See `layout` for its files.

mod error;
mod gc;
mod index;
mod inspect;
mod layout;
mod locations;
mod names;
mod open;
mod pack;
mod push;
mod table;
mod verify;

#[cfg(test)]
mod tests;

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::error::StoreError;
pub use self::gc::GcReport;
pub use self::inspect::{ImageSummary, Inspection, Listed, PackUse};
pub(crate) use self::open::OpenImage;
pub use self::push::{
    Content, ContentError, NewImage, NewSegment, PushOptions, PushProgress, PushReport,
};
pub use self::verify::{Damage, VerifyReport};
use crate::image::manifest::Manifest;
use crate::key::ManifestId;
use layout::{Layout, read_table};

/// How long an operation waits for the store's lock unless told otherwise.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(30);

/// A store of images in a folder.
#[derive(Debug, Clone)]
pub struct Store {
    layout: Layout,
    patience: Duration,
}

impl Store {
    /// The folder of the user's store: `$XDG_DATA_HOME/vmm/images`, or `~/.local/share/vmm/images`.
    ///
    /// # Errors
    /// If neither variable has an absolute path.
    pub fn default_path() -> Result<PathBuf, StoreError> {
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let data = absolute("XDG_DATA_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
        Ok(data.ok_or(StoreError::NoDefaultPath)?.join("vmm").join("images"))
    }

    /// Opens the store in the folder `root`, which may be read-only.
    ///
    /// # Errors
    /// [`StoreError::NoFolder`] if the folder is not there, [`StoreError::NotAStore`] if it is and
    /// is none.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Ok(Self { layout: Layout::open(root)?, patience: DEFAULT_PATIENCE })
    }

    /// Opens the store in the folder `root`, made if it is not there.
    ///
    /// # Errors
    /// If it cannot be made, or is one of another version.
    pub fn create(root: &Path) -> Result<Self, StoreError> {
        Ok(Self { layout: Layout::create(root)?, patience: DEFAULT_PATIENCE })
    }

    /// The same store, waiting this long for its lock.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        self.layout.root()
    }

    /// The manifest `id`, verified.
    ///
    /// # Errors
    /// [`StoreError::UnknownManifest`] if it is not there; else why it cannot be read.
    pub fn manifest(&self, id: &ManifestId) -> Result<Manifest, StoreError> {
        let path = self.layout.manifest(id);
        let bytes = read_table(&path)?.ok_or(StoreError::UnknownManifest(*id))?;
        Manifest::decode_as(id, &bytes)
            .map_err(|source| StoreError::DamagedManifest { path, source })
    }
}
