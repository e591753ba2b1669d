//! `vmm cache pin` and `unpin`: images that no node forgets.

use std::str::FromStr;

use clap::Args;
use imgcache::client::LoadError;
use imgcache::image::name::{ImageName, NameError};
use imgcache::key::ManifestId;
use imgcache::transport::cluster::Cluster;
use imgcache::transport::cluster::pin::NodePin;
use serde::Serialize;

use super::{CacheCommandError, CacheOptions};
use crate::cli::{CliError, print_json, print_text};
use crate::exit::Exit;

/// Have the nodes keep an image, whatever else they are given.
///
/// What the name stands for now is pinned, where it belongs now: pin again after the name or the
/// nodes have changed. Pins end with 'vmm cache unpin', and when a node ends.
#[derive(Debug, Args)]
pub struct PinCommand {
    /// Name of the image.
    name: ImageName,

    /// Print a report as one line of JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    cache: CacheOptions,
}

/// Let the nodes forget an image when they need its memory.
#[derive(Debug, Args)]
pub struct UnpinCommand {
    /// Name of the image, or the id that 'vmm cache pin' has printed if the name has changed since.
    image: NameOrId,

    /// Print a report as one line of JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    cache: CacheOptions,
}

/// What an image can be called.
#[derive(Debug, Clone)]
enum NameOrId {
    Name(ImageName),
    Id(ManifestId),
}

impl FromStr for NameOrId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.parse() {
            Ok(id) => Ok(Self::Id(id)),
            Err(_) => text.parse().map(Self::Name),
        }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    manifest: String,
    nodes: &'a [NodePin],
}

impl PinCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let cluster = self.cache.open()?.ok_or(CliError::NoCache)?;
        let id = resolve(&cluster, &self.name)?;
        let nodes = cluster.pin(&id)?.ok_or_else(|| LoadError::NotFound(self.name.clone()))?;
        let held: u64 = nodes.iter().map(|node| node.held).sum();
        let missing: u64 = nodes.iter().map(|node| node.missing).sum();
        let text = format!("{}: {id} is pinned: {held} items, {missing} missing\n", self.name);
        tell(self.json, id, &nodes, &text)
    }
}

impl UnpinCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let cluster = self.cache.open()?.ok_or(CliError::NoCache)?;
        let id = match &self.image {
            NameOrId::Id(id) => *id,
            NameOrId::Name(name) => resolve(&cluster, name)?,
        };
        let nodes = cluster.unpin(&id);
        let held = nodes.iter().filter(|node| node.held > 0).count();
        tell(self.json, id, &nodes, &format!("{id}: unpinned at {held} nodes\n"))
    }
}

fn resolve(cluster: &Cluster, name: &ImageName) -> Result<ManifestId, CliError> {
    let record = cluster.name_record(name)?;
    Ok(record.ok_or_else(|| LoadError::NotFound(name.clone()))?.manifest)
}

/// Tells what came of it; a node that did not do its part is an error.
fn tell(json: bool, id: ManifestId, nodes: &[NodePin], text: &str) -> Result<Exit, CliError> {
    if json {
        print_json(&Report { manifest: id.to_string(), nodes })?;
    } else {
        print_text(text)?;
    }
    let failed = |node: &NodePin| {
        let failure = node.failure.clone()?;
        Some(format!("{}: {failure}", node.node))
    };
    let failures: Vec<String> = nodes.iter().filter_map(failed).collect();
    if failures.is_empty() {
        return Ok(Exit::Success);
    }
    Err(CacheCommandError::NotEverywhere(failures).into())
}
