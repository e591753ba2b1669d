//! `vmm ps`: the VMs of node agents.

use clap::Args;
use serde::Serialize;

use super::reach::Reach;
use super::{CliError, print_json, print_text};
use crate::api::{VmInfo, VmState};
use crate::exit::Exit;
use crate::node::clock::now_ms;
use crate::size;

/// List the VMs of the node agent.
///
/// Those that have ended are listed with --all, until they are deleted ('vmm rm').
#[derive(Debug, Args)]
pub struct PsCommand {
    /// Also those that have ended.
    #[arg(short, long)]
    all: bool,

    /// Print one line of JSON, a list.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reach: Reach,
}

/// A VM, and where it is.
#[derive(Debug, Serialize)]
struct Row {
    node: String,
    #[serde(flatten)]
    vm: VmInfo,
}

impl PsCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let clients = self.reach.all()?;
        let mut rows = Vec::new();
        for client in &clients {
            let vms: Vec<VmInfo> = client.get("/v1/vms")?;
            let shown = vms.into_iter().filter(|vm| self.all || vm.state != VmState::Ended);
            rows.extend(shown.map(|vm| Row { node: client.node().to_string(), vm }));
        }
        if self.json {
            print_json(&rows)?;
        } else {
            print_text(&table(&rows, clients.len() > 1))?;
        }
        Ok(Exit::Success)
    }
}

/// The word for a state.
pub fn state(state: VmState) -> &'static str {
    match state {
        VmState::Starting => "starting",
        VmState::Ready => "ready",
        VmState::Running => "running",
        VmState::Ended => "ended",
    }
}

fn table(rows: &[Row], several: bool) -> String {
    let mut lines = Vec::with_capacity(rows.len() + 1);
    let line = |cells: [&str; 8], node: &str| {
        let [name, words, image, cpus, memory, ready, age, address] = cells;
        let mut line = format!(
            "{name:<20} {words:<10} {image:<28} {cpus:>4} {memory:>10} {ready:>9} {age:>6}  {address:<15}"
        );
        if several {
            line.push_str("  ");
            line.push_str(node);
        }
        line.trim_end().to_owned() + "\n"
    };
    let heads = ["NAME", "STATE", "IMAGE", "CPUS", "MEMORY", "READY ms", "AGE", "ADDRESS"];
    lines.push(line(heads, "NODE"));
    let now = now_ms();
    for Row { node, vm } in rows {
        let words = match vm.end.as_ref().and_then(|end| end.code) {
            Some(code) => format!("{} {code}", state(vm.state)),
            None => state(vm.state).to_owned(),
        };
        let ready = vm.ready_ms.map_or("-".to_owned(), |ms| format!("{ms:.1}"));
        let cells = [
            vm.name.as_str(),
            &words,
            vm.spec.image.as_str(),
            &vm.spec.cpus.to_string(),
            &size::show(vm.spec.memory),
            &ready,
            &age(now.saturating_sub(vm.created_ms)),
            address(vm).unwrap_or("-"),
        ];
        lines.push(line(cells, node));
    }
    lines.concat()
}

/// The address at which a VM is reached, without its network.
fn address(vm: &VmInfo) -> Option<&str> {
    let network = vm.network.as_ref()?;
    let address = network.ip.as_ref().or(network.ip6.as_ref())?;
    address.split('/').next()
}

/// A time span in its largest unit.
pub fn age(ms: u64) -> String {
    match ms / 1000 {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ ..7200 => format!("{}m", seconds / 60),
        seconds @ ..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}
