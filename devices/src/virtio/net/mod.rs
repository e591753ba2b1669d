//! Network device (virtio 1.2, section 5.1): one pair of queues before a TAP interface of the host.
//!
//! - A frame is copied once, out of guest memory or into it, and everything is decided by that copy:
//!   a guest that rewrites a frame after the look at it changes nothing.
//! - Frames stay whole (TCP segmentation, checksums) where driver and host both can.
//! - What a VM sends under another's name, and what its port filters do not let through, is counted and
//!   dropped; nothing is logged.
//! - For a VM's virtual identifiers frames come, wait and go as [`identifiers`] says; the marks by which the
//!   host's switch asks whether all is delivered are answered here.
//! - One turn moves a bounded number of frames and bytes. While the guest has no buffers to receive into,
//!   and while a rate limit is used up, nothing is waited for that could not be served: neither does
//!   the event loop spin, nor is anything forgotten (CVE-2020-16843 was the latter).

pub mod counters;
pub mod dhcp;
mod filter;
mod header;
pub mod identifiers;
pub mod limit;
pub mod mac;
mod packet;
pub mod ports;
mod receive;
pub mod tap;
#[cfg(test)]
mod testing;
mod transmit;
mod voice;
mod waiting;

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, warn};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use self::counters::Counters;
use self::dhcp::{Answerer, Lease};
use self::filter::Identity;
pub use self::header::HEADER_BYTES;
use self::header::has;
use self::identifiers::IdentifierTable;
use self::limit::{Limit, Limiter};
use self::mac::MacAddress;
use self::ports::{PortFilter, PortRules};
use self::tap::{Offloads, Tap};
use self::waiting::Waiting;
use super::{QueueProgress, VirtioDevice, VirtioError};

/// The smallest MTU a network can have (that of IPv4).
pub const MIN_MTU: u16 = 68;
/// The largest: an IP packet with room for the headers around it.
pub const MAX_MTU: u16 = 65521;
/// Most frames that one turn moves each way.
pub const MAX_FRAMES: usize = 64;
/// Bytes after which a turn ends.
pub const MAX_BYTES: usize = 1 << 20;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_SIZE: u16 = 256;
/// A header, an Ethernet header with a tag, and the largest IP packet.
const FRAME_BYTES: usize = HEADER_BYTES + 18 + 65535;
/// Most answers that wait to be received.
const MOST_ANSWERS: usize = 4;

const FEATURES: [u32; 14] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
];

/// What a VM is on its network, and may do there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// Its Ethernet address, the only one that it may send from.
    pub mac: MacAddress,
    /// The largest packet of its network, in bytes.
    pub mtu: u16,
    /// Its IPv4 address; if there is one, it may send from no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Ipv4Addr>,
    /// The same of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
    /// Ports of the VM that may be reached; all unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_in: Option<PortRules>,
    /// Ports that the VM may reach; all unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_out: Option<PortRules>,
    /// How much it may receive.
    #[serde(default)]
    pub receive: Limit,
    /// How much it may send.
    #[serde(default)]
    pub send: Limit,
    /// What it is told when it asks for an address; if there is nothing, others are asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
}

/// The network device.
#[derive(Debug)]
pub struct Net {
    tap: Box<dyn Tap>,
    mac: MacAddress,
    mtu: u16,
    /// Whether the interface is still there.
    linked: bool,
    /// Whether the driver is still to be told that it is not.
    unlinked: bool,
    identity: Identity,
    ports: PortFilter,
    answerer: Option<Answerer>,
    identifiers: IdentifierTable,
    counters: Arc<Counters>,
    waiting: Waiting,
    features: u64,
    /// What the host is still to be told of the driver.
    offloads: Option<Offloads>,
    receiver: Receiver,
    transmitter: Transmitter,
}

/// The way to the guest.
#[derive(Debug)]
struct Receiver {
    queue: Option<Queue>,
    limiter: Limiter,
    /// A frame, and how long it is if it waits for buffers.
    buffer: Vec<u8>,
    pending: usize,
    /// A frame that was taken from the interface, and is looked at again when the rate limit lets it go.
    aside: Option<Box<[u8]>>,
    /// Answers that are received before frames are.
    answers: VecDeque<Vec<u8>>,
    /// Where the guest wants the frame that is delivered; empty between frames.
    places: receive::Places,
}

/// The way from the guest.
#[derive(Debug)]
struct Transmitter {
    queue: Option<Queue>,
    limiter: Limiter,
    buffer: Vec<u8>,
    /// Frames may be left that no notification will tell of.
    left: bool,
}

impl Net {
    /// A device before `tap`.
    ///
    /// # Errors
    /// The host gives no descriptor to wait with.
    pub fn new(tap: Box<dyn Tap>, config: NetConfig) -> io::Result<Self> {
        let now = Instant::now();
        let identifiers = IdentifierTable::new()?;
        let NetConfig { mac, mtu, ipv4, ipv6, allow_in, allow_out, receive, send, lease } = config;
        Ok(Self {
            tap,
            mac,
            mtu,
            linked: true,
            unlinked: false,
            identity: Identity { mac, ipv4, ipv6 },
            ports: PortFilter::new(allow_in, allow_out),
            answerer: lease.map(|lease| Answerer::new(mac, mtu, lease)),
            counters: Arc::default(),
            waiting: Waiting::new(identifiers.event())?,
            identifiers,
            features: 0,
            offloads: None,
            receiver: Receiver {
                queue: None,
                limiter: Limiter::new(receive, now),
                buffer: vec![0; FRAME_BYTES],
                pending: 0,
                aside: None,
                answers: VecDeque::new(),
                places: receive::Places::default(),
            },
            transmitter: Transmitter {
                queue: None,
                limiter: Limiter::new(send, now),
                buffer: vec![0; FRAME_BYTES],
                left: false,
            },
        })
    }

    /// What the device counts from now on.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// The identifiers that the VM has besides its own address; none yet. The device's own descriptor to
    /// wait with tells of what is set: whoever has this handle has to wake nobody.
    pub fn identifiers(&self) -> IdentifierTable {
        self.identifiers.clone()
    }

    fn config_space(&self) -> [u8; 12] {
        let mut space = [0; 12];
        space[..6].copy_from_slice(&self.mac.octets());
        if self.linked {
            let up = u16::try_from(VIRTIO_NET_S_LINK_UP).unwrap_or(1);
            space[6..8].copy_from_slice(&up.to_le_bytes());
        }
        space[8] = 1; // One pair of queues
        space[10..].copy_from_slice(&self.mtu.to_le_bytes());
        space
    }

    /// Does for a new driver what is not to be done on its processor's thread.
    fn settle(&mut self) {
        let Some(offloads) = self.offloads.take() else { return };
        if let Err(error) = self.tap.set_offloads(offloads) {
            debug!("Virtio net: {offloads:?}: {error}");
        }
    }

    /// Waits for frames exactly while they can be served.
    fn watch(&mut self, watch: bool) -> Result<(), VirtioError> {
        let watch = watch && self.linked;
        self.waiting.watch(self.tap.as_fd(), watch).map_err(VirtioError::Host)
    }

    fn wake_after(&mut self, delay: Duration) -> Result<(), VirtioError> {
        self.waiting.wake_after(delay).map_err(VirtioError::Host)
    }

    fn unlink(&mut self, error: &io::Error) {
        // Once in the device's life.
        warn!("The network interface {} is gone: {error}", self.mac);
        (self.linked, self.unlinked) = (false, true);
    }

    /// Serves one way or both; a device that cannot go on stops, and waits for nothing.
    fn serve(
        &mut self,
        memory: &GuestMemoryMmap,
        receive: bool,
        transmit: bool,
    ) -> Result<QueueProgress, VirtioError> {
        self.settle();
        let served = self.try_serve(memory, receive, transmit);
        if served.is_err() {
            self.stop();
            self.watch(false)?;
        }
        served
    }

    fn try_serve(
        &mut self,
        memory: &GuestMemoryMmap,
        mut receive: bool,
        transmit: bool,
    ) -> Result<QueueProgress, VirtioError> {
        let mut progress = QueueProgress::default();
        if transmit {
            progress = self.serve_transmit(memory)?;
            receive |= !self.receiver.answers.is_empty();
        }
        if receive {
            progress.interrupt |= self.serve_receive(memory)?;
        }
        // The driver sees in the configuration space that the carrier is lost.
        progress.config = std::mem::take(&mut self.unlinked);
        Ok(progress)
    }

    fn stop(&mut self) {
        self.receiver.queue = None;
        self.receiver.pending = 0;
        self.receiver.answers.clear();
        self.transmitter.queue = None;
        self.transmitter.left = false;
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        FEATURES.iter().fold(0, |all, feature| all | 1 << feature)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 2]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.config_space();
        let Some(rest) = usize::try_from(offset).ok().and_then(|at| space.get(at..)) else {
            return;
        };
        let length = rest.len().min(data.len());
        data[..length].copy_from_slice(&rest[..length]);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, features: u64, queues: Vec<Queue>) -> Result<(), VirtioError> {
        let mut queues = queues.into_iter().filter(QueueT::ready);
        let (Some(receive), Some(transmit)) = (queues.next(), queues.next()) else {
            return Err(VirtioError::QueueNotReady { index: TRANSMIT });
        };
        self.receiver.queue = Some(receive);
        self.transmitter.queue = Some(transmit);
        self.features = features;
        self.offloads = Some(Offloads {
            checksum: has(features, VIRTIO_NET_F_GUEST_CSUM),
            tso4: has(features, VIRTIO_NET_F_GUEST_TSO4),
            tso6: has(features, VIRTIO_NET_F_GUEST_TSO6),
            ecn: has(features, VIRTIO_NET_F_GUEST_ECN),
        });
        // The rest is done by the thread that waits for events.
        self.transmitter.left = true;
        self.wake_after(Duration::ZERO)
    }

    fn process_queue(
        &mut self,
        index: usize,
        memory: &GuestMemoryMmap,
    ) -> Result<QueueProgress, VirtioError> {
        if index > TRANSMIT || self.receiver.queue.is_none() {
            return Err(VirtioError::QueueNotReady { index });
        }
        self.serve(memory, index == RECEIVE, index == TRANSMIT)
    }

    fn reset(&mut self) {
        self.stop();
        self.features = 0;
        self.offloads = Some(Offloads::default());
    }

    fn host_event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.waiting.event())
    }

    fn process_host_event(
        &mut self,
        memory: &GuestMemoryMmap,
    ) -> Result<QueueProgress, VirtioError> {
        let due = self.waiting.take_due();
        self.identifiers.heard();
        let progress = self.serve(memory, true, due || self.transmitter.left)?;
        if progress.more {
            // No notification will tell of the rest.
            self.transmitter.left = true;
            self.wake_after(Duration::ZERO)?;
        }
        Ok(QueueProgress { more: false, ..progress })
    }
}
