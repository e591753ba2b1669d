//! The fields of inputs and results ([`control_abi::field`]).

use control_abi::field::{Arguments, Encoder, Fields, Tag, Type};
use control_abi::operation::Operation;

use super::results::{Manifest, VmSummary};
use crate::driver::DriverError;

/// The fields of an input, as far as they are valid.
pub(super) struct Input {
    pub(super) operation: Operation,
    buffer: [u8; 4032],
    length: usize,
}

impl Input {
    pub(super) const fn new(operation: Operation) -> Self {
        Self { operation, buffer: [0; 4032], length: 0 }
    }

    pub(super) fn bytes(mut self, tag: Tag, value: &[u8]) -> Result<Self, DriverError> {
        let mut encoder = Encoder::new(&mut self.buffer[self.length..]);
        encoder.bytes(tag, value).map_err(|error| DriverError::Argument {
            operation: self.operation,
            what: tag.label(),
            value: match tag.value_type() {
                Type::U32 | Type::U64 => format!("{value:02x?}"),
                _ => String::from_utf8_lossy(value).into_owned(),
            },
            error,
        })?;
        self.length += encoder.length();
        Ok(self)
    }

    pub(super) fn u32(self, tag: Tag, value: u32) -> Result<Self, DriverError> {
        self.bytes(tag, &value.to_le_bytes())
    }

    pub(super) fn u64(self, tag: Tag, value: u64) -> Result<Self, DriverError> {
        self.bytes(tag, &value.to_le_bytes())
    }

    pub(super) fn text(self, tag: Tag, value: Option<&str>) -> Result<Self, DriverError> {
        match value {
            Some(value) => self.bytes(tag, value.as_bytes()),
            None => Ok(self),
        }
    }

    pub(super) fn get(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

/// The fields of a result.
pub(super) struct Output {
    pub(super) operation: Operation,
    pub(super) bytes: Vec<u8>,
}

impl Output {
    pub(super) fn arguments(&self) -> Arguments<'_> {
        Arguments::of_result(&self.bytes)
    }

    fn missing(&self, tag: Tag) -> DriverError {
        let what = format!("there is no field '{}'", tag.label());
        DriverError::Malformed { operation: self.operation, what }
    }

    pub(super) fn u32(&self, tag: Tag) -> Result<u32, DriverError> {
        self.arguments().u32(tag).ok_or_else(|| self.missing(tag))
    }

    pub(super) fn u64(&self, tag: Tag) -> Result<u64, DriverError> {
        self.arguments().u64(tag).ok_or_else(|| self.missing(tag))
    }

    pub(super) fn text(&self, tag: Tag) -> Result<String, DriverError> {
        self.arguments().text(tag).map(str::to_owned).ok_or_else(|| self.missing(tag))
    }

    pub(super) fn manifest(&self) -> Manifest {
        Manifest(self.arguments().all(Tag::Manifest).next().unwrap_or_default().to_vec())
    }

    /// A result for each thing of a list, which the field `first` begins.
    pub(super) fn list(&self, first: Tag) -> Vec<Self> {
        let mut things = Vec::new();
        for field in Fields::new(&self.bytes).filter_map(Result::ok) {
            if field.tag == first.number() {
                things.push(Self { operation: self.operation, bytes: Vec::new() });
            }
            let Some(thing) = things.last_mut() else { continue };
            thing.add(field.tag, field.value);
        }
        things
    }

    pub(super) fn add(&mut self, tag: u16, value: &[u8]) {
        let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&tag.to_le_bytes());
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(super) fn summary(&self) -> Result<VmSummary, DriverError> {
        Ok(VmSummary {
            vm: self.u64(Tag::Vm)?,
            name: self.text(Tag::VmName)?,
            image: self.text(Tag::Image)?,
            state: self.u32(Tag::State)?.into(),
            exit_code: self.arguments().u32(Tag::ExitCode),
        })
    }
}
