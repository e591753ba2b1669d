//! probe
#![allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used)]
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use vmm::api::*;
use vmm::node::Node;
use vmm::node::options::NodeOptions;
fn main() {
    if std::env::args().nth(1).as_deref() == Some("vm-process") {
        let _ = vmm::process::main();
        return;
    }
    let store = std::env::var("VMM_STORE").unwrap();
    let images = std::env::var("IMAGES").unwrap();
    let options = NodeOptions {
        run_dir: Some("/tmp/probe-run".into()),
        pool: 2 << 30,
        max_vms: 1000,
        parallel: Some(2),
        keep_ended: 1000,
        keep_pool: false,
    };
    let node = Node::start(
        &options,
        Box::new(move || {
            let s = imgcache::store::Store::open(std::path::Path::new(&store))
                .map_err(|e| e.to_string())?;
            Ok(imgcache::client::ImageClient::new(Box::new(s)))
        }),
    )
    .unwrap();
    let kinds: Vec<(&str, &str)> = vec![("auto", "auto"), ("copy", "auto"), ("copy", "copy")];
    let mut n = 0;
    for (image, file) in
        [("i0", "initrd-small.cpio.gz"), ("i100", "initrd-100.cpio"), ("i300", "initrd-300.cpio")]
    {
        node.pull(&PullImage {
            image: image.parse().unwrap(),
            tenant: Default::default(),
            pin: false,
        })
        .unwrap();
        let mem: u64 = if image == "i300" { 1 << 30 } else { 512 << 20 };
        for _ in 0..2 {
            for (k, r) in &kinds {
                n += 1;
                let spec: vmm::spec::VmSpec = serde_json::from_str(&format!("{{\"image\":\"{image}\",\"memory\":{mem},\"kernel\":\"{k}\",\"ramdisk\":\"{r}\",\"cmdline_append\":\"selftest.quick\"}}")).unwrap();
                let t = Instant::now();
                let name: vmm::spec::name::VmName = format!("vm-{n}").parse().unwrap();
                node.create(&CreateVm {
                    name: Some(name.clone()),
                    tenant: Default::default(),
                    hold: false,
                    remove: false,
                    spec,
                })
                .unwrap();
                let console = node.console_file(&name).unwrap();
                loop {
                    if std::fs::read_to_string(&console)
                        .unwrap_or_default()
                        .contains("selftest: userspace")
                        || t.elapsed() > Duration::from_secs(60)
                    {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                let e = t.elapsed().as_secs_f64();
                let _ = node.wait(&name, VmState::Ended, Duration::from_secs(60));
                let info = node.inspect(&name).unwrap();
                let report = node.report(&name).unwrap();
                println!(
                    "{image} kernel {k} ramdisk {r}: {e:.2} s ready {:?} exits {}",
                    info.ready_ms, report["guest"]["kvm"]["exits"]
                );
            }
            let t = Instant::now();
            let mut child = Command::new("qemu-system-x86_64")
                .args([
                    "-M",
                    "microvm",
                    "-accel",
                    "kvm",
                    "-cpu",
                    "host",
                    "-m",
                    &format!("{}M", mem >> 20),
                ])
                .args([
                    "-nodefaults",
                    "-no-user-config",
                    "-nographic",
                    "-no-reboot",
                    "-serial",
                    "stdio",
                ])
                .args(["-append", "console=ttyS0 quiet panic=-1 selftest.quick", "-kernel"])
                .arg(format!("{images}/vmlinuz"))
                .arg("-initrd")
                .arg(format!("{images}/{file}"))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n');
            lines.any(|l| String::from_utf8_lossy(&l.unwrap()).contains("selftest: userspace"));
            println!("{image} QEMU {:.2}", t.elapsed().as_secs_f64());
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
    node.end();
}
