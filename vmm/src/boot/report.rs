//! What a boot reports: for people by `vmm boot`, for machines as JSON.

use devices::virtio::net::counters::Counts;
use devices::vmgenid::GenerationId;
use imgcache::client::LoadReport;
use imgcache::image::name::ImageName;
use serde::Serialize;

use crate::boot::vsock::VsockReport;
use crate::control::journal::Said;
use crate::disk::DiskReport;
use crate::machine::boot::Protocol;
use crate::machine::memory::Backing;
use crate::machine::outcome::Outcome;
use crate::machine::settle::Settled;
use crate::machine::stats::KvmStats;
use crate::net::Network;

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Its image.
    pub image: ImageName,
    /// The id of its manifest.
    pub manifest: String,
    /// Virtual processors.
    pub cpus: u8,
    /// Bytes of RAM.
    pub memory_bytes: u64,
    /// What the RAM is made of.
    pub memory_backing: Backing,
    /// How the kernel is entered.
    pub boot_protocol: Protocol,
    /// The identifier of this start of the machine, which the guest finds too (`VMGenID`).
    pub generation_id: GenerationId,
    /// Milliseconds from the start of the command until all was in place but the processors' threads.
    pub ready_ms: f64,
    /// What it took, one after the other.
    pub phases: Vec<Phase>,
    /// What was brought, mapped and verified.
    pub load: LoadReport,
    /// What it is on its network, if it is on one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Bytes of memory that this process takes beside the guest's, when ready.
    pub overhead_bytes: Option<u64>,
    /// How the guest fared, once it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestReport>,
}

/// How the guest fared.
#[derive(Debug, Serialize)]
pub struct GuestReport {
    /// How it ended.
    pub outcome: Outcome,
    /// Milliseconds from its first instruction to its end.
    pub run_ms: f64,
    /// KVM's counters at its end.
    pub kvm: KvmStats,
    /// What became of the mapped ramdisk; only if there was one, and not with `--ramdisk map`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settled: Option<Settled>,
    /// What its disk did, if it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskReport>,
    /// What it said of itself through the control device.
    pub said: Said,
    /// What the control device counted.
    pub control: ControlCounts,
    /// What its network device counted, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Counts>,
    /// What went through its sockets, if it has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockReport>,
    /// Bytes of memory that this process takes beside the guest's, at the end.
    pub overhead_bytes: Option<u64>,
}

/// One phase of a boot.
#[derive(Debug, Serialize)]
pub struct Phase {
    /// What was done.
    pub name: &'static str,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

/// What the control device counted.
#[derive(Debug, Serialize)]
pub struct ControlCounts {
    /// Commands that the guest submitted.
    pub commands: u64,
    /// Those of them that were refused, or failed.
    pub failed: u64,
    /// Accesses that are none of a register.
    pub ignored_accesses: u64,
    /// Events that were told to the guest.
    pub events: u64,
    /// Events that found its ring full.
    pub events_lost: u64,
}

impl From<devices::control::Counters> for ControlCounts {
    fn from(counters: devices::control::Counters) -> Self {
        let devices::control::Counters { commands, failed, ignored_accesses, events, events_lost } =
            counters;
        Self { commands, failed, ignored_accesses, events, events_lost }
    }
}
