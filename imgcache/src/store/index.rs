//! The index of a pack: which chunks it has, and the seal under which they were last right.
//!
//! | bytes | content (integers are little-endian) |
//! |---|---|
//! | 96 | head, framed: pack id (16), number of entries (4), whether sealed (4), seal (56) |
//! | 16 + 52 N | table, framed: for each chunk key (32), offset (8), length (4), checksum (8) |
//!
//! Head and table have their own checksums, so that a boot reads the head alone.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::error::StoreError;
use super::layout::{Layout, read_table};
use super::pack::{PackId, Seal};
use super::table::{frame, unframe};
use crate::image::manifest::ChunkEntry;
use crate::key::ChunkKey;

const HEAD_MAGIC: [u8; 8] = *b"vmmpack1";
const TABLE_MAGIC: [u8; 8] = *b"vmmindex";
const HEAD_BYTES: usize = 8 + 16 + 4 + 4 + Seal::BYTES + 8;
const ENTRY_BYTES: usize = 52;

/// A chunk in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PackedChunk {
    pub(super) key: ChunkKey,
    pub(super) checksum: u64,
    /// Where it begins in the pack, in bytes.
    pub(super) offset: u64,
    pub(super) length: u32,
}

impl PackedChunk {
    /// What a manifest would say of it.
    pub(super) fn entry(&self) -> ChunkEntry {
        ChunkEntry { key: self.key, checksum: self.checksum, zero: false }
    }
}

/// The content of a pack's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) seal: Option<Seal>,
    /// In ascending order of offset.
    pub(super) chunks: Vec<PackedChunk>,
}

impl Index {
    /// The index of pack `id`; `None` if there is none.
    pub(super) fn read(layout: &Layout, id: PackId) -> Result<Option<Self>, StoreError> {
        let path = layout.index(id);
        read_table(&path)?.map(|bytes| Self::decode(&bytes, id, &path)).transpose()
    }

    fn decode(bytes: &[u8], id: PackId, path: &Path) -> Result<Self, StoreError> {
        let (head, table) = bytes
            .split_first_chunk::<HEAD_BYTES>()
            .ok_or_else(|| StoreError::damaged(path, 0, "is too short"))?;
        let (seal, count) = decode_head(head, id, path)?;
        let mut table = unframe(TABLE_MAGIC, table, path, u64::try_from(HEAD_BYTES).unwrap_or(0))?;
        let mut chunks = Vec::new();
        for record in table.records::<ENTRY_BYTES>(count)? {
            let chunk = decode_chunk(record);
            let end = chunk.offset.checked_add(u64::from(chunk.length));
            if chunk.length == 0 || end.is_none() {
                return Err(table.broken("has a chunk of no length, or beyond every file"));
            }
            chunks.push(chunk);
        }
        table.end()?;
        Ok(Self { seal, chunks })
    }

    fn encode(&self, id: PackId) -> io::Result<Vec<u8>> {
        let count = u32::try_from(self.chunks.len())
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "more than 2^32 chunks"))?;
        let mut head = Vec::with_capacity(HEAD_BYTES);
        head.extend_from_slice(&id.0);
        head.extend_from_slice(&count.to_le_bytes());
        head.extend_from_slice(&u32::from(self.seal.is_some()).to_le_bytes());
        head.extend_from_slice(&self.seal.map_or([0; Seal::BYTES], |seal| seal.encode()));
        let mut table = Vec::with_capacity(self.chunks.len() * ENTRY_BYTES);
        for chunk in &self.chunks {
            table.extend_from_slice(&chunk.key.0);
            table.extend_from_slice(&chunk.offset.to_le_bytes());
            table.extend_from_slice(&chunk.length.to_le_bytes());
            table.extend_from_slice(&chunk.checksum.to_le_bytes());
        }
        let mut bytes = frame(HEAD_MAGIC, &head);
        bytes.extend_from_slice(&frame(TABLE_MAGIC, &table));
        Ok(bytes)
    }

    /// Writes the index of pack `id` in place of the one that is there; the caller syncs the
    /// folder.
    pub(super) fn write(&self, layout: &Layout, id: PackId) -> Result<(), StoreError> {
        let path = layout.index(id);
        let bytes = self.encode(id).map_err(StoreError::io("write", &path))?;
        let mut file = layout.temp_file()?;
        file.write_all(&bytes)?;
        file.place(&path)
    }
}

/// The seal of pack `id`; `None` if it has none, or its index cannot be read.
pub(super) fn read_seal(layout: &Layout, id: PackId) -> Option<Seal> {
    let path = layout.index(id);
    let mut head = [0; HEAD_BYTES];
    File::open(&path).ok()?.read_exact(&mut head).ok()?;
    decode_head(&head, id, &path).ok()?.0
}

fn decode_head(
    head: &[u8; HEAD_BYTES],
    id: PackId,
    path: &Path,
) -> Result<(Option<Seal>, u32), StoreError> {
    let mut head = unframe(HEAD_MAGIC, head, path, 0)?;
    if head.array()? != id.0 {
        return Err(head.broken("is the index of another pack"));
    }
    let count = head.u32()?;
    let sealed = head.u32()? != 0;
    let seal = Seal::decode(&head.array()?);
    Ok((sealed.then_some(seal), count))
}

fn decode_chunk(record: &[u8; ENTRY_BYTES]) -> PackedChunk {
    fn field<const N: usize>(record: &[u8; ENTRY_BYTES], from: usize) -> [u8; N] {
        record.get(from..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }
    PackedChunk {
        key: ChunkKey(field(record, 0)),
        offset: u64::from_le_bytes(field(record, 32)),
        length: u32::from_le_bytes(field(record, 40)),
        checksum: u64::from_le_bytes(field(record, 44)),
    }
}
