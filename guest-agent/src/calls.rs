//! A function for each operation, with typed arguments and results.

pub mod endpoint;
mod fields;
mod results;
#[cfg(test)]
mod tests;

use control_abi::command::MAX_BUFFER;
use control_abi::field::Tag;
use control_abi::operation::Operation;
use control_abi::register::{Register, mark};
use control_abi::status::Error;

use self::fields::{Input, Output};
pub use self::results::{
    Identity, ImageStat, Level, Manifest, NewVm, Rights, StartedVm, State, VmStatus, VmSummary,
};
use crate::driver::{Buffer, Driver, DriverError};

/// Room for the results of an operation.
const RESULT_BYTES: usize = 3584;

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

    /// Has the device give up all commands of this guest that it works at: those of a program that was
    /// killed, too.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn cancel(&mut self) -> Result<(), DriverError> {
        self.simple(&Input::new(Operation::Cancel))
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
