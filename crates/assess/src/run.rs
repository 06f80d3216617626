use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::time::Instant;

use highroad_eval::Evidence;
use highroad_package::{Digest, TaskKind};
use highroad_task::{Answer, Input, Predictor, TaskError};

use crate::{AssessError, CaseAnswer, GoldenCase, GoldenInput, GoldenSet, Results, Speed, Value, answers_digest};

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
    /// The answer to one input, and whether the input was too long and lost its end.
    fn answer_one(&self, input: &Input) -> Result<(Answer, Truncated), TaskError>;
    /// The answers to all inputs, in order, as fast as it goes.
    fn answer_all(&self, inputs: &[Input]) -> Result<Vec<Answer>, TaskError>;
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

    fn answer_all(&self, inputs: &[Input]) -> Result<Vec<Answer>, TaskError> {
        self.predict(inputs)
    }
}

/// How a golden set is run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Threads the predictor was opened with, for the record.
    pub threads: NonZeroUsize,
}

/// Inputs asked before timing begins, so that caches and the kernels' threads are warm.
const N_WARM_UP: usize = 5;

/// Answers every case of `golden`: once alone, timed, then in batches, timed as a whole, comparing the bits of both.
///
/// `progress` is called with the number of inputs answered so far and the number to answer in all.
pub fn run(
    model: &impl Model,
    golden: &GoldenSet,
    options: &RunOptions,
    mut progress: impl FnMut(usize, usize),
) -> Result<Results, AssessError> {
    let labels = labels_for(model.task(), golden)?;
    let inputs = Inputs::of(golden, model.task());
    let n_steps = 2 * inputs.distinct.len();
    let ask = |idx: usize| {
        let (input, case) = &inputs.distinct[idx];
        ask_one(model, input).map_err(|source| AssessError::Task { case: (*case).to_owned(), source })
    };
    for idx in 0..inputs.distinct.len().min(N_WARM_UP) {
        ask(idx)?;
    }
    let mut singles = Vec::with_capacity(inputs.distinct.len());
    for idx in 0..inputs.distinct.len() {
        singles.push(ask(idx)?);
        progress(idx + 1, n_steps);
    }
    let (batched, seconds) = ask_all(model, &inputs.distinct)?;
    progress(n_steps, n_steps);
    let digests: Vec<Digest> = singles.iter().map(|single| single.answer.digest()).collect();
    let batch_invariant = digests.iter().copied().eq(batched.iter().map(Answer::digest));
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
        cases: cases.map(|(case, asked)| case_answer(case, asked, &singles)).collect::<Result<_, _>>()?,
        answers: answers_digest(inputs.of_case.iter().flatten().map(|&idx| digests[idx])),
        batch_invariant,
        speed: Speed {
            single_ms: singles.iter().map(|single| single.ms).collect(),
            inputs_per_s: inputs.distinct.len() as f64 / seconds,
            measured: format!(
                "each of {} inputs once, alone, after {N_WARM_UP} to warm up, tokenisation included, {} thread(s), {}; \
                 throughput in batches of up to 4096 tokens",
                inputs.distinct.len(),
                options.threads,
                std::env::consts::ARCH,
            ),
        },
    })
}

/// What is asked, each text once however many pairs hold it.
struct Inputs<'a> {
    distinct: Vec<(Input, &'a str)>,
    /// Positions in `distinct`: one a labelled text, two a pair; of a ranking one for each document, for an embedder the
    /// query's before them.
    of_case: Vec<Vec<usize>>,
}

impl<'a> Inputs<'a> {
    fn of(golden: &'a GoldenSet, task: &TaskKind) -> Self {
        let (mut distinct, mut seen) = (Vec::new(), HashMap::new());
        let mut of_case = Vec::with_capacity(golden.cases.len());
        for GoldenCase { case, input } in &golden.cases {
            let mut add = |input: Input| {
                distinct.push((input, case.id.as_str()));
                distinct.len() - 1
            };
            of_case.push(match input {
                GoldenInput::One(input) => vec![add(input.clone())],
                GoldenInput::Ranking { query, documents } if matches!(task, TaskKind::Rerank) => {
                    let pair = |document: &String| Input::Pair { query: query.clone(), document: document.clone() };
                    documents.iter().map(|document| add(pair(document))).collect()
                }
                GoldenInput::Pair(_) | GoldenInput::Ranking { .. } => texts(input)
                    .map(|text| *seen.entry(text).or_insert_with(|| add(Input::Text(text.to_owned()))))
                    .collect(),
            });
        }
        Self { distinct, of_case }
    }
}

/// The texts of a case that are embedded, each by itself.
pub(crate) fn texts(input: &GoldenInput) -> impl Iterator<Item = &str> {
    let (first, more): (&[String], &[String]) = match input {
        GoldenInput::One(_) => (&[], &[]),
        GoldenInput::Pair(texts) => (texts, &[]),
        GoldenInput::Ranking { query, documents } => (std::slice::from_ref(query), documents),
    };
    first.iter().chain(more).map(String::as_str)
}

struct Single {
    answer: Answer,
    truncated: bool,
    ms: f64,
}

fn ask_one(model: &impl Model, input: &Input) -> Result<Single, TaskError> {
    let start = Instant::now();
    let (answer, Truncated(truncated)) = model.answer_one(input)?;
    Ok(Single { answer, truncated, ms: start.elapsed().as_secs_f64() * 1e3 })
}

/// All answers, in order, and the seconds they took.
fn ask_all(model: &impl Model, distinct: &[(Input, &str)]) -> Result<(Vec<Answer>, f64), AssessError> {
    let inputs: Vec<Input> = distinct.iter().map(|(input, _)| input.clone()).collect();
    let start = Instant::now();
    let answers = model.answer_all(&inputs);
    let seconds = start.elapsed().as_secs_f64();
    let all = || format!("{} to {}", distinct[0].1, distinct[distinct.len() - 1].1);
    Ok((answers.map_err(|source| AssessError::Task { case: all(), source })?, seconds))
}

fn labels_for(task: &TaskKind, golden: &GoldenSet) -> Result<Vec<String>, AssessError> {
    let asked = match golden.cases[0].input {
        GoldenInput::One(_) => "labels",
        GoldenInput::Pair(_) => "similarities of pairs",
        GoldenInput::Ranking { .. } => "rankings of documents",
    };
    match (task, &golden.cases[0].input) {
        (TaskKind::Classify { labels, .. }, GoldenInput::One(_)) => Ok(labels.clone()),
        (TaskKind::Embed { .. }, GoldenInput::Pair(_) | GoldenInput::Ranking { .. })
        | (TaskKind::Rerank, GoldenInput::Ranking { .. }) => Ok(Vec::new()),
        (TaskKind::Classify { .. }, _) => Err(AssessError::OtherTask { package: "classify", golden: asked }),
        (TaskKind::Embed { .. }, _) => Err(AssessError::OtherTask { package: "embed", golden: asked }),
        (TaskKind::Rerank, _) => Err(AssessError::OtherTask { package: "rerank", golden: asked }),
        (_, _) => Err(AssessError::OtherTask { package: "something else", golden: asked }),
    }
}

fn case_answer(case: &GoldenCase, asked: &[usize], singles: &[Single]) -> Result<CaseAnswer, AssessError> {
    let answers: Vec<&Answer> = asked.iter().map(|&idx| &singles[idx].answer).collect();
    let value = match (&case.input, answers.as_slice()) {
        (GoldenInput::One(_), [Answer::Class { label, scores }]) => {
            Some(Value::Class { label: label.clone(), scores: scores.clone() })
        }
        (GoldenInput::Pair(_), [a, b]) => similarity(a, b).map(Value::Similarity),
        (GoldenInput::Ranking { .. }, [query @ Answer::Embedding { .. }, documents @ ..]) => {
            documents.iter().map(|document| similarity(query, document)).collect::<Option<_>>().map(Value::Scores)
        }
        (GoldenInput::Ranking { .. }, documents) => {
            documents.iter().map(|&answer| logit(answer)).collect::<Option<_>>().map(Value::Scores)
        }
        _ => None,
    };
    let value = value.ok_or_else(|| AssessError::OtherAnswer { case: case.case.id.clone() })?;
    Ok(CaseAnswer { id: case.case.id.clone(), value, truncated: asked.iter().any(|&idx| singles[idx].truncated) })
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
