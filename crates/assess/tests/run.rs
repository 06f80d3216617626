//! Running a golden set: what is asked, what is recorded, what is judged. The models here are rules, not packages; the
//! command's own tests run packages.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::path::Path;

use highroad_assess::{
    AssessError, CaseAnswer, Checked, GoldenSet, Joined, Judged, KeptAnswers, Model, Results, RunOptions, ShardAnswers,
    Signature, Truncated, Value, judge, keep, run, run_joined, run_shard,
};
use highroad_eval::{Evidence, Gates, Generated, Metric, Outcome, Verdict};
use highroad_package::{Digest, TaskKind};
use highroad_task::{Answer, Input, TaskError};

/// Calls a text an injection if it holds its word, or embeds it as its length and its number of vowels, or finds a document
/// the more relevant the more words it shares with the query.
struct Rule {
    task: TaskKind,
    word: &'static str,
    asked: RefCell<Vec<String>>,
    n_batched: RefCell<usize>,
    batch_noise: f32,
    promises_bits: bool,
}

impl Rule {
    fn classifier(word: &'static str) -> Self {
        let labels = ["benign", "injection"].map(str::to_owned).to_vec();
        let task = TaskKind::Classify { labels, flagged: None, pairs: false, thresholds: Vec::new() };
        Self {
            task,
            word,
            asked: RefCell::default(),
            n_batched: RefCell::default(),
            batch_noise: 0.0,
            promises_bits: true,
        }
    }

    fn embedder() -> Self {
        Self {
            task: TaskKind::Embed { dimensions: 2, normalized: false, matryoshka_dimensions: Vec::new() },
            ..Self::classifier("")
        }
    }

    fn reranker() -> Self {
        Self { task: TaskKind::Rerank, ..Self::classifier("") }
    }

    fn answer(&self, input: &Input, noise: f32) -> Answer {
        let text = match input {
            Input::Text(text) => text,
            Input::Pair { query, document } => {
                let shared = document.split(' ').filter(|word| query.contains(word)).count();
                return Answer::Relevance { logit: shared as f32 + noise };
            }
            _ => panic!("no tokens and no images are asked here"),
        };
        if matches!(self.task, TaskKind::Embed { .. }) {
            let n_vowels = text.chars().filter(|c| "aeiou".contains(*c)).count();
            return Answer::Embedding { vector: vec![text.len() as f32 + noise, n_vowels as f32] };
        }
        let found = text.contains(self.word);
        let label = if found { "injection" } else { "benign" }.to_owned();
        let score = if found { 0.875 } else { 0.25 } + noise;
        Answer::Class { label, scores: vec![1.0 - score, score] }
    }
}

impl Model for Rule {
    fn package(&self) -> Digest {
        Digest::of(self.word.as_bytes())
    }

    fn task(&self) -> &TaskKind {
        &self.task
    }

    fn numerics_id(&self) -> String {
        "rule".to_owned()
    }

    fn evidence(&self) -> Evidence {
        Evidence::Observed
    }

    fn promises_bits(&self) -> bool {
        self.promises_bits
    }

    fn answer_one(&self, input: &Input) -> Result<(Answer, Truncated), TaskError> {
        if let Input::Text(text) = input {
            self.asked.borrow_mut().push(text.clone());
        }
        Ok((self.answer(input, 0.0), Truncated(false)))
    }

    fn answer_all(&self, inputs: &[Input]) -> Result<Vec<(Answer, Truncated)>, TaskError> {
        *self.n_batched.borrow_mut() += inputs.len();
        Ok(inputs.iter().map(|input| (self.answer(input, self.batch_noise), Truncated(false))).collect())
    }
}

fn golden(lines: impl IntoIterator<Item = String>) -> GoldenSet {
    let text: Vec<String> = lines.into_iter().collect();
    GoldenSet::parse(text.join("\n").as_bytes(), Path::new("golden.jsonl")).unwrap()
}

/// Half of the texts hold "secret" and are injections; every tenth holds "prompt" too.
fn labelled(n: usize) -> GoldenSet {
    golden((0..n).map(|idx| {
        let (word, label) = if idx % 2 == 0 { ("secret", "injection") } else { ("weather", "benign") };
        let more = if idx % 10 == 0 { "prompt" } else { "" };
        format!(r#"{{"id": "{idx}", "input": {{"text": "{word} {more} {idx}"}}, "expected": "{label}"}}"#)
    }))
}

fn answers(model: &Rule, golden: &GoldenSet) -> Result<Results, AssessError> {
    keeping(model, golden, &mut KeptAnswers::none())
}

/// The same, asking at most 50 inputs alone.
fn keeping(model: &Rule, golden: &GoldenSet, kept: &mut KeptAnswers) -> Result<Results, AssessError> {
    let options = RunOptions { threads: NonZeroUsize::MIN, n_alone: NonZeroUsize::new(50).unwrap() };
    run(model, golden, &options, kept, |_, _, _| ())
}

fn kept_in(dir: &Path, model: &Rule) -> KeptAnswers {
    KeptAnswers::open(dir, &model.package(), &model.numerics_id()).unwrap()
}

#[test]
fn every_case_gets_its_answer_in_order_and_its_time() {
    let set = labelled(20);
    let results = answers(&Rule::classifier("secret"), &set).unwrap();
    let labels: Vec<_> = results.cases.iter().map(|case| &case.value).collect();
    assert!(matches!(labels[0], Value::Class { label, scores } if label == "injection" && scores == &[0.125, 0.875]));
    assert!(matches!(labels[1], Value::Class { label, .. } if label == "benign"));
    assert_eq!((results.speed.single_ms.len(), results.latency().n_samples), (20, 20));
    assert!(results.batch_invariant && results.speed.inputs_per_s > 0.0);
}

#[test]
fn an_answer_that_depends_on_the_batch_is_told() {
    let noisy = Rule { batch_noise: 1e-7, ..Rule::classifier("secret") };
    assert!(!answers(&noisy, &labelled(20)).unwrap().batch_invariant);
}

#[test]
fn a_second_run_asks_only_what_is_timed_and_says_the_same() {
    let (dir, set) = (tempfile::tempdir().unwrap(), labelled(400));
    let (first, second) = (Rule::classifier("secret"), Rule::classifier("secret"));
    let fresh = keeping(&first, &set, &mut kept_in(dir.path(), &first)).unwrap();
    assert_eq!((*first.n_batched.borrow(), fresh.checked), (400, Checked { n_inputs: 400, n_kept: 0, n_alone: 50 }));
    let again = keeping(&second, &set, &mut kept_in(dir.path(), &second)).unwrap();
    assert_eq!((*second.n_batched.borrow(), again.checked), (50, Checked { n_inputs: 400, n_kept: 400, n_alone: 50 }));
    assert_eq!((again.answers, &again.cases), (fresh.answers, &fresh.cases));
    assert_eq!((again.speed.single_ms.len(), again.speed.inputs_per_s > 0.0), (50, true));
}

#[test]
fn a_killed_run_goes_on_where_it_was() {
    let (dir, whole) = (tempfile::tempdir().unwrap(), labelled(400));
    let mut begun = whole.clone();
    begun.cases.truncate(256);
    let model = Rule::classifier("secret");
    keeping(&model, &begun, &mut kept_in(dir.path(), &model)).unwrap();
    let results = keeping(&model, &whole, &mut kept_in(dir.path(), &model)).unwrap();
    assert_eq!((*model.n_batched.borrow(), results.checked.n_kept), (400, 256));
    assert_eq!(results.cases, answers(&model, &whole).unwrap().cases);
}

#[test]
fn a_kept_answer_that_is_not_what_the_model_says_now_voids_all_of_them() {
    let (dir, set) = (tempfile::tempdir().unwrap(), labelled(400));
    let stale = Rule { batch_noise: 0.0, ..Rule::classifier("weather") };
    let model = Rule::classifier("secret");
    // The answers of another rule under this one's name.
    let mut kept = KeptAnswers::open(dir.path(), &model.package(), "rule").unwrap();
    keeping(&stale, &set, &mut kept).unwrap();
    drop(kept);
    let results = keeping(&model, &set, &mut kept_in(dir.path(), &model)).unwrap();
    assert_eq!(results.cases, answers(&model, &set).unwrap().cases);
    assert_eq!(results.checked, Checked { n_inputs: 400, n_kept: 0, n_alone: 400 });
    assert!(results.batch_invariant, "the batch is not to blame");
    assert_eq!(keeping(&model, &set, &mut kept_in(dir.path(), &model)).unwrap().checked.n_kept, 0);
}

#[test]
fn answers_of_a_model_that_minds_the_batch_are_those_of_single_inputs_and_not_kept() {
    let (dir, set) = (tempfile::tempdir().unwrap(), labelled(100));
    let noisy = Rule { batch_noise: 1e-7, ..Rule::classifier("secret") };
    for _ in 0..2 {
        let results = keeping(&noisy, &set, &mut kept_in(dir.path(), &noisy)).unwrap();
        assert_eq!(results.cases, answers(&Rule::classifier("secret"), &set).unwrap().cases);
        assert_eq!((results.batch_invariant, results.checked.n_kept), (false, 0));
    }
}

fn shards(model: &Rule, golden: &GoldenSet, of: usize) -> Vec<ShardAnswers> {
    let options = RunOptions { threads: NonZeroUsize::MIN, n_alone: NonZeroUsize::new(5).unwrap() };
    let answer = |number: usize| {
        let shard = format!("{number}/{of}").parse().unwrap();
        run_shard(model, golden, shard, &options, &mut KeptAnswers::none(), |_, _, _| ()).unwrap()
    };
    (1..=of).map(answer).collect()
}

fn join(model: &Rule, golden: &GoldenSet, shards: Vec<ShardAnswers>) -> Result<Results, AssessError> {
    let options = RunOptions { threads: NonZeroUsize::MIN, n_alone: NonZeroUsize::new(50).unwrap() };
    run_joined(model, golden, Joined::of(golden, shards)?, &options, |_, _, _| ())
}

/// What does not depend on time, nor on who answered first.
fn timeless(results: &Results) -> Results {
    let mut results = results.clone();
    results.speed.single_ms.iter_mut().for_each(|ms| *ms = 0.0);
    results.speed.inputs_per_s = 0.0;
    results.checked.n_kept = 0;
    results
}

#[test]
fn shards_join_to_the_results_of_one_run() {
    let pairs = golden((0..30).map(|idx| {
        let (a, b) = ("a".repeat(1 + idx % 7), "e x".repeat(1 + idx % 5));
        format!(r#"{{"id": "{idx}", "input": {{"a": "{a}", "b": "{b}"}}, "expected": {idx}}}"#)
    }));
    for (model, set) in [
        (Rule::classifier("secret"), labelled(101)),
        (Rule::embedder(), pairs),
        (Rule::embedder(), rankings()),
        (Rule::reranker(), rankings()),
    ] {
        let whole = answers(&model, &set).unwrap();
        for of in [1, 2] {
            let mut shards = shards(&model, &set, of);
            shards.reverse();
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("shard.json");
            let read = |shard: &ShardAnswers| {
                shard.write(&path).unwrap();
                ShardAnswers::read(&path).unwrap()
            };
            let joined = join(&model, &set, shards.iter().map(read).collect()).unwrap();
            assert_eq!(timeless(&joined), timeless(&whole));
            assert_eq!(joined.checked.n_kept, whole.checked.n_inputs);
        }
    }
}

#[test]
fn shards_that_do_not_belong_together_are_refused() {
    let (model, set) = (Rule::classifier("secret"), labelled(40));
    let all = shards(&model, &set, 3);
    let error = |shards: Vec<ShardAnswers>| join(&model, &set, shards).unwrap_err().to_string();
    assert_eq!(error(Vec::new()), "there is no shard to join");
    assert_eq!(error(vec![all[0].clone(), all[2].clone()]), "shard 2/3 is missing");
    assert_eq!(error(vec![all[0].clone(), all[0].clone()]), "shard 1/3 is given twice");
    let change = |of: &dyn Fn(&mut ShardAnswers)| {
        let mut shards = all.clone();
        of(&mut shards[1]);
        error(shards)
    };
    assert_eq!(
        change(&|shard| shard.results.numerics_id = "other".to_owned()),
        "shards 1/3 and 2/3 differ in the numerics id: rule and other"
    );
    assert!(change(&|shard| shard.results.package = Digest::of(b"other")).contains("differ in the package"));
    assert!(change(&|shard| shard.results.cases.swap(0, 1)).ends_with("its cases of the golden set, in order"));
    assert!(change(&|shard| shard.answer_digests.swap(0, 1)).contains("does not have the digest"));
    let of_others = shards(&Rule::classifier("weather"), &set, 3);
    assert!(error(of_others).contains("the shards were answered by package"));
    let noisy = Rule { batch_noise: 0.0, ..Rule::classifier("weather") };
    let mut forged = shards(&noisy, &set, 3);
    forged.iter_mut().for_each(|shard| shard.results.package = model.package());
    assert_eq!(error(forged), "this machine answers case `0` with other bits than its shard holds");
    let one = "3/3".parse().unwrap();
    let options = RunOptions { threads: NonZeroUsize::MIN, n_alone: NonZeroUsize::MIN };
    let none =
        run_shard(&model, &labelled(2), "1/3".parse().unwrap(), &options, &mut KeptAnswers::none(), |_, _, _| ());
    assert!(none.unwrap_err().to_string().starts_with("shard 1/3 of 2 cases has none"));
    assert!(run_shard(&model, &labelled(2), one, &options, &mut KeptAnswers::none(), |_, _, _| ()).is_ok());
}

#[test]
fn a_text_of_several_pairs_is_asked_once() {
    let set = golden([
        r#"{"id": "1", "input": {"a": "aaa", "b": "bbb"}, "expected": 0.2}"#.to_owned(),
        r#"{"id": "2", "input": {"a": "bbb", "b": "aaa"}, "expected": 0.2}"#.to_owned(),
        r#"{"id": "3", "input": {"a": "aaa", "b": "aab"}, "expected": 0.9}"#.to_owned(),
    ]);
    let model = Rule::embedder();
    let results = answers(&model, &set).unwrap();
    let n_warm_up = 3;
    assert_eq!(model.asked.borrow()[n_warm_up..], ["aaa", "bbb", "aab"]);
    let similarity = |idx: usize| match results.cases[idx].value {
        Value::Similarity(similarity) => similarity,
        _ => f64::NAN,
    };
    // The angle between (3, 3) and (3, 0), then between (3, 3) and (3, 2).
    assert!((similarity(0) - 0.5f64.sqrt()).abs() < 1e-12 && similarity(0) == similarity(1));
    assert!((similarity(2) - 15.0 / (18.0f64 * 13.0).sqrt()).abs() < 1e-12);
}

/// Two queries; the second's relevant document came second.
fn rankings() -> GoldenSet {
    golden([
        r#"{"id": "1", "input": {"query": "red car", "documents": ["a red car", "a boat"]}, "expected": [2, 0]}"#
            .to_owned(),
        r#"{"id": "2", "input": {"query": "blue boat", "documents": ["a red car", "a boat"]}, "expected": [0, 1]}"#
            .to_owned(),
    ])
}

#[test]
fn a_reranker_reads_each_document_beside_its_query() {
    let (set, model) = (rankings(), Rule::reranker());
    let results = answers(&model, &set).unwrap();
    // "a" is in "red car" and not in "blue boat" by itself, but in "boat".
    assert_eq!(results.cases[0].value, Value::Scores(vec![3.0, 1.0]));
    assert_eq!(results.cases[1].value, Value::Scores(vec![1.0, 2.0]));
    let observed = results.observed(&set, &[]).unwrap();
    assert_eq!(observed.right(), Some(vec![Some(true), Some(true)]));
    assert_eq!(results.speed.single_ms.len(), 4);
}

#[test]
fn an_embedder_ranks_by_cosine_and_embeds_each_text_once() {
    let (set, model) = (rankings(), Rule::embedder());
    let results = answers(&model, &set).unwrap();
    assert_eq!(model.asked.borrow()[4..], ["red car", "a red car", "a boat", "blue boat"]);
    let Value::Scores(scores) = &results.cases[0].value else { panic!("{:?}", results.cases[0].value) };
    // (7, 2) beside (9, 3) and (6, 3).
    assert!((scores[0] - 69.0 / (53.0f64 * 90.0).sqrt()).abs() < 1e-12);
    assert!((scores[1] - 48.0 / (53.0f64 * 45.0).sqrt()).abs() < 1e-12);
}

#[test]
fn an_embedder_compares_the_texts_of_a_triplet_with_their_anchor() {
    let set = golden([
        r#"{"id": "1", "input": {"anchor": "aaa", "positive": "aab", "negative": "bbb"}}"#.to_owned(),
        r#"{"id": "2", "input": {"anchor": "aaa", "positive": "bbb", "negative": "aab"}}"#.to_owned(),
    ]);
    let model = Rule::embedder();
    let results = answers(&model, &set).unwrap();
    assert_eq!(model.asked.borrow()[3..], ["aaa", "aab", "bbb"]);
    let Value::Triplet([positive, negative]) = results.cases[0].value else { panic!("{:?}", results.cases[0].value) };
    // The angles between (3, 3) and (3, 2), then between (3, 3) and (3, 0).
    assert!((positive - 15.0 / (18.0f64 * 13.0).sqrt()).abs() < 1e-12 && (negative - 0.5f64.sqrt()).abs() < 1e-12);
    let observed = results.observed(&set, &[]).unwrap();
    assert_eq!(observed.right(), Some(vec![Some(true), Some(false)]));
    assert_eq!(Metric::PairAccuracy.of(&observed, None).unwrap().observed(), 0.5);
}

const NUMBER: &str = r#"{"id": "1", "input": {"text": "x"}, "expected": 2}"#;
const PROMPT: &str = r#"{"id": "1", "input": {"prompt": "x"}, "expected": "Paris"}"#;

#[test]
fn numbers_and_texts_that_were_answered_elsewhere_are_judged() {
    let of = |value: Value, line: &str, metric: &str| {
        let mut results = answers(&Rule::classifier("secret"), &labelled(1)).unwrap();
        let set = golden([line.to_owned()]);
        results.golden_set.digest = set.digest.to_string();
        results.cases = vec![CaseAnswer { id: "1".to_owned(), value, truncated: false }];
        let results: Results = serde_json::from_slice(&serde_json::to_vec(&results).unwrap()).unwrap();
        let metric: Metric = metric.parse().unwrap();
        results.observed(&set, &[]).map(|observed| metric.of(&observed, None).unwrap().observed())
    };
    assert_eq!(of(Value::Number(2.5), NUMBER, "mae").unwrap(), 0.5);
    assert_eq!(of(Value::Generated(Generated::text("Paris\n")), PROMPT, "exact_match").unwrap(), 1.0);
    assert!(matches!(of(Value::Number(1.0), PROMPT, "bleu"), Err(AssessError::OtherAnswer { .. })));
    let nothing = Generated { texts: Vec::new(), ..Generated::text("") };
    let error = of(Value::Generated(nothing), PROMPT, "bleu").unwrap_err();
    assert_eq!(error.to_string(), "case 0 has no text");
}

#[test]
fn the_batches_of_a_model_that_promises_no_bits_count_as_they_are() {
    let noisy = Rule { batch_noise: 1e-7, promises_bits: false, ..Rule::classifier("secret") };
    let results = answers(&noisy, &labelled(200)).unwrap();
    assert!(!results.batch_invariant && results.checked.n_alone == 50);
    let alone = answers(&Rule { promises_bits: true, ..noisy }, &labelled(200)).unwrap();
    assert!(alone.checked.n_alone == 200 && alone.answers != results.answers);
}

#[test]
fn a_model_for_another_task_is_refused() {
    for (line, asked) in [(NUMBER, "numbers"), (PROMPT, "texts")] {
        let set = golden([line.to_owned()]);
        for (model, task) in
            [(Rule::classifier(""), "classify"), (Rule::embedder(), "embed"), (Rule::reranker(), "rerank")]
        {
            let error = answers(&model, &set).unwrap_err().to_string();
            assert_eq!(error, format!("the model is made to {task}, but the golden set asks for {asked}"));
            assert!(model.asked.borrow().is_empty());
        }
    }
    let error = answers(&Rule::embedder(), &labelled(4)).unwrap_err();
    assert_eq!(error.to_string(), "the model is made to embed, but the golden set asks for labels");
    let error = answers(&Rule::classifier("secret"), &rankings()).unwrap_err();
    assert_eq!(error.to_string(), "the model is made to classify, but the golden set asks for rankings of documents");
    let error = answers(&Rule::reranker(), &labelled(4)).unwrap_err();
    assert_eq!(error.to_string(), "the model is made to rerank, but the golden set asks for labels");
}

#[test]
fn results_survive_their_file_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (path, results) = (dir.path().join("eval.json"), answers(&Rule::classifier("secret"), &labelled(20)).unwrap());
    results.write(&path).unwrap();
    assert_eq!(Results::read(&path).unwrap(), results);
}

#[test]
fn results_of_another_golden_set_are_refused() {
    let results = answers(&Rule::classifier("secret"), &labelled(20)).unwrap();
    assert!(matches!(results.observed(&labelled(21), &[]), Err(AssessError::OtherGolden { .. })));
    let mut missing = results.clone();
    missing.cases.pop();
    assert!(matches!(missing.observed(&labelled(20), &[]), Err(AssessError::OtherCases)));
    let mut swapped = results;
    swapped.cases.swap(0, 1);
    assert!(matches!(swapped.observed(&labelled(20), &[]), Err(AssessError::OtherCases)));
}

#[test]
fn a_verdict_names_what_it_rests_on_and_is_kept_by_its_digest() {
    let set = labelled(200);
    let [good, bad] = ["secret", "prompt"].map(|word| answers(&Rule::classifier(word), &set).unwrap());
    let rules = "[[rule]]\nmetric = 'accuracy'\nmargin = 0.05";
    let judged = Judged { golden: &set, candidate: &bad, baseline: Some(&good) };
    let decision = judge(&Gates::parse(rules).unwrap(), &judged).unwrap();
    let signature = Signature {
        gates: Digest::of(rules.as_bytes()),
        baseline_reference: Some("router@champion".to_owned()),
        created_at: "2026-11-23T10:00:00Z".to_owned(),
        created_by: "Ada".to_owned(),
    };
    let verdict = signature.bind(&judged, decision);
    assert_eq!((verdict.outcome, verdict.flips.len()), (Outcome::Fail, 80));
    assert_eq!(verdict.golden_set.digest, set.digest.to_string());
    assert_eq!((verdict.package.as_str(), verdict.evidence), (bad.package.to_string().as_str(), Evidence::Observed));

    let dir = tempfile::tempdir().unwrap();
    let (digest, path) = keep(dir.path().to_owned(), &bad.package, &verdict).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(digest, Digest::of(&bytes));
    assert_eq!(path, dir.path().join(bad.package.hex()).join(format!("{}.json", digest.hex())));
    assert_eq!(serde_json::from_slice::<Verdict>(&bytes).unwrap(), verdict);
}

#[test]
fn a_label_the_candidate_never_heard_of_is_an_error() {
    let set = golden([r#"{"id": "1", "input": {"text": "x"}, "expected": "spam"}"#.to_owned()]);
    let results = answers(&Rule::classifier("secret"), &set).unwrap();
    let error = results.observed(&set, &[]).unwrap_err();
    assert_eq!(error.to_string(), "label `spam` is not one of the model's labels: benign, injection");
}
