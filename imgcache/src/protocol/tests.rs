//! Properties of the protocol: any split of a stream gives the same commands, what is encoded
//! parses to the same, nothing panics; and the edges of each command.

use proptest::collection::vec;
use proptest::prelude::*;

use super::command::{Command, Mode, Refused, StatsTopic};
use super::{Decoder, Expiry, MAX_KEYS_LINE, MAX_LINE, Refusal, Step, Violation};

/// What a whole stream comes to: commands as they would be sent again, with their data blocks,
/// and errors.
pub(super) fn run(pieces: &[&[u8]]) -> Vec<String> {
    let mut decoder = Decoder::default();
    let (mut input, mut events) = (Vec::new(), Vec::new());
    // Bytes of a data block and its end that are still to come.
    let mut block: Option<(usize, Vec<u8>)> = None;
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            if let Some((left, bytes)) = &mut block {
                let taken = input.len().min(*left);
                bytes.extend(input.drain(..taken));
                *left -= taken;
                if *left > 0 {
                    break;
                }
                if !bytes.ends_with(b"\r\n") && bytes.last() != Some(&b'\n') {
                    decoder.skip_line();
                }
                events.push(format!("block {:?}", block.take()));
                continue;
            }
            let consumed = match decoder.step(&input) {
                Step::More => break,
                Step::Skip(length) => {
                    assert!(length > 0);
                    length
                }
                Step::Command(length, command) => {
                    events.push(format!("{command:?}"));
                    block = command.data().map(|data| (data as usize + 2, Vec::new()));
                    length
                }
                Step::Refused(length, refused) => {
                    events.push(format!("{refused:?}"));
                    length
                }
                Step::Close(violation) => {
                    events.push(format!("{violation:?}"));
                    return events;
                }
            };
            input.drain(..consumed);
        }
    }
    events
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-zA-Z0-9/_:.-]{1,20}",
        1 => "[!-~]{1,250}",
        1 => "[!-~]{251,260}",
        1 => "[ -~\\x00-\\x1f]{0,8}",
    ]
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (0..20_u32).prop_map(|n| n.to_string()),
        1 => any::<u32>().prop_map(|n| n.to_string()),
        1 => any::<i64>().prop_map(|n| n.to_string()),
        1 => "[0-9a-f+-]{0,22}",
    ]
}

fn meta_flag() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[bcfhklqstuvIPL]",
        2 => ("[NTRFCEJD]", number()).prop_map(|(flag, number)| format!("{flag}{number}")),
        1 => "[OM][a-zA-Z0-9+-]{0,34}",
        1 => "[ -~]{0,3}",
    ]
}

/// One command, sound or not, with a data block that fits it or not.
pub(super) fn request() -> impl Strategy<Value = Vec<u8>> {
    let quiet = prop_oneof![3 => Just(""), 1 => Just(" noreply"), 1 => Just(" no")];
    let stored = prop_oneof![
        ("set|add|replace|append|prepend", key(), number(), number(), quiet.clone()).prop_map(
            |(name, key, flags, expiry, quiet)| (
                format!("{name} {key} {flags} {expiry}"),
                quiet.to_owned()
            )
        ),
        (key(), number(), number(), number(), quiet.clone()).prop_map(
            |(key, flags, expiry, cas, quiet)| (
                format!("cas {key} {flags} {expiry}"),
                format!(" {cas}{quiet}")
            )
        ),
        (key(), vec(meta_flag(), 0..20))
            .prop_map(|(key, flags)| (format!("ms {key}"), format!(" {}", flags.join(" ")))),
        ("[0-9a-f]{15,16}", number())
            .prop_map(|(id, ttl)| (format!("lease {id} {ttl}"), String::new())),
        "[0-9a-f]{64}".prop_map(|id| (format!("pin {id}"), String::new())),
        "[ -~]{0,20}".prop_map(|endpoint| ("push".into(), format!(" {endpoint}"))),
    ];
    let with_data = (stored, vec(any::<u8>(), 0..40), -2..3_i64, any::<bool>()).prop_map(
        |((front, behind), data, wrong, is_wrong)| {
            let length = i64::try_from(data.len()).unwrap() + if is_wrong { wrong } else { 0 };
            let mut request = format!("{front} {length}{behind}\r\n").into_bytes();
            request.extend_from_slice(&data);
            request.extend_from_slice(b"\r\n");
            request
        },
    );
    let plain = prop_oneof![
        ("get|gets|gat 5|gats 0|bget|delete|mg|me", vec(key(), 0..4))
            .prop_map(|(name, keys)| format!("{name} {}", keys.join(" "))),
        ("incr|decr|touch", key(), number(), quiet)
            .prop_map(|(name, key, number, quiet)| format!("{name} {key} {number}{quiet}")),
        ("mg|md|ma|me", key(), vec(meta_flag(), 0..20))
            .prop_map(|(name, key, flags)| format!("{name} {key} {}", flags.join(" "))),
        ("flush_all|verbosity|stats|version|mn|release|pushed", vec(number(), 0..3))
            .prop_map(|(name, words)| format!("{name} {}", words.join(" "))),
        "[ -~]{0,40}",
    ]
    .prop_flat_map(|text| {
        prop_oneof![3 => Just("\r\n"), 1 => Just("\n")]
            .prop_map(move |end| format!("{text}{end}").into_bytes())
    });
    prop_oneof![2 => with_data, 3 => plain]
}

/// Cuts `bytes` at `cuts`, taken modulo its length.
fn split<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

proptest! {
    #[test]
    fn any_split_gives_the_same_commands(
        requests in vec(request(), 1..8),
        cuts in vec(any::<usize>(), 0..12),
    ) {
        let stream = requests.concat();
        prop_assert_eq!(run(&split(&stream, &cuts)), run(&[&stream]));
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        prop_assert_eq!(run(&bytes), run(&[&stream]));
    }

    #[test]
    fn what_is_encoded_parses_to_the_same(request in request()) {
        let line = request.split(|&byte| byte == b'\n').next().unwrap();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Ok(command) = Command::parse(line) {
            let mut encoded = Vec::new();
            command.encode(&mut encoded);
            let again = encoded.strip_suffix(b"\r\n").unwrap();
            // What was between the words does not count: only what is sent is compared.
            let mut twice = Vec::new();
            Command::parse(again).unwrap().encode(&mut twice);
            prop_assert_eq!(encoded, twice);
        }
    }

    #[test]
    fn no_input_panics(input in vec(any::<u8>(), 0..400)) {
        run(&[&input]);
    }
}

fn parse(line: &str) -> Command<'_> {
    Command::parse(line.as_bytes()).unwrap_or_else(|refused| panic!("{line}: {refused:?}"))
}

fn refused(line: &str) -> Refused {
    Command::parse(line.as_bytes()).expect_err(line)
}

#[test]
fn words_decide_what_is_unknown() {
    for line in [
        "",
        " ",
        "x",
        "get",
        "get ",
        "gat",
        "set a 0 0",
        "set a 0 0 1 noreply x",
        "cas a 0 0 1",
        "incr a",
        "delete",
        "delete a b c d",
        "touch a",
        "verbosity",
        "verbosity 1 2 3",
        "GET a",
        "flush_all 1 2 3",
        "mg",
        "md",
        "ma",
        "ms",
        "mx a",
        "lease 0 0",
        "slabs",
        "lru mode flat",
        "stats nothing",
        "unpin a b",
        "quite",
    ] {
        assert_eq!(refused(line).refusal, Refusal::Unknown, "{line}");
    }
    assert_eq!(refused("me").refusal, Refusal::BadFormat);
    assert_eq!(parse("stats"), Command::Stats(StatsTopic::General));
    assert_eq!(parse("version 1"), Command::Version);
    assert_eq!(parse("  quit"), Command::Quit);
}

#[test]
fn errors_are_quiet_where_the_client_said_so() {
    let long = "k".repeat(251);
    let refusal = refused(&format!("set {long} 0 0 7 noreply"));
    assert_eq!((refusal.refusal, refusal.quiet, refusal.data), (Refusal::BadFormat, true, Some(7)));
    let refusal = refused("set k 0 0 x noreply");
    assert_eq!((refusal.quiet, refusal.data), (true, None));
    assert!(!refused("set k 0 0 x").quiet);
    assert!(refused("incr k x noreply").quiet);
    assert!(refused("verbosity noreply").quiet);
    assert!(refused("touch k noreply").quiet);
    assert_eq!(refused("delete k 1 noreply").refusal, Refusal::DeleteUsage);
}

#[test]
fn lengths_and_numbers_are_not_cut_off() {
    for length in ["-1", "2147483646", "4294967299", "99999999999999999999"] {
        assert_eq!(refused(&format!("set k 0 0 {length}")).refusal, Refusal::BadFormat);
        assert_eq!(refused(&format!("ms k {length}")).refusal, Refusal::BadFormat);
    }
    assert_eq!(parse("set k 0 0 2147483645").data(), Some(2_147_483_645));
    assert_eq!(refused("set k 4294967296 0 1").refusal, Refusal::BadFormat);
}

#[test]
fn expiration_times_are_relative_up_to_30_days() {
    assert_eq!(Expiry::from_number(-1), Expiry::Past);
    assert_eq!(Expiry::from_number(2_592_000), Expiry::In(2_592_000));
    assert_eq!(Expiry::from_number(2_592_001), Expiry::At(2_592_001));
    assert_eq!(Expiry::from_number(i64::MAX), Expiry::At(u32::MAX));
    assert_eq!(Expiry::In(10).unix_time(1000), 1010);
    assert_eq!(Expiry::Never.unix_time(1000), 0);
    assert_ne!(Expiry::Past.unix_time(1000), 0);
}

#[test]
fn flags_of_meta_commands() {
    for (line, refusal) in [
        ("mg k s s", Refusal::DuplicateFlag),
        ("mg k \u{e9}", Refusal::DuplicateFlag),
        ("mg k S1", Refusal::UnknownFlag),
        ("mg k x", Refusal::UnknownFlag),
        ("ms k 1 E", Refusal::BadToken),
        ("mg k Tx", Refusal::BadToken),
        ("mg k Fx", Refusal::BadFormat),
        ("mg k M", Refusal::ModeLength),
        ("mg not-base64! b", Refusal::BadKeyEncoding),
        ("mg k O12345678901234567890123456789012", Refusal::OpaqueTooLong),
        ("mg k a b c d e f g h i j k l m n o p q r", Refusal::TooManyGetFlags),
        ("ms k 1 a b c d e f g h i j k l m n o p q", Refusal::TooManyFlags),
        ("ms k", Refusal::BadFormat),
        ("ms k 1 MX", Refusal::SetMode),
        ("md k s s", Refusal::BadFlags),
        ("ma k MX", Refusal::ArithmeticMode),
        ("ma k Dx", Refusal::BadFlags),
    ] {
        assert_eq!(refused(line).refusal, refusal, "{line}");
    }
    assert_eq!(refused("ms k 5 s s").data, Some(5));
    let Command::MetaSet(meta, mode, data) = parse("ms Zm9v 3 b T30 F7 ME O123 I") else {
        panic!("not ms");
    };
    assert_eq!((&*meta.key.bytes(), mode, data), (&b"foo"[..], Mode::Add, 3));
    assert_eq!((meta.touch, meta.client_flags), (Some(Expiry::In(30)), 7));
    assert!(meta.invalidate);
    let flags: Vec<u8> = meta.flags().map(|(flag, _)| flag).collect();
    assert_eq!(flags, b"bTFMOI");
}

#[test]
fn lines_have_a_limit() {
    let line = |length: usize| [vec![b'x'; length], b"\r\n".to_vec()].concat();
    assert!(run(&[&line(MAX_LINE)])[0].contains("Unknown"));
    assert_eq!(run(&[&line(MAX_LINE + 1)]), ["LineTooLong"]);
    assert_eq!(run(&[&vec![b'x'; MAX_LINE + 1]]), ["LineTooLong"]);
    assert_eq!(run(&[&vec![b'x'; MAX_LINE]]), [""; 0]);
    // The end of the line is no part of it, even while only half of it has come.
    let (cut, whole) = (line(MAX_LINE), line(MAX_LINE));
    assert!(run(&[&cut[..=MAX_LINE], b"\n"]) == run(&[&whole]));

    let get = ["get", &" key".repeat(1000), "\r\n"].concat();
    assert!(run(&[get.as_bytes()])[0].starts_with("Get"));
    let get = ["gats 1", &" k".repeat(MAX_KEYS_LINE / 2)].concat();
    assert_eq!(run(&[get.as_bytes()]), ["LineTooLong"]);
    let set = ["set", &" key".repeat(1000), "\r\n"].concat();
    assert_eq!(run(&[set.as_bytes()]), ["LineTooLong"]);
}

#[test]
fn other_protocols_are_not_spoken() {
    assert_eq!(run(&[b"\x80\x0b\0\0"]), ["Binary"]);
    assert_eq!(run(&[b"POST / HTTP/1.1\r\nset a 0 0 1\r\n1\r\n"]), ["Http"]);
    // Only the first byte of a connection can be that of the binary protocol.
    assert_eq!(run(&[b"mn\r\n\x80\r\n"]).len(), 2);
}

#[test]
fn what_is_skipped_is_no_command() {
    let long = "k".repeat(251);
    let stream = format!("set {long} 0 0 8\r\nquit\r\nq\n\r\nmn\r\n");
    let events = run(&[stream.as_bytes()]);
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!(events[1], "MetaNoop");

    let mut decoder = Decoder::default();
    decoder.skip_line();
    assert!(!decoder.is_between_commands());
    assert_eq!(decoder.step(b"left over"), Step::Skip(9));
    assert_eq!(decoder.step(b"\nmn\r\n"), Step::Skip(1));
    assert_eq!(decoder.step(b"mn\r\n"), Step::Command(4, Command::MetaNoop));
    assert_eq!(decoder.step(&[b'x'; MAX_LINE + 1]), Step::Close(Violation::LineTooLong));
}
