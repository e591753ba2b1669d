//! `vmm net`: the network of this host's own that `--net nat` makes.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{CliError, print_json, print_text};
use crate::exit::Exit;
use crate::net::{bridge, nat, netlink::Route};

/// Look at, or remove, the bridge that '--net nat' has made.
#[derive(Debug, Args)]
pub struct NetCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the VMs on a bridge, as their interfaces say.
    Ls(LsCommand),
    /// Remove the bridge of '--net nat' with its address translation. Forwarding between networks stays
    /// switched on.
    Rm,
}

#[derive(Debug, Args)]
struct LsCommand {
    /// The bridge.
    #[arg(long, value_name = "NAME", default_value = nat::BRIDGE)]
    bridge: String,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A VM's port, as it is listed.
#[derive(Debug, Serialize)]
struct Listed {
    port: String,
    name: Option<String>,
    mac: Option<String>,
    ip: Option<String>,
    ip6: Option<String>,
}

impl NetCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        match &self.command {
            Command::Ls(command) => command.run()?,
            Command::Rm => {
                let removed = nat::remove()?;
                let what = if removed { "is removed" } else { "is not there" };
                print_text(&format!("{} {what}\n", nat::BRIDGE))?;
            }
        }
        Ok(Exit::Success)
    }
}

impl LsCommand {
    fn run(&self) -> Result<(), CliError> {
        let mut route = Route::open()?;
        let bridge = bridge::find(&mut route, &self.bridge)?;
        let ports = bridge::ports(&mut route, &bridge)?;
        let listed: Vec<_> = ports.into_iter().map(Listed::from).collect();
        if self.json {
            return print_json(&listed);
        }
        let row = |words: [&str; 4]| {
            format!("{:<15} {:<24} {:<17} {}\n", words[0], words[1], words[2], words[3])
        };
        let mut text = row(["PORT", "VM", "MAC", "ADDRESSES"]);
        for port in &listed {
            let or = |word: &Option<String>| word.clone().unwrap_or_else(|| "-".into());
            let addresses: Vec<_> = [&port.ip, &port.ip6].into_iter().flatten().cloned().collect();
            text.push_str(&row([
                &port.port,
                &or(&port.name),
                &or(&port.mac),
                &addresses.join(" "),
            ]));
        }
        print_text(text.trim_end_matches(' '))
    }
}

impl From<bridge::Claim> for Listed {
    fn from(claim: bridge::Claim) -> Self {
        let word = |key: &str| claim.word(key).map(str::to_owned);
        let (name, mac, ip, ip6) = (word("name"), word("mac"), word("ip"), word("ip6"));
        Self { name, mac, ip, ip6, port: claim.port }
    }
}
