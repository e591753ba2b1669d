//! Guest RAM on the host: where it comes from, and who may touch it before the guest runs.
//!
//! Host and guest addresses of every range agree modulo 2 MiB: without that, KVM maps the guest
//! in 4 KiB pages however the host backs it, at the cost of a fault for each.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::layout::{self, HUGE_PAGE};
use super::mapped::MappedPart;
use super::mapping::{self, Mapping};
use crate::host::hugepages::{self, HugeTlbPool};

/// What the command line asks for.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum BackingChoice {
    /// The best that the host allows: hugetlb if enough pages are free, else thp, else 4k.
    #[default]
    Auto,
    /// 4 KiB pages.
    #[value(name = "4k")]
    #[serde(rename = "4k")]
    Small,
    /// Transparent huge pages: the kernel gives 2 MiB pages where it has them.
    Thp,
    /// 2 MiB pages from the host's reserved pool; fails if there are too few.
    Hugetlb,
}

/// What guest RAM is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backing {
    /// 4 KiB pages.
    #[serde(rename = "4k")]
    Small,
    /// Anonymous memory with transparent huge pages.
    Thp,
    /// 2 MiB pages of the reserved pool.
    Hugetlb,
}

impl std::fmt::Display for Backing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Small => "4 KiB pages",
            Self::Thp => "transparent huge pages",
            Self::Hugetlb => "hugetlb 2 MiB pages",
        })
    }
}

/// Why there is no guest RAM.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is not one that a machine can have.
    #[error(
        "{0} bytes of RAM: the size must be a multiple of 2 MiB, at least 64 MiB and at most 1 TiB"
    )]
    Size(u64),
    /// The pool of huge pages is too small.
    #[error(
        "hugetlb: {needed} pages of 2 MiB are needed, {available} are free; reserve {missing} more \
         with: sysctl vm.nr_hugepages={target}"
    )]
    TooFewHugePages {
        /// Pages that the guest needs.
        needed: u64,
        /// Pages that are free and not promised to others.
        available: u64,
        /// The difference.
        missing: u64,
        /// What `vm.nr_hugepages` would have to be.
        target: u64,
    },
    /// Transparent huge pages were asked for and are off.
    #[error(
        "transparent huge pages are off on this host; switch them on with: echo madvise > {}",
        hugepages::transparent_switch().display()
    )]
    NoTransparentHugePages,
    /// The kernel refused a mapping.
    #[error("cannot {what} of {length} bytes of guest RAM: {source}")]
    Map {
        /// What was tried.
        what: &'static str,
        /// For how much.
        length: u64,
        /// The system's reason.
        source: std::io::Error,
    },
    /// An address range that is not (all) in RAM, or is asked for twice.
    #[error("guest-physical {start:#x}..{end:#x} is not RAM of this machine, or is in use")]
    Range {
        /// First address.
        start: u64,
        /// One past the last.
        end: u64,
    },
    /// vm-memory refused a region; it never should.
    #[error("guest RAM at {0:#x} is not accepted")]
    Region(u64),
}

/// One range of guest RAM, as a KVM memory slot wants it. It stays mapped for as long as this, or
/// a clone of it, lives.
#[derive(Debug, Clone)]
pub struct RamRange {
    guest: Range<u64>,
    host: u64,
    mapping: Arc<Mapping>,
}

impl RamRange {
    /// Where the guest sees it.
    pub fn guest(&self) -> Range<u64> {
        self.guest.clone()
    }

    /// Where this process has it; congruent to where the guest sees it modulo 2 MiB.
    pub fn host(&self) -> Range<u64> {
        self.host..self.host + (self.guest.end - self.guest.start)
    }
}

/// All RAM of one guest.
#[derive(Debug)]
pub struct GuestRam {
    // Declared, and so dropped, before the ranges that it points into.
    memory: GuestMemoryMmap<()>,
    ranges: Vec<RamRange>,
    backing: Backing,
    size: u64,
    // With the files, which are kept open, and so locked, for as long as this lives.
    mapped: Vec<MappedPart>,
}

impl GuestRam {
    /// Maps `size` bytes of RAM; no page is touched yet.
    ///
    /// # Errors
    /// A size out of bounds, too few huge pages, or the kernel's refusal.
    pub fn new(size: u64, choice: BackingChoice) -> Result<Self, MemoryError> {
        if !size.is_multiple_of(HUGE_PAGE) || !(layout::MIN_RAM..=layout::MAX_RAM).contains(&size) {
            return Err(MemoryError::Size(size));
        }
        let backing = decide(size, choice)?;
        match Self::map(size, backing) {
            // Somebody else was given the pages since they were counted.
            Err(MemoryError::Map { .. })
                if choice == BackingChoice::Auto && backing == Backing::Hugetlb =>
            {
                Self::map(size, without_pool())
            }
            done => done,
        }
    }

    fn map(size: u64, backing: Backing) -> Result<Self, MemoryError> {
        let mut ranges = Vec::new();
        let mut regions = Vec::new();
        for guest in layout::ram_ranges(size) {
            let length = guest.end - guest.start;
            let error = |what| move |source| MemoryError::Map { what, length, source };
            let mapping = Mapping::reserve(length).map_err(error("reserve addresses"))?;
            // SAFETY: nothing refers to a mapping that was made just now.
            unsafe { mapping.put_anonymous(&(0..length), backing) }
                .map_err(error("map the whole"))?;
            regions.push(region(&guest, mapping.start())?);
            ranges.push(RamRange {
                guest,
                host: mapping.start() as u64,
                mapping: Arc::new(mapping),
            });
        }
        let memory = GuestMemoryMmap::from_regions(regions).map_err(|_| MemoryError::Region(0))?;
        Ok(Self { memory, ranges, backing, size, mapped: Vec::new() })
    }

    /// What the RAM is made of.
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// How much there is, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> &[RamRange] {
        &self.ranges
    }

    /// What is mapped from files and is to become the guest's own memory, with these files: to be
    /// kept for as long as anything is mapped.
    pub(super) fn take_settling(&mut self) -> Vec<MappedPart> {
        self.mapped.extract_if(.., |part| part.settles).collect()
    }

    /// Checked access for devices and boot structures. A clone must not outlive this: the machine
    /// drops its devices first.
    pub(super) fn memory(&self) -> &GuestMemoryMmap<()> {
        &self.memory
    }

    /// The range of RAM that all of `range` lies in.
    fn range_of(&self, range: &Range<u64>) -> Option<&RamRange> {
        let inside = |ram: &&RamRange| {
            ram.guest.start <= range.start && range.start <= range.end && range.end <= ram.guest.end
        };
        self.ranges.iter().find(inside)
    }

    /// Hands out disjoint parts of RAM to be filled, in the order of `ranges`, which must ascend.
    ///
    /// The exclusive borrow is what makes it sound: no vCPU runs in this memory and no device has it
    /// yet, because a machine takes the `GuestRam` over first.
    ///
    /// # Errors
    /// [`MemoryError::Range`] for a range outside RAM, or one that overlaps the one before it.
    pub fn landing_zones(&mut self, ranges: &[Range<u64>]) -> Result<Vec<&mut [u8]>, MemoryError> {
        let mut zones = Vec::with_capacity(ranges.len());
        let mut end_of_last = 0;
        for range in ranges {
            let error = MemoryError::Range { start: range.start, end: range.end };
            let (Some(ram), Ok(length)) =
                (self.range_of(range), usize::try_from(range.end.saturating_sub(range.start)))
            else {
                return Err(error);
            };
            if range.start < end_of_last {
                return Err(error);
            }
            end_of_last = range.end;
            let pointer = (ram.host + (range.start - ram.guest.start)) as *mut u8;
            // SAFETY: the range is inside one mapping, the ranges ascend without overlap, and
            // `&mut self` says that nothing else is lent. Devices and vCPUs get this memory only
            // when a machine has taken it over. Mapped memory is always initialized.
            zones.push(unsafe { std::slice::from_raw_parts_mut(pointer, length) });
        }
        Ok(zones)
    }

    /// Maps `length` bytes of `file`, privately and copy-on-write, over the RAM at `guest`: those
    /// parts that the host has in 2 MiB pages, whose guest-physical ranges are returned. The rest
    /// stays as it was. `file` is kept open, and with it its locks, for as long as it is mapped.
    ///
    /// All numbers must be multiples of 2 MiB. `settles` says whether it is to become the guest's own
    /// memory while the guest starts.
    ///
    /// # Errors
    /// A range outside RAM, or the kernel's refusal.
    pub fn map_file(
        &mut self,
        guest: u64,
        file: &Arc<File>,
        file_offset: u64,
        length: u64,
        settles: bool,
    ) -> Result<Vec<Range<u64>>, MemoryError> {
        // Looked at elsewhere first: what is not in huge pages leaves the RAM there untouched.
        let huge = mapping::in_huge_pages(file, file_offset, length)
            .map_err(|source| MemoryError::Map { what: MAP_IMAGE, length, source })?;
        let part = |part: Range<u64>| {
            let (from, length) = (guest.saturating_add(part.start), part.end - part.start);
            self.map_whole(from, file, file_offset + part.start, length, settles)
        };
        huge.into_iter().map(part).collect()
    }

    /// Maps `length` bytes of `file` as [`map_file`](Self::map_file) does, whatever pages the host has
    /// them in; returns where the guest sees them.
    ///
    /// # Errors
    /// A range outside RAM, or the kernel's refusal.
    pub fn map_whole(
        &mut self,
        guest: u64,
        file: &Arc<File>,
        file_offset: u64,
        length: u64,
        settles: bool,
    ) -> Result<Range<u64>, MemoryError> {
        let range = guest..guest.saturating_add(length);
        let aligned = [guest, file_offset, length].iter().all(|n| n.is_multiple_of(HUGE_PAGE));
        let Some(ram) = self.range_of(&range).filter(|_| aligned) else {
            return Err(MemoryError::Range { start: range.start, end: range.end });
        };
        let start = guest - ram.guest.start;
        let place = start..start + length;
        // SAFETY: `&mut self` says that no landing zone is lent, and devices and vCPUs get this
        // memory only when a machine has taken it over.
        unsafe { ram.mapping.put_file(&place, file, file_offset) }
            .map_err(|source| MemoryError::Map { what: MAP_IMAGE, length, source })?;
        let part = MappedPart {
            guest: range.clone(),
            place,
            mapping: ram.mapping.clone(),
            file: file.clone(),
            file_offset,
            backing: self.backing,
            settles,
        };
        self.mapped.push(part);
        Ok(range)
    }
}

/// What is done when a file is put into guest RAM.
const MAP_IMAGE: &str = "map the image into a part";

/// What `choice` comes to for `size` bytes on this host.
fn decide(size: u64, choice: BackingChoice) -> Result<Backing, MemoryError> {
    let pool = HugeTlbPool::read();
    let needed = size / HUGE_PAGE;
    let thp = hugepages::transparent_enabled();
    match choice {
        BackingChoice::Small => Ok(Backing::Small),
        BackingChoice::Thp if thp => Ok(Backing::Thp),
        BackingChoice::Thp => Err(MemoryError::NoTransparentHugePages),
        BackingChoice::Hugetlb if pool.available() >= needed => Ok(Backing::Hugetlb),
        BackingChoice::Hugetlb => {
            let missing = needed - pool.available();
            Err(MemoryError::TooFewHugePages {
                needed,
                available: pool.available(),
                missing,
                target: pool.total + missing,
            })
        }
        BackingChoice::Auto if pool.available() >= needed => Ok(Backing::Hugetlb),
        BackingChoice::Auto => Ok(without_pool()),
    }
}

/// The best that can be had without reserved pages.
fn without_pool() -> Backing {
    if hugepages::transparent_enabled() { Backing::Thp } else { Backing::Small }
}

fn region(guest: &Range<u64>, host: *mut u8) -> Result<GuestRegionMmap<()>, MemoryError> {
    let error = || MemoryError::Region(guest.start);
    let size = usize::try_from(guest.end - guest.start).map_err(|_| error())?;
    let builder = MmapRegionBuilder::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: `host` is a readable and writable mapping of `size` bytes that the range in the same
    // `GuestRam` keeps until after the region is gone.
    let mapping = unsafe { builder.with_raw_mmap_pointer(host) }.build().map_err(|_| error())?;
    GuestRegionMmap::new(mapping, GuestAddress(guest.start)).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend};

    const MIB: u64 = 1 << 20;

    #[test]
    fn addresses_agree_modulo_2_mib_on_both_sides() {
        let ram = GuestRam::new(4 << 30, BackingChoice::Small).unwrap();
        assert_eq!(ram.ranges().len(), 2);
        for range in ram.ranges() {
            assert_eq!(range.host().start % HUGE_PAGE, range.guest().start % HUGE_PAGE);
        }
    }

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        for size in [0, 62 * MIB, 65 * MIB, (64 << 20) + 1, (1 << 40) + HUGE_PAGE] {
            assert!(matches!(
                GuestRam::new(size, BackingChoice::Auto),
                Err(MemoryError::Size(s)) if s == size
            ));
        }
    }

    #[test]
    fn landing_zones_write_what_the_guest_reads() {
        let mut ram = GuestRam::new(64 * MIB, BackingChoice::Small).unwrap();
        let mut zones = ram.landing_zones(&[0x1000..0x1004, 0x1004..0x1008]).unwrap();
        zones[1].copy_from_slice(b"abcd");
        drop(zones);
        let seen: [u8; 8] = ram.memory().read_obj(GuestAddress(0x1000)).unwrap();
        assert_eq!(&seen, b"\0\0\0\0abcd");
    }

    #[test]
    fn landing_zones_that_overlap_or_leave_ram_are_refused() {
        let mut ram = GuestRam::new(64 * MIB, BackingChoice::Small).unwrap();
        assert!(ram.landing_zones(&[0..8, 7..9]).is_err());
        assert!(ram.landing_zones(std::slice::from_ref(&(63 * MIB..65 * MIB))).is_err());
        assert!(ram.landing_zones(std::slice::from_ref(&(u64::MAX - 4..u64::MAX))).is_err());
        assert_eq!(ram.memory().num_regions(), 1);
    }

    #[test]
    fn too_few_huge_pages_says_how_many() {
        let error = decide(1 << 40, BackingChoice::Hugetlb).unwrap_err();
        assert!(error.to_string().contains("524288 pages"), "{error}");
    }
}
