use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::available_parallelism;

use anyhow::Context as _;
use highroad_assess::report::{EvalReport, charts};
use highroad_assess::{
    Checked, GoldenSet, Joined, KeptAnswers, Results, RunOptions, Shard, ShardAnswers, Stage, run, run_joined,
    run_shard,
};
use highroad_eval::{Latency, Resamples, Summary, summarise};
use highroad_package::{TaskKind, VerifiedPackage};
use highroad_task::{Predictor, PredictorOptions};
use indicatif::ProgressBar;
use serde::Serialize;

use super::golden::{self, Unblessed};
use crate::progress;
use crate::reports::{ReportArgs, print_eval};
use crate::resolve::{Home, Target};

mod shards;

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
    #[command(flatten)]
    answers: AnswerArgs,
    /// Answer one shard only, such as the first of eight, and write it to --out; no metrics.
    #[arg(long, value_name = "I/N", requires = "out", conflicts_with_all = ["merge", "ray"])]
    shard: Option<Shard>,
    /// Join the files of all shards instead of answering; a sample is asked here and compared bit by bit.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "ray")]
    merge: Vec<PathBuf>,
    /// Answer the shards as tasks of a Ray cluster: the one at ADDRESS, else the one this machine belongs to.
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "auto", requires = "shards")]
    ray: Option<String>,
    /// How many shards.
    #[arg(long, value_name = "N", requires = "ray")]
    shards: Option<NonZeroU32>,
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
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let golden = golden::read(self.golden.as_deref(), Unblessed::Warn)?;
        let resolved = self.package.resolve(&Home::find())?;
        if let (Some(shard), Some(path)) = (self.shard, &self.out) {
            self.answers.assess_shard(&resolved.package, &golden, shard)?.write(path)?;
            return Ok(ExitCode::SUCCESS);
        }
        let golden = golden::with_declared_slices(golden, None)?;
        let results = match (&self.ray, self.shards) {
            (Some(address), Some(n_shards)) => {
                let path = golden::path_or_declared(self.golden.as_deref())?;
                let shards = shards::on_ray(address, n_shards, &resolved.package, &path, self.answers.threads)?;
                self.answers.assess_joined(&resolved.package, &golden, shards.files(), N_TIMED, "package")?
            }
            _ if !self.merge.is_empty() => {
                self.answers.assess_joined(&resolved.package, &golden, &self.merge, N_TIMED, "package")?
            }
            _ => self.answers.assess(&resolved.package, &golden, N_TIMED, "package")?,
        };
        let observed = results.observed(&golden, &[])?;
        let labels = labels_of_interest(&resolved.package);
        let summaries = summarise(&golden.cases(), &observed, &labels, RESAMPLES);
        let report = EvalReport::of(&results, &golden, &summaries, self.worst)?;
        if let Some(path) = &self.out {
            results.write(path)?;
        }
        if self.json {
            print_json(&in_json(&results, &summaries))?;
        } else {
            print_eval(&report);
        }
        let charts = if self.reports.wants_charts() { charts(&observed, &summaries, &labels)? } else { Vec::new() };
        self.reports.write_eval(&report, &charts)?;
        Ok(ExitCode::SUCCESS)
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
    no_cache: bool,
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
        let (predictor, threads) = self.open(package)?;
        let mut kept = self.kept(&predictor);
        let bar = progress::bar_of_inputs(who);
        let results = run(&predictor, golden, &RunOptions { threads, n_alone }, &mut kept, told(&bar, who));
        bar.finish_and_clear();
        Ok(results?)
    }

    /// The same for one shard.
    fn assess_shard(
        &self,
        package: &VerifiedPackage,
        golden: &GoldenSet,
        shard: Shard,
    ) -> anyhow::Result<ShardAnswers> {
        let (predictor, threads) = self.open(package)?;
        let (mut kept, who) = (self.kept(&predictor), format!("shard {shard}"));
        let bar = progress::bar_of_inputs(&who);
        let options = RunOptions { threads, n_alone: N_TIMED };
        let answers = run_shard(&predictor, golden, shard, &options, &mut kept, told(&bar, &who));
        bar.finish_and_clear();
        Ok(answers?)
    }

    /// The same from the `files` of all shards, in any order.
    pub fn assess_joined(
        &self,
        package: &VerifiedPackage,
        golden: &GoldenSet,
        files: &[PathBuf],
        n_alone: NonZeroUsize,
        who: &str,
    ) -> anyhow::Result<Results> {
        let shards = files.iter().map(|file| ShardAnswers::read(file)).collect::<Result<_, _>>()?;
        let joined = Joined::of(golden, shards)?;
        let (predictor, threads) = self.open(package)?;
        let bar = progress::bar_of_inputs(who);
        let results = run_joined(&predictor, golden, joined, &RunOptions { threads, n_alone }, told(&bar, who));
        bar.finish_and_clear();
        Ok(results?)
    }

    fn open(&self, package: &VerifiedPackage) -> anyhow::Result<(Predictor, NonZeroUsize)> {
        let threads = self.threads.or_else(|| available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
        let options = PredictorOptions { threads, ..PredictorOptions::default() };
        let predictor = Predictor::open(package, &options)
            .with_context(|| format!("cannot load package {}", package.digest().short()))?;
        Ok((predictor, threads))
    }

    fn kept(&self, predictor: &Predictor) -> KeptAnswers {
        if self.no_cache { KeptAnswers::none() } else { kept(predictor) }
    }
}

/// Shows how far a run is.
fn told<'a>(bar: &'a ProgressBar, who: &'a str) -> impl FnMut(Stage, usize, usize) + 'a {
    move |stage, n_done, n_all| {
        let what = match stage {
            Stage::Answering => "answering",
            Stage::Timing => "timing single inputs",
        };
        progress::show(bar, format!("{who}: {what}"), [n_done, n_all]);
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
