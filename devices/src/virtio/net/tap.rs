//! What the device needs of the host's end of its link.

use std::io;
use std::os::fd::AsFd;

/// What a driver lets the host leave undone in frames that it gets (`TUN_F_*` of Linux).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums of TCP and UDP.
    pub checksum: bool,
    /// Cutting TCP over IPv4 into segments.
    pub tso4: bool,
    /// Cutting TCP over IPv6 into segments.
    pub tso6: bool,
    /// That too where congestion is notified explicitly.
    pub ecn: bool,
}

/// A network interface of the host, as a TAP device is one: each read and each write is one frame
/// behind a header of 12 bytes (`virtio_net_hdr_v1`). It does not block.
pub trait Tap: AsFd + Send + std::fmt::Debug {
    /// Takes a frame that came for the guest; its length with the header.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; all else means that the interface is gone.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Sends a frame of the guest's.
    ///
    /// # Errors
    /// The frame is lost.
    fn transmit(&mut self, frame: &[u8]) -> io::Result<()>;

    /// Says what may be left undone in frames for the guest.
    ///
    /// # Errors
    /// Those of the host; nothing may be left undone then.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;
}
