//! What clients and peers of an elastic service send: whatever is a frame is the same when it is sent on.
#![no_main]

use elastic::wire;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((header, body)) = data.split_first_chunk() else { return };
    let Ok((kind, length)) = wire::header(*header) else { return };
    let body = body.get(..length).unwrap_or(body);
    let Ok(frame) = wire::decode(kind, body.to_vec().into()) else { return };
    let encoded = wire::Encoded::new(&frame).pieces().concat();
    let (header, body) = encoded.split_first_chunk().expect("a frame has a header");
    let (kind, length) = wire::header(*header).expect("its own header is known");
    assert_eq!((length, wire::decode(kind, body.to_vec().into())), (body.len(), Ok(frame)));
});
