//! The frame of the store's binary files: magic, content, XXH3-64 of both.
//!
//! It tells a file that was cut short or overwritten from a whole one; what the content says is
//! still checked by its reader, since a store may come from anywhere.

use std::path::Path;

use twox_hash::XxHash3_64;

use super::error::StoreError;

const CHECKSUM_BYTES: usize = 8;

/// `content`, framed as a file of the kind `magic`.
pub(super) fn frame(magic: [u8; 8], content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(magic.len() + content.len() + CHECKSUM_BYTES);
    bytes.extend_from_slice(&magic);
    bytes.extend_from_slice(content);
    bytes.extend_from_slice(&checksum(&bytes).to_le_bytes());
    bytes
}

/// The content of `bytes`, which were read from `path` at `offset`.
pub(super) fn unframe<'b>(
    magic: [u8; 8],
    bytes: &'b [u8],
    path: &'b Path,
    offset: u64,
) -> Result<Fields<'b>, StoreError> {
    let broken = |reason: &str| StoreError::damaged(path, offset, reason);
    let (framed, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(broken("is too short"))?;
    let (found, content) = framed.split_first_chunk::<8>().ok_or(broken("is too short"))?;
    if *found != magic {
        return Err(broken("does not begin as it should"));
    }
    if checksum(framed) != u64::from_le_bytes(*sum) {
        return Err(broken("its checksum does not match"));
    }
    Ok(Fields { rest: content, path, offset: offset + 8 })
}

fn checksum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// Takes fields off the front of a file's content.
#[derive(Debug)]
pub(super) struct Fields<'b> {
    rest: &'b [u8],
    path: &'b Path,
    offset: u64,
}

impl<'b> Fields<'b> {
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let Some((field, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.broken("ends too early"));
        };
        self.rest = rest;
        self.offset += u64::try_from(N).unwrap_or(0);
        Ok(*field)
    }

    pub(super) fn u32(&mut self) -> Result<u32, StoreError> {
        self.array().map(u32::from_le_bytes)
    }

    /// Takes `count` records of `N` bytes, which must be there before anything is allocated.
    pub(super) fn records<const N: usize>(
        &mut self,
        count: u32,
    ) -> Result<&'b [[u8; N]], StoreError> {
        let length = usize::try_from(count).ok().and_then(|count| count.checked_mul(N));
        let Some((records, rest)) = length.and_then(|length| self.rest.split_at_checked(length))
        else {
            return Err(self.broken(&format!("ends before its {count} records")));
        };
        self.rest = rest;
        self.offset += u64::try_from(records.len()).unwrap_or(0);
        Ok(records.as_chunks().0)
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), StoreError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.broken("has more than it should")) }
    }

    /// An error at the next field.
    pub(super) fn broken(&self, reason: &str) -> StoreError {
        StoreError::damaged(self.path, self.offset, reason)
    }
}
