//! Switches, natively: one suite that every backend passes, a model, and moves under load in network
//! namespaces.
#![allow(clippy::unwrap_used)]

mod announce;
mod conformance;
mod crashes;
mod load;
mod model;
#[cfg(feature = "ovs")]
mod ovs;
#[cfg(feature = "ovs")]
mod ovs_shared;
mod rig;
mod vxlan;
