//! A command, from guest memory to what is known to be right.

use control_abi::command::{
    ALIGNMENT, HEADER_BYTES, Header, OUTPUT_LENGTH_OFFSET, Place, STATUS_OFFSET, TICKET_OFFSET,
};
use control_abi::field::Arguments;
use control_abi::operation::{Input, Operation};
use control_abi::status::{self, Error};

use super::memory::{CommandMemory, MemoryError, within_page};

/// A command's own copy, of which only its form was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Number of the operation.
    operation: u16,
    /// The guest's own number.
    pub sequence: u64,
    /// A copy of the input.
    pub input: Vec<u8>,
    /// Bytes of its buffer.
    pub buffer_length: u32,
}

/// Where the outcome of a command goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Address of the header.
    command: u64,
    buffer: u64,
    buffer_length: u32,
}

/// A command that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    pub error: Error,
    /// Where the error can be told; not if that may be no command at all.
    pub target: Option<Target>,
}

impl Request {
    /// Copies what is at `address`, once.
    ///
    /// # Errors
    /// It is no command, or its parts are not where they can be.
    pub fn copy(memory: &impl CommandMemory, address: u64) -> Result<(Self, Target), Refused> {
        let nowhere = |error| Refused { error, target: None };
        if !address.is_multiple_of(ALIGNMENT) {
            return Err(nowhere(Error::BadAddress));
        }
        let mut bytes = [0; HEADER_BYTES as usize];
        memory.read_bytes(address, &mut bytes).map_err(|MemoryError| nowhere(Error::BadAddress))?;
        let mut target = Target { command: address, buffer: 0, buffer_length: 0 };
        let header = Header::decode(&bytes).map_err(|error| match error {
            // Whatever this is, a status word may not be where it is written to.
            Error::BadMagic | Error::BadVersion => nowhere(error),
            error => Refused { error, target: Some(target) },
        })?;
        let refused = |error| Refused { error, target: Some(target) };
        if !within_page(address, header.extent()) {
            return Err(refused(Error::BadLength));
        }
        let place = |place| match place {
            // Cannot wrap: it is within the page.
            Place::Inline(offset) => address.saturating_add(u64::from(offset)),
            Place::At(address) => address,
        };
        let mut input = vec![0; header.input_length as usize];
        if !input.is_empty() {
            memory
                .read_bytes(place(header.input), &mut input)
                .map_err(|MemoryError| refused(Error::BadAddress))?;
        }
        let buffer = place(header.buffer);
        if header.buffer_length > 0 && !memory.has(buffer, u64::from(header.buffer_length)) {
            return Err(refused(Error::BadAddress));
        }
        (target.buffer, target.buffer_length) = (buffer, header.buffer_length);
        let Header { operation, sequence, buffer_length, .. } = header;
        Ok((Self { operation, sequence, input, buffer_length }, target))
    }

    /// Which operation this is, if a guest with these rights may have it and its input is what it takes.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, rights: u32) -> Result<Operation, Error> {
        let operation = Operation::from_number(self.operation).ok_or(Error::BadOperation)?;
        let needed = operation.rights();
        match operation.input() {
            _ if rights & needed != needed => return Err(Error::NotPermitted),
            Input::Raw => {}
            Input::Fields(takes) => drop(Arguments::check(&self.input, takes)?),
        }
        Ok(operation)
    }
}

impl Target {
    fn word(&self, offset: u16) -> u64 {
        self.command.saturating_add(u64::from(offset))
    }

    /// The status, which the guest sees after all that was written before.
    pub fn write_status(
        &self,
        memory: &impl CommandMemory,
        status: u32,
    ) -> Result<(), MemoryError> {
        memory.store_word(self.word(STATUS_OFFSET), status)
    }

    /// The ticket, and that the command was accepted.
    pub fn write_accepted(
        &self,
        memory: &impl CommandMemory,
        ticket: u64,
    ) -> Result<(), MemoryError> {
        memory.write_bytes(self.word(TICKET_OFFSET), &ticket.to_le_bytes())?;
        self.write_status(memory, status::ACCEPTED)
    }

    /// The output, and how long it is.
    ///
    /// # Errors
    /// It is longer than the buffer, or that is not in RAM.
    pub fn write_output(&self, memory: &impl CommandMemory, output: &[u8]) -> Result<(), Error> {
        let length = u32::try_from(output.len()).map_err(|_| Error::BadLength)?;
        if length > self.buffer_length {
            return Err(Error::BadLength);
        }
        let written =
            if output.is_empty() { Ok(()) } else { memory.write_bytes(self.buffer, output) };
        let written =
            written.and_then(|()| memory.store_word(self.word(OUTPUT_LENGTH_OFFSET), length));
        written.map_err(|MemoryError| Error::BadAddress)
    }

    /// A copy of the buffer.
    pub fn read_buffer(&self, memory: &impl CommandMemory) -> Result<Vec<u8>, MemoryError> {
        let mut data = vec![0; self.buffer_length as usize];
        if !data.is_empty() {
            memory.read_bytes(self.buffer, &mut data)?;
        }
        Ok(data)
    }
}
