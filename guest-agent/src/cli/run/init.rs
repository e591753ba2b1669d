//! What only the first process does: mounts at the start, power off at the end.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::mount::{MountFlags, mount};
use rustix::process::getpid;
use rustix::system::{RebootCommand, reboot};

use crate::cli::tell;

/// Where commands are.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Type and folder of each file system that programs expect.
const MOUNTS: [(&str, &str); 4] =
    [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run")];

/// Whether this is the first process.
pub fn is_init() -> bool {
    getpid().is_init()
}

/// Mounts what is not mounted yet. What cannot be is told.
pub fn mount_all() {
    for (kind, folder) in MOUNTS {
        // It may be there, or the root file system read-only: then mounting says so.
        let _ = fs::create_dir_all(folder);
        if is_mounted(folder) {
            continue;
        }
        let flags = if kind == "devtmpfs" {
            MountFlags::NOSUID
        } else {
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC
        };
        if let Err(error) = mount(kind, folder, kind, flags, None) {
            tell(&format!("cannot mount {kind} at {folder}: {error}"));
        }
    }
}

/// Whether a folder is of another file system than the one it is in.
fn is_mounted(folder: &str) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|data| data.dev()).ok();
    device(Path::new(folder)) != device(Path::new("/"))
}

/// Ends the VM.
pub fn power_off() -> ! {
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        tell(&format!("cannot power off: {error}"));
    }
    // The kernel panics when init ends, so it does not.
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mounted_folder_is_known() {
        assert!(is_mounted("/proc"));
        assert!(!is_mounted("/"));
        assert!(!is_init());
    }
}
