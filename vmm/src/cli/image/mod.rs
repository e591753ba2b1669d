//! `vmm image`: what is in the store.

mod agent;
mod gc;
mod inspect;
mod ls;
mod publish;
mod push;
mod rm;
mod verify;
mod warm;

use clap::{Args, Subcommand};

use super::{CliError, StoreOptions};
use crate::exit::Exit;

/// Push, list, check and remove images.
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct ImageCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Push(push::PushCommand),
    Publish(publish::PublishCommand),
    Ls(ls::LsCommand),
    Inspect(inspect::InspectCommand),
    Verify(verify::VerifyCommand),
    Warm(warm::WarmCommand),
    Rm(rm::RmCommand),
    Gc(gc::GcCommand),
}

impl ImageCommand {
    pub fn run(&self, store: &StoreOptions) -> Result<Exit, CliError> {
        match &self.command {
            Command::Push(command) => command.run(store),
            Command::Publish(command) => command.run(store),
            Command::Ls(command) => command.run(store),
            Command::Inspect(command) => command.run(store),
            Command::Verify(command) => command.run(store),
            Command::Warm(command) => command.run(store),
            Command::Rm(command) => command.run(store),
            Command::Gc(command) => command.run(store),
        }
    }
}
