//! Leases and pins.
