//! The old home's side of a move.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use super::message::{Id, Message};
use super::{MoverError, Still};

/// Answers have no connections in them.
const NO_CONNECTION: usize = 0;

/// What was decided of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    /// Nothing: the connections can go on here.
    Open,
    /// The destination may have heard that they go on there.
    Committed,
    /// They do.
    Done,
}

/// Connections that stand still and are to go on elsewhere. They go on here when it is dropped before it was
/// committed, and nowhere when after.
#[derive(Debug)]
pub struct Source<S: AsFd> {
    id: Id,
    connections: Vec<Still<S>>,
    decision: Decision,
    /// The life of the destination in which it was ready.
    life: Option<Id>,
}

impl<S: AsFd> Source<S> {
    /// Of connections that stand still.
    pub fn new(connections: Vec<Still<S>>) -> Self {
        Self { id: Id::random(), connections, decision: Decision::Open, life: None }
    }

    /// The move's number.
    pub fn id(&self) -> Id {
        self.id
    }

    /// Whether the connections may go on at the destination, and may not.
    pub fn is_undecided(&self) -> bool {
        self.decision == Decision::Committed
    }

    /// Sends the connections, and waits until they are restored. It can be repeated, over another stream as well.
    ///
    /// # Errors
    /// They are not, as far as is known; they can go on here.
    pub fn offer<C: Read + Write + ?Sized>(&mut self, channel: &mut C) -> Result<(), MoverError> {
        let count = u16::try_from(self.connections.len())
            .map_err(|_| MoverError::Refused("more than 65535 connections at once".into()))?;
        Message::Offer(self.id, count).send(channel)?;
        for (frozen, continuation) in &self.connections {
            Message::Connection(frozen.state.encode(), continuation.clone()).send(channel)?;
        }
        match self.answer(channel)? {
            Message::Ready(_, life) => {
                self.life = Some(life);
                Ok(())
            }
            Message::Refused(_, why) => Err(MoverError::Refused(why)),
            other => Err(MoverError::Unexpected(format!("{other:?}"))),
        }
    }

    /// Decides that the connections go on at the destination, and waits until they do; here they end without a
    /// word. It can be repeated, over another stream as well.
    ///
    /// # Errors
    /// It is not known whether they do, if this [`Source::is_undecided`]: repeat it. Otherwise they do not.
    pub fn commit<C: Read + Write + ?Sized>(&mut self, channel: &mut C) -> Result<(), MoverError> {
        if self.decision == Decision::Done {
            return Ok(());
        }
        let Some(life) = self.life else {
            return Err(MoverError::Refused("nothing was offered that it has accepted".into()));
        };
        // From the first byte on the destination may know.
        self.decision = Decision::Committed;
        Message::Commit(self.id).send(channel)?;
        match self.answer(channel)? {
            Message::Done(_) => {
                self.decision = Decision::Done;
                self.end();
                Ok(())
            }
            // It has not started them in the life in which it was ready, and will not.
            Message::Unknown(_, same) if same == life => {
                self.decision = Decision::Open;
                Err(MoverError::Refused("it has given up waiting for the decision".into()))
            }
            Message::Unknown(id, _) => Err(MoverError::Forgotten(id)),
            Message::Refused(_, why) => {
                // It has tried: the connections are broken there, and their peers know.
                self.decision = Decision::Done;
                self.end();
                Err(MoverError::Refused(why))
            }
            other => Err(MoverError::Unexpected(format!("{other:?}"))),
        }
    }

    /// The connections go on here: they are given back. The destination is told, if it can be. Those that may go
    /// on there end here instead, without a word, and are not given back.
    pub fn abort<C: Read + Write + ?Sized>(mut self, channel: &mut C) -> Vec<S> {
        if self.decision != Decision::Open {
            self.end();
            return Vec::new();
        }
        let left = thaw_all(std::mem::take(&mut self.connections));
        if Message::Abort(self.id).send(channel).is_ok() {
            // It gives up by itself what it does not hear of.
            let _ = self.answer(channel);
        }
        left
    }

    /// The next answer to this move; those to others are of an earlier one over the same stream.
    fn answer<C: Read + ?Sized>(&self, channel: &mut C) -> Result<Message, MoverError> {
        loop {
            let message = Message::receive(channel, NO_CONNECTION)?;
            if message.id() == Some(self.id) {
                return Ok(message);
            }
        }
    }

    fn end(&mut self) {
        for (frozen, _) in self.connections.drain(..) {
            frozen.close();
        }
    }
}

impl<S: AsFd> Drop for Source<S> {
    fn drop(&mut self) {
        if self.decision != Decision::Open {
            self.end();
        }
    }
}

/// All go on here, as far as they can.
pub(super) fn thaw_all<S: AsFd>(connections: Vec<Still<S>>) -> Vec<S> {
    connections.into_iter().filter_map(|(frozen, _)| frozen.thaw().ok().flatten()).collect()
}
