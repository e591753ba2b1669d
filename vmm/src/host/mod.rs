//! The host: which KVM it has, its huge pages and its limits.

pub mod footprint;
pub mod hugepages;
pub mod kvm;
pub mod limits;
