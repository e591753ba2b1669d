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

/// The images that a guest may read.
pub struct Images {
    opener: Opener,
    client: Option<ImageClient>,
    own: (ImageName, ManifestId),
    allowed: Vec<Pattern>,
    /// The one that was used last is last.
    open: Vec<Image>,
    /// The chunk that was read last: a guest without large pages reads it in pieces.
    last: Option<(ManifestId, u32, Vec<u8>)>,
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
    /// The image that the guest was booted from, and those whose names `allowed` match.
    pub fn new(opener: Opener, own: (ImageName, ManifestId), allowed: Vec<Pattern>) -> Self {
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
        let known = self.last.as_ref().is_some_and(|(of, at, _)| (*of, *at) == (id, index));
        if !known {
            let mut content = vec![0; usize::try_from(span.length).map_err(|_| Error::Host)?];
            let read = ChunkRead { index, key: span.entry.key, buffer: &mut content };
            let options = LoadOptions { verify: Verify::Auto, progress: None };
            // The one that was opened is the last.
            let image = self.open.last().ok_or(Error::Host)?;
            image.load(vec![Target::Fetch(read)], &options).map_err(|error| failed(&error))?;
            self.last = Some((id, index, content));
        }
        let range = || Some(usize::try_from(offset).ok()?..usize::try_from(offset + length).ok()?);
        let content = self.last.as_ref().and_then(|(_, _, content)| content.get(range()?));
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
            if self.client.is_none() {
                self.client = Some((self.opener)().map_err(|reason| {
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

fn failed(error: &LoadError) -> Error {
    if matches!(error, LoadError::NotFound(_) | LoadError::NoSuchChunk { .. }) {
        return Error::NoImage;
    }
    log::info!("image data for the guest: {error}");
    Error::Host
}
