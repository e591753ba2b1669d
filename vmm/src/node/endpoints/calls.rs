//! What guests ask for, as it stands in the control device's fields.

use control_abi::field::{Arguments, Encoder, Tag};
use control_abi::operation::Operation;
use control_abi::status::Error as Status;
use endpoint::range::{Form, Range};
use endpoint::record::Record;
use endpoint::vid::Vid;
use vswitch::{Change, SyncError};

use super::error::EndpointError;
use super::guests::{Errand, MOST_STAGED, Outcome};
use super::{Endpoints, Selection};
use crate::api::endpoint::FlowChange;

/// A command of a guest.
#[derive(Debug)]
pub struct GuestCall {
    /// The VM's number.
    pub vm: u64,
    /// Of the command.
    pub ticket: u64,
    /// What is asked for.
    pub operation: Operation,
    /// The arguments.
    pub input: Vec<u8>,
    /// What is in the buffer, if it is read.
    pub data: Vec<u8>,
    /// Bytes of output that there is room for.
    pub room: u32,
}

impl GuestCall {
    /// Whether it never waits for the directory or a switch, and so is done by who hears it.
    pub fn is_quick(&self) -> bool {
        matches!(
            self.operation,
            Operation::Next
                | Operation::Prepared
                | Operation::Done
                | Operation::Abort
                | Operation::MoveSend
                | Operation::MoveReceive
        )
    }

    /// Whether it takes as long as a move.
    pub fn is_long(&self) -> bool {
        matches!(self.operation, Operation::MigrateRequest | Operation::Move | Operation::Split)
    }

    fn arguments(&self) -> Arguments<'_> {
        Arguments::of_result(&self.input)
    }

    fn text(&self, tag: Tag) -> &str {
        self.arguments().text(tag).unwrap_or_default()
    }

    /// Which identifiers it is about.
    fn selection(&self) -> Result<Selection, EndpointError> {
        let arguments = self.arguments();
        let form = arguments.u32(Tag::Form).map(form).transpose()?;
        let (lo, hi) = (arguments.u32(Tag::Low), arguments.u32(Tag::High));
        Ok(Selection { service: self.text(Tag::Service).parse()?, form, lo, hi })
    }

    fn vid(&self) -> Result<Vid, EndpointError> {
        let bytes = self.arguments().all(Tag::Vid).next().unwrap_or_default();
        let bytes = bytes.try_into().map_err(|_| EndpointError::Guest("no identifier"))?;
        Ok(Vid::new(bytes)?)
    }
}

fn form(number: u32) -> Result<Form, EndpointError> {
    match number {
        1 => Ok(Form::Prefix),
        2 => Ok(Form::Suffix),
        other => Err(EndpointError::Form(other.to_string())),
    }
}

fn form_number(form: Form) -> u32 {
    match form {
        Form::Prefix => 1,
        Form::Suffix => 2,
    }
}

/// Fields of all things. A guest whose buffer is too small comes again with a larger one.
fn fields<T>(
    things: impl IntoIterator<Item = T>,
    put: impl Fn(&mut Encoder<'_>, T) -> Result<(), Status>,
    room: u32,
) -> Result<Vec<u8>, EndpointError> {
    let mut output = vec![0; usize::try_from(room).unwrap_or_default()];
    let mut encoder = Encoder::new(&mut output);
    for thing in things {
        put(&mut encoder, thing).map_err(|_| EndpointError::Room(room))?;
    }
    let length = encoder.length();
    output.truncate(length);
    Ok(output)
}

fn put_range(fields: &mut Encoder<'_>, range: Range) -> Result<(), Status> {
    fields
        .u32(Tag::Form, form_number(range.form()))?
        .u32(Tag::Low, range.lo())?
        .u32(Tag::High, range.hi())?;
    Ok(())
}

fn put_errand(fields: &mut Encoder<'_>, errand: &Errand) -> Result<(), Status> {
    fields
        .u32(Tag::Errand, errand.deed as u32)?
        .u64(Tag::Move, errand.number)?
        .text(Tag::Service, errand.service.as_str())?;
    put_range(fields, errand.range)?;
    fields.bytes(Tag::Vid, &errand.range.first().bytes())?.u64(Tag::Bytes, errand.bytes)?;
    Ok(())
}

impl Endpoints {
    /// What a guest is told of records: where they are is none of its business.
    fn told(
        &self,
        vm: u64,
        records: Vec<Record>,
        hash: Option<u64>,
        room: u32,
    ) -> Result<Vec<u8>, EndpointError> {
        let home = self.home_of_vm(vm);
        let put = |fields: &mut Encoder<'_>, record: Record| {
            let range = record.range;
            let vid = hash.map_or_else(|| range.first(), |hash| range.pick(hash));
            let phase = match record.phase.name() {
                _ if self.is_orphan(&record) => 5,
                "preparing" => 2,
                "moving" => 3,
                "frozen" => 4,
                _ => 1,
            };
            fields.text(Tag::Service, record.service.as_str())?;
            put_range(fields, range)?;
            fields
                .bytes(Tag::Vid, &vid.bytes())?
                .u64(Tag::Epoch, record.epoch)?
                .u32(Tag::Phase, phase)?
                .u32(Tag::Own, u32::from(home.as_ref() == Some(&record.home)))?;
            Ok(())
        };
        fields(records, put, room)
    }

    /// Carries out what a guest asks for; its output.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn carry_out(&self, call: &GuestCall) -> Result<Vec<u8>, EndpointError> {
        let (vm, arguments, room) = (call.vm, call.arguments(), call.room);
        let own = Some(vm);
        match call.operation {
            Operation::Resolve => {
                let pattern = call.text(Tag::Service).parse()?;
                let records = self.services(&pattern);
                self.told(vm, records, arguments.u64(Tag::Hash), room)
            }
            Operation::Announce => {
                let record = self.announce_at(vm, &call.selection()?)?;
                self.told(vm, vec![record], None, room)
            }
            Operation::Listen => {
                let records = self.listen(own, &call.selection()?)?;
                self.told(vm, records, None, room)
            }
            Operation::Bind => {
                let record = self.bind(vm, call.vid()?)?;
                self.told(vm, vec![record], None, room)
            }
            Operation::Withdraw => {
                self.withdraw(own, &call.selection()?)?;
                Ok(Vec::new())
            }
            Operation::Flow => {
                let vid = call.vid()?.to_string();
                let place = call.text(Tag::Place).to_owned();
                let change = match (arguments.u32(Tag::Change), place.is_empty()) {
                    (Some(1), false) => FlowChange::Add { vid, vm: place },
                    (Some(2), false) => FlowChange::Update { vid, vm: place },
                    (Some(3), true) => FlowChange::Delete { vid },
                    _ => return Err(EndpointError::Guest("no such change of a flow")),
                };
                self.stage(vm, change).map(|()| Vec::new())
            }
            Operation::Sync => {
                let staged = self.take_staged(vm);
                let count = u32::try_from(staged.len()).unwrap_or(u32::MAX);
                let failed = match self.sync_for(own, &staged) {
                    Ok(()) => None,
                    Err(EndpointError::Sync(error)) => Some(error),
                    Err(error) => return Err(error),
                };
                let put = |fields: &mut Encoder<'_>, failed: Option<SyncError>| {
                    let Some(error) = failed else {
                        return fields.u32(Tag::Count, count).map(drop);
                    };
                    let number = match error.change {
                        Change::Add { .. } => 1,
                        Change::Update { .. } => 2,
                        Change::Delete { .. } => 3,
                    };
                    fields
                        .u32(Tag::Count, 0)?
                        .u32(Tag::Change, number)?
                        .bytes(Tag::Vid, &error.change.vid().bytes())?
                        .text(Tag::Message, &error.source.to_string())?;
                    Ok(())
                };
                fields([failed], put, room)
            }
            Operation::MigrateRequest | Operation::Move => {
                let stateless = call.operation == Operation::Move;
                let (selection, place) = (call.selection()?, call.text(Tag::Place));
                let done = self.move_to(own, &selection, place, stateless)?;
                if done.outcome != "moved" {
                    return Err(EndpointError::Aborted(done.reason.unwrap_or(done.outcome)));
                }
                let put = |fields: &mut Encoder<'_>, ()| {
                    fields
                        .u64(Tag::Move, done.number)?
                        .text(Tag::Place, done.to.split('/').next_back().unwrap_or_default())?
                        .u64(Tag::Microseconds, done.us)?;
                    Ok(())
                };
                fields([()], put, room)
            }
            Operation::Split => {
                let pivot = arguments.u32(Tag::Pivot).unwrap_or_default();
                let place = Some(call.text(Tag::Place)).filter(|place| !place.is_empty());
                let (records, _) = self.split(own, &call.selection()?, pivot, place)?;
                self.told(vm, records, None, room)
            }
            Operation::Merge => {
                let record = self.merge(own, &call.selection()?)?;
                self.told(vm, vec![record], None, room)
            }
            Operation::Mirror => {
                let remove = arguments.u32(Tag::Change) == Some(3);
                let place = call.text(Tag::Place);
                let records = self.mirror(own, &call.selection()?, place, remove)?;
                self.told(vm, records, None, room)
            }
            _ => self.of_a_move(call),
        }
    }

    /// What belongs to moves that go on.
    fn of_a_move(&self, call: &GuestCall) -> Result<Vec<u8>, EndpointError> {
        let (vm, arguments) = (call.vm, call.arguments());
        let number = arguments.u64(Tag::Move).unwrap_or_default();
        let at = arguments.u64(Tag::At).unwrap_or_default();
        match call.operation {
            Operation::Next => {
                let service = Some(call.text(Tag::Service)).filter(|name| !name.is_empty());
                let errand = self.next_errand(vm, service);
                fields(errand.iter(), put_errand, call.room)
            }
            Operation::Prepared | Operation::Done => {
                let deed = arguments.u32(Tag::Errand);
                self.errand_answered(vm, number, deed, Outcome::Done).map(|()| Vec::new())
            }
            Operation::Abort => {
                let why = Some(call.text(Tag::Message)).filter(|why| !why.is_empty());
                let why = why.unwrap_or("the guest gives it up").to_owned();
                let deed = arguments.u32(Tag::Errand);
                self.errand_answered(vm, number, deed, Outcome::Refused(why)).map(|()| Vec::new())
            }
            Operation::MoveSend => self.state_sent(vm, number, at, &call.data).map(|()| Vec::new()),
            Operation::MoveReceive => self.state_taken(vm, number, at, call.room),
            _ => Err(EndpointError::Guest("an operation that is not of endpoints")),
        }
    }

    fn stage(&self, vm: u64, change: FlowChange) -> Result<(), EndpointError> {
        let mut guests = self.guests().lock();
        let guest = guests.get_mut(vm).ok_or(EndpointError::Guest("the VM is gone"))?;
        if guest.staged.len() >= MOST_STAGED {
            return Err(EndpointError::Busy(MOST_STAGED));
        }
        guest.staged.push(change);
        Ok(())
    }

    fn take_staged(&self, vm: u64) -> Vec<FlowChange> {
        let mut guests = self.guests().lock();
        guests.get_mut(vm).map(|guest| std::mem::take(&mut guest.staged)).unwrap_or_default()
    }
}
