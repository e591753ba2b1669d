//! Kernels that have the marks of a bzImage: boot header, payload, what the payload unpacks to.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut file = data.to_vec();
    // The marks are set so that no input is spent on finding them.
    if let Some(marks) = file.get_mut(0x1fe..0x206) {
        marks[..2].copy_from_slice(&[0x55, 0xaa]);
        marks[4..].copy_from_slice(b"HdrS");
    }
    fuzz::kernel(&file);
});
