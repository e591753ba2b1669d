use proptest::prelude::*;

use super::*;

fn range(lo: u32, hi: u32) -> Range {
    Range::new(Form::Prefix, 0x12345, lo, hi).unwrap()
}

fn some(range: Range, receive: Receive) -> Identifiers {
    Identifiers { range, address: None, receive, may_send: false }
}

fn vid(request: u32) -> [u8; 6] {
    range(request, request).first().bytes()
}

fn taken(table: &IdentifierTable) -> Vec<Vec<u8>> {
    let mut buffer = [0; 100];
    std::iter::from_fn(|| table.take_released(&mut buffer).map(|length| buffer[..length].to_vec()))
        .collect()
}

#[test]
fn a_table_is_the_same_when_it_is_read_again() {
    let address = Some("2001:db8::1".parse().unwrap());
    let identifiers = Identifiers { address, ..some(range(3, 9), Receive::Hold) };
    let text = serde_json::to_string(&identifiers).unwrap();
    assert!(text.contains(r#""receive":"hold""#), "{text}");
    assert_eq!(serde_json::from_str::<Identifiers>(&text).unwrap(), identifiers);
}

#[test]
fn frames_wait_in_their_order_and_go_on_first() {
    let table = IdentifierTable::new().unwrap();
    assert!(table.is_empty());
    table.set(vec![some(range(0, 9), Receive::Hold)]);
    assert!(!table.is_empty());
    for (n, request) in [1, 5, 1].into_iter().enumerate() {
        let n = u8::try_from(n).unwrap();
        assert_eq!(table.decide(vid(request), &[n]), Fate::Taken);
    }
    assert!(!table.has_released());
    // The range is in two parts now, of which one is opened, and the first of an overlap decides.
    table.set(vec![some(range(0, 2), Receive::Deliver), some(range(2, 9), Receive::Hold)]);
    assert_eq!(table.decide(vid(2), &[9]), Fate::Behind);
    assert_eq!(taken(&table), [[0], [2]]);
    assert!(!table.has_released());
    assert_eq!(table.decide(vid(2), &[9]), Fate::Deliver);
    // What was released and not delivered waits on.
    table.set(vec![some(range(0, 9), Receive::Deliver)]);
    table.set(vec![some(range(0, 9), Receive::Hold)]);
    assert_eq!(table.decide(vid(5), &[7]), Fate::Taken);
    assert!(taken(&table).is_empty());
    table.set(vec![some(range(0, 9), Receive::Deliver)]);
    assert_eq!(taken(&table), [[1], [7]]);
    assert_eq!(table.counters(), IdentifierCounts { held: 4, ..IdentifierCounts::default() });
}

#[test]
fn what_nobody_says_again_is_forgotten_until_somebody_does() {
    let table = IdentifierTable::new().unwrap();
    let address: IpAddr = "10.0.0.9".parse().unwrap();
    let open = Identifiers {
        address: Some(address),
        may_send: true,
        ..some(range(0, 9), Receive::Deliver)
    };
    table.hold_for(Some(Duration::from_secs(3600)));
    table.set(vec![open]);
    let passes = |table: &IdentifierTable| {
        let speaks = table.lock().may_send_from(address) == Some(true) && !table.lock().is_over();
        (table.decide(vid(1), &[0]) == Fate::Deliver, speaks)
    };
    assert_eq!(passes(&table), (true, true));
    table.hold_for(Some(Duration::ZERO));
    assert_eq!(passes(&table), (false, false));
    table.hold_for(Some(Duration::from_secs(3600)));
    assert_eq!(passes(&table), (true, true));
    table.hold_for(None);
    assert_eq!(passes(&table), (true, true));
}

#[test]
fn what_has_no_identifier_any_more_is_dropped() {
    let table = IdentifierTable::new().unwrap();
    table.set(vec![some(range(1, 1), Receive::Hold), some(range(2, 2), Receive::Hold)]);
    assert_eq!(table.decide(vid(1), &[1; 10]), Fate::Taken);
    assert_eq!(table.decide(vid(2), &[2; 20]), Fate::Taken);
    table.set(vec![some(range(2, 2), Receive::Deliver)]);
    assert_eq!(table.counters().dropped, 1);
    table.set(Vec::new());
    let counts = table.counters();
    assert_eq!((counts.held, counts.holding, counts.dropped), (2, 0, 2));
    assert!(table.is_empty() && !table.has_released() && taken(&table).is_empty());
    assert_eq!(table.lock().bytes, 0);
}

#[test]
fn what_is_no_identifier_of_the_vms_is_told_apart() {
    let table = IdentifierTable::new().unwrap();
    assert_eq!(table.decide(vid(1), &[]), Fate::Unknown);
    assert_eq!(table.decide([2, 0, 0, 0, 0, 1], &[]), Fate::Another);
    assert_eq!(table.decide([0x0c, 0, 0, 0, 0, 1], &[]), Fate::Another);
    table.count_unknown();
    assert_eq!(table.counters().unknown, 1);
}

#[test]
fn no_more_waits_than_there_is_room_for() {
    let table = IdentifierTable::new().unwrap();
    table.set(vec![some(range(1, 1), Receive::Hold)]);
    for _ in 0..=MOST_HELD {
        assert_eq!(table.decide(vid(1), &[0]), Fate::Taken);
    }
    let counts = table.counters();
    assert_eq!((counts.holding, counts.overflow), (MOST_HELD as u64, 1));
    table.set(Vec::new());
    table.set(vec![some(range(1, 1), Receive::Hold)]);
    let large = vec![0; MOST_HELD_BYTES / 2];
    for frame in [&large[..], &large, &[0]] {
        assert_eq!(table.decide(vid(1), frame), Fate::Taken);
    }
    let counts = table.counters();
    assert_eq!((counts.holding, counts.overflow), (2, 2));
}

#[test]
fn the_device_is_woken_for_what_goes_on_and_no_longer() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let table = IdentifierTable::new().unwrap();
    let is_woken = || {
        let event = table.event();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&now)).unwrap() > 0
    };
    table.set(vec![some(range(1, 1), Receive::Hold)]);
    table.decide(vid(1), &[0]);
    assert!(!is_woken());
    table.set(vec![some(range(1, 1), Receive::Deliver)]);
    assert!(is_woken());
    table.heard();
    assert!(!is_woken());
    assert_eq!(taken(&table).len(), 1);
    table.set(vec![some(range(1, 1), Receive::Deliver)]);
    assert!(!is_woken(), "nothing waited");
}

proptest! {
    #[test]
    fn frames_of_an_identifier_stay_in_order_and_are_counted_once(
        acts in proptest::collection::vec((0..8_u8, 0..4_u32, any::<[bool; 8]>()), 1..200),
    ) {
        let table = IdentifierTable::new().unwrap();
        let (mut came, mut unknown, mut delivered) = (0_u32, 0_u64, Vec::<Vec<u8>>::new());
        for (act, request, bits) in acts {
            match act {
                0 | 1 => table.set(
                    // The fourth is never there.
                    (0..3).filter(|n| bits[*n]).map(|n| {
                        let receive = if bits[n + 4] { Receive::Hold } else { Receive::Deliver };
                        let n = u32::try_from(n).unwrap();
                        some(range(n, n), receive)
                    }).collect(),
                ),
                2 => delivered.extend(taken(&table)),
                _ => {
                    came += 1;
                    let mut frame = vec![u8::try_from(request).unwrap()];
                    frame.extend(came.to_le_bytes());
                    loop {
                        match table.decide(vid(request), &frame) {
                            Fate::Deliver => delivered.push(frame),
                            Fate::Behind => {
                                delivered.extend(taken(&table));
                                continue;
                            }
                            Fate::Unknown => unknown += 1,
                            Fate::Taken => {}
                            Fate::Another => unreachable!(),
                        }
                        break;
                    }
                }
            }
            let counts = table.counters();
            let sum = delivered.len() as u64 + unknown + counts.holding + counts.dropped;
            prop_assert_eq!(u64::from(came), sum);
        }
        for vid in 0..4 {
            let number = |frame: &Vec<u8>| u32::from_le_bytes(frame[1..5].try_into().unwrap());
            let of_vid = delivered.iter().filter(|frame| frame[0] == vid).map(number);
            prop_assert!(of_vid.is_sorted_by(|a, b| a < b));
        }
    }
}
