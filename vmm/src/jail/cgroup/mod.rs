//! Control groups, version 2: how much of the host a VM's process may take, what it has taken, and its
//! end with all that belongs to it.
//!
//! A [`Parent`] is a group for groups of VMs; a [`Cgroup`] is one VM's. A process is started in its
//! group (`clone3`), never moved to it: moving waits for all processors of the host.
//!
//! All paths are walked from a descriptor of the hierarchy's root, and a link in one is an error.

mod limits;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, mkdirat, openat2, unlinkat};

pub use self::limits::{Limits, whole_disk};

/// How long the kernel may take to let go of a group whose processes were killed.
const REMOVAL: Duration = Duration::from_secs(5);

/// The controllers that limits need.
pub const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];

/// What a control group could not be made to do.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// There is no hierarchy of version 2.
    #[error(
        "this host has no cgroup v2: mount it (mount -t cgroup2 none /sys/fs/cgroup), or boot with \
         systemd.unified_cgroup_hierarchy=1"
    )]
    NoHierarchy,
    /// It is there without the controllers that limits need.
    #[error(
        "cgroup v2 at {} lacks the controllers {missing}: they are in use by cgroup v1, or not \
         delegated to this group (with systemd: Delegate=yes)",
        group.display()
    )]
    NoControllers {
        /// The group.
        group: PathBuf,
        /// Names.
        missing: String,
    },
    /// A path that is none of a group.
    #[error("'{}' is not the path of a control group: it is to be a/b/c, without . and ..", .0.display())]
    Path(PathBuf),
    /// Of a file of a group.
    #[error("control group {}: cannot {what}: {source}", group.display())]
    Io {
        /// The group.
        group: PathBuf,
        /// What was tried.
        what: String,
        /// The reason.
        source: io::Error,
    },
}

/// A group for groups: it has no processes of its own, and hands the controllers on.
#[derive(Debug)]
pub struct Parent {
    path: PathBuf,
    folder: OwnedFd,
    available: Vec<&'static str>,
}

impl Parent {
    /// Opens the group `path`, relative to the hierarchy's root, such as `vmm`, and makes it where it is
    /// missing. Its controllers are those that the groups above it have to hand on.
    ///
    /// # Errors
    /// No hierarchy, or the host's refusal.
    pub fn create(path: &Path) -> Result<Self, CgroupError> {
        Self::create_in(&hierarchy().ok_or(CgroupError::NoHierarchy)?, path)
    }

    fn create_in(root: &Path, path: &Path) -> Result<Self, CgroupError> {
        let names: Option<Vec<_>> = path
            .components()
            .map(|part| if let Component::Normal(name) = part { Some(name) } else { None })
            .collect();
        let names = names.ok_or_else(|| CgroupError::Path(path.into()))?;
        let mut group = root.to_path_buf();
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let opened = rustix::fs::open(root, flags, Mode::empty());
        let mut folder = opened.map_err(io_error(root, "open it"))?;
        let mut available = available(&group, folder.as_fd())?;
        for name in names {
            delegate(&group, folder.as_fd(), &available)?;
            group.push(name);
            folder = make(&group, folder.as_fd(), Path::new(name))?;
            available.retain(|controller| {
                read(&group, folder.as_fd(), "cgroup.controllers")
                    .is_ok_and(|all| all.split_whitespace().any(|other| other == *controller))
            });
        }
        delegate(&group, folder.as_fd(), &available)?;
        Ok(Self { path: group, folder, available })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The controllers of [`CONTROLLERS`] that its groups have.
    pub fn controllers(&self) -> &[&'static str] {
        &self.available
    }

    /// Makes the group of a VM under its name, with limits.
    ///
    /// # Errors
    /// A name that is none, a controller that the limits need and this host does not have, or the host's
    /// refusal.
    pub fn vm(&self, name: &str, limits: &Limits) -> Result<Cgroup, CgroupError> {
        let group = self.path.join(name);
        let named = Path::new(name);
        if !matches!(named.components().collect::<Vec<_>>()[..], [Component::Normal(only)] if only == name)
        {
            return Err(CgroupError::Path(group));
        }
        let missing: Vec<_> =
            limits.asked().filter(|needed| !self.available.contains(needed)).collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            return Err(CgroupError::NoControllers { group: self.path.clone(), missing });
        }
        let folder = make(&group, self.folder.as_fd(), named)?;
        let cgroup = Cgroup { path: group, folder };
        for (file, value) in limits.settings(&self.available) {
            // Kernels without swap accounting have no such file, and nothing to limit by it.
            match cgroup.write(file, &value) {
                Err(CgroupError::Io { source, .. })
                    if file == "memory.swap.max" && source.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
        Ok(cgroup)
    }

    /// Opens the group of a VM that is there, such as one that an earlier process made.
    ///
    /// # Errors
    /// There is none, or the host's refusal.
    pub fn find(&self, name: &str) -> Result<Cgroup, CgroupError> {
        let path = self.path.join(name);
        let folder = open(self.folder.as_fd(), Path::new(name));
        let folder = folder.map_err(io_error(&path, "open it"))?;
        Ok(Cgroup { path, folder })
    }
}

/// The group of a VM.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    folder: OwnedFd,
}

/// What happened to a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    /// How often its memory was at the limit.
    pub max: u64,
    /// Processes of it that were killed because memory ran out.
    pub oom_kill: u64,
}

impl Cgroup {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What happened to its memory.
    ///
    /// # Errors
    /// It is gone, or has no controller for memory.
    pub fn memory_events(&self) -> Result<MemoryEvents, CgroupError> {
        let text = self.read("memory.events")?;
        Ok(MemoryEvents { max: value(&text, "max"), oom_kill: value(&text, "oom_kill") })
    }

    /// Whether there are processes in it.
    ///
    /// # Errors
    /// It is gone.
    pub fn is_populated(&self) -> Result<bool, CgroupError> {
        Ok(value(&self.read("cgroup.events")?, "populated") != 0)
    }

    /// The processes in it, as this process knows them.
    ///
    /// # Errors
    /// It is gone.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        Ok(self.read("cgroup.procs")?.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Reads one of its files.
    ///
    /// # Errors
    /// The host's refusal.
    pub fn read(&self, file: &str) -> Result<String, CgroupError> {
        read(&self.path, self.folder.as_fd(), file)
    }

    /// Kills all that is in it.
    ///
    /// # Errors
    /// The host's refusal.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match self.write("cgroup.kill", "1") {
            // A kernel before 5.14 kills nobody at once.
            Err(CgroupError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                for process in self.processes()? {
                    let process =
                        i32::try_from(process).ok().and_then(rustix::process::Pid::from_raw);
                    if let Some(process) = process {
                        // It may just have ended.
                        let _ =
                            rustix::process::kill_process(process, rustix::process::Signal::KILL);
                    }
                }
                Ok(())
            }
            result => result,
        }
    }

    /// Kills what is in it, and removes it.
    ///
    /// # Errors
    /// The host's refusal, or processes that do not go.
    pub fn remove(self) -> Result<(), CgroupError> {
        let begun = Instant::now();
        loop {
            match rustix::fs::rmdir(&self.path) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => return Ok(()),
                Err(rustix::io::Errno::BUSY) if begun.elapsed() < REMOVAL => {}
                Err(error) => return Err(io_error(&self.path, "remove it")(error)),
            }
            self.kill()?;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        write(&self.path, self.folder.as_fd(), file, value)
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

/// The root of the hierarchy of version 2, if this host has one.
pub fn hierarchy() -> Option<PathBuf> {
    root_in(&fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// The root whose mount is in `mountinfo` (proc(5)).
fn root_in(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let place = mount.split(' ').nth(4)?;
        kind.starts_with("cgroup2 ").then(|| PathBuf::from(place))
    })
}

/// The controllers that limits need and `root` does not have.
///
/// # Errors
/// It cannot be read.
pub fn missing_controllers(root: &Path) -> io::Result<Vec<&'static str>> {
    let all = fs::read_to_string(root.join("cgroup.controllers"))?;
    let has = |name: &&str| all.split_whitespace().any(|other| other == *name);
    Ok(CONTROLLERS.into_iter().filter(|name| !has(name)).collect())
}

fn io_error<E: Into<io::Error>>(group: &Path, what: &str) -> impl FnOnce(E) -> CgroupError {
    let (group, what) = (group.to_path_buf(), what.to_owned());
    move |source| CgroupError::Io { group, what, source: source.into() }
}

fn available(group: &Path, folder: BorrowedFd<'_>) -> Result<Vec<&'static str>, CgroupError> {
    let all = read(group, folder, "cgroup.controllers")?;
    let has = |name: &&str| all.split_whitespace().any(|other| other == *name);
    Ok(CONTROLLERS.into_iter().filter(has).collect())
}

/// Hands `controllers` on to the groups below.
fn delegate(
    group: &Path,
    folder: BorrowedFd<'_>,
    controllers: &[&'static str],
) -> Result<(), CgroupError> {
    let already = read(group, folder, "cgroup.subtree_control")?;
    for name in controllers {
        if !already.split_whitespace().any(|other| other == *name) {
            write(group, folder, "cgroup.subtree_control", &format!("+{name}"))?;
        }
    }
    Ok(())
}

fn make(group: &Path, parent: BorrowedFd<'_>, name: &Path) -> Result<OwnedFd, CgroupError> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(io_error(group, "make it")(error)),
    }
    open(parent, name).map_err(io_error(group, "open it"))
}

fn open(parent: BorrowedFd<'_>, name: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    Ok(openat2(parent, name, flags, Mode::empty(), resolve)?)
}

fn open_file(folder: BorrowedFd<'_>, file: &str, access: OFlags) -> io::Result<File> {
    let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    Ok(openat2(folder, file, flags, Mode::empty(), resolve)?.into())
}

fn read(group: &Path, folder: BorrowedFd<'_>, file: &str) -> Result<String, CgroupError> {
    let mut text = String::new();
    open_file(folder, file, OFlags::RDONLY)
        .and_then(|mut opened| opened.read_to_string(&mut text))
        .map_err(io_error(group, &format!("read {file}")))?;
    Ok(text)
}

fn write(group: &Path, folder: BorrowedFd<'_>, file: &str, value: &str) -> Result<(), CgroupError> {
    open_file(folder, file, OFlags::WRONLY)
        .and_then(|mut opened| opened.write_all(value.as_bytes()))
        .map_err(io_error(group, &format!("write '{value}' to {file}")))
}

/// The value of `name` in a file of names and values.
fn value(text: &str, name: &str) -> u64 {
    let words = text.lines().filter_map(|line| line.split_once(' '));
    let found = words.filter(|(other, _)| *other == name).find_map(|(_, n)| n.trim().parse().ok());
    found.unwrap_or(0)
}

/// Removes an empty group that a [`Parent`] made, and leaves one that is in use.
///
/// # Errors
/// The host's refusal.
pub fn remove_parent(parent: &Parent) -> Result<(), CgroupError> {
    let (Some(above), Some(name)) = (parent.path.parent(), parent.path.file_name()) else {
        return Ok(());
    };
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let above = rustix::fs::open(above, flags, Mode::empty());
    let above = above.map_err(io_error(&parent.path, "remove it"))?;
    match unlinkat(above, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(rustix::io::Errno::BUSY | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(io_error(&parent.path, "remove it")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_beside_those_of_version_1() {
        let mounts = "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 25 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 none rw\n";
        assert_eq!(root_in(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(root_in("1 0 0:1 / / rw - ext4 /dev/vda rw\n"), None);
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let root = tempfile::tempdir().unwrap();
        for path in ["../x", "/etc", "a/../b"] {
            let error = Parent::create_in(root.path(), Path::new(path)).unwrap_err();
            assert!(matches!(error, CgroupError::Path(_)), "{path}: {error}");
        }
    }

    /// Files as a hierarchy has them, but of no kernel's.
    fn group(path: &Path, controllers: &str) {
        fs::create_dir_all(path).unwrap();
        for (file, content) in [("cgroup.controllers", controllers), ("cgroup.subtree_control", "")]
        {
            fs::write(path.join(file), content).unwrap();
        }
    }

    #[test]
    fn a_link_where_a_group_should_be_is_not_followed() {
        let (root, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        group(root.path(), "cpu");
        std::os::unix::fs::symlink(elsewhere.path(), root.path().join("vmm")).unwrap();
        let error = Parent::create_in(root.path(), Path::new("vmm")).unwrap_err();
        assert!(matches!(error, CgroupError::Io { .. }), "{error}");
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[test]
    fn limits_that_a_host_cannot_hold_are_refused_and_those_nobody_asked_for_are_left_out() {
        let root = tempfile::tempdir().unwrap();
        group(root.path(), "cpuset");
        group(&root.path().join("vmm"), "cpuset");
        let parent = Parent::create_in(root.path(), Path::new("vmm")).unwrap();
        assert!(parent.controllers().is_empty());
        let asked = "cpu=1".parse().unwrap();
        let error = parent.vm("one", &Limits::new(&asked, 64 << 20, 1, &[])).unwrap_err();
        assert!(error.to_string().contains("lacks the controllers cpu"), "{error}");
        let nothing = "".parse().unwrap();
        let vm = parent.vm("one", &Limits::new(&nothing, 64 << 20, 1, &[])).unwrap();
        assert_eq!(vm.path(), root.path().join("vmm/one"));
        for name in ["..", "a/b", "", "/"] {
            assert!(parent.vm(name, &Limits::new(&nothing, 0, 1, &[])).is_err(), "{name:?}");
        }
    }

    #[test]
    fn values_are_found_by_their_whole_name() {
        let text = "low 0\nhigh 3\nmax 4\noom 1\noom_kill 2\noom_group_kill 0\n";
        assert_eq!((value(text, "oom_kill"), value(text, "max"), value(text, "no")), (2, 4, 0));
    }
}
