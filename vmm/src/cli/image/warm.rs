//! `vmm image warm`.

use clap::Args;
use imgcache::client::ImageClient;
use imgcache::image::name::ImageName;
use serde::Serialize;

use crate::cli::{CliError, StoreOptions, open_store, print_json, print_text};
use crate::exit::Exit;
use crate::loader::warm;
use crate::size;

/// Read images into this host's memory in 2 MiB pages, ready to be mapped into guests.
///
/// A push does it too. It is worth doing again after the host has started, or when something else
/// has read the store (as a backup does), which leaves small pages behind. File systems without
/// large folios keep small pages in any case.
#[derive(Debug, Args)]
pub struct WarmCommand {
    /// Names of the images.
    #[arg(required = true)]
    names: Vec<ImageName>,

    /// Print a report as one line of JSON.
    #[arg(long)]
    json: bool,
}

/// What became of an image.
#[derive(Debug, Serialize)]
struct Report<'a> {
    name: &'a ImageName,
    /// Bytes that are worth mapping.
    bytes_mappable: u64,
    /// Bytes of these that are in 2 MiB pages now.
    bytes_in_huge_pages: u64,
}

impl WarmCommand {
    pub fn run(&self, store: &StoreOptions) -> Result<Exit, CliError> {
        let client = ImageClient::new(Box::new(open_store(store)?));
        let images: Vec<_> =
            self.names.iter().map(|name| client.open(name)).collect::<Result<_, _>>()?;
        let mut reports = Vec::new();
        for (name, image) in self.names.iter().zip(&images) {
            let (bytes_mappable, bytes_in_huge_pages) = warm::warm(image);
            reports.push(Report { name, bytes_mappable, bytes_in_huge_pages });
        }
        if self.json {
            print_json(&reports)?;
        } else {
            for report in &reports {
                print_text(&format!(
                    "{}: {} of {} in 2 MiB pages\n",
                    report.name,
                    size::show(report.bytes_in_huge_pages),
                    size::show(report.bytes_mappable)
                ))?;
            }
        }
        Ok(Exit::Success)
    }
}
