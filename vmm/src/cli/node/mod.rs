//! `vmm node`: the node agent, and what is asked of it as a whole.

pub mod agent;
mod images;
mod info;
pub mod log;

use clap::{Args, Subcommand};

use self::agent::AgentOptions;
use super::{CliError, StoreOptions, print_text};
use crate::exit::{self, Exit};
use crate::node::http;

/// Run the node agent of this host, or ask one something.
///
/// Without a command it is the agent: it boots VMs for whoever asks at its socket, out of a pool of images
/// that VMs of one image share, until it gets a SIGTERM. VMs do not end with it; one that is started again
/// finds them.
///
///   vmm node &
///
///   vmm boot --node --detach --image hello
///
///   vmm ps
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, args_conflicts_with_subcommands = true)]
#[command(after_long_help = exit::TABLE)]
pub struct NodeCommand {
    #[command(flatten)]
    agent: AgentOptions,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Info(info::InfoCommand),
    Drain(info::DrainCommand),
    Undrain(info::UndrainCommand),
    Images(images::ImagesCommand),
    Pull(images::PullCommand),
    Pin(images::PinCommand),
    Unpin(images::UnpinCommand),
    Drop(images::DropCommand),
    Openapi(OpenapiCommand),
}

/// Print the agent's API as an OpenAPI document.
#[derive(Debug, Args)]
struct OpenapiCommand {}

impl NodeCommand {
    /// The options of the agent, if this is one.
    pub fn agent(&self) -> Option<&AgentOptions> {
        self.command.is_none().then_some(&self.agent)
    }

    pub fn run(&self, store: &StoreOptions) -> Result<Exit, CliError> {
        match &self.command {
            None => self.agent.run(store),
            Some(Command::Info(command)) => command.run(),
            Some(Command::Drain(command)) => command.run(),
            Some(Command::Undrain(command)) => command.run(),
            Some(Command::Images(command)) => command.run(),
            Some(Command::Pull(command)) => command.run(),
            Some(Command::Pin(command)) => command.run(),
            Some(Command::Unpin(command)) => command.run(),
            Some(Command::Drop(command)) => command.run(),
            Some(Command::Openapi(_)) => {
                print_text(&http::document())?;
                Ok(Exit::Success)
            }
        }
    }
}
