//! One frame: the same for a terminal and as text.

use std::cmp::Ordering;
use std::fmt::Write;

use clap::ValueEnum;

use super::super::ps;
use super::sample::{Row, Sample};
use super::word;
use crate::size;

/// What VMs are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Column {
    /// Name.
    Name,
    /// State.
    State,
    /// Image.
    Image,
    /// Time from creation until ready to boot, the longest first.
    Ready,
    /// Memory that others map too, the most first.
    Shared,
    /// Memory of its own, the most first.
    Private,
    /// Processors' time since the last look, the most first.
    Cpu,
}

/// How it is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// What VMs are sorted by.
    pub column: Column,
    /// Whether in the other order.
    pub reversed: bool,
    /// The first VM that is shown.
    pub top: usize,
}

impl View {
    /// Sorted by `column`.
    pub fn new(column: Column) -> Self {
        Self { column, reversed: false, top: 0 }
    }

    /// Sorts by `column`, in the other order if it is sorted by that already.
    pub fn sort_by(&mut self, column: Column) {
        self.reversed = self.column == column && !self.reversed;
        self.column = column;
        self.top = 0;
    }
}

/// The heads of the columns.
pub const HEADS: [&str; 9] =
    ["NAME", "STATE", "IMAGE", "RAM", "SHARED", "PRIVATE", "CPU %", "READY ms", "LONGEST PHASE"];
/// Their widths, in characters.
pub const WIDTHS: [u16; 9] = [18, 9, 22, 10, 10, 10, 7, 9, 22];
/// Those that are numbers.
pub const NUMBERS: std::ops::Range<usize> = 3..8;

/// The rows in their order.
pub fn sorted<'a>(sample: &'a Sample, view: &View) -> Vec<&'a Row> {
    let mut rows: Vec<&Row> = sample.rows.iter().collect();
    let memory = |row: &Row| row.usage.unwrap_or_default();
    let most = |one: Option<f64>, other: Option<f64>| {
        other.unwrap_or(-1.0).partial_cmp(&one.unwrap_or(-1.0)).unwrap_or(Ordering::Equal)
    };
    rows.sort_by(|one, other| {
        let order = match view.column {
            Column::Name => one.vm.name.cmp(&other.vm.name),
            Column::State => one.vm.state.cmp(&other.vm.state),
            Column::Image => one.vm.spec.image.cmp(&other.vm.spec.image),
            Column::Ready => most(one.vm.ready_ms, other.vm.ready_ms),
            Column::Shared => memory(other).shared_bytes.cmp(&memory(one).shared_bytes),
            Column::Private => memory(other).private_bytes.cmp(&memory(one).private_bytes),
            Column::Cpu => most(one.cpu, other.cpu),
        };
        let order = if view.reversed { order.reverse() } else { order };
        order.then_with(|| one.vm.number.cmp(&other.vm.number))
    });
    rows
}

/// The cells of a row.
pub fn cells(row: &Row) -> [String; 9] {
    let none = || "-".to_owned();
    let bytes = |of: fn(&crate::api::Usage) -> u64| {
        row.usage.as_ref().map_or_else(none, |usage| size::show(of(usage)))
    };
    let longest = row.vm.phases.iter().max_by(|one, other| one.ms.total_cmp(&other.ms));
    [
        row.vm.name.to_string(),
        ps::state(row.vm.state).to_owned(),
        row.vm.spec.image.to_string(),
        size::show(row.vm.spec.memory),
        bytes(|usage| usage.shared_bytes),
        bytes(|usage| usage.private_bytes),
        row.cpu.map_or_else(none, |cpu| format!("{cpu:.0}")),
        row.vm.ready_ms.map_or_else(none, |ms| format!("{ms:.1}")),
        longest.map_or_else(none, |phase| format!("{} {:.1} ms", phase.name, phase.ms)),
    ]
}

/// The lines above the table.
pub fn summary(sample: &Sample, view: &View) -> Vec<String> {
    let sum = |of: &dyn Fn(&crate::api::NodeInfo) -> u64| -> u64 {
        sample.nodes.iter().map(of).fold(0, u64::saturating_add)
    };
    let memory = |of: fn(&crate::api::Usage) -> u64| -> u64 {
        let all = sample.rows.iter().filter_map(|row| row.usage.as_ref()).map(of);
        all.fold(0, u64::saturating_add)
    };
    let agents = sample.agents.iter().map(|agent| agent.proportional_bytes).sum();
    let (hits, misses) = (sum(&|node| node.pool.hits), sum(&|node| node.pool.misses));
    let draining = if sample.nodes.iter().any(|node| node.draining) { ", draining" } else { "" };
    let order = if view.reversed { ", the other way round" } else { "" };
    let mut lines = vec![
        format!(
            "VMs      {} starting, {} ready, {} running, {} ended, of at most {}; nodes: {}{draining}",
            sum(&|node| node.vms.starting.into()),
            sum(&|node| node.vms.ready.into()),
            sum(&|node| node.vms.running.into()),
            sum(&|node| node.vms.ended.into()),
            sum(&|node| node.max_vms.into()),
            sample.nodes.len()
        ),
        format!(
            "memory   {} of their own, {} in all (PSS), RAM {}; agents {}; available {} of {}",
            size::show(memory(|usage| usage.private_bytes)),
            size::show(memory(|usage| usage.proportional_bytes)),
            size::show(sum(&|node| node.vm_memory_bytes)),
            size::show(agents),
            size::show(sum(&|node| node.memory_available_bytes)),
            size::show(sum(&|node| node.memory_bytes))
        ),
        format!(
            "pool     {} images in {} of {}; hits {hits} of {} ({}), {} given up, {} brought",
            sum(&|node| node.pool.images.into()),
            size::show(sum(&|node| node.pool.bytes)),
            size::show(sum(&|node| node.pool.limit_bytes)),
            hits + misses,
            percent(hits, hits + misses),
            sum(&|node| node.pool.evictions),
            size::show(sum(&|node| node.pool.bytes_loaded))
        ),
    ];
    lines.extend(sample.problems.iter().map(|problem| format!("problem  {problem}")));
    lines.push(format!("sorted by {}{order}", word(view.column)));
    lines
}

fn percent(part: u64, all: u64) -> String {
    match (part * 100).checked_div(all) {
        Some(percent) => format!("{percent} %"),
        None => "-".to_owned(),
    }
}

/// All as text.
pub fn text(sample: &Sample, view: &View) -> String {
    let mut text = summary(sample, view).join("\n") + "\n\n";
    let mut line = |cells: &[String]| {
        let mut line = String::new();
        for (at, (cell, width)) in cells.iter().zip(WIDTHS).enumerate() {
            let width = usize::from(width);
            let _ = if NUMBERS.contains(&at) {
                write!(line, "{cell:>width$} ")
            } else {
                write!(line, "{cell:<width$} ")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    line(&HEADS.map(str::to_owned));
    for row in sorted(sample, view) {
        line(&cells(row));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Phase, Usage, VmInfo, VmState};

    fn row(number: u64, name: &str, private: u64, ready: f64) -> Row {
        let vm = VmInfo {
            number,
            name: name.parse().unwrap(),
            tenant: crate::spec::name::TenantName::default(),
            state: VmState::Running,
            spec: serde_json::from_str(r#"{"image":"debian:12"}"#).unwrap(),
            manifest: None,
            pid: Some(1),
            network: None,
            created_ms: 0,
            phases: vec![Phase { name: "kvm".into(), ms: 2.0 }],
            ready_ms: Some(ready),
            end: None,
        };
        let usage = Usage { private_bytes: private, ..Usage::default() };
        Row { vm, usage: Some(usage), cpu: None }
    }

    #[test]
    fn rows_are_in_the_order_that_was_asked_for() {
        let rows = vec![row(1, "b", 100, 9.0), row(2, "a", 300, 7.0), row(3, "c", 200, 8.0)];
        let sample = Sample { rows, ..Sample::default() };
        let names = |view: &View| -> String {
            sorted(&sample, view).iter().map(|row| row.vm.name.as_str()).collect()
        };
        let mut view = View::new(Column::Private);
        assert_eq!(names(&view), "acb");
        view.sort_by(Column::Private);
        assert_eq!(names(&view), "bca");
        view.sort_by(Column::Name);
        assert_eq!(names(&view), "abc");
        view.sort_by(Column::Ready);
        assert_eq!(names(&view), "bca");
        let text = text(&sample, &view);
        assert!(text.contains("kvm 2.0 ms") && text.contains("PRIVATE"), "{text}");
    }
}
