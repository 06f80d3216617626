use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::time::Instant;

use highroad_data::in_parallel;
use highroad_eval::{Array, Evidence, Expected, Generated};
use highroad_package::{Digest, TaskKind};
use highroad_task::{Answer, Input, OutputTensor, Predictor, Prompt, Purpose, TaskError, joined};
use sha2::{Digest as _, Sha256};

use crate::kept::{Kept, KeptAnswers};
use crate::results::AnswersDigest;
use crate::{
    AssessError, CaseAnswer, Checked, GoldenCase, GoldenInput, GoldenKind, GoldenSet, JoinError, Joined, Results,
    Shard, ShardAnswers, Speed, Value, answers_digest,
};

/// What answers a golden set: a package in this process, later also an engine outside it.
pub trait Model {
    /// Digest of the package.
    fn package(&self) -> Digest;
    /// What it is made to.
    fn task(&self) -> &TaskKind;
    /// Whether prompts go before the texts that it embeds: queries, documents, and those that a golden set names.
    fn has_prompts(&self) -> bool {
        false
    }
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

    fn has_prompts(&self) -> bool {
        !self.manifest().task.prompts.is_empty()
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
        // The cores that compute a batch would wait for a tokenizer on one of them.
        let chunks: Vec<&[Input]> = inputs.chunks(TOKENISED_AT_ONCE).collect();
        let prepare = |idx: usize| chunks[idx].iter().map(|input| self.prepare(input)).collect::<Result<Vec<_>, _>>();
        let prepared = in_parallel(chunks.len(), self.options().threads.get(), prepare);
        let prepared: Vec<_> = prepared.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
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

/// Inputs that one thread tokenises at a time.
const TOKENISED_AT_ONCE: usize = 64;
/// Inputs asked before timing begins, so that caches and the kernels' threads are warm.
const N_WARM_UP: usize = 5;
/// How many inputs are answered between two times that answers are kept: first, at least, at most.
const FIRST_CHUNK: usize = 256;
const CHUNKS: RangeInclusive<usize> = 64..=8192;
/// Most bytes of texts and images that are asked at once.
const MAX_CHUNK_BYTES: usize = 64 << 20;
/// Most bytes of the tensors that answer a case: those of a chunk are in memory together, and kept as a line each.
const MAX_OUTPUT_BYTES: usize = 16 << 20;
/// What an image takes at least while it is asked: its pixels in f32, about 600 KB at 224 × 224. As much is set aside for what becomes of
/// tensors.
const IMAGE_BYTES: usize = 1 << 20;
/// Most different inputs of a golden set: some 100 bytes of each are held.
const MAX_INPUTS: usize = 100_000_000;
/// About how long such a chunk should take: what a killed run loses. Inputs of one chunk are put into batches by length, so small
/// chunks are padded more: with 3 seconds of a MiniLM's work an evaluation answers an eighth less than with 8,192 inputs.
const CHUNK_SECONDS: f64 = 10.0;

/// Answers every case of `golden`: what `kept` does not hold in batches, timed as a whole; then `n_alone` inputs, spread over
/// the set, alone and timed, comparing their bits.
///
/// Where one differs, nothing kept is trusted and every input is asked alone, so that `kept` never decides what a single
/// input would not; unless the model promises no such bits. `progress` is called with the stage, and the number of its inputs done and in all.
///
/// Texts and answers are in memory a chunk at a time; of each case its result stays, and of each input two digests' worth.
pub fn run(
    model: &impl Model,
    golden: &GoldenSet,
    options: &RunOptions,
    kept: &mut KeptAnswers,
    mut progress: impl FnMut(Stage, usize, usize),
) -> Result<Results, AssessError> {
    let labels = labels_for(model.task(), golden)?;
    let inputs = Inputs::of(golden, Asks::of(model), 0..golden.cases.len())?;
    let run = answer_and_check(model, &inputs, options, kept, &mut progress)?;
    let mut all = AnswersDigest::default();
    let cases = inputs.answers(kept, |digest| all.add(digest))?;
    Ok(results(model, &inputs, labels, options, &run, (cases, all.finish())))
}

/// The same for the cases of one shard, to be [joined](Joined) with the others. Errors if the shard has no case.
pub fn run_shard(
    model: &impl Model,
    golden: &GoldenSet,
    shard: Shard,
    options: &RunOptions,
    kept: &mut KeptAnswers,
    mut progress: impl FnMut(Stage, usize, usize),
) -> Result<ShardAnswers, AssessError> {
    let (labels, n_cases) = (labels_for(model.task(), golden)?, golden.cases.len());
    let cases = shard.cases(n_cases);
    if cases.is_empty() {
        return Err(JoinError::TooMany { n_cases, shard }.into());
    }
    let inputs = Inputs::of(golden, Asks::of(model), cases)?;
    let run = answer_and_check(model, &inputs, options, kept, &mut progress)?;
    let mut answer_digests = Vec::with_capacity(inputs.of_cases.len());
    let cases = inputs.answers(kept, |digest| answer_digests.push(digest))?;
    let answers = answers_digest(answer_digests.iter().copied());
    let results = results(model, &inputs, labels, options, &run, (cases, answers));
    Ok(ShardAnswers { highroad_shard: 1, shard, answer_digests, results })
}

/// The results of shards as if this run had answered them: `n_alone` inputs, spread over the set, are asked alone and timed.
///
/// Errors if the shards are another package's or of another numerics id, or if one of those inputs gets other bits here.
pub fn run_joined(
    model: &impl Model,
    golden: &GoldenSet,
    joined: Joined,
    options: &RunOptions,
    mut progress: impl FnMut(Stage, usize, usize),
) -> Result<Results, AssessError> {
    let Joined { results: told, answer_digests } = joined;
    let (expected, numerics_id) = (model.package(), model.numerics_id());
    if told.package != expected {
        return Err(JoinError::OtherPackage { expected, found: told.package }.into());
    }
    if told.numerics_id != numerics_id {
        return Err(JoinError::OtherNumerics { expected: numerics_id, found: told.numerics_id }.into());
    }
    let labels = labels_for(model.task(), golden)?;
    let inputs = Inputs::of(golden, Asks::of(model), 0..golden.cases.len())?;
    if inputs.of_cases.len() != answer_digests.len() || labels != told.labels {
        return Err(AssessError::OtherCases);
    }
    let sample = spread(inputs.len(), options.n_alone.get());
    let asked = inputs.asked(&sample)?;
    let alone = ask_alone(model, &asked, |n_done| progress(Stage::Timing, n_done, sample.len()))?;
    for ((&idx, asked), single) in sample.iter().zip(&asked).zip(&alone) {
        if answer_digests[inputs.first_place(idx)] != single.kept.0.digest() {
            return Err(JoinError::OtherBits { case: asked.case.to_owned() }.into());
        }
    }
    let (batch, seconds) = ask_batch(model, &asked)?;
    let run = Run {
        n_kept: inputs.len(),
        inputs_per_s: batch.len() as f64 / seconds,
        gpu_s_per_input: None,
        single_ms: alone.iter().map(|single| single.ms).collect(),
        batch_invariant: told.batch_invariant,
        n_alone: sample.len(),
    };
    Ok(results(model, &inputs, labels, options, &run, (told.cases, told.answers)))
}

/// What a run has found out, but for the answers.
struct Run {
    n_kept: usize,
    inputs_per_s: f64,
    gpu_s_per_input: Option<f64>,
    single_ms: Vec<f64>,
    batch_invariant: bool,
    n_alone: usize,
}

/// Has `kept` hold an answer to every input that a single input would get.
fn answer_and_check(
    model: &impl Model,
    inputs: &Inputs<'_>,
    options: &RunOptions,
    kept: &mut KeptAnswers,
    progress: &mut impl FnMut(Stage, usize, usize),
) -> Result<Run, AssessError> {
    let n_inputs = inputs.len();
    let Answered { mut n_kept, mut inputs_per_s, gpu_s_per_input } = answer(model, inputs, kept, progress)?;
    let sample = spread(n_inputs, options.n_alone.get());
    let asked = inputs.asked(&sample)?;
    let alone = ask_alone(model, &asked, |n_done| progress(Stage::Timing, n_done, sample.len()))?;
    let (mut batch_invariant, mut n_alone) = (true, sample.len());
    let is_sound = {
        let answers = sample.iter().map(|&idx| inputs.answer(kept, idx)).collect::<Result<Vec<_>, _>>()?;
        alone.iter().zip(&answers).all(|(single, answer)| same_bits(&single.kept, answer))
    };
    if !is_sound || inputs_per_s.is_none() {
        let (batch, seconds) = ask_batch(model, &asked)?;
        inputs_per_s.get_or_insert(batch.len() as f64 / seconds);
        batch_invariant = alone.iter().zip(&batch).all(|(single, answer)| same_bits(&single.kept, answer));
    }
    if !is_sound && model.promises_bits() {
        kept.forget()?;
        answer_alone(model, inputs, kept, progress)?;
        (n_kept, n_alone) = (0, n_inputs);
    }
    let single_ms = alone.iter().map(|single| single.ms).collect();
    let inputs_per_s = inputs_per_s.unwrap_or(0.0);
    Ok(Run { n_kept, inputs_per_s, gpu_s_per_input, single_ms, batch_invariant, n_alone })
}

fn results(
    model: &impl Model,
    inputs: &Inputs<'_>,
    labels: Vec<String>,
    options: &RunOptions,
    run: &Run,
    (cases, answers): (Vec<CaseAnswer>, Digest),
) -> Results {
    let (golden, n_inputs) = (inputs.golden, inputs.len());
    Results {
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
        cases,
        answers,
        batch_invariant: run.batch_invariant,
        checked: Checked { n_inputs, n_kept: run.n_kept, n_alone: run.n_alone },
        speed: Speed {
            single_ms: run.single_ms.clone(),
            inputs_per_s: run.inputs_per_s,
            gpu_s_per_1000: run.gpu_s_per_input.map(|seconds| 1000.0 * seconds),
            measured: format!(
                "{} of {n_inputs} inputs once, alone, after {N_WARM_UP} to warm up, tokenisation included, {} thread(s), \
                 {}; throughput in batches of up to 4096 tokens",
                run.single_ms.len(),
                options.threads,
                std::env::consts::ARCH,
            ),
        },
        hosted: None,
    }
}

fn same_bits(left: &Kept, right: &Kept) -> bool {
    left.0.digest() == right.0.digest()
}

/// What it took to have every answer.
struct Answered {
    n_kept: usize,
    /// Of the inputs that were not kept; `None` if all were.
    inputs_per_s: Option<f64>,
    /// The same of a GPU's seconds for each.
    gpu_s_per_input: Option<f64>,
}

/// Answers what `kept` does not hold, in batches, and keeps it.
fn answer(
    model: &impl Model,
    inputs: &Inputs<'_>,
    kept: &mut KeptAnswers,
    progress: &mut impl FnMut(Stage, usize, usize),
) -> Result<Answered, AssessError> {
    let missing: Vec<usize> = (0..inputs.len()).filter(|&idx| !kept.holds(&inputs.digests[idx])).collect();
    let (mut n_done, mut n_next, mut seconds) = (0, FIRST_CHUNK, 0.0);
    let gpu_s_before = model.gpu_s();
    while n_done < missing.len() {
        let asked = inputs.asked_up_to(&missing[n_done..missing.len().min(n_done + n_next)], MAX_CHUNK_BYTES)?;
        let (batch, took) = ask_batch(model, &asked)?;
        let chunk = &missing[n_done..n_done + asked.len()];
        kept.put(chunk.iter().map(|&idx| inputs.digests[idx]).zip(&batch))?;
        n_done += chunk.len();
        seconds += took;
        n_next = ((CHUNK_SECONDS * n_done as f64 / seconds) as usize).clamp(*CHUNKS.start(), *CHUNKS.end());
        progress(Stage::Answering, n_done, missing.len());
    }
    let was_asked = n_done > 0;
    let gpu_s = gpu_s_before.zip(model.gpu_s()).filter(|_| was_asked).map(|(before, after)| after - before);
    Ok(Answered {
        n_kept: inputs.len() - missing.len(),
        inputs_per_s: was_asked.then(|| n_done as f64 / seconds),
        gpu_s_per_input: gpu_s.map(|seconds| seconds / n_done as f64),
    })
}

/// Answers every input by itself.
fn answer_alone(
    model: &impl Model,
    inputs: &Inputs<'_>,
    kept: &mut KeptAnswers,
    progress: &mut impl FnMut(Stage, usize, usize),
) -> Result<(), AssessError> {
    let all: Vec<usize> = (0..inputs.len()).collect();
    for chunk in all.chunks(FIRST_CHUNK) {
        let singles = ask_alone(model, &inputs.asked(chunk)?, |_| ())?;
        let answers: Vec<Kept> = singles.into_iter().map(|single| single.kept).collect();
        kept.put(chunk.iter().map(|&idx| inputs.digests[idx]).zip(&answers))?;
        progress(Stage::Timing, chunk[0] + chunk.len(), all.len());
    }
    Ok(())
}

/// At most `n_most` of `n` positions, evenly spread.
pub(crate) fn spread(n: usize, n_most: usize) -> Vec<usize> {
    let n_picked = n.min(n_most);
    (0..n_picked).map(|picked| picked * n / n_picked).collect()
}

/// What a range of cases asks, each text once however many pairs hold it; the texts themselves stay in the golden set.
pub(crate) struct Inputs<'a> {
    golden: &'a GoldenSet,
    asks: Asks<'a>,
    cases: Range<usize>,
    /// Of each different input.
    digests: Vec<Digest>,
    /// The case that asks it first, and which of that case's inputs it is.
    places: Vec<[u32; 2]>,
    /// Positions in `digests`: one a labelled text, two a pair, three a triplet; of a ranking one for each document, for an
    /// embedder the query's before them.
    of_cases: Vec<u32>,
    /// Where each case's positions end.
    ends: Vec<usize>,
}

/// One input and a case that asks it.
pub(crate) struct Asked<'a> {
    pub(crate) input: Input,
    pub(crate) case: &'a str,
}

/// What decides what a model is asked in a case.
#[derive(Clone, Copy)]
pub(crate) struct Asks<'a> {
    task: &'a TaskKind,
    has_prompts: bool,
}

impl<'a> Asks<'a> {
    pub(crate) fn of(model: &'a impl Model) -> Self {
        Self { task: model.task(), has_prompts: model.has_prompts() }
    }

    /// Of a model that knows no prompts.
    pub(crate) fn plainly(task: &'a TaskKind) -> Self {
        Self { task, has_prompts: false }
    }
}

#[derive(Clone)]
enum Borrowed<'a> {
    Text(&'a str),
    Prompted(&'a str, Prompt),
    Tokens(&'a [u32]),
    Pair { query: &'a str, document: &'a str },
    Image(&'a Arc<[u8]>),
    Tensors(&'a BTreeMap<String, Array>),
}

impl<'a> From<&'a Input> for Borrowed<'a> {
    fn from(input: &'a Input) -> Self {
        match input {
            Input::Text(text) => Self::Text(text),
            Input::Prompted { text, prompt } => Self::Prompted(text, prompt.clone()),
            Input::Tokens(ids) => Self::Tokens(ids),
            Input::Pair { query, document } => Self::Pair { query, document },
            Input::Image(bytes) => Self::Image(bytes),
            Input::Tensors(arrays) => Self::Tensors(arrays),
        }
    }
}

impl Borrowed<'_> {
    fn into_input(self) -> Input {
        match self {
            Self::Text(text) => Input::Text(text.to_owned()),
            Self::Prompted(text, prompt) => Input::Prompted { text: text.to_owned(), prompt },
            Self::Tokens(ids) => Input::Tokens(ids.to_vec()),
            Self::Pair { query, document } => Input::Pair { query: query.to_owned(), document: document.to_owned() },
            Self::Image(bytes) => Input::Image(Arc::clone(bytes)),
            Self::Tensors(arrays) => Input::Tensors(arrays.clone()),
        }
    }

    fn n_bytes(&self) -> usize {
        match self {
            Self::Text(text) | Self::Prompted(text, _) => text.len(),
            Self::Tokens(ids) => 4 * ids.len(),
            Self::Pair { query, document } => query.len() + document.len(),
            Self::Image(bytes) => bytes.len().max(IMAGE_BYTES),
            Self::Tensors(arrays) => {
                arrays.values().map(|array| 8 * array.values().len()).sum::<usize>().max(IMAGE_BYTES)
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
        match self {
            Self::Text(of) => text("text", of.as_bytes()),
            Self::Prompted(of, prompt) => {
                text("prompt", &serde_json::to_vec(prompt).expect("a name is JSON"));
                text("text", of.as_bytes());
            }
            Self::Tokens(ids) => text("tokens", &ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>()),
            Self::Image(bytes) => text("image", bytes),
            Self::Tensors(arrays) => text("tensors", &serde_json::to_vec(arrays).expect("arrays are JSON")),
            Self::Pair { query, document } => {
                text("query", query.as_bytes());
                text("document", document.as_bytes());
            }
        }
        Digest::finish(hasher)
    }
}

/// What a model is asked in a case, in order. Of one with prompts, what a ranking seeks and what it finds are asked as that, unless
/// the case names the prompt of what it seeks; both texts of a pair and all of a triplet have the one that the case names.
fn asked_of<'a>(input: &'a GoldenInput, case: &GoldenCase, asks: Asks<'_>) -> Vec<Borrowed<'a>> {
    let named = case.prompt_name.clone().map(Prompt::Named).filter(|_| asks.has_prompts);
    match input {
        GoldenInput::One(input) => vec![input.into()],
        GoldenInput::Ranking { query, documents } if matches!(asks.task, TaskKind::Rerank) => {
            documents.iter().map(|document| Borrowed::Pair { query, document }).collect()
        }
        GoldenInput::Ranking { query, documents } if asks.has_prompts => {
            let query = Borrowed::Prompted(query, named.unwrap_or(Prompt::For(Purpose::Query)));
            let document = |text: &'a String| Borrowed::Prompted(text, Prompt::For(Purpose::Document));
            std::iter::once(query).chain(documents.iter().map(document)).collect()
        }
        GoldenInput::Pair(_) | GoldenInput::Triplet(_) | GoldenInput::Ranking { .. } => {
            let asked = |text| match &named {
                Some(prompt) => Borrowed::Prompted(text, prompt.clone()),
                None => Borrowed::Text(text),
            };
            texts(input).map(asked).collect()
        }
        // No package's task writes: `labels_for` has refused the golden set.
        GoldenInput::Prompt(_) => Vec::new(),
    }
}

impl<'a> Inputs<'a> {
    pub(crate) fn of(golden: &'a GoldenSet, asks: Asks<'a>, cases: Range<usize>) -> Result<Self, AssessError> {
        let mut this = Self {
            golden,
            asks,
            cases: cases.clone(),
            digests: Vec::new(),
            places: Vec::new(),
            of_cases: Vec::new(),
            ends: Vec::new(),
        };
        // Labelled texts and documents beside their query are asked as often as they occur.
        let once = matches!(asks.task, TaskKind::Embed { .. });
        let mut seen: HashMap<Digest, u32> = HashMap::new();
        for case in cases {
            for (place, input) in asked_of(&*golden.input(case)?, &golden.cases[case], asks).into_iter().enumerate() {
                let digest = input.digest();
                let known = seen.get(&digest).copied();
                let position = match known {
                    Some(position) => position,
                    None => this.add(digest, [case as u32, place as u32])?,
                };
                if once {
                    seen.insert(digest, position);
                }
                this.of_cases.push(position);
            }
            this.ends.push(this.of_cases.len());
        }
        Ok(this)
    }

    fn add(&mut self, digest: Digest, place: [u32; 2]) -> Result<u32, AssessError> {
        if self.digests.len() == MAX_INPUTS {
            return Err(AssessError::TooManyInputs { limit: MAX_INPUTS });
        }
        self.digests.push(digest);
        self.places.push(place);
        Ok(self.digests.len() as u32 - 1)
    }

    /// Of each case, where its inputs stand among the different ones.
    pub(crate) fn positions(&self) -> impl Iterator<Item = &[u32]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.of_cases[start..end])
    }

    /// Digest of an input, by which its answer is kept.
    pub(crate) fn digest(&self, idx: usize) -> &Digest {
        &self.digests[idx]
    }

    /// Number of different inputs.
    pub(crate) fn len(&self) -> usize {
        self.digests.len()
    }

    pub(crate) fn asked(&self, idxs: &[usize]) -> Result<Vec<Asked<'a>>, AssessError> {
        self.asked_up_to(idxs, usize::MAX)
    }

    /// The inputs at `idxs`, or at least one and as many of them as have `most_bytes`.
    fn asked_up_to(&self, idxs: &[usize], most_bytes: usize) -> Result<Vec<Asked<'a>>, AssessError> {
        let (mut asked, mut n_bytes) = (Vec::with_capacity(idxs.len()), 0);
        // Inputs of one case follow each other, so that each case is read once.
        for chunk in idxs.chunk_by(|&left, &right| self.places[left][0] == self.places[right][0]) {
            let case = self.places[chunk[0]][0] as usize;
            let input = self.golden.input(case)?;
            let inputs = asked_of(&input, &self.golden.cases[case], self.asks);
            for &idx in chunk {
                let input = inputs[self.places[idx][1] as usize].clone();
                n_bytes += input.n_bytes();
                if n_bytes > most_bytes && !asked.is_empty() {
                    return Ok(asked);
                }
                asked.push(Asked { input: input.into_input(), case: &self.golden.cases[case].case.id });
            }
        }
        Ok(asked)
    }

    fn answer(&self, kept: &KeptAnswers, idx: usize) -> Result<Kept, AssessError> {
        Ok(kept.get(&self.digests[idx])?.expect("every input has been answered"))
    }

    /// Where input `idx` stands first in the order of the cases.
    fn first_place(&self, idx: usize) -> usize {
        let [case, place] = self.places[idx].map(|number| number as usize);
        let case = case - self.cases.start;
        place + if case == 0 { 0 } else { self.ends[case - 1] }
    }

    /// The result of each case; `take` is called with the digest of each answer, in order.
    fn answers(&self, kept: &KeptAnswers, mut take: impl FnMut(Digest)) -> Result<Vec<CaseAnswer>, AssessError> {
        let mut cases = Vec::with_capacity(self.cases.len());
        for (case, positions) in self.golden.cases[self.cases.clone()].iter().zip(self.positions()) {
            let given =
                positions.iter().map(|&idx| self.answer(kept, idx as usize)).collect::<Result<Vec<Kept>, _>>()?;
            given.iter().for_each(|(answer, _)| take(answer.digest()));
            cases.push(case_answer(case, &given)?);
        }
        Ok(cases)
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

/// The answers to inputs, each asked by itself once the model is warm.
fn ask_alone(
    model: &impl Model,
    asked: &[Asked<'_>],
    mut progress: impl FnMut(usize),
) -> Result<Vec<Single>, AssessError> {
    let ask = |asked: &Asked<'_>| {
        ask_one(model, &asked.input).map_err(|source| AssessError::Task { case: asked.case.to_owned(), source })
    };
    asked.iter().take(N_WARM_UP).try_for_each(|asked| ask(asked).map(drop))?;
    let told = |(n_before, asked)| {
        let single = ask(asked);
        progress(n_before + 1);
        single
    };
    asked.iter().enumerate().map(told).collect()
}

fn ask_one(model: &impl Model, input: &Input) -> Result<Single, TaskError> {
    let start = Instant::now();
    let kept = model.answer_one(input)?;
    Ok(Single { kept, ms: start.elapsed().as_secs_f64() * 1e3 })
}

/// All answers, in order, and the seconds they took.
fn ask_batch(model: &impl Model, asked: &[Asked<'_>]) -> Result<(Vec<Kept>, f64), AssessError> {
    let inputs: Vec<Input> = asked.iter().map(|asked| asked.input.clone()).collect();
    let start = Instant::now();
    let answers = model.answer_all(&inputs);
    let seconds = start.elapsed().as_secs_f64();
    let all = || format!("{} to {}", asked[0].case, asked[asked.len() - 1].case);
    let answers = answers.map_err(|source| AssessError::Task { case: all(), source })?;
    asked.iter().zip(&answers).try_for_each(|(asked, (answer, _))| check_size(asked.case, answer))?;
    Ok((answers, seconds))
}

fn check_size(case: &str, answer: &Answer) -> Result<(), AssessError> {
    let Answer::Tensors(outputs) = answer else { return Ok(()) };
    match outputs.iter().map(|output| output.bytes.len()).sum::<usize>() {
        n if n > MAX_OUTPUT_BYTES => {
            let problem = format!("its outputs have {n} bytes, and a case may have {MAX_OUTPUT_BYTES}");
            Err(AssessError::Tensors { case: case.to_owned(), problem })
        }
        _ => Ok(()),
    }
}

fn labels_for(task: &TaskKind, golden: &GoldenSet) -> Result<Vec<String>, AssessError> {
    let (kind, asked) = (golden.kind(), golden.kind().in_words());
    match (task, kind) {
        (TaskKind::Classify { labels, thresholds, .. }, GoldenKind::LabelSets) if !thresholds.is_empty() => {
            Ok(labels.clone())
        }
        (TaskKind::Classify { thresholds, .. }, _) if !thresholds.is_empty() => {
            Err(AssessError::OtherTask { package: "classify with any number of labels", golden: asked })
        }
        (TaskKind::Tensors, GoldenKind::Tensors) => Ok(Vec::new()),
        (TaskKind::Tensors, _) => Err(AssessError::OtherTask { package: "compute tensors", golden: asked }),
        (TaskKind::Classify { labels, .. } | TaskKind::Recommend { items: labels }, GoldenKind::Labels) => {
            Ok(labels.clone())
        }
        (TaskKind::Embed { .. }, GoldenKind::Similarities | GoldenKind::Triplets | GoldenKind::Rankings)
        | (TaskKind::Rerank, GoldenKind::Rankings) => Ok(Vec::new()),
        (TaskKind::Classify { .. }, _) => Err(AssessError::OtherTask { package: "classify", golden: asked }),
        (TaskKind::Embed { .. }, _) => Err(AssessError::OtherTask { package: "embed", golden: asked }),
        (TaskKind::Recommend { .. }, _) => Err(AssessError::OtherTask { package: "recommend", golden: asked }),
        (TaskKind::Rerank, _) => Err(AssessError::OtherTask { package: "rerank", golden: asked }),
        (_, _) => Err(AssessError::OtherTask { package: "something else", golden: asked }),
    }
}

pub(crate) fn case_answer(case: &GoldenCase, given: &[Kept]) -> Result<CaseAnswer, AssessError> {
    let answers: Vec<&Answer> = given.iter().map(|(answer, _)| answer).collect();
    let value = match (case.kind, answers.as_slice()) {
        (GoldenKind::Labels, [Answer::Class { label, scores }]) => {
            Some(Value::Class { label: label.clone(), scores: scores.clone() })
        }
        (GoldenKind::LabelSets, [Answer::Labels { labels, .. }]) => {
            Some(Value::Generated(Generated::text(joined(labels))))
        }
        (GoldenKind::Tensors, [Answer::Tensors(outputs)]) => Some(Value::Tensors(expected_outputs(case, outputs)?)),
        (GoldenKind::Similarities, [a, b]) => similarity(a, b).map(Value::Similarity),
        (GoldenKind::Triplets, [anchor, positive, negative]) => similarity(anchor, positive)
            .zip(similarity(anchor, negative))
            .map(|(positive, negative)| Value::Triplet([positive, negative])),
        (GoldenKind::Rankings, [query @ Answer::Embedding { .. }, documents @ ..]) => {
            documents.iter().map(|document| similarity(query, document)).collect::<Option<_>>().map(Value::Scores)
        }
        (GoldenKind::Rankings, documents) => {
            documents.iter().map(|&answer| logit(answer)).collect::<Option<_>>().map(Value::Scores)
        }
        _ => None,
    };
    let value = value.ok_or_else(|| AssessError::OtherAnswer { case: case.case.id.clone() })?;
    let truncated = given.iter().any(|(_, truncated)| *truncated == Truncated(true));
    Ok(CaseAnswer { id: case.case.id.clone(), value, truncated })
}

/// The outputs that a case expects. Errors if one is not there, has another shape, or holds what is no number.
fn expected_outputs(case: &GoldenCase, outputs: &[OutputTensor]) -> Result<BTreeMap<String, Array>, AssessError> {
    let Expected::Tensors { tensors, .. } = &case.case.expected else { return Ok(BTreeMap::new()) };
    let wrong = |problem: String| AssessError::Tensors { case: case.case.id.clone(), problem };
    let output = |(name, expected): (&String, &Array)| {
        let output = outputs.iter().find(|output| output.name == *name).ok_or_else(|| {
            let known = outputs.iter().map(|output| format!("`{}`", output.name)).collect::<Vec<_>>().join(", ");
            wrong(format!("there is no output `{name}`: the program gives {known}"))
        })?;
        if output.shape != expected.shape() {
            let (found, expected) = (&output.shape, expected.shape());
            return Err(wrong(format!("output `{name}` has shape {found:?}, and the case expects {expected:?}")));
        }
        let array = output.values().and_then(|values| Array::new(output.shape.clone(), values));
        let array = array.ok_or_else(|| wrong(format!("output `{name}` is infinite or not a number somewhere")))?;
        Ok((name.clone(), array))
    };
    tensors.iter().map(output).collect()
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
