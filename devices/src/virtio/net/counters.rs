//! What the device counts.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

macro_rules! counters {
    ($($(#[doc = $what:literal])+ $name:ident,)*) => {
        /// What the device has counted, to be read from any thread.
        #[derive(Debug, Default)]
        pub struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        /// The counters at one time.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct Counts {
            $($(#[doc = $what])+ pub $name: u64,)*
        }

        impl Counters {
            /// The counters now.
            pub fn read(&self) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }

        impl Counts {
            /// Name and value of each, in their order.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Frames that the guest got.
    received_frames,
    /// Their bytes.
    received_bytes,
    /// Those of them that were larger than a packet, and left whole.
    received_large,
    /// Frames that the guest's port filter kept from it.
    received_filtered,
    /// Frames that were not the guest's, not as negotiated, or did not fit its buffers.
    received_dropped,
    /// Frames that the guest sent.
    sent_frames,
    /// Their bytes.
    sent_bytes,
    /// Those of them that were larger than a packet, and left whole.
    sent_large,
    /// Frames with a sender that the guest is not.
    sent_spoofed,
    /// Frames of a kind, or of a family of IP, in which the guest has no address, though it has one.
    sent_other,
    /// Frames to ports that the guest may not reach.
    sent_filtered,
    /// Frames that were none, not as negotiated, or that the host did not take.
    sent_dropped,
    /// Times that receiving waited for its rate limit.
    received_throttled,
    /// Times that sending waited for its rate limit.
    sent_throttled,
    /// Times that receiving waited for buffers of the guest's.
    starved,
    /// Requests for an address that were answered here.
    dhcp_answers,
    /// End-marks of the host's switch that were answered.
    marks,
}

pub(super) fn add(counter: &AtomicU64, amount: u64) {
    // One thread writes; relaxed adds are cheap even so.
    counter.fetch_add(amount, Ordering::Relaxed);
}
