//! Where the agent listens.
#![allow(clippy::doc_markdown, reason = "documentation comments here are help texts")]

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

/// How the agent is reached.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "API")]
pub struct HttpOptions {
    /// Unix socket to listen at; by default node.sock in the folder of --run-dir. Who may open it may do
    /// all that the agent does: only its owner may, unless --socket-group names others.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Group, by name or number, whose members may use the socket too.
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<String>,

    /// TCP address to listen at as well, by TLS 1.2 or 1.3; clients must show a certificate that
    /// --tls-client-ca has issued.
    #[arg(long, value_name = "ADDR:PORT", requires_all = ["tls_cert", "tls_key", "tls_client_ca"])]
    pub listen: Option<SocketAddr>,

    /// PEM file with the agent's certificate, and those that lead to its authority.
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub tls_cert: Option<PathBuf>,

    /// PEM file with its key.
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub tls_key: Option<PathBuf>,

    /// PEM file with the authorities of clients' certificates.
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub tls_client_ca: Option<PathBuf>,
}
