//! Virtual endpoints: what a VM's process and the agent of its host say to each other of them.
//!
//! A guest asks by its control device. Its process passes that on as it is and knows nothing of it: rights,
//! directory and moves are the agent's ([`crate::node::endpoints`]). Back come answers, events for the guest, and
//! what the network device lets through of identifiers.

pub mod link;
