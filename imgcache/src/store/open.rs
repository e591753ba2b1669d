//! An image that is open for reading: its manifest, and the packs with its chunks, kept from gc.

use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::sync::Arc;

use super::Store;
use super::error::StoreError;
use super::index::read_seal;
use super::locations::{Location, Locations};
use super::pack::{PackId, Seal};
use crate::image::manifest::Manifest;
use crate::key::ManifestId;

/// An image whose chunks stay where they are until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenImage {
    id: ManifestId,
    manifest: Manifest,
    packs: Vec<OpenPack>,
    chunks: Vec<Option<Location>>,
}

/// A pack of an open image.
#[derive(Debug)]
pub(crate) struct OpenPack {
    pub(crate) path: PathBuf,
    /// Holds a shared lock for as long as it, or a mapping of it, lives: gc punches no holes in it.
    pub(crate) file: Arc<File>,
    seal: Option<Seal>,
}

impl Store {
    /// Opens the image whose manifest is `id`.
    pub(crate) fn open_image(&self, id: &ManifestId) -> Result<OpenImage, StoreError> {
        let _lock = self.layout.lock_shared(self.patience)?;
        let manifest = self.manifest(id)?;
        let locations = Locations::read(&self.layout, id, &manifest)?;
        let mut packs = Vec::with_capacity(locations.packs.len());
        for pack in &locations.packs {
            packs.push(self.open_pack(*pack)?);
        }
        Ok(OpenImage { id: *id, manifest, packs, chunks: locations.chunks })
    }

    fn open_pack(&self, id: PackId) -> Result<OpenPack, StoreError> {
        let path = self.layout.pack(id);
        let file = File::open(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => StoreError::damaged(&path, 0, "is missing"),
            _ => StoreError::io("open", &path)(error),
        })?;
        // Only gc takes it for itself, and gc is kept out by the store's lock.
        file.try_lock_shared().map_err(|error| match error {
            TryLockError::Error(error) => StoreError::io("lock", &path)(error),
            TryLockError::WouldBlock => {
                StoreError::Locked { path: path.clone(), exclusive: false, waited: self.patience }
            }
        })?;
        Ok(OpenPack { seal: read_seal(&self.layout, id), path, file: Arc::new(file) })
    }
}

impl OpenImage {
    pub(crate) fn id(&self) -> ManifestId {
        self.id
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Whether every pack is as it was sealed.
    pub(crate) fn sealed(&self) -> bool {
        self.packs.iter().all(|pack| {
            pack.seal.is_some_and(|seal| Seal::of(&pack.file).is_ok_and(|now| now == seal))
        })
    }

    /// The pack with chunk `index` of the manifest's table, as its position among the packs of
    /// this image, and the chunk's offset there; `None` for zero chunks.
    pub(crate) fn locate(&self, index: u32) -> Option<(usize, u64)> {
        let location = (*self.chunks.get(usize::try_from(index).ok()?)?)?;
        Some((location.pack, location.offset))
    }

    pub(crate) fn packs(&self) -> impl Iterator<Item = &OpenPack> {
        self.packs.iter()
    }

    /// A pack by its position among the packs of this image.
    pub(crate) fn pack(&self, position: usize) -> Option<&OpenPack> {
        self.packs.get(position)
    }
}
