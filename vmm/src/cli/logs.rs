//! `vmm logs`: what the console of a VM of the node agent has printed.

use clap::Args;

use super::reach::Reach;
use super::{CliError, copy_out};
use crate::exit::Exit;
use crate::spec::name::VmName;

/// Print what a VM's console has printed: the first MiB of it.
#[derive(Debug, Args)]
pub struct LogsCommand {
    /// Its name.
    #[arg(value_name = "NAME")]
    name: VmName,

    /// Print the last 64 KiB instead, and go on with what comes, until the VM ends.
    #[arg(short, long)]
    follow: bool,

    #[command(flatten)]
    reach: Reach,
}

impl LogsCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let follow = self.follow;
        let path = format!("/v1/vms/{}/console?follow={follow}", self.name);
        copy_out(self.reach.one()?.stream(&path)?)?;
        Ok(Exit::Success)
    }
}
