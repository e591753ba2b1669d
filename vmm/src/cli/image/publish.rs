//! `vmm image publish`: from the store of this host into the distributed cache.

use clap::Args;
use imgcache::image::name::ImageName;
use imgcache::store::Store;
use imgcache::transport::cluster::Cluster;
use imgcache::transport::cluster::publish::{PublishReport, publish};
use imgcache::transport::{Transport, TransportError};
use serde::Serialize;

use crate::cli::cache::{CacheOptions, WriteOptions, open_for_writing};
use crate::cli::progress::Progress;
use crate::cli::{CliError, StoreOptions, open_store, print_json, print_text, say};
use crate::exit::Exit;
use crate::size;

/// Put an image of the store into the cache, in place of what its name stood for there.
///
/// Only what its nodes lack is sent, each chunk to all its replicas; a publication that was
/// interrupted goes on where it was, and the name changes last. 'vmm image push --cache' does both
/// at once.
#[derive(Debug, Args)]
pub struct PublishCommand {
    /// Name of the image.
    name: ImageName,

    /// Print a report as one line of JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    cache: CacheOptions,

    #[command(flatten)]
    write: WriteOptions,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    name: &'a ImageName,
    #[serde(flatten)]
    publish: PublishReport,
}

impl PublishCommand {
    pub fn run(&self, store: &StoreOptions) -> Result<Exit, CliError> {
        let cluster = open_for_writing(&self.cache, &self.write)?.ok_or(CliError::NoCache)?;
        let publish = from_store(&cluster, &open_store(store)?, &self.name)?;
        if self.json {
            print_json(&Report { name: &self.name, publish })?;
        } else {
            print_text(&describe(&self.name, &cluster, &publish))?;
        }
        Ok(Exit::Success)
    }
}

/// Publishes an image of `store`; says which nodes could not be given what they should have.
pub fn from_store(
    cluster: &Cluster,
    store: &Store,
    name: &ImageName,
) -> Result<PublishReport, CliError> {
    let id = Store::resolve(store, name)?;
    let failed =
        |source: TransportError| CliError::Publish { image: name.clone(), source: source.into() };
    let session = Transport::open(store, &id).map_err(failed)?;
    let progress = Progress::new("publishing", session.manifest().data_bytes());
    let report = publish(cluster, name, &*session, Some(&|bytes| progress.add(bytes)));
    drop(progress);
    let report = report.map_err(failed)?;
    for (node, words) in &report.nodes_down {
        say(&format!("vmm: cache node {node} was left out: {words}\n"));
    }
    Ok(report)
}

/// The report for people.
pub fn describe(name: &ImageName, cluster: &Cluster, report: &PublishReport) -> String {
    let by = report.bytes_by.named();
    let by: Vec<String> =
        by.map(|(kind, bytes)| format!("{} by {kind}", size::show(bytes))).collect();
    format!(
        "{name}: {} in {} ({} new, {} there already, {} zero), {} sent for {} replicas ({})\n",
        size::show(report.bytes_total),
        cluster.url(),
        size::show(report.bytes_new),
        size::show(report.bytes_shared),
        size::show(report.bytes_zero),
        size::show(report.bytes_sent),
        report.replicas,
        by.join(", ")
    )
}
