//! Frames for the guest.

use std::io;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use endpoint::frames::mark;

use super::counters::add;
use super::header::{HEADER_BYTES, Header, Way, has};
use super::identifiers::Fate;
use super::packet::{ETHERNET_BYTES, Frame};
use super::ports;
use super::{MAX_BYTES, MAX_FRAMES, Net, QUEUE_SIZE, RECEIVE, Receiver, VirtioError};

/// Most pieces of guest memory that one frame goes into. Drivers use some 50 at most.
const MOST_PIECES: usize = 1024;

/// Where a frame goes: pieces of guest memory, and the chains that they belong to.
#[derive(Debug, Default)]
pub(super) struct Places {
    pieces: Vec<(GuestAddress, usize)>,
    /// Head of each chain, and the bytes that it gets.
    chains: Vec<(u16, u32)>,
}

/// What there is to deliver.
enum Next {
    /// A frame of this length, in the buffer.
    Frame(usize),
    /// One that is not for the guest.
    Dropped,
    /// Nothing before the interface has something.
    Nothing,
    /// Nothing before some time has gone.
    Later,
}

/// How the guest's buffers were.
enum Room {
    Enough,
    /// There must be more.
    Wanting,
    /// These are of no use.
    Useless,
}

impl Net {
    /// Delivers frames; whether the driver is to be told.
    pub(super) fn serve_receive(&mut self, memory: &GuestMemoryMmap) -> Result<bool, VirtioError> {
        let Some(mut queue) = self.receiver.queue.take() else {
            self.watch(false)?;
            return Ok(false);
        };
        let broken = |error| VirtioError::BrokenQueue { index: RECEIVE, error };
        let (mut used, mut watch, mut bytes) = (false, true, 0);
        let mut turns = 0;
        loop {
            if turns == MAX_FRAMES || bytes > MAX_BYTES {
                // Frames of the interface are told of again; what waits here is not.
                if self.receiver.waits() || self.identifiers.has_released() {
                    self.wake_after(Duration::ZERO)?;
                }
                break;
            }
            turns += 1;
            if self.receiver.pending == 0 {
                match self.next_frame()? {
                    Next::Frame(length) => self.receiver.pending = length,
                    Next::Dropped => continue,
                    Next::Nothing => break,
                    Next::Later => {
                        watch = false;
                        break;
                    }
                }
            }
            let length = self.receiver.pending;
            match self.place(&mut queue, memory, length)? {
                Room::Enough => {
                    self.deliver(&mut queue, memory, length)?;
                    used = true;
                    bytes += length;
                    self.receiver.pending = 0;
                }
                Room::Useless => {
                    // What the driver offered is given back, so that neither side waits for ever.
                    for &(head, _) in &self.receiver.places.chains {
                        queue.add_used(memory, head, 0).map_err(broken)?;
                        used = true;
                    }
                    add(&self.counters.received_dropped, 1);
                    self.receiver.pending = 0;
                }
                Room::Wanting => {
                    add(&self.counters.starved, 1);
                    watch = false;
                    break;
                }
            }
        }
        let interrupt = used && queue.needs_notification(memory).map_err(broken)?;
        if watch {
            queue.disable_notification(memory).map_err(broken)?;
        }
        self.receiver.queue = Some(queue);
        self.watch(watch)?;
        Ok(interrupt)
    }

    /// Puts the next frame for the guest into the buffer.
    fn next_frame(&mut self) -> Result<Next, VirtioError> {
        let receiver = &mut self.receiver;
        if let Some(answer) = receiver.answers.pop_front() {
            let length = HEADER_BYTES + answer.len();
            receiver.buffer[..HEADER_BYTES].fill(0);
            receiver.buffer[HEADER_BYTES..length].copy_from_slice(&answer);
            return Ok(Next::Frame(length));
        }
        if self.identifiers.has_released() {
            if self.is_throttled()? {
                return Ok(Next::Later);
            }
            // Nothing, if they were taken away just now.
            return Ok(match self.identifiers.take_released(&mut self.receiver.buffer) {
                Some(length) => self.admit(length, Fate::Deliver),
                None => Next::Dropped,
            });
        }
        let length = match self.take_frame()? {
            Next::Frame(length) => length,
            other => return Ok(other),
        };
        if self.answer_mark(length) {
            return Ok(Next::Dropped);
        }
        let frame = &self.receiver.buffer[..length];
        // A group's, or the VM's own; a bridge may flood others' to all.
        let fate = match frame.get(HEADER_BYTES..).and_then(Frame::parse) {
            Some(Frame { destination, .. })
                if destination[0] & 1 == 0 && destination != self.mac.octets() =>
            {
                self.identifiers.decide(destination, frame)
            }
            _ => Fate::Deliver,
        };
        match fate {
            Fate::Taken => return Ok(Next::Dropped),
            Fate::Behind => {
                self.receiver.aside = Some(frame.into());
                return Ok(Next::Dropped);
            }
            Fate::Deliver | Fate::Unknown | Fate::Another => {}
        }
        // Only now: what is not for the guest, as a mark, does not wait for its rate limit.
        if self.is_throttled()? {
            self.receiver.aside = Some(self.receiver.buffer[..length].into());
            return Ok(Next::Later);
        }
        Ok(self.admit(length, fate))
    }

    /// Puts the next frame that the interface had into the buffer.
    fn take_frame(&mut self) -> Result<Next, VirtioError> {
        if self.receiver.aside.is_some() {
            if self.is_throttled()? {
                return Ok(Next::Later);
            }
            let receiver = &mut self.receiver;
            let length = receiver.aside.take().map_or(0, |frame| {
                receiver.buffer[..frame.len()].copy_from_slice(&frame);
                frame.len()
            });
            return Ok(Next::Frame(length));
        }
        if !self.linked {
            return Ok(Next::Nothing);
        }
        Ok(match self.tap.receive(&mut self.receiver.buffer) {
            Ok(length) => Next::Frame(length),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Next::Nothing,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Next::Dropped,
            Err(error) => {
                self.unlink(&error);
                Next::Nothing
            }
        })
    }

    /// Whether the rate limit is used up; the device is woken then when it is not.
    fn is_throttled(&mut self) -> Result<bool, VirtioError> {
        let Some(delay) = self.receiver.limiter.wait(Instant::now) else { return Ok(false) };
        add(&self.counters.received_throttled, 1);
        self.wake_after(delay)?;
        Ok(true)
    }

    /// Answers what is in the buffer, if it is an end-mark: all that came before has been delivered.
    fn answer_mark(&mut self, length: usize) -> bool {
        let frame = self.receiver.buffer[..length].get(HEADER_BYTES..);
        let Some(answer) = frame.and_then(mark::answer) else { return false };
        // One that the host does not take is lost, as any frame; whoever asked asks again.
        if self.tap.transmit(&[&[0; HEADER_BYTES], &answer[..]].concat()).is_ok() {
            add(&self.counters.marks, 1);
        }
        true
    }

    /// Whether the guest gets what is in the buffer, whose `fate` is known.
    fn admit(&mut self, length: usize, fate: Fate) -> Next {
        let receiver = &mut self.receiver;
        let frame = &mut receiver.buffer[..length];
        let Some(mut header) = Header::of(frame) else {
            add(&self.counters.received_dropped, 1);
            return Next::Dropped;
        };
        let agreed = header.settle(self.features, Way::In);
        let packets = packets(length, header.segment_size());
        receiver.limiter.pay(length - HEADER_BYTES, packets);
        if fate == Fate::Unknown {
            self.identifiers.count_unknown();
            return Next::Dropped;
        }
        let agreed = agreed && fate == Fate::Deliver;
        let Some(frame) = Frame::parse(&frame[HEADER_BYTES..]).filter(|_| agreed) else {
            add(&self.counters.received_dropped, 1);
            return Next::Dropped;
        };
        if !self.ports.passes(ports::Way::In, &frame) {
            add(&self.counters.received_filtered, 1);
            return Next::Dropped;
        }
        Next::Frame(length)
    }

    /// Finds places for a frame of `length`. If there are not enough, nothing was taken, and the driver
    /// is to say when there are more.
    fn place(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
        length: usize,
    ) -> Result<Room, VirtioError> {
        let index = RECEIVE;
        let broken = |error| VirtioError::BrokenQueue { index, error };
        let merges = has(self.features, VIRTIO_NET_F_MRG_RXBUF);
        let Places { pieces, chains } = &mut self.receiver.places;
        pieces.clear();
        chains.clear();
        let (begin, size) = (queue.next_avail(), queue.size());
        let mut left = length;
        while left > 0 {
            let Some(chain) = queue.iter(memory).map_err(broken)?.next() else {
                // Here, behind the last of them, not where this frame begins: of what the driver has
                // put before that it would not tell again.
                if queue.enable_notification(memory).map_err(broken)? {
                    continue;
                }
                queue.set_next_avail(begin);
                return Ok(Room::Wanting);
            };
            let head = chain.head_index();
            if head >= size {
                return Err(VirtioError::HeadOutOfRange { index, head, size });
            }
            let before = left;
            for descriptor in chain.writable().take(QUEUE_SIZE.into()) {
                let part = left.min(descriptor.len() as usize);
                if part > 0 {
                    pieces.push((descriptor.addr(), part));
                    left -= part;
                }
                if left == 0 || pieces.len() == MOST_PIECES {
                    break;
                }
            }
            // No longer than a frame.
            chains.push((head, u32::try_from(before - left).unwrap_or(u32::MAX)));
            // With as many as the ring can have it cannot have more.
            let full = pieces.len() == MOST_PIECES || chains.len() >= size.into();
            if left > 0 && (full || !merges) {
                return Ok(Room::Useless);
            }
        }
        Ok(Room::Enough)
    }

    /// Copies the frame to its places.
    fn deliver(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
        length: usize,
    ) -> Result<(), VirtioError> {
        let receiver = &mut self.receiver;
        let Places { pieces, chains } = &receiver.places;
        let frame = &mut receiver.buffer[..length];
        let mut large = false;
        if let Some(mut header) = Header::of(frame) {
            large = header.segment_size() > 0;
            header.set_buffers(u16::try_from(chains.len()).unwrap_or(u16::MAX));
        }
        let (mut rest, mut whole) = (&frame[..], true);
        for &(address, part) in pieces {
            let (now, later) = rest.split_at(part);
            // A place that is not in memory gets nothing; that is the driver's loss.
            whole &= memory.write_slice(now, address).is_ok();
            rest = later;
        }
        for &(head, bytes) in chains {
            let bytes = if whole { bytes } else { 0 };
            queue
                .add_used(memory, head, bytes)
                .map_err(|error| VirtioError::BrokenQueue { index: RECEIVE, error })?;
        }
        let counters = &self.counters;
        if whole {
            add(&counters.received_frames, 1);
            add(&counters.received_bytes, (length - HEADER_BYTES) as u64);
            add(&counters.received_large, large.into());
        } else {
            add(&counters.received_dropped, 1);
        }
        Ok(())
    }
}

impl Receiver {
    /// Whether something waits here that the interface does not tell of.
    fn waits(&self) -> bool {
        self.pending > 0 || self.aside.is_some() || !self.answers.is_empty()
    }
}

/// How many packets a frame is.
pub(super) fn packets(length: usize, segment: u16) -> u64 {
    let content = length.saturating_sub(HEADER_BYTES + ETHERNET_BYTES);
    if segment == 0 { 1 } else { content.div_ceil(segment.into()).max(1) as u64 }
}
