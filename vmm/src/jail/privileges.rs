//! What a process gives up: capabilities, the way back to them, resources, being looked into.

use std::io;

use rustix::process::{
    DumpableBehavior, Gid, Resource, Rlimit, Uid, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// No way back to capabilities by being root, by becoming root, or from the ambient set; locked.
const SECURE_BITS: CapabilitiesSecureBits = CapabilitiesSecureBits::NO_ROOT
    .union(CapabilitiesSecureBits::NO_ROOT_LOCKED)
    .union(CapabilitiesSecureBits::NO_SETUID_FIXUP)
    .union(CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED)
    .union(CapabilitiesSecureBits::KEEP_CAPS_LOCKED)
    .union(CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE)
    .union(CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED);

/// Limits of resources that this process cannot raise again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourceLimits {
    /// Open files.
    pub files: u64,
    /// Bytes that a file which it writes may have.
    pub file_bytes: u64,
}

/// Sets the limits, for good. A core file, which would hold the guest's memory, is never written.
///
/// # Errors
/// The kernel's refusal.
pub fn limit(limits: ResourceLimits) -> io::Result<()> {
    let exactly = |value| Rlimit { current: Some(value), maximum: Some(value) };
    let lower = |resource, value: u64| {
        // One that is lower already, as this process found it, stays.
        let most = rustix::process::getrlimit(resource).maximum.map_or(value, |max| max.min(value));
        setrlimit(resource, exactly(most))
    };
    lower(Resource::Core, 0)?;
    lower(Resource::Nofile, limits.files)?;
    lower(Resource::Fsize, limits.file_bytes)?;
    Ok(())
}

/// Gives up all capabilities, and becomes `user` of group `group` if that is somebody else. There is
/// no way back. Of this thread: the others of a process have theirs.
///
/// # Errors
/// The kernel's refusal.
pub fn drop_all(user: Option<(u32, u32)>) -> io::Result<()> {
    // Each takes capabilities away that those behind it do not need.
    for number in 0..64 {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The first one that this kernel does not have.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match clear_ambient_capability_set() {
        // A kernel before 4.3 has none.
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    set_capabilities_secure_bits(SECURE_BITS)?;
    if let Some((user, group)) = user {
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)?;
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    set_no_new_privs(true)?;
    // Nobody of the same user, of another VM say, looks into this process' memory.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
