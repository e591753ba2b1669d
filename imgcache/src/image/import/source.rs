//! Positional reads of the file under import, each checked against the file's end first.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt;

use super::error::ImportError;

/// Bytes that can be read at any offset, without a position shared with other readers.
#[expect(clippy::len_without_is_empty, reason = "emptiness has no meaning for an importer")]
pub trait ReadAt {
    /// Fills `buf` with the bytes at `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when fewer bytes follow; any error of the underlying file.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// The number of bytes that can be read.
    ///
    /// # Errors
    /// Any error of the underlying file.
    fn len(&self) -> io::Result<u64>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buf.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_exact_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        (**self).len()
    }
}

/// A file whose length was taken once, so that every later check is against the same number.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    inner: &'a dyn ReadAt,
    length: u64,
}

impl<'a> Source<'a> {
    pub(super) fn new(inner: &'a dyn ReadAt) -> Result<Self, ImportError> {
        let length = inner.len().map_err(|source| ImportError::Read {
            what: "the file's length",
            offset: 0,
            source,
        })?;
        Ok(Self { inner, length })
    }

    pub(super) fn length(self) -> u64 {
        self.length
    }

    /// Checks that `[offset, offset + length)` is inside the file and returns its end.
    pub(super) fn check(
        self,
        what: &'static str,
        offset: u64,
        length: u64,
    ) -> Result<u64, ImportError> {
        offset.checked_add(length).filter(|end| *end <= self.length).ok_or(ImportError::Truncated {
            what,
            offset,
            length,
            file_length: self.length,
        })
    }

    fn fill(self, what: &'static str, offset: u64, buf: &mut [u8]) -> Result<(), ImportError> {
        self.check(what, offset, buf.len() as u64)?;
        self.inner.read_exact_at(buf, offset).map_err(|source| ImportError::Read {
            what,
            offset,
            source,
        })
    }

    /// The `N` bytes at `offset`.
    pub(super) fn array<const N: usize>(
        self,
        what: &'static str,
        offset: u64,
    ) -> Result<[u8; N], ImportError> {
        let mut bytes = [0; N];
        self.fill(what, offset, &mut bytes)?;
        Ok(bytes)
    }

    /// The `length` bytes at `offset`. Memory is taken only after the check against the file's
    /// length; the caller bounds `length` where the file's own length is no sensible bound.
    pub(super) fn bytes(
        self,
        what: &'static str,
        offset: u64,
        length: u64,
    ) -> Result<Vec<u8>, ImportError> {
        self.check(what, offset, length)?;
        let size = usize::try_from(length)
            .map_err(|_| ImportError::TooLarge { what, limit: usize::MAX as u64 })?;
        let mut bytes = vec![0; size];
        self.fill(what, offset, &mut bytes)?;
        Ok(bytes)
    }

    /// At most `N` bytes at `offset`, fewer at the end of the file.
    pub(super) fn head<const N: usize>(
        self,
        what: &'static str,
        offset: u64,
    ) -> Result<Vec<u8>, ImportError> {
        self.bytes(what, offset, (N as u64).min(self.length.saturating_sub(offset)))
    }

    /// A buffered reader of `[start, end)`; the caller has checked the range.
    pub(super) fn window(self, start: u64, end: u64) -> Window<'a> {
        Window { source: self, next: start, end, buffer: Vec::new(), taken: 0 }
    }
}

/// Size of the pieces in which a [`Window`] reads the file.
const WINDOW_BUFFER: u64 = 128 << 10;

/// A buffered reader of a range of the file that knows which byte comes next.
pub(super) struct Window<'a> {
    source: Source<'a>,
    /// Offset in the file of the first byte after `buffer`.
    next: u64,
    end: u64,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that the consumer has taken.
    taken: usize,
}

impl Window<'_> {
    /// Offset in the file of the first byte that was not consumed.
    pub(super) fn position(&self) -> u64 {
        self.next - (self.buffer.len() - self.taken) as u64
    }

    /// Bytes left to consume.
    pub(super) fn remaining(&self) -> u64 {
        self.end - self.position()
    }

    /// The next `N` bytes without consuming them, or none if fewer are left.
    pub(super) fn peek<const N: usize>(&self) -> io::Result<Option<[u8; N]>> {
        if self.remaining() < N as u64 {
            return Ok(None);
        }
        let mut bytes = [0; N];
        self.source.inner.read_exact_at(&mut bytes, self.position())?;
        Ok(Some(bytes))
    }
}

impl BufRead for Window<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.taken == self.buffer.len() && self.next < self.end {
            let length = WINDOW_BUFFER.min(self.end - self.next);
            // Empty while reading: an error must not leave bytes of the last piece behind.
            let mut buffer = std::mem::take(&mut self.buffer);
            self.taken = 0;
            buffer.resize(usize::try_from(length).map_err(io::Error::other)?, 0);
            self.source.inner.read_exact_at(&mut buffer, self.next)?;
            self.buffer = buffer;
            self.next += length;
        }
        Ok(&self.buffer[self.taken..])
    }

    fn consume(&mut self, amount: usize) {
        self.taken = self.buffer.len().min(self.taken.saturating_add(amount));
    }
}

impl Read for Window<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buf.len());
        buf[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_refuse_ranges_beyond_their_end() {
        let data = vec![1, 2, 3];
        let mut two = [0; 2];
        data.read_exact_at(&mut two, 1).unwrap();
        assert_eq!(two, [2, 3]);
        assert!(data.read_exact_at(&mut two, 2).is_err());
        assert!(data.read_exact_at(&mut two, u64::MAX).is_err());
    }

    #[test]
    fn files_and_slices_read_alike() {
        use std::io::Write;
        let data: Vec<u8> = (0..=255).cycle().take(300_000).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&data).unwrap();
        for reader in [&file as &dyn ReadAt, &data] {
            let source = Source::new(reader).unwrap();
            assert_eq!(source.length(), 300_000);
            assert_eq!(source.bytes("range", 1000, 5000).unwrap(), data[1000..6000]);
            let mut rest = Vec::new();
            let mut window = source.window(10, 299_999);
            window.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, data[10..299_999]);
            assert_eq!((window.position(), window.remaining()), (299_999, 0));
        }
    }

    #[test]
    fn a_length_from_the_file_takes_no_memory_before_the_check() {
        let data = vec![0; 8];
        let error = Source::new(&data).unwrap().bytes("payload", 4, u64::MAX - 2).unwrap_err();
        assert!(matches!(error, ImportError::Truncated { offset: 4, file_length: 8, .. }));
    }
}
