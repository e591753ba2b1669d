//! Takes commands from the device, on the vCPU's thread, and passes them on.

use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender, TrySendError};

use control_abi::field::{Arguments, Fields, Tag};
use control_abi::operation::Operation;
use control_abi::register::mark;
use control_abi::status::Error;
use devices::control::{Answer, Call, Operations};
use vmm_sys_util::eventfd::EventFd;

use super::clock::Clock;
use super::journal::{Level, Note, What};
use super::{Completion, Job};

/// Where the device's commands arrive.
#[derive(Debug)]
pub struct Desk {
    jobs: SyncSender<Job>,
    /// The way to the event loop, which has the agent's connection; none if the guest may have no endpoints.
    agent: Option<(Sender<Completion>, Arc<EventFd>)>,
    clock: Clock,
}

impl Desk {
    pub(super) fn new(
        jobs: SyncSender<Job>,
        agent: Option<(Sender<Completion>, Arc<EventFd>)>,
        clock: Clock,
    ) -> Self {
        Self { jobs, agent, clock }
    }

    /// Past the worker, which may be long at something.
    fn forward(&self, call: Call) -> Result<Answer, Error> {
        let (agent, wake) = self.agent.as_ref().ok_or(Error::NotSupported)?;
        agent.send(Completion::Forward(call)).map_err(|_| Error::Host)?;
        let _ = wake.write(1);
        Ok(Answer::Accepted)
    }

    fn note(&self, what: What) -> Result<(), Error> {
        let note = Note { at: self.clock.elapsed(), what };
        self.pass_on(Job::Note(note))
    }

    fn pass_on(&self, job: Job) -> Result<(), Error> {
        self.jobs.try_send(job).map_err(|unsent| match unsent {
            TrySendError::Full(_) => Error::Busy,
            TrySendError::Disconnected(_) => Error::Host,
        })
    }

    fn say(&self, call: &Call) -> Result<(), Error> {
        let arguments = Arguments::of_result(&call.input);
        let text = |tag| arguments.text(tag).unwrap_or_default().to_owned();
        self.note(match call.operation {
            Operation::Log => {
                let level = arguments.u32(Tag::Level).unwrap_or(3);
                let level = Level::from_number(level).ok_or(Error::BadField)?;
                What::Log { level, message: text(Tag::Message) }
            }
            Operation::Ready => What::Ready { message: text(Tag::Message) },
            Operation::Heartbeat => What::Heartbeat,
            Operation::Mark => What::Mark { name: text(Tag::Name) },
            Operation::Metrics => What::Metrics { values: pairs(&call.input)? },
            _ => return Err(Error::NotSupported),
        })
    }
}

/// Names, and the value behind each.
fn pairs(input: &[u8]) -> Result<Vec<(String, u64)>, Error> {
    let mut pairs = Vec::new();
    let mut name = None;
    for field in Fields::new(input) {
        let field = field?;
        name = match (Tag::from_number(field.tag), name) {
            (Some(Tag::Name), None) => String::from_utf8(field.value.to_vec()).ok(),
            (Some(Tag::Value), Some(name)) => {
                let value = field.value.try_into().map_err(|_| Error::BadField)?;
                pairs.push((name, u64::from_le_bytes(value)));
                None
            }
            _ => return Err(Error::BadField),
        };
    }
    if name.is_some() { Err(Error::BadField) } else { Ok(pairs) }
}

impl Operations for Desk {
    fn call(&mut self, call: Call) -> Answer {
        let told = match call.operation {
            Operation::Log
            | Operation::Ready
            | Operation::Heartbeat
            | Operation::Mark
            | Operation::Metrics => self.say(&call).map(|()| Answer::Done(Vec::new())),
            Operation::ImageStat
            | Operation::ImageFetch
            | Operation::VmBoot
            | Operation::VmStatus
            | Operation::VmStop
            | Operation::VmList
            | Operation::VmPrepare
            | Operation::VmLoad
            | Operation::CacheConfig => self.pass_on(Job::Call(call)).map(|()| Answer::Accepted),
            Operation::Resolve
            | Operation::Announce
            | Operation::Listen
            | Operation::Bind
            | Operation::Next
            | Operation::Withdraw
            | Operation::Flow
            | Operation::Sync
            | Operation::MigrateRequest
            | Operation::Prepared
            | Operation::Abort
            | Operation::Done
            | Operation::MoveSend
            | Operation::MoveReceive
            | Operation::Split
            | Operation::Merge
            | Operation::Mirror
            | Operation::Move => self.forward(call),
            // The device's own.
            Operation::Ping | Operation::Identify | Operation::Cancel => Err(Error::NotSupported),
        };
        told.unwrap_or_else(Answer::Failed)
    }

    fn mark(&mut self, number: u32) {
        let name = match number {
            mark::INIT => "init".to_owned(),
            mark::USER_SPACE => "user space".to_owned(),
            number if number >= mark::FIRST_OWN => format!("mark {number}"),
            _ => return,
        };
        // One that is too fast for the worker loses its marks.
        let _ = self.note(What::Mark { name });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};

    use control_abi::field::Encoder;

    use super::*;

    fn desk() -> (Desk, Receiver<Job>) {
        let (jobs, received) = sync_channel(4);
        (Desk::new(jobs, None, Clock::default()), received)
    }

    fn call(operation: Operation, fill: impl Fn(&mut Encoder<'_>)) -> Call {
        let mut input = vec![0; 1000];
        let mut fields = Encoder::new(&mut input);
        fill(&mut fields);
        let length = fields.length();
        input.truncate(length);
        Call { ticket: 1, operation, input, buffer_length: 0 }
    }

    fn noted(received: &Receiver<Job>) -> What {
        match received.try_recv() {
            Ok(Job::Note(note)) => note.what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn metrics_are_pairs_of_name_and_value() {
        let (mut desk, received) = desk();
        let good = call(Operation::Metrics, |fields| {
            fields.text(Tag::Name, "load").unwrap().u64(Tag::Value, 7).unwrap();
            fields.text(Tag::Name, "free").unwrap().u64(Tag::Value, 8).unwrap();
        });
        assert_eq!(desk.call(good), Answer::Done(Vec::new()));
        let values = vec![("load".into(), 7), ("free".into(), 8)];
        assert_eq!(noted(&received), What::Metrics { values });
        for names in [1, 2] {
            let bad = call(Operation::Metrics, |fields| {
                fields.u64(Tag::Value, 7).unwrap();
                for _ in 0..names {
                    fields.text(Tag::Name, "load").unwrap();
                }
            });
            assert_eq!(desk.call(bad), Answer::Failed(Error::BadField));
        }
    }

    #[test]
    fn a_guest_that_is_too_fast_is_told_so() {
        let (mut desk, received) = desk();
        for _ in 0..4 {
            assert_eq!(desk.call(call(Operation::VmList, |_| ())), Answer::Accepted);
        }
        desk.mark(1);
        assert_eq!(desk.call(call(Operation::VmList, |_| ())), Answer::Failed(Error::Busy));
        drop(received);
        assert_eq!(desk.call(call(Operation::Ready, |_| ())), Answer::Failed(Error::Host));
    }

    #[test]
    fn marks_by_number_have_names() {
        let (mut desk, received) = desk();
        for number in [0, 1, 2, 3, 15, 16] {
            desk.mark(number);
        }
        for name in ["init", "user space", "mark 16"] {
            assert_eq!(noted(&received), What::Mark { name: name.into() });
        }
        assert!(received.try_recv().is_err());
    }

    #[test]
    fn levels_are_those_that_there_are() {
        let (mut desk, _received) = desk();
        for (level, good) in [(0, false), (1, true), (4, true), (5, false)] {
            let log = call(Operation::Log, |fields| {
                fields.bytes(Tag::Message, b"a\nb").unwrap().u32(Tag::Level, level).unwrap();
            });
            assert_eq!(desk.call(log) == Answer::Done(Vec::new()), good, "{level}");
        }
    }
}
