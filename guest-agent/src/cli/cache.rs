//! `cache`: where the images come from that this VM boots others from.

use clap::Args;
use serde::Serialize;

use super::exit::Exit;
use super::{CliError, Global};

/// Say which cache the VMs come from that are booted from now on.
#[derive(Debug, Args)]
pub struct CacheCommand {
    /// The nodes, as HOST[:PORT],...; without any, the host chooses.
    servers: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    servers: String,
}

impl CacheCommand {
    pub fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let servers = options.driver()?.cache_config(self.servers.as_deref())?;
        let text = match servers.as_str() {
            "" => "the host's own choice\n".to_owned(),
            servers => format!("{servers}\n"),
        };
        options.print(&Report { servers }, &text)?;
        Ok(Exit::Success)
    }
}
