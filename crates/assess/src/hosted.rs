//! Golden sets through a model that somebody else hosts.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::Instant;

use futures_util::{StreamExt as _, stream};
use highroad_eval::{Evidence, Generated, HostedCost, HostedEvidence, Likelihood};
use highroad_hosted::{
    Budget, Client, Hosted, HostedError, HostedTask, NO_LABEL, NUMERICS_ID, Question, Reply, Said, Tokens, about_text,
    answer_of, fill,
};
use highroad_package::{Digest, TaskKind};
use highroad_task::{Answer, Input};

use crate::run::{Asks, Inputs, case_answer};
use crate::{
    AssessError, CaseAnswer, Checked, GoldenCase, GoldenInput, GoldenKind, GoldenSet, KeptReplies, Message, Results,
    Speed, Truncated, Value, answers_digest,
};

/// Most different builds that a report lists.
const MOST_SERVED_BY: usize = 8;

/// A model behind an API, ready to be asked.
#[derive(Debug)]
pub struct HostedModel {
    client: Client,
    runtime: tokio::runtime::Runtime,
}

/// A question and the case that asks it first.
pub(crate) struct Asking<'a> {
    pub(crate) case: &'a str,
    pub(crate) question: Question,
}

/// Replies to questions, in order.
pub(crate) struct Asked {
    pub(crate) replies: Vec<Reply>,
    pub(crate) evidence: HostedEvidence,
    /// Of the questions that were asked now.
    per_s: f64,
}

impl HostedModel {
    /// The model that the file at `path` describes, with its key.
    pub fn open(path: &Path) -> Result<Self, AssessError> {
        Self::new(Hosted::read(path)?)
    }

    /// The same of a description.
    pub fn new(hosted: Hosted) -> Result<Self, AssessError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AssessError::Runtime)?;
        Ok(Self { client: Client::new(hosted)?, runtime })
    }

    /// What it is.
    pub fn hosted(&self) -> &Hosted {
        self.client.hosted()
    }

    /// Stands for a package's digest.
    pub fn digest(&self) -> Digest {
        self.hosted().digest()
    }

    /// Asks what `kept` does not hold, equal questions once, and keeps each answer as it comes. Where one gets none, those
    /// under way are waited for and kept, and nothing new is asked.
    pub(crate) fn ask_all(
        &self,
        askings: &[Asking<'_>],
        kept: &mut KeptReplies,
        budget: &Budget,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Asked, AssessError> {
        let digests: Vec<Digest> = askings.iter().map(|asking| asking.question.digest()).collect();
        let mut replies: HashMap<Digest, Reply> = HashMap::new();
        for digest in &digests {
            replies.extend(kept.get(digest)?.map(|reply| (*digest, reply)));
        }
        let n_kept = replies.len();
        let mut seen = BTreeSet::new();
        let missing: Vec<usize> = (0..askings.len())
            .filter(|&idx| !replies.contains_key(&digests[idx]) && seen.insert(digests[idx]))
            .collect();
        let start = Instant::now();
        let new = self.ask_missing(askings, &missing, budget, |idx, reply| {
            kept.put(digests[idx], &reply)?;
            replies.insert(digests[idx], reply);
            progress(replies.len() - n_kept, missing.len());
            Ok(())
        });
        let (n_answered, n_questions) = (replies.len(), n_kept + missing.len());
        new.map_err(|failed| match failed {
            Failure::Host(idx, source) => {
                AssessError::Hosted { case: askings[idx].case.to_owned(), n_answered, n_questions, source }
            }
            Failure::Kept(error) => error,
        })?;
        let of_now = missing.iter().filter_map(|&idx| replies.get(&digests[idx]));
        let evidence = self.evidence(replies.values(), of_now, n_kept);
        let per_s = if missing.is_empty() { 0.0 } else { missing.len() as f64 / start.elapsed().as_secs_f64() };
        let replies = digests.iter().map(|digest| replies.get(digest).expect("every question was answered").clone());
        Ok(Asked { replies: replies.collect(), evidence, per_s })
    }

    fn ask_missing(
        &self,
        askings: &[Asking<'_>],
        missing: &[usize],
        budget: &Budget,
        mut answered: impl FnMut(usize, Reply) -> Result<(), AssessError>,
    ) -> Result<(), Failure> {
        let stopped = Cell::new(false);
        let ask = async |&idx: &usize| {
            if stopped.get() {
                return None;
            }
            let answer = self.client.ask(&askings[idx].question, budget).await;
            stopped.set(stopped.get() || answer.is_err());
            Some((idx, answer))
        };
        let concurrency = self.hosted().limits.concurrency.get() as usize;
        let mut failure = None;
        self.runtime.block_on(async {
            let mut coming = std::pin::pin!(stream::iter(missing).map(ask).buffer_unordered(concurrency));
            while let Some(come) = coming.next().await {
                let Some((idx, answer)) = come else { continue };
                let done = match answer {
                    Ok(reply) => answered(idx, reply).map_err(Failure::Kept),
                    Err(error) => Err(Failure::Host(idx, error)),
                };
                if let Err(first) = done {
                    stopped.set(true);
                    failure.get_or_insert(first);
                }
            }
        });
        failure.map_or(Ok(()), Err)
    }

    fn evidence<'a>(
        &self,
        all: impl Iterator<Item = &'a Reply>,
        of_now: impl Iterator<Item = &'a Reply>,
        n_kept: usize,
    ) -> HostedEvidence {
        let Hosted { model, base_url, price, .. } = self.hosted();
        let mut evidence =
            HostedEvidence { model: model.clone(), base_url: base_url.clone(), n_kept, ..HostedEvidence::default() };
        let mut served_by = BTreeSet::new();
        for reply in all {
            evidence.n_questions += 1;
            evidence.n_retries += u64::from(reply.n_tries.saturating_sub(1));
            evidence.n_cut += usize::from(matches!(reply.said, Said::Text { cut: true, .. }));
            evidence.n_uncounted += usize::from(reply.usage.is_none());
            let tokens = tokens(reply);
            evidence.input_tokens += tokens.input;
            evidence.output_tokens += tokens.output;
            served_by.extend(reply.served_by.clone());
        }
        evidence.served_by = served_by.into_iter().take(MOST_SERVED_BY).collect();
        let sent = Tokens { input: evidence.input_tokens, output: evidence.output_tokens };
        evidence.cost = price.as_ref().map(|price| HostedCost {
            currency: price.currency.clone(),
            of_answers: price.of(sent),
            of_this_run: of_now.map(|reply| price.of(tokens(reply))).sum(),
        });
        evidence
    }
}

enum Failure {
    Host(usize, HostedError),
    Kept(AssessError),
}

fn tokens(reply: &Reply) -> Tokens {
    reply.usage.map_or_else(Tokens::default, |usage| Tokens { input: usage.input, output: usage.output })
}

/// Answers every case of `golden`: what `kept` does not hold is asked, as many at once as the description says, each timed.
/// `progress` is called with the number of questions answered and in all.
pub fn run_hosted(
    model: &HostedModel,
    golden: &GoldenSet,
    kept: &mut KeptReplies,
    budget: &Budget,
    progress: impl FnMut(usize, usize),
) -> Result<Results, AssessError> {
    check_kind(model.hosted().task, golden.kind())?;
    match model.hosted().task {
        HostedTask::Generate => generate(model, golden, kept, budget, progress),
        HostedTask::Rerank => rerank(model, golden, kept, budget, progress),
        HostedTask::Classify | HostedTask::Moderate | HostedTask::Embed | HostedTask::Infer => {
            answer_inputs(model, golden, kept, budget, progress)
        }
    }
}

fn check_kind(task: HostedTask, kind: GoldenKind) -> Result<(), AssessError> {
    use GoldenKind::{Labels, Rankings, Similarities, Tensors, Texts, Triplets};
    let (package, fits) = match task {
        HostedTask::Generate => ("write", kind == Texts),
        HostedTask::Classify | HostedTask::Moderate => ("classify", kind == Labels),
        HostedTask::Embed => ("embed", matches!(kind, Similarities | Triplets | Rankings)),
        HostedTask::Rerank => ("rerank", kind == Rankings),
        HostedTask::Infer => ("compute tensors", kind == Tensors),
    };
    if fits { Ok(()) } else { Err(AssessError::OtherTask { package, golden: kind.in_words() }) }
}

fn generate(
    model: &HostedModel,
    golden: &GoldenSet,
    kept: &mut KeptReplies,
    budget: &Budget,
    progress: impl FnMut(usize, usize),
) -> Result<Results, AssessError> {
    let samples = model.hosted().samples.get();
    let mut askings = Vec::new();
    for (idx, case) in golden.cases.iter().enumerate() {
        let input = golden.input(idx)?;
        let GoldenInput::Prompt(messages) = &*input else { continue };
        let question = |sample| conversation(model.hosted(), messages, sample);
        askings.extend((0..samples).map(|sample| Asking { case: &case.case.id, question: question(sample) }));
    }
    let asked = model.ask_all(&askings, kept, budget, progress)?;
    let generated = asked.replies.chunks(samples as usize).map(generated).collect::<Option<Vec<_>>>();
    let generated = generated.ok_or_else(|| other_answer(golden))?;
    let digests = generated.iter().map(|generated| digest_of_texts(&generated.texts));
    let answers = answers_digest(digests);
    let cases = golden.cases.iter().zip(generated).map(|(case, generated)| CaseAnswer {
        id: case.case.id.clone(),
        value: Value::Generated(generated),
        truncated: false,
    });
    Ok(results(model, golden, cases.collect(), answers, Vec::new(), asked))
}

/// What is asked for the messages of a case.
pub(crate) fn conversation(hosted: &Hosted, messages: &[Message], sample: u32) -> Question {
    let has_system = messages.iter().any(|message| message.role == "system");
    let system = hosted.system.as_deref().filter(|_| !has_system).map(|text| ("system", text));
    let last = messages.last().map_or("", |last| last.content.as_str());
    let prompt = hosted.prompt.as_ref().map(|prompt| fill(prompt, &[("input", last)]));
    let mut turns: Vec<(&str, &str)> = system.into_iter().collect();
    turns.extend(messages.iter().map(|message| (message.role.as_str(), message.content.as_str())));
    if let (Some(prompt), Some(last)) = (&prompt, turns.last_mut()) {
        last.1 = prompt;
    }
    Question::chat(hosted, &turns, sample, None)
}

/// The texts of one case; only the first says how likely it was.
fn generated(replies: &[Reply]) -> Option<Generated> {
    let text = |reply: &Reply| if let Said::Text { text, .. } = &reply.said { Some(text.clone()) } else { None };
    let likelihood = match &replies.first()?.said {
        Said::Text { likelihood, .. } => {
            likelihood.map(|(log_probability, n_tokens)| Likelihood { log_probability, n_tokens })
        }
        _ => None,
    };
    Some(Generated { likelihood, ..Generated::texts(replies.iter().map(text).collect::<Option<_>>()?) })
}

fn digest_of_texts(texts: &[String]) -> Digest {
    Digest::of(&serde_json::to_vec(texts).expect("texts are JSON"))
}

/// A reply of another kind than was asked for: only a file of kept replies that somebody wrote can hold one.
fn other_answer(golden: &GoldenSet) -> AssessError {
    AssessError::OtherAnswer { case: golden.cases[0].case.id.clone() }
}

fn rerank(
    model: &HostedModel,
    golden: &GoldenSet,
    kept: &mut KeptReplies,
    budget: &Budget,
    progress: impl FnMut(usize, usize),
) -> Result<Results, AssessError> {
    let mut askings = Vec::new();
    for (idx, case) in golden.cases.iter().enumerate() {
        let input = golden.input(idx)?;
        let GoldenInput::Ranking { query, documents } = &*input else { continue };
        let question = Question::documents(model.hosted(), query, documents);
        let question = question.map_err(|reason| AssessError::Hosted {
            case: case.case.id.clone(),
            n_answered: 0,
            n_questions: golden.cases.len(),
            source: HostedError::Input(reason),
        })?;
        askings.push(Asking { case: &case.case.id, question });
    }
    let asked = model.ask_all(&askings, kept, budget, progress)?;
    let case = |(case, reply): (&GoldenCase, &Reply)| match &reply.said {
        Said::Relevances { scores } => {
            Some(CaseAnswer { id: case.case.id.clone(), value: Value::Scores(scores.clone()), truncated: false })
        }
        _ => None,
    };
    let cases: Option<Vec<CaseAnswer>> = golden.cases.iter().zip(&asked.replies).map(case).collect();
    let digest = |reply: &Reply| Digest::of(&serde_json::to_vec(&reply.said).expect("a reply is plain data"));
    let answers = answers_digest(asked.replies.iter().map(digest));
    Ok(results(model, golden, cases.ok_or_else(|| other_answer(golden))?, answers, Vec::new(), asked))
}

/// Labels or vectors of single texts, each text asked once; or what becomes of tensors.
fn answer_inputs(
    model: &HostedModel,
    golden: &GoldenSet,
    kept: &mut KeptReplies,
    budget: &Budget,
    progress: impl FnMut(usize, usize),
) -> Result<Results, AssessError> {
    let hosted = model.hosted();
    let task = match hosted.task {
        HostedTask::Infer => TaskKind::Tensors,
        _ => TaskKind::Embed { dimensions: 0, normalized: false, matryoshka_dimensions: Vec::new() },
    };
    let inputs = Inputs::of(golden, Asks::plainly(&task), 0..golden.cases.len())?;
    let mut askings = Vec::with_capacity(inputs.len());
    for idx in 0..inputs.len() {
        for asked in inputs.asked(&[idx])? {
            let case = asked.case;
            let question = match &asked.input {
                Input::Text(text) => about_text(hosted, text),
                Input::Tensors(arrays) => Question::tensors(hosted, arrays),
                Input::Image(_) => return Err(AssessError::HostedImage { case: case.to_owned() }),
                _ => return Err(AssessError::Tokens { case: case.to_owned() }),
            };
            let question = question.map_err(|reason| AssessError::Hosted {
                case: case.to_owned(),
                n_answered: 0,
                n_questions: inputs.len(),
                source: HostedError::Input(reason),
            })?;
            askings.push(Asking { case, question });
        }
    }
    let asked = model.ask_all(&askings, kept, budget, progress)?;
    let mut labels = hosted.labels.clone();
    let read: Option<Vec<Answer>> = asked.replies.iter().map(|reply| answer_of(hosted, &reply.said)).collect();
    let read = read.ok_or_else(|| other_answer(golden))?;
    if read.iter().any(|answer| matches!(answer, Answer::Class { label, .. } if label == NO_LABEL)) {
        labels.push(NO_LABEL.to_owned());
    }
    let n_labels = labels.len();
    let padded = |answer| match answer {
        Answer::Class { label, mut scores } => {
            // One that named no label is certain of that.
            scores.resize(n_labels, if label == NO_LABEL { 1.0 } else { 0.0 });
            Answer::Class { label, scores }
        }
        other => other,
    };
    let given: Vec<(Answer, Truncated)> = read.into_iter().map(|answer| (padded(answer), Truncated(false))).collect();
    let of_case = |positions: &[u32]| positions.iter().map(|&idx| given[idx as usize].clone()).collect::<Vec<_>>();
    let cases = golden.cases.iter().zip(inputs.positions());
    let cases = cases.map(|(case, positions)| case_answer(case, &of_case(positions))).collect::<Result<_, _>>()?;
    let answers = answers_digest(inputs.positions().flatten().map(|&idx| given[idx as usize].0.digest()));
    Ok(results(model, golden, cases, answers, labels, asked))
}

fn results(
    model: &HostedModel,
    golden: &GoldenSet,
    cases: Vec<CaseAnswer>,
    answers: Digest,
    labels: Vec<String>,
    asked: Asked,
) -> Results {
    let Asked { replies, evidence, per_s } = asked;
    let limits = &model.hosted().limits;
    Results {
        highroad_results: 1,
        package: model.digest(),
        golden_set: highroad_eval::GoldenSet {
            name: golden.name.clone(),
            digest: golden.digest.to_string(),
            n_cases: golden.cases.len(),
        },
        numerics_id: NUMERICS_ID.to_owned(),
        evidence: Evidence::Observed,
        labels,
        cases,
        answers,
        // Nothing was asked in batches.
        batch_invariant: true,
        checked: Checked { n_inputs: evidence.n_questions, n_kept: evidence.n_kept, n_alone: 0 },
        speed: Speed {
            single_ms: replies.iter().map(|reply| reply.ms).collect(),
            inputs_per_s: per_s,
            gpu_s_per_1000: None,
            measured: format!(
                "{} requests to the host, up to {} at once, from sending to the whole reply, the network included, waits \
                 between tries not; kept ones as they were measured",
                replies.len(),
                limits.concurrency
            ),
        },
        hosted: Some(evidence),
    }
}
