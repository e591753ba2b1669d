//! `vmm events`: what happens on a node, or what a guest says of itself.

use std::io::{BufRead, BufReader};

use clap::Args;

use super::reach::Reach;
use super::{CliError, copy_out, print_text, ps};
use crate::api::client::Stream;
use crate::api::{Event, NodeEvent};
use crate::exit::Exit;
use crate::size;
use crate::spec::name::VmName;

/// Print what happened on the node: VMs that came to be, ran and ended, images that came and went.
///
/// With the name of a VM it is what its guest has said of itself instead, as JSON.
#[derive(Debug, Args)]
pub struct EventsCommand {
    /// Name of a VM whose guest's events are to be printed.
    #[arg(value_name = "NAME")]
    name: Option<VmName>,

    /// Go on with what happens; of the node, only that.
    #[arg(short, long)]
    follow: bool,

    /// Print lines of JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reach: Reach,
}

impl EventsCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let client = self.reach.one()?;
        let path = match &self.name {
            Some(name) => format!("/v1/vms/{name}/events?follow={}", self.follow),
            None => format!("/v1/events?follow={}", self.follow),
        };
        let stream = client.stream(&path)?;
        if self.json || self.name.is_some() {
            copy_out(stream)?;
        } else {
            tell(stream)?;
        }
        Ok(Exit::Success)
    }
}

fn tell(stream: Stream) -> Result<(), CliError> {
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(CliError::stream)?;
        let text = match serde_json::from_str::<NodeEvent>(&line) {
            Ok(event) => words(&event),
            // One of a later version.
            Err(_) => line,
        };
        print_text(&format!("{text}\n"))?;
    }
    Ok(())
}

fn words(NodeEvent { at_ms, event }: &NodeEvent) -> String {
    let seconds = at_ms / 1000;
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    let time = format!("{hours:02}:{minutes:02}:{:02}.{:03}", seconds % 60, at_ms % 1000);
    let what = match event {
        Event::Vm { name, image, state, end, .. } => {
            let end = end.as_ref().map(|end| format!(": {}", end.reason)).unwrap_or_default();
            format!("vm {name} ({image}) {}{end}", ps::state(*state))
        }
        Event::Deleted { name, .. } => format!("vm {name} deleted"),
        Event::Pulled { image, tenant, bytes, ms } => {
            let size = size::show(*bytes);
            format!("image {image} of {tenant} is in the pool: {size} in {ms:.1} ms")
        }
        Event::Dropped { image, tenant } => format!("image {image} of {tenant} left the pool"),
        Event::Draining => "draining".to_owned(),
        Event::Undrained => "not draining any more".to_owned(),
        Event::Lost { events } => format!("{events} events were lost"),
    };
    format!("{time} {what}")
}
