//! What the host can do by RDMA. Nothing of it is needed: what cannot come by RDMA comes by TCP.

use imgcache::transport::verbs::{self, Device, Driver, LinkLayer, Port, PortState, VerbsError};

use super::Finding;
use crate::host::limits;
use crate::size;

/// Locked memory that a load needs at the least: what it has registered of one image.
const ENOUGH: u64 = 1 << 30;

/// Devices with their ports, and the limit on locked memory.
pub fn findings() -> Vec<Finding> {
    let devices = verbs::devices();
    let mut findings = match &devices {
        Ok(devices) => devices.iter().map(device).collect(),
        Err(error) => vec![none(error)],
    };
    findings.push(memlock(devices.is_ok(), limits::may_lock_memory(), limits::memlock()));
    findings
}

fn none(error: &VerbsError) -> Finding {
    let found = format!("{error}; chunks come by TCP");
    match error {
        // Hosts without are the rule.
        VerbsError::Library { .. } | VerbsError::Kernel { .. } | VerbsError::NoDevice => {
            Finding::ok("RDMA", format!("none: {found}"))
        }
        // The error says what to do.
        _ => Finding::improve("RDMA", "there is a device that cannot be used", found),
    }
}

fn device(device: &Device) -> Finding {
    let Device { name, driver, limits, ports, .. } = device;
    let driver = match driver {
        Driver::Rxe => "soft-RoCE",
        Driver::Hardware(name) => name,
        Driver::Unknown => "an emulation",
    };
    let windows = match (limits.windows, device.window_bounds_enforced()) {
        (0, _) => "no memory windows",
        (_, true) => "memory windows",
        (_, false) => "memory windows whose bounds are not enforced",
    };
    let ports_found: Vec<String> = ports.iter().map(port).collect();
    let found = format!(
        "{name} ({driver}): {}; {} queues, {} READs each at once, {windows}",
        ports_found.join("; "),
        limits.queues,
        limits.reads_outstanding
    );
    if device.usable_port().is_some() {
        return Finding::ok("RDMA", found);
    }
    Finding::improve(
        "RDMA",
        found,
        "no port can be used: bring a link up (ip link set ... up; rdma link show), and give its \
         interface an address",
    )
}

fn port(port: &Port) -> String {
    let state = match port.state {
        PortState::Down => "down",
        PortState::Starting => "waits for the subnet manager",
        PortState::Active => "active",
    };
    let link = match port.link {
        LinkLayer::InfiniBand => "InfiniBand",
        LinkLayer::Ethernet => "Ethernet",
    };
    let address = port.preferred_gid().map_or("no address".into(), ToString::to_string);
    format!("port {} {state}, {link}, MTU {}, {address}", port.number, port.active_mtu)
}

/// Without a device nothing is locked.
fn memlock(is_needed: bool, is_exempt: bool, limit: Option<u64>) -> Finding {
    let subject = "memlock limit";
    match limit {
        None => Finding::ok(subject, "unlimited"),
        Some(limit) if is_exempt => {
            let limit = size::show(limit);
            Finding::ok(subject, format!("{limit}, which does not bind this user (CAP_IPC_LOCK)"))
        }
        Some(limit) if is_needed && limit < ENOUGH => Finding::improve(
            subject,
            format!("{}: too little for loads by RDMA, which then go by TCP", size::show(limit)),
            "ulimit -l unlimited, LimitMEMLOCK=infinity (systemd), --ulimit memlock=-1 (containers)",
        ),
        Some(limit) => {
            Finding::ok(subject, format!("{}; only RDMA locks memory", size::show(limit)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    #[test]
    fn the_limit_matters_where_it_binds_and_there_is_a_device() {
        let grade = |needed, exempt, limit| memlock(needed, exempt, limit).grade;
        assert_eq!(grade(true, false, Some(8 << 20)), Grade::Improve);
        assert_eq!(grade(true, true, Some(8 << 20)), Grade::Ok);
        assert_eq!(grade(true, false, Some(4 << 30)), Grade::Ok);
        assert_eq!(grade(true, false, None), Grade::Ok);
        assert_eq!(grade(false, false, Some(8 << 20)), Grade::Ok);
    }

    #[test]
    fn no_device_is_no_flaw_and_one_that_is_refused_is() {
        assert_eq!(none(&VerbsError::NoDevice).grade, Grade::Ok);
        let driver = VerbsError::Driver { devices: vec!["mlx5_0".into()] };
        let finding = none(&driver);
        assert_eq!(finding.grade, Grade::Improve);
        assert!(finding.fix.is_some_and(|fix| fix.contains("ibverbs-providers")));
    }
}
