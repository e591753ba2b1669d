//! The jail of a VM's process: what is left of the host to a guest that has taken its VMM over.
//!
//! In two halves. The outer one ([`launch`]) starts the process in namespaces and a control group of its
//! own; the inner one ([`confine`]), in that process, opens all that the VM needs and then gives up
//! everything else: the host's files for an empty root, the host's network, its user, all capabilities.
//! From then on each thread has the system calls of its kind only ([`seccomp`]).
//!
//! | Module | What |
//! |---|---|
//! | [`launch`] | the process, its namespaces, its end |
//! | [`identity`] | its user on the host |
//! | [`cgroup`] | how much of the host it may take |
//! | [`namespaces`] | which, and why a host refuses them |
//! | [`confine`] | what the process gives up, in order |
//! | [`root`] | the empty root |
//! | [`privileges`] | capabilities, users, resources |
//! | [`landlock`] | the second lock |
//! | [`seccomp`] | filters of system calls, by thread |
//! | [`first`] | manners of the first process of a namespace |
//!
//! ```no_run
//! use std::os::fd::AsFd;
//! use vmm::jail::identity::Identity;
//! use vmm::jail::launch::{Jail, JailSpec, Program};
//!
//! # fn start() -> Result<(), Box<dyn std::error::Error>> {
//! let jail = Jail::prepare(JailSpec {
//!     identity: Identity::best(7),
//!     cgroup: None,
//!     loads_by_network: false,
//!     own_session: true,
//!     ends_by: None,
//! })?;
//! let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
//! let process = jail.spawn(&Program {
//!     arguments: vec!["vmm".into(), "check".into()],
//!     environment: Vec::new(),
//!     standard: [input.as_fd(), output.as_fd(), error.as_fd()],
//!     files: Vec::new(),
//! })?;
//! println!("{:?}", process.wait()?);
//! # Ok(())
//! # }
//! ```

pub mod cgroup;
mod child;
pub mod confine;
pub mod first;
pub mod identity;
pub mod landlock;
pub mod launch;
pub mod namespaces;
pub mod privileges;
pub mod root;
pub mod seccomp;

pub use self::child::Stage;
pub use self::confine::{Confinement, is_confined};
pub use self::launch::JailedProcess;
pub use self::seccomp::{ThreadKind, seal, seal_or_end};
