//! What switches and VMs read of a frame: its Ethernet header (IEEE 802.3 clause 3).

/// Bytes of an Ethernet header.
pub const HEADER_BYTES: usize = 14;
/// The longest frame that is carried: a packet of 64 KiB, its header, a VLAN tag.
pub const MAX_BYTES: usize = 65_535 + HEADER_BYTES + 4;

/// The Ethernet header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Receiver.
    pub destination: [u8; 6],
    /// Sender.
    pub source: [u8; 6],
    /// What the frame carries.
    pub kind: u16,
}

impl Header {
    /// The header of `frame`, if it is long enough.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let (destination, rest) = frame.split_first_chunk()?;
        let (source, rest) = rest.split_first_chunk()?;
        let (kind, _) = rest.split_first_chunk()?;
        Some(Self { destination: *destination, source: *source, kind: u16::from_be_bytes(*kind) })
    }

    /// Whether it is for a group, or all.
    pub fn is_group(&self) -> bool {
        self.destination[0] & 1 != 0
    }

    /// A frame with this header and `payload`.
    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
        frame.extend_from_slice(&self.destination);
        frame.extend_from_slice(&self.source);
        frame.extend_from_slice(&self.kind.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            match Header::of(&bytes) {
                None => prop_assert!(bytes.len() < HEADER_BYTES),
                Some(header) => prop_assert_eq!(header.frame(&bytes[HEADER_BYTES..]), bytes),
            }
        }
    }
}
