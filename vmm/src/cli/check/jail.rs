//! What the host has for jails (`vmm boot --jail`). Nothing of it is needed to boot guests.

use super::Finding;
use crate::jail::cgroup;
use crate::jail::landlock;
use crate::jail::launch;
use crate::jail::namespaces;

/// Namespaces, control groups, filters of system calls, Landlock.
pub fn findings() -> Vec<Finding> {
    let root = rustix::process::geteuid().is_root();
    vec![
        users(launch::user_namespaces().map_err(|error| error.to_string()), root),
        groups(),
        filters(std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").ok().as_deref()),
        second_lock(landlock::version()),
    ]
}

fn users(made: Result<(), String>, root: bool) -> Finding {
    const SUBJECT: &str = "namespaces";
    match (made, namespaces::obstacle()) {
        (Ok(()), Some(obstacle)) if !root => {
            Finding::improve(SUBJECT, obstacle.found, obstacle.fix)
        }
        (Ok(()), _) => Finding::ok(SUBJECT, "jails have all of them, users included"),
        (Err(error), obstacle) => {
            let found = obstacle.map_or(error, |obstacle| obstacle.found.to_owned());
            let fix = obstacle.map_or("allow them, or run as root", |obstacle| obstacle.fix);
            let without = if root { "jails do without one of users" } else { "no jails" };
            Finding::improve(SUBJECT, format!("{without}: {found}"), fix)
        }
    }
}

fn groups() -> Finding {
    const SUBJECT: &str = "cgroup v2";
    let Some(root) = cgroup::hierarchy() else {
        return Finding::improve(
            SUBJECT,
            "not mounted: VMs have no limits",
            "boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 none /sys/fs/cgroup",
        );
    };
    match cgroup::missing_controllers(&root) {
        Ok(missing) => controllers(&root.display().to_string(), &missing),
        Err(error) => Finding::improve(
            SUBJECT,
            format!("{} cannot be read: {error}", root.display()),
            "run where it is visible",
        ),
    }
}

fn controllers(root: &str, missing: &[&str]) -> Finding {
    const SUBJECT: &str = "cgroup v2";
    if missing.is_empty() {
        return Finding::ok(SUBJECT, format!("{root}, with all controllers that limits need"));
    }
    Finding::improve(
        SUBJECT,
        format!("{root} lacks {}: VMs have no such limits", missing.join(", ")),
        "take them from cgroup v1 (boot with cgroup_no_v1=all), or have them delegated (systemd: \
         Delegate=yes)",
    )
}

fn filters(actions: Option<&str>) -> Finding {
    const SUBJECT: &str = "seccomp";
    match actions {
        Some(actions) if actions.split_whitespace().any(|action| action == "kill_process") => {
            Finding::ok(SUBJECT, "filters of system calls, which kill the process")
        }
        _ => Finding::improve(
            SUBJECT,
            "this kernel has no filters that kill a process: no jails",
            "use a kernel from 4.14 on, with CONFIG_SECCOMP_FILTER",
        ),
    }
}

fn second_lock(version: Option<u8>) -> Finding {
    const SUBJECT: &str = "Landlock";
    match version {
        Some(version) => Finding::ok(SUBJECT, format!("version {version} of its interface")),
        None => Finding::improve(
            SUBJECT,
            "none: jails do without a second lock",
            "use a kernel from 5.13 on, with 'landlock' in lsm= on its command line",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_its_remedy_and_is_no_failure() {
        for finding in [
            users(Err("Operation not permitted".into()), false),
            controllers("/sys/fs/cgroup", &["cpu", "io"]),
            filters(Some("trap errno")),
            filters(None),
            second_lock(None),
        ] {
            assert_eq!(finding.grade, Grade::Improve, "{finding:?}");
            assert!(finding.fix.is_some(), "{finding:?}");
        }
        assert!(controllers("/x", &["cpu", "io"]).found.contains("cpu, io"));
        for finding in [
            users(Ok(()), true),
            controllers("/sys/fs/cgroup", &[]),
            filters(Some("kill_process log")),
            second_lock(Some(6)),
        ] {
            assert_eq!(finding.grade, Grade::Ok, "{finding:?}");
        }
    }
}
