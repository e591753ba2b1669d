//! Brings an image into a file of the pool, each chunk straight to its place, and verifies it there.

use std::fs::File;
use std::io;
use std::ops::Range;

use imgcache::client::{Image, LoadError, LoadOptions, LoadReport, Target, Verify};
use imgcache::image::manifest::Manifest;
use imgcache::image::prepared::PreparedLayout;
use imgcache::transport::ChunkRead;
use memmap2::{Advice, MmapMut, MmapOptions};

use crate::host::pagemap;

/// Why an image did not come into the pool.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// A part of it has no place in the file.
    #[error("the image has a part that cannot be mapped")]
    NotMappable,
    /// The file.
    #[error("cannot {what}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The image.
    #[error(transparent)]
    Image(#[from] LoadError),
}

/// A file of the pool, filled.
#[derive(Debug)]
pub struct Filled {
    /// What was brought.
    pub report: LoadReport,
    /// Whether all of it is in 2 MiB pages.
    pub huge_pages: bool,
}

/// A chunk's place in the file.
struct Place {
    bytes: Range<usize>,
    index: u32,
    key: imgcache::key::ChunkKey,
}

/// Fills `file`, which is empty, with `image`.
///
/// # Errors
/// No memory, or an image that cannot be read or is damaged.
pub fn fill(file: &File, layout: &PreparedLayout, image: &Image) -> Result<Filled, FillError> {
    let places = places(layout, image.manifest())?;
    file.set_len(layout.length()).map_err(failed("make room in the pool"))?;
    let mut map = map(file)?;
    let mut targets = Vec::with_capacity(places.len());
    let (mut rest, mut at) = (&mut map[..], 0);
    for Place { bytes, index, key } in places {
        let (_, from) = rest.split_at_mut(bytes.start - at);
        let (buffer, behind) = from.split_at_mut(bytes.end - bytes.start);
        targets.push(Target::Fetch(ChunkRead { index, key, buffer }));
        (rest, at) = (behind, bytes.end);
    }
    let report = image.load(targets, &LoadOptions { verify: Verify::Auto, progress: None })?;
    Ok(Filled { report, huge_pages: in_huge_pages(&map) })
}

/// Looks whether `file` still holds what `manifest` says, by the chunks' checksums; whether it does, and
/// is in 2 MiB pages.
///
/// # Errors
/// It cannot be mapped.
pub fn check(
    file: &File,
    layout: &PreparedLayout,
    manifest: &Manifest,
) -> Result<(bool, bool), FillError> {
    let places = places(layout, manifest)?;
    let length = file.metadata().map_err(failed("look at a file of the pool"))?.len();
    if length != layout.length() {
        return Ok((false, false));
    }
    // SAFETY: a file of the pool is not written to once it is finished, by anybody.
    let map = unsafe { MmapOptions::new().map(file) }.map_err(failed("map a file of the pool"))?;
    let good = places.iter().all(|place| {
        let chunk = manifest.chunk(place.index);
        chunk.is_some_and(|chunk| chunk.entry.has_checksum(&map[place.bytes.clone()]))
    });
    Ok((good, in_huge_pages(&map)))
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> FillError {
    move |source| FillError::File { what, source }
}

fn map(file: &File) -> Result<MmapMut, FillError> {
    // SAFETY: nobody else has the file, which was made just now.
    let map = unsafe { MmapMut::map_mut(file) }.map_err(failed("map a file of the pool"))?;
    // All of it at once, zeros too: a hole would be given to guests in small pages.
    for advice in [Advice::HugePage, Advice::PopulateWrite] {
        if let Err(error) = map.advise(advice) {
            log::debug!("memory of the pool: {advice:?}: {error}");
        }
    }
    Ok(map)
}

/// Every chunk that is not zero, ascending in the file. A new file is zero already.
fn places(layout: &PreparedLayout, manifest: &Manifest) -> Result<Vec<Place>, FillError> {
    let mut places = Vec::with_capacity(manifest.chunks.len());
    for (segment, _) in manifest.loaded() {
        let Some(start) = layout.segment(segment) else {
            // What has no bytes needs no place.
            if manifest.chunks_of(segment).next().is_none() {
                continue;
            }
            return Err(FillError::NotMappable);
        };
        for chunk in manifest.chunks_of(segment).filter(|chunk| !chunk.entry.zero) {
            let from = start + chunk.offset;
            let range = from..from + u64::from(chunk.length);
            let bytes = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
            let (start, end) = bytes.ok_or(FillError::NotMappable)?;
            places.push(Place { bytes: start..end, index: chunk.index, key: chunk.entry.key });
        }
    }
    places.sort_unstable_by_key(|place| place.bytes.start);
    // The kernel's segments may overlap only in a manifest that no machine would take either.
    let overlap = places.windows(2).any(|pair| pair[1].bytes.start < pair[0].bytes.end);
    if overlap { Err(FillError::NotMappable) } else { Ok(places) }
}

fn in_huge_pages(map: &[u8]) -> bool {
    let length = u64::try_from(map.len()).unwrap_or(0);
    let found = pagemap::mapped_in_huge_pages(map.as_ptr().addr() as u64, length);
    found.iter().map(|range| range.end - range.start).sum::<u64>() == length
}
