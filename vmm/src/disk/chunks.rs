//! Chunks that are kept for the next request, so many bytes of them.

use std::collections::HashMap;

/// The chunks; who was not asked for longest goes first.
#[derive(Debug)]
pub struct Chunks {
    kept: HashMap<u32, (Vec<u8>, u64)>,
    bytes: usize,
    limit: usize,
    uses: u64,
}

impl Chunks {
    /// Keeps up to `limit` bytes, but always the last chunk.
    pub fn new(limit: usize) -> Self {
        Self { kept: HashMap::new(), bytes: 0, limit, uses: 0 }
    }

    /// Whether this chunk is here.
    pub fn has(&self, index: u32) -> bool {
        self.kept.contains_key(&index)
    }

    /// A chunk, if it is here.
    pub fn get(&mut self, index: u32) -> Option<&[u8]> {
        self.uses += 1;
        let (content, used) = self.kept.get_mut(&index)?;
        *used = self.uses;
        Some(content)
    }

    /// Keeps a chunk.
    pub fn put(&mut self, index: u32, content: Vec<u8>) {
        self.uses += 1;
        self.bytes += content.len();
        if let Some((before, _)) = self.kept.insert(index, (content, self.uses)) {
            self.bytes -= before.len();
        }
        while self.bytes > self.limit && self.kept.len() > 1 {
            // A thousand at most: chunks have 4 KiB or more.
            let oldest = self.kept.iter().min_by_key(|(_, (_, used))| *used);
            let Some(index) = oldest.map(|(index, _)| *index) else { break };
            if let Some((content, _)) = self.kept.remove(&index) {
                self.bytes -= content.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_are_used_stay_and_the_bytes_are_bounded() {
        let mut chunks = Chunks::new(10_000);
        for index in 0..20 {
            chunks.put(index, vec![0; 4096]);
            assert!(chunks.get(0).is_some(), "{index}");
            assert!(chunks.bytes <= 10_000);
        }
        assert!(chunks.has(19) && !chunks.has(18));
        chunks.put(19, vec![1; 4096]);
        assert_eq!(chunks.bytes, 2 * 4096);
        chunks.put(30, vec![0; 20_000]);
        assert!(chunks.has(30) && chunks.kept.len() == 1);
    }
}
