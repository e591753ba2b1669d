//! Namespaces: which ones a VM's process has of its own, and why a host refuses them.

use std::fs;
use std::io;

use rustix::thread::UnshareFlags;

/// What the process of a VM has of its own, from its first instruction on: users, processes, mounts,
/// System V IPC and the host's name. The network is its own from when it needs no other any more
/// ([`leave_network`]), the view of control groups after it is in its own.
pub(super) const AT_START: libc::c_int =
    libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// Enters a network namespace of this thread's own, with nothing in it but a loopback interface that
/// is down.
///
/// # Errors
/// The kernel's refusal.
pub fn leave_network() -> io::Result<()> {
    unshare(UnshareFlags::NEWNET)
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: threads and the standard library rely on a shared table of files and a shared file
    // system state; neither is unshared here.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// A setting of the host that keeps user namespaces from those who are not root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Obstacle {
    /// What was found.
    pub found: &'static str,
    /// What to do about it.
    pub fix: &'static str,
}

/// Settings that refuse user namespaces, or make them useless: file, what it holds then, and what to say.
const OBSTACLES: [(&str, &str, Obstacle); 3] = [
    (
        "/proc/sys/user/max_user_namespaces",
        "0",
        Obstacle {
            found: "user namespaces are switched off (user.max_user_namespaces is 0)",
            fix: "sysctl user.max_user_namespaces=15000",
        },
    ),
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        Obstacle {
            found: "user namespaces are for root only (kernel.unprivileged_userns_clone is 0)",
            fix: "sysctl kernel.unprivileged_userns_clone=1, or run as root",
        },
    ),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        Obstacle {
            found: "AppArmor takes the rights in user namespaces away from programs without a \
                    profile (kernel.apparmor_restrict_unprivileged_userns is 1)",
            fix: "give this program an AppArmor profile with 'userns,', or run as root, or sysctl \
                  kernel.apparmor_restrict_unprivileged_userns=0",
        },
    ),
];

/// Why this host refuses user namespaces, if a setting that is known does.
pub fn obstacle() -> Option<Obstacle> {
    OBSTACLES.iter().find_map(|(file, value, obstacle)| {
        let text = fs::read_to_string(file).ok()?;
        (text.trim() == *value).then_some(*obstacle)
    })
}

/// In words, for the end of an error message.
pub(super) fn hint() -> String {
    obstacle().map_or_else(
        || "run as root, or allow user namespaces on this host".to_owned(),
        |obstacle| format!("{}: {}", obstacle.found, obstacle.fix),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_obstacle_says_how_to_remove_it() {
        for (file, value, obstacle) in OBSTACLES {
            assert!(file.starts_with("/proc/sys/") && !value.is_empty());
            let name = file.trim_start_matches("/proc/sys/").replace('/', ".");
            assert!(obstacle.found.contains(&name), "{obstacle:?}");
            assert!(!obstacle.fix.is_empty());
        }
        assert!(!hint().is_empty());
    }
}
