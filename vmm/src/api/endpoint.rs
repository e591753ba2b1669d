//! What the agent's API says of virtual endpoints and of the flows of its switch.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A range of identifiers, as the directory has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndpointInfo {
    /// The service.
    pub service: String,
    /// Where its identifiers have their service: `prefix` or `suffix`.
    pub form: String,
    /// The first request of the range.
    pub lo: u32,
    /// The last.
    pub hi: u32,
    /// The first identifier, an Ethernet address.
    pub vid: String,
    /// Where it is, as HOST/VM.
    pub home: String,
    /// Where copies of its state are.
    pub mirrors: Vec<String>,
    /// What happens to it: `home`, `preparing`, `moving`, `frozen`, or `orphan` if nobody keeps it alive.
    pub phase: String,
    /// Where it moves to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Who keeps it alive: usually its host.
    pub owner: String,
    /// Rises whenever frames go elsewhere.
    pub epoch: u64,
    /// Whether its VM takes frames; of this node's VMs only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listening: Option<bool>,
}

/// Which identifiers something is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EndpointRange {
    /// The form: `prefix`, which it is by default, or `suffix`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<String>,
    /// The first request; without bounds, all that there are of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lo: Option<u32>,
    /// The last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hi: Option<u32>,
}

/// Identifiers that are to become a VM's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AnnounceEndpoint {
    /// The service.
    pub service: String,
    /// Which; request 0 alone if no bounds are given.
    #[serde(default)]
    pub range: EndpointRange,
    /// The VM of this node.
    pub vm: String,
    /// Let it take frames at once.
    #[serde(default)]
    pub listen: bool,
}

/// Something that is to be done with identifiers of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "snake_case", tag = "do")]
pub enum EndpointAction {
    /// Their VM takes frames.
    Listen {
        /// Which.
        #[serde(default)]
        range: EndpointRange,
    },
    /// They are given up.
    Withdraw {
        /// Which.
        #[serde(default)]
        range: EndpointRange,
    },
    /// They move to another VM.
    Move {
        /// Which.
        #[serde(default)]
        range: EndpointRange,
        /// Where to: VM, HOST/VM, or `any`.
        to: String,
        /// The service brings its state over by itself.
        #[serde(default)]
        stateless: bool,
    },
    /// They are split in two.
    Split {
        /// Which.
        #[serde(default)]
        range: EndpointRange,
        /// The first request of the second part.
        at: u32,
        /// Where the second part moves to, if it does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<String>,
    },
    /// Ranges of one VM that follow each other become one.
    Merge {
        /// Which.
        #[serde(default)]
        range: EndpointRange,
    },
    /// A VM has a copy of their state, or has none any more.
    Mirror {
        /// Which.
        #[serde(default)]
        range: EndpointRange,
        /// That VM.
        to: String,
        /// It has none any more.
        #[serde(default)]
        remove: bool,
    },
    /// They stay where they are.
    Freeze {
        /// Which.
        #[serde(default)]
        range: EndpointRange,
    },
    /// They may be moved again.
    Thaw {
        /// Which.
        #[serde(default)]
        range: EndpointRange,
    },
}

/// What came of an action.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndpointDone {
    /// The ranges as they are now.
    pub endpoints: Vec<EndpointInfo>,
    /// How the move went, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<MoveInfo>,
}

/// How a move went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MoveInfo {
    /// Its number.
    pub number: u64,
    /// From where, as HOST/VM.
    pub from: String,
    /// Where to.
    pub to: String,
    /// `moved`, `aborted`, `orphan` or `superseded`.
    pub outcome: String,
    /// Why it did not go on, if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Bytes of state that were sent.
    pub state_bytes: u64,
    /// Microseconds that frames were held: from the hold to the release.
    pub held_us: u64,
    /// Microseconds in all.
    pub us: u64,
    /// What it did, in its order.
    pub steps: Vec<MoveStep>,
}

/// A step of a move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MoveStep {
    /// What was done.
    pub name: String,
    /// Microseconds that it took.
    pub us: u64,
}

/// Where frames to an identifier go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowInfo {
    /// The bridge.
    pub bridge: String,
    /// The identifier.
    pub vid: String,
    /// The VM of this node, or the host that it is on.
    pub home: String,
    /// Where it moves to, while its frames are held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<String>,
}

/// A change of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "snake_case", tag = "change")]
pub enum FlowChange {
    /// Frames to an identifier that had no home go to a VM of this node.
    Add {
        /// The identifier.
        vid: String,
        /// The VM.
        vm: String,
    },
    /// They go to another VM.
    Update {
        /// The identifier.
        vid: String,
        /// The VM.
        vm: String,
    },
    /// They are dropped.
    Delete {
        /// The identifier.
        vid: String,
    },
}
