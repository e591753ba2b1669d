//! One chunk on its way: its two buckets are read, then its content.
//!
//! What a look at the buckets does not tell is looked for again, after the pauses of the
//! [reader's rule](crate::index::reader); content that is not what the entry was about is looked up once
//! more, because it may have been replaced while it was read.

use std::time::{Duration, Instant};

use crate::index::IndexKey;
use crate::index::entry::Entry;
use crate::index::reader::{EMPTY_BUCKET, Exported, Look, PAUSES, bucket_of};
use crate::record::ItemKey;
use crate::transport::cluster::board::Task;
use crate::transport::verbs::Buffer;

/// Times that the content of a chunk is read: also of what a copy of the index said, and then as it is.
const READS: u8 = 3;

/// A chunk on its way.
pub(super) struct Job<'s, 'm> {
    pub(super) task: Task,
    pub(super) key: IndexKey,
    /// Where it lands; with the device while it is read.
    pub(super) memory: Option<Buffer<'s, 'm>>,
    /// Memory for its two buckets; with the device while they are read.
    pub(super) buckets: [Option<Buffer<'s, 'm>>; 2],
    pub(super) begun: Instant,
    /// Looks at the buckets.
    looks: usize,
    /// Whether none of them found a trace of the key.
    clean: bool,
    reads: u8,
}

/// What is to be done next with a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Read its content.
    Read(Entry),
    /// Read its buckets again after this time.
    Look(Duration),
    /// The node does not have it.
    Absent,
    /// Only the node itself can tell.
    AskNode,
    /// It has this many bytes at the node.
    Length(u32),
}

impl<'s, 'm> Job<'s, 'm> {
    pub(super) fn new(task: Task, memory: Buffer<'s, 'm>, buckets: [Buffer<'s, 'm>; 2]) -> Self {
        Self {
            key: ItemKey::chunk(&task.key).index_key(),
            task,
            memory: Some(memory),
            buckets: buckets.map(Some),
            begun: Instant::now(),
            looks: 0,
            clean: true,
            reads: 0,
        }
    }

    /// Both buckets have been read.
    pub(super) fn looked(&mut self, exported: &Exported) -> Step {
        let mut buckets = [EMPTY_BUCKET; 2];
        for (bytes, bucket) in self.buckets.iter().zip(&mut buckets) {
            // They are read whole, or not at all.
            if let Some(bytes) = bytes.as_deref().and_then(|bytes| bytes.first_chunk()) {
                *bucket = bucket_of(bytes);
            }
        }
        match exported.look(&buckets, self.key) {
            Look::Found(entry) => {
                let expected = self.memory.as_ref().map_or(0, |memory| memory.len());
                self.reads += 1;
                if usize::try_from(entry.length) == Ok(expected) {
                    Step::Read(entry)
                } else {
                    Step::Length(entry.length)
                }
            }
            look => {
                self.clean &= look == Look::Clean;
                let pause = PAUSES.get(self.looks).copied();
                self.looks += 1;
                match pause {
                    Some(pause) => Step::Look(pause),
                    None if self.clean => Step::Absent,
                    None => Step::AskNode,
                }
            }
        }
    }

    /// A copy of the index has `entry` for it. Whether its content is to be read: what the copy has may
    /// be old, so it is tried once, and only if it can be right.
    pub(super) fn found(&mut self, entry: &Entry) -> bool {
        let expected = self.memory.as_ref().map_or(0, |memory| memory.len());
        let fits = self.reads == 0 && usize::try_from(entry.length) == Ok(expected);
        self.reads += u8::from(fits);
        fits
    }

    /// The content has been read and is not what it should be.
    pub(super) fn differs(&mut self) -> Step {
        if self.reads < READS { Step::Look(Duration::ZERO) } else { Step::AskNode }
    }
}
