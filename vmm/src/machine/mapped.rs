//! Parts of guest RAM that are pages of a file, and what takes their place.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::layout::HUGE_PAGE;
use super::mapping::{Mapping, Scratch};
use super::memory::Backing;

/// A part of RAM where a file is mapped privately. All numbers are multiples of 2 MiB.
///
/// It keeps the file open, and with it its locks.
#[derive(Debug, Clone)]
pub struct MappedPart {
    pub(super) guest: Range<u64>,
    /// Where it is in `mapping`, in bytes from the start.
    pub(super) place: Range<u64>,
    pub(super) mapping: Arc<Mapping>,
    pub(super) file: Arc<File>,
    pub(super) file_offset: u64,
    /// What the RAM is made of where it is not mapped.
    pub(super) backing: Backing,
    /// Whether it is to become the guest's own memory while the guest starts.
    pub(super) settles: bool,
}

/// Why a part is not memory of the guest's own.
#[derive(Debug, thiserror::Error)]
pub enum MappedError {
    /// No memory, or none of the RAM's kind.
    #[error("no memory to copy guest-physical {:#x}..{:#x} to: {source}", guest.start, guest.end)]
    Scratch {
        /// Which addresses.
        guest: Range<u64>,
        /// The system's reason.
        source: io::Error,
    },
    /// The file does not give what was mapped.
    #[error("cannot read what is mapped at guest-physical {:#x}..{:#x}: {source}",
            guest.start, guest.end)]
    Read {
        /// Which addresses.
        guest: Range<u64>,
        /// The system's reason.
        source: io::Error,
    },
    /// The kernel did not put the copy in the place of the mapping, which is as it was.
    #[error("cannot replace what is mapped at guest-physical {:#x}..{:#x}: {source}",
            guest.start, guest.end)]
    Move {
        /// Which addresses.
        guest: Range<u64>,
        /// The system's reason.
        source: io::Error,
    },
    /// It took the mapping away and gave nothing for it: the guest cannot go on.
    #[error("guest-physical {:#x}..{:#x} is lost, the host has no memory for it: {source}",
            guest.start, guest.end)]
    Lost {
        /// Which addresses.
        guest: Range<u64>,
        /// The system's reason.
        source: io::Error,
    },
}

impl MappedPart {
    /// How long it is, in bytes.
    pub fn length(&self) -> u64 {
        self.guest.end - self.guest.start
    }

    /// The same in parts of at most `most` bytes, a multiple of 2 MiB, in ascending order.
    pub fn split(&self, most: u64) -> impl Iterator<Item = Self> {
        let whole = self.clone();
        let count = self.length().div_ceil(most);
        (0..count).map(move |index| {
            let (from, to) = (index * most, whole.length().min((index + 1) * most));
            Self {
                guest: whole.guest.start + from..whole.guest.start + to,
                place: whole.place.start + from..whole.place.start + to,
                file_offset: whole.file_offset + from,
                ..whole.clone()
            }
        })
    }

    /// Copies what the file holds, unless `stop` is set: then there is none.
    ///
    /// The file is read, not the guest's memory, which the guest may be writing to.
    pub fn copy(&self, stop: &AtomicBool) -> Result<Option<Replacement>, MappedError> {
        let failed = |source| MappedError::Scratch { guest: self.guest.clone(), source };
        let mut scratch = Scratch::new(self.length(), self.backing).map_err(failed)?;
        let step = usize::try_from(HUGE_PAGE).unwrap_or(usize::MAX);
        let mut offset = self.file_offset;
        for piece in scratch.bytes().chunks_mut(step) {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let failed = |source| MappedError::Read { guest: self.guest.clone(), source };
            self.file.read_exact_at(piece, offset).map_err(failed)?;
            offset += HUGE_PAGE;
        }
        Ok(Some(Replacement { part: self.clone(), scratch }))
    }
}

/// A copy of what is mapped, to be put in its place.
#[derive(Debug)]
pub struct Replacement {
    part: MappedPart,
    scratch: Scratch,
}

impl Replacement {
    /// How long it is, in bytes.
    pub fn length(&self) -> u64 {
        self.part.length()
    }

    /// Puts the copy in the place of the mapping, with what was written there since; returns how
    /// many bytes of that there were, or may have been. Guest and host addresses stay as they are.
    ///
    /// # Safety
    /// Nobody accesses this part of RAM meanwhile: no vCPU, no device, and no slice is lent.
    pub unsafe fn install(self) -> Result<u64, MappedError> {
        let Self { part, mut scratch } = self;
        let failed = |source| MappedError::Move { guest: part.guest.clone(), source };
        let written = part.mapping.written(&part.place).map_err(failed)?;
        // SAFETY: the caller's.
        unsafe { scratch.copy_from(&part.mapping, &part.place, &written) }.map_err(failed)?;
        // SAFETY: the caller's.
        if let Err((scratch, source)) = unsafe { scratch.move_to(&part.mapping, &part.place) } {
            if part.mapping.is_mapped(&part.place) {
                return Err(failed(source));
            }
            // SAFETY: the caller's.
            unsafe { fill_gap(&part, scratch) }?;
        }
        Ok(written.iter().map(|range| range.end - range.start).sum())
    }
}

/// Puts new memory where there is none any more, and copies `scratch` to it. Nobody can have been
/// given the addresses meanwhile: the process' other threads stand still.
///
/// # Safety
/// As for [`Replacement::install`].
unsafe fn fill_gap(part: &MappedPart, mut scratch: Scratch) -> Result<(), MappedError> {
    // SAFETY: the caller's.
    let put = |backing| unsafe { part.mapping.put_anonymous(&part.place, backing) };
    put(part.backing)
        .or_else(|_| put(Backing::Thp))
        .and_then(|()| {
            // SAFETY: the caller's.
            unsafe { part.mapping.write(&part.place, scratch.bytes()) }
        })
        .map_err(|source| MappedError::Lost { guest: part.guest.clone(), source })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const PIECE: u64 = HUGE_PAGE;

    /// A file of `pieces` pieces whose bytes tell their place, mapped into memory one piece longer
    /// on both sides.
    pub fn mapped(pieces: u64) -> MappedPart {
        let file = tempfile::tempfile().unwrap();
        for page in 0..pieces * PIECE / 4096 {
            file.write_all_at(&[content(page * 4096); 4096], page * 4096).unwrap();
        }
        let mapping = Mapping::reserve((pieces + 2) * PIECE).unwrap();
        let place = PIECE..(pieces + 1) * PIECE;
        // SAFETY: nothing refers to a mapping made just now.
        unsafe {
            mapping.put_anonymous(&(0..(pieces + 2) * PIECE), Backing::Small).unwrap();
            mapping.put_file(&place, &file, 0).unwrap();
        }
        MappedPart {
            guest: place.clone(),
            place,
            mapping: Arc::new(mapping),
            file: Arc::new(file),
            file_offset: 0,
            backing: Backing::Thp,
            settles: true,
        }
    }

    /// What the byte at `offset` of such a file is.
    pub fn content(offset: u64) -> u8 {
        u8::try_from(offset / 4096 % 251).unwrap()
    }

    pub fn address(part: &MappedPart, offset: u64) -> *mut u8 {
        // SAFETY: inside the mapping.
        unsafe { part.mapping.start().add(usize::try_from(part.place.start + offset).unwrap()) }
    }

    pub fn read(part: &MappedPart, offset: u64) -> u8 {
        // SAFETY: inside the mapping, which the test alone refers to.
        unsafe { address(part, offset).read_volatile() }
    }

    pub fn write(part: &MappedPart, offset: u64, byte: u8) {
        // SAFETY: as above.
        unsafe { address(part, offset).write_volatile(byte) };
    }

    fn copy(part: &MappedPart) -> Replacement {
        part.copy(&AtomicBool::new(false)).unwrap().unwrap()
    }

    #[test]
    fn a_part_splits_without_gaps() {
        let part = mapped(5);
        let parts: Vec<_> = part.split(2 * PIECE).collect();
        assert_eq!(parts.len(), 3);
        for (index, piece) in (0u64..).zip(&parts) {
            assert_eq!(piece.guest.start, part.guest.start + index * 2 * PIECE);
            assert_eq!(piece.place.start - part.place.start, piece.file_offset);
            assert_eq!(piece.guest.end - piece.guest.start, piece.place.end - piece.place.start);
        }
        assert_eq!(parts.iter().map(MappedPart::length).sum::<u64>(), part.length());
    }

    #[test]
    fn what_was_read_and_what_was_written_is_there_afterwards() {
        let part = mapped(4);
        write(&part, 0, 200);
        write(&part, PIECE + 0x5000, 201);
        let copies: Vec<_> = part.split(2 * PIECE).map(|part| copy(&part)).collect();
        // After the copy, before it is put in place.
        write(&part, 3 * PIECE + 0x1fff, 202);
        let mut written = 0;
        for copy in copies {
            // SAFETY: the test alone refers to the memory.
            written += unsafe { copy.install() }.unwrap();
        }
        assert!(written == 3 * 4096 || written == 4 * PIECE, "{written}");
        for page in 0..4 * PIECE / 4096 {
            let offset = page * 4096 + 100;
            assert_eq!(read(&part, offset), content(offset), "{offset:#x}");
        }
        assert_eq!(read(&part, 0), 200);
        assert_eq!(read(&part, PIECE + 0x5000), 201);
        assert_eq!(read(&part, 3 * PIECE + 0x1fff), 202);
        // It is memory, and no longer the file.
        write(&part, PIECE, 7);
        assert_eq!(read(&part, PIECE), 7);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let start = format!("{:x}", address(&part, 0) as usize);
        assert!(!maps.lines().any(|line| line.starts_with(&start) && line.contains("deleted")));
        // What is around it is as it was.
        let neighbours = [address(&part, 0).wrapping_sub(1), address(&part, 4 * PIECE)];
        for neighbour in neighbours {
            // SAFETY: the mapping is a piece longer on both sides.
            assert_eq!(unsafe { neighbour.read_volatile() }, 0);
        }
    }

    #[test]
    fn a_gap_that_the_kernel_left_is_filled() {
        let part = mapped(2);
        let Replacement { part, scratch } = copy(&part);
        let length = usize::try_from(2 * PIECE).unwrap();
        // Other tests would be given addresses that nothing is at; these can just not be read.
        // SAFETY: inside the mapping, which the test alone refers to.
        unsafe { libc::mprotect(address(&part, 0).cast(), length, libc::PROT_NONE) };
        // SAFETY: as above.
        unsafe { fill_gap(&part, scratch) }.unwrap();
        for offset in (0..2 * PIECE).step_by(4096) {
            assert_eq!(read(&part, offset), content(offset));
        }
    }

    #[test]
    fn a_copy_that_is_stopped_is_none_and_a_short_file_is_an_error() {
        let part = mapped(1);
        assert!(part.copy(&AtomicBool::new(true)).unwrap().is_none());
        let short = MappedPart { file_offset: PIECE, ..part };
        let error = short.copy(&AtomicBool::new(false)).unwrap_err();
        assert!(error.to_string().contains("0x200000..0x400000"), "{error}");
    }
}
