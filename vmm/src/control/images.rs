//! Image data for the guest: its own image's, and that of others where the operator allows it.

use control_abi::field::{Arguments, Encoder, Tag};
use control_abi::status::Error;
use glob::Pattern;
use imgcache::client::{Image, ImageClient, LoadError, LoadOptions, Target, Verify};
use imgcache::image::name::ImageName;
use imgcache::key::ManifestId;
use imgcache::transport::ChunkRead;

/// Images that are kept open, at most.
const MAX_OPEN: usize = 4;

/// Makes the client through which images are read; the reason in words if there can be none.
pub type Opener = Box<dyn Fn() -> Result<ImageClient, String> + Send>;

/// Bytes that are read ahead, at most.
const AHEAD_BYTES: usize = 1 << 20;

/// Content of chunks in a row.
struct Run {
    image: ManifestId,
    first: u32,
    chunks: Vec<Vec<u8>>,
}

impl Run {
    fn get(&self, image: ManifestId, index: u32) -> Option<&[u8]> {
        let at = usize::try_from(index.checked_sub(self.first)?).ok()?;
        (self.image == image).then_some(self.chunks.get(at)?)
    }

    /// Whether this chunk comes next.
    fn goes_on_with(&self, image: ManifestId, index: u32) -> bool {
        let next = u32::try_from(self.chunks.len()).ok().and_then(|n| self.first.checked_add(n));
        self.image == image && next == Some(index)
    }
}

/// The images that a guest may read.
pub struct Images {
    /// None where images cannot be reached, as in a jail.
    opener: Option<Opener>,
    client: Option<ImageClient>,
    own: (ImageName, ManifestId),
    allowed: Vec<Pattern>,
    /// The one that was used last is last.
    open: Vec<Image>,
    /// Chunks in a row that were read last: a guest without large pages reads a chunk in pieces, and one
    /// that reads a whole image is read ahead for.
    last: Option<Run>,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images")
            .field("own", &self.own)
            .field("allowed", &self.allowed)
            .finish_non_exhaustive()
    }
}

impl Images {
    /// The image that the guest was booted from, and those whose names `allowed` match; none at all
    /// without an `opener`.
    pub fn new(
        opener: Option<Opener>,
        own: (ImageName, ManifestId),
        allowed: Vec<Pattern>,
    ) -> Self {
        Self { opener, client: None, own, allowed, open: Vec::new(), last: None }
    }

    /// What an image has.
    ///
    /// # Errors
    /// There is none of that name, or the guest may not know.
    pub(super) fn stat(&mut self, arguments: &Arguments<'_>) -> Result<Vec<u8>, Error> {
        let image = self.image(arguments)?;
        let manifest = image.manifest();
        let chunks = u32::try_from(manifest.chunks.len()).map_err(|_| Error::Host)?;
        let mut output = vec![0; 512];
        let mut fields = Encoder::new(&mut output);
        fields
            .text(Tag::Image, image.name().as_str())?
            .bytes(Tag::Manifest, &image.id().0)?
            .u32(Tag::Chunks, chunks)?
            .u32(Tag::ChunkBytes, manifest.chunk_size)?
            .u64(Tag::Bytes, manifest.data_bytes())?;
        let length = fields.length();
        output.truncate(length);
        Ok(output)
    }

    /// A chunk, or a part of it; verified.
    ///
    /// # Errors
    /// There is none of that number, or the part is not in it, or there is no room for it.
    pub(super) fn fetch(&mut self, arguments: &Arguments<'_>, room: u32) -> Result<Vec<u8>, Error> {
        let index = arguments.u32(Tag::Chunk).ok_or(Error::BadField)?;
        let image = self.image(arguments)?;
        let id = image.id();
        let span = image.manifest().chunk(index).ok_or(Error::NoImage)?;
        let offset = arguments.u32(Tag::Offset).unwrap_or(0);
        let rest = span.length.checked_sub(offset).ok_or(Error::BadLength)?;
        let length = arguments.u32(Tag::Length).unwrap_or(rest);
        if length > rest || length > room {
            return Err(Error::BadLength);
        }
        if self.last.as_ref().and_then(|run| run.get(id, index)).is_none() {
            let goes_on = self.last.as_ref().is_some_and(|run| run.goes_on_with(id, index));
            // The one that was opened is the last.
            let image = self.open.last().ok_or(Error::Host)?;
            self.last = Some(read(image, index, goes_on)?);
        }
        let range = || Some(usize::try_from(offset).ok()?..usize::try_from(offset + length).ok()?);
        let chunk = self.last.as_ref().and_then(|run| run.get(id, index));
        let content = chunk.and_then(|chunk| chunk.get(range()?));
        content.map(<[u8]>::to_vec).ok_or(Error::BadLength)
    }

    /// The image that the arguments name; it is the last of those that are open.
    fn image(&mut self, arguments: &Arguments<'_>) -> Result<&Image, Error> {
        let name = match arguments.text(Tag::Image) {
            Some(name) => name.parse().map_err(|_| Error::NoImage)?,
            None => self.own.0.clone(),
        };
        let own = name == self.own.0;
        if !own && !self.allowed.iter().any(|pattern| pattern.matches(name.as_str())) {
            return Err(Error::NotPermitted);
        }
        if let Some(at) = self.open.iter().position(|image| *image.name() == name) {
            let image = self.open.remove(at);
            self.open.push(image);
        } else {
            let opener = self.opener.as_ref().ok_or(Error::NotPermitted)?;
            if self.client.is_none() {
                self.client = Some(opener().map_err(|reason| {
                    log::info!("images for the guest: {reason}");
                    Error::Host
                })?);
            }
            let client = self.client.as_ref().ok_or(Error::Host)?;
            // Its own is what it was booted from, whatever the name has come to stand for.
            let opened =
                if own { client.open_exactly(&name, self.own.1) } else { client.open(&name) };
            let image = opened.map_err(|error| failed(&error))?;
            if self.open.len() >= MAX_OPEN {
                self.open.remove(0);
            }
            self.open.push(image);
        }
        self.open.last().ok_or(Error::Host)
    }
}

/// Reads a chunk, and those behind it if they are likely to be asked for too; all verified.
fn read(image: &Image, first: u32, ahead: bool) -> Result<Run, Error> {
    let mut spans = Vec::new();
    let mut bytes = 0;
    for span in (first..).map_while(|index| image.manifest().chunk(index)) {
        let length = usize::try_from(span.length).map_err(|_| Error::Host)?;
        bytes += length;
        if !spans.is_empty() && (!ahead || bytes > AHEAD_BYTES) {
            break;
        }
        spans.push((span, vec![0; length]));
    }
    let targets = spans.iter_mut().map(|(span, buffer)| {
        Target::Fetch(ChunkRead { index: span.index, key: span.entry.key, buffer })
    });
    let options = LoadOptions { verify: Verify::Auto, progress: None };
    image.load(targets.collect(), &options).map_err(|error| failed(&error))?;
    let chunks = spans.into_iter().map(|(_, content)| content).collect();
    Ok(Run { image: image.id(), first, chunks })
}

fn failed(error: &LoadError) -> Error {
    if matches!(error, LoadError::NotFound(_) | LoadError::NoSuchChunk { .. }) {
        return Error::NoImage;
    }
    log::info!("image data for the guest: {error}");
    Error::Host
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_its_chunks_and_knows_the_next() {
        let (this, other) = (ManifestId([1; 32]), ManifestId([2; 32]));
        let run = Run { image: this, first: 7, chunks: vec![vec![7], vec![8]] };
        assert_eq!((run.get(this, 7), run.get(this, 8)), (Some(&[7][..]), Some(&[8][..])));
        for (image, index) in [(this, 6), (this, 9), (other, 7), (this, 0), (this, u32::MAX)] {
            assert_eq!(run.get(image, index), None);
        }
        assert!(run.goes_on_with(this, 9));
        for (image, index) in [(this, 8), (this, 10), (other, 9)] {
            assert!(!run.goes_on_with(image, index));
        }
    }
}
