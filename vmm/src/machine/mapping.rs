//! Memory mappings at 2 MiB boundaries: the one place that asks the kernel for them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use super::layout::HUGE_PAGE;
use super::memory::Backing;
use crate::host::pagemap;

/// A part of this process' address space that begins at a multiple of 2 MiB; given back when
/// dropped. Until something is put there, it cannot be accessed.
#[derive(Debug)]
pub(super) struct Mapping {
    base: *mut libc::c_void,
    reserved: usize,
    start: *mut u8,
    length: usize,
}

// SAFETY: it is a range of addresses; whoever reads or writes there has rules of their own.
unsafe impl Send for Mapping {}
// SAFETY: as above; the struct itself is never changed after it was made.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `length` bytes of addresses.
    pub fn reserve(length: u64) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let length = usize::try_from(length).map_err(|_| too_large())?;
        let alignment = usize::try_from(HUGE_PAGE).map_err(|_| too_large())?;
        let reserved = length.checked_add(alignment).ok_or_else(too_large)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping where the kernel likes it, which nothing can access.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), reserved, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: at most `alignment` is added, by which the reservation is longer than `length`.
        let start = unsafe { base.cast::<u8>().add(base.align_offset(alignment)) };
        Ok(Self { base, reserved, start, length })
    }

    /// Its first address.
    pub fn start(&self) -> *mut u8 {
        self.start
    }

    /// Puts fresh memory at `part`, in bytes from the start.
    ///
    /// # Safety
    /// Nothing refers to what is there now.
    pub unsafe fn put_anonymous(&self, part: &Range<u64>, backing: Backing) -> io::Result<()> {
        let extra = match backing {
            // Reserved at once, so that a pool too small shows here and not as a fault later.
            Backing::Hugetlb => libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
            Backing::Small | Backing::Thp => libc::MAP_NORESERVE,
        };
        // SAFETY: the caller's.
        let mapped = unsafe { self.put(part, libc::MAP_ANONYMOUS | extra, -1, 0) }?;
        let advice = match backing {
            Backing::Hugetlb => return Ok(()),
            Backing::Thp => libc::MADV_HUGEPAGE,
            Backing::Small => libc::MADV_NOHUGEPAGE,
        };
        advise(&mapped, advice);
        Ok(())
    }

    /// Puts `file` from `offset` on at `part`, privately, read in and in huge pages if it can be.
    ///
    /// # Safety
    /// Nothing refers to what is there now.
    pub unsafe fn put_file(&self, part: &Range<u64>, file: &File, offset: u64) -> io::Result<()> {
        let offset = libc::off_t::try_from(offset)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the caller's.
        let mapped = unsafe { self.put(part, libc::MAP_NORESERVE, file.as_raw_fd(), offset) }?;
        advise(&mapped, libc::MADV_HUGEPAGE);
        advise(&mapped, libc::MADV_POPULATE_READ);
        Ok(())
    }

    /// # Safety
    /// Nothing refers to what is there now.
    unsafe fn put(
        &self,
        part: &Range<u64>,
        flags: libc::c_int,
        fd: libc::c_int,
        offset: libc::off_t,
    ) -> io::Result<Mapped> {
        let place = self.place(part)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | flags;
        // SAFETY: MAP_FIXED replaces pages inside this reservation, to which the caller says that
        // nothing refers.
        let mapped =
            unsafe { libc::mmap(place.address, place.length, protection, flags, fd, offset) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(place)
    }

    /// Where `part` is.
    fn place(&self, part: &Range<u64>) -> io::Result<Mapped> {
        let number =
            |n: u64| usize::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        let (from, to) = (number(part.start)?, number(part.end)?);
        if from >= to || to > self.length {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: `from` is inside the mapping.
        let address = unsafe { self.start.add(from) }.cast();
        Ok(Mapped { address, length: to - from })
    }

    /// Which bytes of `part`, where a file is mapped, were written since, or may have been; in
    /// bytes from the start of `part`, ascending.
    pub fn written(&self, part: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
        let place = self.place(part)?;
        Ok(pagemap::written_privately(place.address as u64, part.end - part.start))
    }

    /// Copies `bytes` to `part`, which must be as long.
    ///
    /// # Safety
    /// Nobody else refers to what is there.
    pub unsafe fn write(&self, part: &Range<u64>, bytes: &[u8]) -> io::Result<()> {
        let place = self.place(part)?;
        if place.length != bytes.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: mapped, as long, and nobody else's, as the caller says.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place.address.cast(), bytes.len()) };
        Ok(())
    }

    /// Whether there is anything at all of `part`: a kernel may have unmapped what it then could not
    /// replace.
    pub fn is_mapped(&self, part: &Range<u64>) -> bool {
        // SAFETY: advice of this kind changes how pages are read ahead, and nothing else.
        self.place(part).is_ok_and(|place| unsafe {
            libc::madvise(place.address, place.length, libc::MADV_NORMAL) == 0
        })
    }
}

/// Memory that nothing else refers to: to be filled, and then put in the place of other memory.
#[derive(Debug)]
pub(super) struct Scratch(Mapping);

impl Scratch {
    /// `length` bytes, a multiple of 2 MiB, of fresh memory.
    pub fn new(length: u64, backing: Backing) -> io::Result<Self> {
        let mapping = Mapping::reserve(length)?;
        // SAFETY: nothing refers to a mapping that was made just now.
        unsafe { mapping.put_anonymous(&(0..length), backing) }?;
        Ok(Self(mapping))
    }

    /// All of it.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped readable and writable, initialized as all mapped memory is, and lent by
        // this for as long as `self` is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.0.start, self.0.length) }
    }

    /// Copies `ranges`, in bytes from the start of `part`, of what is at `part` of `source`.
    ///
    /// # Safety
    /// Nobody writes there meanwhile.
    pub unsafe fn copy_from(
        &mut self,
        source: &Mapping,
        part: &Range<u64>,
        ranges: &[Range<u64>],
    ) -> io::Result<()> {
        for range in ranges {
            let from = source.place(&(part.start + range.start..part.start + range.end))?;
            let to = self.0.place(range)?;
            // SAFETY: both are mapped, of the same length and apart; nobody else writes to the
            // one, as the caller says, and the other is this one's alone.
            unsafe { std::ptr::copy_nonoverlapping(from.address, to.address, from.length) };
        }
        Ok(())
    }

    /// Puts the pages themselves at `part` of `target`, which must be as long: they are not copied,
    /// and stay in the size that they are in.
    ///
    /// # Errors
    /// The kernel's refusal, after which there may be nothing at `part`: Linux unmaps the target
    /// before it looks at all that may be wrong (`mremap_to` in mm/mremap.c), such as hugetlb
    /// pages before 5.16. The memory comes back with it, unchanged.
    ///
    /// # Safety
    /// Nobody refers to what is at `part` meanwhile.
    pub unsafe fn move_to(
        self,
        target: &Mapping,
        part: &Range<u64>,
    ) -> Result<(), (Self, io::Error)> {
        let scratch = &self.0;
        let place = match target.place(part) {
            Ok(place) if place.length == scratch.length => place,
            Ok(_) => return Err((self, io::ErrorKind::InvalidInput.into())),
            Err(error) => return Err((self, error)),
        };
        // SAFETY: what is replaced is inside the target, to which the caller says that nobody
        // refers; what is moved is all of this one's, owned here.
        let moved = unsafe {
            libc::mremap(
                scratch.start.cast(),
                scratch.length,
                scratch.length,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                place.address,
            )
        };
        if moved == libc::MAP_FAILED {
            return Err((self, io::Error::last_os_error()));
        }
        self.forget_middle();
        Ok(())
    }

    /// Gives back the addresses before and behind the memory, but not those of the memory, which
    /// moved away: by now they may be another's.
    fn forget_middle(self) {
        let mapping = std::mem::ManuallyDrop::new(self.0);
        let head = mapping.start as usize - mapping.base as usize;
        let tail = mapping.reserved - head - mapping.length;
        // SAFETY: the two ends of what mmap gave, which are still this one's, and which nothing
        // can access.
        unsafe {
            libc::munmap(mapping.base, head);
            libc::munmap(mapping.start.add(mapping.length).cast(), tail);
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: what mmap gave, as a whole; its users keep it for as long as they use it.
        unsafe { libc::munmap(self.base, self.reserved) };
    }
}

/// Pages inside a mapping.
struct Mapped {
    address: *mut libc::c_void,
    length: usize,
}

/// Advice that may be refused, by kernels that do not know it or cannot follow it: then pages are
/// as they are without, and whoever cares looks.
fn advise(mapped: &Mapped, advice: libc::c_int) {
    // SAFETY: none of the advice given here changes the content of pages.
    unsafe { libc::madvise(mapped.address, mapped.length, advice) };
}

/// Which parts of `length` bytes of `file`, from `offset` on, this host has in 2 MiB pages, or has
/// after reading them in; in bytes from `offset`. All numbers are multiples of 2 MiB.
///
/// # Errors
/// The kernel's refusal to map the file.
pub fn in_huge_pages(file: &File, offset: u64, length: u64) -> io::Result<Vec<Range<u64>>> {
    let scratch = Mapping::reserve(length)?;
    // SAFETY: nothing refers to a mapping that was made just now.
    unsafe { scratch.put_file(&(0..length), file, offset) }?;
    Ok(pagemap::mapped_in_huge_pages(scratch.start() as u64, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::hugepages;

    const PIECE: u64 = HUGE_PAGE;

    fn byte(mapping: &Mapping, at: usize) -> u8 {
        // SAFETY: inside the mapping, which the test alone refers to.
        unsafe { mapping.start().add(at).read_volatile() }
    }

    fn target(length: u64, backing: Backing) -> Mapping {
        let mapping = Mapping::reserve(length).unwrap();
        // SAFETY: made just now.
        unsafe { mapping.put_anonymous(&(0..length), backing) }.unwrap();
        mapping
    }

    #[test]
    fn what_is_moved_is_at_its_place_and_nothing_around_it_changes() {
        let target = target(3 * PIECE, Backing::Small);
        let mut scratch = Scratch::new(PIECE, Backing::Small).unwrap();
        scratch.bytes().fill(7);
        // SAFETY: the test alone refers to the target.
        unsafe { scratch.move_to(&target, &(PIECE..2 * PIECE)) }.unwrap();
        let piece = usize::try_from(PIECE).unwrap();
        for (at, wanted) in [(piece - 1, 0), (piece, 7), (2 * piece - 1, 7), (2 * piece, 0)] {
            assert_eq!(byte(&target, at), wanted, "{at}");
        }
    }

    #[test]
    fn huge_pages_stay_huge_when_they_move() {
        if !hugepages::transparent_enabled() {
            eprintln!("no transparent huge pages here: nothing to see");
            return;
        }
        let target = target(4 * PIECE, Backing::Thp);
        let mut scratch = Scratch::new(2 * PIECE, Backing::Thp).unwrap();
        scratch.bytes().fill(1);
        let huge = pagemap::mapped_in_huge_pages(scratch.0.start as u64, 2 * PIECE);
        // SAFETY: the test alone refers to the target.
        unsafe { scratch.move_to(&target, &(PIECE..3 * PIECE)) }.unwrap();
        let moved = pagemap::mapped_in_huge_pages(target.start() as u64 + PIECE, 2 * PIECE);
        assert_eq!(moved, huge);
    }

    #[test]
    fn scratch_that_does_not_fit_comes_back_whole() {
        let target = target(2 * PIECE, Backing::Small);
        for part in [0..2 * PIECE, 2 * PIECE..3 * PIECE, PIECE..PIECE] {
            let mut scratch = Scratch::new(PIECE, Backing::Small).unwrap();
            scratch.bytes().fill(9);
            // SAFETY: the test alone refers to the target.
            let (mut back, _) = unsafe { scratch.move_to(&target, &part) }.unwrap_err();
            assert!(back.bytes().iter().all(|byte| *byte == 9));
        }
        assert_eq!(byte(&target, 0), 0);
        assert!(target.is_mapped(&(0..2 * PIECE)));
    }

    #[test]
    fn addresses_that_nothing_is_at_are_told() {
        // The first page of an address space is nobody's.
        let start = std::ptr::null_mut::<u8>();
        let nothing = Mapping { base: start.cast(), reserved: 4096, start, length: 4096 };
        let nothing = std::mem::ManuallyDrop::new(nothing);
        assert!(!nothing.is_mapped(&(0..4096)));
        assert!(target(PIECE, Backing::Thp).is_mapped(&(0..PIECE)));
    }

    #[test]
    fn written_pages_of_a_mapped_file_are_found() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * PIECE).unwrap();
        let target = Mapping::reserve(2 * PIECE).unwrap();
        // SAFETY: made just now.
        unsafe { target.put_file(&(0..2 * PIECE), &file, 0) }.unwrap();
        assert_eq!(byte(&target, 5), 0);
        assert_eq!(target.written(&(0..2 * PIECE)).unwrap(), []);
        // SAFETY: the test alone refers to it.
        unsafe { target.start().add(0x3000).write_volatile(1) };
        let written = target.written(&(0..2 * PIECE)).unwrap();
        let bounds: Vec<_> = written.iter().map(|range| (range.start, range.end)).collect();
        // A kernel before 6.7 gives all for one.
        assert!(bounds == [(0x3000, 0x4000)] || bounds == [(0, 2 * PIECE)], "{bounds:?}");
    }
}
