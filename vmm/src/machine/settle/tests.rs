//! Settling, without KVM: threads that read and write mapped memory are the guest.

use std::sync::Barrier;
use std::sync::atomic::AtomicU64;

use super::*;
use crate::machine::layout::HUGE_PAGE;
use crate::machine::mapped::tests::{content, mapped, read, write};
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

/// What a thread of the test below saw, which reads every piece and adds one to a byte of its own in
/// every other piece, again and again.
#[derive(Debug, Default)]
struct Seen {
    rounds: AtomicU64,
    wrong: AtomicU64,
}

fn read_and_write(part: &MappedPart, cpu: u64, seen: &Seen) {
    let pieces = part.length() / HUGE_PAGE;
    let round = seen.rounds.load(Ordering::Relaxed);
    for base in (0..pieces).map(|piece| piece * HUGE_PAGE) {
        let mut right = read(part, base + 0x8000) == content(base + 0x8000);
        if base / HUGE_PAGE % 2 == cpu {
            let old = read(part, base + cpu);
            right &= old == content(base).wrapping_add(low(round));
            write(part, base + cpu, old.wrapping_add(1));
        }
        seen.wrong.fetch_add(u64::from(!right), Ordering::Relaxed);
    }
    seen.rounds.store(round + 1, Ordering::Release);
}

fn low(number: u64) -> u8 {
    number.to_le_bytes()[0]
}

/// Threads in the place of vCPUs, which may run.
fn start<B>(bodies: impl IntoIterator<Item = B>) -> RunningVcpus
where
    B: FnOnce(&Turnstile) + Send + 'static,
{
    let mut running = RunningVcpus::start_held(bodies).unwrap();
    running.release();
    running
}

#[test]
fn guests_that_read_and_write_meanwhile_see_nothing_of_it() {
    const PIECES: u64 = 40; // more than two batches
    let part = mapped(PIECES);
    let seen: Arc<[Seen; 2]> = Arc::default();
    let bodies = (0..2).map(|cpu: usize| {
        let (part, seen) = (part.clone(), seen.clone());
        move |turnstile: &Turnstile| {
            while turnstile.pass() {
                turnstile.in_guest(|| read_and_write(&part, cpu as u64, &seen[cpu]));
            }
        }
    });
    let mut running = start(bodies);
    while seen.iter().any(|seen| seen.rounds.load(Ordering::Acquire) == 0) {
        std::thread::yield_now();
    }
    let mut settling = Settling::start(vec![part.clone()]).unwrap();
    settle(&mut settling, &mut running);
    let settled = settling.end();
    let done = seen.iter().map(|seen| seen.rounds.load(Ordering::Acquire)).max().unwrap();
    while seen.iter().any(|seen| seen.rounds.load(Ordering::Acquire) < done + 2) {
        std::thread::yield_now();
    }
    drop(running);
    assert_eq!((settled.mapped_bytes, settled.settled_bytes), (part.length(), part.length()));
    assert!(settled.settled_ms.is_some());
    assert!(settled.written_bytes >= PIECES * 4096);
    assert!(settling.parts.is_empty(), "the file is let go");
    for seen in seen.iter() {
        assert_eq!(seen.wrong.load(Ordering::Acquire), 0);
    }
}

#[test]
fn a_batch_that_finds_no_pause_is_put_in_place_later() {
    let part = mapped(1);
    let device = Arc::new(Barrier::new(2));
    let waits = device.clone();
    let mut running = start([move |turnstile: &Turnstile| {
        assert!(turnstile.pass());
        waits.wait(); // has passed
        waits.wait(); // is done
    }]);
    device.wait();
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
    let mut running = start([|_: &Turnstile| {}]);
    let mut settling = Settling::start(vec![spoilt]).unwrap();
    settle(&mut settling, &mut running);
    let settled = settling.end();
    assert_eq!((settled.settled_bytes, settled.settled_ms), (0, None));
    assert_eq!(settling.parts.len(), 1, "the file is kept");
    assert_eq!(read(&part, 0x8000), content(0x8000));
}
