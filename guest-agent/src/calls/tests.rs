use std::cell::RefCell;
use std::rc::Rc;

use control_abi::field::Arguments;
use control_abi::operation::Input as Takes;
use control_abi::status::DONE;
use tempfile::TempDir;

use super::*;
use crate::driver::Options;
use crate::fake::FakeDevice;

pub(super) type Calls = Rc<RefCell<Vec<(Operation, Vec<u8>)>>>;

/// What a device of a test answers.
pub(super) trait Reply {
    fn reply(self) -> (u32, Vec<u8>);
}

impl Reply for Vec<u8> {
    fn reply(self) -> (u32, Vec<u8>) {
        (DONE, self)
    }
}

impl Reply for Result<Vec<u8>, Error> {
    fn reply(self) -> (u32, Vec<u8>) {
        self.map_or_else(|error| (error.status(), Vec::new()), Reply::reply)
    }
}

/// A driver whose device checks inputs as the real one does, notes them, and answers with `answer`.
pub(super) fn driver<R: Reply>(
    mut answer: impl FnMut(Operation, Arguments<'_>) -> R + 'static,
) -> (Driver, Calls, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let calls = Calls::default();
    let seen = Rc::clone(&calls);
    let (device, memory) = FakeDevice::new(move |operation, input| {
        let operation = Operation::from_number(operation).unwrap();
        let Takes::Fields(takes) = operation.input() else { return (DONE, input.to_vec()) };
        match Arguments::check(input, takes) {
            Ok(arguments) => {
                seen.borrow_mut().push((operation, input.to_vec()));
                answer(operation, arguments).reply()
            }
            Err(error) => (error.status(), Vec::new()),
        }
    });
    let options =
        Options { locks: Some(folder.path().to_owned()), line: None, ..Options::default() };
    (Driver::with_memory(Box::new(device), memory, options).unwrap(), calls, folder)
}

pub(super) fn output(fields: &[(Tag, &[u8])]) -> Vec<u8> {
    let mut output = Output { operation: Operation::Ping, bytes: Vec::new() };
    for (tag, value) in fields {
        output.add(tag.number(), value);
    }
    output.bytes
}

#[test]
fn inputs_are_what_the_operations_take() {
    let (mut driver, calls, _folder) = driver(|operation, _| match operation {
        Operation::CacheConfig => output(&[(Tag::Servers, b"a,b")]),
        _ => Vec::new(),
    });
    assert!(driver.ping(b"echo").unwrap());
    driver.log("a\nmessage", Level::Warning).unwrap();
    driver.ready(None).unwrap();
    driver.ready(Some("up")).unwrap();
    driver.heartbeat().unwrap();
    driver.metrics([("memory", 1), ("load", u64::MAX)]).unwrap();
    driver.mark("here").unwrap();
    driver.vm_stop(9).unwrap();
    driver.vm_load(9, 1, &[7; 4096]).unwrap();
    assert_eq!(driver.cache_config(Some("a,b")).unwrap(), "a,b");
    assert_eq!(driver.cache_config(None).unwrap(), "a,b");
    let calls = calls.borrow();
    let fields = |index: usize| Arguments::of_result(&calls[index].1);
    assert_eq!(
        (fields(0).text(Tag::Message), fields(0).u32(Tag::Level)),
        (Some("a\nmessage"), Some(2))
    );
    assert_eq!(fields(2).text(Tag::Message), Some("up"));
    assert_eq!(fields(4).all(Tag::Value).count(), 2);
    assert!(calls.len() >= 9, "{calls:?}");
}

#[test]
fn arguments_that_cannot_be_are_refused_here() {
    let (mut driver, calls, _folder) = driver(|_, _| Vec::new());
    let error = driver.mark("two\nlines").unwrap_err();
    assert!(error.to_string().contains("mark: name cannot be 'two\nlines'"), "{error}");
    assert!(driver.log(&"x".repeat(1025), Level::Error).is_err());
    assert!(driver.image_stat(Some(&"x".repeat(256))).is_err());
    assert!(calls.borrow().is_empty());
}

#[test]
fn an_identity_needs_its_fields() {
    let whole = |_: Operation, _: Arguments<'_>| {
        output(&[
            (Tag::VmName, b"guest-1"),
            (Tag::Image, b"debian"),
            (Tag::Manifest, &[0xab; 32]),
            (Tag::Rights, &3_u32.to_le_bytes()),
            (Tag::Generation, &1_u32.to_le_bytes()),
            (Tag::Cpus, &2_u32.to_le_bytes()),
            (Tag::Memory, &(1_u64 << 30).to_le_bytes()),
            (Tag::Milliseconds, &1234_u64.to_le_bytes()),
        ])
    };
    let identity = driver(whole).0.identify().unwrap();
    assert_eq!((identity.name.as_str(), identity.memory), ("guest-1", 1 << 30));
    let json = serde_json::to_value(&identity).unwrap();
    assert_eq!(json["rights"], serde_json::json!(["manager", "boot"]));
    assert_eq!(json["manifest"], "ab".repeat(32));
    assert_eq!(json["ms"], 1234);
    let error = driver(|_, _| output(&[(Tag::VmName, b"x")])).0.identify().unwrap_err();
    assert!(error.to_string().contains("no field 'rights'"), "{error}");
}

#[test]
fn a_chunk_comes_in_pieces_of_what_a_command_can_have() {
    for length in [0, 100, 4096, 4097, 8192, 10_000, 16_384] {
        let content: Vec<u8> = (0..length).map(|n: u32| n.to_le_bytes()[0] ^ 0x55).collect();
        let chunk = content.clone();
        let (mut driver, ..) = driver(move |_, arguments| {
            let number = |tag| arguments.u32(tag).map(|number| usize::try_from(number).unwrap());
            let from = number(Tag::Offset).unwrap_or(0);
            let wanted = number(Tag::Length).unwrap_or(chunk.len() - from);
            chunk.get(from..from + wanted).map(<[u8]>::to_vec).ok_or(Error::BadLength)
        });
        // A large piece would be memory that the device of the test does not know.
        driver.do_without_large_buffers();
        if length > 150 {
            let mut head = [0; 100];
            assert_eq!(driver.image_fetch(None, 0, 50, Some(100), &mut head).unwrap(), 100);
            assert_eq!(head, content[50..150]);
        }
        let stat = ImageStat {
            image: "a".into(),
            manifest: Manifest::default(),
            chunks: 1,
            chunk_bytes: 16384,
            bytes: u64::from(length),
        };
        assert_eq!(driver.image_chunk(&stat, None, 0).unwrap(), content);
    }
}

#[test]
fn lists_are_read_to_their_end() {
    let (mut driver, calls, _folder) = driver(|_, arguments| {
        let after = arguments.u64(Tag::After).unwrap_or(0);
        let mut bytes = Vec::new();
        for vm in (after + 1..=7_u64).take(3) {
            bytes.extend(output(&[
                (Tag::Vm, &vm.to_le_bytes()),
                (Tag::VmName, format!("guest-{vm}").as_bytes()),
                (Tag::Image, b"debian"),
                (Tag::State, &(2 + u32::from(vm == 7)).to_le_bytes()),
            ]));
            if vm == 7 {
                bytes.extend(output(&[(Tag::ExitCode, &10_u32.to_le_bytes())]));
            }
        }
        bytes
    });
    let all = driver.vm_list().unwrap();
    assert_eq!(all.iter().map(|vm| vm.vm).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!((all[6].state, all[6].exit_code), (State::Ended, Some(10)));
    assert_eq!((all[5].state, all[5].exit_code), (State::Running, None));
    assert_eq!(calls.borrow().len(), 4);
}

#[test]
fn vms_come_with_their_numbers_and_names() {
    let (mut driver, calls, _folder) = driver(|operation, arguments| {
        let count = match operation {
            Operation::VmBoot => arguments.u32(Tag::Count).unwrap_or(1),
            _ => 1,
        };
        let mut bytes = Vec::new();
        for vm in 0..u64::from(count) {
            bytes.extend(output(&[(Tag::Vm, &vm.to_le_bytes()), (Tag::VmName, b"n")]));
        }
        bytes
    });
    let vm = NewVm {
        image: "debian".into(),
        memory: Some(1 << 28),
        cpus: Some(2),
        command_line: Some("quiet".into()),
        name: Some("worker".into()),
    };
    assert_eq!(driver.vm_boot(&vm, 4).unwrap().len(), 4);
    assert_eq!(driver.vm_prepare(&vm).unwrap(), StartedVm { vm: 0, name: "n".into() });
    let minimal = NewVm { image: "debian".into(), ..NewVm::default() };
    assert_eq!(driver.vm_boot(&minimal, 1).unwrap().len(), 1);
    assert_eq!(Arguments::of_result(&calls.borrow()[0].1).u64(Tag::Memory), Some(1 << 28));
    // A status without a state is no status.
    assert!(matches!(driver.vm_status(1), Err(DriverError::Malformed { .. })));
}
