//! The state of a TCP connection, as another machine sent it: whatever is one is the same when it is sent on.
#![no_main]

use continuation::state::ConnectionState;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(state) = ConnectionState::decode(data) else { return };
    let bytes = state.encode();
    assert_eq!(ConnectionState::decode(&bytes).as_ref(), Ok(&state));
});
