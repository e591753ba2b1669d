//! Settling, without KVM: threads that read and write mapped memory are the guest.

use std::sync::Barrier;
use std::sync::atomic::AtomicU64;

use super::*;
use crate::machine::layout::HUGE_PAGE;
use crate::machine::mapped::tests::{address, content, mapped, read};
use crate::machine::running::Turnstile;

fn wait(settling: &Settling) {
    while settling.wake.read().is_err() {
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Does what the event loop does until `settling` has nothing more to say.
fn settle(settling: &mut Settling, running: &mut RunningVcpus) {
    while settling.worker.is_some() {
        wait(settling);
        settling.step(running).unwrap();
    }
}

#[test]
fn guests_that_read_and_write_meanwhile_see_nothing_of_it() {
    const PIECES: u64 = 40; // more than a batch
    let part = mapped(PIECES);
    let rounds = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let bodies = (0..2u64).map(|cpu| {
        let (part, rounds) = (part.clone(), rounds.clone());
        move |turnstile: &Turnstile| {
            let mut wanted = vec![content(0); usize::try_from(PIECES).unwrap()];
            while turnstile.pass() {
                turnstile.in_guest(|| {
                    for (piece, wanted) in (0u64..).zip(&mut wanted) {
                        let base = piece * HUGE_PAGE;
                        assert_eq!(read(&part, base + 0x8000), content(base + 0x8000));
                        // Each writes to every other piece, to a byte of its own.
                        if piece % 2 == cpu {
                            let at = address(&part, base + cpu);
                            // SAFETY: in the mapping, and nobody else's byte.
                            let old = unsafe { at.read_volatile() };
                            let first =
                                rounds[usize::try_from(cpu).unwrap()].load(Ordering::Relaxed) == 0;
                            assert!(first || old == *wanted, "{piece}: {old} {wanted}");
                            *wanted = old.wrapping_add(1);
                            // SAFETY: as above.
                            unsafe { at.write_volatile(*wanted) };
                        }
                    }
                    rounds[usize::try_from(cpu).unwrap()].fetch_add(1, Ordering::Relaxed);
                });
            }
        }
    });
    let mut running = RunningVcpus::start(bodies).unwrap();
    while rounds.iter().any(|rounds| rounds.load(Ordering::Relaxed) == 0) {
        std::thread::yield_now();
    }
    let mut settling = Settling::start(vec![part.clone()]).unwrap();
    settle(&mut settling, &mut running);
    drop(running); // joins, and so shows what the threads found
    let settled = settling.end();
    assert_eq!(settled.settled_bytes, part.length());
    assert_eq!(settled.mapped_bytes, part.length());
    assert!(settled.settled_ms.is_some());
    assert!(settled.written_bytes >= PIECES * 4096);
    assert!(settling.parts.is_empty(), "the file is let go");
    for (cpu, rounds) in (0u64..).zip(rounds.iter()) {
        let sum = u8::try_from(rounds.load(Ordering::Relaxed) % 256).unwrap();
        for piece in (0..PIECES).filter(|piece| piece % 2 == cpu) {
            let base = piece * HUGE_PAGE;
            assert_eq!(read(&part, base + cpu), content(base).wrapping_add(sum), "{piece}");
        }
    }
}

#[test]
fn a_batch_that_finds_no_pause_is_put_in_place_later() {
    let part = mapped(1);
    let device = Arc::new(Barrier::new(2));
    let waits = device.clone();
    let mut running = RunningVcpus::start([move |turnstile: &Turnstile| {
        assert!(turnstile.pass());
        waits.wait();
    }])
    .unwrap();
    let mut settling = Settling::start(vec![part.clone()]).unwrap();
    while settling.settled.paused_ms == 0.0 {
        wait(&settling);
        settling.step(&mut running).unwrap();
    }
    assert_eq!(settling.settled.settled_bytes, 0);
    device.wait();
    settle(&mut settling, &mut running);
    assert_eq!(settling.end().settled_bytes, part.length());
    assert_eq!(read(&part, 0x8000), content(0x8000));
}

#[test]
fn an_end_does_not_wait_for_the_rest() {
    let part = mapped(20);
    let mut settling = Settling::start(vec![part.clone(), part.clone()]).unwrap();
    let settled = settling.end();
    assert_eq!((settled.settled_bytes, settled.settled_ms), (0, None));
    assert_eq!(read(&part, 0x8000), content(0x8000));
    drop(settling);
    // The same while a batch waits to be put in place.
    let mut settling = Settling::start(vec![part.clone()]).unwrap();
    wait(&settling);
    assert_eq!(settling.end().settled_bytes, 0);
    drop(settling);
    assert_eq!(Arc::strong_count(&part.file), 1, "nothing is left behind");
}

#[test]
fn a_file_that_cannot_be_read_leaves_the_mapping() {
    let part = mapped(1);
    let unreadable = Arc::new(std::fs::File::options().write(true).open("/dev/null").unwrap());
    let spoilt = MappedPart { file: unreadable, ..part.clone() };
    let mut running = RunningVcpus::start([|_: &Turnstile| {}]).unwrap();
    let mut settling = Settling::start(vec![spoilt]).unwrap();
    settle(&mut settling, &mut running);
    let settled = settling.end();
    assert_eq!((settled.settled_bytes, settled.settled_ms), (0, None));
    assert_eq!(settling.parts.len(), 1, "the file is kept");
    assert_eq!(read(&part, 0x8000), content(0x8000));
}
