//! `vmm image gc`.

use clap::Args;
use imgcache::store::GcReport;

use crate::cli::{CliError, StoreOptions, find_store, print_json, print_text};
use crate::exit::Exit;
use crate::size;

/// Give back the space of chunks that no image needs.
///
/// Waits for pushes under way. Chunks that running guests have mapped are left for the next time.
#[derive(Debug, Args)]
pub struct GcCommand {
    /// Print a report as one line of JSON.
    #[arg(long)]
    json: bool,
}

impl GcCommand {
    pub fn run(&self, store: &StoreOptions) -> Result<Exit, CliError> {
        let report = match find_store(store)? {
            Some(store) => store.gc()?,
            None => GcReport::default(),
        };
        if self.json {
            print_json(&report)?;
            return Ok(Exit::Success);
        }
        print_text(&format!(
            "{} freed: {} packs removed, {} trimmed, {} manifests and {} leftovers removed\n",
            size::show(report.bytes_freed),
            report.packs_removed,
            report.packs_trimmed,
            report.manifests_removed,
            report.leftovers_removed
        ))?;
        for pack in &report.packs_busy {
            print_text(&format!("left for later, in use by a guest: {}\n", pack.display()))?;
        }
        Ok(Exit::Success)
    }
}
