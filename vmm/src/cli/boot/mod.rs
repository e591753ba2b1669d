//! `vmm boot`: from a name to a running guest.

mod console_file;
mod guest;
mod report;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use clap::Args;
use imgcache::client::{Image, ImageClient, Verify};
use imgcache::image::name::ImageName;

use self::console_file::ConsoleFile;
use self::guest::{Around, GuestOptions};
use self::report::{GuestReport, Phase, Report};
use super::cache::{self, CacheOptions};
use super::progress::Progress;
use super::{CliError, StoreOptions, print_json, print_text, say};
use crate::control::{self, Control};
use crate::exit::{self, Exit};
use crate::host::{self, footprint};
use crate::loader::handed::Handed;
use crate::loader::{self, RamdiskChoice};
use crate::machine::boot::{self, ProtocolChoice};
use crate::machine::layout::MAX_CPUS;
use crate::machine::memory::{BackingChoice, GuestRam, RamRange};
use crate::machine::processors::Processors;
use crate::machine::{BootSpec, Console, Life, Machine, MachineError};
use crate::size;

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

    /// Write the console to this file, the first MiB of it, instead of standard output; it has no
    /// keyboard then.
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,

    /// Take the image's chunks from this socket, where a manager hands them over.
    #[arg(long, value_name = "SOCKET", hide = true)]
    chunks_from: Option<PathBuf>,

    #[command(flatten)]
    guest: GuestOptions,

    #[command(flatten)]
    cache: CacheOptions,

    #[command(flatten)]
    load: cache::LoadOptions,
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
        self.guest.check()?;
        let image = self.client(store)?.open(&self.image)?;
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
        let (control, end) = self.control(&image, store)?;
        let entry = (protocol, entry);
        let machine = Machine::assemble(processors, ram, entry, &spec, self.console()?, end)?;
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
            say(&report::announcement(&report));
        }
        let begun = Instant::now();
        let settle = self.ramdisk == RamdiskChoice::Auto;
        let lived = machine.run(settle);
        // Whatever ended it, what the guest has said is written.
        let said = control.end();
        let Life { outcome, kvm, settled, control: counters, overhead_bytes } = lived?;
        let exit = Exit::from(&outcome);
        if exit != Exit::Success {
            say(&format!("vmm: {outcome}\n"));
        }
        let run_ms = milliseconds(begun.elapsed());
        let control = counters.into();
        let guest = GuestReport { outcome, run_ms, kvm, settled, said, control, overhead_bytes };
        report.guest = Some(guest);
        match self.publish(&report) {
            // How the guest ended matters more than who was told.
            Err(error) if exit != Exit::Success => {
                say(&format!("vmm: {error}\n"));
                Ok(exit)
            }
            published => published.map(|()| exit),
        }
    }

    /// Where the image comes from.
    fn client(&self, store: &StoreOptions) -> Result<ImageClient, CliError> {
        let transport = cache::image_transport(&self.cache, &self.load, store)?;
        let Some(socket) = &self.chunks_from else { return Ok(ImageClient::new(transport)) };
        let handed = Handed::connect(socket, transport);
        let handed =
            handed.map_err(|source| CliError::HandOver { socket: socket.clone(), source })?;
        Ok(ImageClient::new(Box::new(handed)))
    }

    /// Starts what is behind the control device.
    fn control(
        &self,
        image: &Image,
        store: &StoreOptions,
    ) -> Result<(Control, control::MachineEnd), CliError> {
        let around = Around {
            image,
            cpus: self.cpus,
            memory: self.memory,
            global: store.arguments(),
            load: [self.cache.arguments(), self.load.arguments()].concat(),
        };
        let (cache, load, store) = (self.cache.clone(), self.load.clone(), store.clone());
        let opener = move || {
            cache::image_transport(&cache, &load, &store)
                .map(ImageClient::new)
                .map_err(|error| error.to_string())
        };
        let setup = self.guest.setup(around, Box::new(opener))?;
        let started = Control::start(setup);
        Ok(started.map_err(MachineError::system("start what is behind the control device"))?)
    }

    fn console(&self) -> Result<Console, CliError> {
        let Some(file) = &self.console else {
            return Ok(Console { output: Box::new(unbuffered_stdout()?), keyboard: true });
        };
        let source = |source| CliError::Output { what: file.display().to_string(), source };
        let output = ConsoleFile::new(File::create(file).map_err(source)?);
        Ok(Console { output: Box::new(output), keyboard: false })
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
            say(&report::table(report));
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

/// Standard output without a buffer: a console's prompt has no newline.
fn unbuffered_stdout() -> Result<File, CliError> {
    std::io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map(File::from)
        .map_err(|source| CliError::Output { what: "to standard output".into(), source })
}
