use std::cell::Cell;
use std::rc::Rc;

use control_abi::event::Kind;
use tempfile::TempDir;

use super::*;
use crate::fake::FakeDevice;

fn options(folder: &TempDir) -> Options {
    Options {
        locks: Some(folder.path().to_owned()),
        events: true,
        line: None,
        patience: Duration::from_secs(60),
        most: Duration::from_secs(60),
    }
}

fn echo(_: u16, input: &[u8]) -> (u32, Vec<u8>) {
    (DONE, input.to_vec())
}

fn driver(
    handler: impl FnMut(u16, &[u8]) -> (u32, Vec<u8>) + 'static,
) -> (Driver, FakeDevice, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let (device, memory) = FakeDevice::new(handler);
    let driver = Driver::with_memory(Box::new(device.clone()), memory, options(&folder)).unwrap();
    (driver, device, folder)
}

#[test]
fn bytes_come_back_whatever_their_length() {
    let (mut driver, ..) = driver(echo);
    for length in [0, 1, 4, 31, 1983, 1984, 1985, 4032] {
        let bytes: Vec<u8> = (0..=255).cycle().take(length).collect();
        let mut back = vec![0; length];
        let call = driver.call(Operation::Ping, &bytes, Buffer::Output(&mut back));
        assert_eq!((call.unwrap(), &back), (length, &bytes));
    }
    let error = driver.call(Operation::Ping, &[0; 4033], Buffer::Output(&mut [])).unwrap_err();
    assert!(matches!(error, DriverError::Refused { error: Error::BadLength, .. }), "{error}");
    let error = driver.call(Operation::Ping, &[], Buffer::Input(&vec![0; 2 << 20])).unwrap_err();
    assert!(matches!(error, DriverError::NoBuffer { bytes: 0x20_0000, source: None }), "{error}");
}

#[test]
fn a_device_that_sees_other_memory_is_noticed_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (device, _) = FakeDevice::new(echo);
    let (_, other) = FakeDevice::new(echo);
    let error = Driver::with_memory(Box::new(device), other, options(&folder)).unwrap_err();
    assert!(matches!(error, DriverError::Unseen { .. }), "{error}");
    let (device, memory) = FakeDevice::new(|_, input| (DONE, vec![0; input.len()]));
    let error = Driver::with_memory(Box::new(device), memory, options(&folder)).unwrap_err();
    assert!(matches!(error, DriverError::Echo), "{error}");
}

#[test]
fn what_there_is_no_room_for_is_submitted_again() {
    let count = Rc::new(Cell::new(0));
    let seen = Rc::clone(&count);
    let (mut driver, ..) = driver(move |operation, input| {
        if operation == 0 {
            return echo(operation, input);
        }
        seen.set(seen.get() + 1);
        match seen.get() {
            1 => (Error::RateLimited.status(), Vec::new()),
            2 => (Error::Busy.status(), Vec::new()),
            3 => (DONE, Vec::new()),
            _ => (Error::NotPermitted.status(), Vec::new()),
        }
    });
    driver.call(Operation::Heartbeat, &[], Buffer::Output(&mut [])).unwrap();
    assert_eq!(count.get(), 3);
    let error = driver.call(Operation::Heartbeat, &[], Buffer::Output(&mut [])).unwrap_err();
    assert!(matches!(error, DriverError::Refused { error: Error::NotPermitted, .. }), "{error}");
    assert!(error.to_string().starts_with("heartbeat: not-permitted (E0000006)"), "{error}");
    assert_eq!(count.get(), 4);
    driver.options.patience = Duration::ZERO;
    count.set(1);
    let error = driver.call(Operation::Heartbeat, &[], Buffer::Output(&mut [])).unwrap_err();
    assert!(matches!(error, DriverError::Refused { error: Error::Busy, .. }), "{error}");
}

#[test]
fn accepted_commands_are_waited_for() {
    let (mut driver, device, _folder) = driver(echo);
    device.set(Register::Features, control_abi::register::feature::EVENTS);
    for accesses in [0, 1, 20] {
        device.delay(accesses);
        let mut back = [0; 5];
        let call = driver.call(Operation::Ping, b"hello", Buffer::Output(&mut back));
        assert_eq!((call.unwrap(), &back), (5, b"hello"));
    }
}

#[test]
fn a_command_that_never_ends_is_given_up_with_its_memory() {
    let (mut driver, device, _folder) = driver(echo);
    device.delay(u32::MAX);
    driver.options.most = Duration::ZERO;
    let error = driver.call(Operation::Heartbeat, &[], Buffer::Output(&mut [])).unwrap_err();
    assert!(matches!(error, DriverError::NoAnswer { .. }), "{error}");
    let error = driver.call(Operation::Heartbeat, &[], Buffer::Output(&mut [])).unwrap_err();
    assert!(matches!(error, DriverError::GivenUp), "{error}");
}

#[test]
fn a_command_is_lost_when_the_generation_changes_and_the_next_is_not() {
    let (mut driver, device, _folder) = driver(echo);
    driver.has_events();
    device.delay(u32::MAX);
    let generation = Rc::new(device.clone());
    generation.set(Register::Generation, 2);
    // The echo that follows a change of generation must be answered.
    let error = {
        device.delay(3);
        driver.generation = 1;
        driver.submit(Operation::Heartbeat, &[], &Buffer::Output(&mut []), Where::Behind(64))
    };
    assert_eq!(error.unwrap(), ACCEPTED);
    let error = driver.wait_for_end(Operation::Heartbeat).unwrap_err();
    assert!(matches!(error, DriverError::Lost { generation: 2, .. }), "{error}");
    driver.call(Operation::Heartbeat, &[], Buffer::Output(&mut [])).unwrap();
    assert_eq!(driver.check_generation().unwrap(), 2);
}

#[test]
fn events_that_are_no_completions_are_kept() {
    use control_abi::register::feature::EVENTS;
    let (mut driver, device, folder) = driver(echo);
    assert_eq!(driver.has_events(), (false, false));
    assert_eq!(driver.next_event(Duration::ZERO), None);
    drop(driver);
    device.set(Register::Features, EVENTS);
    let (_, memory) = FakeDevice::new(echo);
    drop(memory);
    let (device, memory) = FakeDevice::new(echo);
    device.set(Register::Features, EVENTS);
    let mut driver =
        Driver::with_memory(Box::new(device.clone()), memory, options(&folder)).unwrap();
    assert_eq!(driver.has_events(), (true, false));
    device.announce(Event::new(Kind::Completion, 0));
    device.announce(Event::new(Kind::VmEnded, 5));
    assert_eq!(driver.next_event(Duration::from_secs(60)).map(|event| event.value), Some(5));

    // The ring is of one driver at a time, and free again when that ends.
    let (other_device, memory) = FakeDevice::new(echo);
    other_device.set(Register::Features, EVENTS);
    let mut other = Driver::with_memory(Box::new(other_device), memory, options(&folder)).unwrap();
    assert_eq!(other.has_events(), (false, false));
    let ring = driver.memory().load(RING);
    drop(driver);
    device.announce(Event::new(Kind::VmEnded, 6));
    assert_eq!(ring, 2);
    other.events = Events::NotTried;
    assert_eq!(other.has_events(), (true, false));
}

#[test]
fn answers_without_a_meaning_are_errors() {
    let status = Rc::new(Cell::new(DONE));
    let seen = Rc::clone(&status);
    let (mut driver, ..) = driver(move |_, input| (seen.get(), input.to_vec()));
    for wrong in [3, 0xe000_00ff, u32::MAX] {
        status.set(wrong);
        let error = driver.call(Operation::Ping, &[], Buffer::Output(&mut [])).unwrap_err();
        assert!(matches!(error, DriverError::Malformed { .. }), "{error}");
    }
}
