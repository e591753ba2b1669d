//! ELF kernels, plain or compressed.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::kernel(data));
