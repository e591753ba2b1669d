//! `vmm image ls`.

use clap::Args;
use serde::Serialize;

use crate::cli::{CliError, StoreOptions, find_store, print_json, print_text, say};
use crate::exit::Exit;
use crate::size;

/// List the images.
#[derive(Debug, Args)]
pub struct LsCommand {
    /// Print them as one line of JSON.
    #[arg(long)]
    json: bool,
}

/// An image that is listed but cannot be read.
#[derive(Debug, Serialize)]
struct Unreadable {
    name: imgcache::image::name::ImageName,
    error: String,
}

impl LsCommand {
    pub fn run(&self, store: &StoreOptions) -> Result<Exit, CliError> {
        let (mut images, mut unreadable) = (Vec::new(), Vec::new());
        let listed = match find_store(store)? {
            Some(store) => store.list()?,
            None => Vec::new(),
        };
        for (name, summary) in listed {
            match summary {
                Ok(summary) => images.push(summary),
                Err(error) => unreadable.push(Unreadable { name, error: error.to_string() }),
            }
        }
        if self.json {
            print_json(&serde_json::json!({ "images": images, "unreadable": unreadable }))?;
        } else {
            print_text(&format!("{:<32} {:>12} {:>12}  KERNEL\n", "NAME", "SIZE", "RAMDISK"))?;
            for image in &images {
                print_text(&format!(
                    "{:<32} {:>12} {:>12}  {}\n",
                    image.name,
                    size::show(image.bytes),
                    image.initrd_bytes.map_or("-".into(), size::show),
                    image.kernel_version.as_deref().unwrap_or("-")
                ))?;
            }
            for image in &unreadable {
                say(&format!("vmm: image '{}': {}\n", image.name, image.error));
            }
        }
        Ok(if unreadable.is_empty() { Exit::Success } else { Exit::ImageDamaged })
    }
}
