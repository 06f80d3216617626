//! Dynamic batching: a bounded queue in front of worker threads that run one batch at a time.
//!
//! A worker takes a batch the moment it is idle, so a lone request never waits for company; batches form only while
//! workers are busy. Which rows a batch holds is `highroad_task::TurnQueue`'s to choose.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use highroad_task::{Flow, RunCost, TurnQueue, Waiting};
use tokio::sync::oneshot;

use crate::telemetry::BatchMetrics;

/// What a worker thread runs. One engine is shared by all replicas, so its weights are in memory once.
pub trait Engine: Send + Sync + 'static {
    /// One row of work.
    type Job: Job;
    /// What a job gives.
    type Output: Send + 'static;
    /// Why a batch failed; every row of the batch gets a copy.
    type Error: Clone + Send + 'static;

    /// Runs `batch`, one output for each job and in their order.
    fn run(&self, batch: Vec<Self::Job>) -> Result<Vec<Self::Output>, Self::Error>;
}

/// One row of work in the queue.
pub trait Job: Send + 'static {
    /// Length of the row; a batch costs its number of rows times the longest.
    fn n_tokens(&self) -> usize;

    /// Whether the job may share a batch with others.
    fn sharing(&self) -> Sharing;
}

/// Whether a job may share a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Sharing {
    WithOthers,
    Alone,
}

/// The shape of batches and of the queue before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Largest number of tokens in a batch, padding included. A longer single row still runs, alone.
    pub batch_tokens: NonZeroUsize,
    /// Largest number of rows that wait; more are refused. A larger request is accepted when the queue is empty.
    pub queue_rows: NonZeroUsize,
    /// Number of worker threads.
    pub replicas: NonZeroUsize,
}

/// The queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overloaded {
    /// When the rows now waiting should be done, by the recent pace.
    pub retry_after: Duration,
}

/// Why a row got no output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowError<E> {
    /// The engine refused the batch.
    Engine(E),
    /// The engine panicked; only the rows of that batch are lost.
    Panicked,
    /// The deadline passed before the row's turn came.
    Expired,
    /// It had to make room for what is more urgent, or for somebody who has less waiting; when to try again.
    Shed(Duration),
}

/// A finished row.
#[derive(Clone, Debug, PartialEq)]
pub struct Done<O> {
    /// What the engine gave for it.
    pub output: O,
    /// Time between submission and the start of its batch.
    pub queued: Duration,
    /// Time its batch took.
    pub computed: Duration,
    /// Rows in its batch.
    pub batch_rows: usize,
}

/// The promise of one row. Dropping it before the row's turn takes the row out of the queue.
pub type Ticket<O, E> = oneshot::Receiver<Result<Done<O>, RowError<E>>>;

/// The tickets of one request, one a row.
pub type Tickets<E> = Vec<Ticket<<E as Engine>::Output, <E as Engine>::Error>>;

/// A queue and its worker threads. Dropping it lets the workers finish their batch and end.
pub struct Batcher<E: Engine> {
    shared: Arc<Shared<E>>,
}

impl<E: Engine> Batcher<E> {
    /// Starts `limits.replicas` threads named after `name`. Errors if the system refuses a thread.
    pub fn start(name: &str, engine: E, limits: BatchLimits, metrics: BatchMetrics) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            engine,
            limits,
            metrics,
            queue: Mutex::new(Queue::of_workers(limits.replicas)),
            wake: Condvar::new(),
        });
        let batcher = Self { shared };
        for replica_idx in 0..limits.replicas.get() {
            let shared = Arc::clone(&batcher.shared);
            std::thread::Builder::new().name(format!("{name}-{replica_idx}")).spawn(move || shared.work())?;
        }
        Ok(batcher)
    }

    /// Queues the rows of one request, all or none. Whose turn they take is `flow`'s.
    ///
    /// A request that by the recent pace cannot be done by its `deadline` is refused at once: under too much load, work on
    /// answers that come too late would be all that is done. Rows that still cannot be when their turn is near are given up before any
    /// work. Where the queue is full, rows of lower classes make room, and those of owners who have more waiting.
    pub fn submit(&self, flow: Flow, jobs: Vec<E::Job>, deadline: Option<Instant>) -> Result<Tickets<E>, Overloaded> {
        let tickets = self.shared.admit(flow, jobs, deadline)?;
        match tickets.len() {
            0 | 1 => self.shared.wake.notify_one(),
            _ => self.shared.wake.notify_all(),
        }
        Ok(tickets)
    }

    /// The engine that the workers share.
    pub fn engine(&self) -> &E {
        &self.shared.engine
    }

    /// Rows waiting now.
    pub fn n_waiting(&self) -> usize {
        self.shared.lock().rows.len()
    }
}

impl<E: Engine> Drop for Batcher<E> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

struct Shared<E: Engine> {
    engine: E,
    limits: BatchLimits,
    metrics: BatchMetrics,
    queue: Mutex<Queue<E>>,
    wake: Condvar,
}

impl<E: Engine> Shared<E> {
    // The lock is never held while foreign code runs, so a poisoned queue is still whole.
    fn lock(&self) -> MutexGuard<'_, Queue<E>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, flow: Flow, jobs: Vec<E::Job>, deadline: Option<Instant>) -> Result<Tickets<E>, Overloaded> {
        let mut queue = self.lock();
        let most = self.limits.queue_rows.get();
        if !queue.rows.is_empty() && queue.rows.len() + jobs.len() > most {
            // Rows whose clients have left must not keep out those who stay.
            queue.give_up_rows(&self.metrics);
            if !queue.make_room(flow, jobs.len(), most, &self.metrics) {
                self.metrics.rejected.increment(1);
                return Err(Overloaded { retry_after: queue.retry_after() });
            }
        }
        let submitted = Instant::now();
        if let Some(wait) = queue.too_long_for(flow, &jobs, deadline, submitted) {
            self.metrics.rejected.increment(1);
            return Err(Overloaded { retry_after: wait });
        }
        let (rows, tickets): (Vec<_>, _) = jobs
            .into_iter()
            .map(|job| {
                let (reply, ticket) = oneshot::channel();
                (Row { job, submitted, deadline, reply }, ticket)
            })
            .unzip();
        queue.rows.push_request_of(flow, rows);
        self.metrics.queue_rows.set(queue.rows.len() as f64);
        Ok(tickets)
    }

    fn work(&self) {
        while let Some(batch) = self.next_batch() {
            self.run(batch);
        }
    }

    fn next_batch(&self) -> Option<Vec<Row<E>>> {
        let mut queue = self.lock();
        loop {
            queue.give_up_rows(&self.metrics);
            let budget = queue.budget(self.limits.batch_tokens.get());
            if let Some(batch) = queue.take_batch(budget) {
                queue.running = queue.running + Tokens::of(batch.iter().map(|row| &row.job));
                self.metrics.queue_rows.set(queue.rows.len() as f64);
                return Some(batch);
            }
            if queue.closed {
                return None;
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run(&self, batch: Vec<Row<E>>) {
        let started = Instant::now();
        let (jobs, replies): (Vec<_>, Vec<_>) = batch.into_iter().map(Row::split).unzip();
        let (n_rows, n_tokens) = (jobs.len(), padded_tokens(&jobs));
        let tokens = Tokens::of(&jobs);
        let result = catch_unwind(AssertUnwindSafe(|| self.engine.run(jobs)));
        let computed = started.elapsed();
        self.metrics.batch(n_rows, n_tokens, computed);
        self.lock().finished(tokens, n_tokens, computed);
        match result {
            Ok(Ok(outputs)) if outputs.len() == replies.len() => {
                let batch_rows = outputs.len();
                for (output, (reply, submitted)) in outputs.into_iter().zip(replies) {
                    let queued = started.duration_since(submitted);
                    self.metrics.queued.record(queued.as_secs_f64());
                    // A send fails only when the client has left.
                    let _ = reply.send(Ok(Done { output, queued, computed, batch_rows }));
                }
            }
            Ok(Err(error)) => refuse(replies, || RowError::Engine(error.clone())),
            Ok(Ok(_)) | Err(_) => {
                self.metrics.panics.increment(1);
                tracing::error!(batch.rows = n_rows, "A worker panicked; the rows of its batch are lost");
                refuse(replies, || RowError::Panicked);
            }
        }
    }
}

type Reply<O, E> = oneshot::Sender<Result<Done<O>, RowError<E>>>;

fn refuse<O, E>(replies: Vec<(Reply<O, E>, Instant)>, error: impl Fn() -> RowError<E>) {
    for (reply, _) in replies {
        let _ = reply.send(Err(error()));
    }
}

fn padded_tokens<J: Job>(jobs: &[J]) -> usize {
    jobs.len() * jobs.iter().map(Job::n_tokens).max().unwrap_or(0)
}

struct Row<E: Engine> {
    job: E::Job,
    submitted: Instant,
    deadline: Option<Instant>,
    reply: Reply<E::Output, E::Error>,
}

impl<E: Engine> Waiting for Row<E> {
    fn n_tokens(&self) -> usize {
        self.job.n_tokens()
    }

    fn may_share(&self) -> bool {
        self.job.sharing() == Sharing::WithOthers
    }
}

impl<E: Engine> Row<E> {
    #[allow(clippy::type_complexity)]
    fn split(self) -> (E::Job, (Reply<E::Output, E::Error>, Instant)) {
        (self.job, (self.reply, self.submitted))
    }
}

struct Queue<E: Engine> {
    rows: TurnQueue<Row<E>>,
    /// Of the batches that run now.
    running: Tokens,
    pace: Pace,
    cost: RunCost,
    closed: bool,
}

impl<E: Engine> Queue<E> {
    fn of_workers(replicas: NonZeroUsize) -> Self {
        Self {
            rows: TurnQueue::default(),
            running: Tokens::default(),
            pace: Pace::of_workers(replicas),
            cost: RunCost::default(),
            closed: false,
        }
    }
}

impl<E: Engine> Queue<E> {
    // Drops rows whose client left and rows that cannot be done by their deadline, before any work is spent on them. Where that would
    // be all of them the pace may be wrong, and only work can tell: those whose deadline has not passed stay.
    fn give_up_rows(&mut self, metrics: &BatchMetrics) {
        let (now, pace) = (Instant::now(), self.pace);
        let past = |row: &Row<E>, by: Duration| row.deadline.is_some_and(|deadline| deadline <= now + by);
        let hopeless = |row: &Row<E>| past(row, pace.alone(Tokens::of([&row.job])).mul_f64(MARGIN));
        let all = self.rows.iter().all(|row| row.reply.is_closed() || hopeless(row));
        let expired = |row: &Row<E>| past(row, Duration::ZERO) || (!all && hopeless(row));
        for row in self.rows.take_out(|row| row.reply.is_closed() || expired(row)) {
            if row.reply.is_closed() {
                metrics.cancelled.increment(1);
            } else {
                metrics.expired.increment(1);
                let _ = row.reply.send(Err(RowError::Expired));
            }
        }
    }
}

impl<E: Engine> Queue<E> {
    /// Whether `n_rows` rows of `flow` have room now; rows that were less urgent, or whose owner has more, may have made it.
    fn make_room(&mut self, flow: Flow, n_rows: usize, most: usize, metrics: &BatchMetrics) -> bool {
        if self.rows.is_empty() || self.rows.len() + n_rows <= most {
            return true;
        }
        let Some(out) = self.rows.make_room(flow, n_rows, most.saturating_sub(n_rows)) else { return false };
        let retry_after = self.retry_after();
        for row in out {
            metrics.shed.increment(1);
            let _ = row.reply.send(Err(RowError::Shed(retry_after)));
        }
        true
    }
}

impl<E: Engine> Queue<E> {
    fn take_batch(&mut self, budget_tokens: usize) -> Option<Vec<Row<E>>> {
        self.rows.take_batch(budget_tokens, self.cost.run_tokens())
    }

    fn finished(&mut self, tokens: Tokens, n_padded: usize, computed: Duration) {
        self.running = self.running - tokens;
        if tokens.alone <= 0.0 {
            self.cost.record(n_padded, computed.as_secs_f64());
        }
        self.pace.record(tokens, computed);
    }

    /// When what waits now should be done.
    fn retry_after(&self) -> Duration {
        self.pace.time_for(Tokens::of(self.rows.iter().map(|row| &row.job)))
    }

    /// When to try again, if a new request would not be done by its deadline: what waits with at least its weight, half of what runs, and
    /// itself. A request that nothing is before is never refused.
    fn too_long_for(&self, flow: Flow, jobs: &[E::Job], deadline: Option<Instant>, now: Instant) -> Option<Duration> {
        let before = Tokens::of(self.rows.before(flow).map(|row| &row.job)) + self.running.half();
        let takes = self.pace.spent_on(before + Tokens::of(jobs));
        (!before.is_none() && deadline? < now + takes.mul_f64(MARGIN)).then(|| self.pace.time_for(before))
    }

    /// Tokens of the next batch: no more than its first row's deadline leaves time for.
    fn budget(&self, most: usize) -> usize {
        let deadline = self.rows.next().and_then(|row| row.deadline);
        deadline
            .map_or(most, |deadline| most.min(self.pace.tokens_in(deadline.saturating_duration_since(Instant::now()))))
    }
}

/// How much longer than expected a request may take and still be in time: service times vary, and the reply has to travel.
const MARGIN: f64 = 1.5;

/// Tokens of rows that share batches, and of those that run alone, whose tokens are elements and take another time each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Tokens {
    shared: f64,
    alone: f64,
}

impl Tokens {
    fn of<'a, J: Job>(jobs: impl IntoIterator<Item = &'a J>) -> Self {
        jobs.into_iter().fold(Self::default(), |sum, job| {
            let n_tokens = job.n_tokens().max(1) as f64;
            match job.sharing() {
                Sharing::WithOthers => Self { shared: sum.shared + n_tokens, ..sum },
                Sharing::Alone => Self { alone: sum.alone + n_tokens, ..sum },
            }
        })
    }

    fn half(self) -> Self {
        Self { shared: self.shared / 2.0, alone: self.alone / 2.0 }
    }

    fn is_none(self) -> bool {
        self.shared + self.alone <= 0.0
    }
}

impl std::ops::Add for Tokens {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { shared: self.shared + other.shared, alone: self.alone + other.alone }
    }
}

impl std::ops::Sub for Tokens {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { shared: (self.shared - other.shared).max(0.0), alone: (self.alone - other.alone).max(0.0) }
    }
}

/// What recent batches took: sums that forget a tenth with each batch, so that large batches count for what they are.
#[derive(Clone, Copy)]
struct Pace {
    seconds: Tokens,
    tokens: Tokens,
    workers: f64,
}

const SHORTEST_RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
const KEPT: f64 = 0.9;

impl Pace {
    fn of_workers(workers: NonZeroUsize) -> Self {
        Self { seconds: Tokens::default(), tokens: Tokens::default(), workers: workers.get() as f64 }
    }

    fn record(&mut self, tokens: Tokens, computed: Duration) {
        let computed = computed.as_secs_f64();
        if tokens.alone > 0.0 {
            self.seconds.alone = KEPT * self.seconds.alone + computed;
            self.tokens.alone = KEPT * self.tokens.alone + tokens.alone;
        } else {
            self.seconds.shared = KEPT * self.seconds.shared + computed;
            self.tokens.shared = KEPT * self.tokens.shared + tokens.shared;
        }
    }

    /// Seconds that one worker takes for a token of each kind; none before the first batch.
    fn seconds_per_token(self) -> Tokens {
        let of = |seconds: f64, tokens: f64| if tokens > 0.0 { seconds / tokens } else { 0.0 };
        Tokens { shared: of(self.seconds.shared, self.tokens.shared), alone: of(self.seconds.alone, self.tokens.alone) }
    }

    /// Time that one worker takes.
    fn alone(self, tokens: Tokens) -> Duration {
        let each = self.seconds_per_token();
        seconds(each.shared * tokens.shared + each.alone * tokens.alone)
    }

    /// Time that all workers together take.
    fn spent_on(self, tokens: Tokens) -> Duration {
        self.alone(tokens).div_f64(self.workers)
    }

    /// What one worker does in a time, of rows that share batches.
    fn tokens_in(self, time: Duration) -> usize {
        let per_token = self.seconds_per_token().shared;
        if per_token > 0.0 { (time.as_secs_f64() / (MARGIN * per_token)) as usize } else { usize::MAX }
    }

    /// When it is worth trying again behind so much.
    fn time_for(self, tokens: Tokens) -> Duration {
        self.spent_on(tokens).clamp(SHORTEST_RETRY, LONGEST_RETRY)
    }
}

/// A day at most: what takes longer is never waited for, and a sum with a moment must not overflow.
fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, 86_400.0))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    // A job is its length. The engine reports each batch, then waits for leave, so that a test decides what is waiting.
    #[derive(Clone, Copy)]
    struct Length(usize);

    impl Job for Length {
        fn n_tokens(&self) -> usize {
            self.0 % ALONE
        }

        fn sharing(&self) -> Sharing {
            if self.0 >= ALONE { Sharing::Alone } else { Sharing::WithOthers }
        }
    }

    const ALONE: usize = 1_000_000;
    const BOMB: usize = 666;
    const REFUSED: usize = 404;

    struct Gated {
        started: mpsc::Sender<Vec<usize>>,
        leave: Mutex<mpsc::Receiver<()>>,
    }

    impl Engine for Gated {
        type Job = Length;
        type Output = usize;
        type Error = &'static str;

        fn run(&self, batch: Vec<Length>) -> Result<Vec<usize>, &'static str> {
            let lengths: Vec<usize> = batch.iter().map(|job| job.0).collect();
            self.started.send(lengths.clone()).unwrap();
            self.leave.lock().unwrap().recv().unwrap();
            assert!(!lengths.contains(&BOMB), "boom");
            if lengths.contains(&REFUSED) { Err("refused") } else { Ok(lengths) }
        }
    }

    struct Rig {
        batcher: Batcher<Gated>,
        started: mpsc::Receiver<Vec<usize>>,
        leave: mpsc::Sender<()>,
    }

    impl Rig {
        fn new(batch_tokens: usize, queue_rows: usize) -> Self {
            let (started_tx, started) = mpsc::channel();
            let (leave, leave_rx) = mpsc::channel();
            let engine = Gated { started: started_tx, leave: Mutex::new(leave_rx) };
            let limits = BatchLimits {
                batch_tokens: NonZeroUsize::new(batch_tokens).unwrap(),
                queue_rows: NonZeroUsize::new(queue_rows).unwrap(),
                replicas: NonZeroUsize::MIN,
            };
            let batcher = Batcher::start("test", engine, limits, BatchMetrics::of_member("test")).unwrap();
            Self { batcher, started, leave }
        }

        fn submit(&self, lengths: &[usize]) -> Vec<Ticket<usize, &'static str>> {
            self.submit_of(Flow::default(), lengths).unwrap()
        }

        fn submit_of(&self, flow: Flow, lengths: &[usize]) -> Result<Vec<Ticket<usize, &'static str>>, Overloaded> {
            self.batcher.submit(flow, lengths.iter().map(|&n| Length(n)).collect(), None)
        }

        // Occupies the worker, so that what is submitted next has to wait.
        fn occupy(&self) -> Ticket<usize, &'static str> {
            let ticket = self.submit(&[1]).pop().unwrap();
            assert_eq!(self.next_batch(), [1]);
            ticket
        }

        fn next_batch(&self) -> Vec<usize> {
            self.started.recv_timeout(Duration::from_secs(10)).unwrap()
        }

        fn finish_batch(&self) {
            self.leave.send(()).unwrap();
        }
    }

    fn get(ticket: Ticket<usize, &'static str>) -> Result<usize, RowError<&'static str>> {
        ticket.blocking_recv().unwrap().map(|done| done.output)
    }

    #[test]
    fn a_lone_row_runs_at_once() {
        let rig = Rig::new(1024, 8);
        let ticket = rig.submit(&[5]).pop().unwrap();
        assert_eq!(rig.next_batch(), [5]);
        rig.finish_batch();
        let done = ticket.blocking_recv().unwrap().unwrap();
        assert_eq!((done.output, done.batch_rows), (5, 1));
    }

    #[test]
    fn rows_that_wait_share_a_batch_within_the_budget() {
        let rig = Rig::new(40, 16);
        let _busy = rig.occupy();
        let tickets = rig.submit(&[10, 10, 10, 10, 10]);
        rig.finish_batch();
        assert_eq!(rig.next_batch(), [10, 10, 10, 10]);
        rig.finish_batch();
        assert_eq!(rig.next_batch(), [10]);
        rig.finish_batch();
        assert!(tickets.into_iter().all(|ticket| get(ticket) == Ok(10)));
    }

    #[test]
    fn a_batch_holds_rows_of_like_length() {
        let rig = Rig::new(10_000, 16);
        let _busy = rig.occupy();
        let _tickets = rig.submit(&[500, 16, 480, 18]);
        rig.finish_batch();
        assert_eq!(rig.next_batch(), [500, 480]);
        rig.finish_batch();
        assert_eq!(rig.next_batch(), [16, 18]);
        rig.finish_batch();
    }

    #[test]
    fn a_row_longer_than_the_budget_runs_alone() {
        let rig = Rig::new(10, 16);
        let _busy = rig.occupy();
        let _tickets = rig.submit(&[50, 2]);
        rig.finish_batch();
        assert_eq!(rig.next_batch(), [50]);
        rig.finish_batch();
        assert_eq!(rig.next_batch(), [2]);
        rig.finish_batch();
    }

    #[test]
    fn a_job_that_does_not_share_runs_alone() {
        let rig = Rig::new(10_000, 16);
        let _busy = rig.occupy();
        let _tickets = rig.submit(&[10, ALONE + 10, 10]);
        rig.finish_batch();
        assert_eq!(rig.next_batch(), [10, 10]);
        rig.finish_batch();
        assert_eq!(rig.next_batch(), [ALONE + 10]);
        rig.finish_batch();
    }

    #[test]
    fn a_small_request_does_not_wait_for_the_whole_of_a_large_one() {
        let rig = Rig::new(2000, 64);
        let _busy = rig.occupy();
        let _large = rig.submit(&[1000; 8]);
        let _small = rig.submit(&[10]);
        rig.finish_batch();
        assert_eq!(rig.next_batch(), [1000, 1000]);
        rig.finish_batch();
        assert_eq!(rig.next_batch(), [10]);
        rig.finish_batch();
        assert_eq!(rig.next_batch(), [1000, 1000]);
        rig.finish_batch();
    }

    #[test]
    fn a_full_queue_refuses_the_whole_request() {
        let rig = Rig::new(1024, 2);
        let _busy = rig.occupy();
        let _waiting = rig.submit(&[3]);
        let refused = rig.submit_of(Flow::default(), &[4, 5]);
        assert!(refused.is_err_and(|overloaded| overloaded.retry_after >= SHORTEST_RETRY));
        assert_eq!(rig.batcher.n_waiting(), 1);
        rig.finish_batch();
        assert_eq!(rig.next_batch(), [3]);
        rig.finish_batch();
    }

    fn flow(weight: u32, owner: u64) -> Flow {
        Flow { weight: std::num::NonZeroU32::new(weight).unwrap(), owner }
    }

    #[test]
    fn a_full_queue_sheds_the_low_before_it_refuses_the_high() {
        let rig = Rig::new(1024, 2);
        let _busy = rig.occupy();
        let low = rig.submit_of(flow(1, 0), &[30, 31]).unwrap();
        assert!(rig.submit_of(flow(1, 0), &[32]).is_err(), "its equals stay");
        let high = rig.submit_of(flow(16, 0), &[5]).unwrap();
        for ticket in low {
            assert!(matches!(get(ticket), Err(RowError::Shed(after)) if after >= SHORTEST_RETRY));
        }
        let normal = rig.submit_of(flow(4, 0), &[6]).unwrap();
        assert!(rig.submit_of(flow(4, 0), &[7]).is_err(), "nothing that is lower waits any more");
        rig.finish_batch();
        assert_eq!(rig.next_batch(), [5]);
        rig.finish_batch();
        assert_eq!(rig.next_batch(), [6]);
        rig.finish_batch();
        assert!(high.into_iter().chain(normal).all(|ticket| get(ticket).is_ok()));
    }

    #[test]
    fn a_tenant_that_fills_the_queue_keeps_no_other_out() {
        let rig = Rig::new(1, 4);
        let _busy = rig.occupy();
        let many: Vec<_> = (10..14).map(|n| rig.submit_of(flow(4, 1), &[n]).unwrap()).collect();
        assert!(rig.submit_of(flow(4, 1), &[14]).is_err());
        let other = rig.submit_of(flow(4, 2), &[20]).unwrap();
        rig.finish_batch();
        // Both are new to the class, and of equals the older comes first; then they take turns.
        let order: Vec<Vec<usize>> = (0..4)
            .map(|_| {
                let batch = rig.next_batch();
                rig.finish_batch();
                batch
            })
            .collect();
        assert_eq!(order, [[10], [20], [11], [12]]);
        assert!(other.into_iter().all(|ticket| get(ticket) == Ok(20)));
        let shed = many.into_iter().flatten().map(get).filter(Result::is_err).count();
        assert_eq!(shed, 1, "its newest made room");
    }

    #[test]
    fn a_request_larger_than_the_queue_is_accepted_when_nothing_waits() {
        let rig = Rig::new(1024, 2);
        let tickets = rig.submit(&[7, 7, 7]);
        assert_eq!(rig.next_batch(), [7, 7, 7]);
        rig.finish_batch();
        assert!(tickets.into_iter().all(|ticket| get(ticket) == Ok(7)));
    }

    #[test]
    fn rows_of_clients_that_left_are_never_run() {
        let rig = Rig::new(1024, 2);
        let _busy = rig.occupy();
        drop(rig.submit(&[3, 4]));
        // Their places are free again, too.
        let stays = rig.submit(&[5, 6]);
        rig.finish_batch();
        assert_eq!(rig.next_batch(), [5, 6]);
        rig.finish_batch();
        assert!(stays.into_iter().all(|ticket| get(ticket).is_ok()));
    }

    #[test]
    fn rows_past_their_deadline_are_given_up_before_any_work() {
        let rig = Rig::new(1024, 8);
        let _busy = rig.occupy();
        let late = rig
            .batcher
            .submit(Flow::default(), vec![Length(3)], Some(Instant::now() + Duration::from_millis(30)))
            .unwrap()
            .pop()
            .unwrap();
        let _other = rig.submit(&[4]);
        std::thread::sleep(Duration::from_millis(50));
        rig.finish_batch();
        assert_eq!(rig.next_batch(), [4]);
        rig.finish_batch();
        assert_eq!(get(late), Err(RowError::Expired));
    }

    #[test]
    fn what_cannot_be_done_in_time_is_refused_at_once_and_batches_end_before_their_first_deadline() {
        let rig = Rig::new(10_000, 64);
        // A pace of 10 ms a token, from one batch that took 100 ms.
        let slow = rig.submit(&[10]);
        rig.next_batch();
        std::thread::sleep(Duration::from_millis(100));
        rig.finish_batch();
        slow.into_iter().for_each(|ticket| drop(get(ticket)));
        let _busy = rig.occupy();
        let within = |ms: u64| Some(Instant::now() + Duration::from_millis(ms));
        let submit = |n_tokens: usize, deadline| rig.batcher.submit(Flow::default(), vec![Length(n_tokens)], deadline);
        let _first = submit(20, within(60_000)).unwrap();
        let refused = submit(21, within(200)).err();
        assert!(
            refused.is_some_and(|overloaded| overloaded.retry_after >= Duration::from_millis(150)),
            "20 tokens wait: 200 ms"
        );
        let kept = [submit(20, within(60_000)).unwrap(), submit(20, None).unwrap()];
        rig.finish_batch();
        assert_eq!(rig.next_batch(), [20, 20, 20], "there is time for all");
        rig.finish_batch();
        assert!(kept.into_iter().flatten().all(|ticket| get(ticket) == Ok(20)));
    }

    #[test]
    fn a_pace_that_was_too_slow_does_not_keep_everybody_out() {
        let rig = Rig::new(10_000, 64);
        let slow = rig.submit(&[1]);
        rig.next_batch();
        std::thread::sleep(Duration::from_millis(200));
        rig.finish_batch();
        slow.into_iter().for_each(|ticket| drop(get(ticket)));
        // 20 tokens would take 4 s.
        let deadline = Some(Instant::now() + Duration::from_secs(2));
        let ticket = rig.batcher.submit(Flow::default(), vec![Length(20)], deadline).unwrap().pop().unwrap();
        assert_eq!(rig.next_batch(), [20]);
        rig.finish_batch();
        assert_eq!(get(ticket), Ok(20));
    }

    #[test]
    fn a_pace_counts_large_batches_for_what_they_are() {
        let shared = |n: f64| Tokens { shared: n, alone: 0.0 };
        let mut pace = Pace::of_workers(NonZeroUsize::new(2).unwrap());
        assert_eq!(
            (pace.spent_on(shared(1000.0)), pace.tokens_in(Duration::from_secs(1))),
            (Duration::ZERO, usize::MAX)
        );
        pace.record(shared(1000.0), Duration::from_secs(1));
        pace.record(shared(10.0), Duration::from_millis(100));
        pace.record(Tokens { shared: 0.0, alone: 150_000.0 }, Duration::from_millis(150));
        assert_eq!(pace.alone(shared(910.0)).as_millis(), 1000);
        assert_eq!(pace.spent_on(shared(910.0)).as_millis(), 500);
        assert_eq!(
            pace.alone(Tokens { shared: 0.0, alone: 150_000.0 }).as_millis(),
            150,
            "elements have a pace of their own"
        );
        assert_eq!(pace.tokens_in(Duration::from_millis(1500)), 910);
        assert_eq!(pace.time_for(shared(1.0)), SHORTEST_RETRY);
        assert_eq!(pace.time_for(shared(1e18)), LONGEST_RETRY);
    }

    #[test]
    fn a_panic_loses_only_the_batch_in_flight() {
        let rig = Rig::new(1024, 8);
        let lost = rig.submit(&[BOMB]).pop().unwrap();
        rig.next_batch();
        let next = rig.submit(&[2]).pop().unwrap();
        rig.finish_batch();
        assert_eq!(get(lost), Err(RowError::Panicked));
        assert_eq!(rig.next_batch(), [2]);
        rig.finish_batch();
        assert_eq!(get(next), Ok(2));
    }

    #[test]
    fn an_engine_error_reaches_every_row_of_its_batch() {
        let rig = Rig::new(10_000, 8);
        let _busy = rig.occupy();
        let tickets = rig.submit(&[REFUSED, REFUSED]);
        rig.finish_batch();
        rig.next_batch();
        rig.finish_batch();
        assert!(tickets.into_iter().all(|ticket| get(ticket) == Err(RowError::Engine("refused"))));
    }

    #[test]
    fn a_dropped_batcher_finishes_what_waits_and_releases_the_engine() {
        let rig = Rig::new(1024, 8);
        let first = rig.occupy();
        let waiting = rig.submit(&[9]).pop().unwrap();
        let Rig { batcher, started, leave } = rig;
        drop(batcher);
        leave.send(()).unwrap();
        leave.send(()).unwrap();
        assert_eq!((get(first), get(waiting)), (Ok(1), Ok(9)));
        // The worker drops the engine, and with it the sending end, when it ends.
        assert_eq!(started.iter().collect::<Vec<_>>(), [vec![9]]);
    }
}
