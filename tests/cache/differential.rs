//! The same commands to `imgcached` and to stock memcached: the same replies.
//!
//! CAS values are counted by each in its own way: in replies they are numbered in the order in which
//! they are first seen, in requests the server's own is put in. Times may differ by the second in
//! which they are asked for. A number that has become shorter is padded by memcached. All else is
//! compared byte by byte.

use std::collections::HashMap;
use std::net::TcpStream;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::client::Client;
use super::node::{Memcached, Node};

/// Scripts, and commands in each.
const SCRIPTS: u32 = 400;
const COMMANDS: usize = 60;
/// Stands for the CAS value that the server told last.
const LAST_CAS: &str = "@cas@";

/// One of the two servers, in a script.
struct Side {
    client: Client<TcpStream>,
    seen: HashMap<u64, usize>,
    last_cas: u64,
}

impl Side {
    fn new(mut client: Client<TcpStream>) -> Self {
        // C1 in scripts is a value that an item had long ago.
        client.expect("set a 0 0 0\r\n\r\n".repeat(3), &"STORED\r\n".repeat(3));
        client.expect("flush_all\r\n", "OK\r\n");
        Self { client, seen: HashMap::new(), last_cas: 0 }
    }

    fn ask(&mut self, request: &str) -> String {
        let request = request.replace(LAST_CAS, &self.last_cas.to_string());
        let answer = self.client.ask_bytes(request.as_bytes());
        self.normalise(&answer)
    }

    fn cas(&mut self, value: u64) -> String {
        if value == 0 {
            // Of what was not stored.
            return "none".to_owned();
        }
        self.last_cas = value;
        let next = self.seen.len();
        format!("#{}", self.seen.entry(value).or_insert(next))
    }

    fn normalise(&mut self, mut answer: &[u8]) -> String {
        let mut out = String::new();
        while !answer.is_empty() {
            let end = answer.windows(2).position(|pair| pair == b"\r\n").expect("a whole line");
            let line = String::from_utf8_lossy(&answer[..end]).into_owned();
            answer = &answer[end + 2..];
            let words: Vec<&str> = line.split(' ').collect();
            let length = match words[..] {
                ["VALUE", _, _, length, ..] | ["VA", length, ..] => Some(length),
                _ => None,
            };
            let data = length.map(|length| {
                let (data, rest) = answer.split_at(length.parse().unwrap());
                answer = rest.strip_prefix(b"\r\n").expect("the end of a data block");
                trim_number(String::from_utf8_lossy(data).into_owned())
            });
            let words: Vec<String> = words
                .iter()
                .enumerate()
                .map(|(index, word)| self.word(&words, index, word, data.as_deref()))
                .collect();
            out.push_str(&words.join(" "));
            out.push('\n');
            if let Some(data) = data {
                out.push_str(&data);
                out.push('\n');
            }
        }
        out
    }

    fn word(&mut self, line: &[&str], index: usize, word: &str, data: Option<&str>) -> String {
        let length = |data: &str| data.len().to_string();
        match (line[0], index) {
            ("VALUE", 3) | ("VA", 1) => length(data.unwrap_or_default()),
            ("VALUE", 4) => self.cas(word.parse().unwrap()),
            ("ME", 2..) => match word.split_once('=') {
                Some(("cas", cas)) => format!("cas={}", self.cas(cas.parse().unwrap())),
                Some((name @ ("exp" | "la"), time)) => format!("{name}={}", rounded(time)),
                // Of the memory of each.
                Some(("cls" | "size", _)) => String::new(),
                _ => word.to_owned(),
            },
            ("VA" | "HD" | "EX" | "NF" | "NS", 1..) => {
                let (flag, value) = word.split_at(word.len().min(1));
                match flag {
                    "c" => format!("c{}", self.cas(value.parse().unwrap())),
                    "t" => format!("t{}", rounded(value)),
                    // Less than the time that a script takes.
                    "l" => format!("l{}", rounded(value)),
                    _ => word.to_owned(),
                }
            }
            _ => word.to_owned(),
        }
    }
}

/// Times are multiples of 100 seconds in all scripts.
fn rounded(seconds: &str) -> i64 {
    let seconds: i64 = seconds.parse().unwrap();
    // What has expired has less than none left, in 32 bits without a sign.
    let seconds = if seconds > i64::from(i32::MAX) { 0 } else { seconds };
    (seconds + 50).div_euclid(100) * 100 - i64::from(seconds == -1)
}

fn trim_number(data: String) -> String {
    let number = data.trim_end_matches(' ');
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { number.to_owned() } else { data }
}

/// Keys of texts; those of numbers are others, so that padding stays where it is.
fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        20 => "[a-e]",
        1 => Just("k".repeat(250)),
    ]
}

fn number_key() -> impl Strategy<Value = String> {
    "n[1-3]"
}

fn time() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        4 => Just("0"),
        2 => Just("1000"),
        1 => Just("50000"),
        1 => Just("-1"),
        1 => Just("2592000"),
        1 => Just("2592001"),
    ]
}

fn quiet() -> impl Strategy<Value = &'static str> {
    prop_oneof![6 => Just(""), 1 => Just(" noreply"), 1 => Just(" nope")]
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[ -~]{0,12}", 1 => "[0-9]{1,3}", 1 => "[a-z]{600,3000}"]
}

fn meta_flags(own: &'static str) -> impl Strategy<Value = String> {
    let flag = prop_oneof![
        6 => own,
        2 => time().prop_map(|time| format!("T{time}")),
        1 => "N(0|1000|50000)",
        1 => Just("R2000".to_owned()),
        1 => Just("R0".to_owned()),
        2 => Just(format!("C{LAST_CAS}")),
        1 => Just("C1".to_owned()),
        // A longer one is refused by memcached when the command is already carried out.
        1 => "O[a-z]{0,31}",
        1 => Just("I".to_owned()),
        1 => Just("q".to_owned()),
        1 => "[PL][a-z]{0,3}",
        1 => "F[0-9]{1,3}",
        1 => "D[0-9]{1,3}",
        1 => "J[0-9]{1,3}",
        1 => "M[EAPRSID+-]",
        // E is of later versions.
        1 => "[a-zA-DG-Z0-9!]{1,2}",
    ];
    vec(flag, 0..5).prop_map(|mut flags| {
        // R is judged here by the time before T, there by their order; and of N and T the last one
        // is told here, there each until the next.
        if flags.iter().any(|flag| flag.starts_with('T')) {
            flags.retain(|flag| !flag.starts_with(['R', 'N']));
        }
        flags.join(" ")
    })
}

fn command() -> impl Strategy<Value = String> {
    let store = ("set|add|replace|append|prepend", key(), "[0-9]{1,4}", time(), value(), quiet())
        .prop_map(|(name, key, flags, time, value, quiet)| {
            format!("{name} {key} {flags} {time} {}{quiet}\r\n{value}\r\n", value.len())
        });
    let cas = (key(), time(), value(), quiet()).prop_map(|(key, time, value, quiet)| {
        format!("cas {key} 1 {time} {} {LAST_CAS}{quiet}\r\n{value}\r\n", value.len())
    });
    let meta_set = (key(), value(), meta_flags("[ckO]"))
        .prop_map(|(key, value, flags)| format!("ms {key} {} {flags}\r\n{value}\r\n", value.len()));
    let numbers = prop_oneof![
        (number_key(), 0..2000_u32).prop_map(|(key, number)| {
            let number = number.to_string();
            format!("set {key} 0 0 {}\r\n{number}\r\n", number.len())
        }),
        ("incr|decr", number_key(), "[0-9]{1,4}|18446744073709551615|x|-1", quiet())
            .prop_map(|(name, key, delta, quiet)| format!("{name} {key} {delta}{quiet}\r\n")),
        (number_key(), meta_flags("[vtckq]")).prop_map(|(key, flags)| {
            // With T, memcached may touch the item that it has just replaced.
            format!("ma {key} {}\r\n", flags.replace('T', "P"))
        }),
        number_key().prop_map(|key| format!("gets {key}\r\n")),
        number_key().prop_map(|key| format!("mg {key} v t c\r\n")),
        // Whether a stale number stays so depends on its length there.
        number_key().prop_map(|key| format!("md {key}\r\n")),
    ];
    prop_oneof![
        4 => store,
        2 => cas,
        3 => meta_set,
        3 => ("get|gets", vec(key(), 0..4)).prop_map(|(name, keys)| format!("{name} {}\r\n", keys.join(" "))),
        2 => ("gat|gats", time(), vec(key(), 0..3))
            .prop_map(|(name, time, keys)| format!("{name} {time} {}\r\n", keys.join(" "))),
        2 => (key(), quiet()).prop_map(|(key, quiet)| format!("delete {key}{quiet}\r\n")),
        1 => (key(), time(), quiet()).prop_map(|(key, time, quiet)| format!("touch {key} {time}{quiet}\r\n")),
        6 => (key(), meta_flags("[cfhklqstuv]")).prop_map(|(key, flags)| format!("mg {key} {flags}\r\n")),
        2 => (key(), meta_flags("[kO]")).prop_map(|(key, flags)| format!("md {key} {flags}\r\n")),
        1 => key().prop_map(|key| format!("me {key}\r\n")),
        6 => numbers,
        1 => "[xyz][a-z]{0,6}( [a-z0-9]{1,4}){0,6}\r\n",
        // Too few words, too many, wrong ones.
        2 => "(gets?|gats?|incr|decr|touch|delete|cas|m[gdaex]|verbosity)( [a-c0-9]{1,2}){0,4}\r\n",
        1 => Just("verbosity 1\r\n".to_owned()),
    ]
}

#[test]
fn random_scripts_are_answered_alike() {
    let (node, memcached) = (Node::start(), Memcached::start());
    let config = Config { cases: SCRIPTS, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&vec(command(), 1..COMMANDS), |script| {
        let mut ours = Side::new(node.connect());
        let mut theirs = Side::new(memcached.connect());
        for command in &script {
            let (our, their) = (ours.ask(command), theirs.ask(command));
            prop_assert_eq!(our, their, "to {:?}", command);
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn pipelined_scripts_are_answered_alike() {
    let (node, memcached) = (Node::start(), Memcached::start());
    let config = Config { cases: SCRIPTS / 4, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&vec(command(), 1..COMMANDS * 4), |script| {
        let mut ours = Side::new(node.connect());
        let mut theirs = Side::new(memcached.connect());
        // Never told by anybody: the same for both.
        let script = script.concat().replace(LAST_CAS, "999999999");
        let (our, their) = (ours.ask(&script), theirs.ask(&script));
        for (number, (our, their)) in our.lines().zip(their.lines()).enumerate() {
            prop_assert_eq!(our, their, "line {}", number);
        }
        prop_assert_eq!(our.len(), their.len());
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
