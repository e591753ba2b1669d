//! Numbered 64-bit words, of which each tells its place: no byte can be lost, doubled or changed unseen.

/// The word with number `n`; no two are alike (a bijection, that of `SplitMix64`).
fn word(n: u64) -> u64 {
    let mut word = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Whole words of the stream around the bytes from `offset` on, and how many bytes to leave out before.
fn words(offset: u64) -> (impl Iterator<Item = u8>, usize) {
    let skip = usize::try_from(offset % 8).unwrap_or_default();
    ((offset / 8..).flat_map(|n| word(n).to_le_bytes()), skip)
}

/// Writes the stream's bytes from `offset` on.
pub fn fill(offset: u64, bytes: &mut [u8]) {
    if offset.is_multiple_of(8) && bytes.len().is_multiple_of(8) {
        for (n, place) in (offset / 8..).zip(bytes.as_chunks_mut().0) {
            *place = word(n).to_le_bytes();
        }
    } else {
        let (stream, skip) = words(offset);
        bytes.iter_mut().zip(stream.skip(skip)).for_each(|(place, byte)| *place = byte);
    }
}

/// Where the first byte is that is not the stream's, of those from `offset` on.
pub fn wrong(offset: u64, bytes: &[u8]) -> Option<u64> {
    let aligned = offset.is_multiple_of(8) && bytes.len().is_multiple_of(8);
    let all = |(n, place): (u64, &[u8; 8])| *place == word(n).to_le_bytes();
    if aligned && (offset / 8..).zip(bytes.as_chunks().0).all(all) {
        return None;
    }
    let (stream, skip) = words(offset);
    let at = bytes.iter().zip(stream.skip(skip)).position(|(found, wanted)| *found != wanted);
    at.map(|at| offset + at as u64)
}
