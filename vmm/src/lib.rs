//! The microVM manager: the KVM machine, the loader, and the commands that drive them.
//!
//! - [`cli`]: the command line, a file a subcommand;
//! - [`machine`]: the virtual machine and its event loop;
//! - [`loader`]: from an image in the cache to guest memory that holds it;
//! - [`host`]: what this host can do;
//! - [`exit`]: the exit codes.

pub mod cli;
pub mod exit;
pub mod host;
pub mod loader;
pub mod machine;
