//! Moments at which a test can stand in the way of an agent: to kill it, or another, exactly there.
//!
//! A debug build does at each what the environment variable `FAILPOINTS` says, in the syntax of the crate `fail`:
//! `FAILPOINTS=move-hold=1*sleep(3000)` has the first move wait before it holds frames. A release build has none.

/// Reads what is to be done at which moment. Called once, before there are other threads.
pub fn prepare() {
    if cfg!(debug_assertions) {
        // It lasts as long as the process.
        std::mem::forget(fail::FailScenario::setup());
    }
}

/// This is the moment before `step` of what `whose` does.
pub fn before(whose: &str, step: &str) {
    if cfg!(debug_assertions) {
        log::debug!("{whose}: now {step}");
        fail::fail_point!(&format!("{whose}-{step}"));
    }
}
