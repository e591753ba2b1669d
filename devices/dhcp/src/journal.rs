//! The journal: what a server must still know when it starts again.
//!
//! A file of records, each with its length and checksum; new ones are appended. What a crash has left of the last
//! one is cut off. When there is much more in the file than it takes to say the same, a new file takes its place.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::mirror::{State, Step};

/// The name of the file, and of the one that takes its place.
const NAME: &str = "journal";
const NEW_NAME: &str = "journal.new";
const LOCK_NAME: &str = "lock";
/// What the file begins with: the name and version of the format.
const MAGIC: &[u8; 8] = b"vmmdhcp1";
/// Length and checksum.
const HEAD_BYTES: usize = 8;
/// The longest record, in bytes: a snapshot of the largest table.
const MOST_RECORD_BYTES: usize = 64 << 20;
/// A file is never replaced that has fewer bytes.
const LEAST_COMPACTED: u64 = 1 << 20;

/// What can be wrong with the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Of the file.
    #[error("cannot {what} '{}': {source}", path.display())]
    Io {
        /// What.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another server uses the directory.
    #[error("another server runs with the state in '{}'; give each its own --state", .0.display())]
    InUse(PathBuf),
    /// Not a journal.
    #[error("'{}' is no journal of this version; move it away if nothing in it is needed", .0.display())]
    Format(PathBuf),
    /// Damaged in the middle.
    #[error(
        "'{}' is damaged at byte {at}: there are whole records behind it; take the directory of a mirror, or \
         move it away and start as a mirror", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where, in bytes.
        at: usize,
    },
    /// Longer than a record may be.
    #[error("a record of {0} bytes; at most {MOST_RECORD_BYTES} are read again")]
    Long(usize),
}

/// What is in a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// Who this server is, from its first start on.
    Node(u64),
    /// It has promised to take part in no epoch before this.
    Promised(u64),
    /// All that was before is this.
    State(State),
    /// Steps that were taken after it.
    Steps(Vec<Step>),
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    file: File,
    bytes: u64,
    compacted: u64,
    /// Held until the end.
    _lock: File,
}

impl Journal {
    /// Opens the journal in `folder`, which is made if it is not there, with what it says.
    ///
    /// # Errors
    /// It is in use, damaged, or the files cannot be used.
    pub fn open(folder: &Path) -> Result<(Self, Vec<Record>), JournalError> {
        std::fs::create_dir_all(folder).map_err(failed("make", folder))?;
        let lock_path = folder.join(LOCK_NAME);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let lock = options.open(&lock_path).map_err(failed("open", &lock_path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| JournalError::InUse(folder.to_owned()))?;
        let path = folder.join(NAME);
        let mut options = OpenOptions::new();
        let options = options.read(true).append(true).create(true);
        let mut file = options.open(&path).map_err(failed("open", &path))?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(failed("read", &path))?;
        let (records, good) = read(&content, &path)?;
        if good < content.len() {
            log::warn!("{}: cut off {} bytes of a crash", path.display(), content.len() - good);
            file.set_len(good as u64).map_err(failed("cut", &path))?;
        }
        if good == 0 {
            file.write_all(MAGIC).map_err(failed("write", &path))?;
        }
        let bytes = good.max(MAGIC.len()) as u64;
        let folder = folder.to_owned();
        Ok((Self { folder, file, bytes, compacted: 0, _lock: lock }, records))
    }

    /// Appends `records`. With `sync`, they are on the disk when this returns.
    ///
    /// # Errors
    /// They could not be written.
    pub fn append(&mut self, records: &[Record], sync: bool) -> Result<(), JournalError> {
        let mut bytes = Vec::new();
        for record in records {
            encode(record, &mut bytes)?;
        }
        let path = self.folder.join(NAME);
        self.file.write_all(&bytes).map_err(failed("write", &path))?;
        self.bytes += bytes.len() as u64;
        if sync {
            self.file.sync_data().map_err(failed("write", &path))?;
        }
        Ok(())
    }

    /// Whether it is time for [`Journal::replace`].
    pub fn is_long(&self) -> bool {
        self.bytes > LEAST_COMPACTED.max(self.compacted.saturating_mul(4))
    }

    /// Has a new file with `records` take the place of this one: after a crash there is the one or the other.
    ///
    /// # Errors
    /// The new one cannot be made.
    pub fn replace(&mut self, records: &[Record]) -> Result<(), JournalError> {
        let mut bytes = MAGIC.to_vec();
        for record in records {
            encode(record, &mut bytes)?;
        }
        let (new, path) = (self.folder.join(NEW_NAME), self.folder.join(NAME));
        let _ = std::fs::remove_file(&new); // what a crash has left
        let mut options = OpenOptions::new();
        let mut file =
            options.append(true).create_new(true).open(&new).map_err(failed("make", &new))?;
        file.write_all(&bytes).map_err(failed("write", &new))?;
        file.sync_all().map_err(failed("write", &new))?;
        std::fs::rename(&new, &path).map_err(failed("replace", &path))?;
        let folder = File::open(&self.folder).map_err(failed("open", &self.folder))?;
        folder.sync_all().map_err(failed("write", &self.folder))?;
        self.file = file;
        self.bytes = bytes.len() as u64;
        self.compacted = self.bytes;
        Ok(())
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    move |source| JournalError::Io { what, path: path.to_owned(), source }
}

fn encode(record: &Record, bytes: &mut Vec<u8>) -> Result<(), JournalError> {
    let body = postcard::to_stdvec(record).unwrap_or_default(); // there is room in memory: it cannot fail
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MOST_RECORD_BYTES);
    let length = length.ok_or(JournalError::Long(body.len()))?;
    bytes.extend(length.to_le_bytes());
    bytes.extend(crc32c::crc32c(&body).to_le_bytes());
    bytes.extend(body);
    Ok(())
}

/// One record of `content`, and how many bytes it has.
fn decode(content: &[u8]) -> Option<(Record, usize)> {
    let (head, rest) = content.split_first_chunk::<HEAD_BYTES>()?;
    let [a, b, c, d, checksum @ ..] = *head;
    let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()?;
    let body = rest.get(..length).filter(|_| (1..=MOST_RECORD_BYTES).contains(&length))?;
    if crc32c::crc32c(body) != u32::from_le_bytes(checksum) {
        return None;
    }
    let (record, left) = postcard::take_from_bytes(body).ok()?;
    left.is_empty().then_some((record, HEAD_BYTES + length))
}

/// The records in `content`, and how many of its bytes they have.
fn read(content: &[u8], path: &Path) -> Result<(Vec<Record>, usize), JournalError> {
    let Some(mut rest) = content.strip_prefix(MAGIC) else {
        // A crash in the first moment.
        let torn = MAGIC.starts_with(content);
        return if torn { Ok((Vec::new(), 0)) } else { Err(JournalError::Format(path.into())) };
    };
    let mut records = Vec::new();
    while !rest.is_empty() {
        let at = content.len() - rest.len();
        let Some((record, length)) = decode(rest) else {
            let next = rest.first_chunk::<4>().map(|length| u32::from_le_bytes(*length));
            let next =
                next.and_then(|length| usize::try_from(length).ok()?.checked_add(HEAD_BYTES));
            // A crash leaves nothing whole behind what it has torn.
            if next.and_then(|next| rest.get(next..)).and_then(decode).is_some() {
                return Err(JournalError::Damaged { path: path.into(), at });
            }
            return Ok((records, at));
        };
        records.push(record);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok((records, content.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::table::Change;

    fn steps(n: u8) -> Record {
        Record::Steps(vec![Step::Change(Change::Free([10, 0, 0, n].into()))])
    }

    #[test]
    fn what_is_appended_is_read_again_and_only_one_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, records) = Journal::open(folder.path()).unwrap();
        assert_eq!(records, []);
        assert!(matches!(Journal::open(folder.path()), Err(JournalError::InUse(_))));
        journal.append(&[Record::Node(7), steps(1)], true).unwrap();
        journal.append(&[steps(2)], false).unwrap();
        drop(journal);
        let (mut journal, records) = Journal::open(folder.path()).unwrap();
        assert_eq!(records, [Record::Node(7), steps(1), steps(2)]);
        journal.replace(&[Record::Node(7)]).unwrap();
        journal.append(&[steps(3)], true).unwrap();
        drop(journal);
        let (_, records) = Journal::open(folder.path()).unwrap();
        assert_eq!(records, [Record::Node(7), steps(3)]);
    }

    #[test]
    fn damage_in_the_middle_is_no_torn_end() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(folder.path()).unwrap();
        journal.append(&[steps(1), steps(2)], true).unwrap();
        drop(journal);
        let path = folder.path().join(NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[17] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(Journal::open(folder.path()), Err(JournalError::Damaged { at: 8, .. })));
        std::fs::write(&path, "something else").unwrap();
        assert!(matches!(Journal::open(folder.path()), Err(JournalError::Format(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_torn_end_costs_what_was_torn_and_no_more(
            count in 0..6_u8, cut in 0..40_usize, junk in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut bytes = MAGIC.to_vec();
            let mut ends = vec![bytes.len()];
            for n in 0..count {
                encode(&steps(n), &mut bytes).unwrap();
                ends.push(bytes.len());
            }
            let length = bytes.len().saturating_sub(cut);
            bytes.truncate(length);
            let whole = ends.iter().filter(|end| **end <= length).count().saturating_sub(1);
            bytes.extend(&junk);
            if let Ok((records, good)) = read(&bytes, Path::new("journal")) {
                prop_assert!(records.len() >= whole);
                prop_assert!(good <= bytes.len());
            }
        }
    }
}
