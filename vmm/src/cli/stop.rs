//! `vmm stop`: ends VMs of the node agent.

use clap::Args;

use super::reach::Reach;
use super::which::Which;
use super::{CliError, each, print_text};
use crate::api::client::{Client, ClientError};
use crate::api::{StopVm, VmInfo, VmState};
use crate::exit::Exit;
use crate::spec::name::VmName;

/// Stop VMs of the node agent.
///
/// A VM is told to end, and killed if it has not after five seconds. It is listed by 'vmm ps --all' until
/// it is deleted ('vmm rm').
#[derive(Debug, Args)]
pub struct StopCommand {
    #[command(flatten)]
    which: Which,

    /// Kill them at once.
    #[arg(short, long)]
    kill: bool,

    /// Do not wait until they have ended.
    #[arg(long)]
    no_wait: bool,

    #[command(flatten)]
    reach: Reach,
}

impl StopCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let client = self.reach.one()?;
        let lives = |state| state != VmState::Ended;
        each(&self.which.names(&client, lives)?, |name| {
            let how = StopVm { kill: self.kill };
            let _: VmInfo = client.post(&format!("/v1/vms/{name}/stop"), &how)?;
            if !self.no_wait {
                wait_for_end(&client, name)?;
            }
            print_text(&format!("{name}\n"))
        })
    }
}

/// Waits until a VM has ended; nothing where it was forgotten at once.
pub fn wait_for_end(client: &Client, name: &VmName) -> Result<Option<VmInfo>, CliError> {
    loop {
        match client.get(&format!("/v1/vms/{name}/wait?state=ended&timeout_ms=600000")) {
            Ok(info) => return Ok(Some(info)),
            Err(ClientError::Refused(body)) if body.kind == "not_found" => return Ok(None),
            // It lives longer than one request may take.
            Err(ClientError::Refused(body)) if body.kind == "state" => {}
            Err(error) => return Err(error.into()),
        }
    }
}
