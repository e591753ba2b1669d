//! Memory that a server has from its start for what arrives.
//!
//! New memory costs more than moving bytes into it: the kernel clears each page, and in a virtual machine that has
//! given free memory back, its host finds it again first. A server that is to take a range over in a given
//! time has it before.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use memmap2::{Advice, MmapMut};

/// Bytes of a piece: a huge page. Where they are of another size, the advice is taken for larger ones or not
/// at all.
pub(super) const PIECE: usize = 2 << 20;

/// New memory, in huge pages where there are any, of which nothing is used yet.
pub(super) fn piece() -> io::Result<MmapMut> {
    let map = MmapMut::map_anon(PIECE)?;
    if let Err(error) = map.advise(Advice::HugePage) {
        log::debug!("no huge page: {error}"); // it is slower without
    }
    Ok(map)
}

/// Pieces that nothing is in. Those that were taken come back when nothing of what was put there is left.
#[derive(Debug, Clone, Default)]
pub struct Reserve(Arc<Mutex<Vec<MmapMut>>>);

impl Reserve {
    /// `bytes`, rounded up to whole pieces, which are there when this returns.
    ///
    /// # Errors
    /// When there is not so much memory.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let mut pieces = Vec::with_capacity(bytes.div_ceil(PIECE));
        for _ in 0..pieces.capacity() {
            let mut piece = piece()?;
            piece.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
            pieces.push(piece);
        }
        Ok(Self(Arc::new(Mutex::new(pieces))))
    }

    /// Bytes of it that nothing is in.
    pub fn free(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len() * PIECE
    }

    /// One piece, with whatever was there before.
    pub(super) fn take(&self) -> Option<Taken> {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(Taken { map: Some(map), reserve: self.clone() })
    }
}

/// A piece that is taken.
#[derive(Debug)]
pub(super) struct Taken {
    /// There until it is dropped.
    map: Option<MmapMut>,
    reserve: Reserve,
}

impl Taken {
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        self.map.as_deref_mut().unwrap_or_default()
    }

    /// The first `length` bytes of it, for as long as anybody has a part of them.
    pub(super) fn keep(self, length: usize) -> Bytes {
        Bytes::from_owner(self).slice(..length)
    }
}

impl AsRef<[u8]> for Taken {
    fn as_ref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(map) = self.map.take() {
            self.reserve.0.lock().unwrap_or_else(PoisonError::into_inner).push(map);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_piece_comes_back_when_nothing_of_it_is_left() {
        let reserve = Reserve::new(PIECE + 1).unwrap();
        assert_eq!(reserve.free(), 2 * PIECE);
        let mut taken = reserve.take().unwrap();
        taken.bytes()[..3].copy_from_slice(b"one");
        let one = taken.keep(3);
        let two = reserve.take().unwrap().keep(PIECE);
        assert!(reserve.take().is_none());
        let part = one.slice(1..2);
        drop(one);
        assert_eq!((&part[..], reserve.free()), (&b"n"[..], 0));
        drop(part);
        assert_eq!(reserve.free(), PIECE);
        drop(two);
        assert_eq!(reserve.free(), 2 * PIECE);
    }
}
