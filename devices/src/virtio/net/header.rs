//! The header before each frame (virtio 1.2, section 5.1.6).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

/// Its length in bytes.
pub const HEADER_BYTES: usize = 12;

const FLAGS: usize = 0;
const GSO_TYPE: usize = 1;
const GSO_SIZE: usize = 4;
const BUFFERS: usize = 10;

/// Which way a frame goes, as features are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From the guest.
    Out,
    /// To the guest.
    In,
}

/// Whether `feature` was negotiated.
pub(super) fn has(features: u64, feature: u32) -> bool {
    features >> feature & 1 != 0
}

/// A view of the header of a frame; the slice has room for it.
pub(super) struct Header<'a>(&'a mut [u8]);

impl<'a> Header<'a> {
    /// That of `frame`, if it is long enough.
    pub(super) fn of(frame: &'a mut [u8]) -> Option<Self> {
        frame.get_mut(..HEADER_BYTES).map(Self)
    }

    fn flags(&self) -> u32 {
        self.0[FLAGS].into()
    }

    fn gso_type(&self) -> u32 {
        self.0[GSO_TYPE].into()
    }

    /// Bytes of content in each segment that the frame is to be cut into; 0 if it is not.
    pub(super) fn segment_size(&self) -> u16 {
        if self.gso_type() == VIRTIO_NET_HDR_GSO_NONE {
            return 0;
        }
        u16::from_le_bytes([self.0[GSO_SIZE], self.0[GSO_SIZE + 1]])
    }

    /// Clears what the other side has nothing to say with, and tells whether what is left is within
    /// what was negotiated.
    pub(super) fn settle(&mut self, features: u64, way: Way) -> bool {
        let [checksum, tso4, tso6, ecn] = match way {
            Way::Out => [
                VIRTIO_NET_F_CSUM,
                VIRTIO_NET_F_HOST_TSO4,
                VIRTIO_NET_F_HOST_TSO6,
                VIRTIO_NET_F_HOST_ECN,
            ],
            Way::In => [
                VIRTIO_NET_F_GUEST_CSUM,
                VIRTIO_NET_F_GUEST_TSO4,
                VIRTIO_NET_F_GUEST_TSO6,
                VIRTIO_NET_F_GUEST_ECN,
            ],
        }
        .map(|feature| has(features, feature));
        let mut known = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        if way == Way::In && checksum {
            known |= VIRTIO_NET_HDR_F_DATA_VALID;
        }
        let flags = self.flags() & known;
        self.0[FLAGS] = u8::try_from(flags).unwrap_or(0);
        self.set_buffers(0);
        let needs = flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
        let (kind, congestion) =
            (self.gso_type() & !VIRTIO_NET_HDR_GSO_ECN, self.gso_type() & VIRTIO_NET_HDR_GSO_ECN);
        let cut = match kind {
            VIRTIO_NET_HDR_GSO_NONE => congestion == 0,
            VIRTIO_NET_HDR_GSO_TCPV4 => tso4 && needs,
            VIRTIO_NET_HDR_GSO_TCPV6 => tso6 && needs,
            _ => false,
        };
        cut && (!needs || checksum) && (congestion == 0 || ecn)
    }

    /// Says over how many of the driver's buffers the frame goes.
    pub(super) fn set_buffers(&mut self, buffers: u16) {
        self.0[BUFFERS..].copy_from_slice(&buffers.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(flags: u8, gso: u8, features: u64, way: Way) -> (bool, u8) {
        let mut frame = [0; HEADER_BYTES];
        (frame[FLAGS], frame[GSO_TYPE], frame[BUFFERS]) = (flags, gso, 9);
        let good = Header::of(&mut frame).unwrap().settle(features, way);
        assert_eq!(frame[BUFFERS], 0);
        (good, frame[FLAGS])
    }

    #[test]
    fn a_header_says_nothing_that_was_not_negotiated() {
        let bit = |feature: u32| 1_u64 << feature;
        let all = u64::MAX;
        assert_eq!(settled(0, 0, 0, Way::Out), (true, 0));
        assert_eq!(settled(1, 0, 0, Way::Out), (false, 1));
        assert_eq!(settled(1, 0, bit(VIRTIO_NET_F_CSUM), Way::Out), (true, 1));
        assert_eq!(settled(1, 0, bit(VIRTIO_NET_F_CSUM), Way::In), (false, 1));
        assert_eq!(settled(0xfe, 0, all, Way::Out), (true, 0), "unknown flags are cleared");
        assert_eq!(settled(2, 0, all, Way::In), (true, 2));
        assert_eq!(settled(2, 0, 0, Way::In), (true, 0));
        assert!(!settled(0, 1, all, Way::Out).0, "segments need a checksum");
        assert!(settled(1, 1, all, Way::Out).0);
        assert!(settled(1, 0x84, all, Way::Out).0);
        assert!(!settled(1, 0x81, all & !bit(VIRTIO_NET_F_HOST_ECN), Way::Out).0);
        assert!(!settled(1, 4, all & !bit(VIRTIO_NET_F_HOST_TSO6), Way::Out).0);
        assert!(!settled(1, 1, all & !bit(VIRTIO_NET_F_GUEST_TSO4), Way::In).0);
        assert!(!settled(1, 3, all, Way::Out).0, "UDP is not cut");
        assert!(!settled(0, 0x80, all, Way::Out).0);
        assert!(Header::of(&mut [0; HEADER_BYTES - 1]).is_none());
    }
}
