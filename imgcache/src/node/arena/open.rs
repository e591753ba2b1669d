//! Getting the memory: anonymous, or a file that may have content from before.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use super::backing::{self, Backed};
use super::file::{self, Pages};
use super::header::{self, Found, Header};
use super::mapping::Mapping;
use super::{Arena, ArenaError, Backing, BackingChoice, Layout, POPULATE_BYTES};

/// An arena that was opened.
#[derive(Debug)]
pub struct Opened {
    /// The memory.
    pub arena: Arc<Arena>,
    /// Its pages.
    pub backing: Backing,
    /// Why they are none better.
    pub fallbacks: Vec<String>,
    /// The boot ids with which entries from before may be, none if there are none.
    pub previous: Vec<u64>,
    /// The header as it is written now; [`Opened::settle`] ends the taking over.
    header: Header,
}

/// Opens the memory: `file`, or anonymous.
///
/// # Errors
/// There is no memory, or the file is in use, is none, or is one of another layout.
pub fn open(
    layout: Layout,
    choice: BackingChoice,
    file: Option<&Path>,
) -> Result<Opened, ArenaError> {
    let boot_id = random_id()?;
    let fresh = Header {
        version: header::VERSION,
        sequence: 1,
        boot_id,
        previous: 0,
        buckets: layout.table.buckets(),
        slabs: layout.slabs.into(),
    };
    let backed = match file {
        None => {
            let (choice, bytes) = (choice, layout.length);
            backing::anonymous(choice, bytes, layout.content)
                .map_err(|(reasons, source)| ArenaError::Memory { bytes, reasons, source })?
        }
        Some(path) => map_file(path, lock_file(path)?, &layout, choice)?,
    };
    let Backed { mapping, backing, fallbacks } = backed;
    let mut arena = Arena { mapping: Arc::new(mapping), layout, boot_id, file: file.is_some() };
    let (header, previous) = match header::read(arena.page()) {
        Found::Header(old) => {
            let previous = [old.boot_id, old.previous];
            let header = successor(&old, &fresh);
            (header, previous.into_iter().filter(|id| *id != 0).collect())
        }
        _ => (fresh, Vec::new()),
    };
    arena.boot_id = header.boot_id;
    let arena = Arc::new(arena);
    Ok(Opened { arena, backing, fallbacks, previous, header })
}

impl Opened {
    /// Begins to take over: from now on entries may have the new boot id.
    pub fn begin(&self) {
        self.header.write(self.arena.page());
    }

    /// Ends it: all entries have the new boot id.
    pub fn settle(&mut self) {
        self.header.sequence = self.header.sequence.wrapping_add(1);
        self.header.previous = 0;
        self.header.write(self.arena.page());
    }
}

/// The header of the start that takes over from `old`. A start that was killed while it took over is
/// gone on with, under its own boot id, which nobody was ever told: two ids are all that entries can
/// have, however often that happens.
fn successor(old: &Header, fresh: &Header) -> Header {
    let sequence = old.sequence.wrapping_add(1);
    match old.previous {
        0 => Header { sequence, previous: old.boot_id, ..*fresh },
        previous => Header { sequence, previous, boot_id: old.boot_id, ..*fresh },
    }
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> ArenaError + 'a {
    move |source| ArenaError::Io { action, path: path.to_owned(), source }
}

fn random_id() -> Result<u64, ArenaError> {
    let mut bytes = [0; 8];
    let filled = getrandom(&mut bytes, GetRandomFlags::empty());
    let filled = filled.map_err(|error| ArenaError::Random(error.into()))?;
    if filled < bytes.len() {
        return Err(ArenaError::Random(io::ErrorKind::UnexpectedEof.into()));
    }
    // 0 means none.
    Ok(u64::from_le_bytes(bytes).max(1))
}

/// The file, which no other node has, and will have while this is open.
fn lock_file(path: &Path) -> Result<File, ArenaError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        // Whoever reads it reads every tenant's content.
        .mode(0o600)
        .open(path)
        .map_err(failed("open", path))?;
    let metadata = file.metadata().map_err(failed("look at", path))?;
    if let Some(mode) = readable_by_others(metadata.mode()) {
        tracing::warn!(
            "'{}' has mode {mode:03o}: others of this host can read what the node holds; \
             chmod 600 ends it",
            path.display()
        );
    }
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(ArenaError::InUse(path.to_owned())),
        Err(error) => Err(failed("lock", path)(error.into())),
    }
}

/// The permissions in `mode`, if they let others than the owner read or write.
fn readable_by_others(mode: u32) -> Option<u32> {
    let permissions = mode & 0o777;
    (permissions & 0o066 != 0).then_some(permissions)
}

/// Maps `file`, after it was made as long as it must be, or found to be so.
fn map_file(
    path: &Path,
    file: File,
    layout: &Layout,
    choice: BackingChoice,
) -> Result<Backed, ArenaError> {
    let expected = layout.length as u64;
    let is_new = match look(path, &file)? {
        Found::Foreign => return Err(ArenaError::NotAnArena(path.to_owned())),
        Found::Header(header) => check(path, &file, &header, layout).map(|()| false)?,
        Found::Nothing => {
            // An empty file, or one of a node that was killed before it wrote anything.
            let found = file.metadata().map_err(failed("look at", path))?.len();
            if found != 0 && found != expected {
                return Err(ArenaError::NotAnArena(path.to_owned()));
            }
            true
        }
    };
    let (pages, fallback) = match (file::pages(&file), choice) {
        (Ok(pages), BackingChoice::Auto) => (pages, None),
        (Err(reason), BackingChoice::Auto) => (Pages::Small, Some(reason)),
        // Of a tmpfs, or of a file system that knows no others.
        (Ok(Pages::Huge { .. }) | Err(_), BackingChoice::Small) => (Pages::Small, None),
        (Ok(pages @ Pages::Pool), BackingChoice::Hugetlb) => (pages, None),
        (Ok(pages @ Pages::Huge { .. }), BackingChoice::Thp) => (pages, None),
        (found, wanted) => {
            let reason = found.err().unwrap_or_else(|| "its file system has others".to_owned());
            return Err(ArenaError::Pages { path: path.to_owned(), wanted, reason });
        }
    };
    let lengthened = file.try_clone().map_err(failed("use", path))?;
    let make = || -> io::Result<Mapping> {
        let at_fault = pages == Pages::Huge { when_asked: true };
        if is_new {
            file.set_len(expected)?;
            // Space that is missing is to show now, and not as a fault when it is written.
            let reserve = || fallocate(&file, FallocateFlags::empty(), 0, expected);
            match if at_fault { Ok(()) } else { reserve() } {
                Ok(()) | Err(Errno::OPNOTSUPP) => (),
                Err(error) => return Err(error.into()),
            }
        }
        let mapping = Mapping::new(file.into(), layout.length, layout.content)?;
        match pages {
            Pages::Pool => (),
            Pages::Huge { .. } => mapping.want_huge_pages(true)?,
            // A kernel without huge pages has none to be refused.
            Pages::Small => drop(mapping.want_huge_pages(false)),
        }
        if is_new && at_fault {
            take_all(&mapping, layout.length)?;
        }
        Ok(mapping)
    };
    let mapping = made_or_emptied(&lengthened, is_new, make).map_err(failed("make", path))?;
    let backing = match pages {
        Pages::Pool => Backing::Hugetlb,
        Pages::Huge { .. } => Backing::Thp,
        Pages::Small => Backing::Small,
    };
    let fallbacks = fallback.map(|reason| format!("huge pages of '{}': {reason}", path.display()));
    Ok(Backed { mapping, backing, fallbacks: fallbacks.into_iter().collect() })
}

/// Takes all pages of a new file by writing faults, which are what asks for huge ones.
fn take_all(mapping: &Mapping, length: usize) -> io::Result<()> {
    for offset in (0..length).step_by(POPULATE_BYTES) {
        let part = POPULATE_BYTES.min(length - offset);
        mapping.populate(offset, part, true).map_err(|error| match error.raw_os_error() {
            // A fault that ends in SIGBUS.
            Some(code) if code == Errno::FAULT.raw_os_error() => {
                io::Error::from(io::ErrorKind::StorageFull)
            }
            _ => error,
        })?;
    }
    Ok(())
}

/// What `make` gives; if it fails on a new file, that is empty again: a file of full length without a
/// header would only take space.
fn made_or_emptied<T>(
    file: &File,
    is_new: bool,
    make: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let made = make();
    if made.is_err() && is_new {
        let _ = file.set_len(0);
    }
    made
}

/// The header of a file that may be of any length, before it is mapped.
fn look(path: &Path, file: &File) -> Result<Found, ArenaError> {
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::AtomicU64;

    let mut page = vec![0; header::HEADER_BYTES];
    let mut filled = 0;
    while filled < page.len() {
        match file.read_at(&mut page[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(failed("read", path)(error)),
        }
    }
    let (words, _) = page.as_chunks::<8>();
    let words: Vec<AtomicU64> =
        words.iter().map(|word| AtomicU64::new(u64::from_le_bytes(*word))).collect();
    Ok(header::read(&words))
}

/// Whether a file with this header is one of this layout.
fn check(path: &Path, file: &File, header: &Header, layout: &Layout) -> Result<(), ArenaError> {
    let path = || path.to_owned();
    if header.version != header::VERSION {
        let (found, expected) = (header.version, header::VERSION);
        return Err(ArenaError::Version { path: path(), found, expected });
    }
    if (header.buckets, header.slabs) != (layout.table.buckets(), layout.slabs.into()) {
        return Err(ArenaError::Geometry {
            path: path(),
            found_slabs: header.slabs,
            found_entries: header.buckets.saturating_mul(8),
            slabs: layout.slabs.into(),
            entries: layout.table.entries(),
        });
    }
    let found = file.metadata().map_err(failed("look at", &path()))?.len();
    let expected = layout.length as u64;
    if found < expected {
        return Err(ArenaError::Truncated { path: path(), found, expected });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_who_can_read_are_noticed() {
        assert_eq!(readable_by_others(0o10_0600), None);
        assert_eq!(readable_by_others(0o10_0711), None);
        for mode in [0o640, 0o604, 0o620, 0o602, 0o644] {
            assert_eq!(readable_by_others(0o10_0000 | mode), Some(mode));
        }
    }

    #[test]
    fn a_file_is_made_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("arena");
        let file = lock_file(&path).unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_could_not_be_made_takes_no_space() {
        let file = tempfile::tempfile().unwrap();
        let fail = || {
            file.set_len(1 << 20)?;
            Err::<(), _>(io::Error::from(io::ErrorKind::StorageFull))
        };
        assert!(made_or_emptied(&file, true, fail).is_err());
        assert_eq!(file.metadata().unwrap().len(), 0);
        // One that has content keeps it.
        assert!(made_or_emptied(&file, false, fail).is_err());
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    }

    #[test]
    fn pages_that_were_asked_for_are_had_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let table = crate::index::table::TableGeometry::with_entries(64).unwrap();
        let layout = Layout::new(table, 1).unwrap();
        let opened = |choice, name: &str| open(layout, choice, Some(&folder.path().join(name)));
        let refused = opened(BackingChoice::Hugetlb, "pool").map(|_| ());
        assert!(matches!(refused, Err(ArenaError::Pages { .. })), "{refused:?}");
        assert_eq!(std::fs::metadata(folder.path().join("pool")).unwrap().len(), 0);
        let small = opened(BackingChoice::Small, "small").unwrap();
        assert_eq!((small.backing, small.fallbacks), (Backing::Small, vec![]));
        match opened(BackingChoice::Thp, "thp") {
            Ok(opened) => assert_eq!(opened.backing, Backing::Thp),
            Err(error) => assert!(matches!(error, ArenaError::Pages { .. }), "{error}"),
        }
    }
}
