//! Several PyTorch processes on one program, watched: one that ends is started again, with growing pauses.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use highroad_task::raw::Tensor;
use highroad_task::{Engine, TaskError};

use crate::{Lines, TorchError, TorchOptions, TorchProcess};

/// Between two looks at the processes that nobody asks.
const LOOK: Duration = Duration::from_millis(200);
/// The first process that ends is started again at once, the next one after this, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A process that lived so long did not end because of what it runs.
const LONG_LIFE: Duration = Duration::from_secs(60);

/// What a process has to do before it is asked anything: reproduce its parity cases, say.
pub type Ready = Arc<dyn Fn(&TorchProcess) -> Result<(), TaskError> + Send + Sync>;

/// Hears what happens.
pub type Tell = Arc<dyn Fn(Event<'_>) + Send + Sync>;

/// What happens to processes.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A line of a process's stderr.
    Line(&'a str),
    /// A process ended, for a reason; another is started after a pause.
    Ended {
        /// Why.
        error: &'a TorchError,
        /// Until it is started again.
        pause: Duration,
    },
    /// One in its place is ready.
    Started,
    /// One in its place did not get ready; the next try is after a pause.
    Failed {
        /// Why.
        error: &'a TaskError,
        /// Until the next try.
        pause: Duration,
    },
    /// How many are ready now.
    Live(usize),
}

/// How many processes there are of those there should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crew {
    /// Ready, or at work.
    pub n_live: usize,
    /// That there should be.
    pub n_wanted: usize,
    /// Why the last one ended, or did not start.
    pub reason: Option<String>,
}

/// Processes that run one program. Dropping it ends them.
pub struct Workers {
    shared: Arc<Shared>,
    id: String,
}

struct Shared {
    program: PathBuf,
    options: TorchOptions,
    n_wanted: usize,
    ready: Ready,
    tell: Tell,
    /// Of the first processes; those in their place compute alike or not at all.
    id: Mutex<Option<String>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    idle: Vec<Live>,
    n_live: usize,
    n_ends: u32,
    reason: Option<String>,
    /// The last try to start one failed, and nothing lives.
    is_down: bool,
    is_closed: bool,
}

struct Live {
    process: TorchProcess,
    since: Instant,
}

impl Workers {
    /// Starts `n_wanted` processes (at least one) on the verified program at `program`, side by side. Errors if one does not start, is not
    /// `ready`, or computes with other numerics than the others.
    pub fn start(
        program: &Path,
        options: TorchOptions,
        n_wanted: usize,
        ready: Ready,
        tell: Tell,
    ) -> Result<Self, TaskError> {
        let shared = Arc::new(Shared {
            program: program.to_owned(),
            options,
            n_wanted: n_wanted.max(1),
            ready,
            tell,
            id: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let started: Vec<Result<TorchProcess, TaskError>> = thread::scope(|scope| {
            let starting: Vec<_> = (0..shared.n_wanted).map(|_| scope.spawn(|| shared.start())).collect();
            let ended = || TaskError::from(TorchError::Down("its start panicked".to_owned()));
            starting.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(ended()))).collect()
        });
        let idle = started.into_iter().map(|process| Ok(Live { process: process?, since: Instant::now() }));
        let idle = idle.collect::<Result<Vec<_>, TaskError>>()?;
        let id = lock(&shared.id).clone().unwrap_or_default();
        (shared.tell)(Event::Live(idle.len()));
        *shared.lock() = State { n_live: idle.len(), idle, ..State::default() };
        let weak = Arc::downgrade(&shared);
        thread::spawn(move || watch(&weak));
        Ok(Self { shared, id })
    }

    /// What decides the bits, of every process.
    pub fn numerics_id(&self) -> &str {
        &self.id
    }

    /// How many processes there are.
    pub fn crew(&self) -> Crew {
        let state = self.shared.lock();
        let reason = state.reason.clone().filter(|_| state.n_live < self.shared.n_wanted);
        Crew { n_live: state.n_live, n_wanted: self.shared.n_wanted, reason }
    }
}

impl Engine for Workers {
    /// Asks a process that is idle, waiting for one. Errors at once where none lives and none could be started. One that ends over
    /// the question takes that one with it: it is not asked elsewhere, as it may be what ended the process.
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, TaskError> {
        let live = self.shared.take_one_that_runs()?;
        let answer = live.process.ask(inputs);
        let end = answer.as_ref().err().and_then(TorchError::of).filter(|error| error.is_end()).cloned();
        match end {
            None => self.shared.give_back(live),
            Some(error) => {
                let lived = live.since.elapsed();
                drop(live);
                self.shared.ended(&error, lived);
            }
        }
        answer
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let idle = {
            let mut state = self.shared.lock();
            state.is_closed = true;
            std::mem::take(&mut state.idle)
        };
        self.shared.changed.notify_all();
        (self.shared.tell)(Event::Live(0));
        drop(idle);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn start(&self) -> Result<TorchProcess, TaskError> {
        let tell = Arc::clone(&self.tell);
        let lines: Lines = Arc::new(move |line| tell(Event::Line(line)));
        let process = TorchProcess::start(&self.program, &self.options, Some(lines))?;
        {
            let mut id = lock(&self.id);
            let expected = id.get_or_insert_with(|| process.numerics_id().to_owned());
            if expected != process.numerics_id() {
                let found = process.numerics_id().to_owned();
                return Err(TorchError::OtherNumerics { found, expected: expected.clone() }.into());
            }
        }
        (self.ready)(&process)?;
        Ok(process)
    }

    /// A process that ended while it was idle takes no question with it.
    fn take_one_that_runs(self: &Arc<Self>) -> Result<Live, TorchError> {
        let begun = Instant::now();
        loop {
            let live = self.take(begun)?;
            if !live.process.is_done() {
                return Ok(live);
            }
            self.retire(live);
        }
    }

    fn take(&self, begun: Instant) -> Result<Live, TorchError> {
        let mut state = self.lock();
        loop {
            if let Some(live) = state.idle.pop() {
                return Ok(live);
            }
            let left = self.options.run_timeout.saturating_sub(begun.elapsed());
            if state.is_closed || left.is_zero() || (state.is_down && state.n_live == 0) {
                return Err(TorchError::Down(state.reason.clone().unwrap_or_else(|| "they are ended".to_owned())));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn retire(self: &Arc<Self>, live: Live) {
        let lived = live.since.elapsed();
        self.ended(&live.process.end(), lived);
    }

    fn give_back(&self, live: Live) {
        let mut state = self.lock();
        if !state.is_closed {
            state.idle.push(live);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Counts a process that has ended and starts one in its place, in a thread of its own.
    fn ended(self: &Arc<Self>, error: &TorchError, lived: Duration) {
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
fn revive(shared: &Weak<Shared>, mut pause: Duration) {
    loop {
        let Some(shared) = shared.upgrade() else { return };
        if shared.is_closed_within(pause) {
            return;
        }
        match shared.start() {
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
fn watch(shared: &Weak<Shared>) {
    loop {
        let Some(shared) = shared.upgrade() else { return };
        if shared.is_closed_within(LOOK) {
            return;
        }
        let found = {
            let mut state = shared.lock();
            let idx = state.idle.iter().position(|live| live.process.is_done());
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
