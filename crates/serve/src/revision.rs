mod through;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use highroad_eval::{Aliased, Evidence, Override, OverrideRefusal, Verdict};
use highroad_hosted::NUMERICS_ID;
use highroad_package::{Digest, Manifest, TaskKind, VerifiedPackage};
use highroad_service::access::Priority;
use highroad_task::raw::{Program, RunError, Tensor, is_finite, tensors_digest};
use highroad_task::{
    Answer, Cut, Input, ParityReport, Piece, Predictor, PredictorOptions, Prepared, Special, TaskError, TensorGlimpse,
    Truncate, ranked,
};
use highroad_worker::Crew;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::attestation;
use crate::batcher::{Batcher, Done, Job as _, RowError, Ticket};
use crate::budget::Amount;
use crate::budget::keeper::{Hold, hold_here};
use crate::cache::{AnswerCache, CacheUse};
use crate::config::{MemberConfig, MemberLimits, RequestLimits};
use crate::engine::{self, EngineConfig};
use crate::error::{AskError, DeployError};
use crate::model::{Model, ModelError, Work, Yield};
use crate::monitor::{Monitor, MonitorConfig, Seen, Watch};
use crate::pipeline::Indexes;
use crate::telemetry::{BatchMetrics, TOKENS, TRUNCATED};
use crate::traced;
use crate::urgency::{Urgency, flow};

/// A package that a member could serve, every byte of it verified.
pub struct Candidate {
    /// `name:7`, or `name@sha256:…` where there is no registry.
    pub version: String,
    /// The package.
    pub package: VerifiedPackage,
    /// Its verdict, where it has one.
    pub verdict: Option<(Digest, Verdict)>,
    /// What lets it serve for a while where no verdict does.
    pub overridden: Option<Overridden>,
    /// When the registry promoted it, RFC 3339 in UTC. The verdict is asked about that moment, else about now: an
    /// acceptance that expires later must stop neither a restart nor the way back. An override is always asked about now.
    pub admitted_at: Option<String>,
}

/// An override and what it has to be about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overridden {
    /// Digest of its bytes.
    pub digest: Digest,
    /// What it says.
    pub given: Override,
    /// Registered model that was asked for.
    pub model: String,
    /// Alias that was asked for.
    pub alias: String,
}

/// What a server does with a package that no verdict admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unverified {
    /// Refuses it.
    Refuse,
    /// Serves it and says so in every answer.
    ServeAsDevelopment,
}

/// What every answer of a revision says about its origin.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Facts {
    /// The member's name.
    pub member: String,
    /// `name:7`, or `name@sha256:…` where there is no registry.
    pub version: String,
    /// Digest of the package.
    pub package: Digest,
    /// Digest of the verdict that admitted it.
    pub verdict: Option<Digest>,
    /// `bit-exact`, `same-engine` or `observed` as the verdict says; `attested` where this machine computes other bits than
    /// the verdict's and the parity cases were replayed instead; `override` where a named person let it through without a
    /// verdict, and the parity cases were replayed; `development` where nothing admitted it. `observed` for all that somebody else hosts:
    /// whatever admitted it, nothing is promised.
    pub evidence: &'static str,
    /// Who let it through without a verdict, and until when.
    #[serde(rename = "override", skip_serializing_if = "Option::is_none")]
    pub overridden: Option<OverrideFacts>,
    /// Why it serves unverified.
    pub development: Option<String>,
    /// What decides the bits here.
    pub numerics_id: String,
    /// When it was loaded, RFC 3339 in UTC.
    pub loaded_at: String,
}

/// What is told of an override.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct OverrideFacts {
    /// Its digest.
    pub digest: Digest,
    /// Who gave it.
    pub by: String,
    /// From when on the version is not loaded again, RFC 3339 in UTC.
    pub expires_at: String,
}

/// A loaded version of a member: its predictor behind a queue. Requests hold on to it, so that a swap takes nothing from
/// them; the last one to let go releases its memory.
pub struct Revision {
    facts: Facts,
    batcher: Batcher<Model>,
    /// Of its package's vectors.
    indexes: Indexes,
    queue_timeout: Duration,
    limits: MemberLimits,
    watch: OnceLock<Watch>,
    cache: Option<Cached>,
    pub(crate) stats: Stats,
}

/// The member's answers, and what keeps this version's apart.
struct Cached {
    answers: Arc<AnswerCache>,
    version: String,
}

/// How a request wants its inputs treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// What it says about texts that are too long.
    pub cut: Truncate,
    /// How long the client is willing to wait in the queue.
    pub timeout: Option<Duration>,
    /// The class that the body asks for.
    pub priority: Option<Priority>,
}

/// An answered request.
#[derive(Debug)]
pub struct Asked<A> {
    /// One answer for each input, in order.
    pub answers: A,
    /// Digest of each answer.
    pub digests: Vec<Digest>,
    /// Tokens of each input, after truncation.
    pub n_tokens: Vec<usize>,
    /// Inputs that were cut.
    pub n_truncated: usize,
    /// Where.
    pub cut: Cut,
    /// Tokens that documents of a reranking were cut to before, where any was.
    pub document_tokens: Option<NonZeroUsize>,
    /// Names of the prompts that went before them, each once.
    pub prompts: Vec<String>,
    /// Tokenising, or decoding of pictures.
    pub prepared: Duration,
    /// Longest wait of a row for its batch.
    pub queued: Duration,
    /// Longest batch.
    pub computed: Duration,
    /// Where its answers came from, of a member that keeps answers.
    pub cache: Option<CacheUse>,
    /// What the request log keeps of the answers themselves.
    pub(crate) told: Told,
    /// The input that is looked at by monitoring.
    pub(crate) seen: Option<Box<Seen>>,
}

/// What is asked in the place of documents of a reranking that have more than so many tokens.
pub(crate) struct Shortened {
    most: NonZeroUsize,
    /// Of each document the other text, where it has one.
    others: Vec<Option<String>>,
}

impl Shortened {
    /// Puts the shorter texts in the place of the documents, and the second time the documents back.
    pub(crate) fn swap(&mut self, documents: &mut [String]) {
        for (document, other) in documents.iter_mut().zip(&mut self.others) {
            if let Some(other) = other {
                std::mem::swap(document, other);
            }
        }
    }
}

/// What right answers that come later are compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// The label of each input, of a classifier.
    pub(crate) labels: Vec<String>,
    /// Documents in the order of their relevance, of a reranker.
    pub(crate) order: Vec<u32>,
}

impl Told {
    fn of(answers: &[Answer]) -> Self {
        let label = |answer: &Answer| Some(answer.label()?.into_owned());
        let order = ranked(answers).iter().filter_map(|ranked| u32::try_from(ranked.index).ok()).collect();
        Self { labels: answers.iter().filter_map(label).collect(), order }
    }
}

impl Facts {
    /// What runs the program: `native`, `torch` or `hosted`.
    pub fn engine(&self) -> &'static str {
        match self.numerics_id.as_str() {
            NUMERICS_ID => "hosted",
            id if id.starts_with("torch-") => "torch",
            _ => "native",
        }
    }
}

impl Revision {
    /// Decides whether `candidate` may serve, loads it, replays its parity cases if its numerics are new, and warms it up.
    ///
    /// `attestations` is the directory of the files that record such replays. Blocks for as long as loading takes.
    pub(crate) fn load(
        member: &str,
        candidate: &Candidate,
        config: &MemberConfig,
        unverified: Unverified,
        attestations: &Path,
        cache: Option<Arc<AnswerCache>>,
    ) -> Result<Self, DeployError> {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let package = candidate.package.digest();
        let standing = Standing::of(candidate, unverified, &now)?;
        let options = PredictorOptions { threads: config.threads, max_batch_tokens: config.batching.batch_tokens };
        let predictor = Predictor::open(&candidate.package, &options).map_err(DeployError::Load)?;
        let torch = match &config.engine {
            EngineConfig::Native => None,
            EngineConfig::Torch(torch) => Some(engine::start(member, &candidate.package, config, torch)?),
        };
        let model = Model { predictor, threads: config.threads, torch };
        let numerics_id = model.numerics_id();
        let evidence =
            standing.evidence(&candidate.package, &numerics_id, || model.check_parity(), attestations, &now)?;
        // The first run of a program touches its weights and fills buffer pools; no request should pay for that.
        model.warm_up().map_err(DeployError::WarmUp)?;
        let (verdict, overridden, development) = match standing {
            Standing::Admitted { digest, .. } => (Some(digest), None, None),
            Standing::Overridden(overridden) => (None, Some(overridden.facts()), None),
            Standing::Development { reason } => (None, None, Some(reason)),
        };
        let version = candidate.version.clone();
        let member = member.to_owned();
        let metrics = BatchMetrics::of_member(&member);
        let batcher = Batcher::start(&member, model, config.batching, metrics)
            .map_err(|source| DeployError::Io { path: "a worker thread".to_owned(), source })?;
        let loaded_at = now;
        let facts =
            Facts { member, version, package, verdict, evidence, overridden, development, numerics_id, loaded_at };
        let version = format!("{} {}", facts.package, facts.numerics_id);
        let cache = cache.map(|answers| Cached { answers, version });
        let (watch, stats) = (OnceLock::new(), Stats::default());
        let indexes = Indexes::default();
        let (queue_timeout, limits) = (config.queue_timeout, config.limits);
        Ok(Self { facts, batcher, indexes, queue_timeout, limits, watch, cache, stats })
    }

    /// Decides whether `candidate` may serve and replays its parity cases if its numerics are new, without keeping anything in memory. Gives
    /// its evidence. Blocks for as long as loading takes; `config` has to run it natively.
    pub(crate) fn rehearse(
        member: &str,
        candidate: &Candidate,
        config: &MemberConfig,
        unverified: Unverified,
        attestations: &Path,
    ) -> Result<&'static str, DeployError> {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let standing = Standing::of(candidate, unverified, &now)?;
        // It serves nobody yet, so it takes one core from those that do.
        let options = PredictorOptions { threads: NonZeroUsize::MIN, max_batch_tokens: config.batching.batch_tokens };
        let predictor = Predictor::open(&candidate.package, &options).map_err(DeployError::Load)?;
        let numerics_id = predictor.numerics_id();
        tracing::debug!(member.name = %member, "Rehearses {}", candidate.version);
        standing.evidence(&candidate.package, &numerics_id, || predictor.check_parity(), attestations, &now)
    }

    /// The same with indexes of its package's vectors.
    pub(crate) fn with_indexes(self, indexes: Indexes) -> Self {
        Self { indexes, ..self }
    }

    /// The indexes of its package's vectors.
    pub(crate) fn indexes(&self) -> &Indexes {
        &self.indexes
    }

    /// Has what it answers looked at from now on.
    pub(crate) fn watch_with(&self, monitor: &Arc<Monitor>, config: &MonitorConfig) {
        let Facts { member, version, package, .. } = &self.facts;
        let unknown_id = self.predictor().unknown_id();
        if let Some(mut watch) = monitor.watch(member, config, version, *package, unknown_id) {
            if matches!(self.manifest().task.kind, TaskKind::Tensors) {
                watch = watch.of_tensors(TensorGlimpse::of(self.program().inputs(), self.program().outputs()));
            }
            // Set once: a revision is loaded once.
            let _ = self.watch.set(watch);
        }
    }

    /// Counts a request that it does not take.
    pub(crate) fn violated(&self, kind: &'static str) {
        if let Some(watch) = self.watch.get() {
            watch.violated(kind);
        }
    }

    /// Has an answer looked at that a client got.
    pub(crate) fn answered(&self, seen: Option<Box<Seen>>) {
        if let Some((watch, seen)) = self.watch.get().zip(seen) {
            watch.put(seen);
        }
    }

    /// Where its answers come from.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What the package is.
    pub fn manifest(&self) -> &Manifest {
        self.predictor().manifest()
    }

    /// The program behind the task.
    pub fn program(&self) -> &Program {
        self.predictor().program()
    }

    /// Most tokens of one input.
    pub fn max_tokens(&self) -> usize {
        self.predictor().max_tokens()
    }

    /// What a request may ask of it, where one of any member may ask `of_all`.
    pub fn limits(&self, of_all: &RequestLimits) -> RequestLimits {
        self.limits.over(of_all)
    }

    pub(crate) fn predictor(&self) -> &Predictor {
        &self.model().predictor
    }

    pub(crate) fn model(&self) -> &Model {
        self.batcher.engine()
    }

    /// How many PyTorch processes run of those that should, where there are any.
    pub fn crew(&self) -> Option<Crew> {
        self.model().crew()
    }

    /// The same, and of each index in LanceDB how many processes search it.
    pub fn crews(&self) -> Vec<Crew> {
        let of_indexes = self.indexes.values().filter_map(|index| index.crew());
        self.crew().into_iter().chain(of_indexes).collect()
    }

    /// Rows that wait for a worker.
    pub fn n_waiting(&self) -> usize {
        self.batcher.n_waiting()
    }

    /// Answers `inputs` through the task, in order.
    pub async fn ask(
        self: &Arc<Self>,
        inputs: Vec<Input>,
        limits: &RequestLimits,
        terms: Terms,
    ) -> Result<Asked<Vec<Answer>>, AskError> {
        let begun = Instant::now();
        let result = self.answer(inputs, limits, terms).await;
        traced::own(self, begun, &result);
        result
    }

    async fn answer(
        self: &Arc<Self>,
        inputs: Vec<Input>,
        limits: &RequestLimits,
        terms: Terms,
    ) -> Result<Asked<Vec<Answer>>, AskError> {
        let limits = self.limits(limits);
        check_limit("inputs", inputs.len(), limits.inputs)?;
        let texts = inputs.iter().filter(|input| !is_image(input));
        check_limit("bytes in one input", texts.map(size_bytes).max().unwrap_or(0), limits.input_bytes)?;
        check_limit("images", inputs.iter().filter(|input| is_image(input)).count(), MAX_IMAGES)?;
        // Whatever asks a reranker; what all members are told is for Cohere's and TEI's rerankings.
        if let (TaskKind::Rerank, Some(documents)) = (&self.manifest().task.kind, self.limits.documents) {
            check_limit("documents", inputs.len(), documents)?;
        }
        let begun = Instant::now();
        let watch = self.watch.get();
        let drawn = watch.and_then(|watch| watch.draw(&inputs));
        let (prompts, cut) = (self.prompts(&inputs)?, self.predictor().cut(terms.cut));
        let prepared = self.prepare(inputs, cut).await?;
        let preparing = begun.elapsed();
        let drawn = watch.zip(drawn).map(|(watch, drawn)| watch.prepared(drawn, &prepared));
        let n_tokens: Vec<usize> = prepared.iter().map(Prepared::n_tokens).collect();
        check_limit("tokens", n_tokens.iter().sum(), limits.tokens)?;
        let n_truncated = prepared.iter().filter(|prepared| prepared.truncated()).count();
        let (done, cache) = match &self.cache {
            Some(cached) => self.rows_through(cached, prepared, terms).await?,
            None => {
                let hold = hold_here(&self.facts.member, n_tokens.iter().sum()).await?;
                let done = self.run(prepared.into_iter().map(Work::Row).collect(), terms).await?;
                settle(hold, n_tokens.iter().sum());
                (done, None)
            }
        };
        metrics::counter!(TOKENS, "member" => self.facts.member.clone())
            .increment(n_tokens.iter().sum::<usize>() as u64);

        let (queued, computed) = longest_times(&done);
        let answers: Vec<Answer> = done.into_iter().filter_map(|done| done.output.row()).collect();
        let digests = answers.iter().map(Answer::digest).collect();
        let seen = watch.zip(drawn).and_then(|(watch, drawn)| watch.answered(drawn, &answers));
        if n_truncated > 0 {
            metrics::counter!(TRUNCATED, "member" => self.facts.member.clone()).increment(n_truncated as u64);
        }
        let (told, prepared) = (Told::of(&answers), preparing);
        Ok(Asked {
            answers,
            digests,
            n_tokens,
            n_truncated,
            cut,
            document_tokens: None,
            prompts,
            prepared,
            queued,
            computed,
            cache,
            told,
            seen,
        })
    }

    /// Runs the program itself on `tensors`, past the task.
    pub async fn run_program(
        self: &Arc<Self>,
        tensors: Vec<Tensor>,
        terms: Terms,
    ) -> Result<Asked<Vec<Tensor>>, AskError> {
        // What decides by finite numbers must have them, on this way too; a program of any tensors may mean infinities, as masks do.
        let is_tensors = matches!(self.manifest().task.kind, TaskKind::Tensors);
        let first_odd = |tensors: &[Tensor]| tensors.iter().position(|tensor| !is_finite(tensor));
        if !is_tensors && let Some(input_idx) = first_odd(&tensors) {
            let name = self.program().inputs().get(input_idx).map_or("?", |spec| spec.name.as_str());
            let reason = format!("an element of `{name}` is infinite or not a number");
            return Err(AskError::Tensors { kind: "not_a_number", reason });
        }
        let watch = self.watch.get();
        let drawn = watch.and_then(|watch| watch.draw_row(&tensors));
        let work = Work::Program(tensors);
        let n_tokens = work.n_tokens();
        let hold = hold_here(&self.facts.member, n_tokens).await?;
        let done = self.run(vec![work], terms).await?;
        settle(hold, n_tokens);
        let (queued, computed) = longest_times(&done);
        let answers: Vec<Tensor> = done.into_iter().flat_map(|done| done.output.tensors()).collect();
        if !is_tensors && first_odd(&answers).is_some() {
            let reason = "the program's output is infinite or not a number".to_owned();
            return Err(AskError::Failed { member: self.facts.member.clone(), reason });
        }
        let digests = vec![tensors_digest(&answers)];
        let seen = watch.zip(drawn).and_then(|(watch, drawn)| watch.computed(drawn, &answers));
        let (n_tokens, n_truncated, prepared) = (Vec::new(), 0, Duration::ZERO);
        let (cut, prompts, cache, told) = (Cut::End, Vec::new(), None, Told::default());
        Ok(Asked {
            answers,
            digests,
            n_tokens,
            n_truncated,
            cut,
            document_tokens: None,
            prompts,
            prepared,
            queued,
            computed,
            cache,
            told,
            seen,
        })
    }

    /// The tokens of each text, none of them cut off.
    pub async fn pieces(
        self: &Arc<Self>,
        texts: Vec<String>,
        special: Special,
        limits: &RequestLimits,
    ) -> Result<Vec<Vec<Piece>>, AskError> {
        let limits = self.limits(limits);
        check_limit("inputs", texts.len(), limits.inputs)?;
        check_limit("bytes in one input", texts.iter().map(String::len).max().unwrap_or(0), limits.input_bytes)?;
        self.each(texts, move |predictor, text| predictor.pieces(text, special)).await
    }

    /// Each document without what is more than `most` tokens; `None` where that is of none.
    pub(crate) async fn shorten(
        self: &Arc<Self>,
        documents: &[String],
        most: NonZeroUsize,
        limits: &RequestLimits,
    ) -> Result<Option<Shortened>, AskError> {
        // Where the model reads no more tokens than that, the package says what happens to those that are too long.
        if most.get() >= self.max_tokens() || documents.iter().all(|document| document.len() < most.get()) {
            return Ok(None);
        }
        let longest = documents.iter().map(String::len).max().unwrap_or(0);
        check_limit("bytes in one input", longest, self.limits(limits).input_bytes)?;
        let cut = move |predictor: &Predictor, document: &String| {
            predictor.first_tokens(document, most).map(|first| (first.len() < document.len()).then(|| first.to_owned()))
        };
        let others = self.each(documents.to_vec(), cut).await?;
        Ok(others.iter().any(Option::is_some).then_some(Shortened { most, others }))
    }

    /// Has an answer say that documents were cut before it was asked for.
    pub(crate) fn was_shortened(&self, asked: &mut Asked<Vec<Answer>>, shortened: &Shortened) {
        // An embedder answers the query before the documents. A row of all tokens that there may be was cut once more, and is counted.
        let rows = asked.n_tokens.iter().rev().zip(shortened.others.iter().rev());
        let n_more = rows.filter(|(n_tokens, other)| other.is_some() && **n_tokens < self.max_tokens()).count();
        asked.n_truncated += n_more;
        asked.document_tokens = Some(shortened.most);
        metrics::counter!(TRUNCATED, "member" => self.facts.member.clone()).increment(n_more as u64);
    }

    /// The text of each list of tokens.
    pub async fn decode(
        self: &Arc<Self>,
        lists: Vec<Vec<u32>>,
        special: Special,
        limits: &RequestLimits,
    ) -> Result<Vec<String>, AskError> {
        let limits = self.limits(limits);
        check_limit("inputs", lists.len(), limits.inputs)?;
        check_limit("tokens", lists.iter().map(Vec::len).sum(), limits.tokens)?;
        self.each(lists, move |predictor, ids| predictor.decode(ids, special)).await
    }

    /// `work` on each of `inputs`, on a thread that may take its time.
    async fn each<I: Send + 'static, O: Send + 'static>(
        self: &Arc<Self>,
        inputs: Vec<I>,
        work: impl Fn(&Predictor, &I) -> Result<O, TaskError> + Send + 'static,
    ) -> Result<Vec<O>, AskError> {
        let this = Arc::clone(self);
        let all = move || {
            let one = |(input_idx, input)| {
                work(this.predictor(), input).map_err(|source| AskError::Input { input_idx, source })
            };
            inputs.iter().enumerate().map(one).collect()
        };
        tokio::task::spawn_blocking(all).await.unwrap_or_else(|_| Err(AskError::Lost(self.facts.member.clone())))
    }

    /// The names of the prompts that go before `inputs`, each once, in the order they are met.
    fn prompts(&self, inputs: &[Input]) -> Result<Vec<String>, AskError> {
        let mut names: Vec<String> = Vec::new();
        let has_prompts = !self.manifest().task.prompts.is_empty();
        for (input_idx, input) in inputs.iter().enumerate() {
            let prompts = match input {
                Input::Pair { .. } if has_prompts => self.manifest().task.prompts.keys().map(String::as_str).collect(),
                _ => {
                    let prompt = self.predictor().prompt_of(input);
                    let prompt = prompt.map_err(|source| AskError::Input { input_idx, source })?;
                    prompt.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
                }
            };
            let new = prompts.into_iter().filter(|name| !names.iter().any(|known| known == name));
            names.extend(new.map(str::to_owned).collect::<Vec<_>>());
        }
        Ok(names)
    }

    async fn prepare(self: &Arc<Self>, inputs: Vec<Input>, cut: Cut) -> Result<Vec<Prepared>, AskError> {
        let has_images = inputs.iter().any(is_image);
        if !has_images && inputs.iter().map(size_bytes).sum::<usize>() <= PREPARE_INLINE_BYTES {
            return self.prepare_now(&inputs, cut);
        }
        // A few bytes can be 100 MB of pixels while they are made smaller, so only so many requests do that at a time.
        let _permit = if has_images { DECODING.acquire().await.ok() } else { None };
        self.each(inputs, move |predictor, input| predictor.prepare_cut(input, cut)).await
    }

    fn prepare_now(&self, inputs: &[Input], cut: Cut) -> Result<Vec<Prepared>, AskError> {
        let prepare = |(input_idx, input)| {
            self.predictor().prepare_cut(input, cut).map_err(|source| AskError::Input { input_idx, source })
        };
        inputs.iter().enumerate().map(prepare).collect()
    }

    async fn run(&self, work: Vec<Work>, terms: Terms) -> Result<Vec<Done<Yield>>, AskError> {
        let submitted = Instant::now();
        let n_rows = work.len();
        let tickets = self.submit(work, terms, submitted)?;
        let mut done = Vec::with_capacity(n_rows);
        for ticket in tickets {
            done.push(self.redeem(ticket, submitted).await.map_err(|error| self.stats.failed(error))?);
        }
        self.stats.succeeded(&done, submitted.elapsed());
        Ok(done)
    }

    fn submit(
        &self,
        work: Vec<Work>,
        terms: Terms,
        submitted: Instant,
    ) -> Result<Vec<Ticket<Yield, ModelError>>, AskError> {
        let priority = Urgency::current().priority(terms.priority);
        let tickets = self.batcher.submit(flow(priority), work, self.deadline(terms, submitted));
        tickets.map_err(|full| self.stats.failed(self.overloaded(full.retry_after)))
    }

    /// When rows that wait are given up.
    fn deadline(&self, terms: Terms, submitted: Instant) -> Option<Instant> {
        let told = [terms.timeout, Urgency::current().left(submitted)].into_iter().flatten();
        submitted.checked_add(told.fold(self.queue_timeout, Duration::min))
    }

    fn overloaded(&self, retry_after: Duration) -> AskError {
        AskError::Overloaded { member: self.facts.member.clone(), retry_after }
    }

    async fn redeem(&self, ticket: Ticket<Yield, ModelError>, submitted: Instant) -> Result<Done<Yield>, AskError> {
        let member = || self.facts.member.clone();
        match ticket.await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(RowError::Engine(ModelError::Program(error)))) => {
                let kind = match &*error {
                    RunError::InputDType { .. } => "dtype",
                    RunError::InputShape { .. } => "shape",
                    _ => "tensors",
                };
                Err(AskError::Tensors { kind, reason: error.to_string() })
            }
            Ok(Err(RowError::Engine(error))) if error.is_down() => {
                Err(AskError::NotReady { member: member(), reason: error.to_string() })
            }
            Ok(Err(RowError::Engine(ModelError::Task(error)))) => {
                Err(AskError::Failed { member: member(), reason: error.to_string() })
            }
            Ok(Err(RowError::Shed(retry_after))) => Err(self.overloaded(retry_after)),
            Ok(Err(RowError::Expired)) => Err(AskError::Expired { waited: submitted.elapsed() }),
            Ok(Err(RowError::Panicked)) | Err(_) => Err(AskError::Lost(member())),
        }
    }
}

// Tokenising less than this takes well under a millisecond, less than handing it to another thread is worth.
const PREPARE_INLINE_BYTES: usize = 16 << 10;

/// Requests whose images are decoded at one time.
static DECODING: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(4);
/// Most images of one request: each becomes 600 KB where a program takes 224 × 224 pixels.
const MAX_IMAGES: usize = 256;

/// Counts what was computed; what was not is given back.
fn settle(hold: Option<Hold>, n_tokens: usize) {
    if let Some(hold) = hold {
        hold.settle(Amount { nanos: 0, tokens: n_tokens as u64 });
    }
}

pub(crate) fn is_image(input: &Input) -> bool {
    matches!(input, Input::Image(_))
}

pub(crate) fn size_bytes(input: &Input) -> usize {
    match input {
        Input::Text(text) | Input::Prompted { text, .. } => text.len(),
        Input::Tokens(ids) => 4 * ids.len(),
        Input::Pair { query, document } => query.len() + document.len(),
        Input::Image(bytes) => bytes.len(),
        Input::Tensors(arrays) => arrays.values().map(|array| 8 * array.values().len()).sum(),
    }
}

pub(crate) fn check_limit(what: &'static str, found: usize, limit: usize) -> Result<(), AskError> {
    if found > limit { Err(AskError::Limit { what, found, limit }) } else { Ok(()) }
}

fn longest_times(done: &[Done<Yield>]) -> (Duration, Duration) {
    let queued = done.iter().map(|done| done.queued).max().unwrap_or_default();
    let computed = done.iter().map(|done| done.computed).max().unwrap_or_default();
    (queued, computed)
}

// Why a candidate may serve.
enum Standing<'a> {
    Admitted { digest: Digest, verdict: &'a Verdict },
    Overridden(&'a Overridden),
    Development { reason: String },
}

impl<'a> Standing<'a> {
    fn of(candidate: &'a Candidate, unverified: Unverified, now: &str) -> Result<Self, DeployError> {
        let package = candidate.package.digest();
        let at = candidate.admitted_at.as_deref().unwrap_or(now);
        let refusal = match &candidate.verdict {
            None if candidate.package.is_bare() => DeployError::BareProgram,
            None => DeployError::NoVerdict(package),
            Some((digest, verdict)) => match verdict.admits(&package.to_string(), at) {
                Ok(()) => return Ok(Self::Admitted { digest: *digest, verdict }),
                Err(refusal) => DeployError::Refused { package, refusal },
            },
        };
        let refusal =
            match candidate.overridden.as_ref().map(|overridden| (overridden, overridden.admits(&package, now))) {
                None => refusal,
                Some((overridden, Ok(()))) => return Ok(Self::Overridden(overridden)),
                Some((_, Err(reason))) => DeployError::Override { package, reason, refusal: Box::new(refusal) },
            };
        match (unverified, refusal) {
            (Unverified::Refuse, refusal) => Err(refusal),
            (Unverified::ServeAsDevelopment, DeployError::Override { reason, .. }) => {
                Ok(Self::Development { reason: reason.to_string() })
            }
            (Unverified::ServeAsDevelopment, DeployError::Refused { refusal, .. }) => {
                Ok(Self::Development { reason: refusal.to_string() })
            }
            (Unverified::ServeAsDevelopment, _) if candidate.package.is_bare() => {
                Ok(Self::Development { reason: "a bare program: no parity cases, no verdict".to_owned() })
            }
            (Unverified::ServeAsDevelopment, _) => Ok(Self::Development { reason: "no verdict".to_owned() }),
        }
    }
}

impl Standing<'_> {
    /// What its answers are worth on these numerics; where they are new, the parity cases are replayed by `parity` and that is recorded in
    /// `attestations`.
    fn evidence(
        &self,
        package: &VerifiedPackage,
        numerics_id: &str,
        parity: impl FnOnce() -> Result<ParityReport, TaskError>,
        attestations: &Path,
        now: &str,
    ) -> Result<&'static str, DeployError> {
        match self {
            Self::Admitted { verdict, .. } if verdict.numerics_id == numerics_id => Ok(evidence_name(verdict.evidence)),
            Self::Admitted { digest, .. } => {
                attestation::attest(attestations, package, (numerics_id, parity), digest, now)?;
                Ok("attested")
            }
            Self::Overridden(overridden) => {
                attestation::attest(attestations, package, (numerics_id, parity), &overridden.digest, now)?;
                Ok("override")
            }
            Self::Development { .. } => Ok("development"),
        }
    }
}

impl Overridden {
    fn admits(&self, package: &Digest, now: &str) -> Result<(), OverrideRefusal> {
        let package = package.to_string();
        self.given.admits(Aliased { package: &package, model: &self.model, alias: &self.alias }, now)
    }

    fn facts(&self) -> OverrideFacts {
        let Override { by, expires_at, .. } = self.given.clone();
        OverrideFacts { digest: self.digest, by, expires_at }
    }
}

fn evidence_name(evidence: Evidence) -> &'static str {
    match evidence {
        Evidence::BitExact => "bit-exact",
        Evidence::SameEngine => "same-engine",
        Evidence::Observed => "observed",
    }
}

/// Counters of one revision, for the Open Inference Protocol's statistics.
#[derive(Default)]
pub(crate) struct Stats {
    pub(crate) n_success: AtomicU64,
    pub(crate) success_ns: AtomicU64,
    pub(crate) n_failed: AtomicU64,
    pub(crate) n_rows: AtomicU64,
    pub(crate) queue_ns: AtomicU64,
    pub(crate) compute_ns: AtomicU64,
    pub(crate) last_ms: AtomicU64,
}

impl Stats {
    fn succeeded(&self, done: &[Done<Yield>], total: Duration) {
        let add = |counter: &AtomicU64, value: u128| {
            counter.fetch_add(u64::try_from(value).unwrap_or(u64::MAX), Ordering::Relaxed);
        };
        let (queued, computed) = longest_times(done);
        add(&self.n_success, 1);
        add(&self.success_ns, total.as_nanos());
        add(&self.n_rows, done.len() as u128);
        add(&self.queue_ns, queued.as_nanos());
        add(&self.compute_ns, computed.as_nanos());
        let now_ms = jiff::Timestamp::now().as_millisecond();
        self.last_ms.store(now_ms.unsigned_abs(), Ordering::Relaxed);
    }

    fn failed(&self, error: AskError) -> AskError {
        self.n_failed.fetch_add(1, Ordering::Relaxed);
        error
    }
}

impl Yield {
    fn row(self) -> Option<Answer> {
        match self {
            Self::Row(answer) => Some(answer),
            Self::Program(_) => None,
        }
    }

    fn tensors(self) -> Vec<Tensor> {
        match self {
            Self::Row(_) => Vec::new(),
            Self::Program(tensors) => tensors,
        }
    }
}

impl From<TaskError> for DeployError {
    fn from(error: TaskError) -> Self {
        Self::Load(error)
    }
}
