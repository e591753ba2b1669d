//! Commands, from their submission to their end.

use control_abi::field::Arguments;
use control_abi::operation::OPERATIONS;

use super::*;

#[test]
fn ping_gives_its_input_back() {
    let mut guest = Guest::manager();
    assert_eq!(guest.command(Operation::Ping, b"nonce"), status::DONE);
    assert_eq!(guest.output(5), b"nonce");
    assert!(guest.device.operations().calls.is_empty());
}

#[test]
fn identify_says_who_the_guest_is() {
    let mut guest = Guest::manager();
    guest.pass_time(1234);
    assert_eq!(guest.command(Operation::Identify, &[]), status::DONE);
    let output = guest.output(0);
    let said = Arguments::of_result(&output);
    assert_eq!(said.text(Tag::VmName), Some("vm1"));
    assert_eq!(said.text(Tag::Image), Some("debian:12"));
    assert_eq!(said.all(Tag::Manifest).next(), Some(&[7; 32][..]));
    assert_eq!(said.u32(Tag::Rights), Some(3));
    assert_eq!(said.u64(Tag::Memory), Some(512 << 20));
    assert_eq!(said.u64(Tag::Milliseconds), Some(1234));
}

#[test]
fn a_command_is_passed_on_and_its_answer_told() {
    let mut guest = Guest::manager();
    guest.device.operations().answer = Some(Answer::Done(b"out".to_vec()));
    let input = fields(&[(Tag::Message, "up")]);
    assert_eq!(guest.command(Operation::Ready, &input), status::DONE);
    assert_eq!(guest.output(input.len()), b"out");
    let call = &guest.device.operations().calls[0];
    assert_eq!((call.operation, &call.input), (Operation::Ready, &input));
    assert_eq!(call.buffer_length, 512);

    guest.device.operations().answer = Some(Answer::Failed(Error::NoMemory));
    assert_eq!(guest.command(Operation::Ready, &[]), Error::NoMemory.status());
    // More than there is room for is no answer, and nothing of it is seen.
    guest.put(COMMAND + 64, &[0; 512]);
    guest.device.operations().answer = Some(Answer::Done(vec![0xee; 513]));
    assert_eq!(guest.command(Operation::Ready, &[]), Error::BadLength.status());
    assert_eq!(guest.bytes(COMMAND + 64), [0; 512]);
}

#[test]
fn an_accepted_command_ends_later() {
    let mut guest = Guest::manager();
    guest.raise_ring();
    let input = fields(&[(Tag::Image, "debian:12")]);
    assert_eq!(guest.command(Operation::VmBoot, &input), status::ACCEPTED);
    assert_eq!(guest.bytes(COMMAND + 48), 1u64.to_le_bytes());
    guest.device.complete(1, Ok(b"two vms"));
    assert_eq!(guest.word(COMMAND + 12), status::DONE);
    assert_eq!(guest.output(input.len()), b"two vms");
    let event = Event::decode(&guest.bytes(RING + 64)).unwrap();
    let (kind, sequence, ticket) = (Kind::Completion, 77, 1);
    assert_eq!(event, Event { kind, status: status::DONE, sequence, ticket, value: 0 });
    assert_eq!(guest.line.read().unwrap(), 1);
    // Once.
    guest.device.complete(1, Err(Error::Host));
    assert_eq!(guest.word(COMMAND + 12), status::DONE);
    assert!(guest.line.read().is_err());
}

#[test]
fn no_more_than_64_are_worked_at() {
    let mut guest = Guest::manager();
    for _ in 0..MAX_ACCEPTED {
        assert_eq!(guest.command(Operation::Heartbeat, &[]), status::ACCEPTED);
    }
    assert_eq!(guest.command(Operation::Heartbeat, &[]), Error::Busy.status());
    guest.device.complete(5, Ok(&[]));
    assert_eq!(guest.command(Operation::Heartbeat, &[]), status::ACCEPTED);
}

#[test]
fn operations_need_their_rights() {
    let serving = rights::SERVE | rights::MIGRATE;
    let given =
        [0, rights::MANAGER, rights::BOOT, rights::MANAGER | rights::BOOT, rights::SERVE, serving];
    for held in given {
        let mut guest = Guest::new(Identity { rights: held, ..identity() });
        guest.device.operations().answer = Some(Answer::Done(Vec::new()));
        for operation in OPERATIONS {
            let got = guest.command(*operation, &[]);
            guest.pass_time(1000);
            let label = operation.label();
            let needed = operation.rights();
            if held & needed == needed {
                assert!(got == status::DONE || got == Error::BadField.status(), "{label}");
            } else {
                assert_eq!(got, Error::NotPermitted.status(), "{label}");
            }
        }
    }
}

#[test]
fn wrong_commands_have_their_errors() {
    let mut guest = Guest::manager();
    guest.prepare(0x0a, &[]);
    assert_eq!(guest.submit_at(COMMAND), Error::BadOperation.status());
    guest.prepare(Operation::Log.number(), b"\x01\x00\xff\xff");
    assert_eq!(guest.submit_at(COMMAND), Error::BadField.status());

    // Addresses: unaligned, at the end of RAM, in the hole, wrapping.
    for address in [COMMAND + 4, PIECE - 32, PIECE, HIGH + PIECE, u64::MAX - 63, 1 << 63] {
        assert_eq!(guest.submit_at(address), Error::BadAddress.status(), "{address:#x}");
    }
    // Memory that is no command is not written to.
    guest.put(COMMAND, &[0; 64]);
    assert_eq!(guest.submit_at(COMMAND), Error::BadMagic.status());
    assert_eq!(guest.bytes(COMMAND), [0; 64]);
    // A command that would cross its page, though the header alone does not.
    let header = Header::inline(0, 0, 100, 0).unwrap();
    guest.put(0x3fc0, &header.encode());
    assert_eq!(guest.submit_at(0x3fc0), Error::BadLength.status());
    assert_eq!(guest.word(0x3fc0 + 12), Error::BadLength.status());
}

#[test]
fn inputs_and_buffers_elsewhere_are_in_one_piece_of_ram() {
    let mut guest = Guest::manager();
    let elsewhere = |input: u64, buffer: u64, length| Header {
        operation: Operation::Ping.number(),
        sequence: 0,
        input: command::Place::At(input),
        input_length: 8,
        buffer: command::Place::At(buffer),
        buffer_length: length,
    };
    guest.put(0x100, b"far away");
    let mut submit = |header: Header| {
        guest.put(COMMAND, &header.encode());
        (guest.submit_at(COMMAND), guest.bytes::<8>(HIGH))
    };
    assert_eq!(submit(elsewhere(0x100, HIGH, 8)), (status::DONE, *b"far away"));
    let bad = Error::BadAddress.status();
    for input in [PIECE - 4, PIECE, u64::MAX - 3, HIGH - 4] {
        assert_eq!(submit(elsewhere(input, HIGH, 8)).0, bad, "{input:#x}");
    }
    for (buffer, length) in
        [(PIECE - 4, 8), (HIGH - 8, 16), (u64::MAX, 8), (u64::MAX - 7, 8), (0, 1 << 20)]
    {
        assert_eq!(submit(elsewhere(0x100, buffer, length)).0, bad, "{buffer:#x}");
    }
    assert_eq!(submit(elsewhere(0x100, 0, u32::MAX)).0, Error::BadLength.status());
}

#[test]
fn rates_are_kept_and_credit_says_how_many_are_left() {
    let mut guest = Guest::manager();
    assert_eq!(guest.get(Register::Credit), 256);
    for _ in 0..256 {
        assert_eq!(guest.command(Operation::Ping, &[]), status::DONE);
    }
    assert_eq!(guest.get(Register::Credit), 0);
    assert_eq!(guest.command(Operation::Ping, &[]), Error::RateLimited.status());
    guest.pass_time(10);
    assert_eq!(guest.get(Register::Credit), 10);
    assert_eq!(guest.command(Operation::Ping, &[]), status::DONE);
    // VMs have a rate of their own.
    guest.pass_time(1000);
    guest.device.operations().answer = Some(Answer::Done(Vec::new()));
    let input = fields(&[(Tag::Image, "a")]);
    let done =
        (0..100).filter(|_| guest.command(Operation::VmBoot, &input) == status::DONE).count();
    assert_eq!(done, 64);
}

#[test]
fn memory_of_cancelled_commands_is_left_alone() {
    let mut guest = Guest::manager();
    guest.raise_ring();
    for ticket in 1..=3u64 {
        assert_eq!(guest.command(Operation::Heartbeat, &[]), status::ACCEPTED);
        assert_eq!(guest.bytes(COMMAND + 48), ticket.to_le_bytes());
    }
    let mut input = vec![0; 12];
    Encoder::new(&mut input).u64(Tag::Ticket, 2).unwrap();
    assert_eq!(guest.command(Operation::Cancel, &input), status::DONE);
    guest.put(COMMAND, &[0xff; 512]);
    guest.device.complete(2, Ok(b"late"));
    assert_eq!(guest.bytes(COMMAND), [0xff; 512]);
    assert_eq!(guest.get(Register::RingHead), 0);
    guest.device.complete(1, Ok(b"in time"));
    assert_eq!(guest.get(Register::RingHead), 1);
    // One that was given up counts until it has ended.
    assert_eq!(guest.device.accepted.len(), 1);
    // All that are left.
    assert_eq!(guest.command(Operation::Cancel, &[]), status::DONE);
    guest.put(COMMAND, &[0xff; 512]);
    guest.device.complete(3, Err(Error::Host));
    assert_eq!(guest.bytes(COMMAND), [0xff; 512]);
    assert_eq!(guest.device.buffer(3), Err(Error::Aborted));
    assert!(guest.device.accepted.is_empty());
}

#[test]
fn buffers_of_accepted_commands_are_read_until_they_end() {
    let mut guest = Guest::manager();
    guest.prepare(Operation::Heartbeat.number(), &[]);
    guest.put(COMMAND + 64, b"chunk");
    assert_eq!(guest.submit_at(COMMAND), status::ACCEPTED);
    assert_eq!(&guest.device.buffer(1).unwrap()[..5], b"chunk");
    guest.device.complete(1, Ok(&[]));
    assert_eq!(guest.device.buffer(1), Err(Error::Aborted));
}
