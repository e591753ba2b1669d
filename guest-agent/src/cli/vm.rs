//! `boot`, `load`, `ps`, `inspect`, `console` and `stop`: a manager's other VMs.

use std::fmt::Write;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use guest_agent::calls::{ImageStat, NewVm, StartedVm, State, VmStatus, VmSummary};
use guest_agent::driver::Driver;
use serde::Serialize;

use super::exit::Exit;
use super::{CliError, Global, interrupt, print};

/// Between looks at VMs whose end nobody announces.
const LOOK: Duration = Duration::from_millis(500);

/// What all VMs to be have.
#[derive(Debug, Args)]
struct VmOptions {
    /// The image.
    #[arg(long, value_name = "NAME")]
    image: String,

    /// RAM, as 512M or 2G; the host's choice by default.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,

    /// Virtual processors; the host's choice by default.
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,

    /// Words for the kernel, behind those of the image.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline_append: Option<String>,

    /// The VM's name; of several, what their names begin with.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

impl VmOptions {
    fn vm(&self) -> NewVm {
        NewVm {
            image: self.image.clone(),
            memory: self.memory,
            cpus: self.cpus,
            command_line: self.cmdline_append.clone(),
            name: self.name.clone(),
        }
    }
}

/// A number of bytes: `512M`, `2G`, `65536`, `4K`.
fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        Some(b'T' | b't') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let number = digits.bytes().all(|digit| digit.is_ascii_digit()).then_some(digits);
    let number = number.and_then(|digits| digits.parse::<u64>().ok());
    let bytes = number.and_then(|number| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| "a size is a number with K, M, G or T behind it, or without".to_owned())
}

/// Boot VMs from an image. The VMM fetches it; no data goes through this VM.
#[derive(Debug, Args)]
pub struct BootCommand {
    #[command(flatten)]
    vm: VmOptions,

    /// How many.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,

    /// Wait until all have ended, or are ready.
    #[arg(long, value_enum, value_name = "FOR", num_args = 0..=1, require_equals = true,
        default_missing_value = "end")]
    wait: Option<Wait>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wait {
    /// Until they have ended.
    End,
    /// Until they said that they are ready, or have ended.
    Ready,
}

#[derive(Debug, Serialize)]
struct Booted {
    vms: Vec<StartedVm>,
    /// Milliseconds that the command took.
    boot_ms: u64,
    /// What became of them, if that was waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    statuses: Option<Vec<VmStatus>>,
}

impl BootCommand {
    pub fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let mut driver = options.driver()?;
        let begun = Instant::now();
        let vms = driver.vm_boot(&self.vm.vm(), self.count)?;
        let boot_ms = milliseconds(begun);
        let statuses = match self.wait {
            Some(wait) => Some(wait_for(&mut driver, &vms, wait)?),
            None => None,
        };
        let mut text = String::new();
        for (index, vm) in vms.iter().enumerate() {
            let _ = write!(text, "vm {} {}", vm.vm, vm.name);
            if let Some(status) = statuses.as_ref().and_then(|all| all.get(index)) {
                let _ = write!(text, ": {}", describe(status));
            }
            text.push('\n');
        }
        let failed = statuses.iter().flatten().any(|status| {
            status.summary.state == State::Ended && status.summary.exit_code != Some(0)
        });
        options.print(&Booted { vms, boot_ms, statuses }, &text)?;
        Ok(if failed { Exit::VmFailed } else { Exit::Success })
    }
}

fn milliseconds(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Waits until all are as is wanted; looks when something has happened, and now and then.
fn wait_for(driver: &mut Driver, vms: &[StartedVm], wait: Wait) -> Result<Vec<VmStatus>, CliError> {
    let mut statuses = Vec::with_capacity(vms.len());
    for vm in vms {
        loop {
            let status = driver.vm_status(vm.vm)?;
            let ready = wait == Wait::Ready && status.ready_milliseconds.is_some();
            if ready || status.summary.state == State::Ended {
                statuses.push(status);
                break;
            }
            interrupt::check()?;
            driver.next_event(LOOK);
        }
    }
    Ok(statuses)
}

/// State and end of a VM, in words.
fn describe(status: &VmStatus) -> String {
    let mut text = status.summary.state.to_string();
    if let Some(code) = status.summary.exit_code {
        let _ = write!(text, " with {code}");
    }
    if let Some(outcome) = &status.outcome {
        let _ = write!(text, ": {outcome}");
    }
    if let Some(ready) = status.ready_milliseconds {
        let _ = write!(text, ", ready after {ready} ms");
    }
    text
}

/// Boot a VM by fetching its image into this VM, and handing over each chunk with a command.
///
/// This is how a guest could load images itself. 'boot' does the same without any data in this VM.
#[derive(Debug, Args)]
pub struct LoadCommand {
    #[command(flatten)]
    vm: VmOptions,
}

#[derive(Debug, Serialize)]
struct Loaded {
    #[serde(flatten)]
    vm: StartedVm,
    chunks: u32,
    chunk_bytes: u32,
    bytes: u64,
    load_ms: u64,
}

impl LoadCommand {
    pub fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let mut driver = options.driver()?;
        let begun = Instant::now();
        let image = Some(self.vm.image.as_str());
        let stat = driver.image_stat(image)?;
        // Before there is a VM that waits in vain.
        driver.need_buffer(usize::try_from(stat.chunk_bytes).unwrap_or(usize::MAX))?;
        let vm = driver.vm_prepare(&self.vm.vm())?;
        let bytes = hand_over(&mut driver, &stat, vm.vm).inspect_err(|_| {
            // It cannot run any more; what made that so is what counts.
            let _ = driver.vm_stop(vm.vm);
        })?;
        let load_ms = milliseconds(begun);
        let text = format!(
            "vm {} {}: {} chunks, {bytes} bytes handed over in {load_ms} ms\n",
            vm.vm, vm.name, stat.chunks
        );
        let (chunks, chunk_bytes) = (stat.chunks, stat.chunk_bytes);
        options.print(&Loaded { vm, chunks, chunk_bytes, bytes, load_ms }, &text)?;
        Ok(Exit::Success)
    }
}

/// Fetches each chunk and hands it over; how many bytes they are.
fn hand_over(driver: &mut Driver, stat: &ImageStat, vm: u64) -> Result<u64, CliError> {
    let mut bytes = 0;
    for chunk in 0..stat.chunks {
        interrupt::check()?;
        let content = driver.image_chunk(stat, Some(&stat.image), chunk)?;
        driver.vm_load(vm, chunk, &content)?;
        bytes += content.len() as u64;
    }
    Ok(bytes)
}

/// List the VMs that managers of this host booted.
#[derive(Debug, Args)]
pub struct PsCommand {}

#[derive(Debug, Serialize)]
struct List {
    vms: Vec<VmSummary>,
}

impl PsCommand {
    pub fn run(options: &Global) -> Result<Exit, CliError> {
        let vms = options.driver()?.vm_list()?;
        let mut text = format!("{:<6} {:<24} {:<8} {:<5} IMAGE\n", "VM", "NAME", "STATE", "EXIT");
        for vm in &vms {
            let exit = vm.exit_code.map_or_else(|| "-".to_owned(), |code| code.to_string());
            let _ = writeln!(
                text,
                "{:<6} {:<24} {:<8} {exit:<5} {}",
                vm.vm, vm.name, vm.state, vm.image
            );
        }
        options.print(&List { vms }, &text)?;
        Ok(Exit::Success)
    }
}

/// Show how a VM fares.
#[derive(Debug, Args)]
pub struct InspectCommand {
    /// The VM's number.
    #[arg(value_name = "NUMBER")]
    vm: u64,
}

impl InspectCommand {
    pub fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let status = options.driver()?.vm_status(self.vm)?;
        let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let text = format!(
            "vm      {}\nname    {}\nimage   {}\nstate   {}\ncpus    {}\nmemory  {} MiB\n\
             ms      {}\nconsole {} bytes (guest-agent console {})\n",
            status.summary.vm,
            status.summary.name,
            status.summary.image,
            describe(&status),
            number(status.cpus.map(u64::from)),
            number(status.memory.map(|bytes| bytes >> 20)),
            number(status.milliseconds),
            status.console.len(),
            status.summary.vm,
        );
        options.print(&status, &text)?;
        Ok(Exit::Success)
    }
}

/// Print the first bytes that a VM's guest has printed, as they are.
#[derive(Debug, Args)]
pub struct ConsoleCommand {
    /// The VM's number.
    #[arg(value_name = "NUMBER")]
    vm: u64,
}

impl ConsoleCommand {
    pub fn run(&self, options: &Global) -> Result<Exit, CliError> {
        print(&options.driver()?.vm_status(self.vm)?.console)?;
        Ok(Exit::Success)
    }
}

/// End VMs.
#[derive(Debug, Args)]
pub struct StopCommand {
    /// Their numbers.
    #[arg(value_name = "NUMBER", required = true)]
    vms: Vec<u64>,
}

#[derive(Debug, Serialize)]
struct Stopped<'a> {
    stopped: &'a [u64],
}

impl StopCommand {
    pub fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let mut driver = options.driver()?;
        for vm in &self.vms {
            driver.vm_stop(*vm)?;
        }
        options.print(&Stopped { stopped: &self.vms }, "")?;
        Ok(Exit::Success)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_their_units() {
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!((size("2g"), size("4096"), size("1T")), (Ok(2 << 30), Ok(4096), Ok(1 << 40)));
        for wrong in ["", "M", "-1", "+1", "1.5G", "99999999T", "1é"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
