//! `vmm fleet boot`: from a name to many running guests.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::api::VmInfo;
use crate::api::client::{Client, ClientError, NodeAddress};
use crate::api::{CreateVm, VmState};
use crate::cli::reach::ReachTls;
use crate::cli::{CliError, print_json, print_text, say};
use crate::exit::{self, Exit};
use crate::fleet::{self, Fleet, FleetNode, NodeFailure, Report, summary};
use crate::spec::VmSpec;
use crate::spec::name::{TenantName, VmName};

/// Boot many VMs of one image.
///
/// They are spread over the nodes in turn, each of which runs an agent ('vmm node'). A VM that fails
/// changes nothing for the others: it is named, and the exit code is that of the first failure.
///
/// Ctrl-C calls it off: every VM that was begun is deleted again.
///
///   vmm fleet boot --image debian:12 --count 100
///
///   vmm fleet boot --image debian:12 --count 100 --on unix:/run/vmm/node.sock,https://host2:7070
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = exit::TABLE)]
pub struct BootCommand {
    /// How many.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,

    /// The nodes that they are booted on; by default the agent of this host.
    #[arg(long, value_name = "NODE,...", value_delimiter = ',', env = "VMM_NODE")]
    on: Vec<NodeAddress>,

    /// VMs are called this, with a number behind it; by default fleet- and four letters and digits.
    #[arg(long, value_name = "NAME")]
    name: Option<VmName>,

    /// Whose they are: VMs of different tenants never share a page of an image.
    #[arg(long, value_name = "NAME", default_value_t)]
    tenant: TenantName,

    /// VMs that are begun at a time.
    #[arg(long, value_name = "P", default_value_t = 8,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    parallel: u32,

    /// Only make them ready: everything but their guests' first instruction. 'vmm start' lets one begin.
    /// Works on every kind of KVM.
    #[arg(long)]
    hold: bool,

    /// Have the nodes forget each VM as soon as it has ended.
    #[arg(long)]
    rm: bool,

    /// Seconds that each may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 120,
          value_parser = clap::value_parser!(u64).range(1..=86400))]
    timeout: u64,

    /// Print the report as JSON, with each VM and its phases.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    spec: VmSpec,

    #[command(flatten)]
    tls: ReachTls,
}

impl FleetNode for Client {
    fn name(&self) -> String {
        self.node().to_string()
    }

    fn create(&self, vm: &CreateVm) -> Result<VmInfo, NodeFailure> {
        self.post("/v1/vms", vm).map_err(|error| failure(&error))
    }

    fn wait(
        &self,
        name: &VmName,
        state: VmState,
        patience: Duration,
    ) -> Result<VmInfo, NodeFailure> {
        let state = match state {
            VmState::Starting => "starting",
            VmState::Ready => "ready",
            VmState::Running => "running",
            VmState::Ended => "ended",
        };
        let path = format!("/v1/vms/{name}/wait?state={state}&timeout_ms={}", patience.as_millis());
        self.get(&path).map_err(|error| {
            let failure = failure(&error);
            NodeFailure { slow: is_of_kind(&error, "state"), ..failure }
        })
    }

    fn delete(&self, name: &VmName) -> Result<(), NodeFailure> {
        self.delete(&format!("/v1/vms/{name}")).map_err(|error| failure(&error))
    }
}

impl BootCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let stop = Arc::<AtomicBool>::default();
        for signal in [SIGINT, SIGTERM] {
            // The second one ends this at once.
            let signals =
                signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())
                    .and_then(|_| signal_hook::flag::register(signal, stop.clone()));
            let source = |source| CliError::Output { what: "handle Ctrl-C".into(), source };
            signals.map_err(source)?;
        }
        let clients = self.clients()?;
        let nodes: Vec<&dyn FleetNode> = clients.iter().map(|node| node as _).collect();
        let fleet = Fleet {
            prefix: self.name.clone().unwrap_or_else(VmName::of_a_fleet),
            count: self.count,
            parallel: self.parallel,
            spec: self.spec.clone(),
            tenant: self.tenant.clone(),
            hold: self.hold,
            remove: self.rm,
            patience: Duration::from_secs(self.timeout),
        };
        let bar = self.progress();
        let mut failed = 0u32;
        let report = fleet::boot(&nodes, &fleet, &stop, |vm| {
            failed += u32::from(vm.error.is_some());
            if let Some(bar) = &bar {
                bar.inc(1);
                if failed > 0 {
                    bar.set_message(format!("{failed} failed"));
                }
            }
        });
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        if self.json {
            print_json(&report)?;
        } else {
            print_text(&self.text(&report, nodes.len()))?;
        }
        for vm in &report.vms {
            if let Some(error) = &vm.error
                && !report.called_off
            {
                say(&format!("vmm: VM '{}' on {}: {error}\n", vm.name, vm.node));
            }
        }
        Ok(report.exit())
    }

    fn clients(&self) -> Result<Vec<Client>, CliError> {
        if self.on.is_empty() {
            return Ok(vec![self.tls.client(None)?]);
        }
        self.on.iter().map(|node| self.tls.client(Some(node.clone()))).collect()
    }

    fn progress(&self) -> Option<ProgressBar> {
        if !std::io::stderr().is_terminal() {
            return None;
        }
        let style = ProgressStyle::with_template("{bar:30} {pos} of {len} VMs, {elapsed} {msg}");
        let bar = ProgressBar::new(self.count.into());
        Some(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
    }

    fn text(&self, report: &Report, nodes: usize) -> String {
        let Report { count, booted, seconds, per_second, .. } = report;
        if report.called_off {
            return format!("called off: {booted} VMs were begun, and deleted again\n");
        }
        let state = if self.hold { "ready to boot" } else { "booted" };
        let nodes = if nodes == 1 { "1 node".into() } else { format!("{nodes} nodes") };
        let head = format!(
            "{booted} of {count} VMs {state} in {seconds:.2} s, {per_second:.1} a second, on {nodes}\n"
        );
        if *booted == 0 { head } else { head + &summary::table(&report.summary) }
    }
}

fn failure(error: &ClientError) -> NodeFailure {
    NodeFailure {
        message: error.to_string(),
        exit: error.exit(),
        slow: false,
        gone: is_of_kind(error, "not_found"),
    }
}

fn is_of_kind(error: &ClientError, kind: &str) -> bool {
    matches!(error, ClientError::Refused(body) if body.kind == kind)
}
