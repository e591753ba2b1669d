//! What a jail costs. Nothing is asserted of times; they are printed: `cargo test -p vmm --test jail
//! cost -- --ignored --nocapture`.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Instant;

use vmm::jail::launch::Jail;

use crate::inside::{program, spec, start};

/// Jails that are made one after the other.
const COUNT: u32 = 200;

#[test]
#[ignore = "measures: run it by hand"]
fn of_processes_one_after_the_other() {
    let output = File::create("/dev/null").unwrap();
    let each = |begun: Instant| begun.elapsed().as_secs_f64() * 1e3 / f64::from(COUNT);

    let begun = Instant::now();
    let program_of_this = std::env::current_exe().unwrap();
    for _ in 0..COUNT {
        let mut command = std::process::Command::new(&program_of_this);
        command.args(["--list"]).stdout(output.try_clone().unwrap());
        assert!(command.status().unwrap().success());
    }
    println!("a process without a jail, start to end:  {:.3} ms", each(begun));

    let begun = Instant::now();
    for _ in 0..COUNT {
        start("open:/", output.as_fd()).wait().unwrap();
    }
    println!("in a jail, confined, start to end:       {:.3} ms", each(begun));

    let nothing = File::open("/dev/null").unwrap();
    let begun = Instant::now();
    for _ in 0..COUNT {
        let jail = Jail::prepare(vmm::jail::launch::JailSpec { loads_by_network: true, ..spec() });
        let jail = jail.unwrap();
        let mut program =
            program(&jail, "open:/", [nothing.as_fd(), output.as_fd(), output.as_fd()]);
        // Stays in the host's network.
        program.environment.pop();
        program.environment.push("JAIL_TEST_CONFINEMENT=user=1,group=1".into());
        jail.spawn(&program).unwrap().wait().unwrap();
    }
    println!("the same in the host's network:          {:.3} ms", each(begun));

    let begun = Instant::now();
    let started: Vec<_> = (0..COUNT).map(|_| start("open:/", output.as_fd())).collect();
    println!("outer half alone, until it executes:     {:.3} ms", each(begun));
    for process in started {
        process.wait().unwrap();
    }
    println!("{COUNT} at once, start to end:              {:.3} ms each", each(begun));
}
