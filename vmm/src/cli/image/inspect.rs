//! `vmm image inspect`.

use clap::Args;
use imgcache::image::manifest::Placement;
use imgcache::image::name::ImageName;
use imgcache::store::Inspection;

use crate::cli::{CliError, StoreOptions, open_store, print_json, print_text};
use crate::exit::Exit;
use crate::size;

/// Show where an image lands, how it is entered, and what it takes in the store.
#[derive(Debug, Args)]
pub struct InspectCommand {
    /// Name of the image.
    name: ImageName,

    /// Print everything as one line of JSON.
    #[arg(long)]
    json: bool,
}

impl InspectCommand {
    pub fn run(&self, store: &StoreOptions) -> Result<Exit, CliError> {
        let inspection = open_store(store)?.inspect(&self.name)?;
        if self.json {
            print_json(&inspection)?;
        } else {
            print_text(&describe(&inspection))?;
        }
        Ok(Exit::Success)
    }
}

fn describe(inspection: &Inspection) -> String {
    let manifest = &inspection.manifest;
    let entry = |name: &str, address: Option<u64>| {
        address.map_or(String::new(), |address| format!("{name} {address:#x}  "))
    };
    let mut lines = vec![
        format!("image      {}", inspection.name),
        format!("manifest   {}", inspection.id),
        format!("kernel     {}", manifest.kernel.version.as_deref().unwrap_or("unknown release")),
        format!("cmdline    {}", manifest.cmdline),
        format!(
            "entries    {}{}",
            entry("linux64", manifest.kernel.entries.linux64),
            entry("pvh", manifest.kernel.entries.pvh32)
        ),
        format!(
            "content    {} in chunks of {}, {} zero; {} in the store, {} of it shared",
            size::show(inspection.bytes),
            size::show(manifest.chunk_size.into()),
            size::show(inspection.bytes_zero),
            size::show(inspection.bytes_stored),
            size::show(inspection.bytes_shared)
        ),
        format!(
            "sealed     {}",
            if inspection.sealed { "yes" } else { "no: 'vmm image verify' makes loads faster" }
        ),
    ];
    for segment in &manifest.segments {
        let place = match segment.placement {
            Placement::Fixed { address } => format!("at {address:#x}"),
            Placement::Device => "as a disk".to_owned(),
            Placement::TopOfRam { limit, .. } => format!("at the top of RAM below {limit:#x}"),
        };
        lines.push(format!(
            "segment    {:?} {place}: {} of data in {}",
            segment.kind,
            size::show(segment.data_length),
            size::show(segment.memory_length)
        ));
    }
    lines.extend(
        inspection
            .packs
            .iter()
            .map(|pack| format!("pack       {} ({})", pack.path.display(), size::show(pack.bytes))),
    );
    lines.extend(manifest.notes.iter().map(|note| format!("note       {note}")));
    lines.join("\n") + "\n"
}
