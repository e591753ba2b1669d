//! `vmm cache status`: which nodes there are, what they hold, and which can be stopped.

use clap::Args;
use imgcache::image::name::ImageName;
use imgcache::transport::cluster::survey::Survey;
use imgcache::transport::cluster::{Cluster, Topology};
use serde::Serialize;

use super::CacheOptions;
use crate::cli::{CliError, print_json, print_text};
use crate::exit::Exit;
use crate::size;

/// Show the nodes of the cache, its images, and whether a node can be stopped without loss.
///
/// Every node is asked what it holds, so that the answer is how things are and not how they should
/// be.
#[derive(Debug, Args)]
pub struct StatusCommand {
    /// Also look for the image of this name: stock memcached does not list what it has. Repeatable.
    #[arg(long = "image", value_name = "NAME")]
    images: Vec<ImageName>,

    /// Print a report as one line of JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    cache: CacheOptions,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    epoch: u64,
    /// Copies that each item is to have.
    replicas: usize,
    /// Whether items are still looked for where they were before the last change.
    moving: bool,
    nodes: Vec<NodeReport>,
    images: Vec<ImageReport>,
    /// Images whose manifest no node could supply.
    unreadable: Vec<ImageName>,
}

#[derive(Debug, Serialize)]
struct NodeReport {
    name: String,
    address: String,
    weight: u32,
    /// Why it could not be asked; none if it was.
    failure: Option<String>,
    items: u64,
    bytes: u64,
    /// Items of images that no other node has.
    only_here: u64,
    /// Whether nothing would be lost without it.
    safe_to_stop: bool,
}

#[derive(Debug, Serialize)]
struct ImageReport {
    name: ImageName,
    manifest: String,
    bytes: u64,
    /// The fewest copies that a part of it has; 0 if it cannot be loaded.
    fewest_copies: usize,
    /// Parts that are not at all their places.
    misplaced: u64,
}

impl StatusCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let cluster = self.cache.open()?.ok_or(CliError::NoCache)?;
        let topology = cluster.topology();
        let survey = Survey::take(&topology, &self.images);
        let report = report(&topology, &survey);
        if self.json {
            print_json(&report)?;
        } else {
            print_text(&describe(&cluster, &report))?;
        }
        // A monitor sees by the code alone whether every node is there.
        let complete = report.nodes.iter().all(|node| node.failure.is_none())
            && report.images.iter().all(|image| image.fewest_copies > 0)
            && report.unreadable.is_empty();
        Ok(if complete { Exit::Success } else { Exit::CacheUnavailable })
    }
}

fn report(topology: &Topology, survey: &Survey) -> Report {
    let (held, sole) = (survey.held(), survey.sole_copies());
    let everybody_answered = survey.failures.iter().all(Option::is_none);
    let nodes = topology.nodes.iter().enumerate().map(|(number, node)| {
        let failure = survey.failures[number].as_ref().map(ToString::to_string);
        let (items, bytes) = held[number];
        NodeReport {
            name: node.name().to_owned(),
            address: node.address().to_string(),
            weight: node.weight(),
            // What a silent node holds is not known, nor whether others hold it as well.
            safe_to_stop: failure.is_none() && everybody_answered && sole[number] == 0,
            failure,
            items,
            bytes,
            only_here: sole[number],
        }
    });
    let images = survey.images.iter().map(|image| {
        let spread = survey.spread(topology, image);
        ImageReport {
            name: image.name.clone(),
            manifest: image.id.to_string(),
            bytes: image.bytes,
            fewest_copies: spread.fewest_copies,
            misplaced: spread.misplaced,
        }
    });
    Report {
        epoch: topology.epoch,
        replicas: topology.replicas(),
        moving: topology.is_moving(),
        nodes: nodes.collect(),
        images: images.collect(),
        unreadable: survey.unreadable.clone(),
    }
}

fn describe(cluster: &Cluster, report: &Report) -> String {
    let mut lines = vec![format!(
        "{}: epoch {}, {} replicas{}",
        cluster.url(),
        report.epoch,
        report.replicas,
        if report.moving { ", moving: finish with 'vmm cache rebalance'" } else { "" }
    )];
    lines.push(format!(
        "{:<20} {:<28} {:>6} {:>8} {:>12} {:>10}  safe to stop",
        "node", "address", "weight", "items", "bytes", "only here"
    ));
    for node in &report.nodes {
        let end = match &node.failure {
            Some(failure) => format!("down: {failure}"),
            None if node.safe_to_stop => "yes".into(),
            None if node.only_here == 0 => "not known: another node is down".into(),
            None => "no".into(),
        };
        lines.push(format!(
            "{:<20} {:<28} {:>6} {:>8} {:>12} {:>10}  {end}",
            node.name,
            node.address,
            node.weight,
            node.items,
            size::show(node.bytes),
            node.only_here
        ));
    }
    for image in &report.images {
        lines.push(format!(
            "image {}: {} in at least {} copies{}",
            image.name,
            size::show(image.bytes),
            image.fewest_copies,
            match image.misplaced {
                0 => String::new(),
                some => format!(", {some} items not at all their places"),
            }
        ));
    }
    for name in &report.unreadable {
        lines.push(format!("image {name}: no node has its manifest; push it again"));
    }
    lines.join("\n") + "\n"
}
