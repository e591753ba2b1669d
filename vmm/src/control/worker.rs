//! Carries out what guests ask for, on a thread of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use control_abi::event::{Event, Kind};
use control_abi::field::{Arguments, Tag};
use control_abi::operation::Operation;
use control_abi::status::Error;
use devices::control::Call;
use vmm_sys_util::eventfd::EventFd;

use super::images::Images;
use super::journal::{Journal, Said};
use super::vms::Manager;
use super::{Completion, Job};

/// The worker's own.
#[derive(Debug)]
pub struct Worker {
    journal: Journal,
    images: Images,
    manager: Option<Manager>,
    completions: Sender<Completion>,
    wake: Arc<EventFd>,
    ending: Arc<AtomicBool>,
}

impl Worker {
    pub(super) fn new(
        journal: Journal,
        images: Images,
        manager: Option<Manager>,
        completions: Sender<Completion>,
        wake: Arc<EventFd>,
        ending: Arc<AtomicBool>,
    ) -> Self {
        Self { journal, images, manager, completions, wake, ending }
    }

    pub(super) fn run(mut self, received: &Receiver<Job>) -> Said {
        for job in received {
            match job {
                Job::Note(note) => self.journal.add(note),
                Job::Call(_) | Job::Buffer { .. } if self.ending.load(Ordering::Acquire) => {}
                Job::Call(call) => self.call(&call),
                Job::Buffer { ticket, vm, chunk, data } => {
                    let loaded = data.and_then(|data| self.load(vm, chunk, &data));
                    self.end(ticket, loaded.map(|()| Vec::new()));
                }
                Job::VmEnded(number) => {
                    self.send(Completion::Event(Event::new(Kind::VmEnded, number)));
                }
                Job::End => break,
            }
        }
        self.journal.into_said()
    }

    fn send(&self, completion: Completion) {
        // If the event loop has ended, so has the guest.
        let _ = self.completions.send(completion);
        let _ = self.wake.write(1);
    }

    fn end(&self, ticket: u64, result: Result<Vec<u8>, Error>) {
        self.send(Completion::Ended { ticket, result });
    }

    fn call(&mut self, call: &Call) {
        if call.operation == Operation::VmLoad {
            let arguments = Arguments::of_result(&call.input);
            let vm = arguments.u64(Tag::Vm).unwrap_or_default();
            let chunk = arguments.u32(Tag::Chunk).unwrap_or_default();
            self.send(Completion::Wanted { ticket: call.ticket, vm, chunk });
            return;
        }
        let result = self.carry_out(call);
        if let Err(error) = &result {
            log::debug!("the guest's {} was refused: {error}", call.operation.label());
        }
        self.end(call.ticket, result);
    }

    fn carry_out(&mut self, call: &Call) -> Result<Vec<u8>, Error> {
        let arguments = Arguments::of_result(&call.input);
        let room = call.buffer_length;
        match call.operation {
            Operation::ImageStat => self.images.stat(&arguments),
            Operation::ImageFetch => self.images.fetch(&arguments, room),
            _ => {
                // Rights are the device's to check; without a manager there are none.
                let manager = self.manager.as_mut().ok_or(Error::NotPermitted)?;
                manager.call(call.operation, &arguments, room)
            }
        }
    }

    fn load(&mut self, vm: u64, chunk: u32, data: &[u8]) -> Result<(), Error> {
        self.manager.as_mut().ok_or(Error::NotPermitted)?.load(vm, chunk, data)
    }
}
