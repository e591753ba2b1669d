//! What clients of the DHCP server send: frames of any content, and messages of any content.
#![no_main]

use dhcp::wire::{frame, request::Request};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = Request::parse(data);
    if let Some(incoming) = frame::parse(data) {
        let _ = Request::parse(incoming.data);
    }
});
