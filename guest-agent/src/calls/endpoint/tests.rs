use control_abi::field::Arguments;

use super::super::tests::{driver, output};
use super::*;

const VID: Vid = Vid([0x0e, 0x53, 0, 0, 0, 1]);

fn endpoint(service: &str, low: u32) -> Vec<u8> {
    output(&[
        (Tag::Service, service.as_bytes()),
        (Tag::Form, &1_u32.to_le_bytes()),
        (Tag::Low, &low.to_le_bytes()),
        (Tag::High, &(low + 9).to_le_bytes()),
        (Tag::Vid, &VID.0),
        (Tag::Epoch, &7_u64.to_le_bytes()),
        (Tag::Phase, &3_u32.to_le_bytes()),
        (Tag::Own, &1_u32.to_le_bytes()),
    ])
}

#[test]
fn ranges_are_lists_of_what_the_operations_give() {
    let (mut driver, calls, _folder) = driver(|operation, arguments| {
        if operation == Operation::Withdraw {
            return Vec::new();
        }
        let service = arguments.text(Tag::Service).unwrap_or("bound").to_owned();
        [endpoint(&service, 0), endpoint(&service, 10)].concat()
    });
    let all = Range::all("web");
    let part = Range { form: Some(Form::Suffix), low: Some(1), high: Some(5), ..all.clone() };
    for found in [
        driver.resolve("web", Some(9)).unwrap(),
        driver.announce(&all).unwrap(),
        driver.listen(&part).unwrap(),
        driver.split(&part, 3, Some("b")).unwrap(),
        driver.merge(&all).unwrap(),
        driver.mirror(&all, "h/b", Some(Change::Delete)).unwrap(),
    ] {
        assert_eq!((found.len(), found[1].low, found[1].high), (2, 10, 19));
        let first = &found[0];
        assert_eq!((first.service.as_str(), first.form, first.vid), ("web", Form::Prefix, VID));
        assert_eq!((first.epoch, first.phase, first.own), (7, Phase::Moving, true));
    }
    assert_eq!(driver.bind(VID).unwrap()[0].service, "bound");
    driver.withdraw(&part).unwrap();
    let json = serde_json::to_value(driver.resolve("web", None).unwrap()).unwrap();
    assert_eq!(json[0]["vid"], "0e:53:00:00:00:01");
    assert_eq!((&json[0]["form"], &json[0]["phase"]), (&"prefix".into(), &"moving".into()));
    let calls = calls.borrow();
    let fields = |index: usize| Arguments::of_result(&calls[index].1);
    assert_eq!(fields(0).u64(Tag::Hash), Some(9));
    assert_eq!(fields(1).u32(Tag::Low), None);
    let of_part = (fields(2).u32(Tag::Form), fields(2).u32(Tag::Low), fields(2).u32(Tag::High));
    assert_eq!(of_part, (Some(2), Some(1), Some(5)));
    assert_eq!((fields(3).u32(Tag::Pivot), fields(3).text(Tag::Place)), (Some(3), Some("b")));
    assert_eq!(fields(5).u32(Tag::Change), Some(3));
}

#[test]
fn a_list_that_is_too_long_is_asked_for_with_a_larger_buffer() {
    let (mut driver, ..) = driver(|_, _| Err::<Vec<u8>, _>(Error::BadLength));
    driver.do_without_large_buffers();
    // The largest is a page here, and that is too small as well.
    let error = driver.resolve("*", None).unwrap_err();
    assert!(matches!(error, DriverError::Refused { error: Error::BadLength, .. }), "{error}");
}

#[test]
fn errands_come_until_there_are_none() {
    let mut left = 2_u64;
    let (mut driver, calls, _folder) = driver(move |operation, _| {
        if operation != Operation::Next || left == 0 {
            return Vec::new();
        }
        left -= 1;
        let mut bytes = output(&[
            (Tag::Errand, &(3 - u32::try_from(left).unwrap()).to_le_bytes()),
            (Tag::Move, &77_u64.to_le_bytes()),
        ]);
        bytes.extend(output(&[
            (Tag::Service, b"web"),
            (Tag::Form, &2_u32.to_le_bytes()),
            (Tag::Low, &0_u32.to_le_bytes()),
            (Tag::High, &0_u32.to_le_bytes()),
            (Tag::Vid, &VID.0),
        ]));
        if left == 0 {
            bytes.extend(output(&[(Tag::Bytes, &5_u64.to_le_bytes())]));
        }
        bytes
    });
    let first = driver.next_errand(None).unwrap().unwrap();
    assert_eq!((first.errand, first.number, first.bytes), (ErrandKind::Stop, 77, 0));
    let second = driver.next_errand(Some("web")).unwrap().unwrap();
    assert_eq!((second.errand, second.vid, second.bytes), (ErrandKind::Resume, Some(VID), 5));
    assert_eq!(driver.next_errand(None).unwrap(), None);
    driver.prepared(77, ErrandKind::Stop).unwrap();
    driver.done(77, ErrandKind::Free).unwrap();
    driver.abort(77, Some(ErrandKind::Stop), &"é".repeat(2000)).unwrap();
    driver.move_send(77, 4096, &[9; 4096]).unwrap();
    let calls = calls.borrow();
    let fields = |index: usize| Arguments::of_result(&calls[index].1);
    assert_eq!((fields(3).u64(Tag::Move), fields(3).u32(Tag::Errand)), (Some(77), Some(2)));
    assert_eq!(fields(4).u32(Tag::Errand), Some(6));
    assert_eq!(fields(5).text(Tag::Message).map(str::len), Some(1024));
    assert_eq!(fields(6).u64(Tag::At), Some(4096));
}

#[test]
fn a_state_comes_in_pieces() {
    let (mut driver, ..) = driver(|operation, arguments| {
        assert_eq!(operation, Operation::MoveReceive);
        let at = usize::try_from(arguments.u64(Tag::At).unwrap()).unwrap();
        b"a state of some bytes"[at..].iter().copied().take(10).collect::<Vec<u8>>()
    });
    let mut buffer = [0; 10];
    assert_eq!(driver.move_receive(1, 10, &mut buffer).unwrap(), 10);
    assert_eq!(&buffer, b" some byte");
    assert_eq!(driver.move_receive(1, 20, &mut buffer).unwrap(), 1);
}

#[test]
fn flows_take_effect_or_the_one_that_fails_is_told() {
    let mut fails = false;
    let (mut driver, calls, _folder) = driver(move |operation, _| {
        if operation != Operation::Sync {
            return Vec::new();
        }
        fails = !fails;
        let mut bytes = output(&[(Tag::Count, &(if fails { 2_u32 } else { 0 }).to_le_bytes())]);
        if !fails {
            bytes.extend(output(&[
                (Tag::Change, &2_u32.to_le_bytes()),
                (Tag::Vid, &VID.0),
                (Tag::Message, b"no such VM"),
            ]));
        }
        bytes
    });
    driver.flow(Change::Add, VID, Some("b")).unwrap();
    driver.flow(Change::Delete, VID, None).unwrap();
    assert_eq!(driver.sync().unwrap(), Synced { count: 2, failed: None });
    let failed = driver.sync().unwrap().failed.unwrap();
    assert_eq!((failed.change, failed.message.as_str()), (Change::Update, "no such VM"));
    assert_eq!(Arguments::of_result(&calls.borrow()[0].1).text(Tag::Place), Some("b"));
}

#[test]
fn moves_end_with_where_they_went() {
    let (mut driver, calls, _folder) = driver(|_, _| {
        output(&[
            (Tag::Move, &3_u64.to_le_bytes()),
            (Tag::Place, b"h2/b"),
            (Tag::Microseconds, &4100_u64.to_le_bytes()),
        ])
    });
    let moved = driver.migrate_request(&Range::all("web"), "any").unwrap();
    assert_eq!(moved, Moved { number: 3, place: "h2/b".to_owned(), microseconds: 4100 });
    driver.move_range(&Range::all("web"), "h2/b").unwrap();
    let operations: Vec<_> = calls.borrow().iter().map(|(operation, _)| *operation).collect();
    assert_eq!(operations, [Operation::MigrateRequest, Operation::Move]);
    assert_eq!(serde_json::to_value(moved).unwrap()["move"], 3);
}

#[test]
fn what_lacks_an_identifier_is_no_endpoint() {
    let (mut driver, ..) = driver(|_, _| output(&[(Tag::Service, b"web"), (Tag::Vid, b"short")]));
    assert!(matches!(driver.resolve("web", None), Err(DriverError::Malformed { .. })));
    for wrong in ["", "0e:53:00:00:00", "0e:53:00:00:00:1", "0e:53:00:00:00:+1", "0e:53:0:0:0:1:2"]
    {
        assert!(wrong.parse::<Vid>().is_err(), "{wrong}");
    }
    assert_eq!("0E:53:00:00:00:01".parse(), Ok(VID));
}
