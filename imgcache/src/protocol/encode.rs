//! Commands as a client sends them.

use std::io::Write;

use super::command::{Command, Direction, Expiry, Get, Meta, Mode, StatsTopic};

/// Formats into `out`, which as memory cannot fail.
macro_rules! put {
    ($out:expr, $($arguments:tt)*) => {{
        let _ = write!($out, $($arguments)*);
    }};
}

fn noreply(quiet: bool) -> &'static str {
    if quiet { " noreply" } else { "" }
}

/// The hexadecimal digits of an image's id.
fn hex(image: &[u8; 32]) -> impl std::fmt::Display {
    blake3::Hash::from_bytes(*image).to_hex()
}

fn put_get(out: &mut Vec<u8>, get: &Get<'_>) {
    let name = match (get.touch.is_some(), get.cas) {
        (false, false) => "get",
        (false, true) => "gets",
        (true, false) => "gat",
        (true, true) => "gats",
    };
    out.extend_from_slice(name.as_bytes());
    if let Some(expiry) = get.touch {
        put!(out, " {}", expiry.number());
    }
    put_words(out, get.keys());
}

fn put_words<'a>(out: &mut Vec<u8>, words: impl Iterator<Item = &'a [u8]>) {
    for word in words {
        out.push(b' ');
        out.extend_from_slice(word);
    }
}

fn put_meta(out: &mut Vec<u8>, name: &str, meta: &Meta<'_>, data: Option<u32>) {
    out.extend_from_slice(name.as_bytes());
    put_words(out, std::iter::once(meta.key.word));
    if let Some(data) = data {
        put!(out, " {data}");
    }
    for (flag, value) in meta.flags() {
        out.extend_from_slice(&[b' ', flag]);
        out.extend_from_slice(value);
    }
}

fn put_store(out: &mut Vec<u8>, store: &super::command::Store<'_>) {
    let name = match store.mode {
        Mode::Set => "set",
        Mode::Add => "add",
        Mode::Replace => "replace",
        Mode::Append => "append",
        Mode::Prepend => "prepend",
        Mode::Cas => "cas",
    };
    out.extend_from_slice(name.as_bytes());
    put_words(out, std::iter::once(store.key));
    put!(out, " {} {} {}", store.flags, store.expiry.number(), store.data);
    if store.mode == Mode::Cas {
        put!(out, " {}", store.cas);
    }
    out.extend_from_slice(noreply(store.quiet).as_bytes());
}

impl Command<'_> {
    /// Appends the command line to `out`, with its end. A data block is the caller's to append,
    /// with an end of its own.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Get(get) => put_get(out, get),
            Self::Store(store) => put_store(out, store),
            Self::Delete(delete) => {
                out.extend_from_slice(b"delete");
                put_words(out, std::iter::once(delete.key));
                out.extend_from_slice(noreply(delete.quiet).as_bytes());
            }
            Self::Arithmetic(arithmetic) => {
                out.extend_from_slice(match arithmetic.direction {
                    Direction::Increment => b"incr",
                    Direction::Decrement => b"decr",
                });
                put_words(out, std::iter::once(arithmetic.key));
                put!(out, " {}{}", arithmetic.delta, noreply(arithmetic.quiet));
            }
            Self::Touch(touch) => {
                out.extend_from_slice(b"touch");
                put_words(out, std::iter::once(touch.key));
                put!(out, " {}{}", touch.expiry.number(), noreply(touch.quiet));
            }
            Self::MetaGet(meta) => put_meta(out, "mg", meta, None),
            // The mode is one of the flags.
            Self::MetaSet(meta, _, data) => put_meta(out, "ms", meta, Some(*data)),
            Self::MetaDelete(meta) => put_meta(out, "md", meta, None),
            Self::MetaArithmetic(meta, _) => put_meta(out, "ma", meta, None),
            Self::MetaDebug(key) => {
                out.extend_from_slice(b"me");
                put_words(out, std::iter::once(key.word));
                out.extend_from_slice(if key.is_binary { b" b" } else { b"" });
            }
            Self::MetaNoop => out.extend_from_slice(b"mn"),
            Self::FlushAll { delay, quiet } => {
                out.extend_from_slice(b"flush_all");
                if *delay != Expiry::Never {
                    put!(out, " {}", delay.number());
                }
                out.extend_from_slice(noreply(*quiet).as_bytes());
            }
            Self::Stats(topic) => {
                let word = StatsTopic::ALL.iter().find(|(known, _)| known == topic);
                put!(out, "stats {}", word.map_or("", |(_, word)| word));
            }
            Self::Version => out.extend_from_slice(b"version"),
            Self::Verbosity { level, quiet } => put!(out, "verbosity {level}{}", noreply(*quiet)),
            Self::Quit => out.extend_from_slice(b"quit"),
            Self::Lease { id, ttl, data } => put!(out, "lease {id:016x} {ttl} {data}"),
            Self::Release { id, bytes_read } => put!(out, "release {id:016x} {bytes_read}"),
            Self::Pin { image, data } => put!(out, "pin {} {data}", hex(image)),
            Self::Unpin { image } => put!(out, "unpin {}", hex(image)),
            Self::Rdma { lease, endpoint } => put!(out, "rdma {lease:016x} {endpoint}"),
            Self::Push { data, endpoint } => put!(out, "push {data} {endpoint}"),
            Self::Pushed { id, written } => put!(out, "pushed {id:016x} {written}"),
            Self::Share => put!(out, "share"),
        }
        out.extend_from_slice(b"\r\n");
    }
}
