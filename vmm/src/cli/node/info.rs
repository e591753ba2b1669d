//! What a node is and has; whether it takes new VMs.

use std::fmt::Write;

use clap::Args;
use serde::Serialize;

use super::super::reach::Reach;
use super::super::{CliError, print_json, print_text};
use crate::api::NodeInfo;
use crate::api::client::Client;
use crate::exit::Exit;
use crate::size;

/// Show what a node is and has: room, VMs, its pool of images, what is wrong with it.
#[derive(Debug, Args)]
pub struct InfoCommand {
    /// Print one line of JSON, a list.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reach: Reach,
}

/// Have a node take no new VMs; those that it has live on.
#[derive(Debug, Args)]
pub struct DrainCommand {
    #[command(flatten)]
    reach: Reach,
}

/// Have a node take new VMs again.
#[derive(Debug, Args)]
pub struct UndrainCommand {
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, Serialize)]
struct Row {
    node: String,
    #[serde(flatten)]
    info: NodeInfo,
}

impl InfoCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let ask = |client: &Client| -> Result<Row, CliError> {
            Ok(Row { node: client.node().to_string(), info: client.get("/v1/node")? })
        };
        let rows = self.reach.all()?.iter().map(ask).collect::<Result<Vec<_>, _>>()?;
        if self.json {
            print_json(&rows)?;
        } else {
            print_text(&rows.iter().map(text).collect::<Vec<_>>().join("\n"))?;
        }
        Ok(Exit::Success)
    }
}

fn text(Row { node, info }: &Row) -> String {
    let (vms, pool) = (&info.vms, &info.pool);
    let lines = [
        ("node", node.clone()),
        ("version", info.version.clone()),
        ("new VMs", if info.draining { "no: draining" } else { "yes" }.to_owned()),
        ("guests", if info.runs_guests { "run" } else { "are only made ready" }.to_owned()),
        (
            "VMs",
            format!(
                "{} starting, {} ready, {} running of at most {}; {} ended",
                vms.starting, vms.ready, vms.running, info.max_vms, vms.ended
            ),
        ),
        ("their RAM", size::show(info.vm_memory_bytes)),
        (
            "host",
            format!(
                "{} processors, {} of {} available",
                info.cpus,
                size::show(info.memory_available_bytes),
                size::show(info.memory_bytes)
            ),
        ),
        (
            "pool",
            format!(
                "{} images in {} of {} ({}{}); {} hits, {} misses, {} given up, {} brought",
                pool.images,
                size::show(pool.bytes),
                size::show(pool.limit_bytes),
                pool.backing,
                if pool.huge_pages { ", 2 MiB pages" } else { "" },
                pool.hits,
                pool.misses,
                pool.evictions,
                size::show(pool.bytes_loaded)
            ),
        ),
    ];
    let mut text = String::new();
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<12} {value}");
    }
    for problem in &info.problems {
        let _ = writeln!(text, "{:<12} {problem}", "problem");
    }
    text
}

fn say_draining(info: &NodeInfo) -> Result<Exit, CliError> {
    let words = if info.draining { "takes no new VMs" } else { "takes new VMs" };
    print_text(&format!("the node {words}\n"))?;
    Ok(Exit::Success)
}

impl DrainCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        say_draining(&self.reach.one()?.post_nothing("/v1/node/drain")?)
    }
}

impl UndrainCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        say_draining(&self.reach.one()?.delete_and_get("/v1/node/drain")?)
    }
}
