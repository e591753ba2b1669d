//! `vmm inspect`: all that is known of a VM of the node agent.

use clap::Args;

use super::reach::Reach;
use super::{CliError, print_json, print_text, ps, timings};
use crate::api::{VmInfo, VmNetwork};
use crate::exit::Exit;
use crate::size;
use crate::spec::name::VmName;

/// Show what is known of a VM of the node agent.
#[derive(Debug, Args)]
pub struct InspectCommand {
    /// Its name.
    #[arg(value_name = "NAME")]
    name: VmName,

    /// Print one line of JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reach: Reach,
}

impl InspectCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let info: VmInfo = self.reach.one()?.get(&format!("/v1/vms/{}", self.name))?;
        if self.json {
            print_json(&info)?;
        } else {
            print_text(&text(&info))?;
        }
        Ok(Exit::Success)
    }
}

fn text(info: &VmInfo) -> String {
    let mut lines = vec![
        ("name", info.name.to_string()),
        ("number", info.number.to_string()),
        ("tenant", info.tenant.to_string()),
        ("state", ps::state(info.state).to_owned()),
        ("image", info.spec.image.to_string()),
    ];
    lines.extend(info.manifest.clone().map(|manifest| ("manifest", manifest)));
    lines.push(("cpus", info.spec.cpus.to_string()));
    lines.push(("memory", size::show(info.spec.memory)));
    lines.extend(info.pid.map(|pid| ("process", pid.to_string())));
    if let Some(VmNetwork { mac, ip, ip6, tap, bridge }) = &info.network {
        let on = bridge.as_ref().map(|bridge| format!(" on {bridge}")).unwrap_or_default();
        let addresses: String =
            [ip, ip6].into_iter().flatten().map(|ip| format!(", {ip}")).collect();
        lines.push(("network", format!("{mac}{addresses} at {tap}{on}")));
    }
    if let Some(end) = &info.end {
        let code = end.code.map_or("unknown".to_owned(), |code| code.to_string());
        lines.push(("exit code", code));
        lines.push(("end", end.reason.clone()));
    }
    let line = |(name, value): (&str, String)| format!("{name:<12} {value}\n");
    let mut text = lines.into_iter().map(line).collect::<String>();
    text.push_str(&timings::table(&info.phases, info.ready_ms));
    text
}
