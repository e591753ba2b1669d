//! The route controller: what a switch knows of its flows, whatever carries the frames.
//!
//! It checks each request against its table before the plane sees any of it, so that a plane is asked only for
//! what should succeed; and it ends holds at their deadline, by a thread of its own.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use endpoint::vid::Vid;

use crate::plane::{Held, Plane, PlaneError, Step};
use crate::switch::{Change, Flow, Hold, Mark, Port, Statistics, Switch, SwitchError, SyncError};

/// When a hold is ended again whose end the plane has refused.
const AGAIN: Duration = Duration::from_millis(50);

/// A hold that is in force.
#[derive(Clone, Copy, Debug)]
struct Moving {
    owner: u64,
    deadline: Instant,
    held: Held,
}

struct State<P> {
    plane: P,
    /// The last committed homes.
    homes: BTreeMap<Vid, Port>,
    holds: BTreeMap<Vid, Moving>,
    counts: Statistics,
    stopped: bool,
}

struct Shared<P> {
    state: Mutex<State<P>>,
    changed: Condvar,
}

impl<P> Shared<P> {
    /// A panic of another thread leaves the table as it was before or after one request.
    fn lock(&self) -> MutexGuard<'_, State<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A [`Switch`] over a plane.
pub struct Controller<P: Plane + 'static> {
    shared: Arc<Shared<P>>,
    keeper: Option<JoinHandle<()>>,
}

impl<P: Plane + 'static> fmt::Debug for Controller<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("Controller").field("flows", &state.homes.len()).finish_non_exhaustive()
    }
}

impl<P: Plane + 'static> Controller<P> {
    /// Over `plane`, which has no flows yet.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn new(plane: P) -> Result<Self, PlaneError> {
        let state = State {
            plane,
            homes: BTreeMap::new(),
            holds: BTreeMap::new(),
            counts: Statistics::default(),
            stopped: false,
        };
        let state = Mutex::new(state);
        let shared = Arc::new(Shared { state, changed: Condvar::new() });
        let keeper = {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name("switch-holds".into())
                .spawn(move || keep(&shared))
                .map_err(PlaneError::system("start the thread that ends holds"))?
        };
        Ok(Self { shared, keeper: Some(keeper) })
    }

    /// Asks the plane for what only it can do.
    pub fn with_plane<R>(&self, ask: impl FnOnce(&mut P) -> R) -> R {
        ask(&mut self.shared.lock().plane)
    }

    fn one(&self, change: Change) -> Result<Option<Port>, SwitchError> {
        let mut state = self.shared.lock();
        let before = state.homes.get(&change.vid()).copied();
        state.sync(&[change]).map_err(|error| error.source)?;
        Ok(before)
    }

    fn end(&self, vid: Vid, owner: u64, commit: bool) -> Result<Port, SwitchError> {
        let mut state = self.shared.lock();
        let moving = match state.holds.get(&vid) {
            Some(moving) => *moving,
            None if state.homes.contains_key(&vid) => return Err(SwitchError::NotHeld(vid)),
            None => return Err(SwitchError::Unknown(vid)),
        };
        if moving.owner != owner {
            return Err(SwitchError::Held { vid, owner: moving.owner });
        }
        // The deadline counts also when its thread has had no turn yet: a destination that another host
        // believes to be given up must not become the home.
        if commit && Instant::now() >= moving.deadline {
            state.end(&moving, false)?;
            state.counts.expired += 1;
            return Err(SwitchError::NotHeld(vid));
        }
        let home = state.end(&moving, commit)?;
        let counts = &mut state.counts;
        *(if commit { &mut counts.released } else { &mut counts.cancelled }) += 1;
        Ok(home)
    }
}

impl<P: Plane> State<P> {
    /// The steps of a batch, or which entry is wrong.
    fn plan(&mut self, changes: &[Change]) -> Result<Vec<Step>, (usize, SwitchError)> {
        // What the entries before have made of identifiers.
        let mut made: HashMap<Vid, Option<Port>> = HashMap::new();
        let mut steps = Vec::with_capacity(changes.len());
        for (index, change) in changes.iter().enumerate() {
            let vid = change.vid();
            let from = made.get(&vid).copied();
            let from = from.unwrap_or_else(|| self.homes.get(&vid).copied());
            let step = match (*change, from, self.holds.get(&vid)) {
                (_, _, Some(moving)) => Err(SwitchError::Held { vid, owner: moving.owner }),
                (Change::Add { .. }, Some(home), _) => Err(SwitchError::Exists { vid, home }),
                (Change::Update { .. } | Change::Delete { .. }, None, _) => {
                    Err(SwitchError::Unknown(vid))
                }
                (Change::Add { port, .. } | Change::Update { port, .. }, from, _) => {
                    let step = Step { vid, from, to: Some(port) };
                    self.plane.check(port).map(|()| step).map_err(SwitchError::from)
                }
                (Change::Delete { .. }, from, _) => Ok(Step { vid, from, to: None }),
            };
            let step = step.map_err(|error| (index, error))?;
            made.insert(vid, step.to);
            steps.push(step);
        }
        Ok(steps)
    }

    fn sync(&mut self, changes: &[Change]) -> Result<(), SyncError> {
        let failed = |(index, source): (usize, SwitchError), unrestored| SyncError {
            index,
            // The index is of this list: it comes from walking it.
            change: changes[index],
            source,
            unrestored,
        };
        let steps = self.plan(changes).map_err(|error| failed(error, Vec::new()))?;
        if let Err(error) = self.plane.apply(&steps) {
            self.counts.rolled_back += 1;
            let unrestored = error.unrestored.iter().filter_map(|index| steps.get(*index));
            let unrestored = unrestored.map(|step| step.vid).collect();
            let index = error.index.min(changes.len().saturating_sub(1));
            return Err(failed((index, error.source.into()), unrestored));
        }
        for step in steps {
            match step.to {
                Some(home) => self.homes.insert(step.vid, home),
                None => self.homes.remove(&step.vid),
            };
        }
        Ok(())
    }

    fn end(&mut self, moving: &Moving, commit: bool) -> Result<Port, SwitchError> {
        self.plane.release(&moving.held, commit)?;
        let home = if commit { moving.held.to } else { moving.held.home };
        self.holds.remove(&moving.held.vid);
        self.homes.insert(moving.held.vid, home);
        Ok(home)
    }

    /// Ends what is over; when to look again.
    fn expire(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let holds = self.holds.values().copied();
        let over: Vec<_> = holds.filter(|moving| moving.deadline <= now).collect();
        for moving in over {
            if self.end(&moving, false).is_ok() {
                self.counts.expired += 1;
            } else {
                let again = Moving { deadline: now + AGAIN, ..moving };
                self.holds.insert(moving.held.vid, again);
            }
        }
        self.holds.values().map(|moving| moving.deadline).min()
    }
}

/// Ends holds at their deadline, until the switch is stopped.
fn keep<P: Plane>(shared: &Shared<P>) {
    let mut state = shared.lock();
    while !state.stopped {
        state = match state.expire() {
            None => shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(next) => {
                let left = next.saturating_duration_since(Instant::now());
                let woken = shared.changed.wait_timeout(state, left);
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
        };
    }
}

impl<P: Plane + 'static> Drop for Controller<P> {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join(); // a panic there has been reported by its hook
        }
    }
}

impl<P: Plane + 'static> Switch for Controller<P> {
    fn add(&self, vid: Vid, port: Port) -> Result<(), SwitchError> {
        self.one(Change::Add { vid, port }).map(|_| ())
    }

    fn update(&self, vid: Vid, port: Port) -> Result<Port, SwitchError> {
        self.one(Change::Update { vid, port })?.ok_or(SwitchError::Unknown(vid))
    }

    fn delete(&self, vid: Vid) -> Result<Port, SwitchError> {
        self.one(Change::Delete { vid })?.ok_or(SwitchError::Unknown(vid))
    }

    fn sync(&self, changes: &[Change]) -> Result<(), SyncError> {
        self.shared.lock().sync(changes)
    }

    fn flows(&self) -> Vec<Flow> {
        let state = self.shared.lock();
        let flow = |(vid, home): (&Vid, &Port)| Flow {
            vid: *vid,
            home: *home,
            moving: state.holds.get(vid).map(|moving| (moving.held.to, moving.owner)),
        };
        state.homes.iter().map(flow).collect()
    }

    fn hold(&self, vid: Vid, hold: Hold) -> Result<(), SwitchError> {
        let mut state = self.shared.lock();
        let home = *state.homes.get(&vid).ok_or(SwitchError::Unknown(vid))?;
        if let Some(moving) = state.holds.get(&vid) {
            return Err(SwitchError::Held { vid, owner: moving.owner });
        }
        if hold.deadline <= Instant::now() {
            return Err(SwitchError::Late(vid));
        }
        if hold.limit.frames == 0 || hold.limit.bytes == 0 {
            return Err(SwitchError::NoRoom(vid));
        }
        state.plane.check(hold.to)?;
        let held = Held { vid, home, to: hold.to, limit: hold.limit };
        state.plane.hold(&held)?;
        let moving = Moving { owner: hold.owner, deadline: hold.deadline, held };
        state.holds.insert(vid, moving);
        state.counts.holds += 1;
        drop(state);
        self.shared.changed.notify_all();
        Ok(())
    }

    fn release(&self, vid: Vid, owner: u64) -> Result<Port, SwitchError> {
        self.end(vid, owner, true)
    }

    fn cancel(&self, vid: Vid, owner: u64) -> Result<Port, SwitchError> {
        self.end(vid, owner, false)
    }

    fn mute(&self, port: Port) -> Result<(), SwitchError> {
        Ok(self.shared.lock().plane.mute(port, true)?)
    }

    fn unmute(&self, port: Port) -> Result<(), SwitchError> {
        Ok(self.shared.lock().plane.mute(port, false)?)
    }

    fn mark(&self, port: Port) -> Result<Mark, SwitchError> {
        let nonce = crate::sys::random().map_err(PlaneError::system("get a random number"))?;
        let waiter = self.shared.lock().plane.mark(port, nonce)?;
        Ok(Mark { port, nonce, waiter })
    }

    fn flood_unknown(&self, flood: bool) -> Result<(), SwitchError> {
        Ok(self.shared.lock().plane.flood_unknown(flood)?)
    }

    fn statistics(&self) -> Result<Statistics, SwitchError> {
        let mut state = self.shared.lock();
        let plane = state.plane.statistics()?;
        let flows = u64::try_from(state.homes.len()).unwrap_or(u64::MAX);
        let Statistics { holds, released, cancelled, expired, rolled_back, .. } = state.counts;
        Ok(Statistics { flows, holds, released, cancelled, expired, rolled_back, ..plane })
    }
}
