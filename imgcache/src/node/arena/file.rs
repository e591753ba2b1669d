//! In which pages a file is: what its file system decides.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{fstatfs, major, minor};

use super::backing::shmem_setting;

/// The kernel's numbers of file systems (`linux/magic.h`).
const TMPFS: u64 = 0x0102_1994;
const HUGETLBFS: u64 = 0x9584_58f6;

/// The best pages that a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pages {
    /// Those of the pool: its file system has no others.
    Pool,
    /// Transparent huge ones; for some mounts only where a mapping asks for them.
    Huge {
        /// `huge=advise`: not where space is reserved without a mapping.
        when_asked: bool,
    },
    /// 4 KiB.
    Small,
}

/// The best pages that `file` has.
///
/// # Errors
/// Why they are only small ones.
pub(super) fn pages(file: &File) -> Result<Pages, String> {
    let magic = fstatfs(file).map(|system| system.f_type).ok();
    match magic.and_then(|magic| u64::try_from(magic).ok()) {
        Some(HUGETLBFS) => Ok(Pages::Pool),
        Some(TMPFS) => {
            let device = file.metadata().map_err(|error| error.to_string())?.dev();
            let mounts = fs::read_to_string("/proc/self/mountinfo")
                .map_err(|error| format!("/proc/self/mountinfo: {error}"))?;
            let setting = shmem_setting().map_err(|error| error.to_string())?;
            of_tmpfs(&mounts, (major(device), minor(device)), &setting)
        }
        _ => Err("only files of a tmpfs or hugetlbfs have huge pages".to_owned()),
    }
}

/// The pages of files of the tmpfs with this device number. Its mount decides (`huge=`), unless the
/// kernel's setting forces or denies them everywhere (`tmpfs(5)`).
fn of_tmpfs(mounts: &str, device: (u32, u32), setting: &str) -> Result<Pages, String> {
    match setting {
        "force" => return Ok(Pages::Huge { when_asked: false }),
        "deny" => return Err("transparent_hugepage/shmem_enabled is 'deny'".to_owned()),
        _ => (),
    }
    let number = format!("{}:{}", device.0, device.1);
    // `proc_pid_mountinfo(5)`: the third field is the device, the last one the file system's options.
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some(&number));
    let options = mount.and_then(|line| line.rsplit(' ').next()).unwrap_or_default();
    match options.split(',').find_map(|option| option.strip_prefix("huge=")) {
        Some("always" | "within_size") => Ok(Pages::Huge { when_asked: false }),
        Some("advise") => Ok(Pages::Huge { when_asked: true }),
        other => Err(format!(
            "its tmpfs is mounted with huge={}: mount -o remount,huge=advise",
            other.unwrap_or("never")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 28 0:20 / /proc rw,nosuid - proc proc rw
25 28 0:23 / /dev/shm rw,nosuid,nodev shared:3 - tmpfs tmpfs rw,size=10k,huge=always
26 28 0:24 / /run rw - tmpfs tmpfs rw,huge=advise,mode=755
27 28 0:25 / /tmp rw - tmpfs tmpfs rw
28 28 0:26 / /mnt rw - tmpfs tmpfs rw,huge=within_size
29 28 0:27 / /none rw - tmpfs tmpfs rw,huge=never
";

    #[test]
    fn the_mount_decides_and_not_the_setting_for_anonymous_memory() {
        let pages = |minor, setting| of_tmpfs(MOUNTS, (0, minor), setting);
        assert_eq!(pages(23, "never"), Ok(Pages::Huge { when_asked: false }));
        assert_eq!(pages(24, "never"), Ok(Pages::Huge { when_asked: true }));
        assert_eq!(pages(26, "advise"), Ok(Pages::Huge { when_asked: false }));
        for minor in [25, 27, 99] {
            let reason = pages(minor, "advise").unwrap_err();
            assert!(reason.contains("huge=never") && reason.contains("remount"), "{reason}");
        }
        assert_eq!(pages(25, "force"), Ok(Pages::Huge { when_asked: false }));
        assert!(pages(23, "deny").unwrap_err().contains("deny"));
    }
}
