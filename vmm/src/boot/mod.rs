//! From an open image to a machine that is ready to boot, step by step and timed: what `vmm boot` and
//! the VM processes of the node agent have in common.

pub mod console_file;
pub mod report;
pub mod stopwatch;
pub mod vsock;

use std::ops::Range;
use std::thread;

use imgcache::client::{Image, LoadReport, Progress};
use imgcache::image::manifest::KernelInfo;
use imgcache::image::name::ImageName;
use imgcache::key::ManifestId;
use kvm_ioctls::Kvm;

use self::report::Report;
use self::stopwatch::Stopwatch;
use crate::host::footprint;
use crate::loader::{self, LoaderError};
use crate::machine::boot::{self, Protocol};
use crate::machine::memory::{Backing, GuestRam, MemoryError, RamRange};
use crate::machine::processors::Processors;
use crate::machine::registers::Entry;
use crate::machine::{Around, BootSpec, Machine, MachineError};
use crate::spec::VmSpec;

/// Why a VM is not ready to boot.
#[derive(Debug, thiserror::Error)]
pub enum ReadyError {
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Loading the image into it.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Guest RAM that holds an image, and processors that will run in it.
#[derive(Debug)]
pub struct Loaded {
    ram: GuestRam,
    processors: Processors,
    entry: (Protocol, Entry),
    image: (ImageName, ManifestId),
    kernel: KernelInfo,
    initrd: Option<Range<u64>>,
    command_line: String,
    /// What was brought, mapped and verified.
    pub load: LoadReport,
    backing: Backing,
}

/// How a kernel of `image` is entered, if it can be as `spec` says.
///
/// # Errors
/// The kernel has no such entry.
pub fn entry(image: &Image, spec: &VmSpec) -> Result<(Protocol, Entry), ReadyError> {
    let kernel = &image.manifest().kernel;
    Ok(boot::choose(kernel, spec.boot_protocol).map_err(MachineError::from)?)
}

/// Makes RAM, and loads `image` into it while KVM makes processors that are wired for virtio
/// devices with so many `queues` each.
///
/// # Errors
/// Memory, KVM's refusal, or an image that does not fit, cannot be read, or is damaged.
pub fn load(
    kvm: &Kvm,
    image: &Image,
    spec: &VmSpec,
    queues: &[usize],
    progress: Option<Progress<'_>>,
    watch: &mut Stopwatch,
) -> Result<Loaded, ReadyError> {
    let entry = entry(image, spec)?;
    let mut ram = GuestRam::new(spec.memory, spec.memory_backing)?;
    let backing = ram.backing();
    watch.phase("memory");

    let slots = ram.ranges().to_vec();
    let (kernel, ramdisk) = (spec.kernel, spec.ramdisk);
    let options = loader::Options { verify: spec.verify(), kernel, ramdisk, progress };
    // KVM's part takes time in the kernel, and nothing of the image.
    let (processors, landed) = thread::scope(|scope| {
        let processors = scope.spawn(|| Processors::create(kvm, &slots, spec.cpus, queues));
        let landed = loader::land(image, &mut ram, &options);
        (processors.join(), landed)
    });
    let landed = landed?;
    let processors = processors
        .map_err(|_| MachineError::Failed("creating the processors panicked".into()))??;
    watch.phase("load");

    let command_line = command_line(&image.manifest().cmdline, spec);
    let loader::Landed { initrd, report: load } = landed;
    let (kernel, image) = (image.manifest().kernel.clone(), (image.name().clone(), image.id()));
    Ok(Loaded { ram, processors, entry, image, kernel, initrd, command_line, load, backing })
}

/// What the machine says of itself, then the image's words, then those of this boot: of parameters
/// given twice, the kernel takes the last.
fn command_line(image: &str, spec: &VmSpec) -> String {
    let parts = [boot::MACHINE_COMMAND_LINE, image, spec.cmdline_append.as_deref().unwrap_or("")];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

impl Loaded {
    /// Puts the machine together, and begins the report; `reports_overhead` says whether to find out
    /// what memory this process takes beside the guest's. The image need not be open any more.
    ///
    /// # Errors
    /// KVM's or the host's refusal, or a kernel that cannot be started this way.
    pub fn assemble(
        self,
        spec: &VmSpec,
        around: Around,
        reports_overhead: bool,
        mut watch: Stopwatch,
    ) -> Result<(Machine, Report), ReadyError> {
        let guest: Vec<_> = self.ram.ranges().iter().map(RamRange::host).collect();
        let boot = BootSpec {
            kernel: &self.kernel,
            initrd: self.initrd,
            command_line: &self.command_line,
        };
        let machine = Machine::assemble(self.processors, self.ram, self.entry, &boot, around)?;
        watch.phase("boot");

        footprint::release_code();
        let (ready_ms, phases) = watch.end();
        let report = Report {
            image: self.image.0,
            manifest: self.image.1.to_string(),
            cpus: spec.cpus,
            memory_bytes: spec.memory,
            memory_backing: self.backing,
            boot_protocol: self.entry.0,
            generation_id: machine.generation_id(),
            ready_ms,
            phases,
            load: self.load,
            // It walks all page tables: not on the way to a guest whose report nobody wants.
            overhead_bytes: reports_overhead.then(|| footprint::resident_except(&guest)).flatten(),
            network: None,
            guest: None,
        };
        Ok((machine, report))
    }
}
