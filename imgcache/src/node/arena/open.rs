//! Getting the memory: anonymous, or a file that may have content from before.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, fstatfs};
use rustix::rand::{GetRandomFlags, getrandom};

use super::backing::{self, Backed};
use super::header::{self, Found, Header};
use super::mapping::Mapping;
use super::{Arena, ArenaError, Backing, BackingChoice, Layout};

/// The kernel's numbers of file systems (`linux/magic.h`).
const TMPFS: u64 = 0x0102_1994;
const HUGETLBFS: u64 = 0x9584_58f6;

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
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ArenaError::InUse(path.to_owned())),
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
    match look(path, &file)? {
        Found::Foreign => return Err(ArenaError::NotAnArena(path.to_owned())),
        Found::Header(header) => check(path, &file, &header, layout)?,
        Found::Nothing => {
            // An empty file, or one of a node that was killed before it wrote anything.
            let found = file.metadata().map_err(failed("look at", path))?.len();
            if found != 0 && found != expected {
                return Err(ArenaError::NotAnArena(path.to_owned()));
            }
            file.set_len(expected).map_err(failed("resize", path))?;
            // Space that is missing is to show now, and not as a fault when it is written.
            match fallocate(&file, FallocateFlags::empty(), 0, expected) {
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => (),
                Err(error) => return Err(failed("reserve space for", path)(error.into())),
            }
        }
    }
    let system = fstatfs(&file).map(|system| system.f_type).ok();
    let mapping = Mapping::new(file.into(), layout.length, layout.content);
    let mapping = mapping.map_err(failed("map", path))?;
    let (backing, reason) = match (choice, system.and_then(|magic| u64::try_from(magic).ok())) {
        (_, Some(HUGETLBFS)) => (Backing::Hugetlb, None),
        (BackingChoice::Small, _) => (Backing::Small, None),
        (_, Some(TMPFS)) => {
            match backing::shared_huge_pages().and_then(|()| mapping.want_huge_pages(true)) {
                Ok(()) => (Backing::Thp, None),
                Err(error) => (Backing::Small, Some(error.to_string())),
            }
        }
        _ => {
            (Backing::Small, Some("only files of a tmpfs or hugetlbfs have huge pages".to_owned()))
        }
    };
    let fallbacks = reason.map(|reason| format!("huge pages of '{}': {reason}", path.display()));
    Ok(Backed { mapping, backing, fallbacks: fallbacks.into_iter().collect() })
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
}
