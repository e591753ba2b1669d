//! Names: files that hold the id of the manifest they stand for.

use std::fs;
use std::time::SystemTime;

use super::Store;
use super::error::StoreError;
use super::layout::{Layout, read_table, remove, sync_folder};
use crate::image::name::ImageName;
use crate::key::ManifestId;

/// The content of a name's file.
pub(super) fn encode(id: &ManifestId) -> String {
    format!("{id}\n")
}

impl Store {
    /// The manifest that `name` stands for.
    ///
    /// # Errors
    /// [`StoreError::UnknownImage`] if there is none; [`StoreError::Damaged`] if its file is not an
    /// id.
    pub fn resolve(&self, name: &ImageName) -> Result<ManifestId, StoreError> {
        let path = self.layout.name(name);
        let bytes = read_table(&path)?.ok_or_else(|| StoreError::UnknownImage(name.clone()))?;
        std::str::from_utf8(&bytes)
            .ok()
            .and_then(|text| text.strip_suffix('\n'))
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| StoreError::damaged(&path, 0, "does not hold the id of a manifest"))
    }

    /// The names of all images, sorted.
    ///
    /// # Errors
    /// If the folder cannot be listed, or has a file that is no name.
    pub fn names(&self) -> Result<Vec<ImageName>, StoreError> {
        let folder = self.layout.names();
        let mut names = Vec::new();
        for file in Layout::file_names(&folder)? {
            let name = ImageName::from_file_name(&file)
                .map_err(|error| StoreError::damaged(&folder.join(&file), 0, error.to_string()))?;
            names.push(name);
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Removes the name of an image. What only it used is freed by [`Store::gc`].
    ///
    /// # Errors
    /// [`StoreError::UnknownImage`] if there is none of that name.
    pub fn remove(&self, name: &ImageName) -> Result<(), StoreError> {
        let _lock = self.layout.lock_shared(self.patience)?;
        if !remove(&self.layout.name(name))? {
            return Err(StoreError::UnknownImage(name.clone()));
        }
        sync_folder(&self.layout.names())
    }

    /// When `name` was last pushed.
    pub(super) fn pushed(&self, name: &ImageName) -> Result<SystemTime, StoreError> {
        let path = self.layout.name(name);
        fs::metadata(&path).and_then(|m| m.modified()).map_err(StoreError::io("read", &path))
    }
}
