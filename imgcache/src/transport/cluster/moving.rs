//! Carries out a plan: copies items between nodes, at a limited rate, while loads go on.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::node::Topology;
use super::survey::{Content, ItemFound, Survey};
use super::tcp::connection::{Connection, Put, PutAnswer};
use crate::cluster::rebalance::{Move, Plan};
use crate::image::manifest::MAX_CHUNK_SIZE;
use crate::key::ChunkKey;
use crate::parallel::lock;
use crate::record::{MAX_NAME_RECORD_BYTES, NameRecord};

/// How long one item may take to be read or written.
const PATIENCE: Duration = Duration::from_secs(10);
/// Items on their way at a time.
const WORKERS: usize = 4;
/// So many failures are told one by one.
const TOLD_FAILURES: usize = 20;

/// Called with the bytes moved since the last call; from any thread.
pub type Progress<'a> = &'a (dyn Fn(u64) + Sync);

/// How to move.
#[derive(Clone, Copy, Default)]
pub struct MoveOptions<'a> {
    /// At most so many bytes per second, over all nodes; unlimited if none.
    pub rate: Option<u64>,
    /// Whom to tell.
    pub progress: Option<Progress<'a>>,
}

impl std::fmt::Debug for MoveOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MoveOptions").field("rate", &self.rate).finish_non_exhaustive()
    }
}

/// What was moved.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct MoveReport {
    /// Items copied.
    pub copied: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Copies that were removed because they are not needed.
    pub removed: u64,
    /// Items that could not be copied or removed.
    pub failed: u64,
    /// The first of the failures, in words.
    pub failures: Vec<String>,
}

/// Copies what `plan` says is missing. An item that fails is counted; the others go on.
pub fn copy(
    topology: &Topology,
    survey: &Survey,
    plan: &Plan,
    options: &MoveOptions<'_>,
) -> MoveReport {
    let report = Mutex::new(MoveReport::default());
    let pace = Mutex::new(Pace { rate: options.rate, next: Instant::now() });
    work_off(&plan.moves, |step| match copy_one(topology, survey, step, &pace) {
        Ok(bytes) => {
            let mut report = lock(&report);
            report.copied += 1;
            report.bytes += bytes;
            drop(report);
            if let Some(progress) = options.progress {
                progress(bytes);
            }
        }
        Err(why) => lock(&report).fail(why),
    });
    report.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Removes the copies that `plan` says are superfluous.
pub fn remove_superfluous(topology: &Topology, survey: &Survey, plan: &Plan) -> MoveReport {
    let report = Mutex::new(MoveReport::default());
    work_off(&plan.superfluous, |(item, node)| {
        let Some(found) = survey.found.get(*item) else { return };
        let node = &topology.nodes[*node];
        match node.with(Instant::now() + PATIENCE, |connection| connection.delete(&found.key)) {
            Ok(there) => lock(&report).removed += u64::from(there),
            Err(error) => {
                lock(&report).fail(format!(
                    "cannot remove {} from {}: {error}",
                    found.key,
                    node.name()
                ));
            }
        }
    });
    report.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl MoveReport {
    fn fail(&mut self, why: String) {
        self.failed += 1;
        if self.failures.len() < TOLD_FAILURES {
            self.failures.push(why);
        }
    }

    /// Adds what `other` says.
    pub fn add(&mut self, other: Self) {
        self.copied += other.copied;
        self.bytes += other.bytes;
        self.removed += other.removed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.failures.truncate(TOLD_FAILURES);
    }
}

fn work_off<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let queue = Mutex::new(items.iter());
    thread::scope(|scope| {
        for _ in 0..WORKERS.min(items.len()) {
            scope.spawn(|| {
                loop {
                    let Some(item) = lock(&queue).next() else { return };
                    work(item);
                }
            });
        }
    });
}

/// Copies one item; its length in bytes, or why not.
fn copy_one(
    topology: &Topology,
    survey: &Survey,
    step: &Move,
    pace: &Mutex<Pace>,
) -> Result<u64, String> {
    let found = survey.found.get(step.item).ok_or("the plan is of another survey")?;
    let value = read(topology, survey, step.item, found)?;
    let to = &topology.nodes[step.to];
    let mut add = true;
    if let Content::Name(record) = &found.content {
        // An older record is replaced. One that was pushed since the survey is newer, and stays.
        let limit = MAX_NAME_RECORD_BYTES;
        let get = |connection: &mut Connection| connection.get(&found.key, limit);
        let there = to
            .with(Instant::now() + PATIENCE, get)
            .map_err(|error| format!("cannot read {} from {}: {error}", found.key, to.name()))?;
        let there = there.and_then(|item| NameRecord::decode_for(&record.name, &item.value).ok());
        if there.is_some_and(|there| there.newer(record.clone()) != *record) {
            return Ok(0);
        }
        add = false;
    }
    let bytes = u64::try_from(value.len()).unwrap_or(u64::MAX);
    Pace::wait(pace, bytes);
    let put = Put { key: &found.key, kind: found.kind, value: &value, add };
    let answers = to.with(Instant::now() + PATIENCE, |connection| {
        connection.put_patiently(&[put], PATIENCE / 2)
    });
    match answers.map(|mut answers| answers.pop()) {
        Ok(Some(PutAnswer::Stored | PutAnswer::Kept)) => Ok(bytes),
        Ok(Some(PutAnswer::Busy(_))) => {
            Err(format!("{} has no memory for {}", to.name(), found.key))
        }
        Ok(Some(PutAnswer::Refused(why))) => {
            Err(format!("{} does not take {}: {why}", to.name(), found.key))
        }
        Ok(None) => Err(format!("{} said nothing of {}", to.name(), found.key)),
        Err(error) => Err(format!("cannot write {} to {}: {error}", found.key, to.name())),
    }
}

/// The content of an item, from whoever has it as it should be.
fn read(
    topology: &Topology,
    survey: &Survey,
    item: usize,
    found: &ItemFound,
) -> Result<Vec<u8>, String> {
    let key = match &found.content {
        Content::Piece(value) => return Ok(value.clone()),
        Content::Name(record) => return Ok(record.encode().into_bytes()),
        Content::Chunk(key) => key,
    };
    let mut last = format!("no node has {}", found.key);
    for node in survey.holders(item).iter().map(|node| &topology.nodes[*node]) {
        let limit = usize::try_from(MAX_CHUNK_SIZE).unwrap_or(usize::MAX);
        match node.with(Instant::now() + PATIENCE, |connection| connection.get(&found.key, limit)) {
            Ok(Some(item)) if ChunkKey::of(&item.value) == *key => return Ok(item.value),
            Ok(Some(_)) => last = format!("{} has other content as {}", node.name(), found.key),
            Ok(None) => last = format!("{} has {} no more", node.name(), found.key),
            Err(error) => last = format!("cannot read {} from {}: {error}", found.key, node.name()),
        }
    }
    Err(last)
}

/// Spreads bytes over time.
struct Pace {
    rate: Option<u64>,
    next: Instant,
}

impl Pace {
    /// Returns when `bytes` more may go.
    fn wait(pace: &Mutex<Self>, bytes: u64) {
        let mut this = lock(pace);
        let Some(rate) = this.rate else { return };
        let now = Instant::now();
        let start = this.next.max(now);
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
        this.next = start + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        drop(this);
        thread::sleep(start - now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_over_threads() {
        let begun = Instant::now();
        let pace = Mutex::new(Pace { rate: Some(1_000_000), next: begun });
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        Pace::wait(&pace, 2_000);
                    }
                });
            }
        });
        // 40 kB at 1 MB/s are 40 ms, of which the last 2 ms are still to pass.
        assert!(lock(&pace).next >= begun + Duration::from_millis(40));
        assert!(begun.elapsed() >= Duration::from_millis(38));
    }
}
