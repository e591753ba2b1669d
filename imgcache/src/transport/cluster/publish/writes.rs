//! Chunks by RDMA WRITE: `push` and `pushed` in `docs/cache-protocol.md`.
//!
//! One exchange is one queue: the node says which chunks it lacks and where they go, they are written, as
//! many at a time as the queue holds, and the node is told. What is written from is registered without any
//! right for others.

use std::time::{Duration, Instant};

use crate::protocol::{push_record, push_records};
use crate::transport::cluster::error::NodeError;
use crate::transport::cluster::{Connection, Put};
use crate::transport::verbs::{
    DEPTH, Domain, Endpoint, Lent, LoadQueue, Remote, Scope, Settings, Source, Transfer,
};

/// Bytes that are being written at a time.
const WINDOW: usize = 4 << 20;
/// After how long to look whether the node is still there.
const NAP: Duration = Duration::from_millis(5);

/// What a node takes by WRITE, as `stats rdma` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offer {
    /// Chunks of one push.
    chunks: usize,
}

/// Why a node takes nothing by WRITE.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoOffer {
    /// It will soon.
    #[error("its memory is not registered yet")]
    NotYet,
    /// It never does.
    #[error("{0}")]
    Never(String),
}

impl Offer {
    pub(super) fn of(stats: &[(String, String)]) -> Result<Self, NoOffer> {
        let stat =
            |wanted| stats.iter().find(|(name, _)| name == wanted).map(|(_, value)| &value[..]);
        match stat("push") {
            Some("ready") => (),
            Some("registering") => return Err(NoOffer::NotYet),
            Some(_) => {
                let reason = stat("push_reason").unwrap_or("it does not say why");
                return Err(NoOffer::Never(reason.to_owned()));
            }
            None => return Err(NoOffer::Never("it does not know pushes by RDMA".into())),
        }
        let chunks = stat("push_max_chunks").and_then(|most| most.parse().ok());
        let chunks = chunks.filter(|most| *most > 0);
        let unclear = || NoOffer::Never("it does not say how many chunks it takes".into());
        Ok(Self { chunks: chunks.ok_or_else(unclear)? })
    }
}

/// What became of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The node has published it.
    Stored,
    /// It had it already.
    Had,
    /// It has to go in another way: why.
    Left(String),
}

/// What became of all of them.
#[derive(Debug)]
pub(super) struct Written {
    /// Of each, in order.
    pub(super) outcomes: Vec<Outcome>,
    /// Why RDMA was given up, if it was.
    pub(super) failed: Option<NodeError>,
}

/// How an exchange failed.
enum Failed {
    /// With the node.
    Node(NodeError),
    /// With RDMA alone: the connection is in step, and no push is open on it.
    Rdma(NodeError),
}

/// What the node said of a chunk.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Have,
    Slot(Remote),
    Full(String),
}

impl Answer {
    fn of(line: &str) -> Result<Self, NodeError> {
        let wrong = || NodeError::protocol("HAVE, SLOT or FULL", line.as_bytes());
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "HAVE" => Ok(Self::Have),
            "FULL" => Ok(Self::Full(rest.to_owned())),
            "SLOT" => {
                let (address, key) = rest.split_once(' ').ok_or_else(wrong)?;
                let address = address.parse().map_err(|_| wrong())?;
                let key = key.parse().map_err(|_| wrong())?;
                Ok(Self::Slot(Remote { address, key }))
            }
            _ => Err(wrong()),
        }
    }
}

/// Writes chunks to the node at the other end of `connection`; nothing goes on after `deadline`.
///
/// # Errors
/// The connection's. That RDMA fails is told in the result.
pub(super) fn write(
    domain: &Domain,
    offer: Offer,
    connection: &mut Connection,
    chunks: &[Put<'_>],
    deadline: Instant,
) -> Result<Written, NodeError> {
    let mut outcomes = Vec::with_capacity(chunks.len());
    let result = domain.scope(|scope| {
        let values: Vec<&[u8]> = chunks.iter().map(|chunk| chunk.value).collect();
        let sources =
            scope.register_sources(&values).map_err(|error| Failed::Rdma(error.into()))?;
        for (chunks, sources) in chunks.chunks(offer.chunks).zip(sources.chunks(offer.chunks)) {
            outcomes.extend(push(scope, connection, chunks, sources, deadline)?);
        }
        Ok(())
    });
    let failed = match result {
        Ok(()) => None,
        Err(Failed::Node(error)) => return Err(error),
        Err(Failed::Rdma(error)) => Some(error),
    };
    let left = || Outcome::Left(failed.as_ref().map(ToString::to_string).unwrap_or_default());
    outcomes.resize_with(chunks.len(), left);
    Ok(Written { outcomes, failed })
}

/// One push.
fn push<'scope, 'm>(
    scope: &'scope Scope<'scope, 'm>,
    connection: &mut Connection,
    chunks: &[Put<'m>],
    sources: &[Source<'scope, 'm>],
    deadline: Instant,
) -> Result<Vec<Outcome>, Failed> {
    let mut queue = scope.queue(DEPTH).map_err(|error| Failed::Rdma(error.into()))?;
    let (id, endpoint, answers) = begin(connection, &queue.endpoint(), chunks)?;
    let places: Vec<Transfer<'scope, 'm>> = (0..)
        .zip(answers.iter().zip(sources))
        .filter_map(|(id, (answer, source))| match answer {
            Answer::Slot(remote) => {
                Some(Transfer { id, local: Lent::Source(*source), remote: *remote })
            }
            Answer::Have | Answer::Full(_) => None,
        })
        .collect();
    let mut published = Vec::new().into_iter();
    if let Some(endpoint) = endpoint {
        let count = places.len();
        let settings = Settings::for_device(queue.domain().fabric().device());
        let written = queue
            .connect(&endpoint, &settings)
            .map_err(NodeError::from)
            .and_then(|()| transfer(&mut queue, connection, places, deadline));
        // Nothing of it is read any more.
        drop(queue);
        let outcomes = end(connection, id, if written.is_ok() { count } else { 0 })?;
        written.map_err(Failed::Rdma)?;
        published = outcomes.into_iter();
    }
    let outcome = |answer| match answer {
        Answer::Have => Outcome::Had,
        Answer::Full(why) => Outcome::Left(why),
        Answer::Slot(_) => {
            let unsaid = || Outcome::Left("the node does not say what became of it".into());
            published.next().unwrap_or_else(unsaid)
        }
    };
    Ok(answers.into_iter().map(outcome).collect())
}

/// `push`: the push's id, the node's queue if something is to be written, and what it says of each chunk.
fn begin(
    connection: &mut Connection,
    endpoint: &Endpoint,
    chunks: &[Put<'_>],
) -> Result<(u64, Option<Endpoint>, Vec<Answer>), Failed> {
    let list: Vec<u8> = chunks
        .iter()
        .filter_map(|chunk| {
            Some(push_record(&chunk.key.chunk_key()?, u32::try_from(chunk.value.len()).ok()?))
        })
        .flatten()
        .collect();
    let head = format!("push {} {endpoint}\r\n", list.len());
    let reply = connection.command(&[head.as_bytes(), &list, b"\r\n"]).map_err(Failed::Node)?;
    let wrong = || Failed::Node(NodeError::protocol("PUSH", reply.as_bytes()));
    let Some(rest) = reply.strip_prefix("PUSH ") else {
        let what = "a push".to_owned();
        return Err(if reply.contains("ERROR") {
            Failed::Rdma(NodeError::Refused { what, reply })
        } else {
            wrong()
        });
    };
    let mut words = rest.splitn(4, ' ');
    let (id, count, _time, endpoint) = (words.next(), words.next(), words.next(), words.next());
    let id = id.and_then(|id| u64::from_str_radix(id, 16).ok()).ok_or_else(wrong)?;
    let count: usize = count.and_then(|count| count.parse().ok()).ok_or_else(wrong)?;
    if count != push_records(&list).count() || count != chunks.len() {
        return Err(wrong());
    }
    let endpoint = match endpoint.ok_or_else(wrong)? {
        "-" => None,
        text => Some(text.parse().map_err(|_| wrong())?),
    };
    let mut answers = Vec::with_capacity(count);
    for _ in 0..count {
        let line = connection.line().map_err(Failed::Node)?;
        answers.push(Answer::of(&line).map_err(Failed::Node)?);
    }
    Ok((id, endpoint, answers))
}

/// `pushed`: what became of the slots, of which the first `written` were written.
fn end(connection: &mut Connection, id: u64, written: usize) -> Result<Vec<Outcome>, Failed> {
    let command = format!("pushed {id:016x} {written}\r\n");
    let reply = connection.command(&[command.as_bytes()]).map_err(Failed::Node)?;
    let Some(count) = reply.strip_prefix("PUSHED ") else {
        return Ok(vec![Outcome::Left(format!("the node said {reply}")); written]);
    };
    if count.parse() != Ok(written) {
        return Err(Failed::Node(NodeError::protocol("as many chunks", reply.as_bytes())));
    }
    let mut outcomes = Vec::with_capacity(written);
    for _ in 0..written {
        let line = connection.line().map_err(Failed::Node)?;
        outcomes.push(if line == "STORED" { Outcome::Stored } else { Outcome::Left(line) });
    }
    Ok(outcomes)
}

/// Writes all of `places`.
fn transfer<'scope, 'm>(
    queue: &mut LoadQueue<'scope, 'm>,
    connection: &Connection,
    places: Vec<Transfer<'scope, 'm>>,
    deadline: Instant,
) -> Result<(), NodeError> {
    let mut rest = places.into_iter().peekable();
    let (mut completions, mut in_flight) = (Vec::new(), 0_usize);
    loop {
        let mut next = Vec::new();
        while let Some(place) = rest.peek()
            && next.len() < queue.room()
            && (in_flight == 0 || in_flight + place.local.bytes().len() <= WINDOW)
        {
            in_flight += place.local.bytes().len();
            next.extend(rest.next());
        }
        if !next.is_empty() {
            queue.post(next).map_err(|refused| refused.error)?;
        }
        if queue.outstanding() == 0 {
            return Ok(());
        }
        if queue.wait(&mut completions, NAP)? == 0 {
            if connection.peer_is_gone() {
                return Err(NodeError::Closed);
            }
            if Instant::now() >= deadline {
                return Err(NodeError::Deadline);
            }
        }
        for completion in completions.drain(..) {
            if !completion.status.is_success() {
                return Err(NodeError::Rdma(completion.status));
            }
            in_flight -= completion.item.bytes().len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_a_node_takes_is_understood() {
        let ready = ("push", "ready");
        assert_eq!(Offer::of(&stats(&[ready, ("push_max_chunks", "7")])), Ok(Offer { chunks: 7 }));
        assert_eq!(Offer::of(&stats(&[("push", "registering")])), Err(NoOffer::NotYet));
        for (pairs, reason) in [
            (&[][..], "does not know"),
            (&[("push", "off"), ("push_reason", "no windows")], "no windows"),
            (&[("push", "failed")], "does not say why"),
            (&[ready], "how many"),
            (&[ready, ("push_max_chunks", "0")], "how many"),
            (&[ready, ("push_max_chunks", "-1")], "how many"),
        ] {
            let refused = Offer::of(&stats(pairs)).unwrap_err().to_string();
            assert!(refused.contains(reason), "{refused}");
        }
    }

    #[test]
    fn what_a_node_says_of_a_chunk_is_understood() {
        let slot = Answer::Slot(Remote { address: 4096, key: 7 });
        assert_eq!(Answer::of("SLOT 4096 7").unwrap(), slot);
        assert_eq!(Answer::of("HAVE").unwrap(), Answer::Have);
        assert_eq!(Answer::of("FULL no more").unwrap(), Answer::Full("no more".into()));
        for line in ["", "SLOT", "SLOT 1", "SLOT 1 4294967296", "SLOT -1 1", "SLOT 1 2 3", "have"] {
            assert!(Answer::of(line).is_err(), "{line}");
        }
    }
}
