//! Socket device (virtio 1.2, section 5.10): streams between programs of the guest and of the host.
//!
//! On the host these are unix sockets, as users of Firecracker know them. A program of the host connects
//! to the device's socket, writes `CONNECT <port>\n`, and reads `OK <its port>\n` when a program of the
//! guest has accepted. A program of the guest that connects to port 52 of the host (context identifier 2)
//! reaches who listens at the socket's path with `_52` behind it, or what else a [`Dialer`] makes of
//! that.
//!
//! | Module | |
//! |---|---|
//! | [`packet`] | headers, and the descriptors that packets lie in |
//! | `credit` | flow control: plain arithmetic |
//! | `connection` | one connection: what came, what is due |
//! | `hub` | all of them: turns, ports, deadlines |
//! | `host` | sockets and what is waited for |
//!
//! What a guest can make the host keep is bounded: connections, those that are only beginning, bytes for
//! each that a program of the host does not read, answers that the guest has no buffer for, packets for
//! each turn. A connection whose other end does not read holds up itself and nobody else.

mod connection;
mod counters;
mod credit;
mod handshake;
mod host;
mod hub;
pub mod packet;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

pub use self::counters::{Counters, Counts};
pub use self::host::{Dialer, SocketPrefix};
use self::hub::Hub;
use self::packet::{Buffers, HEADER_BYTES, Header, MAX_PAYLOAD, Operation};
use super::{QueueProgress, VirtioDevice, VirtioError};

/// Context identifiers that a guest can have: the lower ones, and the last, have a meaning.
pub const GUEST_CIDS: std::ops::RangeInclusive<u32> = 3..=u32::MAX - 1;
/// Most packets, in each direction, of one turn.
pub const MAX_PACKETS: usize = 64;

/// Packets for the guest.
const RECEIVE: usize = 0;
/// Packets from it.
const TRANSMIT: usize = 1;
const EVENT: usize = 2;
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
/// The event that all connections are gone (section 5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// Bounds of a device.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Most connections, with those that are coming and going.
    pub max_connections: usize,
    /// Most programs of the host that have yet to say where they want to; the others wait to be accepted.
    pub max_handshakes: usize,
    /// Bytes from the guest that are kept for a connection whose program of the host does not read.
    pub buffer_bytes: u32,
    /// How long a program of the host may take to say where it wants to.
    pub handshake_timeout: Duration,
    /// How long a guest may take to accept.
    pub request_timeout: Duration,
    /// How long a guest may take to see that the host's program is gone.
    pub close_timeout: Duration,
    /// How long a program of the host may read nothing of what a guest that is gone has left for it.
    pub drain_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_connections: 512,
            max_handshakes: 64,
            buffer_bytes: 64 << 10,
            handshake_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(5),
            close_timeout: Duration::from_secs(8),
            drain_timeout: Duration::from_secs(60),
        }
    }
}

/// The socket device.
#[derive(Debug)]
pub struct Vsock {
    hub: Hub,
    queues: Option<Vec<Queue>>,
    buffers: Buffers,
    content: Vec<u8>,
    reset_due: bool,
}

/// What the driver is to be interrupted for.
#[derive(Debug, Default)]
struct Used([bool; 3]);

impl Vsock {
    /// Makes the device of the guest `cid`, to which programs of the host connect by `listener`, and which
    /// connects to them by `dialer`.
    ///
    /// # Errors
    /// The identifier is none of a guest, or the host is out of descriptors.
    pub fn new(cid: u32, listener: UnixListener, dialer: Box<dyn Dialer>) -> io::Result<Self> {
        Self::with_settings(cid, listener, dialer, Settings::default())
    }

    /// As [`new`](Self::new), with bounds of its own.
    ///
    /// # Errors
    /// As of [`new`](Self::new).
    pub fn with_settings(
        cid: u32,
        listener: UnixListener,
        dialer: Box<dyn Dialer>,
        settings: Settings,
    ) -> io::Result<Self> {
        if !GUEST_CIDS.contains(&cid) {
            let error = format!("{cid} is no context identifier of a guest");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        Ok(Self {
            hub: Hub::new(cid, listener, dialer, settings)?,
            queues: None,
            buffers: Buffers::default(),
            content: Vec::new(),
            reset_due: false,
        })
    }

    /// What the device counts, also when somebody else has it.
    pub fn counters(&self) -> Arc<Counters> {
        self.hub.counters().clone()
    }

    /// Ends all connections and tells the guest so: it was restored, or has moved.
    pub fn reset_transport(&mut self) {
        self.hub.clear();
        self.reset_due = true;
        self.hub.poller().wake();
    }

    /// Moves packets both ways, up to the bounds of a turn.
    fn turn(&mut self, memory: &GuestMemoryMmap) -> Result<QueueProgress, VirtioError> {
        let progress = self.try_turn(memory);
        if progress.is_err() {
            // The driver is to reset it, and until then nobody is to wait for what cannot come.
            self.reset();
        }
        progress
    }

    fn try_turn(&mut self, memory: &GuestMemoryMmap) -> Result<QueueProgress, VirtioError> {
        self.hub.accept();
        let mut used = Used::default();
        if self.reset_due && self.give_event(memory)? {
            self.reset_due = false;
            used.0[EVENT] = true;
        }
        for packets in 0.. {
            // What is left is for another turn.
            if packets == MAX_PACKETS {
                self.hub.poller().wake();
                break;
            }
            let taken = self.take_packet(memory)?;
            let given = self.give_packet(memory)?;
            used.0[TRANSMIT] |= taken;
            used.0[RECEIVE] |= given;
            if !taken && !given {
                break;
            }
        }
        let mut interrupt = false;
        for (index, used) in used.0.into_iter().enumerate() {
            if used {
                let queue = queue(&mut self.queues, index)?;
                interrupt |= queue.needs_notification(memory).map_err(broken(index))?;
            }
        }
        Ok(QueueProgress { interrupt, ..QueueProgress::default() })
    }

    /// Takes one packet from the guest, if there is one and there is room for an answer.
    fn take_packet(&mut self, memory: &GuestMemoryMmap) -> Result<bool, VirtioError> {
        if !self.hub.takes_packets() {
            return Ok(false);
        }
        let queue = queue(&mut self.queues, TRANSMIT)?;
        let Some(chain) = next_chain(queue, TRANSMIT, memory)? else { return Ok(false) };
        let head = chain.head_index();
        self.buffers.collect(chain, memory, false);
        let mut header = [0; HEADER_BYTES];
        if self.buffers.read(memory, 0, &mut header) {
            let header = Header::decode(&header);
            let is_data = header.operation == Operation::Data as u16;
            let length = if is_data { header.length as usize } else { 0 };
            let content = self.content.get_mut(..length);
            let content = content.filter(|_| self.buffers.length() >= HEADER_BYTES + length);
            let content = content.and_then(|content| {
                self.buffers.read(memory, HEADER_BYTES, content).then_some(&*content)
            });
            self.hub.take(&header, content);
        } else {
            Counters::add(&self.hub.counters().malformed, 1);
        }
        queue.add_used(memory, head, 0).map_err(broken(TRANSMIT))?;
        Ok(true)
    }

    /// Gives the guest one packet, if there is one and there is a buffer for it.
    fn give_packet(&mut self, memory: &GuestMemoryMmap) -> Result<bool, VirtioError> {
        if !self.hub.has_packets() {
            return Ok(false);
        }
        let queue = queue(&mut self.queues, RECEIVE)?;
        let Some(chain) = next_chain(queue, RECEIVE, memory)? else { return Ok(false) };
        let head = chain.head_index();
        self.buffers.collect(chain, memory, true);
        let room = self.buffers.length().saturating_sub(HEADER_BYTES).min(MAX_PAYLOAD);
        if room == 0 {
            Counters::add(&self.hub.counters().malformed, 1);
            queue.add_used(memory, head, 0).map_err(broken(RECEIVE))?;
            return Ok(true);
        }
        let Some(header) = self.hub.next_packet(&mut self.content[..room]) else {
            queue.go_to_previous_position();
            return Ok(false);
        };
        let content = &self.content[..header.length as usize];
        // That this is memory, and has room, was checked.
        let written = self.buffers.write(memory, 0, &header.encode())
            && self.buffers.write(memory, HEADER_BYTES, content);
        let length = if written { HEADER_BYTES + content.len() } else { 0 };
        let length = u32::try_from(length).expect("bounded by MAX_PAYLOAD");
        queue.add_used(memory, head, length).map_err(broken(RECEIVE))?;
        Ok(true)
    }

    /// Tells the guest that all connections are gone, if it has a buffer for that.
    fn give_event(&mut self, memory: &GuestMemoryMmap) -> Result<bool, VirtioError> {
        let queue = queue(&mut self.queues, EVENT)?;
        let Some(chain) = next_chain(queue, EVENT, memory)? else { return Ok(false) };
        let head = chain.head_index();
        self.buffers.collect(chain, memory, true);
        let written = self.buffers.write(memory, 0, &TRANSPORT_RESET);
        let length = if written { TRANSPORT_RESET.len() } else { 0 };
        let length = u32::try_from(length).expect("four bytes");
        queue.add_used(memory, head, length).map_err(broken(EVENT))?;
        Ok(true)
    }
}

/// The queue of this number, of a device that runs.
fn queue(queues: &mut Option<Vec<Queue>>, index: usize) -> Result<&mut Queue, VirtioError> {
    let queue = queues.as_mut().and_then(|queues| queues.get_mut(index));
    queue.ok_or(VirtioError::QueueNotReady { index })
}

fn broken(index: usize) -> impl Fn(virtio_queue::Error) -> VirtioError {
    move |error| VirtioError::BrokenQueue { index, error }
}

/// The next chain that the driver has made available.
fn next_chain<'a>(
    queue: &mut Queue,
    index: usize,
    memory: &'a GuestMemoryMmap,
) -> Result<Option<DescriptorChain<&'a GuestMemoryMmap>>, VirtioError> {
    let Some(chain) = queue.iter(memory).map_err(broken(index))?.next() else { return Ok(None) };
    let (head, size) = (chain.head_index(), queue.size());
    if head < size {
        Ok(Some(chain))
    } else {
        Err(VirtioError::HeadOutOfRange { index, head, size })
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let cid = self.hub.cid().to_le_bytes();
        let field = usize::try_from(offset).ok().and_then(|offset| cid.get(offset..));
        for (byte, field) in data.iter_mut().zip(field.unwrap_or_default()) {
            *byte = *field;
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, _features: u64, queues: Vec<Queue>) -> Result<(), VirtioError> {
        if let Some(index) =
            (0..QUEUE_SIZES.len()).find(|&index| !queues.get(index).is_some_and(QueueT::ready))
        {
            return Err(VirtioError::QueueNotReady { index });
        }
        self.queues = Some(queues);
        self.content = vec![0; MAX_PAYLOAD];
        // Who has connected before is to be accepted now.
        self.hub.poller().wake();
        Ok(())
    }

    fn process_queue(
        &mut self,
        index: usize,
        memory: &GuestMemoryMmap,
    ) -> Result<QueueProgress, VirtioError> {
        if index >= QUEUE_SIZES.len() || self.queues.is_none() {
            return Err(VirtioError::QueueNotReady { index });
        }
        self.turn(memory)
    }

    fn reset(&mut self) {
        self.hub.clear();
        self.queues = None;
        self.content = Vec::new();
        self.reset_due = false;
    }

    fn host_event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.hub.poller().event().as_fd())
    }

    fn process_host_event(
        &mut self,
        memory: &GuestMemoryMmap,
    ) -> Result<QueueProgress, VirtioError> {
        // Taken up in any case, or it would be told for ever.
        self.hub.take_occurrences().map_err(VirtioError::Host)?;
        if self.queues.is_none() {
            return Ok(QueueProgress::default());
        }
        self.turn(memory)
    }
}
