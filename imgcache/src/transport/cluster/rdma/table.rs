//! The whole index of a node, read at once, as Kehne's thesis does (4.4).
//!
//! Worth it when a load looks up so much that its buckets, one by one, would be more bytes than the table:
//! images in small chunks, or small nodes. What the copy does not tell is looked for in the table itself.

use std::time::{Duration, Instant};

use super::rights::Rights;
use crate::index::IndexKey;
use crate::index::entry::Entry;
use crate::index::reader::{EMPTY_BUCKET, Look, bucket_of};
use crate::index::table::BUCKET_BYTES;
use crate::transport::cluster::error::NodeError;
use crate::transport::verbs::{Buffer, DEPTH, Lent, LoadQueue, Scope, Status, Transfer};

/// The largest table that is read whole, in bytes.
const MAX_BYTES: usize = 64 << 20;
/// Bytes of one READ.
const PART_BYTES: usize = 256 << 10;
const _: () = assert!(PART_BYTES.is_multiple_of(BUCKET_BYTES), "no bucket is in two parts");

/// Bytes that bucket READs for `lookups` chunks would take: a table that is no larger is read whole.
pub(in crate::transport::cluster) fn worth(lookups: usize) -> usize {
    lookups.saturating_mul(2 * BUCKET_BYTES).min(MAX_BYTES)
}

/// A copy of a node's table, of several moments.
pub(super) struct TableCopy<'s, 'm> {
    parts: Vec<Option<Buffer<'s, 'm>>>,
}

impl<'s, 'm> TableCopy<'s, 'm> {
    /// Reads the table through `queue`, on which nothing else is under way, into `memory` if it fits.
    /// None if it does not.
    ///
    /// # Errors
    /// A READ failed, or nothing came for `patience`.
    pub(super) fn read(
        scope: &'s Scope<'s, 'm>,
        queue: &mut LoadQueue<'s, 'm>,
        rights: &Rights,
        memory: &'m mut [u8],
        patience: Duration,
    ) -> Result<Option<Self>, NodeError> {
        let bytes = usize::try_from(rights.announcement.exported.table.bytes());
        let Some(bytes) = bytes.ok().filter(|bytes| *bytes <= memory.len()) else {
            return Ok(None);
        };
        let (memory, _) = memory.split_at_mut(bytes);
        let parts = memory.chunks_mut(PART_BYTES).collect();
        let waiting = scope.register(parts).map_err(|refused| refused.error)?;
        let mut parts: Vec<Option<Buffer<'s, 'm>>> = waiting.into_iter().map(Some).collect();
        let (mut next, mut missing) = (0, parts.len());
        let mut completions = Vec::new();
        let mut progress = Instant::now();
        while missing > 0 {
            let room = queue.room().min(parts.len() - next);
            let last = next + room.min(usize::try_from(DEPTH).unwrap_or(1));
            let transfers: Vec<_> = (next..last)
                .filter_map(|part| {
                    let local = Lent::Buffer(parts[part].take()?);
                    let number = u64::try_from(part * (PART_BYTES / BUCKET_BYTES)).ok()?;
                    Some(Transfer { id: part as u64, local, remote: rights.bucket(number) })
                })
                .collect();
            next = last;
            if !transfers.is_empty() {
                queue.post(transfers).map_err(|refused| refused.error)?;
            }
            queue.wait(&mut completions, patience)?;
            for completion in completions.drain(..) {
                if completion.status != Status::Success {
                    return Err(NodeError::Rdma(completion.status));
                }
                let part = usize::try_from(completion.id).ok().and_then(|id| parts.get_mut(id));
                if let Some(part) = part {
                    *part = completion.item.into_buffer();
                    missing -= 1;
                    progress = Instant::now();
                }
            }
            if progress.elapsed() > patience {
                return Err(NodeError::Stalled(patience));
            }
        }
        Ok(Some(Self { parts }))
    }

    /// The entry of `key`, if the copy has it whole.
    pub(super) fn look(&self, rights: &Rights, key: IndexKey) -> Option<Entry> {
        let exported = &rights.announcement.exported;
        let mut buckets = [EMPTY_BUCKET; 2];
        for (number, bucket) in exported.table.candidates(key).into_iter().zip(&mut buckets) {
            let offset = usize::try_from(number).ok()?.checked_mul(BUCKET_BYTES)?;
            let part = self.parts.get(offset / PART_BYTES)?.as_deref()?;
            *bucket = bucket_of(part.get(offset % PART_BYTES..)?.first_chunk()?);
        }
        match exported.look(&buckets, key) {
            Look::Found(entry) => Some(entry),
            Look::Clean | Look::Disturbed => None,
        }
    }
}
