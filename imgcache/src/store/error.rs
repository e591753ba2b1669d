//! What can go wrong in a store.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::image::manifest::ManifestError;
use crate::image::name::ImageName;
use crate::key::ManifestId;

/// Why a store did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused something.
    #[error("cannot {action} '{}': {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// There is no such folder: nothing was ever pushed to it.
    #[error("there is no image store yet: '{}' does not exist", .0.display())]
    NoFolder(PathBuf),
    /// There is no store in this folder.
    #[error("'{}' is not an image store: {reason}", path.display())]
    NotAStore {
        /// The folder.
        path: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },
    /// Neither `XDG_DATA_HOME` nor `HOME` says where the default store is.
    #[error("no default image store: neither XDG_DATA_HOME nor HOME is an absolute path")]
    NoDefaultPath,
    /// Others held the store's lock for longer than was waited.
    #[error(
        "'{}' is locked {}; gave up after {} ms", path.display(),
        if *exclusive { "by a push or a boot" } else { "by a garbage collection" },
        waited.as_millis()
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Whether it was wanted for one alone.
        exclusive: bool,
        /// How long it was waited for.
        waited: Duration,
    },
    /// No image has this name.
    #[error("there is no image '{0}'")]
    UnknownImage(ImageName),
    /// The store does not hold this manifest.
    #[error("there is no manifest {0}")]
    UnknownManifest(ManifestId),
    /// A file of the store is not what it should be.
    #[error("'{}' is damaged at byte {offset}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A stored manifest is not what it should be.
    #[error("'{}' is damaged: {source}", path.display())]
    DamagedManifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ManifestError,
    },
    /// What an image needs is missing, or not what it should be. Pushing it again mends it.
    #[error("image '{image}' is damaged: {source}")]
    DamagedImage {
        /// Its name; others may need the same.
        image: ImageName,
        /// What is damaged, and where.
        source: Box<StoreError>,
    },
    /// The image that is pushed breaks a rule of manifests.
    #[error("image '{image}' cannot be stored: {source}")]
    InvalidImage {
        /// Its name.
        image: ImageName,
        /// The rule.
        source: ManifestError,
    },
    /// The content of a segment that is pushed could not be had.
    #[error("image '{image}': segment {segment}, after {offset} bytes: {source}")]
    Source {
        /// The image's name.
        image: ImageName,
        /// Index of the segment.
        segment: usize,
        /// Bytes of it that came before.
        offset: u64,
        /// Why no more came.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// Whether stored content is not what it was.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Damaged { .. } | Self::DamagedManifest { .. } | Self::DamagedImage { .. }
        )
    }

    /// For `map_err`: it came of reading what `name` stands for, and says so if that is damaged.
    pub(super) fn in_image(name: &ImageName) -> impl FnOnce(Self) -> Self {
        let image = name.clone();
        move |error| match error {
            // Only names lead to manifests, so this one lost its own.
            source if source.is_damage() || matches!(source, Self::UnknownManifest(_)) => {
                Self::DamagedImage { image, source: source.into() }
            }
            error => error,
        }
    }

    /// For `map_err`: the system refused `action` on `path`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// `path` is damaged at `offset`.
    pub(super) fn damaged(path: &Path, offset: u64, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), offset, reason: reason.into() }
    }
}
