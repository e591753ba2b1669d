//! Why an endpoint was not changed.

use control_abi::status::Error as Status;
use endpoint::directory::DirectoryError;
use endpoint::keeper::KeeperError;
use endpoint::moving::NoMove;
use endpoint::name::InvalidName;
use endpoint::range::InvalidRange;
use endpoint::record::InvalidPlace;
use endpoint::rights::Forbidden;
use endpoint::vid::InvalidVid;
use vswitch::{PlaneError, SwitchError, SyncError};

/// Why not.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Nobody has announced the service.
    #[error("nobody has announced '{0}'; 'vmm endpoint ls' lists what there is")]
    NoService(String),
    /// There is no VM of this name on the node that may have endpoints.
    #[error(
        "'{0}' is no running VM of this node that may have endpoints: boot it with '--endpoint services=...'"
    )]
    NoVm(String),
    /// The VM is on no bridge.
    #[error("VM '{0}' is on no bridge: boot it with '--net nat' or '--net bridge=NAME'")]
    NoBridge(String),
    /// The two VMs do not have a bridge in common.
    #[error("VM '{0}' is on bridge {1}, and '{2}' on another")]
    OtherBridge(String, String, String),
    /// The service has more than one range.
    #[error("'{0}' has {1} ranges here: say which, by its first and last request")]
    Several(String, usize),
    /// The range is at another host.
    #[error("{0} is at {1}: ask the agent there")]
    Elsewhere(String, String),
    /// Nobody can take it.
    #[error("no other VM may serve '{0}': boot one with '--endpoint services={0}'")]
    NoPlace(String),
    /// Another host that this agent does not know.
    #[error("host '{0}' is not known: start this agent with '--peer {0}=ADDRESS,...'")]
    NoPeer(String),
    /// Another host's agent.
    #[error("the agent of host '{host}': {why}")]
    Peer {
        /// The host.
        host: String,
        /// What it said.
        why: String,
    },
    /// It was moved too often.
    #[error("{0} was moved too often and is frozen: 'vmm endpoint thaw' lets it move again")]
    Damped(String),
    /// So many moves at once.
    #[error("there are {0} moves already: wait for some to end")]
    Busy(usize),
    /// The move was begun, and has gone back.
    #[error("the move has gone back: {0}")]
    Aborted(String),
    /// The agent may have lost its endpoints.
    #[error("this host's lease is not renewed: nothing is changed until the directory answers")]
    Muted,
    /// Ranges that do not follow each other, or are not of one VM.
    #[error("the ranges of '{0}' do not follow each other at one VM: nothing is merged")]
    Apart(String),
    /// More identifiers than a VM may have.
    #[error("{0} identifiers are more than the {1} that a VM may have: announce a smaller range")]
    Identifiers(u64, u64),
    /// A form that is none.
    #[error("'{0}' is no form: prefix or suffix")]
    Form(String),
    /// A guest's buffer is too small for the answer.
    #[error("a buffer of {0} bytes is too small for the answer")]
    Room(u32),
    /// What the guest sent has no place.
    #[error("{0}")]
    Guest(&'static str),
    /// No name of a service.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// No range.
    #[error(transparent)]
    Range(#[from] InvalidRange),
    /// No identifier.
    #[error(transparent)]
    Vid(#[from] InvalidVid),
    /// No place.
    #[error(transparent)]
    Place(#[from] InvalidPlace),
    /// The VM may not.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// It does not move.
    #[error(transparent)]
    NoMove(#[from] NoMove),
    /// The directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The lease.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The switch.
    #[error(transparent)]
    Switch(#[from] SwitchError),
    /// What carries its frames.
    #[error(transparent)]
    Plane(#[from] PlaneError),
    /// A batch of changes.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The system's refusal.
    #[error("cannot {0}: {1}")]
    System(&'static str, #[source] std::io::Error),
}

impl EndpointError {
    /// Of the system's refusal to do `what`.
    pub fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System(what, source)
    }

    /// The kind of error as the API has it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoService(_) | Self::NoVm(_) | Self::NoPlace(_) => "not_found",
            Self::NoBridge(_)
            | Self::OtherBridge(..)
            | Self::Several(..)
            | Self::Elsewhere(..)
            | Self::NoPeer(_)
            | Self::Damped(_)
            | Self::Aborted(_)
            | Self::Apart(_)
            | Self::NoMove(_) => "state",
            Self::Name(_)
            | Self::Range(_)
            | Self::Vid(_)
            | Self::Place(_)
            | Self::Form(_)
            | Self::Guest(_)
            | Self::Room(_)
            | Self::Identifiers(..)
            | Self::Forbidden(_) => "invalid",
            Self::Busy(_) | Self::Muted | Self::Peer { .. } => "capacity",
            Self::Directory(error) => match error {
                DirectoryError::Unreachable(_) | DirectoryError::LeaseLost(_) => "capacity",
                DirectoryError::Damaged { .. } => "internal",
                _ => "state",
            },
            Self::Switch(_) | Self::Sync(_) => "state",
            Self::Keeper(_) | Self::Plane(_) | Self::System(..) => "internal",
        }
    }

    /// What a guest is told.
    pub fn status(&self) -> Status {
        match self {
            Self::NoService(_) => Status::NoSuchEndpoint,
            Self::NoVm(_) | Self::NoPlace(_) | Self::NoPeer(_) => Status::NoSuchVm,
            Self::NoBridge(_)
            | Self::OtherBridge(..)
            | Self::Several(..)
            | Self::Elsewhere(..)
            | Self::Damped(_)
            | Self::Apart(_)
            | Self::NoMove(_)
            | Self::Switch(_)
            | Self::Sync(_)
            | Self::Guest(_) => Status::BadState,
            Self::Room(_) => Status::BadLength,
            Self::Busy(_) => Status::Busy,
            Self::Aborted(_) => Status::Aborted,
            Self::Name(_) | Self::Range(_) | Self::Vid(_) | Self::Place(_) | Self::Form(_) => {
                Status::BadField
            }
            Self::Identifiers(..) => Status::NoMemory,
            Self::Forbidden(Forbidden::Quota(..)) => Status::NoMemory,
            Self::Forbidden(_) => Status::NotPermitted,
            Self::Directory(error) => match error {
                DirectoryError::Stale { .. } => Status::StaleEpoch,
                DirectoryError::Overlap { .. }
                | DirectoryError::Collision { .. }
                | DirectoryError::Reserved { .. } => Status::BadState,
                DirectoryError::NotOwner { .. } => Status::NotPermitted,
                _ => Status::Host,
            },
            Self::Muted | Self::Peer { .. } => Status::Timeout,
            Self::Keeper(_) | Self::Plane(_) | Self::System(..) => Status::Host,
        }
    }
}
