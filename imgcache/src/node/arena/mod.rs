//! The node's memory: one shared mapping of header, index and slabs.
//!
//! ```text
//! 0        header (4 KiB)
//! 4096     index: buckets of 512 bytes
//! content  slabs of 2 MiB, from the next multiple of 2 MiB on
//! ```
//! It is anonymous, or a file that a later start of the node takes over. Killing the node at any
//! moment leaves in the file what was written until then, in the order in which it was written: the
//! entries that are whole are those whose content is.

mod backing;
mod file;
pub mod header;
mod mapping;
mod open;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub use backing::{Backing, BackingChoice, InvalidBacking};
pub use mapping::{Blind, GRANULE, Slot};
pub use open::{Opened, open};

use rustix::fs::{Mode, OFlags, SealFlags, fcntl_get_seals};

use crate::index::entry::ENTRY_WORDS;
use crate::index::reader::Exported;
use crate::index::table::TableGeometry;
use crate::index::words::IndexWords;
use crate::transport::verbs::Memory;
use header::HEADER_BYTES;
use mapping::Mapping;

/// Bytes of a slab.
pub const SLAB_BYTES: usize = 2 << 20;
/// How much is populated at a time, so that it can be stopped.
const POPULATE_BYTES: usize = 32 << 20;
/// After how much progress is told.
const PROGRESS_BYTES: usize = 16 << 30;

/// Why there is no arena.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// No memory of the kind that was asked for.
    #[error("cannot get {bytes} bytes of memory: {}", reasons.join(", "))]
    Memory {
        /// Bytes wanted.
        bytes: usize,
        /// What was tried and why it failed.
        reasons: Vec<String>,
        /// The last reason.
        source: io::Error,
    },
    /// More memory than there are addresses or offsets for.
    #[error("an arena of {slabs} slabs and {index} bytes of index is too large")]
    TooLarge {
        /// Slabs wanted.
        slabs: u64,
        /// Bytes of index.
        index: u64,
    },
    /// The system refused something.
    #[error("cannot {action} '{}': {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file's pages are not those that were asked for.
    #[error("'{}' cannot have {wanted} pages: {reason}", path.display())]
    Pages {
        /// The file.
        path: PathBuf,
        /// The pages that were asked for.
        wanted: BackingChoice,
        /// Why it has others.
        reason: String,
    },
    /// Another node has the file.
    #[error("'{}' is used by another node", .0.display())]
    InUse(PathBuf),
    /// The file is none of ours, or its header is damaged.
    #[error(
        "'{}' is not an arena: its header is damaged or of something else; remove it to start empty",
        .0.display()
    )]
    NotAnArena(PathBuf),
    /// The file was written by another version.
    #[error(
        "'{}' has version {found} of the layout, this program writes {expected}; remove it to start \
         empty", path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// This program's.
        expected: u64,
    },
    /// The file is for another size.
    #[error(
        "'{}' holds {} MiB in {found_entries} index entries, {} MiB in {entries} entries are asked \
         for; ask for the same, or remove it to start empty",
        path.display(), found_slabs * 2, slabs * 2
    )]
    Geometry {
        /// The file.
        path: PathBuf,
        /// Its slabs.
        found_slabs: u64,
        /// Its index entries.
        found_entries: u64,
        /// Slabs asked for.
        slabs: u64,
        /// Index entries asked for.
        entries: u64,
    },
    /// The file is shorter than its header says.
    #[error("'{}' has {found} bytes, its header says {expected}; remove it to start empty", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        found: u64,
        /// What it should have.
        expected: u64,
    },
    /// The system gave no random boot id.
    #[error("no random numbers: {0}")]
    Random(io::Error),
}

/// Where what is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The index.
    pub table: TableGeometry,
    /// How many slabs.
    pub slabs: u32,
    /// Where they begin, in bytes.
    pub content: usize,
    /// Bytes of all.
    pub length: usize,
}

impl Layout {
    /// The layout of `slabs` slabs behind an index of this geometry.
    ///
    /// # Errors
    /// It does not fit into 48 bits.
    pub fn new(table: TableGeometry, slabs: u64) -> Result<Self, ArenaError> {
        let too_large = || ArenaError::TooLarge { slabs, index: table.bytes() };
        let fit = || {
            let index = usize::try_from(table.bytes()).ok()?;
            let content = index.checked_add(HEADER_BYTES)?.checked_next_multiple_of(SLAB_BYTES)?;
            let length = usize::try_from(slabs).ok()?.checked_mul(SLAB_BYTES)?;
            let length = length.checked_add(content)?;
            (length < 1 << 47).then_some((content, length))
        };
        let (content, length) = fit().ok_or_else(too_large)?;
        let slabs = u32::try_from(slabs).map_err(|_| too_large())?;
        Ok(Self { table, slabs, content, length })
    }
}

/// The memory.
#[derive(Debug)]
pub struct Arena {
    mapping: Arc<Mapping>,
    layout: Layout,
    boot_id: u64,
    /// Whether it is a file, whose pages are not to be made dirty for nothing.
    file: bool,
}

impl Arena {
    /// Where what is.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Which start of the node this is.
    pub fn boot_id(&self) -> u64 {
        self.boot_id
    }

    /// What remote readers need to know.
    pub fn exported(&self) -> Exported {
        Exported {
            boot_id: self.boot_id,
            table: self.layout.table,
            region: 0,
            bytes: self.layout.length as u64,
            content: self.layout.content as u64,
        }
    }

    /// The words of the index.
    pub fn index(&self) -> IndexWords<'_> {
        let entries = usize::try_from(self.layout.table.entries()).unwrap_or(0);
        let words = &self.mapping.words()[HEADER_BYTES / 8..];
        IndexWords::new(&words[..(entries * ENTRY_WORDS).min(words.len())])
    }

    /// The words of the header's page.
    fn page(&self) -> &[AtomicU64] {
        &self.mapping.words()[..HEADER_BYTES / 8]
    }

    /// All of it, to be registered with RDMA devices.
    pub fn memory(&self) -> Arc<dyn Memory> {
        Arc::clone(&self.mapping) as Arc<dyn Memory>
    }

    /// Takes `capacity` bytes at `offset` of the content, showing `length` of them; none if they are
    /// not all free.
    pub fn claim(&self, offset: usize, capacity: usize, length: usize) -> Option<Slot> {
        self.mapping.claim(offset, capacity, length)
    }

    /// A descriptor of the memory for another process of this host, which can read and map it, and
    /// neither write nor resize it.
    ///
    /// # Errors
    /// There is none that could not be written to.
    pub fn share(&self) -> io::Result<OwnedFd> {
        let file = self.mapping.file();
        if !self.file && !fcntl_get_seals(file)?.contains(SealFlags::FUTURE_WRITE) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the memory is not sealed"));
        }
        // Another description of the file, as its mode is not this one's.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Bytes taken beside the memory, to know which parts of it have an owner.
    pub fn overhead(&self) -> u64 {
        ((self.layout.length - self.layout.content) / GRANULE / 8) as u64
    }

    /// Takes all pages from the system, part by part, until `stop`; tells `progress` after each 16 GiB
    /// how many bytes it took. Returns how many there were in the end.
    ///
    /// # Errors
    /// There is not enough memory, or the kernel cannot do it; what is missing is then taken when it
    /// is used.
    pub fn populate(&self, stop: &AtomicBool, progress: impl Fn(usize)) -> io::Result<usize> {
        let mut done = 0;
        while done < self.layout.length && !stop.load(Ordering::Relaxed) {
            let part = POPULATE_BYTES.min(self.layout.length - done);
            self.mapping.populate(done, part, !self.file)?;
            done += part;
            if done.is_multiple_of(PROGRESS_BYTES) {
                progress(done);
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(slabs: u64) -> Result<Layout, ArenaError> {
        Layout::new(TableGeometry::with_entries(100_000).unwrap(), slabs)
    }

    #[test]
    fn slabs_begin_at_huge_pages_behind_header_and_index() {
        let three = layout(3).unwrap();
        assert_eq!((three.content, three.length), (10 << 20, 16 << 20));
        assert!(matches!(layout(1 << 26), Err(ArenaError::TooLarge { .. })));
        assert!(layout(u64::MAX).is_err());
    }

    #[test]
    fn all_pages_are_taken_or_none_when_stopped_and_content_stays() {
        let folder = tempfile::tempdir().unwrap();
        for file in [None, Some(folder.path().join("arena"))] {
            let opened = open(layout(40).unwrap(), BackingChoice::Auto, file.as_deref()).unwrap();
            opened.begin();
            let arena = &opened.arena;
            let mut slot = arena.claim(arena.layout().content, 512, 512).unwrap();
            slot.bytes_mut().fill(9);
            assert_eq!(arena.populate(&AtomicBool::new(true), |_| ()).unwrap(), 0);
            let taken = arena.populate(&AtomicBool::new(false), |_| ()).unwrap();
            assert_eq!((taken, slot.bytes()), (arena.layout().length, &[9; 512][..]));
            assert_eq!(arena.index().entries(), 131_072);
        }
    }

    #[test]
    fn others_read_what_is_shared_and_cannot_change_it() {
        use rustix::io::{pread, pwrite};
        let folder = tempfile::tempdir().unwrap();
        for file in [None, Some(folder.path().join("arena"))] {
            let opened = open(layout(1).unwrap(), BackingChoice::Small, file.as_deref()).unwrap();
            let arena = &opened.arena;
            let mut slot = arena.claim(arena.layout().content, 512, 512).unwrap();
            slot.bytes_mut().fill(7);
            let shared = arena.share().unwrap();
            let (offset, mut bytes) = (arena.layout().content as u64, [0; 512]);
            assert_eq!((pread(&shared, &mut bytes, offset), bytes), (Ok(512), [7; 512]));
            assert!(pwrite(&shared, &[1], offset).is_err());
            assert!(rustix::fs::ftruncate(&shared, 0).is_err());
            if file.is_none() {
                // Not even by who has the node's own descriptor.
                assert!(pwrite(arena.mapping.file(), &[1], offset).is_err());
                assert!(rustix::fs::ftruncate(arena.mapping.file(), 0).is_err());
            }
            // The node itself goes on.
            slot.bytes_mut().fill(8);
            assert_eq!((pread(&shared, &mut bytes, offset), bytes), (Ok(512), [8; 512]));
            let span = arena.memory().span();
            assert_eq!((span.address % 4096, span.length), (0, arena.layout().length));
        }
    }
}
