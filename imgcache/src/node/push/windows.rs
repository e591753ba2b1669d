//! Queues and memory windows, through which clients write: one queue for a push, one window for a slot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::table::{NotAdmitted, Writers};
use crate::node::cache::Exposed;
use crate::transport::verbs::{
    Completion, Domain, Endpoint, Region, Remote, ServeQueue, Served, Settings, Status, VerbsError,
};

/// Windows of one queue that are bound at a time.
const DEPTH: u32 = 64;
/// How long the device may take to bind one.
const PATIENCE: Duration = Duration::from_secs(2);

/// What windows are bound in.
#[derive(Debug)]
pub(super) struct Windows {
    domain: Domain,
    region: Arc<Region>,
}

/// Why a window did not come about.
#[derive(Debug, thiserror::Error)]
enum BindError {
    #[error(transparent)]
    Verbs(#[from] VerbsError),
    #[error("no window: {0}")]
    Window(Status),
    #[error("the device does not answer")]
    Silent,
}

impl Windows {
    pub(super) fn new(domain: Domain, region: Arc<Region>) -> Self {
        Self { domain, region }
    }

    fn connect(&self, peer: &Endpoint) -> Result<ServeQueue<Exposed>, VerbsError> {
        let device = self.domain.fabric().device();
        let depth = DEPTH.min(device.limits.queue_depth).min(device.limits.completions).max(1);
        let mut queue = self.domain.serve(depth)?;
        queue.connect(peer, &Settings::for_device(device))?;
        Ok(queue)
    }

    /// Takes each of `slots` into a window of `queue`; those that are not taken stay.
    fn bind(
        &self,
        queue: &mut ServeQueue<Exposed>,
        slots: &mut Vec<Exposed>,
    ) -> Result<Vec<Remote>, BindError> {
        let mut remotes = Vec::with_capacity(slots.len());
        slots.reverse();
        while let Some(slot) = slots.pop() {
            if queue.room() == 0 {
                complete(queue, slots)?;
            }
            let window = match self.domain.window() {
                Ok(window) => window,
                Err(error) => {
                    slots.push(slot);
                    return Err(error.into());
                }
            };
            match queue.bind_write(remotes.len() as u64, window, &self.region, slot) {
                Ok(remote) => remotes.push(remote),
                Err(refused) => {
                    slots.extend(refused.items.into_iter().map(|(_, slot)| slot));
                    return Err(refused.error.into());
                }
            }
        }
        while queue.outstanding() > 0 {
            complete(queue, slots)?;
        }
        Ok(remotes)
    }
}

/// Waits for windows that are being bound; the slot of one that is not comes back.
fn complete(queue: &mut ServeQueue<Exposed>, slots: &mut Vec<Exposed>) -> Result<(), BindError> {
    let deadline = Instant::now() + PATIENCE;
    let mut completions = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if queue.wait(&mut completions, left)? > 0 {
            break;
        }
        if left.is_zero() {
            return Err(BindError::Silent);
        }
    }
    let mut failed = None;
    for Completion { status, item, .. } in completions {
        if let Served::Free { part: Some(slot), .. } = item {
            slots.push(slot);
        }
        if !status.is_success() {
            failed.get_or_insert(status);
        }
    }
    failed.map_or(Ok(()), |status| Err(BindError::Window(status)))
}

impl Writers for Windows {
    type Queue = ServeQueue<Exposed>;

    fn admit(
        &mut self,
        peer: &Endpoint,
        mut slots: Vec<Exposed>,
    ) -> Result<(Self::Queue, Endpoint, Vec<Remote>), NotAdmitted> {
        let mut queue = match self.connect(peer) {
            Ok(queue) => queue,
            Err(error) => return Err(NotAdmitted { reason: error.to_string(), slots }),
        };
        match self.bind(&mut queue, &mut slots) {
            Ok(remotes) => {
                let endpoint = queue.endpoint();
                Ok((queue, endpoint, remotes))
            }
            Err(error) => {
                let mut reason = error.to_string();
                match queue.end_writes() {
                    Ok(bound) => slots.extend(bound),
                    Err(error) => reason = format!("{reason}; {error}"),
                }
                Err(NotAdmitted { reason, slots })
            }
        }
    }

    fn end(&mut self, queue: Self::Queue) -> Result<Vec<Exposed>, String> {
        queue.end_writes().map_err(|error| error.to_string())
    }
}
