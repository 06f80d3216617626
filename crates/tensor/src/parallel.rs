//! The threads that kernels run on.
//!
//! A region of work is short (a layer of a small encoder takes tens of microseconds), so idle workers spin a moment
//! before they sleep, and the caller takes back work that a worker has not begun. Callers that run at once share the
//! workers: two runs that may use all cores get half of them each, which is faster than taking turns. Which thread runs
//! a task never decides a result: tasks write disjoint outputs.

#![allow(unsafe_code)]

use std::any::Any;
use std::cell::Cell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long an idle worker watches for work before it sleeps: longer than the gaps between the kernels of one run.
const SPIN: Duration = Duration::from_micros(150);
/// Most threads a region uses, whatever the caller asks for.
pub const MAX_THREADS: usize = 256;

thread_local! {
    static THREADS: Cell<usize> = const { Cell::new(1) };
}

/// Callers of [`with_threads`] now, of those that may use more than one.
static N_CALLERS: AtomicUsize = AtomicUsize::new(0);

/// Calls `work`, in which kernels use up to `threads` threads, the calling one included; fewer while others are in such a
/// call. Elsewhere they use one.
pub fn with_threads<R>(threads: usize, work: impl FnOnce() -> R) -> R {
    struct Restore {
        threads: usize,
        counts: usize,
    }
    impl Drop for Restore {
        fn drop(&mut self) {
            N_CALLERS.fetch_sub(self.counts, Ordering::Relaxed);
            THREADS.set(self.threads);
        }
    }
    let outside = THREADS.replace(threads.clamp(1, MAX_THREADS));
    // A call within a call is no other caller.
    let counts = usize::from(threads > 1 && outside == 1);
    N_CALLERS.fetch_add(counts, Ordering::Relaxed);
    let _restore = Restore { threads: outside, counts };
    work()
}

/// Threads that kernels called from here may use now: the caller's share of those it may use at most.
pub fn threads() -> usize {
    match THREADS.get() {
        1 => 1,
        most => (most / N_CALLERS.load(Ordering::Relaxed).max(1)).max(1),
    }
}

/// Calls `task(0) … task(n_tasks - 1)`, each once, in any order, on the allowed threads; returns when all are done.
/// A panic in a task is passed on. The calling thread does all the work that no worker is free for.
pub fn for_each(n_tasks: usize, task: impl Fn(usize) + Sync) {
    let helpers = threads().min(n_tasks).saturating_sub(1);
    if helpers == 0 {
        return (0..n_tasks).for_each(task);
    }
    let crew = Crew::of(helpers);
    match crew.0.is_empty() {
        true => (0..n_tasks).for_each(task),
        false => run(&crew.0, n_tasks, &task),
    }
}

/// Calls `task(i, chunk)` for each chunk of `chunk_len` elements of `data` (the last may be shorter).
pub fn for_each_chunk<T: Send>(data: &mut [T], chunk_len: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    let len = data.len();
    let chunk_len = chunk_len.max(1);
    let parts = Parts::new(data);
    for_each(len.div_ceil(chunk_len), |i| {
        let start = i * chunk_len;
        // SAFETY: chunks of different tasks do not overlap and each task runs once.
        task(i, unsafe { parts.get(start, chunk_len.min(len - start)) });
    });
}

/// A slice that several tasks write disjoint parts of.
pub(crate) struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    _slice: PhantomData<&'a mut [T]>,
}

// SAFETY: parts hand out disjoint `&mut [T]`, which may move between threads when `T` may.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), _slice: PhantomData }
    }

    /// The part of `len` elements from `start`. Panics if it leaves the slice.
    ///
    /// # Safety
    /// No other live part may overlap it.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn get(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "a part lies in its slice");
        // SAFETY: in bounds by the assertion; the caller keeps parts disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// The address of the first element, for kernels that write interleaved parts.
    pub(crate) fn as_ptr(&self) -> *mut T {
        self.start
    }

    /// Elements of the whole slice.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

struct Worker {
    mailbox: AtomicPtr<Job>,
    is_asleep: AtomicBool,
    thread: std::sync::OnceLock<Thread>,
}

/// One region of work; lives on the stack of the caller of [`for_each`].
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    n_tasks: usize,
    next: AtomicUsize,
    n_done: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Workers that no region uses, the last used last: those are still awake.
static IDLE: Mutex<Vec<Arc<Worker>>> = Mutex::new(Vec::new());
static N_WORKERS: AtomicUsize = AtomicUsize::new(0);

fn idle() -> MutexGuard<'static, Vec<Arc<Worker>>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The workers of one region, idle again when it ends.
struct Crew(Vec<Arc<Worker>>);

impl Crew {
    /// Up to `n` workers: those that are idle, and new ones as long as there are fewer than any region may use.
    fn of(n: usize) -> Self {
        let mut idle = idle();
        let first = idle.len().saturating_sub(n);
        let mut crew = idle.split_off(first);
        drop(idle);
        while crew.len() < n
            && let Some(worker) = spawn()
        {
            crew.push(worker);
        }
        Self(crew)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        idle().append(&mut self.0);
    }
}

fn run(helpers: &[Arc<Worker>], n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
    // SAFETY: only the lifetime is erased; `job` is not reachable by any worker once this function returns, because
    // every mailbox is emptied and every worker that took the job has reported in `n_done` before.
    let task: *const (dyn Fn(usize) + Sync) =
        unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task) };
    let job = Job { task, n_tasks, next: AtomicUsize::new(0), n_done: AtomicUsize::new(0), panic: Mutex::new(None) };
    for worker in helpers {
        worker.mailbox.store(ptr::from_ref(&job).cast_mut(), Ordering::SeqCst);
        if worker.is_asleep.load(Ordering::SeqCst)
            && let Some(thread) = worker.thread.get()
        {
            thread.unpark();
        }
    }
    job.work();
    let n_taken = helpers.iter().filter(|w| w.mailbox.swap(ptr::null_mut(), Ordering::AcqRel).is_null()).count();
    wait_until(|| job.n_done.load(Ordering::Acquire) == n_taken);
    let panic = job.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

impl Job {
    /// Runs tasks until none is left. Panics are kept for the caller.
    fn work(&self) {
        // SAFETY: the caller of `for_each` keeps the closure alive until all workers have reported.
        let task = unsafe { &*self.task };
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let i = self.next.fetch_add(1, Ordering::Relaxed);
                if i >= self.n_tasks {
                    break;
                }
                task(i);
            }
        }));
        if let Err(panic) = result {
            self.next.store(self.n_tasks, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(panic);
        }
    }
}

/// A new worker, unless there are as many as a region may use or the system refuses a thread.
fn spawn() -> Option<Arc<Worker>> {
    let number =
        N_WORKERS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n + 1 < MAX_THREADS).then_some(n + 1));
    let number = number.ok()? + 1;
    let worker = Arc::new(Worker {
        mailbox: AtomicPtr::new(ptr::null_mut()),
        is_asleep: AtomicBool::new(false),
        thread: std::sync::OnceLock::new(),
    });
    let own = Arc::clone(&worker);
    match thread::Builder::new().name(format!("kernel-{number}")).spawn(move || serve(&own)) {
        Ok(handle) => {
            worker.thread.set(handle.thread().clone()).expect("set once");
            Some(worker)
        }
        Err(_) => {
            N_WORKERS.fetch_sub(1, Ordering::Relaxed);
            None
        }
    }
}

/// The loop of a worker; workers live as long as the process.
fn serve(worker: &Worker) {
    loop {
        let job = worker.mailbox.swap(ptr::null_mut(), Ordering::AcqRel);
        if job.is_null() {
            wait_for_mail(worker);
            continue;
        }
        // SAFETY: the job was taken out of the mailbox, so its owner waits for `n_done` before it goes away; the
        // last access is the increment itself.
        let job = unsafe { &*job };
        job.work();
        job.n_done.fetch_add(1, Ordering::Release);
    }
}

fn wait_for_mail(worker: &Worker) {
    let has_mail = || !worker.mailbox.load(Ordering::Acquire).is_null();
    let start = Instant::now();
    while start.elapsed() < SPIN {
        for _ in 0..64 {
            if has_mail() {
                return;
            }
            std::hint::spin_loop();
        }
    }
    worker.is_asleep.store(true, Ordering::SeqCst);
    while worker.mailbox.load(Ordering::SeqCst).is_null() {
        thread::park();
    }
    worker.is_asleep.store(false, Ordering::SeqCst);
}

fn wait_until(is_done: impl Fn() -> bool) {
    let mut n_spins = 0u32;
    while !is_done() {
        n_spins += 1;
        if n_spins < 10_000 {
            std::hint::spin_loop();
        } else {
            thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_with_any_number_of_threads() {
        for n_threads in [1, 2, 3, 8] {
            for n_tasks in [0, 1, 2, 7, 1000] {
                let counts: Vec<AtomicUsize> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
                with_threads(n_threads, || for_each(n_tasks, |i| _ = counts[i].fetch_add(1, Ordering::Relaxed)));
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{n_threads} x {n_tasks}");
            }
        }
    }

    #[test]
    fn regions_nest_and_run_from_many_threads_at_once() {
        let total = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        with_threads(3, || {
                            for_each(4, |_| for_each(5, |_| _ = total.fetch_add(1, Ordering::Relaxed)));
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 4 * 200 * 4 * 5);
    }

    #[test]
    fn callers_at_once_share_the_threads() {
        // Other tests of this process call, too, so only what one caller leaves to another is certain.
        let (inside, leave) = (std::sync::Barrier::new(3), std::sync::Barrier::new(3));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    with_threads(8, || {
                        inside.wait();
                        assert!(threads() <= 4, "{}", threads());
                        with_threads(8, || assert!(threads() <= 4));
                        leave.wait();
                    });
                });
            }
            inside.wait();
            assert_eq!(threads(), 1, "who is in no call has one");
            leave.wait();
        });
        with_threads(1, || assert_eq!(threads(), 1));
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_workers_survive() {
        let result = catch_unwind(|| with_threads(2, || for_each(100, |i| assert!(i != 57))));
        assert!(result.is_err());
        let n = AtomicUsize::new(0);
        with_threads(2, || for_each(100, |_| _ = n.fetch_add(1, Ordering::Relaxed)));
        assert_eq!(n.into_inner(), 100);
    }

    #[test]
    fn chunks_cover_a_slice() {
        let mut data = vec![0usize; 1003];
        with_threads(2, || for_each_chunk(&mut data, 100, |i, chunk| chunk.fill(i + 1)));
        assert!(data.iter().enumerate().all(|(at, &value)| value == at / 100 + 1));
    }
}
