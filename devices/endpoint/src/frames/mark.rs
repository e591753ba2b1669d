//! End-marks: frames that go through a port behind all others, so that whoever reads the port knows, and
//! can say, that everything before has arrived.
//!
//! A marker has ethertype 0x88B5 (IEEE 802, local experimental) and goes to 01:80:c2:00:00:0e, which no bridge
//! forwards; its payload is `VMRK`, a kind (0 a mark, 1 its answer) and a random nonce of 8 bytes, big-endian.
//! The reader of a port sends [`answer`] back through the same port. A switch takes an answer only from the
//! port that it sent the mark through, and only once; markers are never forwarded.

use super::header::{HEADER_BYTES, Header};

/// What frames of marks carry.
pub const ETHERTYPE: u16 = 0x88b5;
/// Whom they are for: the nearest bridge (IEEE 802.1AB); none forwards it.
const RECEIVER: [u8; 6] = [0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e];
/// Who they are from: no identifier that a directory gives.
const SENDER: [u8; 6] = [0x02, 0x88, 0xb5, 0x00, 0x00, 0x01];
const MAGIC: [u8; 4] = *b"VMRK";
/// The shortest frame of Ethernet, without its checksum.
const LEAST: usize = 60;

/// Which way a marker goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To the reader of a port.
    Mark = 0,
    /// Back.
    Answer = 1,
}

/// The marker with `nonce`, a whole frame.
pub fn frame(kind: Kind, nonce: u64) -> Vec<u8> {
    let mut payload = MAGIC.to_vec();
    payload.push(u8::from(kind == Kind::Answer));
    payload.extend_from_slice(&nonce.to_be_bytes());
    let header = Header { destination: RECEIVER, source: SENDER, kind: ETHERTYPE };
    let mut frame = header.frame(&payload);
    frame.resize(LEAST, 0);
    frame
}

/// What marker `frame` is, if it is one.
pub fn read(frame: &[u8]) -> Option<(Kind, u64)> {
    if Header::of(frame)?.kind != ETHERTYPE {
        return None;
    }
    let (magic, rest) = frame.get(HEADER_BYTES..)?.split_first_chunk()?;
    let (kind, rest) = rest.split_first()?;
    let kind = match (*magic == MAGIC, kind) {
        (true, 0) => Kind::Mark,
        (true, 1) => Kind::Answer,
        _ => return None,
    };
    Some((kind, u64::from_be_bytes(*rest.first_chunk()?)))
}

/// What the reader of a port is to send back, if `frame` is a mark. The mark itself is not for a guest.
pub fn answer(mark: &[u8]) -> Option<Vec<u8>> {
    match read(mark)? {
        (Kind::Mark, nonce) => Some(frame(Kind::Answer, nonce)),
        (Kind::Answer, _) => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(nonce: u64) {
            let mark = frame(Kind::Mark, nonce);
            prop_assert_eq!(read(&mark), Some((Kind::Mark, nonce)));
            let answered = answer(&mark).unwrap();
            prop_assert_eq!(read(&answered), Some((Kind::Answer, nonce)));
            prop_assert_eq!(answer(&answered), None);
        }

        #[test]
        fn cut_or_changed_markers_are_none(nonce: u64, length in 0..27_usize, place in 12..19_usize) {
            let mark = frame(Kind::Mark, nonce);
            prop_assert_eq!(read(&mark[..length]), None);
            let mut changed = mark;
            changed[place] ^= 0x80;
            prop_assert_eq!(read(&changed), None);
        }
    }
}
