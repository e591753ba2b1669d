//! From a name to a guest whose memory holds the image, everything verified.
//!
//! Two ways into guest memory, chosen for each part by what the guest pays later:
//! - *copied*: read straight to the final address. The kernel always goes this way: the guest
//!   patches its own text and writes its data, which would break a mapping up page by page.
//! - *mapped*: the store's own pages, privately and copy-on-write. Only a ramdisk goes this way,
//!   which is not needed at once, and only where the host has it in 2 MiB pages: mapped in 4 KiB
//!   pages it would cost the guest a fault for each. The machine makes it the guest's own memory
//!   while the guest starts ([`machine::settle`](crate::machine::settle)).

pub mod handed;
pub mod warm;

use std::ops::Range;

use imgcache::client::{Image, LoadError, LoadOptions, LoadReport, Progress, Target, Verify};
use imgcache::image::manifest::SegmentKind;
use imgcache::image::plan::{self, GuestLayout, Landing, PlanError};
use imgcache::transport::ChunkRead;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::machine::layout;
use crate::machine::memory::{GuestRam, MemoryError};

/// How a ramdisk gets into guest memory.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum RamdiskChoice {
    /// Mapped where the host has it in 2 MiB pages, and made the guest's own memory while the guest
    /// starts; else copied.
    #[default]
    Auto,
    /// As auto, but what is mapped stays so, which saves memory for guests that keep the ramdisk
    /// (Linux with `retain_initrd`) and costs others a fault for each 4 KiB of it.
    Map,
    /// Copied before the guest starts.
    Copy,
}

/// What a load is to do.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// How thoroughly chunks are verified.
    pub verify: Verify,
    /// How the ramdisk gets into guest memory.
    pub ramdisk: RamdiskChoice,
    /// Whom to tell about progress.
    pub progress: Option<Progress<'a>>,
}

impl std::fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("verify", &self.verify)
            .field("ramdisk", &self.ramdisk)
            .finish_non_exhaustive()
    }
}

/// Where everything is once an image has been loaded.
#[derive(Debug)]
pub struct Landed {
    /// The ramdisk's guest-physical range, if there is one.
    pub initrd: Option<Range<u64>>,
    /// What was brought, mapped and verified.
    pub report: LoadReport,
}

/// Why guest memory does not hold the image.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// The image does not fit this machine.
    #[error("image '{image}' does not fit: {source}")]
    Plan {
        /// The image.
        image: String,
        /// What does not fit.
        source: PlanError,
    },
    /// Guest memory refused a landing zone.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The image could not be read, or is damaged.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// One chunk on its way, before it has memory.
struct Arrival {
    address: Range<u64>,
    index: u32,
    key: imgcache::key::ChunkKey,
    mapped: bool,
}

/// Loads `image` into `ram`, which must be fresh.
///
/// # Errors
/// The image does not fit, cannot be read, or is damaged; then the guest must not be run.
pub fn land(
    image: &Image,
    ram: &mut GuestRam,
    options: &Options<'_>,
) -> Result<Landed, LoaderError> {
    let manifest = image.manifest();
    let machine = GuestLayout {
        ram: layout::image_ranges(ram.size()),
        reserved: Vec::new(), // all below the first range
    };
    let landings = plan::place(manifest, &machine)
        .map_err(|source| LoaderError::Plan { image: image.name().to_string(), source })?;

    let mapped = match options.ramdisk {
        RamdiskChoice::Auto | RamdiskChoice::Map => map_extents(image, &landings, ram)?,
        RamdiskChoice::Copy => Vec::new(),
    };
    let mut arrivals = arrivals(image, &landings, &mapped);
    arrivals.sort_by_key(|arrival| arrival.address.start);
    let zones: Vec<_> = arrivals.iter().map(|arrival| arrival.address.clone()).collect();
    let targets = ram
        .landing_zones(&zones)?
        .into_iter()
        .zip(&arrivals)
        .map(|(zone, arrival)| {
            let index = arrival.index;
            if arrival.mapped {
                Target::InPlace { index, bytes: zone }
            } else {
                Target::Fetch(ChunkRead { index, key: arrival.key, buffer: zone })
            }
        })
        .collect();
    let load = LoadOptions { verify: options.verify, progress: options.progress };
    let report = image.load(targets, &load)?;

    let initrd = landings
        .iter()
        .find(|landing| manifest.segments[landing.segment].kind == SegmentKind::Initrd)
        .map(|landing| {
            let length = manifest.segments[landing.segment].data_length;
            landing.address..landing.address + length
        });
    Ok(Landed { initrd, report })
}

/// Maps what can be mapped in huge pages; returns the guest-physical ranges.
fn map_extents(
    image: &Image,
    landings: &[Landing],
    ram: &mut GuestRam,
) -> Result<Vec<Range<u64>>, MemoryError> {
    let mut mapped = Vec::new();
    for extent in image.mappable() {
        let Some(landing) = landings.iter().find(|landing| landing.segment == extent.segment)
        else {
            continue;
        };
        let guest = landing.address + extent.offset;
        if !guest.is_multiple_of(layout::HUGE_PAGE) {
            continue;
        }
        let parts = ram.map_file(guest, &extent.file, extent.file_offset, extent.length)?;
        // The RAM keeps the file from now on: what keeps the store from reusing its space is this
        // process' lock on it.
        mapped.extend(parts);
    }
    Ok(mapped)
}

/// Every chunk that is not zero, with its final address. Fresh memory is zero already.
fn arrivals(image: &Image, landings: &[Landing], mapped: &[Range<u64>]) -> Vec<Arrival> {
    let manifest = image.manifest();
    let mut arrivals = Vec::with_capacity(manifest.chunks.len());
    for landing in landings {
        for chunk in manifest.chunks_of(landing.segment).filter(|chunk| !chunk.entry.zero) {
            let start = landing.address + chunk.offset;
            let address = start..start + u64::from(chunk.length);
            let mapped =
                mapped.iter().any(|range| range.start <= start && address.end <= range.end);
            arrivals.push(Arrival { address, index: chunk.index, key: chunk.entry.key, mapped });
        }
    }
    arrivals
}
