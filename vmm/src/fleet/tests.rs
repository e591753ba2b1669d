use std::collections::BTreeSet;
use std::sync::Mutex;

use super::*;
use crate::api::Phase;
use crate::node::registry::new_record;

/// A node whose VMs are ready at once, but for some.
#[derive(Default)]
struct Fake {
    name: &'static str,
    alive: Mutex<BTreeSet<VmName>>,
    /// VMs of these numbers are refused.
    refused: Vec<u32>,
    /// Is set when so many have been created.
    stop: Option<(usize, &'static AtomicBool)>,
}

fn failure(message: &str, exit: Exit) -> NodeFailure {
    NodeFailure { message: message.into(), exit, slow: false, gone: false }
}

impl FleetNode for Fake {
    fn name(&self) -> String {
        self.name.into()
    }

    fn create(&self, vm: &CreateVm) -> Result<VmInfo, NodeFailure> {
        let name = vm.name.clone().unwrap();
        if self.refused.iter().any(|number| name.as_str().ends_with(&format!("-{number}"))) {
            return Err(failure("no such image", Exit::ImageNotFound));
        }
        let mut alive = self.alive.lock().unwrap();
        assert!(alive.insert(name.clone()), "{name} twice");
        if let Some((count, stop)) = self.stop
            && alive.len() >= count
        {
            stop.store(true, Ordering::Relaxed);
        }
        Ok(new_record(vm.clone(), 1, name).info)
    }

    fn wait(&self, name: &VmName, state: VmState, _: Duration) -> Result<VmInfo, NodeFailure> {
        let create = serde_json::from_str(r#"{"spec":{"image":"a"}}"#).unwrap();
        let mut info = new_record(create, 1, name.clone()).info;
        info.state = state;
        info.ready_ms = Some(3.0);
        info.phases = vec![Phase { name: "image".into(), ms: 1.0 }];
        Ok(info)
    }

    fn delete(&self, name: &VmName) -> Result<(), NodeFailure> {
        self.alive.lock().unwrap().remove(name);
        Ok(())
    }
}

fn fleet(count: u32) -> Fleet {
    Fleet {
        prefix: "web".parse().unwrap(),
        count,
        parallel: 4,
        spec: serde_json::from_str(r#"{"image":"a"}"#).unwrap(),
        tenant: TenantName::default(),
        hold: true,
        remove: false,
        patience: Duration::from_secs(10),
    }
}

#[test]
fn vms_are_spread_and_one_that_fails_changes_nothing_for_the_others() {
    let one = Fake { name: "one", refused: vec![3], ..Fake::default() };
    let two = Fake { name: "two", ..Fake::default() };
    let mut told = 0;
    let stop = AtomicBool::new(false);
    let report = boot(&[&one, &two], &fleet(10), &stop, |_| told += 1);
    assert_eq!((report.booted, report.failed, told), (9, 1, 10));
    assert_eq!((one.alive.lock().unwrap().len(), two.alive.lock().unwrap().len()), (4, 5));
    assert_eq!(report.exit(), Exit::ImageNotFound);
    let names: Vec<_> = report.vms.iter().map(|vm| vm.name.as_str()).collect();
    assert_eq!(names[..3], ["web-1", "web-2", "web-3"]);
    assert_eq!(names[9], "web-10");
    assert_eq!(report.vms[2].error.as_deref(), Some("no such image"));
    assert_eq!(report.summary.phases[0].times.p50.to_string(), "1");
}

#[test]
fn what_is_called_off_leaves_nothing() {
    static STOP: AtomicBool = AtomicBool::new(false);
    let node = Fake { name: "one", stop: Some((20, &STOP)), ..Fake::default() };
    let report = boot(&[&node], &fleet(1000), &STOP, |_| {});
    assert!(report.called_off && report.booted < 1000);
    assert!(node.alive.lock().unwrap().is_empty());
    assert_eq!(report.exit(), Exit::Signal(2));
}
