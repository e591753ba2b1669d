//! Figure 5.5 of Kehne's thesis: an image that the VMM fetches by itself, against one that a management
//! guest fetches and hands over chunk by chunk. Each client is a manager guest of its own that boots one
//! VM, as each node of the thesis' machine had one.
//!
//! Counted for each cell: the time from the start of the VM's process until all of its image is in its
//! memory, and the exits of the manager's VM, less those of a manager that boots nothing. In an emulated
//! lab the exits are the honest figure: they are what a switch into the hypervisor costs anywhere.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use plotters::prelude::*;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use serde_json::Value;

/// Loading by the VMM against loading by a management guest (figure 5.5).
#[derive(Debug, Parser)]
struct Options {
    /// The vmm program.
    #[arg(long)]
    vmm: PathBuf,
    /// The imgcached program.
    #[arg(long)]
    imgcached: PathBuf,
    /// The guest agent.
    #[arg(long)]
    agent: PathBuf,
    /// Folder of the kernel.
    #[arg(long)]
    images: PathBuf,
    /// Where rows and the figure are written to.
    #[arg(long)]
    out: PathBuf,
    /// MiB of random content in the ramdisk.
    #[arg(long, default_value_t = 8)]
    megabytes: usize,
    /// KiB per chunk.
    #[arg(long, value_delimiter = ',', default_value = "4,16,64,256,1024")]
    chunks: Vec<u32>,
    /// Clients at once.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    clients: Vec<usize>,
    /// Runs of each cell; medians are shown.
    #[arg(long, default_value_t = 1)]
    runs: usize,
}

#[derive(Debug, Clone, Serialize)]
struct Row {
    /// `vmm` or `guest`.
    loader: &'static str,
    chunk_bytes: u32,
    clients: usize,
    /// Mean over the clients of the time until the image is in memory, in seconds; the median of runs.
    mean_s: f64,
    /// Exits of one client's manager, less those of one that boots nothing.
    exits: u64,
    /// Commands of one client's manager.
    commands: u64,
}

struct Bench<'a> {
    options: &'a Options,
    folder: tempfile::TempDir,
    cache: String,
}

fn main() {
    let options = Options::parse();
    let folder = tempfile::tempdir().unwrap();
    let mut node = Command::new(&options.imgcached)
        .args(["--memory", "1G", "--no-populate", "--backing", "4k", "--listen", "127.0.0.1:0"])
        .args(["--unix", folder.path().join("node").to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let cache = format!("unix:{}", folder.path().join("node").display());
    until("the node", || folder.path().join("node").exists());
    let bench = Bench { options: &options, folder, cache };
    let rows = bench.measure();
    write(&options.out, &rows);
    node.kill().unwrap();
    node.wait().unwrap();
}

fn until(what: &str, happened: impl Fn() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < Duration::from_secs(600), "{what} did not come about");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Bench<'_> {
    fn vmm(&self) -> Command {
        let mut command = Command::new(&self.options.vmm);
        command.env("VMM_STORE", self.folder.path().join("store"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn push(&self, name: &str, initrd: &Path, more: &[&str]) {
        let mut push = self.vmm();
        push.args(["image", "push", name, "--kernel"]);
        push.arg(self.options.images.join("vmlinuz")).arg("--initrd").arg(initrd).args(more);
        assert!(push.status().unwrap().success(), "{name} could not be pushed");
    }

    /// A ramdisk with files beside the test guest's.
    fn ramdisk(&self, name: &str, file: &str, content: &[u8]) -> PathBuf {
        let tree = self.folder.path().join(format!("{name}.tree"));
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join(file), content).unwrap();
        let pack = format!("echo {file} | cpio --create --format=newc --quiet | gzip -1");
        let packed = Command::new("sh").args(["-c", &pack]).current_dir(&tree).output().unwrap();
        let initrd = self.folder.path().join(format!("{name}.initrd"));
        let mut all = fs::read(self.options.images.join("initrd-small.cpio.gz")).unwrap();
        all.extend(packed.stdout);
        fs::write(&initrd, all).unwrap();
        initrd
    }

    fn measure(&self) -> Vec<Row> {
        let agent = format!("--with-agent={}", self.options.agent.display());
        let mut random = vec![0; self.options.megabytes << 20];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).unwrap();
        let payload = self.ramdisk("tenant", "payload", &random);
        let managers = [
            ("nothing", "true"),
            ("vmm", "guest-agent boot --image tenant --memory 256M --wait"),
            ("guest", "guest-agent load --image tenant --memory 256M"),
        ];
        for (name, line) in managers {
            // Chunks of up to 1 MiB are contiguous in pages of 2 MiB.
            let script = format!(
                "PATH=/sbin:/bin\necho 4 >/proc/sys/vm/nr_hugepages\nguest-agent mark begin\n{line}\n"
            );
            let initrd = self.ramdisk(name, "test", script.as_bytes());
            self.push(name, &initrd, &[&agent]);
        }
        println!(
            "{:>8} {:>7} {:>8} {:>9} {:>9} {:>9}",
            "chunk", "clients", "loader", "mean s", "exits", "commands"
        );
        let mut rows = Vec::new();
        for kib in &self.options.chunks {
            let size = format!("{kib}K");
            self.push("tenant", &payload, &["--chunk-size", &size, "--cache", &self.cache]);
            for clients in &self.options.clients {
                let (nothing, _, _) = self.run("nothing", *clients);
                for loader in ["vmm", "guest"] {
                    let mut runs: Vec<(u64, u64, f64)> =
                        (0..self.options.runs).map(|_| self.run(loader, *clients)).collect();
                    runs.sort_by(|a, b| a.2.total_cmp(&b.2));
                    let (exits, commands, mean_s) = runs[runs.len() / 2];
                    let exits = exits.saturating_sub(nothing);
                    let chunk_bytes = kib << 10;
                    let row =
                        Row { loader, chunk_bytes, clients: *clients, mean_s, exits, commands };
                    println!(
                        "{kib:>7}K {clients:>7} {loader:>8} {mean_s:>9.3} {exits:>9} {commands:>9}"
                    );
                    rows.push(row);
                }
            }
        }
        rows
    }

    /// Boots this many managers at once; the exits and commands of each, and the mean time until the
    /// images were in memory.
    fn run(&self, loader: &str, clients: usize) -> (u64, u64, f64) {
        let run = tempfile::tempdir_in(self.folder.path()).unwrap();
        let managers: Vec<(PathBuf, Child)> = (0..clients)
            .map(|client| {
                let folder = run.path().join(client.to_string());
                fs::create_dir(&folder).unwrap();
                let mut boot = self.vmm();
                boot.args(["boot", "--image", loader, "--memory", "256M", "--cache", &self.cache]);
                boot.args([
                    "--name",
                    "bench",
                    "--role",
                    "manager",
                    "--may",
                    "boot,fetch=tenant",
                    "--boot-quota",
                ]);
                boot.args(["count=1,memory=1G,images=tenant", "--transport", "tcp", "--report"]);
                boot.arg(folder.join("report")).arg("--run-dir").arg(&folder);
                (folder, boot.spawn().unwrap())
            })
            .collect();
        let mut times = Vec::new();
        if loader != "nothing" {
            for (folder, _) in &managers {
                let vm = folder.join("vms/1");
                until("the VM", || {
                    fs::read_to_string(vm.join("events")).is_ok_and(|said| said.contains("entry"))
                });
                let pid = fs::read_to_string(vm.join("pid")).unwrap().parse().unwrap();
                kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
                until("its report", || {
                    fs::read(vm.join("report")).is_ok_and(|text| text.ends_with(b"\n"))
                });
                times.push(json(&vm.join("report"))["ready_ms"].as_f64().unwrap() / 1e3);
            }
        }
        let (mut exits, mut commands) = (0, 0);
        for (folder, mut child) in managers {
            assert!(child.wait().unwrap().success(), "a manager failed");
            let report = json(&folder.join("report"));
            exits += report["guest"]["kvm"]["exits"].as_u64().unwrap();
            commands += report["guest"]["control"]["commands"].as_u64().unwrap();
        }
        let each = u64::try_from(clients).unwrap();
        let mean = times.iter().sum::<f64>() / f64::from(u32::try_from(clients).unwrap());
        (exits / each, commands / each, mean)
    }
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// Writes rows as CSV and JSON, and the figure as SVG.
fn write(folder: &Path, rows: &[Row]) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("loader.json"), serde_json::to_string_pretty(rows).unwrap()).unwrap();
    let mut csv = fs::File::create(folder.join("loader.csv")).unwrap();
    writeln!(csv, "loader,chunk_bytes,clients,mean_s,exits,commands").unwrap();
    for row in rows {
        let Row { loader, chunk_bytes, clients, mean_s, exits, commands } = row;
        writeln!(csv, "{loader},{chunk_bytes},{clients},{mean_s:.4},{exits},{commands}").unwrap();
    }
    let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for row in rows {
        let name = format!("{}, {} clients", row.loader, row.clients);
        let point = (f64::from(row.chunk_bytes >> 10).log2(), row.mean_s);
        series.entry(name).or_default().push(point);
    }
    let top = rows.iter().map(|row| row.mean_s).fold(0.0, f64::max) * 1.05;
    let file = folder.join("figure-5.5.svg");
    let root = SVGBackend::new(&file, (900, 560)).into_drawing_area();
    root.fill(&WHITE).unwrap();
    let mut chart = ChartBuilder::on(&root)
        .caption("Loading by the VMM and by a management guest", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(1.5..10.5, 0.0..top)
        .unwrap();
    let axis = "log2 of chunk size in KiB";
    chart.configure_mesh().x_desc(axis).y_desc("seconds, mean over clients").draw().unwrap();
    for (index, (name, points)) in series.into_iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))
            .unwrap()
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().border_style(BLACK).draw().unwrap();
    root.present().unwrap();
}
