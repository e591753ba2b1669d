//! Work on guest memory by several threads, without two of them in one huge page.

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Two threads that fault the same 2 MiB page wait for one another while it is cleared.
const REGION_SHIFT: u32 = 21;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// The calling thread does what it is asked by itself from now on: one that may start no others.
pub fn stay_alone() {
    ALONE.set(true);
}

/// Calls `work` on each of `items`, from as many threads as there are CPUs.
///
/// Consecutive items whose `address` lies in one 2 MiB region go to one thread, in order. After an
/// error no new region is begun.
///
/// # Errors
/// The first error of `work`.
pub(crate) fn by_region<T, E>(
    items: Vec<T>,
    address: impl Fn(&T) -> usize,
    work: impl Fn(T) -> Result<(), E> + Sync,
) -> Result<(), E>
where
    T: Send,
    E: Send,
{
    each(group(items, |item| address(item) >> REGION_SHIFT), |group| {
        group.into_iter().try_for_each(&work)
    })
}

/// Calls `work` on each of `items`, from as many threads as there are CPUs. After an error no new
/// item is begun.
///
/// # Errors
/// The first error of `work`.
pub(crate) fn each<T, E>(items: Vec<T>, work: impl Fn(T) -> Result<(), E> + Sync) -> Result<(), E>
where
    T: Send,
    E: Send,
{
    let available = || thread::available_parallelism().map_or(1, Into::into);
    let threads = if ALONE.get() { 1 } else { available().min(items.len()) };
    if threads <= 1 {
        return items.into_iter().try_for_each(work);
    }
    let queue = Mutex::new(items.into_iter());
    let failure = Mutex::new(None);
    let stop = AtomicBool::new(false);
    let run = || {
        while !stop.load(Ordering::Relaxed) {
            let Some(item) = lock(&queue).next() else { return };
            if let Err(error) = work(item) {
                stop.store(true, Ordering::Relaxed);
                lock(&failure).get_or_insert(error);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
    failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

fn group<T>(items: Vec<T>, region: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut groups: Vec<Vec<T>> = Vec::new();
    let mut current = None;
    for item in items {
        let region = region(&item);
        match groups.last_mut() {
            Some(group) if current == Some(region) => group.push(item),
            _ => groups.push(vec![item]),
        }
        current = Some(region);
    }
    groups
}

/// A panic elsewhere is reported by the scope that joins its thread, so poison adds nothing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::AtomicUsize;
    use std::thread::ThreadId;

    use super::*;

    #[test]
    fn one_region_is_one_threads() {
        let owners: Mutex<HashMap<usize, ThreadId>> = Mutex::default();
        let done = AtomicUsize::new(0);
        let items: Vec<usize> = (0..4000).map(|n| n << 16).collect();
        by_region(
            items,
            |address| *address,
            |address| {
                let me = thread::current().id();
                let owner = *lock(&owners).entry(address >> REGION_SHIFT).or_insert(me);
                done.fetch_add(1, Ordering::Relaxed);
                if owner == me { Ok(()) } else { Err(address) }
            },
        )
        .unwrap();
        assert_eq!(done.into_inner(), 4000);
    }

    #[test]
    fn the_error_comes_back_and_stops_the_rest() {
        let done = AtomicUsize::new(0);
        let items: Vec<usize> = (0..100_000).map(|n| n << REGION_SHIFT).collect();
        let result = by_region(
            items,
            |address| *address,
            |address| {
                done.fetch_add(1, Ordering::Relaxed);
                if address == 5 << REGION_SHIFT { Err("five") } else { Ok(()) }
            },
        );
        assert_eq!(result, Err("five"));
        assert!(done.into_inner() < 100_000);
    }
}
