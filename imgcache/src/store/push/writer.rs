//! Writes the chunks of a push that the store does not have, and says where each chunk is.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{Observer, PushReport, Step};
use crate::image::manifest::ChunkEntry;
use crate::key::{ChunkKey, ManifestId};
use crate::store::error::StoreError;
use crate::store::index::{Index, PackedChunk};
use crate::store::layout::{Layout, TempFile, remove, sync_folder};
use crate::store::locations::{Collector, Locations};
use crate::store::pack::{Allocator, PackId, Seal};

/// Cuts a push into what is new and what is not.
#[derive(Debug)]
pub(super) struct Writer<'s> {
    layout: &'s Layout,
    known: HashMap<ChunkKey, Known>,
    doubtful: HashMap<PackId, Option<File>>,
    id: PackId,
    pack: Option<TempFile>,
    allocator: Allocator,
    segment_start: u64,
    new: Vec<PackedChunk>,
    collector: Collector,
    counts: Counts,
}

/// Where the store has a chunk.
#[derive(Debug, Clone, Copy)]
struct Known {
    pack: PackId,
    offset: u64,
    length: u32,
    /// Whether its pack is as it was sealed; if not, the chunk may be damaged.
    sealed: bool,
}

/// Bytes and chunks of each sort.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    bytes_new: u64,
    bytes_shared: u64,
    bytes_zero: u64,
    chunks_new: u64,
    chunks_shared: u64,
    chunks_zero: u64,
}

/// Chunks that are all on disk, those that are new still under `tmp/`.
#[derive(Debug)]
pub(super) struct Committed<'s> {
    layout: &'s Layout,
    pack: Option<(PackId, TempFile, Vec<PackedChunk>)>,
    locations: Locations,
    counts: Counts,
}

impl<'s> Writer<'s> {
    pub(super) fn new(layout: &'s Layout) -> Result<Self, StoreError> {
        let id = PackId::random().map_err(StoreError::io("name a pack in", &layout.packs()))?;
        Ok(Self {
            layout,
            known: known_chunks(layout)?,
            doubtful: HashMap::new(),
            id,
            pack: None,
            allocator: Allocator::default(),
            segment_start: 0,
            new: Vec::new(),
            collector: Collector::default(),
            counts: Counts::default(),
        })
    }

    pub(super) fn begin_segment(&mut self, length: Option<u64>) -> Result<(), StoreError> {
        self.segment_start = self.allocator.begin(length).ok_or_else(|| self.too_large())?;
        Ok(())
    }

    pub(super) fn end_segment(&mut self, length: u64) -> Result<(), StoreError> {
        self.allocator.finish(self.segment_start, length).ok_or_else(|| self.too_large())
    }

    /// Takes in the chunk at `offset` of the segment, at most 1 MiB.
    pub(super) fn add(&mut self, offset: u64, content: &[u8]) -> Result<ChunkEntry, StoreError> {
        let entry = ChunkEntry::of(content);
        let bytes = to_u64(content.len());
        if entry.zero {
            self.counts.bytes_zero += bytes;
            self.counts.chunks_zero += 1;
            self.collector.push(None);
            return Ok(entry);
        }
        if let Some(known) = self.known.get(&entry.key).copied()
            && (known.sealed || self.holds(&known, content))
        {
            self.counts.bytes_shared += bytes;
            self.counts.chunks_shared += 1;
            self.collector.push(Some((known.pack, known.offset)));
            return Ok(entry);
        }
        let length = u32::try_from(content.len()).map_err(|_| self.too_large())?;
        let offset = self.segment_start.checked_add(offset).ok_or_else(|| self.too_large())?;
        let pack = match &mut self.pack {
            Some(pack) => pack,
            none => none.insert(self.layout.temp_file()?),
        };
        pack.file.write_all_at(content, offset).map_err(StoreError::io("write", pack.path()))?;
        self.new.push(PackedChunk { key: entry.key, checksum: entry.checksum, offset, length });
        self.known.insert(entry.key, Known { pack: self.id, offset, length, sealed: true });
        self.counts.bytes_new += bytes;
        self.counts.chunks_new += 1;
        self.collector.push(Some((self.id, offset)));
        Ok(entry)
    }

    /// Whether a pack that is not as it was sealed still has this chunk.
    fn holds(&mut self, known: &Known, content: &[u8]) -> bool {
        let path = self.layout.pack(known.pack);
        let file = self.doubtful.entry(known.pack).or_insert_with(|| File::open(path).ok());
        let mut stored = vec![0; content.len()];
        usize::try_from(known.length) == Ok(content.len())
            && file.as_ref().is_some_and(|f| f.read_exact_at(&mut stored, known.offset).is_ok())
            && stored == content
    }

    /// Brings what was written to the disk.
    pub(super) fn finish(self, drop_cache: bool) -> Result<Committed<'s>, StoreError> {
        let too_large = self.too_large();
        let Self { layout, id, pack, allocator, new, collector, counts, .. } = self;
        let pack = match pack {
            None => None,
            Some(pack) => {
                let length = allocator.file_length().ok_or(too_large)?;
                pack.file.set_len(length).map_err(StoreError::io("extend", pack.path()))?;
                pack.sync()?;
                if drop_cache {
                    let advice = rustix::fs::Advice::DontNeed;
                    if let Err(error) = rustix::fs::fadvise(&pack.file, 0, None, advice) {
                        log::warn!("'{}' stays in small pages: {error}", pack.path().display());
                    }
                }
                Some((id, pack, new))
            }
        };
        Ok(Committed { layout, pack, locations: collector.finish(), counts })
    }

    fn too_large(&self) -> StoreError {
        let error = std::io::ErrorKind::FileTooLarge.into();
        StoreError::io("write", &self.layout.pack(self.id))(error)
    }
}

impl Committed<'_> {
    pub(super) fn locations(&self) -> &Locations {
        &self.locations
    }

    pub(super) fn report(&self, id: ManifestId, notes: Vec<String>) -> PushReport {
        let Counts { bytes_new, bytes_shared, bytes_zero, chunks_new, chunks_shared, chunks_zero } =
            self.counts;
        PushReport {
            id,
            bytes_total: bytes_new + bytes_shared + bytes_zero,
            bytes_new,
            bytes_shared,
            bytes_zero,
            chunks_total: chunks_new + chunks_shared + chunks_zero,
            chunks_new,
            chunks_shared,
            chunks_zero,
            notes,
        }
    }

    /// Gives the new pack its place, then its index, by which other pushes find it.
    pub(super) fn place(self, observer: Observer<'_>) -> Result<(), StoreError> {
        let Some((id, temp, chunks)) = self.pack else { return Ok(()) };
        let path = self.layout.pack(id);
        let file = temp.file.try_clone().map_err(StoreError::io("open", &path))?;
        temp.rename(&path)?;
        let placed = observer(Step::PackPlaced).and_then(|()| {
            // Renaming changes the ctime, so the pack is sealed in its place.
            let seal = Some(Seal::of(&file).map_err(StoreError::io("inspect", &path))?);
            Index { seal, chunks }.write(self.layout, id)
        });
        if placed.is_err() {
            // Without an index nobody else can have come to need it.
            remove(&path)?;
        }
        placed?;
        sync_folder(&self.layout.packs())?;
        observer(Step::IndexPlaced)
    }
}

/// Every chunk of the store, at its best place.
fn known_chunks(layout: &Layout) -> Result<HashMap<ChunkKey, Known>, StoreError> {
    let mut known = HashMap::new();
    for name in Layout::file_names(&layout.packs())? {
        let Some(id) = name.strip_suffix(".idx").and_then(|id| id.parse().ok()) else { continue };
        let index = match Index::read(layout, id) {
            Ok(Some(index)) => index,
            Ok(None) => continue,
            Err(error) => {
                log::warn!("not shared with this push: {error}");
                continue;
            }
        };
        let Ok(file) = File::open(layout.pack(id)) else { continue };
        let sealed = index.seal.is_some() && index.seal == Seal::of(&file).ok();
        known.reserve(index.chunks.len());
        for chunk in index.chunks {
            let PackedChunk { key, offset, length, .. } = chunk;
            let here = Known { pack: id, offset, length, sealed };
            let best = known.entry(key).or_insert(here);
            if sealed && !best.sealed {
                *best = here;
            }
        }
    }
    Ok(known)
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
