//! The second answer to a request: asked of the other version after the client has its own, on a thread of its own.
//!
//! Nothing of it is on the request's way: a request only puts a copy into a bounded queue, and drops it where that is full.
//! The thread has the lowest priority and runs programs on itself alone, past the batcher that clients wait for.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use highroad_service::trace::Current;
use highroad_task::raw::{Tensor, arrays_of};
use highroad_task::{Answer, Engine, Input, OutputTensor, Prepared, TaskError, Truncate};
use metrics::{counter, gauge, histogram};

use crate::revision::{Revision, size_bytes};
use crate::rollout::pairs::{Writer, digest, in_words};
use crate::rollout::{Compared, Pair, RolloutSettings, Side, Timed, Trial, compare, now};
use crate::telemetry::{SHADOW_DROPPED, SHADOW_QUEUE, SHADOW_SECONDS, SHADOW_TOKENS};
use crate::traced;

/// Requests whose versions are timed: the first ones, and then every so many.
const N_TIMED_FIRST: u64 = 100;
const TIMED_EVERY: u64 = 10;
/// Bytes of inputs that may wait.
const MAX_QUEUE_BYTES: usize = 64 << 20;

/// The queue of second answers of one trial. Its thread ends when this is dropped.
pub(crate) struct Shadow {
    to_worker: SyncSender<Job>,
    queued: Arc<Queued>,
    member: String,
}

#[derive(Default)]
struct Queued {
    rows: AtomicUsize,
    bytes: AtomicUsize,
    n_dropped: AtomicU64,
}

/// A request whose client has its answer.
pub(crate) struct Job {
    pub(crate) trial: Arc<Trial>,
    /// Who answered.
    pub(crate) first: Arc<Revision>,
    /// Who is asked now.
    pub(crate) other: Arc<Revision>,
    /// Who answered the client.
    pub(crate) answered: Side,
    pub(crate) request_id: String,
    pub(crate) exchange: Exchange,
    pub(crate) live: Duration,
    /// What the answer was a part of.
    pub(crate) cause: Current,
}

/// What was asked, and what the client was answered.
pub(crate) enum Exchange {
    /// Through the task.
    Rows { inputs: Vec<Input>, cut: Truncate, answers: Vec<Answer> },
    /// Of the program of `answered_by` itself.
    Program { inputs: Vec<Tensor>, outputs: Vec<Tensor>, answered_by: Arc<Revision> },
}

impl Exchange {
    fn n_bytes(&self) -> usize {
        match self {
            Self::Rows { inputs, .. } => inputs.iter().map(size_bytes).sum(),
            Self::Program { inputs, outputs, .. } => {
                inputs.iter().chain(outputs).map(|tensor| tensor.numel() * tensor.dtype().size_bytes()).sum()
            }
        }
    }

    fn answers(&self) -> Cow<'_, [Answer]> {
        match self {
            Self::Rows { answers, .. } => Cow::Borrowed(answers),
            Self::Program { outputs, answered_by, .. } => Cow::Owned(vec![named(answered_by, outputs)]),
        }
    }

    fn inputs(&self) -> Cow<'_, [Input]> {
        match self {
            Self::Rows { inputs, .. } => Cow::Borrowed(inputs),
            Self::Program { inputs, answered_by, .. } => {
                let specs = answered_by.predictor().program().inputs();
                Cow::Owned(vec![Input::Tensors(arrays_of(specs, inputs))])
            }
        }
    }

    /// What `other` answers to the same, and to how many tokens.
    fn ask(&self, other: &Revision) -> Result<(Vec<Answer>, usize), TaskError> {
        match self {
            Self::Rows { inputs, cut, .. } => ask(other, inputs, *cut),
            Self::Program { inputs, .. } => {
                other.predictor().program().check(inputs)?;
                let outputs = other.model().run_aside(inputs)?;
                Ok((vec![named(other, &outputs)], inputs.iter().map(Tensor::numel).max().unwrap_or(0)))
            }
        }
    }
}

/// Outputs with the names that the program of `revision` has for them.
fn named(revision: &Revision, outputs: &[Tensor]) -> Answer {
    let specs = revision.predictor().program().outputs();
    Answer::Tensors(specs.iter().zip(outputs).map(|(spec, tensor)| OutputTensor::of(&spec.name, tensor)).collect())
}

impl Shadow {
    pub(super) fn start(member: &str, settings: Arc<RolloutSettings>, dir: PathBuf) -> std::io::Result<Self> {
        let (to_worker, jobs) = sync_channel(settings.config().queue.get());
        let queued = Arc::<Queued>::default();
        counter!(SHADOW_DROPPED, "member" => member.to_owned()).increment(0);
        let mut worker = Worker { queued: Arc::clone(&queued), writer: Writer::new(dir), settings, n_seen: 0 };
        std::thread::Builder::new().name(format!("{member}-shadow")).spawn(move || {
            // Nicer than anything that clients wait for. Where the system refuses, it only costs some of their time.
            let _ = rustix::process::nice(19);
            worker.work(&jobs);
        })?;
        Ok(Self { to_worker, queued, member: member.to_owned() })
    }

    /// Asks for a second answer, or counts that there is no room for the question.
    pub(crate) fn put(&self, job: Job) {
        let n_bytes = job.exchange.n_bytes();
        let room = self.queued.bytes.load(Ordering::Relaxed).saturating_add(n_bytes) <= MAX_QUEUE_BYTES;
        // Before the send: the worker may take it out at once.
        self.queued.rows.fetch_add(1, Ordering::Relaxed);
        self.queued.bytes.fetch_add(n_bytes, Ordering::Relaxed);
        if !room || self.to_worker.try_send(job).is_err() {
            self.queued.rows.fetch_sub(1, Ordering::Relaxed);
            self.queued.bytes.fetch_sub(n_bytes, Ordering::Relaxed);
            self.queued.n_dropped.fetch_add(1, Ordering::Relaxed);
            counter!(SHADOW_DROPPED, "member" => self.member.clone()).increment(1);
        }
        gauge!(SHADOW_QUEUE, "member" => self.member.clone()).set(self.n_waiting() as f64);
    }

    /// Requests that wait for their second answer.
    pub(crate) fn n_waiting(&self) -> usize {
        self.queued.rows.load(Ordering::Relaxed)
    }

    /// Requests that there was no room for.
    pub(crate) fn n_dropped(&self) -> u64 {
        self.queued.n_dropped.load(Ordering::Relaxed)
    }
}

struct Worker {
    queued: Arc<Queued>,
    writer: Writer,
    settings: Arc<RolloutSettings>,
    n_seen: u64,
}

impl Worker {
    fn work(&mut self, jobs: &Receiver<Job>) {
        loop {
            let job = match jobs.try_recv() {
                Ok(job) => job,
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {
                    self.told(Writer::flush);
                    match jobs.recv() {
                        Ok(job) => job,
                        Err(_) => break,
                    }
                }
            };
            let n_bytes = job.exchange.n_bytes();
            self.answer(job);
            self.queued.rows.fetch_sub(1, Ordering::Relaxed);
            self.queued.bytes.fetch_sub(n_bytes, Ordering::Relaxed);
        }
        self.told(Writer::flush);
    }

    /// Asks the other version and compares. A trial that was stopped asks no more.
    fn answer(&mut self, job: Job) {
        if job.trial.ended().is_some() {
            return;
        }
        let member = job.trial.member.clone();
        self.n_seen += 1;
        let is_early = self.n_seen <= N_TIMED_FIRST || self.n_seen.is_multiple_of(TIMED_EVERY);
        let is_timed = is_early && self.settings.config().keep > 0.0;
        // Now the one and now the other goes first, so that neither always finds what its forerunner left in the caches.
        let goes_first = is_timed && (self.n_seen / TIMED_EVERY + self.n_seen).is_multiple_of(2);
        let before = goes_first.then(|| ask_timed(&job.exchange, &job.first));
        let began = Instant::now();
        let asked = ask_timed(&job.exchange, &job.other);
        let took = asked.took(job.other.crew().is_none());
        traced::shadow(&job.cause, &member, &job.other, &job.request_id, began);
        histogram!(SHADOW_SECONDS, "member" => member.clone()).record(took.as_secs_f64());
        let of_candidate = job.answered == Side::Stable;
        if of_candidate {
            job.trial.asked(asked.answered.is_ok().then_some(took));
        }
        let Ok((_, n_tokens)) = asked.answered else { return };
        counter!(SHADOW_TOKENS, "member" => member).increment(n_tokens as u64);
        let first = before.or_else(|| is_timed.then(|| ask_timed(&job.exchange, &job.first)));
        self.compare(&job, &asked, first.as_ref());
    }

    /// Compares what `other` answered now with what the client was answered by the version that `first` asked once more, if it did.
    fn compare(&mut self, job: &Job, other: &AskedAside, first: Option<&AskedAside>) {
        let Ok((second, _)) = &other.answered else { return };
        let timing = first.and_then(|first| time(job, [first, other]));
        let (timed, tokens) = timing.unzip();
        let first = job.exchange.answers();
        let (stable, candidate) = match job.answered {
            Side::Stable => (&*first, second.as_slice()),
            Side::Candidate => (second.as_slice(), &*first),
        };
        let trial = &job.trial;
        let Some(compared) = compare(&trial.rollout.limits, stable, candidate) else { return };
        let compared = Compared { tokens: tokens.flatten(), ..compared };
        let inputs = job.exchange.inputs();
        let pair = Pair {
            request_id: job.request_id.clone(),
            time: now(),
            rollout: trial.rollout.id.clone(),
            member: trial.member.clone(),
            answered: job.answered,
            compared,
            stable: in_words(stable),
            candidate: in_words(candidate),
            inputs: inputs.iter().map(digest).collect(),
            kept: self.settings.config().keep_inputs.then(|| inputs.to_vec()),
            live_ms: milliseconds(job.live),
            shadow_ms: milliseconds(other.took(job.other.crew().is_none())),
            timed,
        };
        // All that differ or were timed, and evenly spaced ones of the rest.
        let keep = self.settings.config().keep;
        let due = |n: u64| (n as f64 * keep).floor();
        if compared.differs || timed.is_some() || due(self.n_seen) > due(self.n_seen - 1) {
            self.told(|writer| writer.write(&pair));
        }
        trial.compared(pair, labels(stable, candidate));
    }

    /// A disk that is full loses pairs, and nothing else.
    fn told(&mut self, act: impl FnOnce(&mut Writer) -> std::io::Result<()>) {
        if let Err(error) = act(&mut self.writer) {
            tracing::warn!("Cannot write what a rollout compared: {error}");
        }
    }
}

/// An answer that nobody waits for, and what it took.
struct AskedAside {
    answered: Result<(Vec<Answer>, usize), TaskError>,
    /// Of a processor, by this thread.
    cpu: Duration,
    /// In all.
    wall: Duration,
}

impl AskedAside {
    /// As this thread's time of the processor, which that of another process is not, or in all.
    fn took(&self, of_processor: bool) -> Duration {
        if of_processor { self.cpu } else { self.wall }
    }
}

fn ask_timed(exchange: &Exchange, revision: &Revision) -> AskedAside {
    let (begun, began) = (cpu_time(), Instant::now());
    let answered = catch_unwind(AssertUnwindSafe(|| exchange.ask(revision)));
    let (cpu, wall) = (cpu_time().saturating_sub(begun), began.elapsed());
    AskedAside { answered: answered.unwrap_or_else(|_| Err(TaskError::Tensors("it panicked".to_owned()))), cpu, wall }
}

/// What both versions took for a request that was asked of each in one way, and how many tokens it has for them.
fn time(job: &Job, both: [&AskedAside; 2]) -> Option<(Timed, Option<[u64; 2]>)> {
    let n_tokens = both.map(|asked| asked.answered.as_ref().ok().map(|(_, n_tokens)| *n_tokens as u64));
    let [Some(first_tokens), Some(other_tokens)] = n_tokens else { return None };
    // Where one of them runs in other processes, this thread's time tells of neither.
    let of_processor = job.first.crew().is_none() && job.other.crew().is_none();
    let [first_ms, other_ms] = both.map(|asked| milliseconds(asked.took(of_processor)));
    let has_tokens = matches!(job.exchange, Exchange::Rows { .. }) && first_tokens > 0 && other_tokens > 0;
    let ([stable_ms, candidate_ms], tokens) = match job.answered {
        Side::Stable => ([first_ms, other_ms], [first_tokens, other_tokens]),
        Side::Candidate => ([other_ms, first_ms], [other_tokens, first_tokens]),
    };
    Some((Timed { stable_ms, candidate_ms, of_processor }, has_tokens.then_some(tokens)))
}

/// The two labels, where the request had one input that gets one.
fn labels(stable: &[Answer], candidate: &[Answer]) -> Option<[String; 2]> {
    let ([stable], [candidate]) = (stable, candidate) else { return None };
    Some([stable.label()?.into_owned(), candidate.label()?.into_owned()])
}

fn ask(revision: &Revision, inputs: &[Input], asked: Truncate) -> Result<(Vec<Answer>, usize), TaskError> {
    let predictor = revision.predictor();
    let cut = predictor.cut(asked);
    let prepared =
        inputs.iter().map(|input| predictor.prepare_cut(input, cut)).collect::<Result<Vec<Prepared>, _>>()?;
    let n_tokens = prepared.iter().map(Prepared::n_tokens).sum();
    let answers = predictor.predict_prepared_on(&OneThread(revision), &prepared)?;
    Ok((answers, n_tokens))
}

/// Runs a program on this thread alone, or on the PyTorch processes that it has.
struct OneThread<'a>(&'a Revision);

impl Engine for OneThread<'_> {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, TaskError> {
        self.0.model().run_aside(inputs)
    }
}

/// Time that this thread had of a processor.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
