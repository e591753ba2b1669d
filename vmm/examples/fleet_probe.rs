//! probe
#![allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used)]
use std::time::{Duration, Instant};
use vmm::api::*;
use vmm::node::Node;
use vmm::node::options::NodeOptions;
fn main() {
    let mut args = std::env::args().skip(1);
    if std::env::args().nth(1).as_deref() == Some("vm-process") {
        let _ = vmm::process::main();
        return;
    }
    let image = args.next().unwrap();
    let count: usize = args.next().unwrap().parse().unwrap();
    let parallel: usize = args.next().unwrap().parse().unwrap();
    let store = std::env::var("VMM_STORE").unwrap();
    let options = NodeOptions {
        run_dir: Some("/tmp/probe-run".into()),
        pool: 4 << 30,
        max_vms: 1000,
        parallel: Some(parallel as u32),
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
    let pull = PullImage { image: image.parse().unwrap(), tenant: Default::default(), pin: false };
    let t = Instant::now();
    println!("pull {:?}", node.pull(&pull).unwrap());
    println!("pull took {:?}", t.elapsed());
    let spec: vmm::spec::VmSpec =
        serde_json::from_str(&format!("{{\"image\":\"{image}\",\"memory\":{}}}", 1u64 << 30))
            .unwrap();
    for round in 0..3 {
        let t = Instant::now();
        std::thread::scope(|scope| {
            for w in 0..parallel {
                let (node, spec) = (&node, &spec);
                scope.spawn(move || {
                    for i in (w..count).step_by(parallel) {
                        let wish = CreateVm {
                            name: Some(format!("r{round}-{i}").parse().unwrap()),
                            tenant: Default::default(),
                            hold: true,
                            remove: true,
                            spec: spec.clone(),
                        };
                        let info = node.create(&wish).unwrap();
                        let _ = info;
                    }
                });
            }
        });
        let mut all = vec![];
        for i in 0..count {
            let name = format!("r{round}-{i}").parse().unwrap();
            let info = node.wait(&name, VmState::Ready, Duration::from_secs(60)).unwrap();
            all.push(info.ready_ms.unwrap_or(0.0));
            if i == count / 2 {
                println!(
                    "{:?}",
                    info.phases
                        .iter()
                        .map(|p| format!("{} {:.2}", p.name, p.ms))
                        .collect::<Vec<_>>()
                );
                println!("{:?}", info.end);
            }
        }
        let e = t.elapsed();
        all.sort_by(f64::total_cmp);
        println!(
            "{count} VMs in {:?}: {:.1}/s, p50 {:.2} ms p99 {:.2}",
            e,
            count as f64 / e.as_secs_f64(),
            all[count / 2],
            all[count * 99 / 100]
        );
        let mut pss = 0u64;
        let mut n = 0;
        for vm in node.list() {
            if let Some(pid) = vm.pid {
                let s = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
                    .unwrap_or_default();
                for l in s.lines() {
                    if l.starts_with("Pss:") {
                        pss += l.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
                        n += 1;
                        if n == 2 {
                            println!("{s}");
                        }
                    }
                }
            }
        }
        println!("PSS mean {} KiB", pss / n.max(1));
        let t = Instant::now();
        for vm in node.list() {
            node.delete(&vm.name).unwrap();
        }
        println!("deleted in {:?}", t.elapsed());
    }
    node.end();
}
