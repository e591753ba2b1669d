//! Waits until the kernel has processed what had arrived for this machine.
//!
//! When a source is told to stop, the frames that came before the network held the others are in the network
//! card's ring, or on their way up from it. A segment that is processed after its connection was dumped is
//! acknowledged and then lost, for the new home does not have it. So all go up first, while the connection is
//! still as it was: it may answer, as the endpoint can still be heard.
//!
//! The kernel tells nobody when a ring is empty. But a processor takes its interrupts before it goes on with a
//! program, and what its interrupts have raised waits in one list, in the order in which it was raised. So a
//! thread that runs on that processor, and sends a datagram to itself over the loopback, has it back only after
//! each card whose interrupt came before was polled: the loopback's queue is behind them in the list. A poll takes
//! [`WEIGHT`] frames at most, so there are as many datagrams as a ring needs polls, and one more, since a card that has
//! more goes back behind the loopback; coalesced segments (GRO) are handed up at the latest by the poll that
//! finds the ring empty. All processors are visited, since any may have the card's interrupt, and twice, since one
//! can hand frames on to another (receive packet steering).
//!
//! What a program's own call holds up (the socket's backlog) is processed when the call returns; and the calls of
//! the dump take the socket's lock, before which it is.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Frames in a ring at most, that a card of a VM has.
const RING: u32 = 256;
/// Frames that a poll takes at most (`NAPI_POLL_WEIGHT`).
const WEIGHT: u32 = 64;
/// Datagrams on each processor.
const ROUNDS: u32 = RING.div_ceil(WEIGHT) + 1;
/// How often each processor is visited.
const PASSES: u32 = 2;
/// The loopback loses nothing, but for want of memory or by a filter.
const PATIENCE: Duration = Duration::from_millis(50);

/// Waits until the kernel has processed the frames that are in the rings of this machine's cards. Needs the
/// loopback, which is up after `guest-agent endpoint up`.
///
/// # Errors
/// It is not known that it has: there is no loopback, or it loses datagrams.
pub fn drain() -> io::Result<()> {
    // Where this thread may run is its own affair.
    thread::scope(|scope| match scope.spawn(visit_all).join() {
        Ok(result) => result,
        Err(_) => Err(io::Error::other("the thread that visits the processors has ended")),
    })
}

fn visit_all() -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(socket.local_addr()?)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let processors = processors()?;
    let mut number = 0_u64;
    for processor in processors.iter().cycle().take(processors.len() * PASSES as usize) {
        let mut only = CpuSet::new();
        only.set(*processor);
        // One that this process may not use has no interrupts of its cards, or cannot be waited for.
        if sched_setaffinity(None, &only).is_err() {
            continue;
        }
        for _ in 0..ROUNDS {
            number += 1;
            socket.send(&number.to_le_bytes())?;
            let mut back = [0; 8];
            socket.recv(&mut back)?;
            if back != number.to_le_bytes() {
                return Err(io::Error::other("the loopback gives back another datagram"));
            }
        }
    }
    Ok(())
}

/// The processors that run; those of this process where the kernel does not list them.
fn processors() -> io::Result<Vec<usize>> {
    if let Ok(text) = fs::read_to_string("/sys/devices/system/cpu/online")
        && let Some(list) = parse(text.trim())
    {
        return Ok(list);
    }
    let own = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|processor| own.is_set(*processor)).collect())
}

/// `0-3,5`.
fn parse(text: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last >= CpuSet::MAX_CPU {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_processors_are_visited_and_the_thread_stays_where_it_was() {
        let before = sched_getaffinity(None).unwrap();
        drain().unwrap();
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }

    #[test]
    fn lists_of_processors_are_numbers_and_ranges() {
        assert_eq!(parse("0-3,5"), Some(vec![0, 1, 2, 3, 5]));
        assert_eq!(parse("0"), Some(vec![0]));
        for wrong in ["", "a", "1-", "0-99999999999", "0,,1"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
