//! How a node agent is set up.
#![allow(clippy::doc_markdown, reason = "documentation comments here are help texts")]

use std::path::PathBuf;

use clap::Args;

use super::endpoints::options::EndpointOptions;
use crate::size;

/// How the agent works.
#[derive(Debug, Clone, Args)]
pub struct NodeOptions {
    /// Folder of what is known of VMs, and of the agent's socket; by default $XDG_RUNTIME_DIR/vmm, or
    /// /run/vmm.
    #[arg(long, value_name = "DIR", env = "VMM_RUN_DIR")]
    pub run_dir: Option<PathBuf>,

    /// Memory that images may take on this host. What nobody uses any more is given up when there is no
    /// room, and brought again when it is wanted.
    #[arg(long, value_name = "SIZE", default_value = "4G", value_parser = size::parse)]
    pub pool: u64,

    /// VMs that may live at a time.
    #[arg(long, value_name = "N", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_vms: u32,

    /// VMs that are made ready at a time; more wait for their turn. By default twice as many as the host
    /// has processors.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub parallel: Option<u32>,

    /// VMs that have ended and are still listed; of more, those that ended first are forgotten.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub keep_ended: usize,

    /// Do without jails. Else each VM is in one, as with 'vmm boot --jail': namespaces, an empty root, no
    /// privileges, filters of system calls, and, where the agent is root, a user and a control group of its
    /// own.
    #[arg(long)]
    pub no_jail: bool,

    /// A bridge that VMs may be put on with '--net bridge=NAME'. For each one; by default any of this host's,
    /// so name those that whoever may ask this agent may be on.
    #[arg(long, value_name = "NAME")]
    pub allow_bridge: Vec<String>,

    /// When the agent ends, leave the pool in memory for the next one. VMs live on in any case.
    #[arg(long)]
    pub keep_pool: bool,

    /// Virtual endpoints of its VMs.
    #[command(flatten)]
    pub endpoints: EndpointOptions,
}

impl NodeOptions {
    /// The folder.
    pub fn folder(&self) -> PathBuf {
        self.run_dir.clone().unwrap_or_else(default_folder)
    }
}

/// Where an agent is unless told otherwise.
pub fn default_folder() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("vmm"));
    runtime.unwrap_or_else(|| PathBuf::from("/run/vmm"))
}
