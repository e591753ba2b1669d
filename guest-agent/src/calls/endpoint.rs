//! Operations on virtual endpoints: services that are found, served, and moved with their connections.

mod results;

use control_abi::field::Tag;
use control_abi::operation::Operation;
use control_abi::status::Error;

pub use self::results::{
    BadVid, Change, Endpoint, Errand, ErrandKind, FailedFlow, Form, Moved, Phase, Range, Synced,
    Vid,
};
use super::RESULT_BYTES;
use super::fields::{Input, Output};
use crate::driver::{Buffer, Driver, DriverError};

/// Bytes of a message that goes with an ABORT.
const MESSAGE_BYTES: usize = 1024;

impl Driver {
    /// A list, into the buffer that most need, or into the largest if it is longer.
    fn endpoints(&mut self, input: &Input) -> Result<Vec<Endpoint>, DriverError> {
        let output = match self.fields(input) {
            Err(DriverError::Refused { error: Error::BadLength, .. })
                if self.largest_buffer() > RESULT_BYTES =>
            {
                let mut bytes = vec![0; self.largest_buffer()];
                let length = self.call(input.operation, input.get(), Buffer::Output(&mut bytes))?;
                bytes.truncate(length);
                Output { operation: input.operation, bytes }
            }
            output => output?,
        };
        output.list(Tag::Service).iter().map(Endpoint::read).collect()
    }

    /// Finds services of a name, or of a pattern of names; with a number, of each range the identifier to
    /// which a request of that hash goes.
    ///
    /// # Errors
    /// As [`call`](Self::call), as with all that follow.
    pub fn resolve(
        &mut self,
        service: &str,
        hash: Option<u64>,
    ) -> Result<Vec<Endpoint>, DriverError> {
        let mut input = Input::new(Operation::Resolve).text(Tag::Service, Some(service))?;
        if let Some(hash) = hash {
            input = input.u64(Tag::Hash, hash)?;
        }
        self.endpoints(&input)
    }

    /// Makes identifiers known as this VM's: one, number 0 of the prefix form, if no bounds are said.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn announce(&mut self, range: &Range) -> Result<Vec<Endpoint>, DriverError> {
        self.endpoints(&range.input(Operation::Announce)?)
    }

    /// Takes frames to identifiers that this VM has announced, and sends as them.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn listen(&mut self, range: &Range) -> Result<Vec<Endpoint>, DriverError> {
        self.endpoints(&range.input(Operation::Listen)?)
    }

    /// As [`listen`](Self::listen), of one identifier.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn bind(&mut self, vid: Vid) -> Result<Vec<Endpoint>, DriverError> {
        self.endpoints(&Input::new(Operation::Bind).bytes(Tag::Vid, &vid.0)?)
    }

    /// Gives identifiers up: all of the service that this VM has, if no bounds are said.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn withdraw(&mut self, range: &Range) -> Result<(), DriverError> {
        self.simple(&range.input(Operation::Withdraw)?)
    }

    /// What the host wants of this VM in a move, if anything; of a service if one is named. It comes again until it was answered by
    /// [`prepared`](Self::prepared), [`done`](Self::done) or [`abort`](Self::abort).
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn next_errand(&mut self, service: Option<&str>) -> Result<Option<Errand>, DriverError> {
        let output = self.fields(&Input::new(Operation::Next).text(Tag::Service, service)?)?;
        if output.bytes.is_empty() { Ok(None) } else { Errand::read(&output).map(Some) }
    }

    /// Notes a change of where frames to an identifier go, for [`sync`](Self::sync): to another VM of the
    /// host, or back.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn flow(
        &mut self,
        change: Change,
        vid: Vid,
        place: Option<&str>,
    ) -> Result<(), DriverError> {
        let input = Input::new(Operation::Flow).u32(Tag::Change, change.number())?;
        self.simple(&input.bytes(Tag::Vid, &vid.0)?.text(Tag::Place, place)?)
    }

    /// Makes the changes take effect that were noted, all or none.
    ///
    /// # Errors
    /// As [`call`](Self::call). That none has taken effect is no error here: the result says it.
    pub fn sync(&mut self) -> Result<Synced, DriverError> {
        Synced::read(&self.fields(&Input::new(Operation::Sync))?)
    }

    /// Asks for a move of identifiers, with their connections, to `VM`, `HOST/VM` or `any`; returns when it
    /// has ended. Its errands come meanwhile, to whichever driver asks for them.
    ///
    /// # Errors
    /// As [`call`](Self::call); `aborted` if the move has gone back.
    pub fn migrate_request(&mut self, range: &Range, place: &str) -> Result<Moved, DriverError> {
        self.moved(range, place, Operation::MigrateRequest)
    }

    /// As [`migrate_request`](Self::migrate_request), for services that bring their state over by
    /// themselves.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn move_range(&mut self, range: &Range, place: &str) -> Result<Moved, DriverError> {
        self.moved(range, place, Operation::Move)
    }

    fn moved(
        &mut self,
        range: &Range,
        place: &str,
        operation: Operation,
    ) -> Result<Moved, DriverError> {
        let input = range.input(operation)?.text(Tag::Place, Some(place))?;
        Moved::read(&self.fields(&input)?)
    }

    /// Says that an errand of a move that is not decided yet is done.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn prepared(&mut self, number: u64, errand: ErrandKind) -> Result<(), DriverError> {
        self.simple(&answer(Operation::Prepared, number, errand)?)
    }

    /// Says that an errand of a move that is decided is done.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn done(&mut self, number: u64, errand: ErrandKind) -> Result<(), DriverError> {
        self.simple(&answer(Operation::Done, number, errand)?)
    }

    /// Says that an errand cannot be done, and why; a move that is not decided goes back. Of the message the
    /// first 1024 bytes are told.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn abort(
        &mut self,
        number: u64,
        errand: Option<ErrandKind>,
        message: &str,
    ) -> Result<(), DriverError> {
        let mut input = Input::new(Operation::Abort).u64(Tag::Move, number)?;
        if let Some(errand) = errand {
            input = input.u32(Tag::Errand, errand.number())?;
        }
        let mut end = message.len().min(MESSAGE_BYTES);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        self.simple(&input.text(Tag::Message, message.get(..end))?)
    }

    /// Sends a piece of the state of what moves, whose first byte is the state's byte `at`: at most as many
    /// bytes as [`largest_buffer`](Self::largest_buffer) says, in order.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn move_send(&mut self, number: u64, at: u64, bytes: &[u8]) -> Result<(), DriverError> {
        let input = Input::new(Operation::MoveSend).u64(Tag::Move, number)?.u64(Tag::At, at)?;
        self.call(Operation::MoveSend, input.get(), Buffer::Input(bytes))?;
        Ok(())
    }

    /// Reads the state that was sent for this VM from byte `at` on, as much as fits into `bytes` (of at most
    /// [`largest_buffer`](Self::largest_buffer)). Returns how many bytes these are.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn move_receive(
        &mut self,
        number: u64,
        at: u64,
        bytes: &mut [u8],
    ) -> Result<usize, DriverError> {
        let input = Input::new(Operation::MoveReceive).u64(Tag::Move, number)?.u64(Tag::At, at)?;
        self.call(Operation::MoveReceive, input.get(), Buffer::Output(bytes))
    }

    /// Splits identifiers that this VM has in two, the second from number `pivot` on; that moves to `place` if
    /// one is named.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn split(
        &mut self,
        range: &Range,
        pivot: u32,
        place: Option<&str>,
    ) -> Result<Vec<Endpoint>, DriverError> {
        let input = range.input(Operation::Split)?.u32(Tag::Pivot, pivot)?;
        self.endpoints(&input.text(Tag::Place, place)?)
    }

    /// Joins identifiers that this VM has and that follow each other.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn merge(&mut self, range: &Range) -> Result<Vec<Endpoint>, DriverError> {
        self.endpoints(&range.input(Operation::Merge)?)
    }

    /// Notes that the VM `place` has a copy of what is served, or with [`Change::Delete`] that it has none any
    /// more.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn mirror(
        &mut self,
        range: &Range,
        place: &str,
        change: Option<Change>,
    ) -> Result<Vec<Endpoint>, DriverError> {
        let mut input = range.input(Operation::Mirror)?.text(Tag::Place, Some(place))?;
        if let Some(change) = change {
            input = input.u32(Tag::Change, change.number())?;
        }
        self.endpoints(&input)
    }
}

fn answer(operation: Operation, number: u64, errand: ErrandKind) -> Result<Input, DriverError> {
    Input::new(operation).u64(Tag::Move, number)?.u32(Tag::Errand, errand.number())
}

#[cfg(test)]
mod tests;
