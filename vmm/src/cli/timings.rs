//! `vmm timings`: how the boot of a VM of the node agent went.

use std::fmt::Write;

use clap::Args;

use super::reach::Reach;
use super::{CliError, print_json, print_text};
use crate::api::{Phase, Timings};
use crate::exit::Exit;
use crate::spec::name::VmName;

/// Show how long each phase of a VM's boot took.
#[derive(Debug, Args)]
pub struct TimingsCommand {
    /// Its name.
    #[arg(value_name = "NAME")]
    name: VmName,

    /// Print one line of JSON, with the report of 'vmm boot --json'.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reach: Reach,
}

impl TimingsCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let timings: Timings = self.reach.one()?.get(&format!("/v1/vms/{}/timings", self.name))?;
        if self.json {
            print_json(&timings)?;
        } else {
            print_text(&all(&timings))?;
        }
        Ok(Exit::Success)
    }
}

fn row(text: &mut String, name: &str, ms: f64) {
    let _ = writeln!(text, "{name:<12} {ms:>10.3}");
}

/// The phases and their sum.
pub fn table(phases: &[Phase], ready_ms: Option<f64>) -> String {
    let mut text = format!("{:<12} {:>10}\n", "phase", "ms");
    for phase in phases {
        row(&mut text, &phase.name, phase.ms);
    }
    if let Some(ms) = ready_ms {
        row(&mut text, "ready", ms);
    }
    text
}

/// The same, and what the guest has said, once it has ended.
pub fn all(timings: &Timings) -> String {
    let mut text = table(&timings.phases, timings.ready_ms);
    let guest = &timings.report["guest"];
    for mark in guest["said"]["marks"].as_array().into_iter().flatten() {
        if let (Some(name), Some(ms)) = (mark["name"].as_str(), mark["ms"].as_f64()) {
            row(&mut text, name, ms);
        }
    }
    for (name, value) in [("guest ready", &guest["said"]["ready_ms"]), ("guest", &guest["run_ms"])]
    {
        if let Some(ms) = value.as_f64() {
            row(&mut text, name, ms);
        }
    }
    text
}
