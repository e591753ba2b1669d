//! `vmm start`: has VMs begin that are held.

use clap::Args;

use super::reach::Reach;
use super::{CliError, each, print_text};
use crate::api::VmInfo;
use crate::exit::Exit;
use crate::spec::name::VmName;

/// Start VMs of the node agent that are held ('vmm boot --node --hold').
#[derive(Debug, Args)]
pub struct StartCommand {
    /// Names of VMs.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<VmName>,

    #[command(flatten)]
    reach: Reach,
}

impl StartCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let client = self.reach.one()?;
        each(&self.names, |name| {
            let _: VmInfo = client.post_nothing(&format!("/v1/vms/{name}/start"))?;
            print_text(&format!("{name}\n"))
        })
    }
}
