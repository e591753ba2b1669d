//! `vmm cache rebalance`: brings everything to where the membership wants it.

use std::path::Path;
use std::thread;
use std::time::Duration;

use clap::Args;
use imgcache::cluster::members::Members;
use imgcache::image::name::ImageName;
use imgcache::transport::cluster::moving::{self, MoveOptions, MoveReport};
use imgcache::transport::cluster::survey::Survey;
use imgcache::transport::cluster::{Cluster, ClusterError};
use serde::Serialize;

use super::{CacheCommandError, CacheOptions};
use crate::cli::progress::Progress;
use crate::cli::{CliError, print_json, print_text, say};
use crate::exit::Exit;
use crate::size;

/// Copy what is missing to where it belongs, and then remove what is superfluous.
///
/// Finishes a change of the nodes, and restores lost copies after a node was lost. Can be
/// interrupted and run again at any time. Loads go on meanwhile.
#[derive(Debug, Args)]
pub struct RebalanceCommand {
    #[command(flatten)]
    moving: MovingOptions,

    #[command(flatten)]
    cache: CacheOptions,
}

/// How things are moved.
#[derive(Debug, Args)]
pub struct MovingOptions {
    /// Move at most so many bytes per second, such as 100M; by default as fast as it goes.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    rate: Option<u64>,

    /// Seconds to wait before superfluous copies are removed, for loads that began before the
    /// change.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    grace: u64,

    /// Also move the image of this name: stock memcached does not list what it has. Repeatable.
    #[arg(long = "image", value_name = "NAME")]
    images: Vec<ImageName>,

    /// Print a report as one line of JSON.
    #[arg(long)]
    json: bool,
}

impl MovingOptions {
    /// Images to be looked for although no node lists them.
    pub fn images(&self) -> &[ImageName] {
        &self.images
    }

    /// Whether the report is for machines.
    pub fn is_json(&self) -> bool {
        self.json
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    epoch: u64,
    #[serde(flatten)]
    moved: &'a MoveReport,
    /// Whether everything is where it belongs, and nothing has to be looked for elsewhere any more.
    ended: bool,
    /// Names of the nodes that could not be asked.
    down: Vec<String>,
}

impl RebalanceCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let cluster = self.cache.open()?.ok_or(CliError::NoCache)?;
        rebalance(&cluster, self.cache.members_file(), &self.moving)?;
        Ok(Exit::Success)
    }
}

/// Moves everything to where it belongs; ends the move in the membership file, if there is one and
/// everything is in place.
pub fn rebalance(
    cluster: &Cluster,
    file: Option<&Path>,
    options: &MovingOptions,
) -> Result<(), CliError> {
    let topology = cluster.topology();
    let survey = Survey::take(&topology, &options.images);
    let plan = survey.plan(&topology);
    let mut down = Vec::new();
    for (node, failure) in topology.nodes.iter().zip(&survey.failures) {
        if let Some(failure) = failure {
            say(&format!("vmm: cache node {} is left out: {failure}\n", node.name()));
            down.push(node.name().to_owned());
        }
    }
    let progress = Progress::new("moving", plan.move_bytes);
    let add = |bytes| progress.add(bytes);
    let how = MoveOptions { rate: options.rate, progress: Some(&add) };
    let mut report = moving::copy(&topology, &survey, &plan, &how);
    drop(progress);
    if let Some(first) = report.failures.first() {
        return Err(CacheCommandError::Unmoved {
            failed: report.failed,
            all: report.copied + report.failed,
            first: first.clone(),
        }
        .into());
    }

    // What was pushed meanwhile was put where it belongs by the push; a second look makes sure of
    // all of it before any copy is given up.
    let after = Survey::take(&topology, &options.images);
    let rest = after.plan(&topology);
    if !rest.lost.is_empty() || !after.unreadable.is_empty() {
        let names = after.incomplete().iter().map(ToString::to_string).collect();
        return Err(CacheCommandError::Lost(names).into());
    }
    let ended = rest.moves.is_empty() && down.is_empty();
    if ended {
        if let Some(file) = file {
            end_move(file)?;
        }
        if !rest.superfluous.is_empty() {
            thread::sleep(Duration::from_secs(options.grace));
            report.add(moving::remove_superfluous(&topology, &after, &rest));
        }
    }
    tell(cluster, &Report { epoch: cluster.topology().epoch, moved: &report, ended, down }, options)
}

/// Writes that nothing has to be looked for at its old place any more.
fn end_move(file: &Path) -> Result<(), CliError> {
    let mut members = Members::read(file).map_err(ClusterError::from)?;
    if members.previous.take().is_some() {
        members.epoch += 1;
        members.write(file).map_err(ClusterError::from)?;
    }
    Ok(())
}

fn tell(cluster: &Cluster, report: &Report<'_>, options: &MovingOptions) -> Result<(), CliError> {
    let Report { epoch, moved, ended, down } = report;
    if let Some(first) = moved.failures.first() {
        // Harmless: it takes memory until it is evicted, or until the next time.
        say(&format!("vmm: {} superfluous copies stay: {first}\n", moved.failed));
    }
    if options.json {
        return print_json(report);
    }
    let more = match (ended, down.is_empty()) {
        (true, _) => String::new(),
        (false, true) => "; images were pushed meanwhile: rebalance once more".into(),
        (false, false) => format!(
            "; not ended, for {} is down: 'vmm cache rebalance' when it is back, or 'vmm cache \
             remove' it",
            down.join(", ")
        ),
    };
    print_text(&format!(
        "{}: epoch {epoch}, {} items ({}) copied, {} superfluous copies removed{more}\n",
        cluster.url(),
        moved.copied,
        size::show(moved.bytes),
        moved.removed,
    ))
}
