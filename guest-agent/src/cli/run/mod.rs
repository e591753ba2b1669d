//! `run`: the guest's part of being managed, as a service, or as the first process of a ramdisk.

mod init;
mod measure;
mod signals;

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use clap::Args;
use control_abi::register::{Register, mark};
use guest_agent::calls::Level;
use guest_agent::driver::{Driver, DriverError};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};

pub use self::init::is_init;
use self::signals::Signals;
use super::exit::Exit;
use super::{CliError, Global, tell};

/// Say READY, then heartbeats and metrics, until ended.
///
/// With a command: run it, and end when it ends. As the first process (init), also mount /proc, /sys,
/// /dev and /run first, reap all children, and power the VM off at the end. Without a device, init goes
/// on without.
#[derive(Debug, Args)]
pub struct RunCommand {
    /// Seconds between heartbeats; 0 for none.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    heartbeat: u32,

    /// Seconds between metrics of memory and load; 0 for none.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    metrics: u32,

    /// What to say with READY.
    #[arg(long, value_name = "TEXT")]
    ready: Option<String>,

    /// The command.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl RunCommand {
    pub fn run(&self, options: &Global) -> Result<Exit, CliError> {
        if !is_init() {
            return self.serve(options.driver()?);
        }
        init::mount_all();
        let found = options.registers();
        if let Ok(registers) = &found {
            // The first thing of all, so that it says when init began.
            registers.write(Register::Mark, mark::INIT);
        }
        let driver = found.and_then(|_| options.driver());
        let result = match driver {
            Ok(driver) => self.serve(driver),
            Err(error) => {
                tell(&error.to_string());
                self.go_on(None)
            }
        };
        if let Err(error) = &result {
            tell(&error.to_string());
        }
        init::power_off()
    }

    fn serve(&self, driver: Driver) -> Result<Exit, CliError> {
        self.go_on(Some(Service { driver, failing: false }))
    }

    /// Runs the command, or waits for a signal, and serves meanwhile.
    fn go_on(&self, mut service: Option<Service>) -> Result<Exit, CliError> {
        let file = |what: &str| {
            let what = what.to_owned();
            move |source| CliError::File { what, source }
        };
        let mut signals = Signals::new().map_err(file("wait for signals"))?;
        let child = match self.command.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments);
                if is_init() {
                    command.env("PATH", init::PATH);
                }
                let what = format!("run '{}'", program.display());
                let child = command.spawn().map_err(file(&what))?;
                i32::try_from(child.id()).ok().and_then(Pid::from_raw)
            }
            None => None,
        };
        if let Some(service) = &mut service {
            service.driver.mark_user_space();
            service.say(|driver| driver.ready(self.ready.as_deref()));
        }
        let mut heartbeat = Timer::new(self.heartbeat);
        let mut metrics = Timer::new(self.metrics);
        loop {
            let next = heartbeat.next.into_iter().chain(metrics.next).min();
            let most = next.map(|next| next.saturating_duration_since(Instant::now()));
            signals.wait(most).map_err(file("wait for signals"))?;

            if let Some(status) = reap(child) {
                return Ok(ended(service.as_mut(), status));
            }
            if let Some((signal, name)) = signals.end() {
                let message = format!("guest-agent: ended by {name}");
                if let Some(service) = &mut service {
                    service.say(|driver| driver.log(&message, Level::Information));
                }
                match child {
                    // It says when it has ended.
                    Some(child) => drop(kill_process(child, signal)),
                    None => return Ok(Exit::Success),
                }
            }
            let Some(service) = &mut service else { continue };
            if heartbeat.is_due() {
                service.say(|driver| driver.check_generation().and_then(|_| driver.heartbeat()));
            }
            if metrics.is_due() {
                let metrics = measure::metrics();
                let metrics = metrics.iter().map(|(name, value)| (*name, *value));
                service.say(|driver| driver.metrics(metrics));
            }
        }
    }
}

/// The device, and whether what was said to it last has failed.
struct Service {
    driver: Driver,
    failing: bool,
}

impl Service {
    /// Says something. That it cannot be said is told once, until it can again.
    fn say(&mut self, what: impl FnOnce(&mut Driver) -> Result<(), DriverError>) {
        match what(&mut self.driver) {
            Ok(()) => self.failing = false,
            Err(error) => {
                if !self.failing {
                    tell(&error.to_string());
                }
                self.failing = true;
            }
        }
    }
}

/// Reaps all children that have ended; the status of `child` if it was among them.
fn reap(child: Option<Pid>) -> Option<ExitStatus> {
    let mut ended = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if Some(pid) == child {
            ended = Some(ExitStatus::from_raw(status.as_raw()));
        }
    }
    ended
}

/// How this program ends after its command has.
fn ended(service: Option<&mut Service>, status: ExitStatus) -> Exit {
    if !status.success() {
        let message = format!("guest-agent: the command ended with {status}");
        tell(&format!("the command ended with {status}"));
        if let Some(service) = service {
            service.say(|driver| driver.log(&message, Level::Warning));
        }
    }
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, signal) => u8::try_from(signal.unwrap_or(0)).unwrap_or(0).saturating_add(128),
    };
    Exit::Command(code)
}

/// Something that is due every so often.
struct Timer {
    period: Duration,
    next: Option<Instant>,
}

impl Timer {
    fn new(seconds: u32) -> Self {
        let period = Duration::from_secs(seconds.into());
        Self { period, next: (seconds > 0).then(|| Instant::now() + period) }
    }

    /// Whether it is due; then the next time is a period from now.
    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = self.next.is_some_and(|next| next <= now);
        if due {
            self.next = Some(now + self.period);
        }
        due
    }
}

/// The signals that end this program, for whoever wants to pass them on.
const ENDING: [(Signal, &str); 2] = [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_fails_gives_its_code() {
        for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)] {
            let status = Command::new("sh").args(["-c", script]).status().unwrap();
            assert_eq!(ended(None, status).code(), code, "{script}");
        }
    }

    #[test]
    fn what_is_due_never_is_not() {
        assert!(!Timer::new(0).is_due());
        let mut timer = Timer { period: Duration::from_secs(3600), next: Some(Instant::now()) };
        assert!(timer.is_due());
        assert!(!timer.is_due());
    }
}
