//! What is said on a network when an identifier has a new home: switches that are not ours learn by which of their
//! ports it is reached now, before it has sent anything of its own.
//!
//! It is a reverse ARP request (RFC 903), by the identifier, to all: it says nothing but who sends it, and nobody
//! answers. Hypervisors have used it for that for long.

use std::os::fd::OwnedFd;

use endpoint::frames::header::Header;
use endpoint::vid::Vid;

use crate::plane::PlaneError;
use crate::sys;

/// The type of frames of RARP.
const ETHERTYPE: u16 = 0x8035;
/// The shortest frame of Ethernet, without its checksum (IEEE 802.3 clause 4).
const SHORTEST: usize = 60;
/// A range may be long: of so many identifiers it is said. Others have it said by what they send.
const MOST: usize = 256;

/// Says that `vids` are here, by all ports of the bridge `index`.
///
/// # Errors
/// The kernel refuses.
pub fn announce(index: u32, vids: impl Iterator<Item = Vid>) -> Result<(), PlaneError> {
    // For protocol 0 it receives nothing.
    let opened = sys::packet_socket(index, 0, false);
    let socket: OwnedFd = opened.map_err(PlaneError::system("open a packet socket"))?;
    for vid in vids.take(MOST) {
        rustix::io::write(&socket, &frame(vid))
            .map_err(|error| PlaneError::system("announce an identifier")(error.into()))?;
    }
    Ok(())
}

fn frame(vid: Vid) -> Vec<u8> {
    let vid = vid.bytes();
    // Hardware Ethernet, protocol IP, their lengths, request reverse.
    let mut request = vec![0, 1, 8, 0, 6, 4, 0, 3];
    for address in [vid, vid] {
        request.extend_from_slice(&address);
        request.extend_from_slice(&[0; 4]);
    }
    let mut frame = Header { destination: [0xff; 6], source: vid, kind: ETHERTYPE }.frame(&request);
    frame.resize(SHORTEST, 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_who_sends_it() {
        let vid: Vid = "02:00:00:00:00:07".parse().unwrap();
        let frame = frame(vid);
        let header = Header::of(&frame).unwrap();
        assert_eq!((header.source, header.kind), (vid.bytes(), 0x8035));
        assert!(header.is_group());
        assert_eq!(frame.len(), 60);
        assert_eq!(frame[14 + 8..14 + 14], vid.bytes());
    }
}
