//! The store on this host: chunks are read from its packs, or mapped.

use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::{Accept, ChunkRead, MappableExtent, Session, Transport, TransportError};
use crate::image::manifest::{Manifest, SegmentKind};
use crate::image::name::ImageName;
use crate::key::ManifestId;
use crate::parallel;
use crate::store::{OpenImage, Store, StoreError};

const HUGE_PAGE: u64 = 2 << 20;
const PAGE: u64 = 4 << 10;

impl Transport for Store {
    fn name(&self) -> &'static str {
        "embedded"
    }

    fn resolve(&self, name: &ImageName) -> Result<ManifestId, TransportError> {
        Self::resolve(self, name).map_err(Into::into)
    }

    fn open(&self, id: &ManifestId) -> Result<Box<dyn Session>, TransportError> {
        Ok(Box::new(self.open_image(id)?))
    }
}

impl From<StoreError> for TransportError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::UnknownImage(name) => Self::UnknownImage(name),
            StoreError::UnknownManifest(id) => Self::UnknownManifest(id),
            error => Self::Store(error),
        }
    }
}

impl Session for OpenImage {
    fn manifest(&self) -> &Manifest {
        Self::manifest(self)
    }

    fn sealed(&self) -> bool {
        Self::sealed(self)
    }

    fn mappable(&self) -> Vec<MappableExtent> {
        let segments = self.manifest().segments.iter().enumerate();
        segments
            .filter(|(_, segment)| segment.kind == SegmentKind::Initrd)
            .flat_map(|(index, _)| extents(self, index))
            .collect()
    }

    fn fetch(&self, reads: Vec<ChunkRead<'_>>, accept: Accept<'_>) -> Result<(), TransportError> {
        parallel::by_region(
            reads,
            |read| read.buffer.as_ptr().addr(),
            |read| fetch_one(self, read, accept),
        )
    }
}

fn fetch_one(
    image: &OpenImage,
    read: ChunkRead<'_>,
    accept: Accept<'_>,
) -> Result<(), TransportError> {
    let ChunkRead { index, key, buffer } = read;
    let wanted = image.manifest().chunk(index).filter(|chunk| {
        chunk.entry.key == key && usize::try_from(chunk.length) == Ok(buffer.len())
    });
    let place = image.locate(index).and_then(|(pack, at)| Some((image.pack(pack)?, at)));
    let (Some(_), Some((pack, offset))) = (wanted, place) else {
        let (image, length) = (image.id(), buffer.len());
        return Err(TransportError::NoSuchChunk { image, chunk: index, length, key });
    };
    let good = match pack.file.read_exact_at(buffer, offset) {
        Ok(()) => accept(index, buffer),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => false,
        Err(source) => {
            return Err(StoreError::Io { action: "read", path: pack.path.clone(), source }.into());
        }
    };
    if good {
        return Ok(());
    }
    Err(TransportError::DamagedChunk {
        image: image.id(),
        segment: image.manifest().segment_of(index).unwrap_or_default(),
        chunk: index,
        key,
        place: format!("'{}' at byte {offset}", pack.path.display()),
    })
}

/// The parts of a segment that its packs have as whole huge pages, in ascending order.
fn extents(image: &OpenImage, segment: usize) -> Vec<MappableExtent> {
    let chunks: Vec<_> = image.manifest().chunks_of(segment).collect();
    let chunk_size = u64::from(image.manifest().chunk_size).max(1);
    // A power of two of at most 1 MiB, so huge pages begin with a chunk.
    let per_page = usize::try_from(HUGE_PAGE / chunk_size).unwrap_or(1).max(1);
    let mut found: Vec<(usize, MappableExtent)> = Vec::new();
    for page in chunks.chunks(per_page) {
        let Some(first) = page.first() else { continue };
        let Some((pack_index, file_offset)) = image.locate(first.index) else { continue };
        let Some(pack) = image.pack(pack_index) else { continue };
        let contiguous = page.iter().all(|chunk| {
            let expected = file_offset.checked_add(chunk.offset - first.offset);
            image.locate(chunk.index) == expected.map(|offset| (pack_index, offset))
        });
        let data: u64 = page.iter().map(|chunk| u64::from(chunk.length)).sum();
        if !contiguous
            || !file_offset.is_multiple_of(HUGE_PAGE)
            || !is_zero_after(&pack.file, file_offset, data)
        {
            continue;
        }
        if let Some((pack, last)) = found.last_mut()
            && *pack == pack_index
            && last.offset + last.length == first.offset
            && last.file_offset + last.length == file_offset
        {
            last.length += HUGE_PAGE;
        } else {
            found.push((
                pack_index,
                MappableExtent {
                    segment,
                    offset: first.offset,
                    length: HUGE_PAGE,
                    file: Arc::clone(&pack.file),
                    file_offset,
                },
            ));
        }
    }
    found.into_iter().map(|(_, extent)| extent).collect()
}

/// Whether the huge page of `file` at `offset` is all there, and zero after its first `data` bytes.
fn is_zero_after(file: &std::fs::File, offset: u64, data: u64) -> bool {
    let (Some(data_end), Some(end)) = (offset.checked_add(data), offset.checked_add(HUGE_PAGE))
    else {
        return false;
    };
    if !file.metadata().is_ok_and(|metadata| metadata.len() >= end) {
        return false;
    }
    if data >= HUGE_PAGE {
        return true;
    }
    let Some(hole) = data_end.checked_next_multiple_of(PAGE) else { return false };
    let mut rest = [0; 4096];
    let Some(rest) = usize::try_from(hole - data_end).ok().and_then(|n| rest.get_mut(..n)) else {
        return false;
    };
    if file.read_exact_at(rest, data_end).is_err() || rest.iter().any(|byte| *byte != 0) {
        return false;
    }
    // What was never written, or given back, reads as zeros; asking reads none of it.
    match seek(file, SeekFrom::Data(hole)) {
        Ok(next) => next >= end,
        Err(error) => error == Errno::NXIO,
    }
}
