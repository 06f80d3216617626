use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::time::Instant;

use highroad_eval::Evidence;
use highroad_package::{Digest, TaskKind};
use highroad_task::{Answer, Input, Predictor, TaskError};
use sha2::{Digest as _, Sha256};

use crate::kept::{Kept, KeptAnswers};
use crate::{
    AssessError, CaseAnswer, Checked, GoldenCase, GoldenInput, GoldenKind, GoldenSet, Results, Speed, Value,
    answers_digest,
};

/// What answers a golden set: a package in this process, later also an engine outside it.
pub trait Model {
    /// Digest of the package.
    fn package(&self) -> Digest;
    /// What it is made to.
    fn task(&self) -> &TaskKind;
    /// What decides the bits of its answers.
    fn numerics_id(&self) -> String;
    /// What its answers are evidence of.
    fn evidence(&self) -> Evidence;
    /// Whether an input has the same bits alone and in any batch, so that a difference is a fault. An engine that promises none is
    /// told of in `batch_invariant`, and its batches count.
    fn promises_bits(&self) -> bool {
        true
    }
    /// Seconds that a GPU has worked for it so far; `None` where none does.
    fn gpu_s(&self) -> Option<f64> {
        None
    }
    /// The answer to one input, and whether the input was too long and lost its end.
    fn answer_one(&self, input: &Input) -> Result<(Answer, Truncated), TaskError>;
    /// The answers to all inputs, in order, as fast as it goes, and which of them lost their end.
    fn answer_all(&self, inputs: &[Input]) -> Result<Vec<(Answer, Truncated)>, TaskError>;
}

/// Whether a text was too long for the model and lost its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated(pub bool);

impl Model for Predictor {
    fn package(&self) -> Digest {
        self.digest()
    }

    fn task(&self) -> &TaskKind {
        &self.manifest().task.kind
    }

    fn numerics_id(&self) -> String {
        self.numerics_id()
    }

    fn evidence(&self) -> Evidence {
        Evidence::BitExact
    }

    fn answer_one(&self, input: &Input) -> Result<(Answer, Truncated), TaskError> {
        let prepared = [self.prepare(input)?];
        let answer = self.answer(&prepared)?.pop().expect("one input gives one answer");
        Ok((answer, Truncated(prepared[0].truncated())))
    }

    fn answer_all(&self, inputs: &[Input]) -> Result<Vec<(Answer, Truncated)>, TaskError> {
        let prepared = inputs.iter().map(|input| self.prepare(input)).collect::<Result<Vec<_>, _>>()?;
        let truncated = prepared.iter().map(|prepared| Truncated(prepared.truncated()));
        Ok(self.predict_prepared(&prepared)?.into_iter().zip(truncated).collect())
    }
}

/// How a golden set is run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Threads the predictor was opened with, for the record.
    pub threads: NonZeroUsize,
    /// How many inputs are asked alone, to be timed and to have their bits compared; all if there are fewer.
    pub n_alone: NonZeroUsize,
}

/// What a run is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Answering what was not kept, in batches.
    Answering,
    /// Asking single inputs, timed.
    Timing,
}

/// Inputs asked before timing begins, so that caches and the kernels' threads are warm.
const N_WARM_UP: usize = 5;
/// How many inputs are answered between two times that answers are kept: first, at least, at most.
const FIRST_CHUNK: usize = 256;
const CHUNKS: RangeInclusive<usize> = 64..=8192;
/// About how long such a chunk should take: what a killed run loses.
const CHUNK_SECONDS: f64 = 3.0;

/// Answers every case of `golden`: what `kept` does not hold in batches, timed as a whole; then `n_alone` inputs, spread over
/// the set, alone and timed, comparing their bits.
///
/// Where one differs, nothing kept is trusted and every input is asked alone, so that `kept` never decides what a single
/// input would not; unless the model promises no such bits. `progress` is called with the stage, and the number of its inputs done and in all.
pub fn run(
    model: &impl Model,
    golden: &GoldenSet,
    options: &RunOptions,
    kept: &mut KeptAnswers,
    mut progress: impl FnMut(Stage, usize, usize),
) -> Result<Results, AssessError> {
    let labels = labels_for(model.task(), golden)?;
    let inputs = Inputs::of(golden, model.task());
    let n_inputs = inputs.distinct.len();
    let mut answered = answer(model, &inputs, kept, &mut progress)?;
    let sample = spread(n_inputs, options.n_alone.get());
    let alone = ask_alone(model, &inputs, &sample, |n_done| progress(Stage::Timing, n_done, sample.len()))?;
    let answers = sample.iter().map(|&idx| &answered.answers[idx]);
    let is_sound = alone.iter().zip(answers).all(|(single, answer)| same_bits(&single.kept, answer));
    let (mut batch_invariant, mut n_alone) = (true, sample.len());
    if !is_sound || answered.inputs_per_s.is_none() {
        let asked: Vec<Asked<'_>> = sample.iter().map(|&idx| inputs.distinct[idx]).collect();
        let (batch, seconds) = ask_batch(model, &asked)?;
        answered.inputs_per_s.get_or_insert(batch.len() as f64 / seconds);
        batch_invariant = alone.iter().zip(&batch).all(|(single, answer)| same_bits(&single.kept, answer));
    }
    if !is_sound && model.promises_bits() {
        kept.forget()?;
        let all: Vec<usize> = (0..n_inputs).collect();
        let singles = ask_alone(model, &inputs, &all, |n_done| progress(Stage::Timing, n_done, n_inputs))?;
        answered.answers = singles.into_iter().map(|single| single.kept).collect();
        (answered.n_kept, n_alone) = (0, n_inputs);
    }
    results(model, golden, labels, &inputs, options, &Run { answered, alone, batch_invariant, n_alone })
}

/// Answers in order.
struct Answered {
    answers: Vec<Kept>,
    n_kept: usize,
    /// Of those that were not kept; `None` if all were.
    inputs_per_s: Option<f64>,
    /// The same of a GPU's seconds for each.
    gpu_s_per_input: Option<f64>,
}

/// What a run has found out.
struct Run {
    answered: Answered,
    /// Timed.
    alone: Vec<Single>,
    batch_invariant: bool,
    n_alone: usize,
}

fn results(
    model: &impl Model,
    golden: &GoldenSet,
    labels: Vec<String>,
    inputs: &Inputs<'_>,
    options: &RunOptions,
    run: &Run,
) -> Result<Results, AssessError> {
    let Run { answered: Answered { answers, n_kept, inputs_per_s, gpu_s_per_input }, alone, batch_invariant, n_alone } =
        run;
    let n_inputs = answers.len();
    let digests: Vec<Digest> = answers.iter().map(|(answer, _)| answer.digest()).collect();
    let cases = golden.cases.iter().zip(&inputs.of_case);
    Ok(Results {
        highroad_results: 1,
        package: model.package(),
        golden_set: highroad_eval::GoldenSet {
            name: golden.name.clone(),
            digest: golden.digest.to_string(),
            n_cases: golden.cases.len(),
        },
        numerics_id: model.numerics_id(),
        evidence: model.evidence(),
        labels,
        cases: cases.map(|(case, asked)| case_answer(case, asked, answers)).collect::<Result<_, _>>()?,
        answers: answers_digest(inputs.of_case.iter().flatten().map(|&idx| digests[idx])),
        batch_invariant: *batch_invariant,
        checked: Checked { n_inputs, n_kept: *n_kept, n_alone: *n_alone },
        speed: Speed {
            single_ms: alone.iter().map(|single| single.ms).collect(),
            inputs_per_s: inputs_per_s.unwrap_or(0.0),
            gpu_s_per_1000: gpu_s_per_input.map(|seconds| 1000.0 * seconds),
            measured: format!(
                "{} of {n_inputs} inputs once, alone, after {N_WARM_UP} to warm up, tokenisation included, {} thread(s), \
                 {}; throughput in batches of up to 4096 tokens",
                alone.len(),
                options.threads,
                std::env::consts::ARCH,
            ),
        },
        hosted: None,
    })
}

fn same_bits(left: &Kept, right: &Kept) -> bool {
    left.0.digest() == right.0.digest()
}

/// Answers what `kept` does not hold, in batches, and keeps it.
fn answer(
    model: &impl Model,
    inputs: &Inputs<'_>,
    kept: &mut KeptAnswers,
    progress: &mut impl FnMut(Stage, usize, usize),
) -> Result<Answered, AssessError> {
    let digests: Vec<Digest> = inputs.distinct.iter().map(Asked::digest).collect();
    let mut answers: Vec<Option<Kept>> = digests.iter().map(|digest| kept.get(digest).cloned()).collect();
    let missing: Vec<usize> = (0..answers.len()).filter(|&idx| answers[idx].is_none()).collect();
    let (mut n_done, mut n_next, mut seconds) = (0, FIRST_CHUNK, 0.0);
    let gpu_s_before = model.gpu_s();
    while n_done < missing.len() {
        let chunk = &missing[n_done..missing.len().min(n_done + n_next)];
        let (batch, took) = ask_batch(model, &chunk.iter().map(|&idx| inputs.distinct[idx]).collect::<Vec<_>>())?;
        kept.put(chunk.iter().map(|&idx| digests[idx]).zip(&batch))?;
        chunk.iter().zip(batch).for_each(|(&idx, answer)| answers[idx] = Some(answer));
        n_done += chunk.len();
        seconds += took;
        n_next = ((CHUNK_SECONDS * n_done as f64 / seconds) as usize).clamp(*CHUNKS.start(), *CHUNKS.end());
        progress(Stage::Answering, n_done, missing.len());
    }
    Ok(Answered {
        n_kept: answers.len() - missing.len(),
        answers: answers.into_iter().map(|answer| answer.expect("what was missing has been answered")).collect(),
        inputs_per_s: (n_done > 0).then(|| n_done as f64 / seconds),
        gpu_s_per_input: gpu_s_before
            .zip(model.gpu_s())
            .filter(|_| n_done > 0)
            .map(|(before, after)| (after - before) / n_done as f64),
    })
}

/// At most `n_most` of `n` positions, evenly spread.
fn spread(n: usize, n_most: usize) -> Vec<usize> {
    let n_picked = n.min(n_most);
    (0..n_picked).map(|picked| picked * n / n_picked).collect()
}

/// What is asked, each text once however many pairs hold it.
pub(crate) struct Inputs<'a> {
    pub(crate) distinct: Vec<Asked<'a>>,
    /// Positions in `distinct`: one a labelled text, two a pair, three a triplet; of a ranking one for each document, for an embedder the
    /// query's before them.
    pub(crate) of_case: Vec<Vec<usize>>,
}

/// One input and a case that asks it, without a copy of its text.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) input: Borrowed<'a>,
    pub(crate) case: &'a str,
}

#[derive(Clone, Copy)]
pub(crate) enum Borrowed<'a> {
    Text(&'a str),
    Tokens(&'a [u32]),
    Pair { query: &'a str, document: &'a str },
}

impl<'a> From<&'a Input> for Borrowed<'a> {
    fn from(input: &'a Input) -> Self {
        match input {
            Input::Text(text) => Self::Text(text),
            Input::Tokens(ids) => Self::Tokens(ids),
            Input::Pair { query, document } => Self::Pair { query, document },
        }
    }
}

impl Asked<'_> {
    fn input(&self) -> Input {
        match self.input {
            Borrowed::Text(text) => Input::Text(text.to_owned()),
            Borrowed::Tokens(ids) => Input::Tokens(ids.to_vec()),
            Borrowed::Pair { query, document } => {
                Input::Pair { query: query.to_owned(), document: document.to_owned() }
            }
        }
    }

    /// Equal for equal inputs only: kinds and lengths are told before the content.
    fn digest(&self) -> Digest {
        let mut hasher = Sha256::new();
        let mut text = |kind: &str, bytes: &[u8]| {
            hasher.update(format!("{kind} {}\n", bytes.len()));
            hasher.update(bytes);
        };
        match self.input {
            Borrowed::Text(of) => text("text", of.as_bytes()),
            Borrowed::Tokens(ids) => text("tokens", &ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>()),
            Borrowed::Pair { query, document } => {
                text("query", query.as_bytes());
                text("document", document.as_bytes());
            }
        }
        Digest::finish(hasher)
    }
}

impl<'a> Inputs<'a> {
    pub(crate) fn of(golden: &'a GoldenSet, task: &TaskKind) -> Self {
        let (mut distinct, mut seen) = (Vec::new(), HashMap::new());
        let mut of_case = Vec::with_capacity(golden.cases.len());
        for GoldenCase { case, input, .. } in &golden.cases {
            let mut add = |input: Borrowed<'a>| {
                distinct.push(Asked { input, case: &case.id });
                distinct.len() - 1
            };
            of_case.push(match input {
                GoldenInput::One(input) => vec![add(input.into())],
                GoldenInput::Ranking { query, documents } if matches!(task, TaskKind::Rerank) => {
                    documents.iter().map(|document| add(Borrowed::Pair { query, document })).collect()
                }
                GoldenInput::Pair(_) | GoldenInput::Triplet(_) | GoldenInput::Ranking { .. } => {
                    texts(input).map(|text| *seen.entry(text).or_insert_with(|| add(Borrowed::Text(text)))).collect()
                }
                // No package's task writes: `labels_for` has refused the golden set.
                GoldenInput::Prompt(_) => Vec::new(),
            });
        }
        Self { distinct, of_case }
    }
}

/// The texts of a case that are embedded, each by itself.
pub(crate) fn texts(input: &GoldenInput) -> impl Iterator<Item = &str> {
    let (first, more): (&[String], &[String]) = match input {
        GoldenInput::One(_) | GoldenInput::Prompt(_) => (&[], &[]),
        GoldenInput::Pair(texts) => (texts, &[]),
        GoldenInput::Triplet(texts) => (texts, &[]),
        GoldenInput::Ranking { query, documents } => (std::slice::from_ref(query), documents),
    };
    first.iter().chain(more).map(String::as_str)
}

struct Single {
    kept: Kept,
    ms: f64,
}

/// The answers to the inputs at `idxs`, each asked by itself once the model is warm.
fn ask_alone(
    model: &impl Model,
    inputs: &Inputs<'_>,
    idxs: &[usize],
    mut progress: impl FnMut(usize),
) -> Result<Vec<Single>, AssessError> {
    let ask = |&idx: &usize| {
        let asked = inputs.distinct[idx];
        ask_one(model, &asked.input()).map_err(|source| AssessError::Task { case: asked.case.to_owned(), source })
    };
    idxs.iter().take(N_WARM_UP).try_for_each(|idx| ask(idx).map(drop))?;
    let told = |(n_before, idx)| {
        let single = ask(idx);
        progress(n_before + 1);
        single
    };
    idxs.iter().enumerate().map(told).collect()
}

fn ask_one(model: &impl Model, input: &Input) -> Result<Single, TaskError> {
    let start = Instant::now();
    let kept = model.answer_one(input)?;
    Ok(Single { kept, ms: start.elapsed().as_secs_f64() * 1e3 })
}

/// All answers, in order, and the seconds they took.
fn ask_batch(model: &impl Model, asked: &[Asked<'_>]) -> Result<(Vec<Kept>, f64), AssessError> {
    let inputs: Vec<Input> = asked.iter().map(Asked::input).collect();
    let start = Instant::now();
    let answers = model.answer_all(&inputs);
    let seconds = start.elapsed().as_secs_f64();
    let all = || format!("{} to {}", asked[0].case, asked[asked.len() - 1].case);
    Ok((answers.map_err(|source| AssessError::Task { case: all(), source })?, seconds))
}

fn labels_for(task: &TaskKind, golden: &GoldenSet) -> Result<Vec<String>, AssessError> {
    let (kind, asked) = (golden.kind(), golden.kind().in_words());
    match (task, kind) {
        (TaskKind::Classify { labels, .. }, GoldenKind::Labels) => Ok(labels.clone()),
        (TaskKind::Embed { .. }, GoldenKind::Similarities | GoldenKind::Triplets | GoldenKind::Rankings)
        | (TaskKind::Rerank, GoldenKind::Rankings) => Ok(Vec::new()),
        (TaskKind::Classify { .. }, _) => Err(AssessError::OtherTask { package: "classify", golden: asked }),
        (TaskKind::Embed { .. }, _) => Err(AssessError::OtherTask { package: "embed", golden: asked }),
        (TaskKind::Rerank, _) => Err(AssessError::OtherTask { package: "rerank", golden: asked }),
        (_, _) => Err(AssessError::OtherTask { package: "something else", golden: asked }),
    }
}

pub(crate) fn case_answer(case: &GoldenCase, asked: &[usize], given: &[Kept]) -> Result<CaseAnswer, AssessError> {
    let answers: Vec<&Answer> = asked.iter().map(|&idx| &given[idx].0).collect();
    let value = match (&case.input, answers.as_slice()) {
        (GoldenInput::One(_), [Answer::Class { label, scores }]) => {
            Some(Value::Class { label: label.clone(), scores: scores.clone() })
        }
        (GoldenInput::Pair(_), [a, b]) => similarity(a, b).map(Value::Similarity),
        (GoldenInput::Triplet(_), [anchor, positive, negative]) => similarity(anchor, positive)
            .zip(similarity(anchor, negative))
            .map(|(positive, negative)| Value::Triplet([positive, negative])),
        (GoldenInput::Ranking { .. }, [query @ Answer::Embedding { .. }, documents @ ..]) => {
            documents.iter().map(|document| similarity(query, document)).collect::<Option<_>>().map(Value::Scores)
        }
        (GoldenInput::Ranking { .. }, documents) => {
            documents.iter().map(|&answer| logit(answer)).collect::<Option<_>>().map(Value::Scores)
        }
        _ => None,
    };
    let value = value.ok_or_else(|| AssessError::OtherAnswer { case: case.case.id.clone() })?;
    let truncated = asked.iter().any(|&idx| given[idx].1 == Truncated(true));
    Ok(CaseAnswer { id: case.case.id.clone(), value, truncated })
}

fn similarity(a: &Answer, b: &Answer) -> Option<f64> {
    match (a, b) {
        (Answer::Embedding { vector: a }, Answer::Embedding { vector: b }) => Some(cosine(a, b)),
        _ => None,
    }
}

fn logit(answer: &Answer) -> Option<f64> {
    if let Answer::Relevance { logit } = answer { Some(f64::from(*logit)) } else { None }
}

/// Cosine of the angle between two vectors of one length, summed in f64 and in order; 0 if either is zero.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths == 0.0 { 0.0 } else { dot(a, b) / lengths }
}
