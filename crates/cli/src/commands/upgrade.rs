//! `highroad upgrade`: the same weights through another environment, and what that changes.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread::available_parallelism;
use std::time::Instant;

use anyhow::{Context as _, bail};
use highroad_assess::report::{
    AdvisoryKind, Fact, LatencyChange, MetricChange, PackageChange, UpgradeCheck, UpgradeReport, outcome_of,
    upgrade_html, upgrade_markdown,
};
use highroad_assess::{Drift, GoldenInput, GoldenSet, Judged, Results, judge_with};
use highroad_eval::{Decision, Gates, Outcome, quantile, summarise};
use highroad_package::{Digest, PROGRAM, Package, TaskKind, VerifiedPackage};
use highroad_runtime::RunOptions;
use highroad_task::{Input, ParityReport, Predictor, PredictorOptions, check_cases};

use super::doctor::differing_from_lock;
use super::eval::{AnswerArgs, N_TIMED, RESAMPLES, print_json};
use super::export::{self, Weights, expect_signature};
use super::gate::{exit_code, gates_path, read_gates};
use super::golden::{self, Unblessed};
use super::inspect::graph_text;
use super::load::Files;
use crate::environment;
use crate::repo::Python;
use crate::resolve::{Home, Target};
use crate::side::run_custom;
use crate::standard::Standard;
use crate::training::TrainedBy;

mod advisories;
mod lock;

/// Export again with another PyTorch, or another lock file, and tell what changes: pass 0, fail 1, too few cases to tell 3.
///
/// The present environment, its packages and its lock file stay as they are: the new environment and the new lock file lie in the home.
#[derive(clap::Args)]
pub struct Args {
    /// A package in another version, such as `torch==2.15.0`; may be given again.
    #[arg(long, value_name = "PACKAGE==VERSION", required_unless_present = "lock", conflicts_with = "lock")]
    to: Vec<lock::Wanted>,
    /// A lock file that is resolved already.
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// What `highroad train` wrote [default: `training.output` of highroad.toml]
    #[arg(long)]
    from: Option<PathBuf>,
    /// What to compare with [default: the same weights, exported in the present environment]
    #[arg(long, value_name = "PACKAGE")]
    baseline: Option<Target>,
    /// Who is asked about known vulnerabilities of the packages that change: `pypi`, `osv`, the query address of a server that answers as
    /// osv.dev does, or `none` [default: pypi, where it can be reached]
    #[arg(long, value_name = "SERVICE")]
    advisories: Option<advisories::Service>,
    /// A vulnerability of the new versions that a person has looked at, such as `CVE-2025-32434`; may be given again.
    #[arg(long, value_name = "ID")]
    accept_advisory: Vec<String>,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    answers: AnswerArgs,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// Write a page that needs nothing but itself.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the same as Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Options of the export script
    #[arg(last = true)]
    script_args: Vec<String>,
}

/// Most lines of a graph's difference that are told.
const MOST_GRAPH_LINES: usize = 200;

/// One side of the comparison.
struct Side {
    package: VerifiedPackage,
    python: Python,
    lock: String,
    predictor: Predictor,
    results: Results,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let (root, home) = (Path::new("."), Home::find());
        let standard = Standard::load_trained(root)?;
        let (_, gates) = read_gates(self.files.gates.as_deref())?;
        let golden = golden::read(self.files.golden.as_deref(), Unblessed::Refuse)?.with_slices(&gates.slices)?;
        let output = self.from.clone().unwrap_or_else(|| standard.training.output.clone().into());
        if !output.is_dir() {
            bail!("there is nothing trained in `{}`: run `highroad train` first", output.display());
        }
        let present = Python::find(root)?;
        let path = self.new_lock(&standard, &present, &home)?;
        let locks = [root.join(&standard.environment.lock), path.clone()]
            .map(|path| fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display())));
        let [old_lock, new_lock] = locks;
        let new_lock = new_lock?;
        let built = environment::build(&present, &path, &Digest::of(new_lock.as_bytes()))?;

        let before = match &self.baseline {
            Some(target) => target.resolve(&home)?.package,
            None => self.export(&present, &standard, &output, &home)?,
        };
        let mut upgraded = standard.clone();
        path.to_str()
            .context("the path of the new lock file is not valid UTF-8")?
            .clone_into(&mut upgraded.environment.lock);
        let after = self.export(&built, &upgraded, &output, &home)?;
        let before = self.side(before, present, old_lock?, &golden, "before")?;
        let after = self.side(after, built, new_lock, &golden, "after")?;
        let both = [Some(&after.results), Some(&before.results)];
        let (given, _) = run_custom(&gates, &gates_path(self.files.gates.as_deref())?, &golden, both)?;
        let judged = Judged { golden: &golden, candidate: &after.results, baseline: Some(&before.results) };
        let decision = judge_with(&gates, &judged, &given, &[])?;
        let question = advisories::Question { service: self.advisories.as_ref(), accepted: &self.accept_advisory };
        let report = report(&before, &after, &golden, (&gates, decision), &path, &question)?;
        self.tell(&report)?;
        Ok(exit_code(report.outcome))
    }

    /// The lock file that is upgraded to: the given one, or a new one in the home.
    fn new_lock(&self, standard: &Standard, python: &Python, home: &Home) -> anyhow::Result<PathBuf> {
        if let Some(path) = &self.lock {
            return lock::given(path);
        }
        let folder = std::path::absolute(home.path())?.join("upgrades");
        fs::create_dir_all(&folder)?;
        let resolving = folder.join("resolving.txt");
        lock::resolve(Path::new("."), standard, &self.to, python, &resolving)?;
        let digest = Digest::of(&fs::read(&resolving)?);
        let path = folder.join(format!("{}.txt", digest.short()));
        fs::rename(&resolving, &path)?;
        eprintln!("lock      {}", path.display());
        Ok(path)
    }

    /// A package of the weights in `output`, exported by `python`, in the local store.
    fn export(
        &self,
        python: &Python,
        standard: &Standard,
        output: &Path,
        home: &Home,
    ) -> anyhow::Result<VerifiedPackage> {
        let trained = TrainedBy::read(output)?;
        let run_id = trained.as_ref().map(|trained| trained.run_id.clone());
        let work = tempfile::tempdir()?;
        let (source, package) = (work.path().join("source"), work.path().join("package"));
        let weights = Weights { folder: output, trained: trained.as_ref(), run_id: run_id.as_deref() };
        export::export(python, standard, &weights, &self.script_args, &source)
            .with_context(|| format!("cannot export with {}", python.path().display()))?;
        let digest = highroad_package::pack(&source, &package)?;
        expect_signature(standard, Package::open(&package)?.verify()?.manifest())?;
        let store = home.store()?;
        store.add(&package)?;
        Ok(store.get(&digest)?)
    }

    fn side(
        &self,
        package: VerifiedPackage,
        python: Python,
        lock: String,
        golden: &GoldenSet,
        who: &str,
    ) -> anyhow::Result<Side> {
        let results = self.answers.assess(&package, golden, N_TIMED, who)?;
        let threads = self.answers.threads.or_else(|| available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
        let predictor = Predictor::open(&package, &PredictorOptions { threads, ..PredictorOptions::default() })?;
        Ok(Side { package, python, lock, predictor, results })
    }

    fn tell(&self, report: &UpgradeReport) -> anyhow::Result<()> {
        let write = |path: &Option<PathBuf>, text: &dyn Fn() -> anyhow::Result<String>| match path {
            Some(path) => fs::write(path, text()?).with_context(|| format!("cannot write `{}`", path.display())),
            None => Ok(()),
        };
        write(&self.html, &|| Ok(upgrade_html(report)?))?;
        write(&self.markdown, &|| Ok(upgrade_markdown(report)?))?;
        if self.json {
            return print_json(report);
        }
        print(report, &mut std::io::stdout().lock())?;
        Ok(())
    }
}

fn report(
    before: &Side,
    after: &Side,
    golden: &GoldenSet,
    (gates, decision): (&Gates, Decision),
    lock: &Path,
    question: &advisories::Question<'_>,
) -> anyhow::Result<UpgradeReport> {
    let mut checks = parity_checks(before, after)?;
    checks.extend(decision.checks.into_iter().map(|check| UpgradeCheck::new(check.rule, check.outcome, check.reason)));
    if let Some(flip) = decision.flips.iter().find(|flip| flip.must_pass && flip.regression) {
        let reason = format!("case `{}` was {} and is {}", flip.case, flip.baseline, flip.candidate);
        checks.push(UpgradeCheck::new("no must-pass case is lost", Outcome::Fail, reason));
    }
    let packages =
        lock::changes([&before.lock, &after.lock], &[lock::licences(&before.python)?, lock::licences(&after.python)?]);
    let advisories = question.ask(&packages, &before.python);
    checks.extend(advisories.check);
    let drift = Drift::between(&before.results, &after.results)?;
    let diff = graph_diff(&before.package, &after.package)?;
    let (outcome, n_lines) = (outcome_of(&checks), diff.len());
    let drift_in_words = drift.in_words();
    Ok(UpgradeReport {
        outcome,
        headline: headline(outcome, &packages, &drift),
        checks,
        drift,
        drift_in_words,
        metrics: metrics(before, after, golden)?,
        latency: in_turns(before, after, golden)?,
        facts: facts(before, after, gates, &packages, lock, advisories.in_words)?,
        packages,
        advisories: advisories.changes,
        graph_diff: diff.into_iter().take(MOST_GRAPH_LINES).collect(),
        n_more_lines: n_lines.saturating_sub(MOST_GRAPH_LINES),
    })
}

fn headline(outcome: Outcome, packages: &[PackageChange], drift: &Drift) -> String {
    let word = match outcome {
        Outcome::Pass => "pass",
        Outcome::Fail => "fail",
        Outcome::Inconclusive => "inconclusive",
    };
    let torch = packages.iter().find(|package| package.name == "torch");
    let torch =
        torch.and_then(|torch| Some(format!("torch {} to {}, ", torch.before.as_ref()?, torch.after.as_ref()?)));
    let Drift { n_flips, n_cases, .. } = drift;
    let torch = torch.unwrap_or_default();
    format!("{word}: {torch}{} package(s) change, {n_flips} of {n_cases} decisions flip", packages.len())
}

/// The new program against what the PyTorch of each side computed from the same weights.
fn parity_checks(before: &Side, after: &Side) -> anyhow::Result<Vec<UpgradeCheck>> {
    let check = |rule: &str, report: &ParityReport| {
        let outcome = if report.passed() { Outcome::Pass } else { Outcome::Fail };
        let (worst, limit) = (report.worst(), report.limit);
        let reason = format!(
            "relative rms {:.1e} at most over {} outputs, {limit:.0e} allowed",
            worst.relative_rms,
            report.cases.len()
        );
        UpgradeCheck::new(rule, outcome, reason)
    };
    let old = &before.package.manifest().parity;
    let options = RunOptions::with_threads(after.predictor.options().threads);
    let across = check_cases(after.predictor.program(), &before.package.read(&old.file)?, old.check, &options);
    let mut checks = vec![check("the runtime computes what the new PyTorch computed", &after.predictor.parity()?)];
    checks.push(match across {
        Ok(report) => check("the new program computes what the old PyTorch computed", &report),
        Err(error) => {
            let reason = format!("its parity cases do not run: {error}");
            UpgradeCheck::new("the new program computes what the old PyTorch computed", Outcome::Fail, reason)
        }
    });
    Ok(checks)
}

fn metrics(before: &Side, after: &Side, golden: &GoldenSet) -> anyhow::Result<Vec<MetricChange>> {
    let measured = |side: &Side| -> anyhow::Result<Vec<(String, f64)>> {
        let observed = side.results.observed(golden, &[])?;
        let summaries = summarise(&golden.cases(), &observed, &side.results.labels, RESAMPLES);
        let all = summaries.into_iter().next().map(|all| all.metrics).unwrap_or_default();
        let name = |metric: String, label: Option<String>| match label {
            Some(label) => format!("{metric} of \"{label}\""),
            None => metric,
        };
        Ok(all.into_iter().map(|m| (name(m.metric.to_string(), m.label), m.value)).collect())
    };
    let (before, after) = (measured(before)?, measured(after)?);
    let change = |(metric, before): (String, f64)| {
        let after = after.iter().find(|(name, _)| *name == metric)?.1;
        Some(MetricChange { metric, before, after })
    };
    Ok(before.into_iter().filter_map(change).collect())
}

/// Both sides asked single inputs in turns, the one first and then the other, so that a busy moment meets both.
fn in_turns(before: &Side, after: &Side, golden: &GoldenSet) -> anyhow::Result<LatencyChange> {
    let is_rerank = matches!(before.package.manifest().task.kind, TaskKind::Rerank);
    let n_inputs = golden.cases.len().min(N_TIMED.get());
    let step = |idx: usize| idx * golden.cases.len() / n_inputs;
    let mut times: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    for idx in 0..n_inputs {
        let Some(input) = first_input(&*golden.input(step(idx))?, is_rerank) else { continue };
        let order = if idx % 2 == 0 { [0, 1] } else { [1, 0] };
        for side in order {
            let predictor = [&before.predictor, &after.predictor][side];
            let start = Instant::now();
            predictor.answer(&[predictor.prepare(&input)?])?;
            times[side].push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        quantile(&values, 0.5)
    };
    let ratio = median(times[0].iter().zip(&times[1]).map(|(before, after)| after / before).collect());
    let [p50_ms_before, p50_ms_after] = times.map(median);
    Ok(LatencyChange { n_inputs, p50_ms_before, p50_ms_after, ratio })
}

fn first_input(input: &GoldenInput, is_rerank: bool) -> Option<Input> {
    Some(match input {
        GoldenInput::One(input) => input.clone(),
        GoldenInput::Pair([text, _]) | GoldenInput::Triplet([text, ..]) => Input::Text(text.clone()),
        GoldenInput::Ranking { query, documents } if is_rerank => {
            Input::Pair { query: query.clone(), document: documents.first()?.clone() }
        }
        GoldenInput::Ranking { query, .. } => Input::Text(query.clone()),
        GoldenInput::Prompt(_) => return None,
    })
}

/// The canonical graphs line by line, as `git diff` tells it.
fn graph_diff(before: &VerifiedPackage, after: &VerifiedPackage) -> anyhow::Result<Vec<String>> {
    let folder = tempfile::tempdir()?;
    for (package, name) in [(before, "before"), (after, "after")] {
        fs::write(folder.path().join(name), graph_text(&package.path(PROGRAM)?)? + "\n")?;
    }
    let options = ["diff", "--no-index", "--no-color", "--no-ext-diff", "--unified=1", "before", "after"];
    let output = Command::new("git").args(options).current_dir(folder.path()).output().context("cannot start git")?;
    // Exit code 1 says that they differ.
    if output.status.code().is_none_or(|code| code > 1) {
        bail!("git cannot compare the graphs: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().skip_while(|line| !line.starts_with("@@")).map(str::to_owned).collect())
}

fn facts(
    before: &Side,
    after: &Side,
    gates: &Gates,
    packages: &[PackageChange],
    lock: &Path,
    advisories: String,
) -> anyhow::Result<Vec<Fact>> {
    let fact = |name, value: String| Fact { name, value };
    let torch = |side: &Side| -> anyhow::Result<String> {
        let installed = side.python.installed()?;
        let build = installed.torch.as_ref().map_or_else(|| "no torch".to_owned(), |build| build.described());
        let n_others = differing_from_lock(&side.lock, &installed).len();
        let others =
            if n_others == 0 { String::new() } else { format!("; {n_others} packages differ from its lock file") };
        Ok(format!("torch {build}, Python {}{others}", installed.python))
    };
    let n_licences = packages.iter().filter(|package| package.changes_licence()).count();
    let mut facts = vec![
        fact("before", format!("{}, {}", before.package.digest(), torch(before)?)),
        fact("after", format!("{}, {}", after.package.digest(), torch(after)?)),
        fact("numerics", after.results.numerics_id.clone()),
        fact("licences", format!("{n_licences} package(s) are new or declare another licence than before")),
        fact("advisories", advisories),
        fact("lock", lock.display().to_string()),
    ];
    if gates.traffic.is_some() {
        facts.push(fact("traffic", "not loaded: `highroad gate` judges the rules about [traffic]".to_owned()));
    }
    Ok(facts)
}

fn print(report: &UpgradeReport, out: &mut impl std::io::Write) -> std::io::Result<()> {
    let word = |outcome| match outcome {
        Outcome::Pass => "pass",
        Outcome::Fail => "FAIL",
        Outcome::Inconclusive => "open",
    };
    writeln!(out, "{}\n", report.headline)?;
    for UpgradeCheck { rule, outcome, reason } in &report.checks {
        writeln!(out, "{}  {rule}\n      {reason}", word(*outcome))?;
    }
    writeln!(out, "\nanswers    {}", report.drift_in_words)?;
    for MetricChange { metric, before, after } in report.metrics.iter().filter(|metric| metric.before != metric.after) {
        writeln!(out, "metric     {metric} {before:.4}, now {after:.4}")?;
    }
    let LatencyChange { n_inputs, p50_ms_before, p50_ms_after, ratio } = report.latency;
    writeln!(
        out,
        "latency    p50 {p50_ms_before:.2} ms, now {p50_ms_after:.2} ms ({ratio:.2} times) over {n_inputs} inputs in turns"
    )?;
    for PackageChange { name, before, after, licence_before, licence_after } in &report.packages {
        let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "none".to_owned());
        let licence = match (licence_before, licence_after) {
            (before, Some(after)) if before.as_ref() != Some(after) => format!("; licence {after}"),
            _ => String::new(),
        };
        writeln!(out, "package    {name} {}, now {}{licence}", version(before), version(after))?;
    }
    for advisory in &report.advisories {
        let word = match advisory.kind {
            AdvisoryKind::New => "new",
            AdvisoryKind::Accepted => "accepted",
            AdvisoryKind::Stays => "stays",
            AdvisoryKind::Gone => "gone",
        };
        writeln!(out, "advisory   {word}: {}", advisory.in_words())?;
    }
    match report.graph_diff.is_empty() {
        true => writeln!(out, "graph      the same")?,
        false => writeln!(out, "graph")?,
    }
    report.graph_diff.iter().try_for_each(|line| writeln!(out, "  {line}"))?;
    if report.n_more_lines > 0 {
        writeln!(out, "  and {} more lines", report.n_more_lines)?;
    }
    report.facts.iter().try_for_each(|Fact { name, value }| writeln!(out, "{name:<10} {value}"))
}
