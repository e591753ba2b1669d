//! The arguments that say which VMs of a node agent.

use clap::Args;

use super::CliError;
use crate::api::client::Client;
use crate::api::{VmInfo, VmState};
use crate::spec::name::VmName;

/// VMs by their names, or all.
#[derive(Debug, Args)]
pub struct Which {
    /// Names of VMs.
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "NAME")]
    names: Vec<VmName>,

    /// All VMs of the agent that this can be done to.
    #[arg(short, long)]
    all: bool,
}

impl Which {
    /// Their names; of all, those in a state that is wanted.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn names(
        &self,
        client: &Client,
        wanted: impl Fn(VmState) -> bool,
    ) -> Result<Vec<VmName>, CliError> {
        if !self.all {
            return Ok(self.names.clone());
        }
        let vms: Vec<VmInfo> = client.get("/v1/vms")?;
        Ok(vms.into_iter().filter(|vm| wanted(vm.state)).map(|vm| vm.name).collect())
    }
}
