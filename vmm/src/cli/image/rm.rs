//! `vmm image rm`.

use clap::Args;
use imgcache::image::name::ImageName;

use crate::cli::{CliError, StoreOptions, open_store};
use crate::exit::Exit;

/// Remove images by name. Their chunks stay until 'vmm image gc'.
#[derive(Debug, Args)]
pub struct RmCommand {
    /// Names of the images.
    #[arg(required = true)]
    names: Vec<ImageName>,
}

impl RmCommand {
    pub fn run(&self, store: &StoreOptions) -> Result<Exit, CliError> {
        let store = open_store(store)?;
        // All or none, as far as names go.
        for name in &self.names {
            store.resolve(name)?;
        }
        for name in &self.names {
            store.remove(name)?;
        }
        Ok(Exit::Success)
    }
}
