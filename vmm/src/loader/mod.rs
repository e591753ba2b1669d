//! From a name to a guest whose memory holds the image, everything verified.
//!
//! Two ways into guest memory, chosen for each part by what the guest pays later:
//! - *copied*: read straight to the final address.
//! - *mapped*: the host's own pages, privately and copy-on-write, and only where the host has them in
//!   2 MiB pages: mapped in 4 KiB pages they would cost the guest a fault for each. The machine makes
//!   what is mapped the guest's own memory while the guest starts
//!   ([`machine::settle`](crate::machine::settle)).
//!
//! A ramdisk, which is not needed at once, is mapped out of a store or a pool. A kernel patches its own
//! text and writes its data, which breaks a mapping up page by page: out of a store it is copied.
//! Out of a pool it is mapped, since there the VMs are many, and copied while it starts.

pub mod handed;
pub mod warm;

use std::ops::Range;

use imgcache::client::{Image, LoadError, LoadOptions, LoadReport, Progress, Target, Verify};
use imgcache::image::manifest::SegmentKind;
use imgcache::image::plan::{self, GuestLayout, Landing, PlanError};
use imgcache::image::prepared::AreaPlace;
use imgcache::transport::ChunkRead;
use imgcache::transport::prepared::PreparedFile;
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

/// How a kernel gets into guest memory.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum KernelChoice {
    /// Out of the pool of a node agent mapped, and made the guest's own memory while the guest starts;
    /// else copied.
    #[default]
    Auto,
    /// As auto, but what is mapped stays so: the guest then has copies only of the pages that it
    /// writes, and pays a fault for each.
    Map,
    /// Copied before the guest starts.
    Copy,
}

/// What a load is to do.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// How thoroughly chunks are verified.
    pub verify: Verify,
    /// How the kernel gets into guest memory.
    pub kernel: KernelChoice,
    /// How the ramdisk gets into guest memory.
    pub ramdisk: RamdiskChoice,
    /// Whom to tell about progress.
    pub progress: Option<Progress<'a>>,
}

impl std::fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("verify", &self.verify)
            .field("kernel", &self.kernel)
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

impl Arrival {
    fn length(&self) -> u64 {
        self.address.end - self.address.start
    }
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

    let mapped = match image.prepared() {
        Some(file) => map_areas(image, file, &landings, ram, options)?,
        None if options.ramdisk == RamdiskChoice::Copy => Vec::new(),
        None => map_extents(image, &landings, ram, options.ramdisk == RamdiskChoice::Auto)?,
    };
    let mut arrivals = arrivals(image, &landings, &mapped);
    // What a pool holds was verified when it came there.
    let trusted: u64 = if image.prepared().is_some() && options.verify == Verify::Auto {
        arrivals.extract_if(.., |arrival| arrival.mapped).map(|arrival| arrival.length()).sum()
    } else {
        0
    };
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
    let mut report = image.load(targets, &load)?;
    report.bytes_mapped += trusted;

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
    settles: bool,
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
        let parts =
            ram.map_file(guest, &extent.file, extent.file_offset, extent.length, settles)?;
        // The RAM keeps the file from now on: what keeps the store from reusing its space is this
        // process' lock on it.
        mapped.extend(parts);
    }
    Ok(mapped)
}

/// Maps those areas of a file of the pool that are to be mapped; returns the guest-physical ranges.
fn map_areas(
    image: &Image,
    prepared: &PreparedFile,
    landings: &[Landing],
    ram: &mut GuestRam,
    options: &Options<'_>,
) -> Result<Vec<Range<u64>>, MemoryError> {
    let huge = prepared.huge_pages;
    let kernel = match options.kernel {
        KernelChoice::Auto => huge.then_some(true),
        KernelChoice::Map => Some(false),
        KernelChoice::Copy => None,
    };
    let ramdisk = match options.ramdisk {
        RamdiskChoice::Auto => huge.then_some(true),
        RamdiskChoice::Map => Some(false),
        RamdiskChoice::Copy => None,
    };
    let mut mapped = Vec::new();
    for area in prepared.layout.areas() {
        let (guest, settles) = match area.place {
            AreaPlace::Fixed(address) => (Some(address), kernel),
            AreaPlace::Segment(index) => {
                let landing = landings.iter().find(|landing| landing.segment == index);
                let is_ramdisk = image.manifest().initrd().is_some_and(|(at, _)| at == index);
                let choice = if is_ramdisk { ramdisk } else { kernel };
                (landing.map(|landing| landing.address), choice)
            }
        };
        if let (Some(guest), Some(settles)) = (guest, settles) {
            let (file, offset) = (&prepared.file, area.offset);
            mapped.push(ram.map_whole(guest, file, offset, area.length, settles)?);
        }
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
