//! `vmm fleet`: many VMs at once.

mod boot;

use clap::{Args, Subcommand};

use super::CliError;
use crate::exit::Exit;

/// Boot many VMs at once, on one node or many.
#[derive(Debug, Args)]
pub struct FleetCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Boot(boot::BootCommand),
}

impl FleetCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        match &self.command {
            Command::Boot(command) => command.run(),
        }
    }
}
