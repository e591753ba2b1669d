//! Takes in the content of segments and cuts it into chunks.

use std::io::{self, Write};

use super::writer::Writer;
use super::{NewSegment, PushProgress};
use crate::image::manifest::{ChunkEntry, MAX_IMAGE_BYTES, ManifestError};
use crate::image::name::ImageName;
use crate::store::error::StoreError;

/// What has been taken in so far.
pub(super) struct Intake<'s, 'p> {
    pub(super) writer: Writer<'s>,
    /// In bytes.
    pub(super) chunk_size: usize,
    pub(super) chunks: Vec<ChunkEntry>,
    /// Bytes of the segment that were cut into chunks.
    pub(super) segment_done: u64,
    /// The begin of the next chunk; shorter than a chunk.
    pub(super) partial: Vec<u8>,
    /// Bytes of all segments.
    pub(super) done: u64,
    pub(super) total: Option<u64>,
    pub(super) progress: Option<PushProgress<'p>>,
    /// Why a write was refused; an `io::Error` cannot carry it through other code whole.
    pub(super) failure: Option<StoreError>,
}

impl Intake<'_, '_> {
    /// Takes in a whole segment; returns what its content is to be noted for.
    pub(super) fn take(
        &mut self,
        name: &ImageName,
        index: usize,
        segment: NewSegment<'_>,
    ) -> Result<Vec<String>, StoreError> {
        self.segment_done = 0;
        self.writer.begin_segment(segment.data_length)?;
        let notes = (segment.content)(self);
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let incomplete = |offset, source| StoreError::Source {
            image: name.clone(),
            segment: index,
            offset,
            source,
        };
        let notes = notes.map_err(|source| incomplete(self.segment_done, source))?;
        let last = std::mem::take(&mut self.partial);
        if !last.is_empty() {
            self.cut(&last)?;
        }
        if self.done > MAX_IMAGE_BYTES {
            let source = ManifestError::TotalLength(self.done);
            return Err(StoreError::InvalidImage { image: name.clone(), source });
        }
        if let Some(expected) = segment.data_length.filter(|length| *length != self.segment_done) {
            let reason = format!("{expected} bytes were to come");
            return Err(incomplete(self.segment_done, reason.into()));
        }
        self.writer.end_segment(self.segment_done)?;
        Ok(notes)
    }

    fn cut(&mut self, content: &[u8]) -> Result<(), StoreError> {
        let entry = self.writer.add(self.segment_done, content)?;
        self.chunks.push(entry);
        let length = u64::try_from(content.len()).unwrap_or(u64::MAX);
        self.segment_done += length;
        self.done += length;
        if let Some(progress) = &mut self.progress {
            progress(self.done, self.total);
        }
        Ok(())
    }

    /// Takes in the first bytes of `content`; returns how many.
    fn take_some(&mut self, content: &[u8]) -> Result<usize, StoreError> {
        if self.partial.is_empty()
            && let Some(chunk) = content.get(..self.chunk_size)
        {
            self.cut(chunk)?;
            return Ok(chunk.len());
        }
        let missing = self.chunk_size - self.partial.len();
        let taken = content.get(..missing).unwrap_or(content);
        self.partial.extend_from_slice(taken);
        if self.partial.len() == self.chunk_size {
            let mut chunk = std::mem::take(&mut self.partial);
            self.cut(&chunk)?;
            chunk.clear();
            self.partial = chunk;
        }
        Ok(taken.len())
    }
}

impl Write for Intake<'_, '_> {
    fn write(&mut self, content: &[u8]) -> io::Result<usize> {
        // Content without end must not fill the disk before it is refused.
        if self.done > MAX_IMAGE_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.take_some(content).map_err(|failure| {
            let told = io::Error::other(failure.to_string());
            self.failure = Some(failure);
            told
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
