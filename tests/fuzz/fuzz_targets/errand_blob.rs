//! The state of a service that moves, as its host hands it over: whatever is one is the same when it is sent on.
#![no_main]

use continuation::errand::blob;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(all) = blob::decode(data) else { return };
    let parts = all.iter().map(|one| (&one.state, &one.continuation[..]));
    let bytes = blob::encode(parts).expect("what was decoded is not too much");
    assert_eq!(blob::decode(&bytes).expect("what was encoded is decoded"), all);
});
