//! Clients that all start at once.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::Value;

/// How a fleet fared.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Milliseconds from its own start until ready, for each client.
    pub ready_ms: Vec<f64>,
    /// Milliseconds from the common start until the last client had ended.
    pub all_ms: f64,
}

impl Outcome {
    /// Mean over the clients, as the thesis has it.
    pub fn mean(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "at most a few hundred clients")]
        let count = self.ready_ms.len() as f64;
        self.ready_ms.iter().sum::<f64>() / count
    }

    /// The slowest client.
    pub fn max(&self) -> f64 {
        self.ready_ms.iter().copied().fold(0.0, f64::max)
    }
}

/// Runs `count` of the commands that `command` makes, started at once, and reads the field
/// `ready_ms` of the line of JSON that each prints.
///
/// Every process exists before the start and then only has to exec: a hundred are off within a
/// fraction of a second, as in the thesis.
pub fn run(count: usize, mut command: impl FnMut() -> Command) -> Outcome {
    let mut waiting: Vec<Child> = (0..count)
        .map(|_| {
            let inner = command();
            let mut outer = Command::new("sh");
            outer.args(["-c", r#"read -r go && exec "$0" "$@" </dev/null"#]);
            outer.arg(inner.get_program()).args(inner.get_args());
            for (name, value) in inner.get_envs() {
                if let Some(value) = value {
                    outer.env(name, value);
                }
            }
            outer.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
            outer.spawn().unwrap()
        })
        .collect();
    let begun = Instant::now();
    for child in &mut waiting {
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }
    let mut outcome = Outcome { ready_ms: Vec::with_capacity(count), all_ms: 0.0 };
    for mut child in waiting {
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "a client failed: {status}: {text}");
        let report: Value = serde_json::from_str(&text).unwrap();
        outcome.ready_ms.push(report["ready_ms"].as_f64().unwrap());
    }
    outcome.all_ms = begun.elapsed().as_secs_f64() * 1e3;
    outcome
}
