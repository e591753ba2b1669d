//! The thread that carries out a disk's requests. It waits for the overlay's file, never for a chunk:
//! those are brought by others ([`super::fetch`]), each once, however many requests wait for it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use devices::virtio::blk::{Completion, Failed, Operation, Request, Tag};
use imgcache::image::manifest::ChunkSpan;
use imgcache::lazy::{ChunkSource, SourceError};

use super::backend::Done;
use super::chunks::Chunks;
use super::counters::{Counters, add};
use super::fetch::Fetchers;
use super::map::{SECTOR, State};
use super::overlay::{Overlay, OverlayError};

/// Bytes of chunks that are kept.
const KEPT_BYTES: usize = 4 << 20;
/// How soon the host is told again.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// Bytes that are read in sequence before any is brought ahead.
const SEQUENCE_BYTES: u64 = 512 << 10;
/// Bytes that are brought ahead of a guest that reads in sequence.
const AHEAD_BYTES: u32 = 1 << 20;

/// What the thread is told.
#[derive(Debug)]
pub enum Message {
    /// A request of the device's.
    Request(Request),
    /// A chunk was brought, or was not.
    Brought(u32, Result<Vec<u8>, SourceError>),
    /// The device is gone.
    End,
}

/// A read of which chunks are missing.
#[derive(Debug)]
struct Reading {
    tag: Tag,
    buffer: Vec<u8>,
    missing: usize,
    failed: bool,
}

/// Part of a chunk that a read waits for.
#[derive(Debug)]
struct Piece {
    /// The read's slot.
    slot: usize,
    /// Where in the chunk.
    from: usize,
    /// Where in the read's buffer.
    to: Range<usize>,
}

/// What the thread has.
#[derive(Debug)]
pub struct Worker {
    source: Arc<dyn ChunkSource>,
    /// Position of the disk's first chunk in the manifest's table, and the number of its chunks.
    chunks: Range<u32>,
    overlay: Option<Overlay>,
    kept: Chunks,
    reading: HashMap<usize, Reading>,
    /// For each chunk that is being brought, who waits for it.
    waiting: HashMap<u32, Vec<Piece>>,
    /// What was read in sequence last, in bytes of the disk.
    sequence: Range<u64>,
    fetchers: Fetchers,
    done: Arc<Done>,
    counters: Arc<Counters>,
    told: Told,
}

/// When the host was last told that chunks do not come, and that the overlay takes nothing more.
#[derive(Debug, Default)]
struct Told {
    chunk: Option<Instant>,
    overlay: Option<Instant>,
}

/// Tells the host why its guest gets errors, but not each time: a guest can repeat it.
fn tell(last: &mut Option<Instant>, error: &dyn std::fmt::Display) {
    if last.is_none_or(|last| last.elapsed() >= TELL_AGAIN) {
        *last = Some(Instant::now());
        crate::cli::say(&format!("vmm: the guest gets I/O errors from its disk: {error}\n"));
    }
}

impl Worker {
    /// What carries out the requests for the disk of the source's image.
    pub fn new(
        source: Arc<dyn ChunkSource>,
        chunks: Range<u32>,
        overlay: Option<Overlay>,
        fetchers: Fetchers,
        done: Arc<Done>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            source,
            chunks,
            overlay,
            kept: Chunks::new(KEPT_BYTES),
            reading: HashMap::new(),
            waiting: HashMap::new(),
            sequence: 0..0,
            fetchers,
            done,
            counters,
            told: Told::default(),
        }
    }

    /// Goes on until the device is gone; what was written is then where it belongs.
    pub fn run(mut self, messages: &Receiver<Message>) {
        while let Ok(message) = messages.recv() {
            match message {
                Message::Request(Request { tag, operation }) => self.carry_out(tag, operation),
                Message::Brought(index, result) => self.brought(index, result),
                Message::End => break,
            }
        }
        if let Some(Err(error)) = self.overlay.as_mut().map(Overlay::flush) {
            log::error!("what the guest wrote last may be lost: {error}");
        }
    }

    fn complete(&self, tag: Tag, result: Result<Vec<u8>, Failed>) {
        if result.is_err() {
            add(&self.counters.errors, 1);
        }
        self.done.push(Completion { tag, result });
    }

    fn carry_out(&mut self, tag: Tag, operation: Operation) {
        let counters = Arc::clone(&self.counters);
        let result = match operation {
            Operation::Read { offset, length } => {
                add(&counters.bytes_read, length);
                return self.read(tag, offset, length);
            }
            Operation::Write { offset, data } => {
                add(&counters.bytes_written, data.len());
                self.change(|overlay| overlay.write(offset, &data))
            }
            Operation::Zero { offset, length } => self.change(|overlay| {
                overlay.zero(offset, length);
                Ok(())
            }),
            Operation::Flush => {
                add(&counters.flushes, 1);
                if self.overlay.is_none() { Ok(()) } else { self.change(Overlay::flush) }
            }
        };
        self.complete(tag, result.map(|()| Vec::new()));
    }

    /// Does something to the overlay. Tells the host if that fails.
    fn change(
        &mut self,
        change: impl FnOnce(&mut Overlay) -> Result<(), OverlayError>,
    ) -> Result<(), Failed> {
        let overlay = self.overlay.as_mut().ok_or(Failed)?;
        match change(overlay) {
            Ok(()) => {
                let bytes = overlay.bytes();
                self.counters.overlay_bytes.store(bytes, std::sync::atomic::Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                tell(&mut self.told.overlay, &error);
                Err(Failed)
            }
        }
    }

    fn read(&mut self, tag: Tag, offset: u64, length: usize) {
        let mut reading = Reading { tag, buffer: vec![0; length], missing: 0, failed: false };
        let end = offset.saturating_add(u64::try_from(length).unwrap_or(0));
        let sectors = offset / SECTOR..end / SECTOR;
        let runs = match &self.overlay {
            Some(overlay) => overlay.runs(sectors),
            None => vec![(sectors, State::Image)],
        };
        let mut from_image = false;
        for (run, state) in runs {
            let bytes = run.start * SECTOR..run.end * SECTOR;
            match state {
                State::Zero => {}
                State::Data => self.read_overlay(&mut reading, offset, bytes),
                State::Image => {
                    from_image = true;
                    self.read_image(&mut reading, offset, bytes);
                }
            }
        }
        if from_image {
            if self.sequence.end == offset {
                self.sequence.end = end;
            } else {
                self.sequence = offset..end;
            }
            if self.sequence.end - self.sequence.start >= SEQUENCE_BYTES {
                self.read_ahead(end);
            }
        }
        if reading.missing == 0 {
            self.finish(reading);
        } else {
            self.reading.insert(tag.slot(), reading);
        }
    }

    fn finish(&self, reading: Reading) {
        let Reading { tag, buffer, failed, .. } = reading;
        self.complete(tag, if failed { Err(Failed) } else { Ok(buffer) });
    }

    fn read_overlay(&mut self, reading: &mut Reading, offset: u64, bytes: Range<u64>) {
        let Some(overlay) = &self.overlay else { return };
        let place = within(&bytes, offset);
        let Some(buffer) = reading.buffer.get_mut(place) else { return };
        if let Err(error) = overlay.read(bytes.start, buffer) {
            reading.failed = true;
            tell(&mut self.told.overlay, &error);
        }
    }

    /// Copies what is here, and has the rest brought.
    fn read_image(&mut self, reading: &mut Reading, offset: u64, bytes: Range<u64>) {
        let mut next = bytes.start;
        while next < bytes.end {
            let Some(chunk) = self.chunk_at(next) else {
                reading.failed = true;
                return;
            };
            let end = bytes.end.min(chunk.offset + u64::from(chunk.length));
            let to = within(&(next..end), offset);
            let from = usize::try_from(next - chunk.offset).unwrap_or(usize::MAX);
            next = end;
            if chunk.entry.zero {
                continue;
            }
            if let Some(content) = self.kept.get(chunk.index) {
                copy(content, from, &mut reading.buffer, to);
                continue;
            }
            let piece = Piece { slot: reading.tag.slot(), from, to };
            reading.missing += 1;
            if let Some(pieces) = self.waiting.get_mut(&chunk.index) {
                if pieces.is_empty() {
                    self.fetchers.hurry(chunk.index);
                }
                pieces.push(piece);
            } else {
                self.waiting.insert(chunk.index, vec![piece]);
                self.fetchers.bring(chunk, true);
            }
        }
    }

    /// The chunk that has this byte of the disk.
    fn chunk_at(&self, offset: u64) -> Option<ChunkSpan> {
        let manifest = self.source.manifest();
        let number = u32::try_from(offset / u64::from(manifest.chunk_size)).ok()?;
        let index = self.chunks.start.checked_add(number).filter(|i| self.chunks.contains(i))?;
        manifest.chunk(index)
    }

    /// Has the chunks after `end` brought, some of them.
    fn read_ahead(&mut self, end: u64) {
        let size = self.source.manifest().chunk_size;
        let count = u64::from((AHEAD_BYTES / size).max(1));
        let first = end.div_ceil(u64::from(size));
        for number in first..first + count {
            let Some(chunk) = self.chunk_at(number * u64::from(size)) else { return };
            let here = self.kept.has(chunk.index) || self.waiting.contains_key(&chunk.index);
            if !chunk.entry.zero && !here {
                add(&self.counters.chunks_ahead, 1);
                self.waiting.insert(chunk.index, Vec::new());
                self.fetchers.bring(chunk, false);
            }
        }
    }

    fn brought(&mut self, index: u32, result: Result<Vec<u8>, SourceError>) {
        let pieces = self.waiting.remove(&index).unwrap_or_default();
        let content = match result {
            Ok(content) => {
                add(&self.counters.chunks_fetched, 1);
                add(&self.counters.bytes_fetched, content.len());
                Some(content)
            }
            Err(error) => {
                // Ahead of anybody's need it is no failure yet.
                if !pieces.is_empty() {
                    tell(&mut self.told.chunk, &error);
                }
                None
            }
        };
        for Piece { slot, from, to } in pieces {
            let Some(reading) = self.reading.get_mut(&slot) else { continue };
            reading.missing -= 1;
            match &content {
                Some(content) => copy(content, from, &mut reading.buffer, to),
                None => reading.failed = true,
            }
            if reading.missing == 0
                && let Some(reading) = self.reading.remove(&slot)
            {
                self.finish(reading);
            }
        }
        if let Some(content) = content {
            self.kept.put(index, content);
        }
    }
}

/// Where `bytes` of the disk are in a buffer that begins with its byte `offset`.
fn within(bytes: &Range<u64>, offset: u64) -> Range<usize> {
    let place = |byte: u64| usize::try_from(byte - offset).unwrap_or(usize::MAX);
    place(bytes.start)..place(bytes.end)
}

fn copy(content: &[u8], from: usize, buffer: &mut [u8], to: Range<usize>) {
    let part = content.get(from..from.saturating_add(to.len()));
    if let (Some(part), Some(place)) = (part, buffer.get_mut(to)) {
        place.copy_from_slice(part);
    }
}
