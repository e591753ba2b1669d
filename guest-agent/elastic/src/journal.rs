//! What a server keeps in a file, so that it has it again when it was killed.
//!
//! Records are appended in the order in which they were made, each as a frame of [`crate::wire`] with a
//! checksum. A record that was not completely written was not acknowledged, and is cut off. The file is
//! written anew when the server starts.
//!
//! A process that is killed loses nothing. What a host loses that loses its power is another question:
//! [`Journal::open`] with `sync` waits for the disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::TransferId;
use crate::node::{Chunk, Kind, Message, Objects, Record, Recovered, Step};
use crate::range::Range;
use crate::wire::{self, Encoded, Frame, HEADER};

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file could not be read or written.
    #[error("{0}: {1}; see to its folder's rights and room")]
    Io(PathBuf, #[source] io::Error),
}

/// The file of a server.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    sync: bool,
}

/// What a record is, before the frame that has its content.
const WRITE: u8 = 1;
const STAGE: u8 = 2;
const PREPARED: u8 = 3;
const ADOPT: u8 = 4;
const DROP: u8 = 5;
const DISCARD: u8 = 6;

impl Journal {
    /// The journal at `path`, and what it has. With `sync` each record is on the disk before it counts.
    ///
    /// # Errors
    /// When it cannot be read, or not be written anew.
    pub fn open(path: &Path, sync: bool) -> Result<(Self, Recovered), JournalError> {
        let failed = |error| JournalError::Io(path.to_owned(), error);
        let recovered = match File::open(path) {
            Ok(file) => replay(&mut BufReader::with_capacity(1 << 20, file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Recovered::default(),
            Err(error) => return Err(failed(error)),
        };
        let new = path.with_extension("new");
        let mut journal =
            Self { path: path.to_owned(), file: File::create(&new).map_err(failed)?, sync };
        journal.write_all(&recovered).map_err(failed)?;
        journal.file.sync_data().map_err(failed)?;
        fs::rename(&new, path).map_err(failed)?;
        Ok((journal, recovered))
    }

    /// Keeps a record.
    ///
    /// # Errors
    /// When it cannot be written. The server must not go on then: what it says next would not be true.
    pub fn keep(&mut self, record: &Record) -> Result<(), JournalError> {
        self.append(record).map_err(|error| JournalError::Io(self.path.clone(), error))?;
        if self.sync {
            self.file.sync_data().map_err(|error| JournalError::Io(self.path.clone(), error))?;
        }
        Ok(())
    }

    /// All of `recovered`, as records.
    fn write_all(&mut self, recovered: &Recovered) -> io::Result<()> {
        let none = TransferId { source: crate::Peer(0), life: 0, number: 0 };
        let stages = |id: TransferId, objects: &Objects, journal: &mut Self| -> io::Result<()> {
            journal.append(&Record::Stage(id, Vec::new(), objects.sessions().collect()))?;
            for (key, value) in objects.iter() {
                journal.append(&Record::Stage(
                    id,
                    vec![(key.clone(), Some(value.clone()))],
                    Vec::new(),
                ))?;
            }
            Ok(())
        };
        stages(none, &recovered.objects, self)?;
        self.append(&Record::Adopt(none, Range::ALL))?;
        for (id, range, epoch, objects) in &recovered.prepared {
            stages(*id, objects, self)?;
            self.append(&Record::Prepared { transfer: *id, range: *range, epoch: *epoch })?;
        }
        Ok(())
    }

    fn append(&mut self, record: &Record) -> io::Result<()> {
        let none = TransferId { source: crate::Peer(0), life: 0, number: 0 };
        let chunk =
            |objects, sessions| Step::Chunk(Chunk { objects, sessions, ..Chunk::default() });
        let begin = |range, epoch| Step::Begin { kind: Kind::Move, range, epoch };
        let (kind, id, step) = match record {
            Record::Write(key, value, session) => {
                (WRITE, none, chunk(vec![(key.clone(), value.clone())], vec![*session]))
            }
            Record::Stage(id, objects, sessions) => {
                (STAGE, *id, chunk(objects.clone(), sessions.clone()))
            }
            Record::Prepared { transfer, range, epoch } => {
                (PREPARED, *transfer, begin(*range, *epoch))
            }
            Record::Adopt(id, range) => (ADOPT, *id, begin(*range, 0)),
            Record::Drop(id) => (DROP, *id, Step::Abort),
            Record::Discard(range) => (DISCARD, none, begin(*range, 0)),
        };
        let frame = Encoded::new(&Frame::Peer(Message::Transfer(id, step)));
        let mut head = [0; 9];
        head[0] = kind;
        head[1..].copy_from_slice(&sum_of(frame.pieces()).to_le_bytes());
        write_pieces(&mut self.file, &[&[Bytes::copy_from_slice(&head)], frame.pieces()].concat())
    }
}

/// The checksum of all pieces together.
fn sum_of(pieces: &[Bytes]) -> u64 {
    let mut hasher = twox_hash::XxHash3_64::new();
    for piece in pieces {
        std::hash::Hasher::write(&mut hasher, piece);
    }
    std::hash::Hasher::finish(&hasher)
}

/// Writes all pieces with few calls.
pub(crate) fn write_pieces(to: &mut impl Write, pieces: &[Bytes]) -> io::Result<()> {
    if let [piece] = pieces {
        return to.write_all(piece);
    }
    for group in pieces.chunks(512) {
        let mut slices: Vec<_> = group.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut slices = slices.as_mut_slice();
        while !slices.is_empty() {
            match to.write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut slices, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// What the records say, up to the first that is not whole.
fn replay(from: &mut impl Read) -> Recovered {
    let mut recovered = Recovered::default();
    let mut staged: BTreeMap<TransferId, Objects> = BTreeMap::new();
    let mut prepared: BTreeMap<TransferId, (Range, u64)> = BTreeMap::new();
    while let Some((kind, id, step)) = record(from) {
        let put = |objects: &mut Objects, chunk: Chunk| {
            for (key, value) in chunk.objects {
                objects.set(key, value);
            }
            for session in chunk.sessions {
                objects.remember(session, 0);
            }
        };
        match (kind, step) {
            (WRITE, Step::Chunk(chunk)) => put(&mut recovered.objects, chunk),
            (STAGE, Step::Chunk(chunk)) => put(staged.entry(id).or_default(), chunk),
            (PREPARED, Step::Begin { range, epoch, .. }) => {
                staged.entry(id).or_default();
                prepared.insert(id, (range, epoch));
            }
            (ADOPT, Step::Begin { range, .. }) => {
                prepared.remove(&id);
                recovered.objects.leave(range);
                recovered.objects.adopt(staged.remove(&id).unwrap_or_default(), 0);
            }
            (DROP, Step::Abort) => {
                prepared.remove(&id);
                staged.remove(&id);
            }
            (DISCARD, Step::Begin { range, .. }) => {
                recovered.objects.leave(range);
            }
            _ => break,
        }
    }
    for (id, (range, epoch)) in prepared {
        recovered.prepared.push((id, range, epoch, staged.remove(&id).unwrap_or_default()));
    }
    recovered
}

fn record(from: &mut impl Read) -> Option<(u8, TransferId, Step)> {
    let (mut head, mut header) = ([0; 9], [0; HEADER]);
    from.read_exact(&mut head).ok()?;
    from.read_exact(&mut header).ok()?;
    let [kind, sum @ ..] = head;
    let (frame, length) = wire::header(header).ok()?;
    let mut body = vec![0; length];
    from.read_exact(&mut body).ok()?;
    let body = Bytes::from(body);
    if sum_of(&[Bytes::copy_from_slice(&header), body.clone()]) != u64::from_le_bytes(sum) {
        return None;
    }
    match wire::decode(frame, body).ok()? {
        Frame::Peer(Message::Transfer(id, step)) => Some((kind, id, step)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::Peer;
    use crate::node::Session;
    use crate::range::Key;

    fn write(name: &str, value: Option<&'static [u8]>, seq: u64) -> Record {
        let session =
            Session { id: 9, seq, existed: false, wrote: Some(Key::of(name.as_bytes()).id()) };
        Record::Write(Key::of(name.as_bytes()), value.map(Bytes::from_static), session)
    }

    #[test]
    fn a_journal_cut_anywhere_has_what_was_written_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (mut journal, _) = Journal::open(&path, false).unwrap();
        let id = TransferId { source: Peer(3), life: 4, number: 5 };
        let mut ends = vec![fs::metadata(&path).unwrap().len()];
        let records = [
            write("a", Some(b"1"), 1),
            write("b", Some(&[7; 9000]), 2),
            write("a", None, 3),
            Record::Stage(id, vec![(Key::of(b"c"), Some(Bytes::from_static(b"2")))], Vec::new()),
            Record::Prepared { transfer: id, range: Range::ALL, epoch: 8 },
        ];
        for record in &records {
            journal.keep(record).unwrap();
            ends.push(fs::metadata(&path).unwrap().len());
        }
        let whole = fs::read(&path).unwrap();
        for length in (0..whole.len())
            .filter(|at| at % 97 == 0 || ends.contains(&(*at as u64)))
            .chain([whole.len()])
        {
            let count = ends.iter().skip(1).filter(|end| **end <= length as u64).count();
            let copy = folder.path().join("copy");
            fs::write(&copy, &whole[..length]).unwrap();
            let recovered = Journal::open(&copy, false).unwrap().1;
            let again = Journal::open(&copy, false).unwrap().1;
            for recovered in [recovered, again] {
                assert_eq!(
                    recovered.objects.get(&Key::of(b"a")).is_some(),
                    (1..3).contains(&count),
                    "{length}"
                );
                assert_eq!(recovered.objects.get(&Key::of(b"b")).is_some(), count >= 2);
                assert_eq!(
                    recovered.objects.session(9).map_or(0, |it| it.seq),
                    count.min(3) as u64
                );
                assert_eq!(recovered.prepared.len(), usize::from(count == 5));
            }
        }
        // A byte that was changed ends it as well.
        let mut changed = whole.clone();
        let at = usize::try_from(ends[1]).unwrap() + 40;
        changed[at] ^= 1;
        fs::write(&path, changed).unwrap();
        let recovered = Journal::open(&path, false).unwrap().1;
        assert!(
            recovered.objects.get(&Key::of(b"a")).is_some()
                && recovered.objects.get(&Key::of(b"b")).is_none()
        );
    }
}
