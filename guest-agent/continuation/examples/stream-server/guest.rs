//! The service in a guest: its host leads the network, ships the state and decides.
//!
//! Two drivers of the control device are used: one carries out errands, and another waits for the end of a move
//! that was asked for, which takes errands.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use continuation::errand::Errands;
use continuation::privilege::Privilege;
use guest_agent::calls::endpoint::Range;
use guest_agent::discover;
use guest_agent::driver::{Driver, Options};
use guest_agent::registers::{self, Access};

use super::home::Home;

type Failure = Box<dyn std::error::Error>;

/// How long the service's address is waited for: `guest-agent endpoint up` may come later.
const PATIENCE: Duration = Duration::from_secs(60);

/// A driver, with or without the events of the device, which are of one at a time.
fn driver(events: bool) -> Result<Driver, Failure> {
    let registers = registers::open(&discover::discover()?, Access::Any)?;
    Ok(Driver::new(registers, Options { events, ..Options::default() })?)
}

/// Makes the service known as this VM's, and lets clients in. One that is another VM's stays there.
pub fn serve(service: &str) -> Result<(), Failure> {
    let (mut driver, range) = (driver(false)?, Range::all(service));
    if !driver.resolve(service, None)?.iter().any(|found| found.own) {
        driver.announce(&range)?;
    }
    driver.listen(&range)?;
    Ok(())
}

/// Listens at the service's address, as soon as this VM has it.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let since = Instant::now();
    loop {
        match TcpListener::bind(address) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrNotAvailable
                    && since.elapsed() < PATIENCE =>
            {
                thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// Carries out errands, as long as the device gives some.
pub fn carry_out(service: &str, mut home: Home, privilege: Arc<dyn Privilege>) {
    let mut errands = Errands::new(service, privilege);
    let never = AtomicBool::new(false);
    loop {
        let result = driver(true)
            .and_then(|mut driver| errands.run(&mut driver, &mut home, &never).map_err(Into::into));
        if let Err(error) = result {
            eprintln!("the control device gives no errands: {error}");
        }
        // The device or its host is busy or away: asked without a pause it would be nothing else's.
        thread::sleep(Duration::from_secs(1));
    }
}

/// Has the service move to another VM; what is to be said of it.
pub fn leave(service: &str, to: &str) -> String {
    let asked =
        driver(false).and_then(|mut driver| Ok(driver.migrate_request(&Range::all(service), to)?));
    match asked {
        Ok(moved) => format!("moved to {} in {} us", moved.place, moved.microseconds),
        Err(error) => format!("error: {error}"),
    }
}
