//! The microVM manager: the KVM machine, the loader, and the commands that drive them.
//!
//! - [`api`]: what goes over the node agent's connections;
//! - [`boot`](mod@boot): from an open image to a machine that is ready;
//! - [`cli`]: the command line, a file a subcommand;
//! - [`machine`]: the virtual machine and its event loop;
//! - [`control`]: what guests ask for through the control device;
//! - [`loader`]: from an image in the cache to guest memory that holds it;
//! - [`fleet`]: many VMs at once;
//! - [`host`]: what this host can do;
//! - [`jail`]: what a VM's process gives up;
//! - [`net`]: connects VMs to networks;
//! - [`exit`]: the exit codes;
//! - [`node`]: the node agent;
//! - [`process`]: the process of a VM that the node agent has started;
//! - [`spec`]: what a VM is to be;
//! - [`size`]: sizes as people write them.

pub mod api;
pub mod boot;
pub mod cli;
pub mod control;
pub mod disk;
pub mod endpoint;
pub mod exit;
pub mod fleet;
pub mod host;
pub mod jail;
pub mod loader;
pub mod machine;
pub mod net;
pub mod node;
pub mod process;
pub mod size;
pub mod spec;
