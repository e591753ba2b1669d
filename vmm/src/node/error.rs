//! Why the node agent did not do what it was asked for.

use std::io;
use std::path::PathBuf;

use imgcache::client::LoadError;
use imgcache::image::name::ImageName;
use imgcache::transport::TransportError;

use super::endpoints::EndpointError;
use crate::api::VmState;
use crate::exit::Exit;
use crate::host::kvm::HostError;
use crate::spec::name::{TenantName, VmName};

/// Why not.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// There is no VM of this name.
    #[error("there is no VM '{0}' on this node; 'vmm ps --all' lists them")]
    NoVm(VmName),
    /// There is one already.
    #[error("there is a VM '{0}' already; delete it ('vmm rm {0}') or choose another name")]
    Exists(VmName),
    /// The VM is not in a state in which that can be done.
    #[error("VM '{name}' cannot be {what}: it is {state:?}")]
    State {
        /// Which.
        name: VmName,
        /// What was asked for, as a participle.
        what: &'static str,
        /// How far it is.
        state: VmState,
    },
    /// It did not get that far in time.
    #[error("VM '{name}' is {state:?}, and not yet {wanted:?}, after {seconds:.1} s")]
    Slow {
        /// Which.
        name: VmName,
        /// How far it is.
        state: VmState,
        /// How far it was to be.
        wanted: VmState,
        /// How long was waited.
        seconds: f64,
    },
    /// The node has as many VMs as it may.
    #[error("the node has {0} VMs, as many as it may (--max-vms)")]
    Full(u32),
    /// Its VMs may not be on this bridge.
    #[error(
        "VMs of this node may not be on bridge '{bridge}': use one of {allowed:?} (--allow-bridge)"
    )]
    Bridge {
        /// Its name.
        bridge: String,
        /// Those that they may be on.
        allowed: Vec<String>,
    },
    /// The node takes no new VMs.
    #[error("the node is being drained and takes no new VMs ('vmm node undrain')")]
    Draining,
    /// This image is not in the pool.
    #[error("image '{image}' of tenant '{tenant}' is not in the pool")]
    NotInPool {
        /// Its name.
        image: ImageName,
        /// Whose.
        tenant: TenantName,
    },
    /// The image is in use.
    #[error("image '{image}' is used by {vms} VMs and stays in the pool for as long")]
    InUse {
        /// Its name.
        image: ImageName,
        /// How many use it.
        vms: usize,
    },
    /// The pool has no room.
    #[error(
        "image '{image}' needs {needed} bytes of the pool, whose {limit} bytes hold {used} bytes of \
         images that are in use or pinned; unpin some, or give the pool more (--pool)"
    )]
    PoolFull {
        /// Its name.
        image: ImageName,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that the pool may have.
        limit: u64,
        /// Bytes that cannot be given up.
        used: u64,
    },
    /// The image cannot be kept in a pool.
    #[error("image '{0}' has a part that cannot be mapped; push it again with this version")]
    NotMappable(ImageName),
    /// The image.
    #[error(transparent)]
    Image(#[from] LoadError),
    /// Where images come from.
    #[error("images cannot be read: {0}")]
    Images(String),
    /// Guests cannot run here.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Another agent has the folder.
    #[error("another agent uses {}", .0.display())]
    Running(PathBuf),
    /// Endpoints.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The VM's socket did not answer.
    #[error("VM '{name}' does not answer: {source}")]
    Silent {
        /// Which.
        name: VmName,
        /// What happened.
        source: io::Error,
    },
    /// The system's refusal.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

impl NodeError {
    /// Of the system's refusal to do `what`.
    pub fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }

    /// Its kind, for machines: see [`ErrorBody`](crate::api::ErrorBody).
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoVm(_) | Self::NotInPool { .. } => "not_found",
            Self::Exists(_) => "exists",
            Self::State { .. } | Self::Slow { .. } | Self::InUse { .. } => "state",
            Self::Full(_) | Self::PoolFull { .. } => "capacity",
            Self::Bridge { .. } => "invalid",
            Self::Draining => "draining",
            Self::Image(LoadError::NotFound(_)) => "image_not_found",
            Self::Image(LoadError::Damaged { .. } | LoadError::DamagedInPlace { .. })
            | Self::NotMappable(_) => "image_damaged",
            Self::Image(LoadError::Io { source, .. }) => match **source {
                TransportError::Cache(_) => "cache_unavailable",
                _ => "internal",
            },
            Self::Images(_) => "cache_unavailable",
            Self::Host(_) => "host",
            Self::System { source, .. } if source.kind() == io::ErrorKind::Unsupported => "host",
            Self::Endpoint(error) => error.kind(),
            Self::Image(LoadError::NoSuchChunk { .. })
            | Self::Running(_)
            | Self::Silent { .. }
            | Self::System { .. } => "internal",
        }
    }

    /// The exit code for it.
    pub fn exit(&self) -> Exit {
        Exit::of_kind(self.kind())
    }
}
