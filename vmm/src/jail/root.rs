//! An empty root: a file system in memory with nothing in it, read-only, in the place of the host's.
//!
//! Everything is done by descriptors of what was made here, never by a path that somebody else could
//! have put a link at: the new file system is mounted nowhere while it is made, and folders that are
//! to be in it come as descriptors of the folders themselves.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, mkdirat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{fchdir, pivot_root};

/// A folder of the host that stays visible, at the root, under a name of its own.
#[derive(Debug)]
pub struct Folder {
    /// The name; a single component.
    pub name: String,
    /// The folder, open.
    pub folder: OwnedFd,
}

/// What could not be done on the way to the new root.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}")]
pub struct RootError {
    /// What was tried.
    pub what: &'static str,
    /// The kernel's reason.
    pub source: io::Error,
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> RootError {
    move |source| RootError { what, source: source.into() }
}

const ATTRIBUTES: [(MountAttrFlags, MountFlags); 3] = [
    (MountAttrFlags::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
    (MountAttrFlags::MOUNT_ATTR_NODEV, MountFlags::NODEV),
    (MountAttrFlags::MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC),
];

/// Makes an empty folder with `folders` in it this process' root, and forgets the old one. In a mount
/// namespace of this process' own only.
///
/// # Errors
/// The kernel's refusal; what was mounted by then goes with the namespace.
pub fn enter(folders: Vec<Folder>) -> Result<(), RootError> {
    // Or it would be the host's root, too.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(failed("make mounts private"))?;
    let root = make().map_err(failed("make an empty file system"))?;
    move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(failed("mount an empty file system"))?;
    for Folder { name, folder } in folders {
        show(&root, &name, &folder).map_err(failed("show a folder in the new root"))?;
    }
    fchdir(&root).map_err(failed("enter the new root"))?;
    // The old root then is on top of the new one, from where it is taken away with all that is in it
    // (pivot_root(2), "pivot_root(".", ".")").
    pivot_root(".", ".").map_err(failed("change the root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(failed("take away the old root"))?;
    rustix::process::chdir("/").map_err(failed("enter the new root"))?;
    let flags = ATTRIBUTES.iter().fold(MountFlags::empty(), |all, (_, flag)| all | *flag);
    mount_remount("/", flags | MountFlags::BIND | MountFlags::RDONLY, "")
        .map_err(failed("make the new root read-only"))
}

fn make() -> io::Result<OwnedFd> {
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("size", "4k"), ("nr_inodes", "16"), ("mode", "0555")] {
        fsconfig_set_string(&tmpfs, key, value)?;
    }
    fsconfig_create(&tmpfs)?;
    let attributes = ATTRIBUTES.iter().fold(MountAttrFlags::empty(), |all, (flag, _)| all | *flag);
    Ok(fsmount(&tmpfs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn show(root: &OwnedFd, name: &str, folder: &OwnedFd) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(folder, "", flags)?;
    mkdirat(root, name, Mode::from_raw_mode(0o555))?;
    move_mount(&tree, "", root, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}
