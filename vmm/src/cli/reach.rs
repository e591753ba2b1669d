//! The options that say where node agents are.

use std::path::PathBuf;

use clap::Args;
use imgcache::transport::cluster::{Tls, TlsFiles};

use super::{CliError, print_json, print_text};
use crate::api::client::{Client, ClientError, NodeAddress, socket_in};
use crate::exit::Exit;
use crate::node::options::default_folder;

/// How agents are reached.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Node agent")]
pub struct Reach {
    /// Agent to ask: unix:/PATH or https://HOST:PORT; by default the one of this host, which is
    /// node.sock in $VMM_RUN_DIR, $XDG_RUNTIME_DIR/vmm or /run/vmm. Commands that only look take
    /// several, separated by commas.
    #[arg(long, value_name = "ADDRESS", env = "VMM_NODE", value_delimiter = ',')]
    node: Vec<NodeAddress>,

    #[command(flatten)]
    tls: ReachTls,
}

/// Which agent is asked, and how it is said what it answers.
#[derive(Debug, Args)]
pub struct Asking {
    /// Print one line of JSON.
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub reach: Reach,
}

impl Asking {
    /// Prints an answer: `value` as JSON, or `text` for people.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn print(&self, value: &impl serde::Serialize, text: &str) -> Result<Exit, CliError> {
        if self.json {
            print_json(value)?;
        } else {
            print_text(text)?;
        }
        Ok(Exit::Success)
    }
}

/// How agents are spoken to by TLS.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Node agent")]
#[expect(clippy::struct_field_names, reason = "they are the names of the options")]
pub struct ReachTls {
    /// PEM file with the authorities that agents' certificates must come from (https://).
    #[arg(long, value_name = "FILE", env = "VMM_NODE_TLS_CA")]
    node_tls_ca: Option<PathBuf>,

    /// PEM file with this client's certificate.
    #[arg(long, value_name = "FILE", env = "VMM_NODE_TLS_CERT", requires = "node_tls_key")]
    node_tls_cert: Option<PathBuf>,

    /// PEM file with the key of that certificate.
    #[arg(long, value_name = "FILE", env = "VMM_NODE_TLS_KEY", requires = "node_tls_cert")]
    node_tls_key: Option<PathBuf>,
}

/// The address of the agent of this host.
fn local() -> NodeAddress {
    let folder = std::env::var_os("VMM_RUN_DIR").map_or_else(default_folder, PathBuf::from);
    NodeAddress::Unix(socket_in(&folder))
}

impl ReachTls {
    /// A client of an agent, the one of this host if none is named.
    ///
    /// # Errors
    /// Files of TLS that are missing or cannot be used.
    pub fn client(&self, node: Option<NodeAddress>) -> Result<Client, CliError> {
        let node = node.unwrap_or_else(local);
        let tls = match node {
            NodeAddress::Unix(_) => None,
            NodeAddress::Https { .. } => {
                let files = TlsFiles {
                    authorities: self.node_tls_ca.clone(),
                    certificate: self.node_tls_cert.clone(),
                    key: self.node_tls_key.clone(),
                    server_name: None,
                };
                if files.authorities.is_none() || files.certificate.is_none() {
                    return Err(ClientError::NoTls(node).into());
                }
                Some(Tls::new(&files).map_err(CliError::NodeTls)?.config())
            }
        };
        Ok(Client::new(node, tls))
    }
}

impl Reach {
    /// The agent that does it.
    ///
    /// # Errors
    /// Several are named, or how to speak to it by TLS is not said.
    pub fn one(&self) -> Result<Client, CliError> {
        match self.node.as_slice() {
            [] | [_] => self.tls.client(self.node.first().cloned()),
            [_, ..] => Err(CliError::SeveralNodes),
        }
    }

    /// All that are to be asked.
    ///
    /// # Errors
    /// How to speak to one by TLS is not said.
    pub fn all(&self) -> Result<Vec<Client>, CliError> {
        if self.node.is_empty() {
            return Ok(vec![self.tls.client(None)?]);
        }
        self.node.iter().map(|node| self.tls.client(Some(node.clone()))).collect()
    }
}
