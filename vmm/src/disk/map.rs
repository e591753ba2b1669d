//! Which sectors of a disk its overlay has, in two bits for each: whether it was written, and whether its
//! content is in the overlay's file or it is zero.
//!
//! A sector that was not written is that of the image. Bits exist for regions of 2 MiB in which
//! something was written, so that a disk that nobody writes to costs nothing: 1 KiB for each.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// Sectors of a region.
pub const REGION_SECTORS: u64 = 4096;
/// Bytes of a region's encoding.
pub const REGION_BYTES: usize = 1024;
const WORD: u64 = 64;

/// What a sector holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// What the image says.
    Image,
    /// Zeros.
    Zero,
    /// What the overlay's file has.
    Data,
}

/// The bits of 64 sectors; what has data was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Word {
    written: u64,
    data: u64,
}

#[derive(Debug)]
struct Region {
    words: [Word; 64],
    /// Whether it differs from what was last encoded.
    changed: bool,
}

/// The map of a disk.
#[derive(Debug, Default)]
pub struct SectorMap {
    regions: BTreeMap<u64, Box<Region>>,
    data_sectors: u64,
}

/// The parts of a range that lie in one word each: region, word in it, and mask.
fn words(sectors: Range<u64>) -> impl Iterator<Item = (u64, usize, u64)> {
    let mut next = sectors.start;
    std::iter::from_fn(move || {
        if next >= sectors.end {
            return None;
        }
        let end = ((next / WORD + 1) * WORD).min(sectors.end);
        let (bit, count) = (next % WORD, end - next);
        let mask = (u64::MAX >> (WORD - count)) << bit;
        let word = usize::try_from(next % REGION_SECTORS / WORD).unwrap_or(0);
        let part = (next / REGION_SECTORS, word, mask);
        next = end;
        Some(part)
    })
}

impl SectorMap {
    /// Sectors whose content is in the file.
    pub fn data_sectors(&self) -> u64 {
        self.data_sectors
    }

    fn word(&self, region: u64, word: usize) -> Word {
        self.regions.get(&region).and_then(|r| r.words.get(word)).copied().unwrap_or_default()
    }

    /// How many of these sectors have no content in the file.
    pub fn without_data(&self, sectors: Range<u64>) -> u64 {
        words(sectors)
            .map(|(region, word, mask)| {
                u64::from((mask & !self.word(region, word).data).count_ones())
            })
            .sum()
    }

    /// Notes that the content of these sectors is in the file.
    pub fn set_data(&mut self, sectors: Range<u64>) {
        self.set(sectors, true);
    }

    /// Notes that these sectors are zero.
    pub fn set_zero(&mut self, sectors: Range<u64>) {
        self.set(sectors, false);
    }

    fn set(&mut self, sectors: Range<u64>, data: bool) {
        for (region, word, mask) in words(sectors) {
            let region = self.regions.entry(region).or_insert_with(|| {
                Box::new(Region { words: [Word::default(); 64], changed: false })
            });
            let Some(word) = region.words.get_mut(word) else { continue };
            let before = *word;
            word.written |= mask;
            word.data = if data { word.data | mask } else { word.data & !mask };
            region.changed |= before != *word;
            self.data_sectors += u64::from(word.data.count_ones());
            self.data_sectors -= u64::from(before.data.count_ones());
        }
    }

    /// The range in parts that are each of one state, in ascending order.
    pub fn runs(&self, sectors: Range<u64>) -> Vec<(Range<u64>, State)> {
        let mut runs: Vec<(Range<u64>, State)> = Vec::new();
        let mut add = |part: Range<u64>, state| match runs.last_mut() {
            Some((last, same)) if *same == state => last.end = part.end,
            _ => runs.push((part, state)),
        };
        let mut next = sectors.start;
        for (region, word, mask) in words(sectors) {
            let Word { written, data } = self.word(region, word);
            let end = next + u64::from(mask.count_ones());
            if written & mask == 0 {
                add(next..end, State::Image);
            } else if data & mask == mask {
                add(next..end, State::Data);
            } else {
                for sector in next..end {
                    let bit = 1 << (sector % WORD);
                    let state = match (written & bit != 0, data & bit != 0) {
                        (false, _) => State::Image,
                        (true, false) => State::Zero,
                        (true, true) => State::Data,
                    };
                    add(sector..sector + 1, state);
                }
            }
            next = end;
        }
        runs
    }

    /// The regions that have changed since this was last asked, with their numbers, encoded: for each 64
    /// sectors a word of what was written and one of what has data, little-endian. So the two bits of a
    /// sector are in one sector of the file, and get there together.
    pub fn take_changed(&mut self) -> Vec<(u64, [u8; REGION_BYTES])> {
        let changed = self.regions.iter_mut().filter(|(_, region)| region.changed);
        changed
            .map(|(number, region)| {
                region.changed = false;
                let mut bytes = [0; REGION_BYTES];
                let (places, _) = bytes.as_chunks_mut::<16>();
                for (place, word) in places.iter_mut().zip(&region.words) {
                    let (written, data) = place.split_at_mut(8);
                    written.copy_from_slice(&word.written.to_le_bytes());
                    data.copy_from_slice(&word.data.to_le_bytes());
                }
                (*number, bytes)
            })
            .collect()
    }

    /// Has what [`take_changed`](Self::take_changed) gave last be given again: it did not reach the file.
    pub fn change_again(&mut self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            if let Some(region) = self.regions.get_mut(&number) {
                region.changed = true;
            }
        }
    }

    /// Puts a region back that was encoded. What has data was written, whatever the bytes say, and no
    /// sector beyond `sectors` is there.
    pub fn restore(&mut self, number: u64, bytes: &[u8; REGION_BYTES], sectors: u64) {
        let mut region = Region { words: [Word::default(); 64], changed: false };
        let first = number.saturating_mul(REGION_SECTORS);
        let there = first..sectors.min(first.saturating_add(REGION_SECTORS));
        let (places, _) = bytes.as_chunks::<16>();
        for (_, index, mask) in words(there) {
            let (Some(word), Some(place)) = (region.words.get_mut(index), places.get(index)) else {
                continue;
            };
            let (written, data) = place.split_at(8);
            let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
            word.data = number(data) & mask;
            word.written = number(written) & mask | word.data;
        }
        if region.words != [Word::default(); 64] {
            let data: u32 = region.words.iter().map(|word| word.data.count_ones()).sum();
            self.data_sectors += u64::from(data);
            self.regions.insert(number, Box::new(region));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECTORS: u64 = 3 * REGION_SECTORS + 77;

    fn range() -> impl Strategy<Value = Range<u64>> {
        let near =
            prop_oneof![0..SECTORS, (0..4_u64).prop_map(|n| (n * REGION_SECTORS).max(3) - 3)];
        (near, prop_oneof![1..9_u64, 1..200_u64, 1..9000_u64])
            .prop_map(|(start, length)| start..(start + length).min(SECTORS))
    }

    proptest! {
        #[test]
        fn the_map_is_a_vector_of_states(
            acts in prop::collection::vec((range(), any::<bool>()), 0..40),
            looks in prop::collection::vec(range(), 1..10),
        ) {
            let mut model = vec![State::Image; usize::try_from(SECTORS).unwrap()];
            let mut map = SectorMap::default();
            let mut kept = BTreeMap::new();
            for (index, (range, data)) in acts.into_iter().enumerate() {
                let slice = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
                let without = model[slice.clone()].iter().filter(|s| **s != State::Data).count();
                prop_assert_eq!(map.without_data(range.clone()), without as u64);
                if data {
                    map.set_data(range);
                    model[slice].fill(State::Data);
                } else {
                    map.set_zero(range);
                    model[slice].fill(State::Zero);
                }
                if index % 3 == 0 {
                    kept.extend(map.take_changed());
                }
            }
            kept.extend(map.take_changed());
            prop_assert!(map.take_changed().is_empty());
            let mut restored = SectorMap::default();
            for (number, bytes) in &kept {
                restored.restore(*number, bytes, SECTORS);
            }
            let data = model.iter().filter(|state| **state == State::Data).count() as u64;
            for map in [&map, &restored] {
                prop_assert_eq!(map.data_sectors(), data);
                for look in looks.iter().cloned().chain(std::iter::once(0..SECTORS)) {
                    let mut next = look.start;
                    let mut last = None;
                    for (run, state) in map.runs(look.clone()) {
                        prop_assert_eq!(run.start, next);
                        prop_assert!(run.end > run.start && last != Some(state));
                        for sector in run.clone() {
                            prop_assert_eq!(model[usize::try_from(sector).unwrap()], state);
                        }
                        (next, last) = (run.end, Some(state));
                    }
                    prop_assert_eq!(next, look.end);
                }
            }
        }

        #[test]
        fn whatever_a_file_holds_makes_a_sound_map(
            number in prop_oneof![0..5_u64, any::<u64>()],
            bytes in prop::collection::vec(any::<u8>(), REGION_BYTES),
        ) {
            let mut map = SectorMap::default();
            map.restore(number, bytes.as_slice().try_into().unwrap(), SECTORS);
            prop_assert!(map.data_sectors() <= SECTORS);
            let runs = map.runs(0..SECTORS);
            prop_assert_eq!(runs.last().unwrap().0.end, SECTORS);
        }
    }
}
