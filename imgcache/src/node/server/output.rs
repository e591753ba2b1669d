//! What is to be sent: text, and between it the content of items, which goes out from where it is.

use std::collections::VecDeque;
use std::io::IoSlice;

use super::budget::Permit;
use crate::node::cache::Item;

/// Content up to this size is copied into the text: a slice of its own would cost more.
const COPY_BYTES: usize = 512;
/// Text beyond which nothing more is answered until it is sent.
const FULL_TEXT: usize = 64 << 10;
/// Content beyond which nothing more is answered until it is sent, in bytes and in items.
const FULL_CONTENT: usize = 4 << 20;
const FULL_ITEMS: usize = 128;
/// Text memory that is kept between replies.
const KEPT_TEXT: usize = 16 << 10;
/// Slices that one call sends.
pub(super) const SLICES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Output {
    text: Vec<u8>,
    items: VecDeque<Placed>,
    /// Bytes of `text` that are sent.
    text_sent: usize,
    /// Bytes of the first item that are sent.
    item_sent: usize,
    /// Bytes of all items.
    content: usize,
    /// For text that is longer than usual.
    permit: Option<Permit>,
}

/// An item behind the first `at` bytes of text.
#[derive(Debug)]
struct Placed {
    at: usize,
    item: Item,
}

impl Output {
    /// Where text is appended.
    pub fn text(&mut self) -> &mut Vec<u8> {
        &mut self.text
    }

    /// Keeps `permit`, which is for the memory of the text, until all of it is sent.
    pub fn keep(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }

    /// Appends the content of an item.
    pub fn content(&mut self, item: &Item) {
        let bytes = item.bytes();
        if bytes.len() <= COPY_BYTES {
            self.text.extend_from_slice(bytes);
        } else {
            self.content += bytes.len();
            self.items.push_back(Placed { at: self.text.len(), item: item.clone() });
        }
    }

    /// Whether it must be sent before anything is appended.
    pub fn is_full(&self) -> bool {
        self.text.len() >= FULL_TEXT
            || self.content >= FULL_CONTENT
            || self.items.len() >= FULL_ITEMS
    }

    /// Whether all is sent.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.text_sent == self.text.len()
    }

    /// Bytes that are still to be sent.
    pub fn length(&self) -> usize {
        (self.text.len() - self.text_sent) + (self.content - self.item_sent)
    }

    /// What is sent next, into `slices`; returns how many it is.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        let mut count = 0;
        let mut put = |bytes: &'a [u8]| {
            if bytes.is_empty() {
                return true;
            }
            match slices.get_mut(count) {
                Some(slice) => *slice = IoSlice::new(bytes),
                None => return false,
            }
            count += 1;
            true
        };
        let mut start = self.text_sent;
        let mut item_sent = self.item_sent;
        for placed in &self.items {
            let text = self.text.get(start..placed.at).unwrap_or_default();
            let content = placed.item.bytes().get(item_sent..).unwrap_or_default();
            if !put(text) || !put(content) {
                return count;
            }
            start = placed.at;
            item_sent = 0;
        }
        put(self.text.get(start..).unwrap_or_default());
        count
    }

    /// Takes note that so many bytes were sent.
    pub fn advance(&mut self, mut sent: usize) {
        while let Some(placed) = self.items.front() {
            let text = sent.min(placed.at - self.text_sent);
            self.text_sent += text;
            sent -= text;
            let length = placed.item.bytes().len();
            let content = sent.min(length - self.item_sent);
            self.item_sent += content;
            sent -= content;
            if self.text_sent < placed.at || self.item_sent < length {
                return;
            }
            self.content -= length;
            self.item_sent = 0;
            self.items.pop_front();
        }
        self.text_sent = self.text.len().min(self.text_sent + sent);
        if self.text_sent == self.text.len() {
            self.text.clear();
            self.text.shrink_to(KEPT_TEXT);
            self.text_sent = 0;
            self.permit = None;
        }
    }

    /// Gives all memory back; only if it is empty.
    pub fn release(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }
}
