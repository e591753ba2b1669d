//! The control device's part of the event loop: what the worker has done goes to the device here, since
//! this thread is the one that may write to guest memory; and the device's events go to the guest.

use std::rc::Rc;

use control_abi::event::LINE_BYTE;
use control_abi::status::Error;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::ControlParts;
use super::agent::SharedLink;
use super::event_loop::{Verdict, lock};
use crate::control::{Completion, Job};

/// The control device's events.
pub struct ControlEvents<'a> {
    control: &'a ControlParts,
    agent: SharedLink,
    verdict: Rc<Verdict>,
}

const FROM_WORKER: u32 = 0;
const FROM_DEVICE: u32 = 1;

impl<'a> ControlEvents<'a> {
    pub fn new(control: &'a ControlParts, agent: SharedLink, verdict: Rc<Verdict>) -> Self {
        Self { control, agent, verdict }
    }

    /// Tells the device what the worker has done.
    fn complete(&self) {
        let end = &self.control.end;
        let _ = end.wake.read();
        // No more than the device has accepted, and what was raised.
        while let Ok(completion) = end.completions.try_recv() {
            if let Completion::Forward(call) = completion {
                self.agent.borrow_mut().forward(call);
                continue;
            }
            let mut device = lock(&self.control.device);
            match completion {
                Completion::Ended { ticket, result } => {
                    device.complete(ticket, result.as_deref().map_err(|error| *error));
                }
                Completion::Wanted { ticket, vm, chunk } => {
                    let data = device.buffer(ticket);
                    // Not waiting: the worker may be long at something.
                    if end.jobs.try_send(Job::Buffer { ticket, vm, chunk, data }).is_err() {
                        device.complete(ticket, Err(Error::Busy));
                    }
                }
                Completion::Event(event) => device.raise(event),
                Completion::Forward(_) => {}
            }
        }
    }

    /// Has the guest hear that there are events. A byte that it has not read yet says so already.
    fn ring(&self) {
        let _ = self.control.raised.read();
        let mut line = lock(&self.control.line);
        if line.is_idle() {
            line.receive(&[LINE_BYTE]);
        }
    }
}

impl MutEventSubscriber for ControlEvents<'_> {
    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        if events.data() == FROM_WORKER {
            self.complete();
        } else {
            self.ring();
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let (wake, raised) = (&*self.control.end.wake, &self.control.raised);
        self.verdict.add(ops, Events::with_data(wake, FROM_WORKER, EventSet::IN));
        self.verdict.add(ops, Events::with_data(raised, FROM_DEVICE, EventSet::IN));
    }
}
