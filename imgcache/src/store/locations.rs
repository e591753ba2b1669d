//! Where the chunks of a manifest are in this store, so that a boot needs no global index.
//!
//! Framed; integers are little-endian: manifest id (32), number of packs P (4), number of chunks N
//! (4), P pack ids (16 each), and for each chunk of the manifest's table its pack as a position
//! among those P (4; `ffff_ffff` for a zero chunk, which is nowhere) and its offset there (8).

use std::collections::HashMap;
use std::path::Path;

use super::error::StoreError;
use super::index::PackedChunk;
use super::layout::{Layout, read_table};
use super::pack::PackId;
use super::table::{frame, unframe};
use crate::image::manifest::{ChunkEntry, Manifest};
use crate::key::ManifestId;

const MAGIC: [u8; 8] = *b"vmmplace";
const PACK_BYTES: usize = 16;
const RECORD_BYTES: usize = 12;
const NOWHERE: u32 = u32::MAX;

/// Where one chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    /// Position in [`Locations::packs`].
    pub(super) pack: usize,
    /// Where it begins in that pack, in bytes.
    pub(super) offset: u64,
}

/// Where every chunk of one manifest is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Locations {
    /// The packs that have any of them.
    pub(super) packs: Vec<PackId>,
    /// In the order of the manifest's chunk table; `None` for zero chunks.
    pub(super) chunks: Vec<Option<Location>>,
}

/// Collects the locations of a manifest in the order of its chunks.
#[derive(Debug, Default)]
pub(super) struct Collector {
    locations: Locations,
    known: HashMap<PackId, usize>,
}

impl Collector {
    pub(super) fn push(&mut self, place: Option<(PackId, u64)>) {
        let location = place.map(|(id, offset)| {
            let packs = &mut self.locations.packs;
            let pack = *self.known.entry(id).or_insert_with(|| {
                packs.push(id);
                packs.len() - 1
            });
            Location { pack, offset }
        });
        self.locations.chunks.push(location);
    }

    pub(super) fn finish(self) -> Locations {
        self.locations
    }
}

impl Locations {
    /// The locations of `manifest`, whose id is `id`.
    pub(super) fn read(
        layout: &Layout,
        id: &ManifestId,
        manifest: &Manifest,
    ) -> Result<Self, StoreError> {
        let path = layout.locations(id);
        let bytes =
            read_table(&path)?.ok_or_else(|| StoreError::damaged(&path, 0, "is missing"))?;
        Self::decode(&bytes, id, manifest, &path)
    }

    /// The chunks of `manifest`, which these are the locations of, each with its pack.
    pub(super) fn packed(
        &self,
        manifest: &Manifest,
    ) -> impl Iterator<Item = (PackId, PackedChunk)> {
        manifest.all_chunks().zip(&self.chunks).filter_map(|(chunk, location)| {
            let Location { pack, offset } = (*location)?;
            let ChunkEntry { key, checksum, .. } = chunk.entry;
            let packed = PackedChunk { key, checksum, offset, length: chunk.length };
            Some((*self.packs.get(pack)?, packed))
        })
    }

    fn decode(
        bytes: &[u8],
        id: &ManifestId,
        manifest: &Manifest,
        path: &Path,
    ) -> Result<Self, StoreError> {
        let mut fields = unframe(MAGIC, bytes, path, 0)?;
        if fields.array()? != id.0 {
            return Err(fields.broken("belongs to another manifest"));
        }
        let pack_count = fields.u32()?;
        let chunk_count = fields.u32()?;
        if usize::try_from(chunk_count) != Ok(manifest.chunks.len()) {
            let chunks = manifest.chunks.len();
            return Err(fields.broken(&format!("is for {chunk_count} chunks, not {chunks}")));
        }
        let packs: Vec<PackId> =
            fields.records::<PACK_BYTES>(pack_count)?.iter().map(|id| PackId(*id)).collect();
        let mut chunks = Vec::with_capacity(manifest.chunks.len());
        for (record, entry) in
            fields.records::<RECORD_BYTES>(chunk_count)?.iter().zip(&manifest.chunks)
        {
            let location = decode_record(record);
            let sound = match location {
                None => entry.zero,
                Some(Location { pack, offset }) => {
                    let end = offset.checked_add(u64::from(manifest.chunk_size));
                    !entry.zero && pack < packs.len() && end.is_some()
                }
            };
            if !sound {
                return Err(fields.broken(&format!("chunk {} is nowhere", chunks.len())));
            }
            chunks.push(location);
        }
        fields.end()?;
        Ok(Self { packs, chunks })
    }

    /// The content of the file that says so for manifest `id`.
    pub(super) fn encode(&self, id: &ManifestId) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(
            40 + self.packs.len() * PACK_BYTES + self.chunks.len() * RECORD_BYTES,
        );
        bytes.extend_from_slice(&id.0);
        bytes.extend_from_slice(&count(self.packs.len()).to_le_bytes());
        bytes.extend_from_slice(&count(self.chunks.len()).to_le_bytes());
        for pack in &self.packs {
            bytes.extend_from_slice(&pack.0);
        }
        for location in &self.chunks {
            let (pack, offset) = location.map_or((NOWHERE, 0), |l| (count(l.pack), l.offset));
            bytes.extend_from_slice(&pack.to_le_bytes());
            bytes.extend_from_slice(&offset.to_le_bytes());
        }
        frame(MAGIC, &bytes)
    }
}

/// A manifest that was encoded has less than 2^32 chunks.
fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(NOWHERE)
}

fn decode_record(record: &[u8; RECORD_BYTES]) -> Option<Location> {
    let (pack, offset) = record.split_first_chunk::<4>()?;
    let offset = u64::from_le_bytes(*offset.first_chunk()?);
    let pack = u32::from_le_bytes(*pack);
    if pack == NOWHERE {
        return None;
    }
    Some(Location { pack: usize::try_from(pack).ok()?, offset })
}
