//! `vmm image verify`.

use clap::Args;
use imgcache::store::VerifyReport;

use crate::cli::{CliError, StoreOptions, find_store, print_json, print_text};
use crate::exit::Exit;
use crate::size;

/// Hash every chunk of the store in full, and name what is damaged.
///
/// Where all is well, the store vouches for its chunks again (as after copying it), and loads need
/// only compare checksums. Ends with exit code 4 if anything is damaged.
#[derive(Debug, Args)]
pub struct VerifyCommand {
    /// Print a report as one line of JSON.
    #[arg(long)]
    json: bool,
}

impl VerifyCommand {
    pub fn run(&self, store: &StoreOptions) -> Result<Exit, CliError> {
        let report = match find_store(store)? {
            Some(store) => store.verify()?,
            None => VerifyReport::default(),
        };
        if self.json {
            print_json(&report)?;
        } else {
            for damage in &report.damage {
                print_text(&format!("damaged: {damage}\n"))?;
            }
            print_text(&format!(
                "{} images, {} chunks ({}) hashed; {} damaged\n",
                report.images,
                report.chunks,
                size::show(report.bytes),
                report.damage.len()
            ))?;
        }
        Ok(if report.damage.is_empty() { Exit::Success } else { Exit::ImageDamaged })
    }
}
