//! Load: requests that arrive when they would in production, whatever became of those before them.
//!
//! What is modelled is `highroad serve` without its transport: one thread that tokenises as requests arrive, one queue, and a
//! thread a replica that takes the next batch as it becomes idle, with the server's own choice of batches
//! ([`TurnQueue`]). HTTP, JSON and the network are not.

use std::num::NonZeroUsize;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use highroad_eval::{
    Arrival, AtRate, BlockAtRate, BlockSaturated, Gates, Load, Loaded, RequestDraw, Traffic, capacity, pair_orders,
    poisson_arrivals,
};
use highroad_task::{Input, Predictor, Prepared, RunCost, TaskError, TurnQueue, Waiting};

use crate::{AssessError, Mix, Truncated};

/// What answers under load: a package in this process, or a stand-in whose time a test decides.
pub trait Served: Sync {
    /// One row, ready to run.
    type Row: Waiting + Send;
    /// Most tokens of a row; of an image what every image counts as.
    fn max_tokens(&self) -> usize;
    /// Makes a row of an input, and says whether it was too long and lost its end.
    fn prepare(&self, input: &Input) -> Result<(Self::Row, Truncated), TaskError>;
    /// Runs one batch.
    fn answer(&self, rows: Vec<Self::Row>) -> Result<(), TaskError>;
}

impl Served for Predictor {
    type Row = Prepared;

    fn max_tokens(&self) -> usize {
        Self::max_tokens(self)
    }

    fn prepare(&self, input: &Input) -> Result<(Prepared, Truncated), TaskError> {
        let row = Self::prepare(self, input)?;
        let truncated = Truncated(row.truncated());
        Ok((row, truncated))
    }

    fn answer(&self, rows: Vec<Prepared>) -> Result<(), TaskError> {
        Self::answer(self, &rows).map(drop)
    }
}

/// What tells the time, and the CPU time that the process has used.
pub trait Clock: Sync {
    /// Since a moment of the past that stays the same.
    fn now(&self) -> Duration;
    /// CPU time of all threads of the process.
    fn cpu(&self) -> Duration;
    /// Returns at `at` or later; at once if that has passed.
    fn sleep_until(&self, at: Duration);
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn cpu(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
    }

    fn sleep_until(&self, at: Duration) {
        std::thread::sleep(at.saturating_sub(self.now()));
    }
}

/// How the process is made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replicas {
    /// Threads that each run one batch at a time.
    pub replicas: NonZeroUsize,
    /// Largest number of tokens in a batch, padding included.
    pub batch_tokens: NonZeroUsize,
}

/// A request that waits longer than this for its turn ends the load: `highroad serve` gives it up then, too.
const MOST_WAIT: Duration = Duration::from_secs(30);

/// Batches that a saturated queue holds for each replica, so that something always waits and lengths find their like.
const SATURATED_BATCHES: usize = 2;

/// Loads `candidate`, and `baseline` in turns with it: first with something always waiting, for the most they answer, then
/// at the declared rate, in blocks that each start with an empty queue. Both sides of a pair of blocks are asked the same at the same
/// times, in an order drawn by the seed of the gate.
///
/// A side that cannot carry the rate is not asked at it. `progress` is called with the steps done and the steps in all. Errors if
/// a request fails.
pub fn load<S: Served>(
    gates: &Gates,
    traffic: &Traffic,
    replicas: Replicas,
    [candidate, baseline]: [Option<(&S, &Mix)>; 2],
    clock: &impl Clock,
    mut progress: impl FnMut(usize, usize),
) -> Result<[Option<Load>; 2], AssessError> {
    let sides = [candidate, baseline].map(|side| side.map(|(served, mix)| Bench { served, mix, replicas, clock }));
    let n_steps = (1 + traffic.blocks) * sides.iter().flatten().count();
    let mut n_done = 0;
    let mut step = || {
        n_done += 1;
        progress(n_done, n_steps);
    };
    let mut loads = [None, None];
    for (bench, load) in sides.iter().zip(&mut loads) {
        let Some(bench) = bench else { continue };
        let (saturated, cpus_used) = bench.saturated(traffic, gates.seed)?;
        let beyond =
            capacity(gates, &saturated, gates.alpha).is_some_and(|most| most.interval[1] < traffic.requests_per_s);
        let at_rate = if beyond { AtRate::NotTried } else { AtRate::Steady(Vec::new()) };
        *load = Some(Load { saturated, cpus_used, at_rate });
        step();
    }
    for (pair, order) in pair_orders(traffic.blocks, gates.seed).into_iter().enumerate() {
        for side in order.map(|side| if side == Loaded::Candidate { 0 } else { 1 }) {
            let (Some(bench), Some(load)) = (&sides[side], &mut loads[side]) else { continue };
            bench.add_block(load, traffic, gates.seed.wrapping_add(pair as u64))?;
            step();
        }
    }
    Ok(loads)
}

/// Keeps something waiting for the `saturated_s` of `traffic`, and gives how much was answered after its warm-up.
pub fn saturate<S: Served>(
    traffic: &Traffic,
    replicas: Replicas,
    seed: u64,
    (served, mix): (&S, &Mix),
    clock: &impl Clock,
) -> Result<Vec<BlockSaturated>, AssessError> {
    Ok(Bench { served, mix, replicas, clock }.saturated(traffic, seed)?.0)
}

/// One package on the bench.
struct Bench<'a, S, C> {
    served: &'a S,
    mix: &'a Mix,
    replicas: Replicas,
    clock: &'a C,
}

impl<S: Served, C: Clock> Bench<'_, S, C> {
    /// One more block at the declared rate, unless the load has come to its end.
    fn add_block(&self, load: &mut Load, traffic: &Traffic, seed: u64) -> Result<(), AssessError> {
        let AtRate::Steady(blocks) = &mut load.at_rate else { return Ok(()) };
        let arrivals = poisson_arrivals(traffic.requests_per_s, traffic.block_s(), &self.mix.weights, seed);
        match self.at_rate(&arrivals, Duration::from_secs_f64(traffic.warm_up_s))? {
            Ok(block) => blocks.push(block),
            Err(RanAway { waited }) => load.at_rate = AtRate::RanAway { waited_s: waited.as_secs_f64() },
        }
        Ok(())
    }

    /// Open loop: each request arrives at its time.
    fn at_rate(&self, arrivals: &[Arrival], warm_up: Duration) -> Result<Result<BlockAtRate, RanAway>, AssessError> {
        let (start, cpu) = (self.clock.now(), self.clock.cpu());
        let line = Line::new(Some(MOST_WAIT));
        self.serve(&line, || {
            for arrival in arrivals {
                let scheduled = start + arrival.at;
                self.clock.sleep_until(scheduled);
                if !line.push(scheduled, self.rows(arrival.request)?) {
                    return Ok(());
                }
            }
            Ok(())
        })?;
        let cpu_s = self.clock.cpu().saturating_sub(cpu).as_secs_f64();
        let State { end, finished, batches, .. } = line.into_state();
        if let End::RanAway { waited } = end {
            return Ok(Err(RanAway { waited }));
        }
        let counts = finished.iter().filter(|done| done.scheduled >= start + warm_up);
        Ok(Ok(BlockAtRate {
            latencies_ms: counts.map(|done| (done.at - done.scheduled).as_secs_f64() * 1e3).collect(),
            n_requests: finished.len(),
            n_rows: batches.iter().map(|batch| batch.n_rows).sum(),
            n_batches: batches.len(),
            cpu_s,
        }))
    }

    /// Something always waits, for `saturated_s`; with the CPUs that were busy, the warm-up included.
    fn saturated(&self, traffic: &Traffic, seed: u64) -> Result<(Vec<BlockSaturated>, f64), AssessError> {
        let (start, cpu) = (self.clock.now(), self.clock.cpu());
        let deadline = start + Duration::from_secs_f64(traffic.warm_up_s + traffic.saturated_s);
        let room = SATURATED_BATCHES * self.replicas.replicas.get() * self.replicas.batch_tokens.get();
        let (line, mut draw) = (Line::new(None), RequestDraw::new(&self.mix.weights, seed));
        self.serve(&line, || {
            while self.clock.now() < deadline {
                let rows = self.rows(draw.next())?;
                if !line.wait_for_room(room, || deadline.saturating_sub(self.clock.now())) {
                    break;
                }
                line.push(self.clock.now(), rows);
            }
            line.clear();
            Ok(())
        })?;
        let warm_up = start + Duration::from_secs_f64(traffic.warm_up_s);
        let took = self.clock.now().saturating_sub(start);
        let cpus_used = self.clock.cpu().saturating_sub(cpu).as_secs_f64() / took.as_secs_f64().max(f64::MIN_POSITIVE);
        Ok((consecutive(&line.into_state().batches, warm_up, traffic.blocks), cpus_used))
    }

    /// Runs the replicas while `feed` feeds their line; returns when it is empty or has ended.
    fn serve(&self, line: &Line<S::Row>, feed: impl FnOnce() -> Result<(), TaskError>) -> Result<(), AssessError> {
        std::thread::scope(|scope| {
            for _ in 0..self.replicas.replicas.get() {
                scope.spawn(|| line.work(self.served, self.replicas.batch_tokens, self.clock));
            }
            if let Err(error) = feed() {
                line.end(End::Failed(error));
            }
            line.close();
        });
        match line.lock().failure() {
            Some(source) => Err(AssessError::Load { source }),
            None => Ok(()),
        }
    }

    fn rows(&self, request: usize) -> Result<Vec<S::Row>, TaskError> {
        self.mix.requests[request].iter().map(|input| Ok(self.served.prepare(input)?.0)).collect()
    }
}

/// A request waited too long.
struct RanAway {
    waited: Duration,
}

/// The queue of a process, and what has become of its requests.
struct Line<R> {
    state: Mutex<State<R>>,
    work: Condvar,
    room: Condvar,
    most_wait: Option<Duration>,
}

struct State<R> {
    queue: TurnQueue<Row<R>>,
    cost: RunCost,
    /// In order of arrival.
    requests: Vec<Request>,
    finished: Vec<Finished>,
    batches: Vec<Batch>,
    end: End,
}

/// Whether and why no more rows are run.
enum End {
    Open,
    /// No more requests come; the rest is answered.
    Closed,
    RanAway {
        waited: Duration,
    },
    Failed(TaskError),
}

struct Row<R> {
    row: R,
    request: usize,
    scheduled: Duration,
}

impl<R: Waiting> Waiting for Row<R> {
    fn n_tokens(&self) -> usize {
        self.row.n_tokens()
    }

    fn may_share(&self) -> bool {
        self.row.may_share()
    }
}

struct Request {
    scheduled: Duration,
    n_rows_left: usize,
}

struct Finished {
    scheduled: Duration,
    at: Duration,
}

/// A batch that has run.
#[derive(Clone, Copy, Debug)]
struct Batch {
    end: Duration,
    n_rows: usize,
    /// Requests whose last row it held.
    n_requests: usize,
}

impl<R: Waiting> Line<R> {
    fn new(most_wait: Option<Duration>) -> Self {
        let state = State {
            queue: TurnQueue::default(),
            cost: RunCost::default(),
            requests: Vec::new(),
            finished: Vec::new(),
            batches: Vec::new(),
            end: End::Open,
        };
        Self { state: Mutex::new(state), work: Condvar::new(), room: Condvar::new(), most_wait }
    }

    // The lock is never held while a model runs, so a poisoned line is still whole.
    fn lock(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn into_state(self) -> State<R> {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a request; false if no more are taken.
    fn push(&self, scheduled: Duration, rows: Vec<R>) -> bool {
        let mut state = self.lock();
        if !matches!(state.end, End::Open) {
            return false;
        }
        let request = state.requests.len();
        state.requests.push(Request { scheduled, n_rows_left: rows.len() });
        state.queue.push_request(rows.into_iter().map(|row| Row { row, request, scheduled }));
        drop(state);
        self.work.notify_all();
        true
    }

    /// Waits until fewer than `n_tokens` wait, or no `time_left` is left; false in that case and if the load has ended.
    fn wait_for_room(&self, n_tokens: usize, time_left: impl Fn() -> Duration) -> bool {
        let mut state = self.lock();
        while matches!(state.end, End::Open) {
            let left = time_left();
            if left.is_zero() {
                return false;
            }
            if state.queue.n_tokens() < n_tokens {
                return true;
            }
            state = self.room.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }

    /// Forgets what waits.
    fn clear(&self) {
        self.lock().queue = TurnQueue::default();
    }

    fn close(&self) {
        self.end(End::Closed);
    }

    /// Ends the load, unless it has ended for another reason.
    fn end(&self, end: End) {
        let mut state = self.lock();
        if matches!(state.end, End::Open | End::Closed) {
            state.end = end;
        }
        drop(state);
        self.work.notify_all();
        self.room.notify_all();
    }

    fn work<S: Served<Row = R>>(&self, served: &S, batch_tokens: NonZeroUsize, clock: &impl Clock) {
        while let Some(batch) = self.next_batch(batch_tokens.get(), clock) {
            self.room.notify_all();
            let n_padded = batch.len() * batch.iter().map(Waiting::n_tokens).max().unwrap_or(0);
            let (rows, requests): (Vec<R>, Vec<usize>) = batch.into_iter().map(|row| (row.row, row.request)).unzip();
            let begun = clock.now();
            match served.answer(rows) {
                Ok(()) => {
                    let now = clock.now();
                    let mut state = self.lock();
                    state.cost.record(n_padded, now.saturating_sub(begun).as_secs_f64());
                    state.finish(&requests, now);
                }
                Err(error) => self.end(End::Failed(error)),
            }
        }
    }

    fn next_batch(&self, batch_tokens: usize, clock: &impl Clock) -> Option<Vec<Row<R>>> {
        let mut state = self.lock();
        loop {
            if matches!(state.end, End::RanAway { .. } | End::Failed(_)) {
                return None;
            }
            if let Some(waited) = self.waited_too_long(&state, clock) {
                drop(state);
                self.end(End::RanAway { waited });
                return None;
            }
            let run_tokens = state.cost.run_tokens();
            if let Some(batch) = state.queue.take_batch(batch_tokens, run_tokens) {
                return Some(batch);
            }
            if matches!(state.end, End::Closed) {
                return None;
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn waited_too_long(&self, state: &State<R>, clock: &impl Clock) -> Option<Duration> {
        let oldest = state.queue.iter().map(|row| row.scheduled).min()?;
        let waited = clock.now().saturating_sub(oldest);
        self.most_wait.is_some_and(|most| waited > most).then_some(waited)
    }
}

impl<R> State<R> {
    fn finish(&mut self, requests: &[usize], at: Duration) {
        let n_before = self.finished.len();
        for &request in requests {
            let Request { scheduled, n_rows_left } = &mut self.requests[request];
            *n_rows_left -= 1;
            if *n_rows_left == 0 {
                self.finished.push(Finished { scheduled: *scheduled, at });
            }
        }
        let n_requests = self.finished.len() - n_before;
        self.batches.push(Batch { end: at, n_rows: requests.len(), n_requests });
    }

    fn failure(&mut self) -> Option<TaskError> {
        match std::mem::replace(&mut self.end, End::Closed) {
            End::Failed(error) => Some(error),
            end => {
                self.end = end;
                None
            }
        }
    }
}

/// Up to `n_blocks` consecutive stretches with as many batches each, from the end of the last batch of the warm-up, in order of their ends.
fn consecutive(batches: &[Batch], warm_up: Duration, n_blocks: usize) -> Vec<BlockSaturated> {
    let n_warm = batches.partition_point(|batch| batch.end < warm_up).max(1);
    let counted = batches.get(n_warm..).unwrap_or_default();
    let Some(mut from) = batches.get(n_warm - 1).map(|batch| batch.end) else { return Vec::new() };
    let per_block = (counted.len() / n_blocks).max(1);
    let blocks = counted.chunks_exact(per_block).take(n_blocks).map(|block| {
        let end = block[per_block - 1].end;
        let seconds = end.saturating_sub(from).as_secs_f64();
        from = end;
        BlockSaturated { n_requests: block.iter().map(|batch| batch.n_requests).sum(), seconds }
    });
    // Two replicas may end their batches at one reading of the clock.
    blocks.filter(|block| block.seconds > 0.0).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A clock that a test moves: sleeping moves it, as if nothing happened in between.
    #[derive(Default)]
    struct TestClock(AtomicU64);

    impl TestClock {
        fn advance(&self, ms: u64) {
            self.0.fetch_add(ms, Ordering::SeqCst);
        }
    }

    impl Clock for TestClock {
        fn now(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::SeqCst))
        }

        fn cpu(&self) -> Duration {
            self.now() / 2
        }

        fn sleep_until(&self, at: Duration) {
            self.0.fetch_max(u64::try_from(at.as_millis()).unwrap(), Ordering::SeqCst);
        }
    }

    struct Words(usize);

    impl Waiting for Words {
        fn n_tokens(&self) -> usize {
            self.0
        }
    }

    /// Takes `batch_ms` of the test's clock for a batch; before its first one it stalls until the clock reaches `stalls_until`, and
    /// is then the slower by as much again. The word "bad" fails.
    struct Model<'a> {
        clock: &'a TestClock,
        batch_ms: u64,
        stalls_until: Mutex<Option<Duration>>,
    }

    impl<'a> Model<'a> {
        fn of(clock: &'a TestClock, batch_ms: u64) -> Self {
            Self { clock, batch_ms, stalls_until: Mutex::new(None) }
        }
    }

    impl Served for Model<'_> {
        type Row = Words;

        fn max_tokens(&self) -> usize {
            10
        }

        fn prepare(&self, input: &Input) -> Result<(Words, Truncated), TaskError> {
            match input {
                Input::Text(text) if text == "bad" => Err(TaskError::NoTokens),
                Input::Text(text) => Ok((Words(text.split(' ').count()), Truncated(false))),
                _ => panic!("only texts are asked here"),
            }
        }

        fn answer(&self, _: Vec<Words>) -> Result<(), TaskError> {
            if let Some(until) = self.stalls_until.lock().unwrap().take() {
                while self.clock.now() < until {
                    std::thread::yield_now();
                }
                self.clock.advance(u64::try_from(until.as_millis()).unwrap());
            }
            self.clock.advance(self.batch_ms);
            Ok(())
        }
    }

    fn mix(requests: &[&[&str]]) -> Mix {
        let rows = |rows: &&[&str]| rows.iter().map(|text| Input::Text((*text).to_owned())).collect();
        Mix { requests: requests.iter().map(rows).collect(), weights: vec![1.0; requests.len()] }
    }

    fn replicas(batch_tokens: usize) -> Replicas {
        Replicas { replicas: NonZeroUsize::MIN, batch_tokens: NonZeroUsize::new(batch_tokens).unwrap() }
    }

    fn at(ms: u64) -> Arrival {
        Arrival { at: Duration::from_millis(ms), request: 0 }
    }

    fn block(
        model: &Model<'_>,
        mix: &Mix,
        batch_tokens: usize,
        arrivals: &[Arrival],
    ) -> Result<BlockAtRate, Option<f64>> {
        let bench = Bench { served: model, mix, replicas: replicas(batch_tokens), clock: model.clock };
        let outcome = bench.at_rate(arrivals, Duration::from_millis(100)).map_err(|_| None)?;
        outcome.map_err(|ran_away| Some(ran_away.waited.as_secs_f64()))
    }

    #[test]
    fn a_stall_counts_for_every_request_that_should_have_been_answered_meanwhile() {
        let clock = TestClock::default();
        let model = Model { stalls_until: Mutex::new(Some(Duration::from_millis(400))), ..Model::of(&clock, 0) };
        // The model is stuck on the first request while the others arrive, and comes back at 800 ms.
        let arrivals = [at(0), at(100), at(200), at(300), at(400)];
        let mut block = block(&model, &mix(&[&["word"]]), 100, &arrivals).unwrap();
        block.latencies_ms.sort_by(f64::total_cmp);
        // A load that waits for an answer before it asks again would have seen one slow request.
        assert_eq!(block.latencies_ms, [400.0, 500.0, 600.0, 700.0]);
        assert_eq!((block.n_requests, block.n_rows, block.cpu_s), (5, 5, 0.4));
    }

    #[test]
    fn a_request_is_answered_when_its_last_row_is() {
        let clock = TestClock::default();
        let model = Model::of(&clock, 50);
        let block = block(&model, &mix(&[&["a b", "c d", "e f"]]), 2, &[at(100)]).unwrap();
        assert_eq!((block.latencies_ms, block.n_requests, block.n_rows, block.n_batches), (vec![150.0], 1, 3, 3));
    }

    #[test]
    fn a_queue_without_end_stops_the_load() {
        let clock = TestClock::default();
        let model = Model::of(&clock, 31_500);
        let waited = block(&model, &mix(&[&["word"]]), 1, &[at(0), at(500), at(900)]).unwrap_err().unwrap();
        // The first batch begins before or after the others arrive, and lasts longer than anyone waits.
        assert!((31.0..32.0).contains(&waited), "{waited}");
    }

    #[test]
    fn a_request_that_fails_is_an_error() {
        let clock = TestClock::default();
        assert_eq!(block(&Model::of(&clock, 1), &mix(&[&["bad"]]), 1, &[at(0)]).unwrap_err(), None);
    }

    fn gates(rate: f64) -> Gates {
        let rules = format!(
            "[[rule]]\nmetric = 'accuracy'\nfloor = 0.5\n[traffic]\nrequests_per_s = {rate}\nduration_s = 12\nblocks = 6"
        );
        Gates::parse(&rules).unwrap()
    }

    #[test]
    fn both_sides_of_a_pair_are_asked_the_same_and_each_is_first_filled_to_the_brim() {
        let clock = TestClock::default();
        let [fast, slow] = [Model::of(&clock, 1), Model::of(&clock, 2)];
        let (gates, mix) = (gates(20.0), mix(&[&["a b"], &["c d e"]]));
        let traffic = gates.traffic.as_ref().unwrap();
        let mut steps = Vec::new();
        let sides = [Some((&fast, &mix)), Some((&slow, &mix))];
        let loads = load(&gates, traffic, replicas(3), sides, &clock, |done, all| steps.push((done, all))).unwrap();
        assert_eq!((steps.len(), *steps.last().unwrap()), (14, (14, 14)));
        let blocks = loads.map(|load| match load.unwrap() {
            Load { at_rate: AtRate::Steady(blocks), saturated, cpus_used } => {
                // The test's clock has half of its time as CPU time.
                assert!((cpus_used - 0.5).abs() < 1e-6, "{cpus_used}");
                assert_eq!(saturated.len(), 6);
                blocks
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(blocks[0].len(), 6);
        for (fast, slow) in blocks[0].iter().zip(&blocks[1]) {
            assert_eq!((fast.n_requests, fast.n_rows), (slow.n_requests, slow.n_rows));
            // The second of warm-up is left out.
            assert!(fast.latencies_ms.len() < fast.n_requests && !fast.latencies_ms.is_empty());
        }
    }

    #[test]
    fn a_rate_beyond_the_most_that_is_answered_is_not_tried() {
        let clock = TestClock::default();
        let (gates, mix) = (gates(20.0), mix(&[&["a b"]]));
        let model = Model::of(&clock, 100);
        let traffic = gates.traffic.as_ref().unwrap();
        let [load, none] = load(&gates, traffic, replicas(2), [Some((&model, &mix)), None], &clock, |_, _| ()).unwrap();
        let load = load.unwrap();
        assert_eq!((&load.at_rate, none), (&AtRate::NotTried, None));
        let rate = |block: &BlockSaturated| block.n_requests as f64 / block.seconds;
        assert!(load.saturated.iter().all(|block| (rate(block) - 10.0).abs() < 1e-9), "{:?}", load.saturated);
    }

    #[test]
    fn stretches_run_from_the_end_of_one_batch_to_the_end_of_another() {
        let batches = |n: u64| -> Vec<Batch> {
            (1..=n).map(|idx| Batch { end: Duration::from_secs(idx), n_rows: 4, n_requests: 2 }).collect()
        };
        let blocks = consecutive(&batches(15), Duration::from_secs(3), 6);
        // Of the 13 batches after the second, which is the last of the warm-up, the last one is left over.
        assert_eq!(blocks, vec![BlockSaturated { n_requests: 4, seconds: 2.0 }; 6]);
        assert_eq!(consecutive(&batches(4), Duration::ZERO, 6).len(), 3);
        assert_eq!(consecutive(&[], Duration::ZERO, 6), []);
    }
}
