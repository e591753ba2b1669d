//! The encoding of a manifest, the same for equal manifests, so that its hash is the image's id.
//!
//! | bytes | content (integers are little-endian) |
//! |---|---|
//! | 8 | magic `vmmimage` |
//! | 4 | version: 2 if the image has a disk, else 1, which programs without disks read |
//! | 4 | length of the header, H |
//! | 4 | number of chunks, N |
//! | H | header: the manifest but for its chunks, as JSON |
//! | 40 N | for each chunk its key (32 bytes; all 0 for a zero chunk) and its checksum (8 bytes) |

use super::check::check;
use super::{ChunkEntry, MAX_IMAGE_BYTES, MIN_CHUNK_SIZE, Manifest, ManifestError};
use crate::key::{ChunkKey, ManifestId};

const MAGIC: [u8; 8] = *b"vmmimage";
const VERSION: u32 = 1;
/// That of images with a disk: a program that knows none must not boot them without it.
const DISK_VERSION: u32 = 2;
const PREFIX_BYTES: usize = 20;
const ENTRY_BYTES: usize = 40;
/// The longest header, in bytes.
pub const MAX_HEADER_BYTES: u32 = 1 << 20;

impl Manifest {
    /// Encodes the manifest.
    ///
    /// # Errors
    /// If it breaks a rule that [`Self::decode`] would refuse it for.
    pub fn encode(&self) -> Result<Vec<u8>, ManifestError> {
        check(self)?;
        let header =
            serde_json::to_vec(self).map_err(|error| ManifestError::Header(error.to_string()))?;
        let header_length = u32::try_from(header.len())
            .ok()
            .filter(|length| *length <= MAX_HEADER_BYTES)
            .ok_or(ManifestError::HeaderLength(to_u64(header.len())))?;
        let count = u32::try_from(self.chunks.len()).map_err(|_| ManifestError::ChunkCount {
            segments: u64::from(u32::MAX),
            table: to_u64(self.chunks.len()),
        })?;
        let mut bytes =
            Vec::with_capacity(PREFIX_BYTES + header.len() + self.chunks.len() * ENTRY_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.version().to_le_bytes());
        bytes.extend_from_slice(&header_length.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&header);
        for chunk in &self.chunks {
            bytes.extend_from_slice(&chunk.key.0);
            bytes.extend_from_slice(&chunk.checksum.to_le_bytes());
        }
        Ok(bytes)
    }

    /// Decodes a manifest from bytes that need not be trusted.
    ///
    /// # Errors
    /// If they are not exactly one manifest that keeps every rule.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let too_short = |expected: usize| ManifestError::Length {
            expected: to_u64(expected),
            found: to_u64(bytes.len()),
        };
        let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(too_short(PREFIX_BYTES))?;
        if *magic != MAGIC {
            return Err(ManifestError::Magic(*magic));
        }
        let (version, rest) = rest.split_first_chunk().ok_or(too_short(PREFIX_BYTES))?;
        let version = u32::from_le_bytes(*version);
        if ![VERSION, DISK_VERSION].contains(&version) {
            return Err(ManifestError::Version(version));
        }
        let (header_length, rest) = rest.split_first_chunk().ok_or(too_short(PREFIX_BYTES))?;
        let header_length = u32::from_le_bytes(*header_length);
        if header_length > MAX_HEADER_BYTES {
            return Err(ManifestError::HeaderLength(u64::from(header_length)));
        }
        let (count, rest) = rest.split_first_chunk().ok_or(too_short(PREFIX_BYTES))?;
        let body =
            u64::from(header_length) + u64::from(u32::from_le_bytes(*count)) * to_u64(ENTRY_BYTES);
        if body != to_u64(rest.len()) {
            return Err(ManifestError::Length {
                expected: body + to_u64(PREFIX_BYTES),
                found: to_u64(bytes.len()),
            });
        }
        let (header, table) = usize::try_from(header_length)
            .ok()
            .and_then(|length| rest.split_at_checked(length))
            .ok_or(too_short(PREFIX_BYTES))?;
        let mut manifest: Self = serde_json::from_slice(header)
            .map_err(|error| ManifestError::Header(error.to_string()))?;
        manifest.chunks = table.as_chunks::<ENTRY_BYTES>().0.iter().map(decode_entry).collect();
        check(&manifest)?;
        if version != manifest.version() {
            return Err(ManifestError::DiskVersion { version });
        }
        Ok(manifest)
    }

    /// The version of its encoding.
    fn version(&self) -> u32 {
        if self.disk().is_some() { DISK_VERSION } else { VERSION }
    }

    /// How many bytes the encoding has that begins with `prefix`, which need not be trusted.
    ///
    /// # Errors
    /// If nothing that begins so can be a manifest.
    pub fn encoded_length(prefix: &[u8]) -> Result<u64, ManifestError> {
        let found = to_u64(prefix.len());
        let expected = to_u64(PREFIX_BYTES);
        let (prefix, _) = prefix
            .split_first_chunk::<PREFIX_BYTES>()
            .ok_or(ManifestError::Length { expected, found })?;
        let (magic, numbers) = prefix.split_first_chunk::<8>().unwrap_or((&MAGIC, &[]));
        if *magic != MAGIC {
            return Err(ManifestError::Magic(*magic));
        }
        let [version, header, count] = [0, 1, 2]
            .map(|place| numbers.as_chunks().0.get(place).copied().map_or(0, u32::from_le_bytes));
        if ![VERSION, DISK_VERSION].contains(&version) {
            return Err(ManifestError::Version(version));
        }
        if header > MAX_HEADER_BYTES {
            return Err(ManifestError::HeaderLength(u64::from(header)));
        }
        if u64::from(count) > MAX_IMAGE_BYTES / u64::from(MIN_CHUNK_SIZE) {
            return Err(ManifestError::TotalLength(u64::from(count) * u64::from(MIN_CHUNK_SIZE)));
        }
        Ok(expected + u64::from(header) + u64::from(count) * to_u64(ENTRY_BYTES))
    }

    /// Decodes the manifest whose id is `id`.
    ///
    /// # Errors
    /// As [`Self::decode`], and if the bytes hash to another id.
    pub fn decode_as(id: &ManifestId, bytes: &[u8]) -> Result<Self, ManifestError> {
        let found = ManifestId::of(bytes);
        if found != *id {
            return Err(ManifestError::Hash { expected: *id, found });
        }
        Self::decode(bytes)
    }
}

fn decode_entry(entry: &[u8; ENTRY_BYTES]) -> ChunkEntry {
    let mut key = [0; 32];
    let mut checksum = [0; 8];
    let (key_bytes, checksum_bytes) = entry.split_at(key.len());
    key.copy_from_slice(key_bytes);
    checksum.copy_from_slice(checksum_bytes);
    let key = ChunkKey(key);
    ChunkEntry { key, checksum: u64::from_le_bytes(checksum), zero: key == ChunkEntry::ZERO.key }
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
