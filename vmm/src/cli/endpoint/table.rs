//! Endpoints and moves as people read them.

use std::fmt::Write;

use crate::api::endpoint::{EndpointInfo, MoveInfo};
use crate::size;

/// The requests of a range.
fn range(info: &EndpointInfo) -> String {
    if info.lo == info.hi { info.lo.to_string() } else { format!("{}-{}", info.lo, info.hi) }
}

/// What happens to a range, and where it goes.
fn phase(info: &EndpointInfo) -> String {
    match &info.to {
        Some(to) => format!("{} to {to}", info.phase),
        None => info.phase.clone(),
    }
}

/// A yes, a no, or nothing that this node knows of.
fn known(answer: Option<bool>) -> &'static str {
    answer.map_or("-", |yes| if yes { "yes" } else { "no" })
}

/// A line for each range.
pub fn endpoints(all: &[EndpointInfo]) -> String {
    let line = |cells: [&str; 8]| {
        let [service, range, form, vid, home, phase, listens, mirrors] = cells;
        let line = format!(
            "{service:<20} {range:<12} {form:<7} {vid:<18} {home:<24} {phase:<10} {listens:<9} {mirrors}"
        );
        line.trim_end().to_owned() + "\n"
    };
    let heads = ["SERVICE", "RANGE", "FORM", "IDENTIFIER", "HOME", "PHASE", "LISTENING", "MIRRORS"];
    let mut text = line(heads);
    for info in all {
        let mirrors = info.mirrors.join(",");
        let cells = [
            &*info.service,
            &range(info),
            &info.form,
            &info.vid,
            &info.home,
            &phase(info),
            known(info.listening),
            &mirrors,
        ];
        text.push_str(&line(cells));
    }
    text
}

/// All that is known of each range.
pub fn details(all: &[EndpointInfo]) -> String {
    let mut text = String::new();
    for info in all {
        if !text.is_empty() {
            text.push('\n');
        }
        let mirrors = if info.mirrors.is_empty() { "-".into() } else { info.mirrors.join(", ") };
        let requests = range(info);
        let epoch = info.epoch.to_string();
        let lines = [
            ("service", &*info.service),
            ("requests", &*requests),
            ("form", &*info.form),
            ("identifier", &*info.vid),
            ("home", &*info.home),
            ("phase", &*phase(info)),
            ("mirrors", &*mirrors),
            ("kept by", &*info.owner),
            ("epoch", &*epoch),
            ("listening", known(info.listening)),
        ];
        for (name, value) in lines {
            let _ = writeln!(text, "{:<12}{value}", format!("{name}:"));
        }
    }
    text
}

/// Microseconds, in a unit in which they can be read.
fn span(us: u64) -> String {
    let ms = std::time::Duration::from_micros(us).as_secs_f64() * 1e3;
    format!("{ms:.2} ms")
}

/// How a move went: what came of it first, then its steps.
pub fn moved(info: &MoveInfo) -> String {
    let mut text =
        format!("move {}: {} -> {}: {}\n", info.number, info.from, info.to, info.outcome);
    if let Some(reason) = &info.reason {
        let _ = writeln!(text, "reason:     {reason}");
    }
    let _ = writeln!(text, "blackout:   {}, for which frames were held", span(info.held_us));
    let _ = writeln!(text, "state:      {}", size::show(info.state_bytes));
    let _ = writeln!(text, "in all:     {}", span(info.us));
    if !info.steps.is_empty() {
        let _ = writeln!(text, "\n{:<24} {:>12}", "STEP", "TOOK");
    }
    for step in &info.steps {
        let _ = writeln!(text, "{:<24} {:>12}", step.name, span(step.us));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::endpoint::MoveStep;

    fn info() -> EndpointInfo {
        EndpointInfo {
            service: "web".into(),
            form: "prefix".into(),
            lo: 0,
            hi: 9,
            vid: "02:00:00:00:00:00".into(),
            home: "host/a".into(),
            mirrors: vec!["host/b".into(), "host/c".into()],
            phase: "moving".into(),
            to: Some("host/b".into()),
            owner: "host".into(),
            epoch: 7,
            listening: None,
        }
    }

    #[test]
    fn a_range_has_one_line() {
        let one = EndpointInfo { lo: 3, hi: 3, to: None, listening: Some(true), ..info() };
        let text = endpoints(&[info(), one]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains(" 0-9 ") && lines[1].contains("moving to host/b"), "{text}");
        assert!(lines[1].ends_with("host/b,host/c") && lines[2].contains(" yes "), "{text}");
        let text = details(&[info(), info()]);
        assert_eq!(text.lines().count(), 21);
        assert!(text.contains("epoch:      7\n") && text.contains("listening:  -\n"), "{text}");
    }

    #[test]
    fn a_move_says_how_long_frames_were_held() {
        let step = |name: &str, us| MoveStep { name: name.into(), us };
        let info = MoveInfo {
            number: 4,
            from: "host/a".into(),
            to: "host/b".into(),
            outcome: "aborted".into(),
            reason: Some("no answer".into()),
            state_bytes: 4096,
            held_us: 2350,
            us: 10_000,
            steps: vec![step("prepare", 1000), step("stop", 20)],
        };
        let text = moved(&info);
        for words in ["host/a -> host/b: aborted", "no answer", "2.35 ms", "10.00 ms", "0.02 ms"] {
            assert!(text.contains(words), "no {words} in {text}");
        }
        let quiet = MoveInfo { reason: None, steps: Vec::new(), ..info };
        assert!(!moved(&quiet).contains("reason") && !moved(&quiet).contains("STEP"));
    }
}
