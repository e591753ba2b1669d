//! `vmm boot`: from a name to a running guest.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use clap::Args;
use imgcache::client::{Image, LoadReport, Verification, Verify};
use imgcache::image::name::ImageName;
use imgcache::transport::cluster::CacheReport;
use serde::Serialize;

use super::cache::{self, CacheOptions};
use super::progress::Progress;
use super::{CliError, StoreOptions, print_json, print_text, say, size};
use crate::exit::{self, Exit};
use crate::host::{self, footprint};
use crate::loader::{self, RamdiskChoice};
use crate::machine::boot::{self, Protocol, ProtocolChoice};
use crate::machine::layout::MAX_CPUS;
use crate::machine::memory::{Backing, BackingChoice, GuestRam, RamRange};
use crate::machine::outcome::Outcome;
use crate::machine::processors::Processors;
use crate::machine::settle::Settled;
use crate::machine::stats::KvmStats;
use crate::machine::{BootSpec, Life, Machine, MachineError};

/// Boot a microVM from an image, with the console on this terminal.
///
/// The guest has the keyboard, Ctrl-C included. Ctrl-A x ends the VM, Ctrl-A Ctrl-A types one
/// Ctrl-A, Ctrl-A ? tells so.
///
/// The image comes from the store of this host, or with --cache from the nodes of a cache, all at
/// once and straight into guest memory; what they lack is fetched from the store and put there.
#[derive(Debug, Args)]
#[command(after_long_help = exit::TABLE)]
pub struct BootCommand {
    /// Name of the image (see 'vmm image ls').
    #[arg(long, value_name = "NAME")]
    image: ImageName,

    /// Virtual processors, 1 to 32.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_CPUS)))]
    cpus: u8,

    /// RAM, a multiple of 2 MiB from 64M up; such as 512M or 4G.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size::parse)]
    memory: u64,

    /// What guest RAM is made of.
    #[arg(long, value_enum, default_value_t = BackingChoice::Auto)]
    memory_backing: BackingChoice,

    /// How the ramdisk gets into guest memory.
    #[arg(long, value_enum, default_value_t = RamdiskChoice::Auto)]
    ramdisk: RamdiskChoice,

    /// How the kernel is entered.
    #[arg(long, value_enum, default_value_t = ProtocolChoice::Auto)]
    boot_protocol: ProtocolChoice,

    /// Text to put behind the image's kernel command line.
    #[arg(long, value_name = "TEXT")]
    cmdline_append: Option<String>,

    /// Hash every chunk in full (BLAKE3), even where the store vouches that nothing was changed
    /// since it was last hashed and a checksum would do.
    #[arg(long)]
    verify_full: bool,

    /// Do everything up to starting the processors, report, and end. Works on every kind of KVM.
    #[arg(long)]
    ready_only: bool,

    /// Print how long each phase took, on standard error.
    #[arg(long)]
    timings: bool,

    /// Print a report as one line of JSON: with --ready-only on standard output, else, since the
    /// console is there, on standard error at the end.
    #[arg(long)]
    json: bool,

    /// Write the report, as JSON, to this file at the end.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    #[command(flatten)]
    cache: CacheOptions,

    #[command(flatten)]
    load: cache::LoadOptions,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    image: ImageName,
    manifest: String,
    cpus: u8,
    memory_bytes: u64,
    memory_backing: Backing,
    boot_protocol: Protocol,
    /// Milliseconds from the start of the command until all was in place but the processors' threads.
    ready_ms: f64,
    phases: Vec<Phase>,
    load: LoadReport,
    /// Bytes of memory that this process takes beside the guest's, when ready.
    overhead_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guest: Option<GuestReport>,
}

/// How the guest fared.
#[derive(Debug, Serialize)]
struct GuestReport {
    outcome: Outcome,
    /// Milliseconds from its first instruction to its end.
    run_ms: f64,
    kvm: KvmStats,
    /// What became of the mapped ramdisk; only if there was one, and not with `--ramdisk map`.
    #[serde(skip_serializing_if = "Option::is_none")]
    settled: Option<Settled>,
    /// Bytes of memory that this process takes beside the guest's, at the end.
    overhead_bytes: Option<u64>,
}

/// One phase of a boot.
#[derive(Debug, Serialize)]
struct Phase {
    name: &'static str,
    ms: f64,
}

/// Measures phases one after the other.
struct Stopwatch {
    begun: Instant,
    last: Instant,
    phases: Vec<Phase>,
}

impl Stopwatch {
    fn start() -> Self {
        let now = Instant::now();
        Self { begun: now, last: now, phases: Vec::new() }
    }

    /// What came since the last call was `name`.
    fn phase(&mut self, name: &'static str) {
        let now = Instant::now();
        self.phases.push(Phase { name, ms: milliseconds(now - self.last) });
        self.last = now;
    }
}

/// An image that is being closed on a thread of its own; waits for that when dropped.
struct Closing(Option<JoinHandle<()>>);

impl Closing {
    fn begin(image: Image) -> Self {
        // Without a thread it is closed at once.
        Self(thread::Builder::new().name("close".into()).spawn(move || drop(image)).ok())
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // It never panics, and if it did, it has said so.
            let _ = thread.join();
        }
    }
}

fn milliseconds(duration: std::time::Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

impl BootCommand {
    pub fn run(&self, store: &StoreOptions) -> Result<Exit, CliError> {
        let mut watch = Stopwatch::start();
        if !self.ready_only {
            host::kvm::require_stock_kernels()?;
        }
        let kvm = host::kvm::open()?;
        let image = cache::image_client(&self.cache, &self.load, store)?.open(&self.image)?;
        let manifest = image.manifest();
        let (protocol, entry) =
            boot::choose(&manifest.kernel, self.boot_protocol).map_err(MachineError::from)?;
        watch.phase("resolve");

        let mut ram = GuestRam::new(self.memory, self.memory_backing)?;
        let backing = ram.backing();
        watch.phase("memory");

        let slots = ram.ranges().to_vec();
        let guest_ranges: Vec<_> = slots.iter().map(RamRange::host).collect();
        let progress = Progress::new("loading", manifest.data_bytes());
        let options = loader::Options {
            verify: if self.verify_full { Verify::Full } else { Verify::Auto },
            ramdisk: self.ramdisk,
            progress: Some(&|bytes| progress.add(bytes)),
        };
        // KVM's part takes time in the kernel, and nothing of the image.
        let (processors, landed) = thread::scope(|scope| {
            let processors = scope.spawn(|| Processors::create(&kvm, &slots, self.cpus));
            let landed = loader::land(&image, &mut ram, &options);
            (processors.join(), landed)
        });
        drop(progress);
        let landed = landed?;
        let processors = processors
            .map_err(|_| MachineError::Failed("creating the processors panicked".into()))??;
        watch.phase("load");

        let command_line = self.command_line(&manifest.cmdline);
        let spec = BootSpec {
            kernel: &manifest.kernel,
            initrd: landed.initrd,
            command_line: &command_line,
        };
        let output = Box::new(unbuffered_stdout()?);
        let machine = Machine::assemble(processors, ram, (protocol, entry), &spec, output)?;
        watch.phase("boot");

        footprint::release_code();
        let mut report = Report {
            image: self.image.clone(),
            manifest: image.id().to_string(),
            cpus: self.cpus,
            memory_bytes: self.memory,
            memory_backing: backing,
            boot_protocol: protocol,
            ready_ms: milliseconds(watch.begun.elapsed()),
            phases: watch.phases,
            load: landed.report,
            // It walks all page tables: not on the way to a guest whose report nobody wants.
            overhead_bytes: self
                .wants_report()
                .then(|| footprint::resident_except(&guest_ranges))
                .flatten(),
            guest: None,
        };
        // What an image from a cache still has to do, it does while the guest starts.
        let _closing = Closing::begin(image);
        if self.ready_only {
            self.publish(&report)?;
            return Ok(Exit::Success);
        }
        if !self.json {
            say(&announcement(&report));
        }
        let begun = Instant::now();
        let settle = self.ramdisk == RamdiskChoice::Auto;
        let Life { outcome, kvm, settled, overhead_bytes } = machine.run(settle)?;
        let exit = Exit::from(&outcome);
        if exit != Exit::Success {
            say(&format!("vmm: {outcome}\n"));
        }
        let run_ms = milliseconds(begun.elapsed());
        report.guest = Some(GuestReport { outcome, run_ms, kvm, settled, overhead_bytes });
        match self.publish(&report) {
            // How the guest ended matters more than who was told.
            Err(error) if exit != Exit::Success => {
                say(&format!("vmm: {error}\n"));
                Ok(exit)
            }
            published => published.map(|()| exit),
        }
    }

    fn wants_report(&self) -> bool {
        self.json || self.timings || self.report.is_some()
    }

    /// What the machine says of itself, then the image's words, then those of this boot: of
    /// parameters given twice, the kernel takes the last.
    fn command_line(&self, image: &str) -> String {
        let parts =
            [boot::MACHINE_COMMAND_LINE, image, self.cmdline_append.as_deref().unwrap_or("")];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// Shows the report in the ways that were asked for.
    fn publish(&self, report: &Report) -> Result<(), CliError> {
        if self.timings {
            say(&table(report));
        }
        let text = || serde_json::to_string(report).map_err(std::io::Error::from);
        if let Some(file) = &self.report {
            let write = || std::fs::write(file, text()? + "\n");
            write().map_err(|source| CliError::Output {
                what: format!("the report to {}", file.display()),
                source,
            })?;
        }
        if self.json && report.guest.is_some() {
            let output = |source| CliError::Output { what: "the report".into(), source };
            say(&(text().map_err(output)? + "\n"));
        } else if self.json {
            print_json(report)?;
        }
        if self.ready_only && !self.json && !self.timings {
            print_text(&format!(
                "{} is ready to boot after {:.1} ms: {} fetched, {} mapped, RAM in {}\n",
                report.image,
                report.ready_ms,
                size::show(report.load.bytes_fetched),
                size::show(report.load.bytes_mapped),
                report.memory_backing
            ))?;
        }
        Ok(())
    }
}

/// One line before the guest has the console.
fn announcement(report: &Report) -> String {
    format!(
        "vmm: {} is ready after {:.1} ms, with {} in {}; Ctrl-A ? helps\n",
        report.image,
        report.ready_ms,
        size::show(report.memory_bytes),
        report.memory_backing
    )
}

/// The report for people.
fn table(report: &Report) -> String {
    let mut lines = vec![format!(
        "{:<10} {:>10}   RAM in {}; {} fetched, {} mapped, {} zero; verified by {}",
        "phase",
        "ms",
        report.memory_backing,
        size::show(report.load.bytes_fetched),
        size::show(report.load.bytes_mapped),
        size::show(report.load.bytes_zero),
        match report.load.verify {
            Verification::Checksum => "checksum",
            Verification::Full => "BLAKE3",
        }
    )];
    let row = |name: &str, ms: f64| format!("{name:<10} {ms:>10.3}");
    lines.extend(report.phases.iter().map(|phase| row(phase.name, phase.ms)));
    lines.push(row("ready", report.ready_ms));
    lines.extend(report.load.cache.iter().flat_map(cache_lines));
    if let Some(guest) = &report.guest {
        lines.push(row("guest", guest.run_ms));
        lines.push(format!(
            "exits {} (ports {}, MMIO {}, halts {}), stage-2 pages: {} x 2 MiB, {} x 4 KiB",
            guest.kvm.exits,
            guest.kvm.io_exits,
            guest.kvm.mmio_exits,
            guest.kvm.halt_exits,
            guest.kvm.pages_2m,
            guest.kvm.pages_4k
        ));
        lines.extend(guest.settled.as_ref().map(settled_line));
    }
    lines.join("\n") + "\n"
}

fn settled_line(settled: &Settled) -> String {
    let when = settled.settled_ms.map_or("not all".to_owned(), |ms| format!("after {ms:.3} ms"));
    format!(
        "settled {} of {} mapped, {when}; paused {:.3} ms, at most {:.3} at once; {} written before",
        size::show(settled.settled_bytes),
        size::show(settled.mapped_bytes),
        settled.paused_ms,
        settled.longest_pause_ms,
        size::show(settled.written_bytes)
    )
}

/// What the nodes of the cache did, for people.
fn cache_lines(cache: &CacheReport) -> Vec<String> {
    let mut lines = vec![format!(
        "cache      {} chunks from nodes, {} from the origin; each took {:.2} ms (p50), {:.2} ms \
         (p99)",
        cache.chunks_from_nodes, cache.chunks_from_origin, cache.chunk_ms_p50, cache.chunk_ms_p99
    )];
    if cache.retries > 0 {
        lines.push(format!(
            "           {} missed, {} damaged, {} asked for again, {} of them of another node",
            cache.misses, cache.damaged, cache.retries, cache.replica_switches
        ));
    }
    lines.extend(cache.nodes.iter().map(|node| {
        let failed = match &node.last_failure {
            Some(words) => format!("; failed {} times: {words}", node.failures),
            None => String::new(),
        };
        let why = node.link_reason.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        let by: Vec<String> =
            node.by.named().map(|(kind, count)| format!("{count} by {kind}")).collect();
        let over = node.device.as_ref().map(|name| format!(" over {name}")).unwrap_or_default();
        format!(
            "  node     {}: {} chunks, {}: {}{over}{why}{failed}",
            node.name,
            node.chunks,
            size::show(node.bytes),
            by.join(", ")
        )
    }));
    lines
}

/// Standard output without a buffer: a console's prompt has no newline.
fn unbuffered_stdout() -> Result<File, CliError> {
    std::io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map(File::from)
        .map_err(|source| CliError::Output { what: "to standard output".into(), source })
}
