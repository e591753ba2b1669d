//! The node agent's API: what goes over its HTTP connections, as typed structs from which the
//! server, the client in the command line, and the OpenAPI document all follow.

use imgcache::image::name::ImageName;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub mod client;
pub mod endpoint;

use crate::net::Network;
use crate::spec::VmSpec;
use crate::spec::name::{ImageNameSchema, TenantName, VmName};

/// A VM that the agent is asked to boot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// Its name, unique on the node among the VMs that have not been deleted; by default vm-NUMBER.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<VmName>,
    /// Whose it is. VMs of different tenants never share a page of an image.
    #[serde(default)]
    pub tenant: TenantName,
    /// Do everything but the guest's first instruction, and wait to be told to start. Works on every
    /// kind of KVM.
    #[serde(default)]
    pub hold: bool,
    /// Forget the VM as soon as it has ended.
    #[serde(default)]
    pub remove: bool,
    /// What it is.
    pub spec: VmSpec,
}

/// How far a VM is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Its image is brought, its process started, its memory filled.
    Starting,
    /// Ready to boot, and held.
    Ready,
    /// Its guest runs.
    Running,
    /// Its process has ended.
    Ended,
}

/// A VM of the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmInfo {
    /// Its number on this node; never used again.
    pub number: u64,
    /// Its name.
    pub name: VmName,
    /// Whose it is.
    pub tenant: TenantName,
    /// How far it is.
    pub state: VmState,
    /// What it was asked to be.
    pub spec: VmSpec,
    /// The image's manifest, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// The process' number on the host, while it lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Where it is on the network, if it has a device for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<VmNetwork>,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: u64,
    /// Phases of its boot so far, in the order in which they came.
    pub phases: Vec<Phase>,
    /// Milliseconds from its creation until it was ready to boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_ms: Option<f64>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<VmEnd>,
}

/// Where a VM is on the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmNetwork {
    /// The Ethernet address of its device.
    pub mac: String,
    /// Its IPv4 address and the length of its network's prefix, where the node gave it one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// The same of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<String>,
    /// The host's interface that is the other end of its device.
    pub tap: String,
    /// The bridge that this interface is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
}

impl From<&Network> for VmNetwork {
    fn from(network: &Network) -> Self {
        let Network { tap, bridge, ip, ip6, device, .. } = network;
        Self {
            mac: device.mac.to_string(),
            ip: ip.map(|ip| ip.to_string()),
            ip6: ip6.map(|ip| ip.to_string()),
            tap: tap.clone(),
            bridge: bridge.clone(),
        }
    }
}

/// A phase of a boot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Phase {
    /// What was done.
    pub name: String,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmEnd {
    /// The exit code of its process, as of `vmm boot`; 128 and the signal's number where a signal
    /// ended it. None where nobody saw its end, as after the agent was started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
    /// What happened, in words.
    pub reason: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

/// How a VM is to be stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopVm {
    /// Kill the process at once, instead of telling it to end and killing it after five seconds.
    #[serde(default)]
    pub kill: bool,
}

/// An image in the node's pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoolImage {
    /// The name that it was last asked for by.
    #[schema(value_type = ImageNameSchema)]
    pub image: ImageName,
    /// Whose VMs may use these pages.
    pub tenant: TenantName,
    /// Its manifest.
    pub manifest: String,
    /// Bytes of memory that it takes.
    pub bytes: u64,
    /// VMs that use it.
    pub vms: u32,
    /// Whether it stays whether or not anybody uses it.
    pub pinned: bool,
    /// How long it took to bring, in milliseconds.
    pub load_ms: f64,
    /// When it was last asked for, in milliseconds since 1970.
    pub used_ms: u64,
}

/// An image that is to be in the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PullImage {
    /// Its name.
    #[schema(value_type = ImageNameSchema)]
    pub image: ImageName,
    /// Whose VMs will use it.
    #[serde(default)]
    pub tenant: TenantName,
    /// Keep it whether or not anybody uses it.
    #[serde(default)]
    pub pin: bool,
}

/// What the node is and has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeInfo {
    /// Version of the agent.
    pub version: String,
    /// Whether guests can run here, or VMs can only be made ready.
    pub runs_guests: bool,
    /// Whether it takes no new VMs.
    pub draining: bool,
    /// What is wrong, in words; nothing if the node is well.
    pub problems: Vec<String>,
    /// Processors of the host.
    pub cpus: u32,
    /// Bytes of memory of the host.
    pub memory_bytes: u64,
    /// Bytes of it that are available.
    pub memory_available_bytes: u64,
    /// The most VMs that may live at a time.
    pub max_vms: u32,
    /// VMs by state.
    pub vms: VmCounts,
    /// Bytes of RAM that the living VMs have in all, used or not.
    pub vm_memory_bytes: u64,
    /// The pool of images.
    pub pool: PoolInfo,
}

/// VMs by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmCounts {
    /// Being started.
    pub starting: u32,
    /// Held.
    pub ready: u32,
    /// Running.
    pub running: u32,
    /// Ended and not yet deleted.
    pub ended: u32,
}

/// The pool of images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoolInfo {
    /// Bytes that images take.
    pub bytes: u64,
    /// The most that they may take.
    pub limit_bytes: u64,
    /// What it is made of: `tmpfs` in huge pages, `memfd`.
    pub backing: String,
    /// Whether in 2 MiB pages.
    pub huge_pages: bool,
    /// Images in it.
    pub images: u32,
    /// VMs that found their image in it.
    pub hits: u64,
    /// Images that had to be brought.
    pub misses: u64,
    /// Images that were given up for others.
    pub evictions: u64,
    /// Bytes that were brought.
    pub bytes_loaded: u64,
}

/// What the VMs of a node use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeUsage {
    /// When it was looked at, in milliseconds since 1970; that is done at most once a second.
    pub at_ms: u64,
    /// What the agent itself uses.
    pub agent: Usage,
    /// The VMs that live, by number.
    pub vms: Vec<VmUsage>,
}

/// What a VM uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmUsage {
    /// Its number.
    pub number: u64,
    /// Its name.
    pub name: VmName,
    /// What its process uses; none where the host does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// What a process uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Bytes of its memory that others map too: the image, and the program.
    pub shared_bytes: u64,
    /// Bytes of its memory that are its own.
    pub private_bytes: u64,
    /// Bytes of its memory, of what is shared only its part.
    pub proportional_bytes: u64,
    /// Milliseconds of processors' time.
    pub cpu_ms: u64,
}

/// How a VM's boot went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Timings {
    /// Phases of its boot so far, in the order in which they came.
    pub phases: Vec<Phase>,
    /// Milliseconds from its creation until it was ready to boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_ms: Option<f64>,
    /// Its report so far, as `vmm boot --json` prints it; null before it is ready.
    #[schema(value_type = Option<Object>)]
    pub report: serde_json::Value,
}

/// Whether the agent is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Whether it takes new VMs.
    pub status: HealthStatus,
    /// What is wrong, in words; nothing if the node is well.
    pub problems: Vec<String>,
}

/// Whether an agent takes new VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// It does.
    Ok,
    /// It does not.
    Draining,
}

/// Something that happened on the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeEvent {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// A VM came to a state.
    Vm {
        /// Its number.
        number: u64,
        /// Its name.
        name: VmName,
        /// Its image.
        #[schema(value_type = ImageNameSchema)]
        image: ImageName,
        /// The state.
        state: VmState,
        /// How it ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        end: Option<VmEnd>,
    },
    /// A VM was deleted.
    Deleted {
        /// Its number.
        number: u64,
        /// Its name.
        name: VmName,
    },
    /// An image came into the pool.
    Pulled {
        /// Its name.
        #[schema(value_type = ImageNameSchema)]
        image: ImageName,
        /// Whose it is.
        tenant: TenantName,
        /// Bytes of memory that it takes.
        bytes: u64,
        /// How long it took, in milliseconds.
        ms: f64,
    },
    /// An image left the pool.
    Dropped {
        /// Its name.
        #[schema(value_type = ImageNameSchema)]
        image: ImageName,
        /// Whose it was.
        tenant: TenantName,
    },
    /// The node takes no new VMs.
    Draining,
    /// It takes them again.
    Undrained,
    /// Who listens was too slow, and missed some.
    Lost {
        /// How many.
        events: u64,
    },
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// Its kind, for machines: `not_found`, `exists`, `bad_request`, `invalid`, `state`, `capacity`,
    /// `draining`, `image_not_found`, `image_damaged`, `image_does_not_fit`, `cache_unavailable`,
    /// `method`, `media_type`, `too_large`, `slow`, `host`, `aborted` (a move of an endpoint that has gone back),
    /// `internal`.
    pub kind: String,
    /// What went wrong and what to do, for people.
    pub message: String,
}
