//! Garbage collection: what no name leads to is given back.
//!
//! It runs alone on the store. Open images do not hold the store's lock, but a shared one on each
//! of their packs: a pack in use is left as it is, unless all of it goes, for its content then
//! lives until its last user closes it.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use serde::Serialize;

use super::Store;
use super::error::StoreError;
use super::index::{Index, PackedChunk};
use super::layout::{Layout, remove, sync_folder};
use super::locations::Locations;
use super::pack::{PackId, Seal};
use crate::image::name::ImageName;
use crate::key::ManifestId;

/// What is given back is in units of this, in bytes.
const PAGE: u64 = 4 << 10;
/// The unit of `st_blocks`, in bytes.
const BLOCK: u64 = 512;

/// What a garbage collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Manifests without a name that were removed.
    pub manifests_removed: usize,
    /// Packs without a chunk in use that were removed.
    pub packs_removed: usize,
    /// Packs from which unused chunks were cut out.
    pub packs_trimmed: usize,
    /// Packs with unused chunks that could not be cut out, since an open image uses others.
    pub packs_busy: Vec<PathBuf>,
    /// Leftovers of interrupted work that were removed.
    pub leftovers_removed: usize,
    /// Bytes given back to the file system.
    pub bytes_freed: u64,
}

/// The chunks of a pack that are in use, by offset.
type Live = BTreeMap<u64, PackedChunk>;

impl Store {
    /// Removes what no image needs.
    ///
    /// # Errors
    /// If the store is in use for longer than it was waited, if the manifest or the locations of a
    /// named image cannot be read (so that it is not known what that image needs; it is named, and
    /// nothing is removed then), or if something cannot be removed.
    pub fn gc(&self) -> Result<GcReport, StoreError> {
        let _lock = self.layout.lock_exclusive(self.patience)?;
        let mut report = GcReport::default();
        let manifests = self.named_manifests()?;
        let live = self.live_chunks(&manifests)?;
        self.remove_leftovers(&mut report)?;
        self.remove_manifests(&manifests, &mut report)?;
        self.clean_packs(&live, &mut report)?;
        Ok(report)
    }

    /// Every manifest that has a name, with one of its names.
    fn named_manifests(&self) -> Result<HashMap<ManifestId, ImageName>, StoreError> {
        let named = |name: ImageName| {
            let id = self.resolve(&name).map_err(StoreError::in_image(&name))?;
            Ok((id, name))
        };
        self.names()?.into_iter().map(named).collect()
    }

    fn live_chunks(
        &self,
        manifests: &HashMap<ManifestId, ImageName>,
    ) -> Result<HashMap<PackId, Live>, StoreError> {
        let mut live: HashMap<PackId, Live> = HashMap::new();
        for (id, name) in manifests {
            let manifest = self.manifest(id).map_err(StoreError::in_image(name))?;
            let locations =
                Locations::read(&self.layout, id, &manifest).map_err(StoreError::in_image(name))?;
            for (pack, chunk) in locations.packed(&manifest) {
                live.entry(pack).or_default().insert(chunk.offset, chunk);
            }
        }
        Ok(live)
    }

    fn remove_leftovers(&self, report: &mut GcReport) -> Result<(), StoreError> {
        let folder = self.layout.tmp();
        for name in Layout::file_names(&folder)? {
            let path = folder.join(name);
            report.bytes_freed += allocated(&path);
            report.leftovers_removed += usize::from(remove(&path)?);
        }
        Ok(())
    }

    fn remove_manifests(
        &self,
        live: &HashMap<ManifestId, ImageName>,
        report: &mut GcReport,
    ) -> Result<(), StoreError> {
        let folder = self.layout.manifests();
        for name in Layout::file_names(&folder)? {
            let (id, is_manifest) = match name.strip_suffix(".at") {
                Some(id) => (id, false),
                None => (name.as_str(), true),
            };
            if id.parse().is_ok_and(|id| !live.contains_key(&id)) {
                let path = folder.join(&name);
                report.bytes_freed += allocated(&path);
                remove(&path)?;
                report.manifests_removed += usize::from(is_manifest);
            }
        }
        sync_folder(&folder)
    }

    fn clean_packs(
        &self,
        live: &HashMap<PackId, Live>,
        report: &mut GcReport,
    ) -> Result<(), StoreError> {
        let folder = self.layout.packs();
        for name in Layout::file_names(&folder)? {
            if let Some(id) = name.strip_suffix(".idx") {
                let Ok(id) = id.parse() else { continue };
                if !live.contains_key(&id) || !self.layout.pack(id).exists() {
                    report.bytes_freed += allocated(&folder.join(&name));
                    remove(&folder.join(&name))?;
                }
                continue;
            }
            let Ok(id) = name.parse() else { continue };
            if let Some(chunks) = live.get(&id) {
                self.trim(id, chunks, report)?;
            } else {
                report.bytes_freed += allocated(&folder.join(&name));
                remove(&folder.join(&name))?;
                report.packs_removed += 1;
            }
        }
        sync_folder(&folder)
    }

    /// Cuts what is not in `live` out of a pack.
    fn trim(&self, id: PackId, live: &Live, report: &mut GcReport) -> Result<(), StoreError> {
        let path = self.layout.pack(id);
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(StoreError::io("open", &path))?;
        let status = file.metadata().map_err(StoreError::io("inspect", &path))?;
        // An index that cannot be read is replaced by what the manifests say.
        let old = Index::read(&self.layout, id).ok().flatten();
        let chunks: Vec<PackedChunk> = live.values().copied().collect();
        let gaps = written_gaps(&file, &chunks, status.len());
        if gaps.is_empty() && old.as_ref().is_some_and(|old| old.chunks == chunks) {
            return Ok(());
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                report.packs_busy.push(path);
                return Ok(());
            }
            Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", &path)(error)),
        }
        let seal = old.and_then(|old| old.seal);
        let sealed = seal.is_some() && seal == Seal::of(&file).ok();
        // First the index, so that no push comes to share a chunk that is about to go.
        let mut index = Index { seal: None, chunks };
        index.write(&self.layout, id)?;
        sync_folder(&self.layout.packs())?;
        for (offset, length) in gaps {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(&file, flags, offset, length) {
                Ok(()) => {}
                // Such a file system keeps the bytes until all of the pack goes.
                Err(Errno::OPNOTSUPP) => break,
                Err(error) => return Err(StoreError::io("free part of", &path)(error.into())),
            }
        }
        file.sync_all().map_err(StoreError::io("sync", &path))?;
        if sealed {
            index.seal = Some(Seal::of(&file).map_err(StoreError::io("inspect", &path))?);
            index.write(&self.layout, id)?;
        }
        let after = file.metadata().map_err(StoreError::io("inspect", &path))?;
        report.bytes_freed += status.blocks().saturating_sub(after.blocks()) * BLOCK;
        report.packs_trimmed += 1;
        Ok(())
    }
}

/// The page-aligned parts (offset, length) of a file of `size` bytes that are outside `chunks`, in
/// ascending order of offset, and hold anything.
fn written_gaps(file: &File, chunks: &[PackedChunk], size: u64) -> Vec<(u64, u64)> {
    let mut gaps = Vec::new();
    let mut start = 0u64;
    let ends = chunks
        .iter()
        .map(|chunk| (chunk.offset, chunk.offset.saturating_add(u64::from(chunk.length))));
    for (stop, next) in ends.chain([(size, size)]) {
        let from = start.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
        let to = stop - stop % PAGE;
        if from < to {
            let written = match seek(file, SeekFrom::Data(from)) {
                Ok(next_data) => next_data < to,
                Err(error) => error != Errno::NXIO,
            };
            if written {
                gaps.push((from, to - from));
            }
        }
        start = start.max(next);
    }
    gaps
}

/// Bytes that a file takes on disk; 0 if it is not there.
fn allocated(path: &std::path::Path) -> u64 {
    path.metadata().map_or(0, |status| status.blocks() * BLOCK)
}
