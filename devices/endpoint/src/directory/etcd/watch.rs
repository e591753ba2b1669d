//! Changes in etcd, as they are told to watchers. What has been missed is never guessed: then all there is is
//! told anew.

use std::sync::mpsc::{SendError, Sender, channel};
use std::time::Duration;

use etcd_client::{Event, EventType, WatchOptions, WatchStream};
use tokio::time::{sleep, timeout};

use crate::range::Range;
use crate::record::Record;

use super::keys::Stored;
use super::{ATTEMPT, Core, DirectoryError, Updates, unreachable};
use crate::directory::Update;

/// How long to wait before etcd is asked again for what it did not tell.
const PAUSE: Duration = Duration::from_millis(100);

/// Why watching has stopped.
enum Stop {
    /// Something has been missed, or the member does not answer.
    Missed,
    /// Nobody listens.
    Unheard,
}

impl From<SendError<Update>> for Stop {
    fn from(_: SendError<Update>) -> Self {
        Self::Unheard
    }
}

/// Updates from now on.
pub(super) async fn start(core: Core) -> Result<Updates, DirectoryError> {
    let (sender, updates) = channel();
    let stream = begin(&core, &sender).await?;
    tokio::spawn(async move {
        let mut stream = Some(stream);
        loop {
            if let Some(stream) = stream.take()
                && let Stop::Unheard = follow(&core, stream, &sender).await
            {
                return;
            }
            sleep(PAUSE).await;
            stream = begin(&core, &sender).await.ok();
        }
    });
    Ok(updates)
}

/// Tells all there is, and returns what comes afterwards.
async fn begin(core: &Core, sender: &Sender<Update>) -> Result<WatchStream, DirectoryError> {
    let (table, revision) = core.read(vec![core.keys.records()]).await?;
    let options = WatchOptions::new()
        .with_prefix()
        .with_prev_key()
        .with_start_revision(revision.saturating_add(1));
    let mut client = core.client.clone();
    let stream = timeout(ATTEMPT, client.watch(core.keys.all(), Some(options)));
    let stream = stream.await.map_err(unreachable)?.map_err(unreachable)?;
    let (records, owners) = (table.records().cloned().collect(), table.owners().cloned().collect());
    let _ = sender.send(Update::All { records, owners }); // that nobody listens is seen with the next
    Ok(stream)
}

async fn follow(core: &Core, mut stream: WatchStream, sender: &Sender<Update>) -> Stop {
    loop {
        let Ok(Some(answer)) = stream.message().await else { return Stop::Missed };
        if answer.canceled() {
            return Stop::Missed;
        }
        let revision = |event: &Event| event.kv().map(etcd_client::KeyValue::mod_revision);
        for events in answer.events().chunk_by(|one, other| revision(one) == revision(other)) {
            if let Err(stop) = tell(core, events, sender) {
                return stop;
            }
        }
    }
}

/// Tells what has happened at once.
fn tell(core: &Core, events: &[Event], sender: &Sender<Update>) -> Result<(), Stop> {
    let mut removed: Vec<Range> = Vec::new();
    let mut put: Vec<Record> = Vec::new();
    for event in events {
        let kv = event.kv().ok_or(Stop::Missed)?;
        let is_put = event.event_type() == EventType::Put;
        if let Some(owner) = core.keys.owner_of(kv.key()) {
            sender.send(Update::Owner { owner, is_alive: is_put })?;
        } else if core.keys.is_record(kv.key()) {
            match event.prev_kv().map(Stored::read) {
                Some(Ok(stored)) => removed.push(stored.record.range),
                None if is_put => {} // it is new
                _ => return Err(Stop::Missed),
            }
            if is_put {
                put.push(Stored::read(kv).map_err(|_| Stop::Missed)?.record);
            }
        }
    }
    if !removed.is_empty() || !put.is_empty() {
        sender.send(Update::Records { removed, put })?;
    }
    Ok(())
}
