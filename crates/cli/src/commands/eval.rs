use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::available_parallelism;

use anyhow::Context as _;
use highroad_assess::report::{EvalReport, charts};
use highroad_assess::{Checked, GoldenSet, KeptAnswers, Results, RunOptions, Stage, run};
use highroad_eval::{HostedEvidence, JudgeEvidence, JudgeMode, Latency, Resamples, Summary, summarise};
use highroad_hosted::Budget;
use highroad_package::{TaskKind, VerifiedPackage};
use highroad_task::{Predictor, PredictorOptions};
use serde::Serialize;

use super::gate::read_gates;
use super::golden::{self, Unblessed};
use crate::progress;
use crate::reports::{ReportArgs, print_eval};
use crate::resolve::{Home, Target};
use crate::side::{CostArgs, Side, ask_judges};

/// Answer a golden set: metrics with 95 % intervals, per slice, latency and throughput.
#[derive(clap::Args)]
pub struct Args {
    /// A package directory, a digest in the local store, a reference such as `router@champion`, or the TOML file that
    /// describes a hosted model.
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
    #[command(flatten)]
    answers: AnswerArgs,
    /// Also ask the judges on a scale that these rules declare.
    #[arg(long, value_name = "FILE")]
    gates: Option<PathBuf>,
    #[command(flatten)]
    cost: CostArgs,
    /// How many of the worst cases to list.
    #[arg(long, default_value_t = 10, value_name = "N")]
    worst: usize,
    #[command(flatten)]
    reports: ReportArgs,
}

/// How many inputs are timed where no rule about latency needs more; their bits are compared with the batch's.
pub const N_TIMED: NonZeroUsize = NonZeroUsize::new(200).expect("200 is not 0");

/// The seed of the intervals that `eval` prints; gates have their own.
pub const RESAMPLES: Resamples = Resamples { n: 10_000, seed: 20_260_101 };

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    package: String,
    golden_set: &'a highroad_eval::GoldenSet,
    numerics_id: &'a str,
    answers: String,
    batch_invariant: bool,
    checked: Checked,
    summaries: &'a [Summary],
    latency: Latency,
    inputs_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    hosted: Option<&'a HostedEvidence>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    judges: &'a [JudgeEvidence],
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let golden = golden::with_declared_slices(golden::read(self.golden.as_deref(), Unblessed::Warn)?, None)?;
        let side = Side::find(&self.package, &Home::find())?;
        let budget = self.cost.budget();
        let mut results = side.answer(&self.answers, &golden, N_TIMED, "answers", &budget)?;
        let judges = self.ask_judges(&golden, &mut results, &budget)?;
        let observed = results.observed(&golden, &[])?;
        let labels = side.package().map_or_else(|| results.labels.clone(), labels_of_interest);
        let summaries = summarise(&golden.cases(), &observed, &labels, RESAMPLES);
        let report = EvalReport::of(&results, &golden, &summaries, self.worst)?;
        if let Some(path) = &self.out {
            results.write(path)?;
        }
        if self.json {
            print_json(&Report { judges: &judges, ..in_json(&results, &summaries) })?;
        } else {
            print_eval(&report);
        }
        let charts = if self.reports.wants_charts() { charts(&observed, &summaries, &labels)? } else { Vec::new() };
        self.reports.write_eval(&report, &charts)?;
        Ok(ExitCode::SUCCESS)
    }

    fn ask_judges(
        &self,
        golden: &GoldenSet,
        results: &mut Results,
        budget: &Budget,
    ) -> anyhow::Result<Vec<JudgeEvidence>> {
        let Some(path) = &self.gates else { return Ok(Vec::new()) };
        let (_, mut gates) = read_gates(Some(path))?;
        // Two answers are compared by a gate, where there are two.
        gates.judges.retain(|_, judge| judge.mode == JudgeMode::Scale);
        ask_judges(&gates, path, &self.answers, golden, [Some(results), None], budget)
    }
}

/// How a golden set is answered.
#[derive(Clone, Debug, clap::Args)]
pub struct AnswerArgs {
    /// Threads; all cores unless told.
    #[arg(long)]
    pub threads: Option<NonZeroUsize>,
    /// Ask everything anew: neither use the answers of earlier runs nor keep these.
    #[arg(long)]
    pub no_cache: bool,
}

impl AnswerArgs {
    /// Opens a package and answers the golden set with it, with a progress bar on a terminal; `n_alone` inputs are timed.
    pub fn assess(
        &self,
        package: &VerifiedPackage,
        golden: &GoldenSet,
        n_alone: NonZeroUsize,
        who: &str,
    ) -> anyhow::Result<Results> {
        let threads = self.threads.or_else(|| available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
        let options = PredictorOptions { threads, ..PredictorOptions::default() };
        let predictor = Predictor::open(package, &options)
            .with_context(|| format!("cannot load package {}", package.digest().short()))?;
        let mut kept = if self.no_cache { KeptAnswers::none() } else { kept(&predictor) };
        let bar = progress::bar_of_inputs(who);
        let results = run(&predictor, golden, &RunOptions { threads, n_alone }, &mut kept, |stage, n_done, n_all| {
            let what = match stage {
                Stage::Answering => "answering",
                Stage::Timing => "timing single inputs",
            };
            progress::show(&bar, format!("{who}: {what}"), [n_done, n_all]);
        });
        bar.finish_and_clear();
        Ok(results?)
    }
}

/// The answers of earlier runs; none where they cannot be read, as nothing but time is lost.
fn kept(predictor: &Predictor) -> KeptAnswers {
    let root = Home::find().path().join("answers");
    KeptAnswers::open(&root, &predictor.digest(), &predictor.numerics_id()).unwrap_or_else(|error| {
        eprintln!("warning: no answers are kept: {error}");
        KeptAnswers::none()
    })
}

/// The label that a moderation flags, else all labels.
fn labels_of_interest(package: &VerifiedPackage) -> Vec<String> {
    match &package.manifest().task.kind {
        TaskKind::Classify { flagged: Some(flagged), .. } => vec![flagged.clone()],
        TaskKind::Classify { labels, .. } => labels.clone(),
        _ => Vec::new(),
    }
}

fn in_json<'a>(results: &'a Results, summaries: &'a [Summary]) -> Report<'a> {
    Report {
        package: results.package.to_string(),
        golden_set: &results.golden_set,
        numerics_id: &results.numerics_id,
        answers: results.answers.to_string(),
        batch_invariant: results.batch_invariant,
        checked: results.checked,
        summaries,
        latency: results.latency(),
        inputs_per_s: results.speed.inputs_per_s,
        hosted: results.hosted.as_ref(),
        judges: &[],
    }
}

/// Prints a value as pretty JSON on stdout.
#[allow(clippy::print_stdout)]
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A file's bytes, or an error that names it.
pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))
}
