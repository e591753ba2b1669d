//! What making and unmaking a VM costs, by the order of its steps.
//!
//! `scripts/bench kvm` runs it, here and in the lab. Nothing of a guest runs, so it works on every
//! kind of KVM.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]

use std::time::{Duration, Instant};

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_pit_config};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vmm::machine::memory::{BackingChoice, GuestRam};

const RUNS: usize = 15;

/// One step of making a VM.
#[derive(Clone, Copy)]
enum Step {
    Slots,
    FullIrqchipAndPit,
    SplitIrqchip,
    Vcpu,
}

const ORDERS: &[(&str, [Step; 3])] = &[
    ("slots, irqchip+PIT, vCPU", [Step::Slots, Step::FullIrqchipAndPit, Step::Vcpu]),
    ("irqchip+PIT, vCPU, slots", [Step::FullIrqchipAndPit, Step::Vcpu, Step::Slots]),
    ("slots, split irqchip, vCPU (ours)", [Step::Slots, Step::SplitIrqchip, Step::Vcpu]),
    ("split irqchip, slots, vCPU", [Step::SplitIrqchip, Step::Slots, Step::Vcpu]),
];

fn main() {
    let kvm = Kvm::new().unwrap();
    let ram = GuestRam::new(128 << 20, BackingChoice::Small).unwrap();
    println!("{:<36} {:>9} {:>9} {:>9}", "medians, ms", "slots", "all", "teardown");
    for (name, order) in ORDERS {
        let mut runs: Vec<_> = (0..=RUNS).map(|_| make(&kvm, &ram, *order)).collect();
        runs.remove(0); // the warm-up
        let column = |pick: fn(&[Duration; 3]) -> Duration| median(runs.iter().map(pick).collect());
        println!(
            "{name:<36} {:>9.3} {:>9.3} {:>9.3}",
            column(|run| run[0]),
            column(|run| run[1]),
            column(|run| run[2])
        );
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// Time for the slots, for everything up to the end of the last step, and for the end of it all.
fn make(kvm: &Kvm, ram: &GuestRam, order: [Step; 3]) -> [Duration; 3] {
    let begun = Instant::now();
    let vm = kvm.create_vm().unwrap();
    let mut slots = Duration::ZERO;
    let mut vcpu: Option<VcpuFd> = None;
    for step in order {
        let at = Instant::now();
        match step {
            Step::Slots => {
                vmm::machine::kvm::add_slots(&vm, ram.ranges()).unwrap();
                slots = at.elapsed();
            }
            Step::FullIrqchipAndPit => {
                vm.create_irq_chip().unwrap();
                vm.create_pit2(kvm_pit_config::default()).unwrap();
            }
            Step::SplitIrqchip => split_irqchip(&vm),
            Step::Vcpu => vcpu = Some(vm.create_vcpu(0).unwrap()),
        }
    }
    let all = begun.elapsed();
    let at = Instant::now();
    drop((vcpu, vm));
    [slots, all, at.elapsed()]
}

fn split_irqchip(vm: &VmFd) {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    cap.args[0] = 24;
    vm.enable_cap(&cap).unwrap();
}
