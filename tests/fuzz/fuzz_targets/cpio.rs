//! Ramdisks: raw and compressed cpio archives in any order.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::initrd(data));
