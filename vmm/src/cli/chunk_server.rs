//! `vmm chunk-server`: serves the chunks of an image's disk to the process of a VM that can open nothing
//! itself. The node agent starts one for each VM with a disk; it outlives the agent, and ends with its VM.

use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use clap::Args;
use imgcache::client::{ImageClient, Verify};
use imgcache::image::name::ImageName;
use imgcache::key::ManifestId;
use imgcache::lazy::ImageSource;
use imgcache::lazy::served::serve_chunks;

use super::cache::{self, CacheOptions};
use super::{CliError, StoreOptions};
use crate::exit::Exit;

/// The name of the command.
const NAME: &str = "chunk-server";

/// Serve the chunks of an image's disk over the stream that is standard input, until its other end is
/// closed.
#[derive(Debug, Args)]
pub struct ChunkServerCommand {
    /// Name of the image.
    #[arg(long, value_name = "NAME")]
    image: ImageName,

    /// Its manifest, whatever the name stands for now.
    #[arg(long, value_name = "ID")]
    manifest: ManifestId,

    #[command(flatten)]
    cache: CacheOptions,

    #[command(flatten)]
    load: cache::LoadOptions,
}

/// The words of a command that serves chunks of images from here, to which the image is added.
pub(super) fn words(
    store: &StoreOptions,
    cache: &CacheOptions,
    load: &cache::LoadOptions,
) -> Vec<OsString> {
    [store.arguments(), vec![NAME.into()], cache.arguments(), load.arguments()].concat()
}

/// The words of a command that serves chunks of images from the store that is the default.
pub fn default_words() -> Vec<OsString> {
    vec![NAME.into()]
}

impl ChunkServerCommand {
    pub(super) fn run(&self, store: &StoreOptions) -> Result<Exit, CliError> {
        let transport = cache::image_transport(&self.cache, &self.load, store)?;
        let image = ImageClient::new(transport).open_exactly(&self.image, self.manifest)?;
        // Who is served hashes everything in full.
        let source = ImageSource::new(Arc::new(image), Verify::Auto);
        let input = |source: std::io::Error| CliError::Output {
            what: "to standard input, which must be a stream".into(),
            source,
        };
        let stream = rustix::io::dup(std::io::stdin()).map_err(|error| input(error.into()))?;
        let served = serve_chunks(UnixStream::from(stream), &source)?;
        log::info!("{served} chunks served");
        Ok(Exit::Success)
    }
}
