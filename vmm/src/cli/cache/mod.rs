//! `vmm cache`: the nodes of the distributed cache, what they hold, and moving it between them.

mod membership;
mod options;
mod pin;
mod rebalance;
mod status;

use std::path::PathBuf;

use clap::{Args, Subcommand};

pub use self::options::{
    CacheOptions, LoadOptions, WriteOptions, image_transport, open_for_writing,
};
use super::CliError;
use crate::exit::Exit;

/// See and change which nodes make up the cache.
///
/// Nodes are listed in a membership file, which every host that uses the cache sees, such as on a
/// shared file system or kept by configuration management. Changing it moves only what must move,
/// while loads go on: until the move has ended, they look for a chunk where it was as well.
///
///   vmm cache add --cache members:/etc/vmm/cache.json node1 10.0.0.1
///
///   vmm cache drain --cache members:/etc/vmm/cache.json node1
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct CacheCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Status(status::StatusCommand),
    Add(membership::AddCommand),
    Drain(membership::DrainCommand),
    Remove(membership::RemoveCommand),
    Rebalance(rebalance::RebalanceCommand),
    Pin(pin::PinCommand),
    Unpin(pin::UnpinCommand),
}

impl CacheCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        match &self.command {
            Command::Status(command) => command.run(),
            Command::Add(command) => command.run(),
            Command::Drain(command) => command.run(),
            Command::Remove(command) => command.run(),
            Command::Rebalance(command) => command.run(),
            Command::Pin(command) => command.run(),
            Command::Unpin(command) => command.run(),
        }
    }
}

/// Why the nodes of a cache were not changed.
#[derive(Debug, thiserror::Error)]
pub enum CacheCommandError {
    /// The nodes are on the command line, where nothing can change them for others.
    #[error("nodes can be changed in a membership file only: use --cache members:FILE")]
    NoFile,
    /// A node of that name is not in the file.
    #[error("'{}' has no node '{name}'; it has: {}", file.display(), known.join(", "))]
    NoNode {
        /// The file.
        file: PathBuf,
        /// The name.
        name: String,
        /// The names that are there.
        known: Vec<String>,
    },
    /// A node of that name is in the file already, as something else.
    #[error("'{}' has a node '{name}' already, at {address}", file.display())]
    Exists {
        /// The file.
        file: PathBuf,
        /// The name.
        name: String,
        /// Its address there.
        address: String,
    },
    /// An earlier change has not ended.
    #[error(
        "what the last change of '{}' began to move is not all in place, since nodes are down: \
         bring them back and run 'vmm cache rebalance', or give them up with 'vmm cache remove \
         --force'", .0.display()
    )]
    Moving(PathBuf),
    /// Nothing would be left.
    #[error("'{name}' is the last active node of '{}': add another first", file.display())]
    Last {
        /// The file.
        file: PathBuf,
        /// The name.
        name: String,
    },
    /// Something would be lost.
    #[error(
        "'{name}' is the only node that holds {items} items: drain it first (vmm cache drain), or \
         use --force to lose them"
    )]
    NotSafe {
        /// The node.
        name: String,
        /// Items that only it holds.
        items: u64,
    },
    /// What a node holds cannot be known.
    #[error(
        "'{name}' does not say what it holds ({reason}), so whether it can go is not known; use \
         --force if it is lost anyway"
    )]
    Unknown {
        /// The node.
        name: String,
        /// Why not.
        reason: String,
    },
    /// Not all could be moved. What is there is as safe as it was.
    #[error(
        "{failed} of {all} items could not be moved, and until they are the old places are looked \
         at as well; run 'vmm cache rebalance' again. The first: {first}"
    )]
    Unmoved {
        /// Items that could not be moved.
        failed: u64,
        /// Items that were to be moved.
        all: u64,
        /// The first failure.
        first: String,
    },
    /// Images that the cache lists and cannot supply.
    #[error("no node has all of: {}; push them again", .0.join(", "))]
    Lost(Vec<String>),
    /// Nodes that did not do what all were to do.
    #[error("not at all nodes: {}", .0.join("; "))]
    NotEverywhere(Vec<String>),
}

impl CacheCommandError {
    /// The exit code for it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NoFile | Self::NoNode { .. } | Self::Exists { .. } => Exit::Usage,
            Self::Moving(_) | Self::Last { .. } | Self::NotSafe { .. } => Exit::Failure,
            Self::Unknown { .. } | Self::Unmoved { .. } | Self::Lost(_) => Exit::CacheUnavailable,
            Self::NotEverywhere(_) => Exit::CacheUnavailable,
        }
    }
}
