//! Switches that forward frames by virtual identifier, and hold them while their receiver moves.
//!
//! A [`Switch`] knows where each [`Vid`](endpoint::vid::Vid) is: its *flows*. [`Controller`] is the one
//! implementation; what carries the frames is a [`Plane`] below it:
//!
//! - [`user`]: a switch in this process, over TAPs, packet sockets or channels in memory. It holds frames
//!   exactly, filters what each port receives and sends, and injects faults for the tests of others;
//! - [`bridge`]: a Linux bridge by netlink, between hosts with VXLAN. The queue of the destination's TAP
//!   is what holds frames;
//! - `ovs` (feature `ovs`): Open vSwitch by `OpenFlow` 1.3.
//!
//! A move is: [`Switch::hold`], which re-points first; [`Switch::mark`] through the old home, which says when
//! everything before it has been delivered there; then stop, state and resume; [`Switch::release`].
//!
//! (Kulkarni et al., "Virtualized, elastic system services", sections III and IV.)
#![deny(unsafe_code)]

pub mod bridge;
mod controller;
#[cfg(feature = "ovs")]
pub mod ovs;
mod plane;
mod probe;
mod switch;
// The one module with system calls that no library has.
#[allow(unsafe_code)]
pub mod sys;
pub mod user;

pub use controller::Controller;
pub use endpoint::frames::{header as frame, mark};
pub use plane::{ApplyError, Held, Plane, PlaneError, Seen, Step, Waiter};
pub use switch::{
    Change, Flow, Hold, Limit, Mark, Port, Statistics, Switch, SwitchError, SyncError,
};
