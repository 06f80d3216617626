use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::available_parallelism;

use anyhow::Context as _;
use comfy_table::{Table, presets};
use highroad_assess::{GoldenInput, GoldenSet, Results, RunOptions, Value, run};
use highroad_eval::{Expected, Latency, Measured, Observed, Resamples, Summary, summarise};
use highroad_package::{TaskKind, VerifiedPackage};
use highroad_task::{Input, Predictor, PredictorOptions};
use serde::Serialize;

use super::golden::{self, Unblessed};
use crate::progress;
use crate::resolve::{Home, Target};

/// Answer a golden set: metrics with 95 % intervals, per slice, latency and throughput.
#[derive(clap::Args)]
pub struct Args {
    /// A package directory, a digest in the local store, or a reference such as `router@champion`.
    package: Target,
    /// The golden set (JSONL); the one of highroad.toml unless told.
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// Print JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// Write every answer to this file.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Threads; all cores unless told.
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// How many of the worst cases to list.
    #[arg(long, default_value_t = 5, value_name = "N")]
    worst: usize,
}

/// The seed of the intervals that `eval` prints; gates have their own.
const RESAMPLES: Resamples = Resamples { n: 10_000, seed: 20_260_101 };

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    package: String,
    golden_set: &'a highroad_eval::GoldenSet,
    numerics_id: &'a str,
    answers: String,
    batch_invariant: bool,
    summaries: &'a [Summary],
    latency: Latency,
    inputs_per_s: f64,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let golden = golden::with_declared_slices(golden::read(self.golden.as_deref(), Unblessed::Warn)?, None)?;
        let resolved = self.package.resolve(&Home::find())?;
        let results = assess(&resolved.package, &golden, self.threads, "answering")?;
        let observed = results.observed(&golden, &[])?;
        let summaries = summarise(&golden.cases(), &observed, &labels_of_interest(&resolved.package), RESAMPLES);
        if let Some(path) = &self.out {
            results.write(path)?;
        }
        if self.json {
            print_json(&report(&results, &summaries))?;
        } else {
            print_tables(&results, &summaries, &golden, &observed, self.worst);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Opens a package and answers the golden set with it, with a progress bar on a terminal.
pub fn assess(
    package: &VerifiedPackage,
    golden: &GoldenSet,
    threads: Option<NonZeroUsize>,
    what: &str,
) -> anyhow::Result<Results> {
    let threads = threads.or_else(|| available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
    let options = PredictorOptions { threads, ..PredictorOptions::default() };
    let predictor = Predictor::open(package, &options)
        .with_context(|| format!("cannot load package {}", package.digest().short()))?;
    let bar = progress::bar(what);
    let results = run(&predictor, golden, &RunOptions { threads }, |n_done, n_all| {
        bar.set_length(n_all as u64);
        bar.set_position(n_done as u64);
    });
    bar.finish_and_clear();
    Ok(results?)
}

/// The label that a moderation flags, else all labels.
fn labels_of_interest(package: &VerifiedPackage) -> Vec<String> {
    match &package.manifest().task.kind {
        TaskKind::Classify { flagged: Some(flagged), .. } => vec![flagged.clone()],
        TaskKind::Classify { labels, .. } => labels.clone(),
        _ => Vec::new(),
    }
}

fn report<'a>(results: &'a Results, summaries: &'a [Summary]) -> Report<'a> {
    Report {
        package: results.package.to_string(),
        golden_set: &results.golden_set,
        numerics_id: &results.numerics_id,
        answers: results.answers.to_string(),
        batch_invariant: results.batch_invariant,
        summaries,
        latency: results.latency(),
        inputs_per_s: results.speed.inputs_per_s,
    }
}

/// Prints a value as pretty JSON on stdout.
#[allow(clippy::print_stdout)]
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

#[allow(clippy::print_stdout)]
fn print_tables(results: &Results, summaries: &[Summary], golden: &GoldenSet, observed: &Observed, n_worst: usize) {
    let (set, latency) = (&results.golden_set, results.latency());
    println!("package    {}", results.package);
    println!("golden set {} ({} cases), {}", set.name, set.n_cases, set.digest);
    println!("numerics   {}", results.numerics_id);
    println!("\n{}", metrics_table(summaries));
    println!(
        "latency    p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms; {:.0} inputs/s in batches",
        latency.p50_ms, latency.p90_ms, latency.p99_ms, results.speed.inputs_per_s
    );
    println!("           {}", latency.measured);
    if !results.batch_invariant {
        println!("warning: answers in a batch differ in their bits from answers alone");
    }
    let n_truncated = results.cases.iter().filter(|case| case.truncated).count();
    if n_truncated > 0 {
        println!("warning: {n_truncated} case(s) were longer than the model takes and lost their end");
    }
    let worst = worst_cases(results, golden, observed, n_worst);
    if !worst.is_empty() {
        println!("\nworst cases\n{}", cases_table(&worst));
    }
}

fn metrics_table(summaries: &[Summary]) -> Table {
    let mut table = new_table(["cases", "n", "metric", "value", "95 % interval"]);
    for summary in summaries {
        let place = summary.slice.as_deref().unwrap_or("all");
        for (idx, measured) in summary.metrics.iter().enumerate() {
            let first = idx == 0;
            table.add_row([
                if first { place.to_owned() } else { String::new() },
                if first { summary.n_cases.to_string() } else { String::new() },
                metric_name(measured),
                format!("{:.4}", measured.value),
                format!("{:.4} to {:.4}", measured.interval[0], measured.interval[1]),
            ]);
        }
    }
    table
}

fn metric_name(measured: &Measured) -> String {
    match &measured.label {
        Some(label) => format!("{} of \"{label}\"", measured.metric),
        None => measured.metric.to_string(),
    }
}

/// A table that reads well on a terminal and in a log.
pub fn new_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

struct WorstCase {
    id: String,
    expected: String,
    answered: String,
    text: String,
}

/// Wrong labels with the lowest score of the right one first; or pairs whose rank is furthest from the human one; or queries
/// whose most relevant document comes last; or triplets whose negative text is closest; or the largest errors; or texts that
/// equal no reference.
fn worst_cases(results: &Results, golden: &GoldenSet, observed: &Observed, n_worst: usize) -> Vec<WorstCase> {
    let mut order: Vec<(f64, usize)> = match observed {
        Observed::Classes(classes) => {
            let wrong = (0..results.cases.len()).filter(|&idx| classes.expected()[idx] != classes.predicted()[idx]);
            wrong.map(|idx| (-classes.scores_of(classes.expected()[idx])[idx], idx)).collect()
        }
        Observed::Similarities(pairs) => {
            let (human, model) = (ranks(&pairs.expected), ranks(&pairs.predicted));
            (0..human.len()).map(|idx| (human[idx].abs_diff(model[idx]) as f64, idx)).collect()
        }
        Observed::Rankings(rankings) => {
            let rank = |idx: usize| rankings.best_rank(idx).filter(|&rank| rank > 1);
            (0..rankings.n_cases()).filter_map(|idx| Some((rank(idx)? as f64, idx))).collect()
        }
        Observed::Triplets(triplets) => {
            let lead = triplets.similarities().iter().map(|[positive, negative]| negative - positive);
            lead.zip(0..).filter(|(lead, _)| *lead >= 0.0).collect()
        }
        Observed::Numbers(numbers) => {
            let errors = numbers.expected().iter().zip(numbers.predicted());
            errors.map(|(expected, predicted)| (expected - predicted).abs()).zip(0..).collect()
        }
        Observed::Texts(texts) => {
            let wrong = texts.right().into_iter().enumerate().filter(|(_, right)| !right);
            wrong.map(|(idx, _)| (0.0, idx)).collect()
        }
    };
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    order.truncate(n_worst);
    let rank = |idx| if let Observed::Rankings(rankings) = observed { rankings.best_rank(idx) } else { None };
    order.into_iter().map(|(_, idx)| worst_case(results, golden, idx, rank(idx))).collect()
}

fn ranks(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0; values.len()];
    order.into_iter().enumerate().for_each(|(rank, idx)| ranks[idx] = rank);
    ranks
}

fn worst_case(results: &Results, golden: &GoldenSet, idx: usize, rank: Option<usize>) -> WorstCase {
    let (answer, case) = (&results.cases[idx], &golden.cases[idx]);
    let answered = match &answer.value {
        Value::Class { label, scores } => {
            let position = results.labels.iter().position(|name| name == label);
            let score = position.and_then(|position| scores.get(position)).copied().unwrap_or(f32::NAN);
            format!("{label} ({score:.3})")
        }
        Value::Similarity(similarity) => format!("{similarity:.3}"),
        Value::Scores(_) => rank.map_or_else(String::new, |rank| format!("rank {rank}")),
        Value::Triplet([positive, negative]) => format!("{positive:.3} against {negative:.3}"),
        Value::Number(number) => format!("{number:.3}"),
        Value::Generated(generated) => shorten(generated.texts.first().map_or("", String::as_str), 60),
    };
    let expected = match &case.case.expected {
        Expected::Label(label) => label.clone(),
        Expected::Number(number) => format!("{number:.3}"),
        Expected::Relevances(relevances) => {
            format!("rank 1 of {}", relevances.len())
        }
        Expected::References(references) => shorten(references.first().map_or("", String::as_str), 60),
        Expected::Implied => "the positive text".to_owned(),
    };
    WorstCase { id: answer.id.clone(), expected, answered, text: shorten(&asked(&case.input), 60) }
}

fn cases_table(cases: &[WorstCase]) -> Table {
    let mut table = new_table(["case", "expected", "answered", "input"]);
    for case in cases {
        table.add_row([&case.id, &case.expected, &case.answered, &case.text]);
    }
    table
}

/// What a case asks, on one line.
pub fn asked(input: &GoldenInput) -> String {
    match input {
        GoldenInput::One(Input::Text(text)) => text.clone(),
        GoldenInput::One(Input::Tokens(ids)) => format!("{} token ids", ids.len()),
        GoldenInput::One(Input::Pair { query, document }) => {
            format!("{} | {}", shorten(query, 29), shorten(document, 29))
        }
        GoldenInput::Ranking { query, .. } => query.clone(),
        GoldenInput::Prompt(messages) => messages.last().map_or_else(String::new, |last| last.content.clone()),
        GoldenInput::Triplet([anchor, positive, negative]) => {
            format!("{} | {} | {}", shorten(anchor, 19), shorten(positive, 18), shorten(negative, 18))
        }
        GoldenInput::Pair([a, b]) => format!("{} | {}", shorten(a, 29), shorten(b, 29)),
    }
}

/// At most `n_chars` characters on one line, without anything a terminal would obey.
pub fn shorten(text: &str, n_chars: usize) -> String {
    let plain: Vec<char> = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if plain.len() <= n_chars {
        return plain.into_iter().collect();
    }
    plain[..n_chars - 1].iter().chain(['…'].iter()).collect()
}

/// A file's bytes, or an error that names it.
pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))
}
