//! `vmm rm`: forgets VMs of the node agent.

use clap::Args;

use super::reach::Reach;
use super::which::Which;
use super::{CliError, each, print_text};
use crate::api::{VmInfo, VmState};
use crate::exit::Exit;

/// Delete VMs of the node agent: their consoles, timings and names.
///
/// With --all, those that have ended; with --force too, all that there are.
#[derive(Debug, Args)]
pub struct RmCommand {
    #[command(flatten)]
    which: Which,

    /// Those that live too: they are killed.
    #[arg(short, long)]
    force: bool,

    #[command(flatten)]
    reach: Reach,
}

impl RmCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let client = self.reach.one()?;
        let is_wanted = |state| self.force || state == VmState::Ended;
        each(&self.which.names(&client, is_wanted)?, |name| {
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
