//! A process gives up what it does not need.

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::HelperError;

/// This thread, and all that it starts, keep `CAP_NET_ADMIN` and no way to get more.
///
/// # Errors
/// It has not got it, or the kernel refuses a step.
pub fn confine() -> Result<(), HelperError> {
    let step = |what| {
        move |source: rustix::io::Errno| HelperError::Confine { what, source: source.into() }
    };
    let kept = CapabilitySet::NET_ADMIN;
    let have = rustix::thread::capabilities(None).map_err(step("see its capabilities"))?;
    if !have.permitted.contains(kept) {
        let source = io::Error::from_raw_os_error(libc::EPERM);
        return Err(HelperError::Confine { what: "keep CAP_NET_ADMIN", source });
    }
    rustix::thread::set_no_new_privs(true).map_err(step("renounce privileges of programs"))?;
    rustix::thread::clear_ambient_capability_set().map_err(step("clear its ambient set"))?;
    if have.effective.contains(CapabilitySet::SETPCAP) {
        for one in CapabilitySet::all().difference(kept).iter() {
            // What this kernel does not know yet needs no bound.
            if rustix::thread::capability_is_in_bounding_set(one) == Ok(true) {
                rustix::thread::remove_capability_from_bounding_set(one)
                    .map_err(step("bound its capabilities"))?;
            }
        }
    }
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(step("drop its capabilities"))
}
