//! Frames of the guest's.

use std::time::Instant;

use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::counters::add;
use super::dhcp::Taken;
use super::filter::Sender;
use super::header::{HEADER_BYTES, Header, Way};
use super::packet::Frame;
use super::ports;
use super::receive::packets;
use super::{
    MAX_BYTES, MAX_FRAMES, MOST_ANSWERS, Net, QUEUE_SIZE, QueueProgress, TRANSMIT, VirtioError,
};

impl Net {
    /// Sends frames, until there are none, or their rate limit or the turn is used up.
    pub(super) fn serve_transmit(
        &mut self,
        memory: &GuestMemoryMmap,
    ) -> Result<QueueProgress, VirtioError> {
        let Some(mut queue) = self.transmitter.queue.take() else {
            return Ok(QueueProgress::default());
        };
        let index = TRANSMIT;
        let broken = |error| VirtioError::BrokenQueue { index, error };
        self.transmitter.left = false;
        queue.disable_notification(memory).map_err(broken)?;
        let (mut used, mut more, mut frames, mut bytes) = (false, false, 0, 0);
        loop {
            if frames == MAX_FRAMES || bytes > MAX_BYTES {
                more = true;
                break;
            }
            if let Some(delay) = self.transmitter.limiter.wait(Instant::now) {
                add(&self.counters.sent_throttled, 1);
                self.transmitter.left = true;
                self.wake_after(delay)?;
                break;
            }
            frames += 1;
            let Some(chain) = queue.iter(memory).map_err(broken)?.next() else {
                if queue.enable_notification(memory).map_err(broken)? {
                    continue;
                }
                break;
            };
            let (head, size) = (chain.head_index(), queue.size());
            if head >= size {
                return Err(VirtioError::HeadOutOfRange { index, head, size });
            }
            let length = gather(chain, memory, &mut self.transmitter.buffer);
            queue.add_used(memory, head, 0).map_err(broken)?;
            used = true;
            bytes += length.unwrap_or(0);
            if !length.is_some_and(|length| self.send(length)) {
                add(&self.counters.sent_dropped, 1);
            }
        }
        let interrupt = used && queue.needs_notification(memory).map_err(broken)?;
        self.transmitter.queue = Some(queue);
        Ok(QueueProgress { interrupt, more, config: false })
    }

    /// Sends the frame that is in the buffer, or does with it what is to be done; `false` if it is
    /// none, or lost.
    fn send(&mut self, length: usize) -> bool {
        let transmitter = &mut self.transmitter;
        let buffer = &mut transmitter.buffer[..length];
        let Some(mut header) = Header::of(buffer) else { return false };
        let agreed = header.settle(self.features, Way::Out);
        let segment = header.segment_size();
        transmitter.limiter.pay(length - HEADER_BYTES, packets(length, segment));
        let Some(frame) = Frame::parse(&buffer[HEADER_BYTES..]).filter(|_| agreed) else {
            return false;
        };
        let counters = &self.counters;
        // Until the frame is gone no identifier loses its voice.
        let mut table = (!self.identifiers.is_empty()).then(|| self.identifiers.lock());
        let sender = match &table {
            None => self.identity.judge(&frame),
            Some(table) => self.identity.judge_among(&frame, table),
        };
        let refusal = match sender {
            Sender::Vm => None,
            Sender::Another => Some(&counters.sent_spoofed),
            Sender::Muted => {
                if let Some(table) = &mut table {
                    table.count_muted();
                }
                return true;
            }
            Sender::Unknown => Some(&counters.sent_other),
        };
        if let Some(refusal) = refusal {
            add(refusal, 1);
            return true;
        }
        match self.answerer.as_ref().map(|answerer| answerer.take_frame(&frame)) {
            None | Some(Taken::Not) => {}
            Some(Taken::Answer(answer)) if self.receiver.answers.len() < MOST_ANSWERS => {
                self.receiver.answers.push_back(answer);
                add(&counters.dhcp_answers, 1);
                return true;
            }
            Some(_) => return true,
        }
        if !self.ports.passes(ports::Way::Out, &frame) {
            add(&counters.sent_filtered, 1);
            return true;
        }
        if !self.linked || self.tap.transmit(buffer).is_err() {
            return false;
        }
        add(&counters.sent_frames, 1);
        add(&counters.sent_bytes, (length - HEADER_BYTES) as u64);
        add(&counters.sent_large, (segment > 0).into());
        true
    }
}

/// Copies what `chain` holds to `buffer`; how long that is, if it fits and all of it is in memory.
fn gather(
    chain: DescriptorChain<&GuestMemoryMmap>,
    memory: &GuestMemoryMmap,
    buffer: &mut [u8],
) -> Option<usize> {
    let mut filled = 0;
    for descriptor in chain.readable().take(QUEUE_SIZE.into()) {
        let end = filled + usize::try_from(descriptor.len()).ok()?;
        let place = buffer.get_mut(filled..end)?;
        memory.read_slice(place, descriptor.addr()).ok()?;
        filled = end;
    }
    Some(filled)
}
