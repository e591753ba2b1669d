//! What the guest has said of itself: kept for the report, and written to a file as it comes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

use devices::control::{Rate, TokenBucket};
use serde::Serialize;

/// Marks that are kept, at most.
const MAX_MARKS: usize = 64;
/// Metrics that are kept, at most.
const MAX_METRICS: usize = 256;
/// How many messages of the guest go to the VMM's log; those beyond are in the file alone.
const LOG_RATE: Rate = Rate { per_second: 10, burst: 100 };
/// Bytes of messages that go there, at most.
const MAX_LOG_BYTES: usize = 1 << 20;
/// Bytes that are written to the file, at most.
const MAX_FILE_BYTES: usize = 4 << 20;

/// Something that the guest said.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// How long it had run.
    pub at: Duration,
    /// What it said.
    pub what: What,
}

/// What a guest can say.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum What {
    /// Its first instruction; said by the VMM.
    Entry,
    /// A mark for tracing its boot.
    Mark {
        /// Its name.
        name: String,
    },
    /// It does what it was booted for.
    Ready {
        /// In words.
        message: String,
    },
    /// It is alive.
    Heartbeat,
    /// Values of metrics.
    Metrics {
        /// Names and values.
        values: Vec<(String, u64)>,
    },
    /// A message.
    Log {
        /// How important it is.
        level: Level,
        /// The message, as the guest wrote it.
        message: String,
    },
}

/// How important a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something failed.
    Error,
    /// Something may fail.
    Warning,
    /// Something happened.
    Info,
    /// For who looks for a fault.
    Debug,
}

impl Level {
    /// The level of this number, as guests write it.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::Error, Self::Warning, Self::Info, Self::Debug]
            .get(usize::try_from(number).ok()?.checked_sub(1)?)
            .copied()
    }
}

impl From<Level> for log::Level {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => Self::Error,
            Level::Warning => Self::Warn,
            Level::Info => Self::Info,
            Level::Debug => Self::Debug,
        }
    }
}

/// A mark, and when it was made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mark {
    /// Its name.
    pub name: String,
    /// Milliseconds since the guest's first instruction.
    pub ms: f64,
}

/// All that the guest has said, for the report.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Said {
    /// Its marks, the first 64 of them.
    pub marks: Vec<Mark>,
    /// Milliseconds from its first instruction until it first said that it is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_ms: Option<f64>,
    /// How often it said that it is alive.
    pub heartbeats: u64,
    /// When it last did, in milliseconds from its first instruction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heartbeat_ms: Option<f64>,
    /// The last values of its metrics.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, u64>,
    /// How many messages it logged.
    pub messages: u64,
    /// How many of them came too fast for the VMM's log.
    pub messages_dropped: u64,
}

/// A line of the file.
#[derive(Serialize)]
struct Line<'a> {
    ms: f64,
    #[serde(flatten)]
    what: &'a What,
}

/// Keeps what the guest says.
#[derive(Debug)]
pub struct Journal {
    said: Said,
    file: Option<File>,
    written: usize,
    log: TokenBucket,
    logged: usize,
}

impl Journal {
    /// An empty journal, which is written to `file` as well.
    pub fn new(file: Option<File>) -> Self {
        Self { said: Said::default(), file, written: 0, log: TokenBucket::new(LOG_RATE), logged: 0 }
    }

    /// Notes what was said.
    pub fn add(&mut self, note: Note) {
        let ms = milliseconds(note.at);
        self.write(ms, &note.what);
        let said = &mut self.said;
        match note.what {
            What::Entry => {}
            What::Mark { name } => {
                if said.marks.len() < MAX_MARKS {
                    said.marks.push(Mark { name, ms });
                }
            }
            What::Ready { .. } => _ = said.ready_ms.get_or_insert(ms),
            What::Heartbeat => {
                said.heartbeats = said.heartbeats.saturating_add(1);
                said.last_heartbeat_ms = Some(ms);
            }
            What::Metrics { values } => {
                for (name, value) in values {
                    if said.metrics.len() < MAX_METRICS || said.metrics.contains_key(&name) {
                        said.metrics.insert(name, value);
                    }
                }
            }
            What::Log { level, message } => {
                said.messages = said.messages.saturating_add(1);
                // What a terminal would act on is shown as what it is.
                let shown = message.escape_debug().to_string();
                if self.logged <= MAX_LOG_BYTES && self.log.take(note.at) {
                    self.logged += shown.len();
                    log::log!(level.into(), "guest: {shown}");
                } else {
                    said.messages_dropped = said.messages_dropped.saturating_add(1);
                }
            }
        }
    }

    /// All that was said.
    pub fn into_said(self) -> Said {
        self.said
    }

    fn write(&mut self, ms: f64, what: &What) {
        let Some(file) = &mut self.file else { return };
        let Ok(mut line) = serde_json::to_vec(&Line { ms, what }) else { return };
        line.push(b'\n');
        self.written = self.written.saturating_add(line.len());
        let result = if self.written > MAX_FILE_BYTES {
            Err(format!("{MAX_FILE_BYTES} bytes are enough"))
        } else {
            file.write_all(&line).map_err(|error| error.to_string())
        };
        if let Err(reason) = result {
            log::warn!("events of the guest are no longer written: {reason}");
            self.file = None;
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    fn note(ms: u64, what: What) -> Note {
        Note { at: Duration::from_millis(ms), what }
    }

    #[test]
    fn what_was_said_is_in_the_report_and_in_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        let mut journal = Journal::new(Some(file.try_clone().unwrap()));
        let values = vec![("load".to_owned(), 3)];
        for (ms, what) in [
            (5, What::Mark { name: "init".into() }),
            (7, What::Ready { message: "serving".into() }),
            (9, What::Ready { message: "again".into() }),
            (10, What::Heartbeat),
            (11, What::Metrics { values }),
            (12, What::Log { level: Level::Warning, message: "\u{1b}[2J\n".into() }),
        ] {
            journal.add(note(ms, what));
        }
        let said = journal.into_said();
        assert_eq!(said.marks, [Mark { name: "init".into(), ms: 5.0 }]);
        assert_eq!((said.ready_ms, said.last_heartbeat_ms), (Some(7.0), Some(10.0)));
        assert_eq!((said.metrics["load"], said.messages), (3, 1));
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], r#"{"ms":5.0,"event":"mark","name":"init"}"#);
        assert_eq!(
            lines[5],
            r#"{"ms":12.0,"event":"log","level":"warning","message":"\u001b[2J\n"}"#
        );
    }

    #[test]
    fn a_guest_that_never_stops_talking_fills_neither_memory_nor_disk() {
        let file = tempfile::tempfile().unwrap();
        let mut journal = Journal::new(Some(file.try_clone().unwrap()));
        for number in 0..10_000 {
            journal.add(note(0, What::Mark { name: "n".repeat(64) }));
            let values = vec![(format!("{number}"), 0)];
            journal.add(note(0, What::Metrics { values }));
            journal.add(note(0, What::Log { level: Level::Debug, message: "x".repeat(1024) }));
        }
        assert!(file.metadata().unwrap().len() <= MAX_FILE_BYTES as u64);
        let said = journal.into_said();
        assert_eq!((said.marks.len(), said.metrics.len()), (MAX_MARKS, MAX_METRICS));
        assert_eq!((said.messages, said.messages_dropped), (10_000, 10_000 - 100));
    }
}
