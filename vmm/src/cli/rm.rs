//! `vmm rm`: forgets VMs of the node agent.

use clap::Args;

use super::reach::Reach;
use super::{CliError, each, print_text};
use crate::api::{VmInfo, VmState};
use crate::exit::Exit;
use crate::spec::name::VmName;

/// Delete VMs of the node agent: their consoles, timings and names.
#[derive(Debug, Args)]
pub struct RmCommand {
    /// Names of VMs.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<VmName>,

    /// Those that live too: they are killed.
    #[arg(short, long)]
    force: bool,

    #[command(flatten)]
    reach: Reach,
}

impl RmCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let client = self.reach.one()?;
        each(&self.names, |name| {
            let path = format!("/v1/vms/{name}");
            if !self.force {
                let info: VmInfo = client.get(&path)?;
                if info.state != VmState::Ended {
                    return Err(CliError::VmLives(name.clone()));
                }
            }
            client.delete(&path)?;
            print_text(&format!("{name}\n"))
        })
    }
}
