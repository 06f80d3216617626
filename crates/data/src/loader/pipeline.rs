//! Threads that make batches ahead, given out in order.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::{Batch, Shared};
use crate::plan::Plan;
use crate::table::DataError;

pub(super) struct Pipeline {
    work: Arc<Work>,
    threads: Vec<JoinHandle<()>>,
    /// The process that the threads live in; in a forked child there is nothing to wait for.
    process: u32,
}

struct Work {
    shared: Arc<Shared>,
    plan: Arc<Plan>,
    /// Batches of this rank, by their index in the plan.
    own: Vec<usize>,
    queue: Mutex<Queue>,
    /// Told when a batch was taken or the work ends.
    room: Condvar,
    /// Told when a batch is made.
    made: Condvar,
}

#[derive(Default)]
struct Queue {
    n_claimed: usize,
    n_given: usize,
    ready: BTreeMap<usize, Result<Batch, DataError>>,
    stopped: bool,
}

impl Pipeline {
    pub(super) fn start(shared: Arc<Shared>, plan: Arc<Plan>, own: Vec<usize>) -> Self {
        let n_threads = shared.options.threads.get().min(own.len());
        let work = Work { shared, plan, own, queue: Mutex::default(), room: Condvar::new(), made: Condvar::new() };
        let work = Arc::new(work);
        let thread = |_| {
            let work = work.clone();
            std::thread::spawn(move || work.run())
        };
        Self { threads: (0..n_threads).map(thread).collect(), work, process: std::process::id() }
    }

    /// The next batch in order; waits until it is made. Panics if there is none left.
    pub(super) fn next(&self) -> Result<Batch, DataError> {
        let mut queue = self.work.lock();
        assert!(queue.n_given < self.work.own.len(), "the caller knows how many batches there are");
        loop {
            let wanted = queue.n_given;
            if let Some(batch) = queue.ready.remove(&wanted) {
                queue.n_given += 1;
                self.work.room.notify_all();
                return batch;
            }
            queue = self.work.made.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            return;
        }
        self.work.lock().stopped = true;
        self.work.room.notify_all();
        for thread in self.threads.drain(..) {
            // A panic has already become an error of its batch.
            let _ = thread.join();
        }
    }
}

impl Work {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        self.shared.with_words(|words| {
            while let Some(n) = self.claim() {
                let make = || self.shared.batch(&self.plan, self.own[n], words);
                let batch = catch_unwind(AssertUnwindSafe(make)).unwrap_or(Err(DataError::Panic));
                self.lock().ready.insert(n, batch);
                self.made.notify_all();
            }
        });
    }

    /// The next batch to make, as soon as there is room for it; `None` when there is no more to do.
    fn claim(&self) -> Option<usize> {
        let mut queue = self.lock();
        loop {
            if queue.stopped || queue.n_claimed == self.own.len() {
                return None;
            }
            if queue.n_claimed < queue.n_given + self.shared.options.prefetch.get() {
                queue.n_claimed += 1;
                return Some(queue.n_claimed - 1);
            }
            queue = self.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
