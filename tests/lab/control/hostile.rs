//! Guests that mean harm.

use super::finished;
use crate::common::Bench;
use crate::common::guest::boot;
use crate::common::ramdisk::{example, push_script};

/// Every register by every width, commands of any content and place, a second processor that rewrites
/// them, floods, a damaged ring: the device answers with numbers, goes on answering, and says little.
#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_guest_that_tries_everything_gets_error_numbers_and_nothing_else() {
    let bench = Bench::new();
    let script = "hostile 100000 && guest-agent ping && echo script: done\n";
    push_script(&bench, "guest", script, &[example("hostile")]);
    for cpus in ["1", "2"] {
        let booted = finished(boot(&bench, "guest", &["--cpus", cpus]));
        assert!(booted.console.contains("hostile: ok"), "{booted:#?}");
        let commands = booted.report["guest"]["control"]["commands"].as_u64().unwrap();
        assert!(commands > 100_000, "{booted:#?}");
        assert!(booted.stderr.len() < 64 << 10, "{} bytes of log", booted.stderr.len());
    }
}
