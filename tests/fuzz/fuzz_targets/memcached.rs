//! The memcached protocol: the stream in two splits gives the same steps, and what parses encodes to
//! something that parses to the same.
#![no_main]

use imgcache::protocol::command::Command;
use imgcache::protocol::{Decoder, Step};

/// What `stream` comes to when it arrives in pieces of `size` bytes.
fn run(stream: &[u8], size: usize) -> Vec<String> {
    let (mut decoder, mut input, mut steps) = (Decoder::default(), Vec::new(), Vec::new());
    // Bytes of a data block and its end that are still to come.
    let mut block = 0_usize;
    for piece in stream.chunks(size.max(1)) {
        input.extend_from_slice(piece);
        loop {
            let taken = block.min(input.len());
            input.drain(..taken);
            block -= taken;
            if block > 0 {
                break;
            }
            let consumed = match decoder.step(&input) {
                Step::More => break,
                Step::Skip(length) => length,
                Step::Command(length, command) => {
                    check(&command);
                    steps.push(format!("{command:?}"));
                    block = command.data().map_or(0, |data| data as usize + 2);
                    length
                }
                Step::Refused(length, refused) => {
                    steps.push(format!("{refused:?}"));
                    length
                }
                Step::Close(violation) => {
                    steps.push(format!("{violation:?}"));
                    return steps;
                }
            };
            assert!(consumed > 0 && consumed <= input.len());
            input.drain(..consumed);
        }
    }
    steps
}

fn check(command: &Command<'_>) {
    let mut once = Vec::new();
    command.encode(&mut once);
    let line = once.strip_suffix(b"\r\n").expect("a line has an end");
    let mut twice = Vec::new();
    Command::parse(line).expect("what is encoded parses").encode(&mut twice);
    assert_eq!(once, twice);
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&size, stream)) = data.split_first() else { return };
    assert_eq!(run(stream, stream.len()), run(stream, usize::from(size)));
});
