//! `vmm boot --node`: the same boot, by a node agent.

use clap::Args;

use super::super::console::{Attached, Happened};
use super::super::reach::ReachTls;
use super::super::stop::wait_for_end;
use super::super::{CliError, print_json, print_text, say, timings};
use crate::api::client::{Client, NodeAddress};
use crate::api::{CreateVm, StopVm, Timings, VmInfo, VmState};
use crate::exit::Exit;
use crate::machine::escape;
use crate::spec::VmSpec;
use crate::spec::name::{TenantName, VmName};

/// Boots by a node agent.
#[derive(Debug, Args)]
#[command(next_help_heading = "Node agent")]
pub struct RemoteOptions {
    /// Have a node agent boot it: unix:/PATH or https://HOST:PORT; without a value $VMM_NODE, or the agent
    /// of this host ('vmm node'). The image comes out of the agent's pool, from its store or cache. This
    /// terminal is the console until the VM ends; the exit code is the VM's.
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, conflicts_with_all = [
        "ready_only", "report", "console", "chunks_from", "may", "boot_quota", "events"])]
    #[expect(clippy::option_option, reason = "not given, given, given with a value")]
    node: Option<Option<NodeAddress>>,

    /// With --node: do not stay; print the VM's name and end as soon as it is started.
    #[arg(short, long, requires = "node")]
    detach: bool,

    /// With --node: do everything up to starting the processors, and wait for 'vmm start'. Works on every
    /// kind of KVM.
    #[arg(long, requires = "node", requires = "detach")]
    hold: bool,

    /// With --node: whose VM it is. Tenants never share a page of an image.
    #[arg(long, value_name = "NAME", requires = "node")]
    tenant: Option<TenantName>,

    /// With --node: forget the VM when it has ended.
    #[arg(long, requires = "node")]
    rm: bool,

    #[command(flatten)]
    tls: ReachTls,
}

/// What of `vmm boot` counts here too.
#[derive(Debug)]
pub struct Boot<'a> {
    /// What it is.
    pub spec: &'a VmSpec,
    /// Its name.
    pub name: Option<&'a VmName>,
    /// Whether to show how long phases took.
    pub timings: bool,
    /// Whether to print what is known of it at the end.
    pub json: bool,
}

impl RemoteOptions {
    /// Whether an agent boots it.
    pub fn is_wanted(&self) -> bool {
        self.node.is_some()
    }

    fn client(&self) -> Result<Client, CliError> {
        let named = self.node.clone().flatten();
        let from_environment = || {
            let text = std::env::var("VMM_NODE").ok().filter(|text| !text.is_empty())?;
            Some(text.parse().map_err(CliError::NodeAddress))
        };
        let node = named.map(Ok).or_else(from_environment).transpose()?;
        self.tls.client(node)
    }

    /// Has an agent boot it.
    pub fn run(&self, boot: &Boot<'_>) -> Result<Exit, CliError> {
        let client = self.client()?;
        let wish = CreateVm {
            name: boot.name.cloned(),
            tenant: self.tenant.clone().unwrap_or_default(),
            hold: self.hold,
            // Who waits for its end forgets it then.
            remove: self.rm && self.detach,
            spec: boot.spec.clone(),
        };
        let info: VmInfo = client.post("/v1/vms", &wish)?;
        if self.detach {
            if boot.json {
                print_json(&info)?;
            } else {
                print_text(&format!("{}\n", info.name))?;
            }
            return Ok(Exit::Success);
        }
        let ended = attend(&client, &info.name);
        let info = ended?;
        if boot.timings {
            let timings: Timings = client.get(&format!("/v1/vms/{}/timings", info.name))?;
            say(&timings::all(&timings));
        }
        if boot.json {
            let text = serde_json::to_string(&info).unwrap_or_default();
            say(&format!("{text}\n"));
        }
        if self.rm {
            client.delete(&format!("/v1/vms/{}", info.name))?;
        }
        Ok(exit(&info))
    }
}

/// Is a VM's console until it ends.
fn attend(client: &Client, name: &VmName) -> Result<VmInfo, CliError> {
    let attached = Attached::begin(client, name, escape::HELP)?;
    let mut kill = false;
    loop {
        match attached.wait() {
            Happened::Quit => {
                let _: VmInfo = client.post(&format!("/v1/vms/{name}/stop"), &StopVm { kill })?;
                kill = true;
            }
            Happened::Output(ended) => {
                drop(attached);
                ended?;
                break;
            }
        }
    }
    let info: VmInfo = client.get(&format!("/v1/vms/{name}"))?;
    if info.state == VmState::Ended {
        return Ok(info);
    }
    let info = wait_for_end(client, name)?;
    info.ok_or_else(|| CliError::VmEnded(name.clone()))
}

/// The exit code of a VM that has ended.
fn exit(info: &VmInfo) -> Exit {
    let Some(end) = &info.end else { return Exit::Failure };
    let exit = end.code.and_then(Exit::of_code).unwrap_or(Exit::Failure);
    if exit.code() != 0 {
        say(&format!("vmm: {}\n", end.reason));
    }
    exit
}
