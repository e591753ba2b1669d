//! The host: which KVM it has, its huge pages and its limits, and what this process has of
//! its memory.

pub mod footprint;
pub mod hugepages;
pub mod kvm;
pub mod limits;
pub mod memory;
pub mod own;
pub mod pagemap;
