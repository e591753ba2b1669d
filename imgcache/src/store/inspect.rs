//! What is in a store: its images, and where the bytes of one are.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::Serialize;

use super::Store;
use super::error::StoreError;
use crate::image::manifest::Manifest;
use crate::image::name::ImageName;
use crate::key::{ChunkKey, ManifestId};

/// An image, on one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageSummary {
    /// Its name.
    pub name: ImageName,
    /// Its id.
    pub id: ManifestId,
    /// When it was last pushed.
    pub pushed: SystemTime,
    /// Bytes of its content, zeros included.
    pub bytes: u64,
    /// Bytes of its ramdisk, if it has one.
    pub initrd_bytes: Option<u64>,
    /// The kernel's release, if known.
    pub kernel_version: Option<String>,
}

/// An image in full.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// Its name.
    pub name: ImageName,
    /// Its id.
    pub id: ManifestId,
    /// When it was last pushed.
    pub pushed: SystemTime,
    /// Its manifest.
    pub manifest: Manifest,
    /// Bytes of its content, zeros included.
    pub bytes: u64,
    /// Bytes of its chunks that are all zero.
    pub bytes_zero: u64,
    /// Bytes that it takes in the store, each chunk counted once.
    pub bytes_stored: u64,
    /// Bytes of these that other images use as well.
    pub bytes_shared: u64,
    /// The packs with its chunks.
    pub packs: Vec<PackUse>,
    /// Whether all of them are as they were last verified.
    pub sealed: bool,
}

/// What an image has in a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PackUse {
    /// The file.
    pub path: PathBuf,
    /// Bytes of the image's chunks in it.
    pub bytes: u64,
}

/// A name, and the image that it stands for or why that cannot be read.
pub type Listed = (ImageName, Result<ImageSummary, StoreError>);

impl Store {
    /// Every image, sorted by name; for one that cannot be read, why.
    ///
    /// # Errors
    /// If the names cannot be listed.
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let names = self.names()?;
        Ok(names.into_iter().map(|name| (name.clone(), self.summary(name))).collect())
    }

    fn summary(&self, name: ImageName) -> Result<ImageSummary, StoreError> {
        let id = self.resolve(&name)?;
        let manifest = self.manifest(&id)?;
        Ok(ImageSummary {
            pushed: self.pushed(&name)?,
            name,
            id,
            bytes: manifest.data_bytes(),
            initrd_bytes: manifest.initrd().map(|(_, segment)| segment.data_length),
            kernel_version: manifest.kernel.version,
        })
    }

    /// Everything about one image.
    ///
    /// # Errors
    /// [`StoreError::UnknownImage`] if there is none of that name, [`StoreError::DamagedImage`] if
    /// it is damaged; else what cannot be read.
    pub fn inspect(&self, name: &ImageName) -> Result<Inspection, StoreError> {
        self.inspect_undamaged(name).map_err(StoreError::in_image(name))
    }

    fn inspect_undamaged(&self, name: &ImageName) -> Result<Inspection, StoreError> {
        let id = self.resolve(name)?;
        let image = self.open_image(&id)?;
        let manifest = image.manifest();
        let elsewhere = self.keys_of_others(&id)?;
        let mut seen = HashSet::new();
        let (mut bytes_zero, mut bytes_stored, mut bytes_shared) = (0, 0, 0);
        let mut packs: Vec<PackUse> = Vec::new();
        packs.extend(image.packs().map(|pack| PackUse { path: pack.path.clone(), bytes: 0 }));
        for chunk in manifest.all_chunks() {
            let length = u64::from(chunk.length);
            if chunk.entry.zero {
                bytes_zero += length;
            } else if seen.insert(chunk.entry.key) {
                bytes_stored += length;
                bytes_shared += if elsewhere.contains(&chunk.entry.key) { length } else { 0 };
                if let Some(pack) = image.locate(chunk.index).and_then(|(p, _)| packs.get_mut(p)) {
                    pack.bytes += length;
                }
            }
        }
        Ok(Inspection {
            name: name.clone(),
            id,
            pushed: self.pushed(name)?,
            bytes: manifest.data_bytes(),
            bytes_zero,
            bytes_stored,
            bytes_shared,
            packs,
            sealed: image.sealed(),
            manifest: manifest.clone(),
        })
    }

    /// The keys of the chunks of all named images but `id`; images that cannot be read have none.
    fn keys_of_others(&self, id: &ManifestId) -> Result<HashSet<ChunkKey>, StoreError> {
        let others: HashSet<ManifestId> =
            self.names()?.iter().filter_map(|name| self.resolve(name).ok()).collect();
        let mut keys = HashSet::new();
        for other in others.iter().filter(|other| *other != id) {
            if let Ok(manifest) = self.manifest(other) {
                keys.extend(manifest.chunks.iter().filter(|c| !c.zero).map(|chunk| chunk.key));
            }
        }
        Ok(keys)
    }
}
