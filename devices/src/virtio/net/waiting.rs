//! What the device waits for: frames, while it can take them, time, and frames that waited for an
//! identifier. One descriptor for all, an epoll, so that the event loop hears of nothing that cannot be served now.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

#[derive(Debug)]
pub(super) struct Waiting {
    epoll: OwnedFd,
    timer: OwnedFd,
    watching: bool,
    due: Option<Instant>,
}

impl Waiting {
    /// Waits for nothing yet but `released`, which is readable when frames are to go on.
    pub(super) fn new(released: BorrowedFd<'_>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&epoll, &timer, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        epoll::add(&epoll, released, epoll::EventData::new_u64(2), epoll::EventFlags::IN)?;
        Ok(Self { epoll, timer, watching: false, due: None })
    }

    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Waits for frames of `tap`, or does not. It is taken out and not only silenced: an interface
    /// that is gone would be reported in any case, for ever.
    pub(super) fn watch(&mut self, tap: BorrowedFd<'_>, watch: bool) -> io::Result<()> {
        if watch == self.watching {
            return Ok(());
        }
        if watch {
            let data = epoll::EventData::new_u64(1);
            epoll::add(&self.epoll, tap, data, epoll::EventFlags::IN)?;
        } else {
            epoll::delete(&self.epoll, tap)?;
        }
        self.watching = watch;
        Ok(())
    }

    /// Reports an event after `delay`, or when one is due before.
    pub(super) fn wake_after(&mut self, delay: Duration) -> io::Result<()> {
        // A day is as good as never, and far from any overflow.
        let delay = delay.clamp(Duration::from_nanos(1), Duration::from_secs(86400));
        let at = Instant::now() + delay;
        if self.due.is_some_and(|due| due <= at) {
            return Ok(());
        }
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec {
            tv_sec: i64::try_from(delay.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: delay.subsec_nanos().into(),
        };
        let time = Itimerspec { it_interval: zero, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time)?;
        self.due = Some(at);
        Ok(())
    }

    /// Whether the time has come that was waited for.
    pub(super) fn take_due(&mut self) -> bool {
        let mut count = [0; 8];
        let due = self.due.is_some() && rustix::io::read(&self.timer, &mut count).is_ok();
        if due {
            self.due = None;
        }
        due
    }
}
