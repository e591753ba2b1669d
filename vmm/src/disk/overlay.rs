//! What a guest has written to its disk: a sparse file of the VM's own, and the map of what is in it.
//!
//! | bytes of the file | content |
//! |---|---|
//! | 0 to the disk's size D | sectors, each where it is on the disk |
//! | D, rounded up to 4 KiB, = M | header: magic `vmmovrl1`, D (8 bytes), id of the manifest (32) |
//! | M + 4096 + 1024 n | the map's region n ([`super::map`]) |
//!
//! Header and map are only in a file that is kept. The map goes there at a flush, after the sectors, each
//! synced: after a crash a sector is what it was at the last flush, or what was written to it since, as on
//! any disk. No guest reaches them: its sectors end before.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use imgcache::key::ManifestId;
use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom, fallocate, flock, seek};
use rustix::io::Errno;

use super::map::{REGION_BYTES, REGION_SECTORS, SECTOR, SectorMap, State};

const MAGIC: [u8; 8] = *b"vmmovrl1";
const HEADER_BYTES: usize = 48;
const PAGE: u64 = 4096;

/// Why there is no overlay, or it did not take something.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// Another VM has it.
    #[error("the overlay is another VM's: one file is for one VM at a time")]
    Locked,
    /// The file is something else.
    #[error("the file is no overlay: name one that is not there yet, or is empty")]
    NoOverlay,
    /// The overlay of another image, or of this one before it was pushed again.
    #[error(
        "the overlay belongs to image {0}: what was written to one disk makes no sense on another"
    )]
    OtherImage(ManifestId),
    /// More than it may take.
    #[error("the overlay is full: it may take {limit} bytes (size=)")]
    Full {
        /// Bytes of content that it may have.
        limit: u64,
    },
    /// The file.
    #[error("cannot {what} the overlay: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> OverlayError {
    move |source| OverlayError::Io { what, source }
}

/// The overlay of a disk.
#[derive(Debug)]
pub struct Overlay {
    file: File,
    map: SectorMap,
    /// Bytes of the disk.
    length: u64,
    /// Bytes of content that it may have.
    limit: u64,
    kept: bool,
}

impl Overlay {
    /// One that is for this VM only, in `file`, which is empty and which nobody else has.
    pub fn scratch(file: File, length: u64, limit: Option<u64>) -> Self {
        let limit = limit.unwrap_or(u64::MAX);
        Self { file, map: SectorMap::default(), length, limit, kept: false }
    }

    /// One that is kept in `file`: a new one if that is empty, else what was written before.
    ///
    /// # Errors
    /// The file is no overlay of this disk, another VM has it, or it cannot be read or written.
    pub fn kept(
        file: File,
        manifest: &ManifestId,
        length: u64,
        limit: Option<u64>,
    ) -> Result<Self, OverlayError> {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(OverlayError::Locked),
            Err(error) => return Err(failed("lock")(error.into())),
        }
        let mut overlay = Self { kept: true, ..Self::scratch(file, length, limit) };
        let size = overlay.file.metadata().map_err(failed("inspect"))?.len();
        if size == 0 {
            overlay.begin(manifest)?;
        } else {
            overlay.check(manifest)?;
            overlay.restore()?;
        }
        Ok(overlay)
    }

    /// Where header and map begin in the file.
    fn tail(&self) -> u64 {
        // Disks are bounded far below what a file can have.
        self.length.next_multiple_of(PAGE)
    }

    fn begin(&self, manifest: &ManifestId) -> Result<(), OverlayError> {
        let header = [&MAGIC[..], &self.length.to_le_bytes(), &manifest.0].concat();
        self.file.write_all_at(&header, self.tail()).map_err(failed("begin"))?;
        self.file.sync_all().map_err(failed("begin"))
    }

    fn check(&self, manifest: &ManifestId) -> Result<(), OverlayError> {
        let mut header = [0; HEADER_BYTES];
        match self.file.read_exact_at(&mut header, self.tail()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(OverlayError::NoOverlay);
            }
            Err(error) => return Err(failed("read")(error)),
        }
        let (magic, rest) = header.split_at(8);
        let (length, id) = rest.split_at(8);
        if magic != MAGIC || length != self.length.to_le_bytes() {
            return Err(OverlayError::NoOverlay);
        }
        if id == manifest.0 {
            return Ok(());
        }
        let mut other = ManifestId([0; 32]);
        other.0.copy_from_slice(id);
        Err(OverlayError::OtherImage(other))
    }

    fn restore(&mut self) -> Result<(), OverlayError> {
        let sectors = self.length / SECTOR;
        let first = self.tail() + PAGE;
        let mut bytes = [0; REGION_BYTES];
        let step = u64::try_from(REGION_BYTES).unwrap_or(PAGE);
        let regions = sectors.div_ceil(REGION_SECTORS);
        let mut number = 0;
        while number < regions {
            // Of a large disk little is written: what is a hole is passed over.
            let here = first + number * step;
            let data = match seek(&self.file, SeekFrom::Data(here)) {
                Ok(data) => data,
                Err(Errno::NXIO) => break,
                Err(_) => here,
            };
            number = number.max((data - first) / step);
            if number >= regions {
                break;
            }
            match self.file.read_exact_at(&mut bytes, first + number * step) {
                Ok(()) => self.map.restore(number, &bytes, sectors),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(failed("read")(error)),
            }
            number += 1;
        }
        Ok(())
    }

    /// Bytes of content that it has.
    pub fn bytes(&self) -> u64 {
        self.map.data_sectors() * SECTOR
    }

    /// The sectors of `range`, in parts that are each of one state.
    pub fn runs(&self, range: Range<u64>) -> Vec<(Range<u64>, State)> {
        self.map.runs(range)
    }

    /// Reads content that it has, as [`Self::runs`] says.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), OverlayError> {
        self.file.read_exact_at(buffer, offset).map_err(failed("read"))
    }

    /// Takes in what is written: whole sectors of the disk.
    ///
    /// # Errors
    /// It is full, or the host's disk is, or the file cannot be written.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), OverlayError> {
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let sectors = offset / SECTOR..offset.saturating_add(length) / SECTOR;
        let new = self.map.without_data(sectors.clone()) * SECTOR;
        if new > self.limit.saturating_sub(self.bytes()) {
            return Err(OverlayError::Full { limit: self.limit });
        }
        self.file.write_all_at(data, offset).map_err(failed("write to"))?;
        self.map.set_data(sectors);
        Ok(())
    }

    /// Has whole sectors of the disk read as zeros; gives back the space of their content where the file
    /// system can.
    pub fn zero(&mut self, offset: u64, length: u64) {
        self.map.set_zero(offset / SECTOR..offset.saturating_add(length) / SECTOR);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Err(error) = fallocate(&self.file, flags, offset, length) {
            // The map says what is zero, whatever the file holds.
            log::debug!("an overlay's space is not given back: {error}");
        }
    }

    /// Brings all that was written to the disk.
    ///
    /// # Errors
    /// The host's disk is full, or fails.
    pub fn flush(&mut self) -> Result<(), OverlayError> {
        self.file.sync_data().map_err(failed("sync"))?;
        if !self.kept {
            return Ok(());
        }
        let changed = self.map.take_changed();
        if changed.is_empty() {
            return Ok(());
        }
        let written = self.write_map(&changed);
        if written.is_err() {
            self.map.change_again(changed.iter().map(|(number, _)| *number));
        }
        written
    }

    fn write_map(&self, changed: &[(u64, [u8; REGION_BYTES])]) -> Result<(), OverlayError> {
        let step = u64::try_from(REGION_BYTES).unwrap_or(PAGE);
        for (number, bytes) in changed {
            let at = self.tail() + PAGE + number * step;
            self.file.write_all_at(bytes, at).map_err(failed("write to"))?;
        }
        self.file.sync_data().map_err(failed("sync"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LENGTH: u64 = 5 * (2 << 20) + 3 * 512;
    const ID: ManifestId = ManifestId([7; 32]);

    /// What a guest would read where nothing but zeros is below.
    fn content(overlay: &Overlay) -> Vec<u8> {
        let mut all = vec![0; usize::try_from(LENGTH).unwrap()];
        for (run, state) in overlay.runs(0..LENGTH / SECTOR) {
            if state == State::Data {
                let bytes = usize::try_from(run.start * SECTOR).unwrap()
                    ..usize::try_from(run.end * SECTOR).unwrap();
                overlay.read(run.start * SECTOR, &mut all[bytes]).unwrap();
            }
        }
        all
    }

    fn open(path: &std::path::Path) -> File {
        File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    /// Opens an overlay that was closed. Other tests start programs, which have its lock until they are
    /// executed.
    fn reopen(path: &std::path::Path) -> Overlay {
        loop {
            match Overlay::kept(open(path), &ID, LENGTH, None) {
                Err(OverlayError::Locked) => std::thread::yield_now(),
                opened => return opened.unwrap(),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn it_is_a_disk_and_is_the_same_when_it_is_opened_again(
            acts in prop::collection::vec(
                (0..LENGTH / SECTOR, 1..64_u64, any::<u8>(), 0..4_u8), 1..30),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("overlay");
            let mut model = vec![0; usize::try_from(LENGTH).unwrap()];
            let mut overlay = Overlay::kept(open(&path), &ID, LENGTH, None).unwrap();
            for (start, count, byte, act) in acts {
                let sectors = start..(start + count).min(LENGTH / SECTOR);
                let bytes = usize::try_from(sectors.start * SECTOR).unwrap()
                    ..usize::try_from(sectors.end * SECTOR).unwrap();
                match act {
                    0 => {
                        overlay.zero(sectors.start * SECTOR, bytes.len() as u64);
                        model[bytes].fill(0);
                    }
                    1 => {
                        overlay.flush().unwrap();
                        drop(overlay);
                        overlay = reopen(&path);
                    }
                    _ => {
                        model[bytes.clone()].fill(byte);
                        overlay.write(sectors.start * SECTOR, &model[bytes]).unwrap();
                    }
                }
                prop_assert!(content(&overlay) == model);
            }
        }
    }

    #[test]
    fn it_takes_no_more_than_it_may_and_says_so() {
        let file = tempfile::tempfile().unwrap();
        let mut overlay = Overlay::scratch(file, LENGTH, Some(8 * SECTOR));
        overlay.write(0, &[1; 8 * 512]).unwrap();
        overlay.write(512, &[2; 512]).unwrap();
        let error = overlay.write(8 * SECTOR, &[3; 512]).unwrap_err();
        assert!(error.to_string().contains("4096 bytes"), "{error}");
        overlay.zero(0, 2 * SECTOR);
        overlay.write(8 * SECTOR, &[3; 1024]).unwrap();
        overlay.write(0, &[1; 512]).unwrap_err();
        assert_eq!(overlay.bytes(), 8 * SECTOR);
    }

    #[test]
    fn a_file_is_one_vms_and_one_images() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("overlay");
        let first = Overlay::kept(open(&path), &ID, LENGTH, None).unwrap();
        let again = |id, length| Overlay::kept(open(&path), &id, length, None).unwrap_err();
        assert!(matches!(again(ID, LENGTH), OverlayError::Locked));
        drop(first);
        // A process that another test starts has a copy of the lock until it executes its program.
        let later = |id, length| loop {
            match again(id, length) {
                OverlayError::Locked => std::thread::yield_now(),
                error => break error,
            }
        };
        let other = ManifestId([8; 32]);
        assert!(matches!(later(other, LENGTH), OverlayError::OtherImage(ID)));
        assert!(matches!(later(ID, LENGTH + (1 << 20)), OverlayError::NoOverlay));
        std::fs::write(&path, b"something else").unwrap();
        assert!(matches!(later(ID, LENGTH), OverlayError::NoOverlay));
        assert_eq!(std::fs::read(&path).unwrap(), b"something else");
    }
}
