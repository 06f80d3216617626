use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::available_parallelism;

use anyhow::Context as _;
use highroad_assess::report::{EvalReport, Fact, charts, custom_fact, judge_fact};
use highroad_assess::{
    Checked, Drift, GoldenSet, Joined, KeptAnswers, Model, Results, Ruled, RunOptions, Shard, ShardAnswers, Stage, run,
    run_joined, run_shard,
};
use highroad_eval::{
    CustomEvidence, Evidence, Gates, Given, GpuCost, HostedEvidence, JudgeEvidence, JudgeMode, Latency, Resamples,
    Summary, add_to_summaries, summarise,
};
use highroad_hosted::Budget;
use highroad_package::{TaskKind, VerifiedPackage};
use highroad_task::{Predictor, PredictorOptions};
use indicatif::ProgressBar;
use serde::Serialize;

use self::shards::Shards;
use super::gate::{REQUIRED, read_gates};
use super::golden::{self, Unblessed};
use crate::outln;
use crate::progress;
use crate::reports::{ReportArgs, print_eval};
use crate::resolve::{Home, Target};
use crate::side::{CostArgs, How, Side, ask_judges, run_custom};

mod engine;
mod pipeline;
mod shards;
mod through;

pub use engine::EngineArgs;
pub use pipeline::Pipeline;

/// Answer a golden set: metrics with 95 % intervals, per slice, latency and throughput.
#[derive(clap::Args)]
pub struct Args {
    /// A package directory, a digest in the local store, a reference such as `router@champion`, or the TOML file that
    /// describes a hosted model.
    #[arg(required_unless_present = "pipeline")]
    package: Option<Target>,
    /// Judge what a pipeline finds, in place of a package: this one of the server that --through names.
    #[arg(long, value_name = "NAME", requires = "through", conflicts_with_all = ["package", "compare"])]
    pipeline: Option<String>,
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
    /// Also ask the judges on a scale and run the programs of your own that these rules declare.
    #[arg(long, value_name = "FILE")]
    gates: Option<PathBuf>,
    #[command(flatten)]
    cost: CostArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Ask a live `highroad serve` that serves this package, such as `http://127.0.0.1:8080`; a key in `$HIGHROAD_API_KEY` is sent along.
    #[arg(long, value_name = "URL", conflicts_with_all = ["engine", "device", "python", "shard", "merge", "ray"])]
    through: Option<String>,
    /// With `--engine torch` or `--through`: answer in this process too, and tell how far apart the two are.
    #[arg(long, conflicts_with = "shard")]
    compare: bool,
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
    evidence: Evidence,
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
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    custom: &'a [CustomEvidence],
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<&'a GpuCost>,
    /// From the native runtime's answers to these.
    #[serde(skip_serializing_if = "Option::is_none")]
    from_native: Option<&'a Drift>,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let golden = golden::read(self.golden.as_deref(), Unblessed::Warn)?;
        let side = self.side()?;
        if let (Some(shard), Some(path)) = (self.shard, &self.out) {
            self.answers.assess_shard(package_of(&side, "--shard")?, &golden, shard)?.write(path)?;
            return Ok(ExitCode::SUCCESS);
        }
        let rules = self.gates.as_deref().map(|path| Ok::<_, anyhow::Error>((read_gates(Some(path))?.1, path)));
        let rules = rules.transpose()?;
        let golden = match &rules {
            Some((gates, _)) => golden.with_slices(&gates.slices)?,
            None => golden::with_declared_slices(golden, None)?,
        };
        let budget = self.cost.budget();
        let mut results = self.answer(&side, &golden, &budget)?;
        let judges = match &rules {
            Some((gates, path)) => self.ask_judges(gates, path, &golden, &mut results, &budget)?,
            None => Vec::new(),
        };
        let observed = results.observed(&golden, &[])?;
        let labels = side.package().map_or_else(|| results.labels.clone(), labels_of_interest);
        let mut summaries = summarise(&golden.cases(), &observed, &labels, RESAMPLES);
        let (given, custom) = match &rules {
            Some((gates, path)) => add_custom(gates, path, &mut summaries, &golden, &results)?,
            None => Default::default(),
        };
        let drift = self.compare.then(|| self.drift(package_of(&side, "--compare")?, &golden, &results)).transpose()?;
        let gpu = results.speed.gpu_s_per_1000.map(gpu_cost).transpose()?;
        let ruled = rules.as_ref().map(|(gates, _)| Ruled { gates, given: &given });
        let mut report = EvalReport::of(&results, &golden, &summaries, self.worst, ruled)?;
        report.facts.extend(judges.iter().map(judge_fact).chain(custom.iter().map(custom_fact)));
        report.facts.extend(drift.as_ref().map(|drift| Fact { name: "native", value: drift.in_words() }));
        report.facts.extend(gpu.as_ref().map(|gpu| Fact { name: "gpu", value: gpu.in_words() }));
        if let Some(package) =
            side.package().filter(|_| self.engine.is_native().unwrap_or(false) && !self.answers.no_cache)
        {
            super::monitor::keep_of_golden(package, &golden, &results);
        }
        if let Some(hosted) = side.hosted().filter(|_| !self.answers.no_cache) {
            super::monitor::keep_of_hosted(hosted, &golden, &results);
        }
        if let Some(path) = &self.out {
            results.write(path)?;
        }
        if self.json {
            print_json(&Report {
                judges: &judges,
                custom: &custom,
                ..in_json(&results, &summaries, gpu.as_ref(), drift.as_ref())
            })?;
        } else {
            print_eval(&report);
        }
        let charts = if self.reports.wants_charts() { charts(&observed, &summaries, &labels)? } else { Vec::new() };
        self.reports.write_eval(&report, &charts)?;
        Ok(ExitCode::SUCCESS)
    }

    fn ask_judges(
        &self,
        gates: &Gates,
        path: &Path,
        golden: &GoldenSet,
        results: &mut Results,
        budget: &Budget,
    ) -> anyhow::Result<Vec<JudgeEvidence>> {
        let mut gates = gates.clone();
        // Two answers are compared by a gate, where there are two.
        gates.judges.retain(|_, judge| judge.mode == JudgeMode::Scale);
        ask_judges(&gates, path, &self.answers, golden, [Some(results), None], budget)
    }

    fn side(&self) -> anyhow::Result<Side> {
        match (&self.pipeline, &self.through) {
            (Some(name), Some(url)) => Ok(Side::Pipeline(Box::new(Pipeline::connect(url, name)?))),
            _ => Side::find(self.package.as_ref().expect(REQUIRED), &Home::find()),
        }
    }

    fn answer(&self, side: &Side, golden: &GoldenSet, budget: &Budget) -> anyhow::Result<Results> {
        if let Some(url) = self.through.as_ref().filter(|_| self.pipeline.is_none()) {
            return self.answers.assess_through(url, package_of(side, "--through")?, golden);
        }
        let of_ray = match (&self.ray, self.shards) {
            (Some(address), Some(n_shards)) => {
                let path = golden::path_or_declared(self.golden.as_deref())?;
                Some(shards::on_ray(address, n_shards, package_of(side, "--ray")?, &path, self.answers.threads)?)
            }
            _ => None,
        };
        let shards = of_ray.as_ref().map_or(self.merge.as_slice(), Shards::files);
        let how = How { answers: &self.answers, engine: &self.engine, shards };
        side.answer(&how, golden, N_TIMED, "answers", budget)
    }

    /// From the native runtime's answers to those of another engine.
    fn drift(&self, package: &VerifiedPackage, golden: &GoldenSet, results: &Results) -> anyhow::Result<Drift> {
        let native = self.answers.assess(package, golden, NonZeroUsize::MIN, "native")?;
        Ok(Drift::between(&native, results)?)
    }
}

/// What the user's own programs say, in the summaries.
fn add_custom(
    gates: &Gates,
    path: &Path,
    summaries: &mut [Summary],
    golden: &GoldenSet,
    results: &Results,
) -> anyhow::Result<(BTreeMap<String, Given>, Vec<CustomEvidence>)> {
    let (given, evidence) = run_custom(gates, path, golden, [Some(results), None])?;
    add_given(Ruled { gates, given: &given }, summaries, golden)?;
    Ok((given, evidence))
}

/// What programs of the user's own gave the candidate, in the summaries.
pub fn add_given(ruled: Ruled<'_>, summaries: &mut [Summary], golden: &GoldenSet) -> anyhow::Result<()> {
    for (name, given) in ruled.given {
        let metric = ruled.gates.custom[name].metric();
        add_to_summaries(summaries, &golden.cases(), (metric, name), &given.candidate, RESAMPLES)?;
    }
    Ok(())
}

/// The package of a side; an error where somebody else hosts the model, as `option` is about a package.
fn package_of<'a>(side: &'a Side, option: &str) -> anyhow::Result<&'a VerifiedPackage> {
    side.package()
        .with_context(|| format!("{option} is about a package, and this is a pipeline or hosted by somebody else"))
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
        self.assess_on(&EngineArgs::default(), package, golden, n_alone, who)
    }

    /// As [`AnswerArgs::assess`], with the program run by `engine`. What PyTorch answers is not kept: its bits depend on the batch.
    pub fn assess_on(
        &self,
        engine: &EngineArgs,
        package: &VerifiedPackage,
        golden: &GoldenSet,
        n_alone: NonZeroUsize,
        who: &str,
    ) -> anyhow::Result<Results> {
        let is_native = engine.is_native()?;
        let (predictor, threads) = self.open(package)?;
        let options = RunOptions { threads, n_alone };
        if !is_native {
            let on_torch = engine.start_torch(predictor, threads.get())?;
            return ask(&on_torch, golden, &options, &mut KeptAnswers::none(), who);
        }
        let mut kept = self.kept(&predictor);
        ask(&predictor, golden, &options, &mut kept, who)
    }

    /// Asks the server at `url`, anew: latencies are those that this client sees.
    fn assess_through(&self, url: &str, package: &VerifiedPackage, golden: &GoldenSet) -> anyhow::Result<Results> {
        let (predictor, threads) = self.open(package)?;
        let server = through::Through::connect(predictor, url)?;
        let options = RunOptions { threads, n_alone: N_TIMED };
        let mut results = ask(&server, golden, &options, &mut KeptAnswers::none(), "server")?;
        results.speed.measured = format!("through a server, by its client: {}", results.speed.measured);
        Ok(results)
    }

    /// As [`AnswerArgs::assess`] for one shard.
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

    /// As [`AnswerArgs::assess`] from the `files` of all shards, in any order.
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

/// Runs the golden set through a model, with a progress bar on a terminal.
fn ask(
    model: &impl Model,
    golden: &GoldenSet,
    options: &RunOptions,
    kept: &mut KeptAnswers,
    who: &str,
) -> anyhow::Result<Results> {
    let bar = progress::bar_of_inputs(who);
    let results = run(model, golden, options, kept, told(&bar, who));
    bar.finish_and_clear();
    Ok(results?)
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

/// What a GPU's work costs at the price of the repo's gate rules, where they are there and tell one.
fn gpu_cost(gpu_s_per_1000: f64) -> anyhow::Result<GpuCost> {
    let rules = Path::new("gates.toml").exists().then(|| super::gate::read_gates(None)).transpose()?;
    let rule = rules.and_then(|(_, gates)| gates.cost);
    Ok(GpuCost::of(gpu_s_per_1000, rule.as_ref()))
}

fn in_json<'a>(
    results: &'a Results,
    summaries: &'a [Summary],
    gpu: Option<&'a GpuCost>,
    from_native: Option<&'a Drift>,
) -> Report<'a> {
    Report {
        package: results.package.to_string(),
        golden_set: &results.golden_set,
        numerics_id: &results.numerics_id,
        evidence: results.evidence,
        answers: results.answers.to_string(),
        batch_invariant: results.batch_invariant,
        checked: results.checked,
        summaries,
        latency: results.latency(),
        inputs_per_s: results.speed.inputs_per_s,
        hosted: results.hosted.as_ref(),
        judges: &[],
        custom: &[],
        gpu,
        from_native,
    }
}

/// Prints a value as pretty JSON on stdout.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    outln!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A file's bytes, or an error that names it.
pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))
}
