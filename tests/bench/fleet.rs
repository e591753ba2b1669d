//! Fleets of VMs on one host, beside QEMU's microvm machine with the same kernel, ramdisk and RAM, in
//! the same run.
//!
//! `scripts/bench fleet` runs it. Natively, up to ready-to-boot: from the first request until all VMs
//! have done everything but their first instruction, out of a pool that holds the image. QEMU is ready
//! when it answers on its monitor, stopped before the first instruction; it has not loaded the ramdisk
//! then, which its guest does. With `--user-space` (where KVM runs stock kernels, as in the lab) up to
//! the first word of each guest's user space.
//!
//! Memory is what the processes take proportionally (PSS): it has the image's pages in it once, divided
//! among all who map them.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};

/// What guests are told where they run: the self-test powers off as soon as it runs.
const QUICK: &str = "selftest.quick";
/// A guest's first word in user space.
const USER_SPACE: &str = "selftest: userspace";
/// A fleet that takes longer has stalled.
const STALLED: Duration = Duration::from_secs(300);
/// How often one of QEMU's is tried.
const ATTEMPTS: usize = 3;
/// RAM of each VM.
const MEMORY: &str = "512M";

/// Measure fleets.
#[derive(Parser)]
struct Options {
    /// The program to measure.
    #[arg(long)]
    vmm: PathBuf,
    /// Folder with the guest images.
    #[arg(long)]
    images: PathBuf,
    /// Counted runs of each, after one warm-up.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Numbers of VMs.
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,300")]
    counts: Vec<u32>,
    /// Ramdisks in the folder.
    #[arg(long, value_delimiter = ',', default_value = "initrd-100.cpio,initrd-300.cpio")]
    ramdisks: Vec<String>,
    /// VMs that are begun at a time, of both kinds.
    #[arg(long, default_value_t = 8)]
    parallel: u32,
    /// Boot guests, up to user space.
    #[arg(long)]
    user_space: bool,
    /// File for every figure, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One fleet, measured.
#[derive(Clone, Default)]
struct Sample {
    /// Until all were as far as they were to be.
    seconds: f64,
    /// Per VM, in milliseconds.
    p50: f64,
    p99: f64,
    /// KiB of memory for each VM.
    pss_kib: f64,
    /// Phases in milliseconds (medians over the VMs).
    phases: Vec<(String, f64)>,
}

fn main() {
    let options = Options::parse();
    // Where an agent's folder is on hosts: /run, which is in memory.
    let memory = Path::new("/dev/shm");
    let work = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let work = work.unwrap();
    let mut rows = Vec::new();
    println!(
        "{:<16} {:>5} {:<13} {:>9} {:>8} {:>9} {:>9} {:>11}",
        "ramdisk", "VMs", "", "seconds", "VMs/s", "p50 ms", "p99 ms", "PSS MiB/VM"
    );
    for ramdisk in &options.ramdisks {
        let agent = Agent::start(&options, work.path(), ramdisk);
        for &count in &options.counts {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for run in 0..=options.runs {
                let mine = agent.fleet(count);
                // Emulated KVM now and then loses a guest.
                let again = |_| qemus(&options, ramdisk, count);
                let yours = (0..ATTEMPTS).find_map(again).expect("QEMU's guests stall");
                if run > 0 {
                    ours.push(mine);
                    theirs.push(yours);
                }
            }
            for (kind, samples) in [("vmm", ours), ("QEMU microvm", theirs)] {
                let sample = median(samples);
                let per_second = f64::from(count) / sample.seconds;
                println!(
                    "{ramdisk:<16} {count:>5} {kind:<13} {:>9.3} {per_second:>8.1} {:>9.1} {:>9.1} {:>11.2}",
                    sample.seconds,
                    sample.p50,
                    sample.p99,
                    sample.pss_kib / 1024.0
                );
                let phases: Vec<_> =
                    sample.phases.iter().map(|(name, ms)| format!("{name} {ms:.2}")).collect();
                if !phases.is_empty() {
                    println!("{:<36} {}", "", phases.join(", "));
                }
                rows.push(json!({
                    "ramdisk": ramdisk,
                    "vms": count,
                    "kind": kind,
                    "seconds": sample.seconds,
                    "per_second": per_second,
                    "p50_ms": sample.p50,
                    "p99_ms": sample.p99,
                    "pss_kib_per_vm": sample.pss_kib,
                    "phases_ms": sample.phases,
                }));
            }
        }
        println!("{:<36} the agent takes {:.1} MiB (PSS)", "", pss_kib(agent.child.id()) / 1024.0);
    }
    if let Some(file) = &options.json {
        fs::write(file, serde_json::to_string_pretty(&rows).unwrap()).unwrap();
    }
}

/// A node agent with one image in its pool; ended when dropped.
struct Agent<'a> {
    options: &'a Options,
    child: Child,
    run: PathBuf,
}

impl<'a> Agent<'a> {
    fn start(options: &'a Options, work: &Path, ramdisk: &str) -> Self {
        let (run, store) = (work.join(format!("run-{ramdisk}")), work.join("store"));
        let pushed = Command::new(&options.vmm)
            .env("VMM_STORE", &store)
            .args(["image", "push", "bench", "--kernel"])
            .arg(options.images.join("vmlinuz"))
            .arg("--initrd")
            .arg(options.images.join(ramdisk))
            .stdout(Stdio::null())
            .status();
        assert!(pushed.unwrap().success());
        let child = Command::new(&options.vmm)
            .env("VMM_STORE", &store)
            .args(["node", "--pool", "2G", "--run-dir"])
            .arg(&run)
            // It has a line for each VM.
            .stderr(fs::File::create(work.join("agent.log")).unwrap())
            .spawn()
            .unwrap();
        let agent = Self { options, child, run };
        let begun = Instant::now();
        while !agent.run.join("node.sock").exists() {
            assert!(begun.elapsed() < STALLED, "the agent does not start");
            thread::sleep(Duration::from_millis(10));
        }
        agent.vmm(&["node", "pull", "bench"]);
        agent
    }

    /// Runs the program against the agent; returns what it prints.
    fn vmm(&self, arguments: &[&str]) -> Vec<u8> {
        let mut command = Command::new(&self.options.vmm);
        let socket = format!("unix:{}", self.run.join("node.sock").display());
        command.args(arguments).env("VMM_NODE", socket).stdin(Stdio::null());
        let output = command.stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "vmm {arguments:?}");
        output.stdout
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_slice(&self.vmm(arguments)).unwrap()
    }

    fn fleet(&self, count: u32) -> Sample {
        let (count_text, parallel) = (count.to_string(), self.options.parallel.to_string());
        let mut arguments = vec!["fleet", "boot", "--image", "bench", "--name", "bench", "--json"];
        arguments.extend(["--memory", MEMORY, "--count", &count_text, "--parallel", &parallel]);
        if self.options.user_space {
            arguments.extend(["--cmdline-append", QUICK]);
        } else {
            arguments.push("--hold");
        }
        let begun = Instant::now();
        let report = self.json(&arguments);
        assert_eq!(report["failed"], 0, "{report}");
        let seconds = report["seconds"].as_f64().unwrap();
        let ready = &report["summary"]["ready"];
        let mut sample = Sample {
            seconds,
            p50: ready["p50"].as_f64().unwrap(),
            p99: ready["p99"].as_f64().unwrap(),
            ..Sample::default()
        };
        let phases = report["summary"]["phases"].as_array().unwrap();
        let phase = |phase: &Value| {
            (phase["name"].as_str().unwrap().to_owned(), phase["p50"].as_f64().unwrap())
        };
        sample.phases = phases.iter().map(phase).collect();
        let vms: Vec<&Value> =
            report["vms"].as_array().unwrap().iter().map(|vm| &vm["vm"]).collect();
        if self.options.user_space {
            let reached = self.user_space(&vms, begun);
            sample.seconds = *reached.last().unwrap();
            sample.p50 = percentile(&reached, 50) * 1e3;
            sample.p99 = percentile(&reached, 99) * 1e3;
        }
        let living = vms.iter().filter_map(|vm| vm["pid"].as_u64());
        let pss: f64 = living.map(|pid| pss_kib(u32::try_from(pid).unwrap())).sum();
        sample.pss_kib = pss / f64::from(count);
        let names: Vec<_> = vms.iter().map(|vm| vm["name"].as_str().unwrap()).collect();
        self.vmm(&[&["rm", "--force"], names.as_slice()].concat());
        sample
    }

    /// Seconds from `begun` until each VM's guest was in user space, ascending.
    fn user_space(&self, vms: &[&Value], begun: Instant) -> Vec<f64> {
        let mut waiting: Vec<PathBuf> = vms
            .iter()
            .map(|vm| self.run.join(format!("node/vms/{}/console", vm["number"])))
            .collect();
        let mut reached = Vec::new();
        while !waiting.is_empty() {
            assert!(begun.elapsed() < STALLED, "{} guests stalled", waiting.len());
            waiting.retain(|console| {
                let there = fs::read_to_string(console).is_ok_and(|text| text.contains(USER_SPACE));
                if there {
                    reached.push(begun.elapsed().as_secs_f64());
                }
                !there
            });
            thread::sleep(Duration::from_millis(10));
        }
        reached
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// As many QEMU microvms; none if one of them stalled.
fn qemus(options: &Options, ramdisk: &str, count: u32) -> Option<Sample> {
    let begun = Instant::now();
    let (left, machines) = (Mutex::new(count), Mutex::new(Vec::new()));
    let next = || {
        let mut left = left.lock().unwrap();
        *left = left.checked_sub(1)?;
        Some(())
    };
    thread::scope(|scope| {
        // All guests run at once, as ours do; only the way to ready is taken in turns.
        let workers = if options.user_space { count } else { options.parallel };
        for _ in 0..workers {
            scope.spawn(|| {
                while next().is_some() {
                    let begun_one = Instant::now();
                    let (child, reached) = qemu(options, ramdisk);
                    let at = begun.elapsed().as_secs_f64();
                    let ms = begun_one.elapsed().as_secs_f64() * 1e3;
                    machines.lock().unwrap().push((child, reached.then_some((at, ms))));
                }
            });
        }
    });
    let mut machines = machines.into_inner().unwrap();
    let pss: f64 = machines.iter().map(|(child, _)| pss_kib(child.id())).sum();
    for (child, _) in &mut machines {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let reached: Option<Vec<_>> = machines.into_iter().map(|(_, reached)| reached).collect();
    let reached = reached?;
    let seconds = reached.iter().map(|(at, _)| *at).fold(0.0, f64::max);
    let mut times: Vec<f64> = reached.iter().map(|(_, ms)| *ms).collect();
    times.sort_by(f64::total_cmp);
    Some(Sample {
        seconds,
        p50: percentile(&times, 50),
        p99: percentile(&times, 99),
        pss_kib: pss / f64::from(count),
        phases: Vec::new(),
    })
}

/// One QEMU, and whether it is as far as it was to be, which it is but for a stall.
fn qemu(options: &Options, ramdisk: &str) -> (Child, bool) {
    let mut command = Command::new("qemu-system-x86_64");
    command
        // Some KVMs that can only make machines ready refuse what the host's own processor would need.
        .args(["-M", "microvm", "-accel", "kvm", "-m", MEMORY])
        .args(["-cpu", if options.user_space { "host" } else { "qemu64" }])
        .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
        .arg("-append")
        .arg(format!("console=ttyS0 quiet panic=-1 {QUICK}"))
        .arg("-kernel")
        .arg(options.images.join("vmlinuz"))
        .arg("-initrd")
        .arg(options.images.join(ramdisk));
    if options.user_space {
        command.args(["-serial", "stdio"]);
    } else {
        command.args(["-S", "-qmp", "stdio"]);
    }
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n');
    let (told, reached) = channel();
    let word = if options.user_space { USER_SPACE } else { "prelaunch" };
    thread::spawn(move || {
        let found = lines.any(|line| String::from_utf8_lossy(&line.unwrap()).contains(word));
        let _ = told.send(found); // to somebody who may have lost patience
    });
    if !options.user_space {
        // It answers when its machine has been made.
        let mut monitor = child.stdin.take().unwrap();
        monitor.write_all(br#"{"execute":"qmp_capabilities"}{"execute":"query-status"}"#).unwrap();
        child.stdin = Some(monitor);
    }
    let reached = reached.recv_timeout(STALLED);
    assert!(reached != Ok(false), "{command:?} has ended");
    (child, reached.is_ok())
}

/// What the process takes of memory, in KiB, with what it shares divided among those who share it.
fn pss_kib(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0.0)
}

/// The value that so many of a hundred of the ascending `values` do not exceed.
fn percentile(values: &[f64], per_cent: usize) -> f64 {
    values[(values.len() * per_cent).div_ceil(100).max(1) - 1]
}

/// The sample that took the median time.
fn median(mut samples: Vec<Sample>) -> Sample {
    samples.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    samples[samples.len() / 2].clone()
}
