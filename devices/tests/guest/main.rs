//! Devices as guests see them: one that keeps to the specification, and one that keeps to no
//! rule.

#[cfg(test)]
mod driver;
#[cfg(test)]
mod malicious;
#[cfg(test)]
mod net_driver;
#[cfg(test)]
mod virtio_blk;
#[cfg(test)]
mod virtio_net;
#[cfg(test)]
mod virtio_net_identifiers;
#[cfg(test)]
mod virtio_rng;
#[cfg(test)]
mod virtio_vsock;
#[cfg(test)]
mod vsock_driver;
#[cfg(test)]
mod vsock_hostile;
