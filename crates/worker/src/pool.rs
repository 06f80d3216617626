//! Several processes of one kind, watched: one that ends is started again, with growing pauses.

use std::error::Error;
use std::fmt;
use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Lines, Process, WorkerError};

/// Between two looks at the processes that nobody asks.
const LOOK: Duration = Duration::from_millis(200);
/// The first process that ends is started again at once, the next one after this, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A process that lived so long did not end because of what it runs.
const LONG_LIFE: Duration = Duration::from_secs(60);

/// Hears what happens.
pub type Tell = Arc<dyn Fn(Event<'_>) + Send + Sync>;

/// What happens to processes.
#[derive(Clone, Copy)]
pub enum Event<'a> {
    /// A line of a process's stderr.
    Line(&'a str),
    /// A process ended, for a reason; another is started after a pause.
    Ended {
        /// Why.
        error: &'a WorkerError,
        /// Until it is started again.
        pause: Duration,
    },
    /// One in its place is ready.
    Started,
    /// One in its place did not get ready; the next try is after a pause.
    Failed {
        /// Why.
        error: &'a dyn fmt::Display,
        /// Until the next try.
        pause: Duration,
    },
    /// How many are ready now.
    Live(usize),
}

/// How many processes there are of those there should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crew {
    /// What they are for.
    pub what: &'static str,
    /// Ready, or at work.
    pub n_live: usize,
    /// That there should be.
    pub n_wanted: usize,
    /// Why the last one ended, or did not start.
    pub reason: Option<String>,
}

/// Processes that do the same. Dropping it ends them.
pub struct Pool<P: AsRef<Process> + Send + 'static>(Arc<Shared<P>>);

type Failure = Box<dyn Error + Send + Sync>;
type Start<P> = Box<dyn Fn(Lines) -> Result<P, Failure> + Send + Sync>;

struct Shared<P> {
    what: &'static str,
    start: Start<P>,
    n_wanted: usize,
    tell: Tell,
    state: Mutex<State<P>>,
    changed: Condvar,
}

struct State<P> {
    idle: Vec<Live<P>>,
    n_live: usize,
    n_ends: u32,
    reason: Option<String>,
    /// The last try to start one failed, and nothing lives.
    is_down: bool,
    is_closed: bool,
}

struct Live<P> {
    process: P,
    since: Instant,
}

impl<P: AsRef<Process> + Send + 'static> Pool<P> {
    /// Starts `n_wanted` processes (at least one), side by side, each by `start`, which also sees to it that it is ready to be asked, and
    /// starts others by it later. Errors if one does not start.
    pub fn start<E>(
        what: &'static str,
        n_wanted: usize,
        start: impl Fn(Lines) -> Result<P, E> + Send + Sync + 'static,
        tell: Tell,
    ) -> Result<Self, E>
    where
        E: Error + Send + Sync + 'static,
    {
        let (start, n_wanted) = (Arc::new(start), n_wanted.max(1));
        let first = {
            let lines = lines(&tell);
            let begin = || (start)(Arc::clone(&lines));
            thread::scope(|scope| {
                let starting: Vec<_> = (0..n_wanted).map(|_| scope.spawn(begin)).collect();
                let joined = starting.into_iter().map(|thread| thread.join().unwrap_or_else(|why| resume_unwind(why)));
                joined.collect::<Vec<Result<P, E>>>()
            })
        };
        let idle = first.into_iter().map(|process| Ok(Live { process: process?, since: Instant::now() }));
        let idle = idle.collect::<Result<Vec<_>, E>>()?;
        tell(Event::Live(idle.len()));
        let n_live = idle.len();
        let state = State { idle, n_live, n_ends: 0, reason: None, is_down: false, is_closed: false };
        let again: Start<P> = Box::new(move |lines| (start)(lines).map_err(|error| Box::new(error) as Failure));
        let changed = Condvar::new();
        let shared = Arc::new(Shared { what, start: again, n_wanted, tell, state: Mutex::new(state), changed });
        let weak = Arc::downgrade(&shared);
        thread::spawn(move || watch(&weak));
        Ok(Self(shared))
    }

    /// How many processes there are.
    pub fn crew(&self) -> Crew {
        let (state, what, n_wanted) = (self.0.lock(), self.0.what, self.0.n_wanted);
        let reason = state.reason.clone().filter(|_| state.n_live < n_wanted);
        Crew { what, n_live: state.n_live, n_wanted, reason }
    }

    /// Asks a process that is idle, waiting at most `patience` for one. Errors at once where none lives and none could be started. One that
    /// ends over the question, as `end` finds in the error, takes that one with it: it is not asked elsewhere, as it may be what ended
    /// the process.
    pub fn ask<T, E>(
        &self,
        patience: Duration,
        question: impl FnOnce(&P) -> Result<T, E>,
        end: impl FnOnce(&E) -> Option<&WorkerError>,
    ) -> Result<Result<T, E>, WorkerError> {
        let live = self.0.take_one_that_runs(patience)?;
        let answer = question(&live.process);
        match answer.as_ref().err().and_then(end).filter(|error| error.is_end()) {
            None => self.0.give_back(live),
            Some(error) => {
                let lived = live.since.elapsed();
                drop(live);
                self.0.ended(error, lived);
            }
        }
        Ok(answer)
    }
}

impl<P: AsRef<Process> + Send + 'static> Drop for Pool<P> {
    fn drop(&mut self) {
        let idle = {
            let mut state = self.0.lock();
            state.is_closed = true;
            std::mem::take(&mut state.idle)
        };
        self.0.changed.notify_all();
        (self.0.tell)(Event::Live(0));
        drop(idle);
    }
}

fn lines(tell: &Tell) -> Lines {
    let tell = Arc::clone(tell);
    Arc::new(move |line| tell(Event::Line(line)))
}

impl<P: AsRef<Process> + Send + 'static> Shared<P> {
    fn lock(&self) -> MutexGuard<'_, State<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process that ended while it was idle takes no question with it.
    fn take_one_that_runs(self: &Arc<Self>, patience: Duration) -> Result<Live<P>, WorkerError> {
        let begun = Instant::now();
        loop {
            let live = self.take(begun, patience)?;
            if !live.process.as_ref().is_done() {
                return Ok(live);
            }
            self.retire(live);
        }
    }

    fn take(&self, begun: Instant, patience: Duration) -> Result<Live<P>, WorkerError> {
        let mut state = self.lock();
        loop {
            if let Some(live) = state.idle.pop() {
                return Ok(live);
            }
            let left = patience.saturating_sub(begun.elapsed());
            if state.is_closed || left.is_zero() || (state.is_down && state.n_live == 0) {
                let reason = state.reason.clone().unwrap_or_else(|| "all of them are at work, or ended".to_owned());
                return Err(WorkerError::Down { what: self.what, reason });
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn retire(self: &Arc<Self>, live: Live<P>) {
        let lived = live.since.elapsed();
        self.ended(&live.process.as_ref().end(), lived);
    }

    fn give_back(&self, live: Live<P>) {
        let mut state = self.lock();
        if !state.is_closed {
            state.idle.push(live);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Counts a process that has ended and starts one in its place, in a thread of its own.
    fn ended(self: &Arc<Self>, error: &WorkerError, lived: Duration) {
        let (pause, n_live) = {
            let mut state = self.lock();
            if state.is_closed {
                return;
            }
            state.n_live = state.n_live.saturating_sub(1);
            state.n_ends = if lived >= LONG_LIFE { 1 } else { state.n_ends.saturating_add(1) };
            state.reason = Some(error.to_string());
            (pause_after(state.n_ends), state.n_live)
        };
        (self.tell)(Event::Ended { error, pause });
        (self.tell)(Event::Live(n_live));
        let weak = Arc::downgrade(self);
        thread::spawn(move || revive(&weak, pause));
    }

    /// Waits for `pause`, or less where everything ends first.
    fn is_closed_within(&self, pause: Duration) -> bool {
        let state = self.lock();
        let waited = self.changed.wait_timeout_while(state, pause, |state| !state.is_closed);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_closed
    }
}

/// Tries until a process is ready or nobody wants one.
fn revive<P: AsRef<Process> + Send + 'static>(shared: &Weak<Shared<P>>, mut pause: Duration) {
    loop {
        let Some(shared) = shared.upgrade() else { return };
        if shared.is_closed_within(pause) {
            return;
        }
        match (shared.start)(lines(&shared.tell)) {
            Ok(process) => {
                let mut state = shared.lock();
                if state.is_closed {
                    return;
                }
                state.idle.push(Live { process, since: Instant::now() });
                state.n_live += 1;
                state.is_down = false;
                let n_live = state.n_live;
                drop(state);
                shared.changed.notify_one();
                (shared.tell)(Event::Started);
                return (shared.tell)(Event::Live(n_live));
            }
            Err(error) => {
                pause = {
                    let mut state = shared.lock();
                    state.n_ends = state.n_ends.saturating_add(1);
                    state.reason = Some(error.to_string());
                    state.is_down = true;
                    pause_after(state.n_ends)
                };
                // Who waits is told rather than kept.
                shared.changed.notify_all();
                (shared.tell)(Event::Failed { error: &error, pause });
            }
        }
    }
}

/// Finds processes that end while nobody asks them.
fn watch<P: AsRef<Process> + Send + 'static>(shared: &Weak<Shared<P>>) {
    loop {
        let Some(shared) = shared.upgrade() else { return };
        if shared.is_closed_within(LOOK) {
            return;
        }
        let found = {
            let mut state = shared.lock();
            let idx = state.idle.iter().position(|live| live.process.as_ref().is_done());
            idx.map(|idx| state.idle.swap_remove(idx))
        };
        if let Some(live) = found {
            shared.retire(live);
        }
    }
}

fn pause_after(n_ends: u32) -> Duration {
    match n_ends {
        0 | 1 => Duration::ZERO,
        n_ends => FIRST_PAUSE.saturating_mul(2u32.saturating_pow(n_ends - 2)).min(LONGEST_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_costs_no_pause_and_later_ones_double_to_a_limit() {
        let seconds = |n_ends| pause_after(n_ends).as_secs();
        assert_eq!([1, 2, 3, 5, 8, u32::MAX].map(seconds), [0, 1, 2, 8, 60, 60]);
    }
}
