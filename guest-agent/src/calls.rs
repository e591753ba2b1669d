//! A function for each operation, with typed arguments and results.

use std::fmt;

use control_abi::command::MAX_BUFFER;
use control_abi::field::{Arguments, Encoder, Fields, Tag, Type};
use control_abi::operation::Operation;
use control_abi::register::{Register, mark};
use control_abi::rights::RIGHTS;
use control_abi::status::Error;
use serde::{Serialize, Serializer};

use crate::driver::{Buffer, Driver, DriverError};

/// Room for the results of an operation.
const RESULT_BYTES: usize = 3584;

/// Which VM this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// The VM's name.
    pub name: String,
    /// The image that it was booted from.
    pub image: String,
    /// The identifier of the image's content.
    pub manifest: Manifest,
    /// What it may do.
    pub rights: Rights,
    /// How often it was copied, restored or moved, and one.
    pub generation: u32,
    /// Virtual processors.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// Milliseconds since it was started.
    #[serde(rename = "ms")]
    pub milliseconds: u64,
}

/// The identifier of an image's content, shown in hexadecimal; of 32 bytes, or empty where it is not
/// known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest(pub Vec<u8>);

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Manifest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a guest may do: the bits of the register `RIGHTS`, shown by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights(pub u32);

impl Rights {
    /// The names of the bits that have one.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        RIGHTS.iter().filter(move |(bit, ..)| self.0 >> bit & 1 != 0).map(|(_, name, _)| *name)
    }
}

impl Serialize for Rights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.names())
    }
}

/// How bad a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something failed.
    Error = 1,
    /// Something is not as it should be.
    Warning = 2,
    /// Something happened.
    Information = 3,
    /// For whoever looks for a mistake.
    Debugging = 4,
}

/// What an image has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageStat {
    /// Its name.
    pub image: String,
    /// The identifier of its content.
    pub manifest: Manifest,
    /// How many chunks it has.
    pub chunks: u32,
    /// Bytes of each but the last ones of its parts.
    pub chunk_bytes: u32,
    /// Bytes of all.
    pub bytes: u64,
}

/// A VM to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewVm {
    /// The image's name.
    pub image: String,
    /// Bytes of RAM; the host's choice if not given.
    pub memory: Option<u64>,
    /// Virtual processors; the host's choice if not given.
    pub cpus: Option<u32>,
    /// Words for the kernel, behind those of the image.
    pub command_line: Option<String>,
    /// The VM's name, or of several the beginning of it; the host's choice if not given.
    pub name: Option<String>,
}

/// A VM that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StartedVm {
    /// Its number.
    pub vm: u64,
    /// Its name.
    pub name: String,
}

/// State of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Its image is being loaded.
    Loading,
    /// It runs.
    Running,
    /// It has ended.
    Ended,
    /// One that this driver does not know.
    Other(u32),
}

impl From<u32> for State {
    fn from(number: u32) -> Self {
        match number {
            1 => Self::Loading,
            2 => Self::Running,
            3 => Self::Ended,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loading => f.pad("loading"),
            Self::Running => f.pad("running"),
            Self::Ended => f.pad("ended"),
            Self::Other(number) => f.pad(&format!("state {number}")),
        }
    }
}

/// A VM among others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmSummary {
    /// Its number.
    pub vm: u64,
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
    /// Its state.
    pub state: State,
    /// How it ended.
    pub exit_code: Option<u32>,
}

/// How a VM fares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmStatus {
    /// What a list says too.
    #[serde(flatten)]
    pub summary: VmSummary,
    /// Bytes of RAM.
    pub memory: Option<u64>,
    /// Virtual processors.
    pub cpus: Option<u32>,
    /// Milliseconds since it was started.
    #[serde(rename = "ms")]
    pub milliseconds: Option<u64>,
    /// Milliseconds until its guest said that it is ready.
    #[serde(rename = "ready_ms")]
    pub ready_milliseconds: Option<u64>,
    /// How it ended, in words.
    pub outcome: Option<String>,
    /// The first bytes that its guest printed. As text where it is JSON.
    #[serde(serialize_with = "lossy")]
    pub console: Vec<u8>,
}

fn lossy<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(bytes))
}

/// The fields of an input, as far as they are valid.
struct Input {
    operation: Operation,
    buffer: [u8; 4032],
    length: usize,
}

impl Input {
    const fn new(operation: Operation) -> Self {
        Self { operation, buffer: [0; 4032], length: 0 }
    }

    fn bytes(mut self, tag: Tag, value: &[u8]) -> Result<Self, DriverError> {
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

    fn u32(self, tag: Tag, value: u32) -> Result<Self, DriverError> {
        self.bytes(tag, &value.to_le_bytes())
    }

    fn u64(self, tag: Tag, value: u64) -> Result<Self, DriverError> {
        self.bytes(tag, &value.to_le_bytes())
    }

    fn text(self, tag: Tag, value: Option<&str>) -> Result<Self, DriverError> {
        match value {
            Some(value) => self.bytes(tag, value.as_bytes()),
            None => Ok(self),
        }
    }

    fn get(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

/// The fields of a result.
struct Output {
    operation: Operation,
    bytes: Vec<u8>,
}

impl Output {
    fn arguments(&self) -> Arguments<'_> {
        Arguments::of_result(&self.bytes)
    }

    fn missing(&self, tag: Tag) -> DriverError {
        let what = format!("there is no field '{}'", tag.label());
        DriverError::Malformed { operation: self.operation, what }
    }

    fn u32(&self, tag: Tag) -> Result<u32, DriverError> {
        self.arguments().u32(tag).ok_or_else(|| self.missing(tag))
    }

    fn u64(&self, tag: Tag) -> Result<u64, DriverError> {
        self.arguments().u64(tag).ok_or_else(|| self.missing(tag))
    }

    fn text(&self, tag: Tag) -> Result<String, DriverError> {
        self.arguments().text(tag).map(str::to_owned).ok_or_else(|| self.missing(tag))
    }

    fn manifest(&self) -> Manifest {
        Manifest(self.arguments().all(Tag::Manifest).next().unwrap_or_default().to_vec())
    }

    /// A result for each thing of a list, which the field `first` begins.
    fn list(&self, first: Tag) -> Vec<Self> {
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

    fn add(&mut self, tag: u16, value: &[u8]) {
        let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&tag.to_le_bytes());
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn summary(&self) -> Result<VmSummary, DriverError> {
        Ok(VmSummary {
            vm: self.u64(Tag::Vm)?,
            name: self.text(Tag::VmName)?,
            image: self.text(Tag::Image)?,
            state: self.u32(Tag::State)?.into(),
            exit_code: self.arguments().u32(Tag::ExitCode),
        })
    }
}

impl Driver {
    fn simple(&mut self, input: &Input) -> Result<(), DriverError> {
        self.call(input.operation, input.get(), Buffer::Output(&mut []))?;
        Ok(())
    }

    fn fields(&mut self, input: &Input) -> Result<Output, DriverError> {
        let mut bytes = vec![0; RESULT_BYTES];
        let length = self.call(input.operation, input.get(), Buffer::Output(&mut bytes))?;
        bytes.truncate(length);
        Ok(Output { operation: input.operation, bytes })
    }

    /// Has bytes sent back; whether they came back as they were.
    ///
    /// # Errors
    /// As [`call`](Self::call), as with all that follow.
    pub fn ping(&mut self, bytes: &[u8]) -> Result<bool, DriverError> {
        let mut echo = vec![0; bytes.len()];
        let length = self.call(Operation::Ping, bytes, Buffer::Output(&mut echo))?;
        Ok(length == bytes.len() && echo == bytes)
    }

    /// Says which VM this is.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn identify(&mut self) -> Result<Identity, DriverError> {
        let output = self.fields(&Input::new(Operation::Identify))?;
        Ok(Identity {
            name: output.text(Tag::VmName)?,
            image: output.arguments().text(Tag::Image).unwrap_or_default().to_owned(),
            manifest: output.manifest(),
            rights: Rights(output.u32(Tag::Rights)?),
            generation: output.u32(Tag::Generation)?,
            cpus: output.u32(Tag::Cpus)?,
            memory: output.u64(Tag::Memory)?,
            milliseconds: output.u64(Tag::Milliseconds)?,
        })
    }

    /// Puts a message of at most 1024 bytes into the VM's log.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn log(&mut self, message: &str, level: Level) -> Result<(), DriverError> {
        let input = Input::new(Operation::Log).text(Tag::Message, Some(message))?;
        self.simple(&input.u32(Tag::Level, level as u32)?)
    }

    /// Says that the guest does what it was booted for.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn ready(&mut self, message: Option<&str>) -> Result<(), DriverError> {
        self.simple(&Input::new(Operation::Ready).text(Tag::Message, message)?)
    }

    /// Says that the guest is alive.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn heartbeat(&mut self) -> Result<(), DriverError> {
        self.simple(&Input::new(Operation::Heartbeat))
    }

    /// Says values of metrics, at most 64.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn metrics<'a>(
        &mut self,
        metrics: impl IntoIterator<Item = (&'a str, u64)>,
    ) -> Result<(), DriverError> {
        let mut input = Input::new(Operation::Metrics);
        for (name, value) in metrics {
            input = input.text(Tag::Name, Some(name))?.u64(Tag::Value, value)?;
        }
        self.simple(&input)
    }

    /// Notes a name with its time.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn mark(&mut self, name: &str) -> Result<(), DriverError> {
        self.simple(&Input::new(Operation::Mark).text(Tag::Name, Some(name))?)
    }

    /// Notes that user space is up, by the register alone.
    pub fn mark_user_space(&self) {
        self.registers().write(Register::Mark, mark::USER_SPACE);
    }

    /// Says what an image has: this VM's own if none is named.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn image_stat(&mut self, image: Option<&str>) -> Result<ImageStat, DriverError> {
        let output = self.fields(&Input::new(Operation::ImageStat).text(Tag::Image, image)?)?;
        Ok(ImageStat {
            image: output.text(Tag::Image)?,
            manifest: output.manifest(),
            chunks: output.u32(Tag::Chunks)?,
            chunk_bytes: output.u32(Tag::ChunkBytes)?,
            bytes: output.u64(Tag::Bytes)?,
        })
    }

    /// Reads bytes of a chunk from `offset` on: as many as `length` says, else all the rest. Returns how
    /// many.
    ///
    /// # Errors
    /// As [`call`](Self::call); `BadLength` if there is less in the chunk, or more than room in `bytes`.
    pub fn image_fetch(
        &mut self,
        image: Option<&str>,
        chunk: u32,
        offset: u32,
        length: Option<u32>,
        bytes: &mut [u8],
    ) -> Result<usize, DriverError> {
        let input = Input::new(Operation::ImageFetch).text(Tag::Image, image)?;
        let mut input = input.u32(Tag::Chunk, chunk)?;
        if offset > 0 {
            input = input.u32(Tag::Offset, offset)?;
        }
        if let Some(length) = length {
            input = input.u32(Tag::Length, length)?;
        }
        self.call(Operation::ImageFetch, input.get(), Buffer::Output(bytes))
    }

    /// A whole chunk of an image, in as many pieces as it takes.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn image_chunk(
        &mut self,
        stat: &ImageStat,
        image: Option<&str>,
        chunk: u32,
    ) -> Result<Vec<u8>, DriverError> {
        let most = usize::try_from(stat.chunk_bytes).unwrap_or(usize::MAX).min(MAX_BUFFER as usize);
        let piece = self.largest_buffer().min(most);
        let mut bytes = vec![0; most];
        let mut filled = 0;
        while filled + piece < most {
            let offset = u32::try_from(filled).unwrap_or(u32::MAX);
            let into = &mut bytes[filled..filled + piece];
            let length = u32::try_from(piece).ok();
            match self.image_fetch(image, chunk, offset, length, into) {
                Ok(_) => filled += piece,
                // The chunk is shorter than most are: this is the last piece of it.
                Err(DriverError::Refused { error: Error::BadLength, .. }) => break,
                Err(error) => return Err(error),
            }
        }
        let offset = u32::try_from(filled).unwrap_or(u32::MAX);
        let end = (filled + piece).min(most);
        filled += self.image_fetch(image, chunk, offset, None, &mut bytes[filled..end])?;
        bytes.truncate(filled);
        Ok(bytes)
    }

    fn new_vm(operation: Operation, vm: &NewVm, count: Option<u32>) -> Result<Input, DriverError> {
        let mut input = Input::new(operation).text(Tag::Image, Some(&vm.image))?;
        if let Some(count) = count {
            input = input.u32(Tag::Count, count)?;
        }
        if let Some(memory) = vm.memory {
            input = input.u64(Tag::Memory, memory)?;
        }
        if let Some(cpus) = vm.cpus {
            input = input.u32(Tag::Cpus, cpus)?;
        }
        input
            .text(Tag::CommandLine, vm.command_line.as_deref())?
            .text(Tag::VmName, vm.name.as_deref())
    }

    fn started(&mut self, input: &Input) -> Result<Vec<StartedVm>, DriverError> {
        let output = self.fields(input)?;
        let list = output.list(Tag::Vm);
        list.iter()
            .map(|vm| Ok(StartedVm { vm: vm.u64(Tag::Vm)?, name: vm.text(Tag::VmName)? }))
            .collect()
    }

    /// Boots `count` VMs. The VMM fetches their image.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn vm_boot(&mut self, vm: &NewVm, count: u32) -> Result<Vec<StartedVm>, DriverError> {
        let count = (count != 1).then_some(count);
        self.started(&Self::new_vm(Operation::VmBoot, vm, count)?)
    }

    /// Makes a VM that waits for its image, which this guest hands over by [`vm_load`](Self::vm_load).
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn vm_prepare(&mut self, vm: &NewVm) -> Result<StartedVm, DriverError> {
        let started = self.started(&Self::new_vm(Operation::VmPrepare, vm, None)?)?;
        started.into_iter().next().ok_or_else(|| DriverError::Malformed {
            operation: Operation::VmPrepare,
            what: "there is no VM in it".to_owned(),
        })
    }

    /// Hands a chunk to a VM that waits for its image.
    ///
    /// # Errors
    /// As [`call`](Self::call); if the chunk is larger than a page and no larger piece of memory is to
    /// be had.
    pub fn vm_load(&mut self, vm: u64, chunk: u32, bytes: &[u8]) -> Result<(), DriverError> {
        let input = Input::new(Operation::VmLoad).u64(Tag::Vm, vm)?.u32(Tag::Chunk, chunk)?;
        self.call(Operation::VmLoad, input.get(), Buffer::Input(bytes))?;
        Ok(())
    }

    /// Says how a VM fares.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn vm_status(&mut self, vm: u64) -> Result<VmStatus, DriverError> {
        let output = self.fields(&Input::new(Operation::VmStatus).u64(Tag::Vm, vm)?)?;
        let fields = output.arguments();
        Ok(VmStatus {
            summary: output.summary()?,
            memory: fields.u64(Tag::Memory),
            cpus: fields.u32(Tag::Cpus),
            milliseconds: fields.u64(Tag::Milliseconds),
            ready_milliseconds: fields.u64(Tag::ReadyMilliseconds),
            outcome: fields.text(Tag::Outcome).map(str::to_owned),
            console: fields.all(Tag::Console).next().unwrap_or_default().to_vec(),
        })
    }

    /// Ends a VM.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn vm_stop(&mut self, vm: u64) -> Result<(), DriverError> {
        self.simple(&Input::new(Operation::VmStop).u64(Tag::Vm, vm)?)
    }

    /// All VMs, by number.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn vm_list(&mut self) -> Result<Vec<VmSummary>, DriverError> {
        let mut all: Vec<VmSummary> = Vec::new();
        loop {
            let mut input = Input::new(Operation::VmList);
            let last = all.last().map(|vm| vm.vm);
            if let Some(last) = last {
                input = input.u64(Tag::After, last)?;
            }
            let more = self.fields(&input)?.list(Tag::Vm);
            let known = all.len();
            for vm in &more {
                let vm = vm.summary()?;
                // Numbers ascend, so this ends.
                if all.last().is_none_or(|last| vm.vm > last.vm) {
                    all.push(vm);
                }
            }
            if all.len() == known {
                return Ok(all);
            }
        }
    }

    /// Says which cache the images of VMs come from that are booted from now on; the host's own choice
    /// if no servers are named. Returns what is used.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn cache_config(&mut self, servers: Option<&str>) -> Result<String, DriverError> {
        let input = Input::new(Operation::CacheConfig).text(Tag::Servers, servers)?;
        let output = self.fields(&input)?;
        Ok(output.arguments().text(Tag::Servers).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests;
