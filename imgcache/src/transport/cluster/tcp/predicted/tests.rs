//! Answers in any mixture, cut anywhere, against what was asked for; and peers that lie.

use proptest::prelude::*;

use super::*;

/// A stream that gives what it has in parts of these lengths, over and over.
struct Peer {
    bytes: Vec<u8>,
    at: usize,
    cuts: Vec<usize>,
    reads: usize,
}

impl Peer {
    fn new(bytes: Vec<u8>, cuts: &[usize]) -> Self {
        Self { bytes, at: 0, cuts: cuts.to_vec(), reads: 0 }
    }
}

impl Read for Peer {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(buffer)])
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> std::io::Result<usize> {
        let limit = self.cuts[self.reads % self.cuts.len()];
        self.reads += 1;
        let mut given = 0;
        for buffer in buffers {
            let part = buffer.len().min(limit - given).min(self.bytes.len() - self.at);
            buffer[..part].copy_from_slice(&self.bytes[self.at..self.at + part]);
            self.at += part;
            given += part;
        }
        Ok(given)
    }
}

/// What a node says to one get.
#[derive(Debug, Clone)]
enum Said {
    Value(Vec<u8>),
    /// The right value, with something in its header that nobody asked for.
    Adorned(Vec<u8>),
    Longer(usize),
    Miss,
    BareMiss,
    Claimed,
    Refusal,
}

impl Said {
    fn bytes(&self, opaque: u64) -> Vec<u8> {
        let value = |value: &[u8], flags: &str| {
            let header = format!("VA {} {flags}O{opaque}\r\n", value.len());
            [header.as_bytes(), value, b"\r\n"].concat()
        };
        match self {
            Self::Value(bytes) => value(bytes, ""),
            Self::Adorned(bytes) => value(bytes, "X "),
            Self::Longer(length) => value(&vec![b'\n'; *length], ""),
            Self::Miss => format!("EN O{opaque}\r\n").into_bytes(),
            Self::BareMiss => b"EN\r\n".to_vec(),
            Self::Claimed => value(b"", "Z "),
            Self::Refusal => b"SERVER_ERROR out of memory\r\n".to_vec(),
        }
    }

    fn answer(&self, wanted: usize) -> Answer {
        match self {
            Self::Value(bytes) | Self::Adorned(bytes) if bytes.len() == wanted => Answer::Hit,
            Self::Value(bytes) | Self::Adorned(bytes) => {
                Answer::Length(u64::try_from(bytes.len()).unwrap())
            }
            Self::Longer(length) => Answer::Length(u64::try_from(*length).unwrap()),
            Self::Miss | Self::BareMiss => Answer::Miss,
            Self::Claimed => Answer::Claimed,
            Self::Refusal => Answer::Refused("SERVER_ERROR out of memory".into()),
        }
    }
}

/// What each get was told, with its buffer.
type Told = Vec<(usize, Answer, Vec<u8>)>;

/// Lets `said` be received; returns the answers with the buffers of hits, and how it ended.
fn receive(lengths: &[usize], peer: &mut Peer) -> (Told, Result<(), NodeError>) {
    let mut memory: Vec<Vec<u8>> = lengths.iter().map(|length| vec![0xee; *length]).collect();
    let mut pending: VecDeque<_> = memory
        .iter_mut()
        .enumerate()
        .map(|(n, buffer)| Pending::new(n, buffer, u64::try_from(n).unwrap() + 95))
        .collect();
    let mut receiver = Receiver::default();
    let mut answers = Vec::new();
    while !pending.is_empty() {
        let result = receiver.receive(peer, &mut pending, |one, answer| {
            answers.push((one.tag, answer, one.buffer.to_vec()));
        });
        // What is not answered is pending still, whatever has happened.
        assert_eq!(answers.len() + pending.len(), lengths.len());
        if result.is_err() {
            return (answers, result);
        }
    }
    assert!(receiver.is_idle());
    (answers, Ok(()))
}

fn said() -> impl Strategy<Value = (usize, Said)> {
    (1usize..3000).prop_flat_map(|wanted| {
        let value = proptest::collection::vec(any::<u8>(), wanted);
        let short = proptest::collection::vec(any::<u8>(), 1..wanted.max(2));
        let said = prop_oneof![
            6 => value.clone().prop_map(Said::Value),
            1 => value.prop_map(Said::Adorned),
            1 => short.prop_map(Said::Value),
            1 => (wanted + 1..9000).prop_map(Said::Longer),
            1 => Just(Said::Miss),
            1 => Just(Said::BareMiss),
            1 => Just(Said::Claimed),
            1 => Just(Said::Refusal),
        ];
        (Just(wanted), said)
    })
}

proptest! {
    #[test]
    fn any_mixture_in_any_parts_is_told_apart(
        script in proptest::collection::vec(said(), 1..20),
        cuts in proptest::collection::vec(1usize..5000, 1..8),
    ) {
        let mut bytes = Vec::new();
        for (opaque, (_, said)) in (95..).zip(&script) {
            bytes.extend(said.bytes(opaque));
        }
        let lengths: Vec<_> = script.iter().map(|(wanted, _)| *wanted).collect();
        let mut peer = Peer::new(bytes, &cuts);
        let (answers, result) = receive(&lengths, &mut peer);
        prop_assert!(result.is_ok(), "{result:?}");
        prop_assert_eq!(answers.len(), script.len());
        for ((tag, answer, buffer), (n, (wanted, said))) in
            answers.iter().zip(script.iter().enumerate())
        {
            prop_assert_eq!(*tag, n);
            prop_assert_eq!(answer, &said.answer(*wanted));
            if let (Answer::Hit, Said::Value(bytes) | Said::Adorned(bytes)) = (answer, said) {
                prop_assert_eq!(buffer, bytes);
            }
        }
        prop_assert_eq!(peer.at, peer.bytes.len());
    }

    #[test]
    fn garbage_is_an_error_and_no_more(
        bytes in proptest::collection::vec(any::<u8>(), 0..6000),
        cut in 1usize..6000,
        whole in any::<bool>(),
    ) {
        // Some of it behind a good answer.
        let good = if whole { Said::Value(vec![7; 10]).bytes(95) } else { Vec::new() };
        let mut peer = Peer::new([good, bytes].concat(), &[cut]);
        let (answers, result) = receive(&[10, 20, 30], &mut peer);
        prop_assert!(result.is_err() || answers.len() == 3);
    }
}

#[test]
fn a_peer_that_lies_is_found_out() {
    let fails = |bytes: &[u8], words: &str| {
        for cut in [1, 3, 10_000] {
            let (_, result) = receive(&[4, 4], &mut Peer::new(bytes.to_vec(), &[cut]));
            let error = result.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    };
    fails(b"", "closed the connection");
    fails(b"VA 4 O95\r\nab", "closed the connection");
    fails(b"VA 4 O95\r\nabcdefgh", "the end of a value");
    fails(b"VA 4 O96\r\nabcd\r\n", "VA 4 O96");
    fails(b"VA 99999999999 O95\r\n", "VA 99999999999");
    fails(b"VA -1 O95\r\n", "VA -1");
    fails(b"VA\r\n", "the answer to a get");
    fails(b"HD O95\r\n", "HD O95");
    fails(b"CLIENT_ERROR bad\r\n", "CLIENT_ERROR");
    fails(b"ERROR\r\n", "does not know the meta commands");
    fails(&vec![b'x'; 20_000], "a line of at most");
    fails(b"\xff\xfe\r\n", "the answer to a get");
    // More than was asked for, within what was read.
    let mut extra = b"VA 4 O95\r\nabcd\r\nEN\r\n".to_vec();
    extra.extend_from_slice(b"EN\r\n");
    let (answers, result) = receive(&[4, 4], &mut Peer::new(extra, &[100]));
    assert_eq!(answers.len(), 2);
    assert!(result.unwrap_err().to_string().contains("more than was asked for"));
}
