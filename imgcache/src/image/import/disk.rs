//! The content of a block device: a raw file, taken as it is. What is in it is the guest's business, so
//! nothing of it is looked at, and it is never taken for another format.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::ImportError;
use crate::image::manifest::{MAX_DISK_CHUNKS, MAX_IMAGE_BYTES, SECTOR};

/// Bytes that are read at a time: a chunk of any size ends with it.
const STEP: usize = 1 << 20;

/// The size of the disk in `file`, in bytes, if an image in chunks of `chunk_size` can have it.
///
/// # Errors
/// [`ImportError::DiskLength`], or the file cannot be asked.
pub fn disk_length(file: &File, chunk_size: u32) -> Result<u64, ImportError> {
    let length = file.metadata().map_err(failed(0))?.len();
    let limit = (u64::from(MAX_DISK_CHUNKS) * u64::from(chunk_size)).min(MAX_IMAGE_BYTES);
    if length == 0 || !length.is_multiple_of(SECTOR) || length > limit {
        return Err(ImportError::DiskLength { length, chunk_size, limit });
    }
    Ok(length)
}

/// Writes the first `length` bytes of `file` to `sink`; its holes are not read.
///
/// # Errors
/// The file cannot be read, has become shorter, or the sink refuses.
pub fn import_disk(file: &File, length: u64, sink: &mut dyn Write) -> Result<(), ImportError> {
    let zeros = vec![0; STEP];
    let mut buffer = vec![0; STEP];
    let mut offset = 0;
    let mut data = next_data(file, 0)?;
    while offset < length {
        let step = usize::try_from(length - offset).unwrap_or(STEP).min(STEP);
        let end = offset + u64::try_from(step).unwrap_or(0);
        if data.is_some_and(|data| data < offset) {
            data = next_data(file, offset)?;
        }
        let content = if data.is_some_and(|data| data < end) {
            let part = buffer.get_mut(..step).unwrap_or_default();
            file.read_exact_at(part, offset).map_err(failed(offset))?;
            part
        } else {
            zeros.get(..step).unwrap_or_default()
        };
        sink.write_all(content).map_err(failed(offset))?;
        offset = end;
    }
    // What has become shorter meanwhile looks like a hole.
    if file.metadata().map_err(failed(length))?.len() < length {
        return Err(failed(length)(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(())
}

/// Where the next data of `file` is, from `offset` on; `None` if there is none. A file system that
/// knows no holes says that all is data.
fn next_data(file: &File, offset: u64) -> Result<Option<u64>, ImportError> {
    match seek(file, SeekFrom::Data(offset)) {
        Ok(next) => Ok(Some(next)),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::NOTSUP) => Ok(Some(offset)),
        Err(error) => Err(failed(offset)(error.into())),
    }
}

fn failed(offset: u64) -> impl FnOnce(io::Error) -> ImportError {
    move |source| ImportError::Read { what: "the disk", offset, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_and_holes_arrive_as_they_are() {
        let file = tempfile::tempfile().unwrap();
        let length = 5 * (1 << 20) + 512;
        file.set_len(length).unwrap();
        for (offset, byte) in [(0, 1), ((1 << 20) - 1, 2), (3 << 20, 3), (length - 1, 4)] {
            file.write_all_at(&[byte], offset).unwrap();
        }
        let mut expected = vec![0; usize::try_from(length).unwrap()];
        file.read_exact_at(&mut expected, 0).unwrap();
        let mut found = Vec::new();
        assert_eq!(disk_length(&file, 4096).unwrap(), length);
        import_disk(&file, length, &mut found).unwrap();
        assert!(found == expected);
        import_disk(&file, length + 512, &mut Vec::new()).unwrap_err();
    }

    #[test]
    fn sizes_that_no_disk_has_are_refused_before_anything_is_read() {
        let file = tempfile::tempfile().unwrap();
        for (length, chunk_size, good) in [
            (0, 4096, false),
            (511, 4096, false),
            (513, 4096, false),
            (512, 4096, true),
            (4 << 30, 4096, true),
            ((4 << 30) + 512, 4096, false),
            (10 << 30, 256 << 10, true),
            (64 << 30, 64 << 10, true),
            ((64 << 30) + 512, 1 << 20, false),
        ] {
            file.set_len(length).unwrap();
            assert_eq!(disk_length(&file, chunk_size).is_ok(), good, "{length} {chunk_size}");
        }
    }
}
