//! Verification: every chunk is hashed in full and every table checked against the others.
//!
//! A pack that passes is sealed as it is, so that loads may check by checksum again; one that does
//! not loses its seal, so that loads hash in full and the next push of the same content stores it
//! anew. Nothing else is changed, and on a read-only file system not even that.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Mutex;

use serde::Serialize;

use super::Store;
use super::error::StoreError;
use super::index::{Index, PackedChunk};
use super::layout::{Layout, sync_folder};
use super::locations::Locations;
use super::pack::{PackId, Seal};
use crate::image::name::ImageName;
use crate::key::{ChunkKey, ManifestId};
use crate::parallel;

/// Chunks that a thread takes at once.
const BATCH: usize = 16;

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Names that were followed.
    pub images: usize,
    /// Chunks that were hashed.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packs that were sealed anew.
    pub packs_sealed: usize,
    /// Everything that is not as it should be.
    pub damage: Vec<Damage>,
}

/// Something in a store that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Damage {
    /// A chunk that does not hash to its key.
    Chunk {
        /// Its key.
        key: ChunkKey,
        /// The pack it should be in.
        pack: PathBuf,
        /// Where it begins in the pack, in bytes.
        offset: u64,
        /// Its length in bytes.
        length: u32,
        /// The images that need it.
        images: Vec<ImageName>,
    },
    /// A file that is missing or not what it should be.
    File {
        /// What is wrong, with the path.
        reason: String,
        /// The images that need it.
        images: Vec<ImageName>,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let images = match self {
            Self::Chunk { key, pack, offset, length, images } => {
                write!(f, "chunk {key} ({length} bytes) in '{}' at {offset}", pack.display())?;
                images
            }
            Self::File { reason, images } => {
                f.write_str(reason)?;
                images
            }
        };
        for (number, image) in images.iter().enumerate() {
            write!(f, "{}'{image}'", if number == 0 { "; needed by " } else { ", " })?;
        }
        Ok(())
    }
}

/// What a chunk in a pack is said to be, by whom, and who needs it.
type Claims = BTreeMap<(u64, u32, ChunkKey, u64), BTreeSet<ImageName>>;

/// What there is to check, and what was found.
#[derive(Default)]
struct Work {
    packs: BTreeMap<PackId, Claims>,
    report: VerifyReport,
}

impl Work {
    fn damaged(&mut self, error: &StoreError, images: &[ImageName]) {
        let damage = Damage::File { reason: error.to_string(), images: images.to_vec() };
        self.report.damage.push(damage);
    }

    fn claim(&mut self, pack: PackId, chunk: &PackedChunk, images: &[ImageName]) {
        let PackedChunk { key, checksum, offset, length } = *chunk;
        let claims = self.packs.entry(pack).or_default();
        claims.entry((offset, length, key, checksum)).or_default().extend(images.iter().cloned());
    }
}

impl Store {
    /// Checks everything in the store.
    ///
    /// # Errors
    /// If the store cannot be locked or listed. Damage is no error but in the report.
    pub fn verify(&self) -> Result<VerifyReport, StoreError> {
        let _lock = self.layout.lock_shared(self.patience)?;
        let mut work = Work::default();
        let indexes = self.read_indexes(&mut work)?;
        for (id, images) in self.check_names(&mut work)? {
            if let Err(error) = self.check_manifest(&id, &images, &mut work) {
                work.damaged(&error, &images);
            }
        }
        let mut report = work.report;
        for (id, claims) in &work.packs {
            self.check_pack(*id, claims, indexes.get(id), &mut report);
        }
        if report.packs_sealed > 0 {
            sync_folder(&self.layout.packs())?;
        }
        Ok(report)
    }

    fn read_indexes(&self, work: &mut Work) -> Result<HashMap<PackId, Index>, StoreError> {
        let mut indexes = HashMap::new();
        for name in Layout::file_names(&self.layout.packs())? {
            let Some(id) = name.strip_suffix(".idx").and_then(|id| id.parse().ok()) else {
                continue;
            };
            match Index::read(&self.layout, id) {
                Ok(None) => {}
                Ok(Some(index)) => {
                    work.packs.entry(id).or_default();
                    index.chunks.iter().for_each(|chunk| work.claim(id, chunk, &[]));
                    indexes.insert(id, index);
                }
                Err(error) => work.damaged(&error, &[]),
            }
        }
        Ok(indexes)
    }

    /// Follows every name; returns the manifests and who needs them.
    fn check_names(
        &self,
        work: &mut Work,
    ) -> Result<BTreeMap<ManifestId, Vec<ImageName>>, StoreError> {
        let mut manifests: BTreeMap<ManifestId, Vec<ImageName>> = BTreeMap::new();
        for file in Layout::file_names(&self.layout.names())? {
            let path = self.layout.names().join(&file);
            let Ok(name) = ImageName::from_file_name(&file) else {
                work.damaged(&StoreError::damaged(&path, 0, "is no name of an image"), &[]);
                continue;
            };
            match self.resolve(&name) {
                Ok(id) => {
                    work.report.images += 1;
                    manifests.entry(id).or_default().push(name);
                }
                // Removed since it was listed.
                Err(StoreError::UnknownImage(_)) => {}
                Err(error) => work.damaged(&error, &[name]),
            }
        }
        Ok(manifests)
    }

    fn check_manifest(
        &self,
        id: &ManifestId,
        images: &[ImageName],
        work: &mut Work,
    ) -> Result<(), StoreError> {
        let manifest = self.manifest(id)?;
        let locations = Locations::read(&self.layout, id, &manifest)?;
        for (pack, chunk) in locations.packed(&manifest) {
            work.claim(pack, &chunk, images);
        }
        Ok(())
    }

    fn check_pack(
        &self,
        id: PackId,
        claims: &Claims,
        index: Option<&Index>,
        report: &mut VerifyReport,
    ) {
        let path = self.layout.pack(id);
        let opened = File::open(&path).and_then(|file| Ok((Seal::of(&file)?, file)));
        let (before, file) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let images: BTreeSet<ImageName> = claims.values().flatten().cloned().collect();
                let reason = StoreError::io("read", &path)(error).to_string();
                report.damage.push(Damage::File { reason, images: images.into_iter().collect() });
                return;
            }
        };
        let mut damage = damaged_chunks(&file, claims, &path);
        report.chunks += u64::try_from(claims.len()).unwrap_or(0);
        report.bytes += claims.keys().map(|(_, length, ..)| u64::from(*length)).sum::<u64>();
        let good = damage.is_empty() && Seal::of(&file).is_ok_and(|after| after == before);
        report.damage.append(&mut damage);
        let seal = good.then_some(before);
        let Some(index) = index.filter(|index| index.seal != seal) else { return };
        let index = Index { seal, chunks: index.chunks.clone() };
        match index.write(&self.layout, id) {
            Ok(()) => report.packs_sealed += usize::from(good),
            // A read-only store stays as it is.
            Err(error) => log::info!("'{}' is not sealed: {error}", path.display()),
        }
    }
}

fn damaged_chunks(file: &File, claims: &Claims, path: &std::path::Path) -> Vec<Damage> {
    let damage = Mutex::new(Vec::new());
    let all: Vec<_> = claims.iter().collect();
    let batches = all.chunks(BATCH).collect();
    let Ok(()) = parallel::each(batches, |batch| {
        let mut content = Vec::new();
        for ((offset, length, key, checksum), images) in batch {
            let chunk =
                PackedChunk { key: *key, checksum: *checksum, offset: *offset, length: *length };
            if !is_right(file, &chunk, &mut content) {
                let found = Damage::Chunk {
                    key: *key,
                    pack: path.to_owned(),
                    offset: *offset,
                    length: *length,
                    images: images.iter().cloned().collect(),
                };
                parallel::lock(&damage).push(found);
            }
        }
        Ok::<(), std::convert::Infallible>(())
    });
    let mut damage = damage.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    damage.sort_by_key(|found| match found {
        Damage::Chunk { offset, .. } => *offset,
        Damage::File { .. } => 0,
    });
    damage
}

/// Whether the file has this chunk; read errors are damage too.
fn is_right(file: &File, chunk: &PackedChunk, content: &mut Vec<u8>) -> bool {
    // An index, read from anywhere, may claim up to 4 GiB.
    if chunk.length > crate::image::manifest::MAX_CHUNK_SIZE {
        return false;
    }
    content.resize(usize::try_from(chunk.length).unwrap_or(0), 0);
    let entry = chunk.entry();
    file.read_exact_at(content, chunk.offset).is_ok()
        && entry.has_checksum(content)
        && entry.has_key(content)
}
