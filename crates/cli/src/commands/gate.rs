use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use highroad_assess::report::{Chart, GateReport, charts};
use highroad_assess::{Judged, Ruled, Signature, judge_with, keep};
use highroad_eval::{Decision, Gates, Outcome, Verdict, Waiver, summarise};
use highroad_package::Digest;
use jiff::{SignedDuration, Timestamp};

use super::eval::{AnswerArgs, EngineArgs, N_TIMED, Pipeline, RESAMPLES, add_given, print_json, read};
use super::golden::{self, Unblessed};
use super::load::{Files, under_load};
use crate::reports::{ReportArgs, print_gate};
use crate::resolve::{Home, Target};
use crate::side::{CostArgs, How, Side, ask_judges, check_traffic, run_custom};
use crate::standard::Standard;
use crate::tracking::{self, TrackingArgs};

mod pipelines;
mod selftest;

/// Judge a candidate, or test the gate itself.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Command {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    judge: Args,
}

#[derive(clap::Subcommand)]
enum Action {
    Selftest(selftest::Args),
}

impl Command {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.action {
            Some(Action::Selftest(args)) => args.run(),
            None => self.judge.run(),
        }
    }
}

/// Judge a candidate against a baseline, case by case. Exit code 0: pass, 1: fail, 3: the golden set is too small to tell.
#[derive(clap::Args)]
pub struct Args {
    /// The candidate: a package directory, a digest in the local store, a reference such as `router:7`, or the TOML file that
    /// describes a hosted model.
    // Required, but not beside a subcommand, which clap can say of an `Option` only.
    #[arg(required_unless_present = "pipeline")]
    package: Option<Target>,
    /// Judge a pipeline in place of a package: this one of the server that --through names. The verdict is about every member's
    /// package and every index; the registry is told which members it was made with.
    #[arg(long, value_name = "NAME", requires = "through", conflicts_with = "package")]
    pipeline: Option<String>,
    /// The live `highroad serve` whose pipeline is judged, such as `http://127.0.0.1:8080`; a key in `$HIGHROAD_API_KEY` is sent along.
    #[arg(long, value_name = "URL", requires = "pipeline")]
    through: Option<String>,
    /// What it must not be worse than: a package like the candidate, or `trivial` for a first version. Of a pipeline the address of
    /// a server that runs another one of the same name.
    #[arg(long, value_name = "PACKAGE|URL|trivial", required = true)]
    baseline: Option<Target>,
    #[command(flatten)]
    files: Files,
    /// Take the candidate's answers from the files of all shards; a sample is asked here and compared bit by bit.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    answers_of_shards: Vec<PathBuf>,
    /// The same for the baseline's.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    baseline_answers_of_shards: Vec<PathBuf>,
    /// Accept the regression of this case, where the golden set is too small to tell; may be given again.
    #[arg(long, value_name = "CASE", requires_all = ["by", "why"])]
    accept: Vec<String>,
    /// Accept a golden set that is too small although no case regressed.
    #[arg(long, requires_all = ["by", "why"], conflicts_with = "accept")]
    accept_small_set: bool,
    /// Who accepts.
    #[arg(long, value_name = "NAME", requires = "why")]
    by: Option<String>,
    /// Why it is acceptable.
    #[arg(long, value_name = "TEXT", requires = "by")]
    why: Option<String>,
    /// For how many days the acceptance holds, such as `90d`; at most a year.
    #[arg(long, value_name = "DAYS", default_value = "90d", value_parser = parse_days)]
    expires: u32,
    /// Print the verdict as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reports: ReportArgs,
    #[command(flatten)]
    answers: AnswerArgs,
    #[command(flatten)]
    cost: CostArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    tracking: TrackingArgs,
}

/// Exit code of a gate that cannot tell.
const INCONCLUSIVE: u8 = 3;

const LONGEST_ACCEPTANCE_DAYS: u32 = 365;

/// How many inputs of the candidate are timed for a rule about latency: enough for a p99.
const N_TIMED_FOR_A_RULE: NonZeroUsize = NonZeroUsize::new(2000).expect("2000 is not 0");

/// Why an argument that clap requires is there.
pub(super) const REQUIRED: &str = "clap requires it where there is no subcommand";

/// The baseline that needs no model.
const TRIVIAL: &str = "trivial";

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let (rules, gates) = read_gates(self.files.gates.as_deref())?;
        if !self.engine.is_native()? && gates.traffic.is_some() {
            bail!(
                "the rules declare [traffic], which only the native engine is loaded with\nhint: judge PyTorch by --gates FILE without it"
            );
        }
        let golden = golden::read(self.files.golden.as_deref(), Unblessed::Refuse)?.with_slices(&gates.slices)?;
        let home = Home::find();
        let candidate = match (&self.pipeline, &self.through) {
            (Some(name), Some(url)) => Side::Pipeline(Box::new(Pipeline::connect(url, name)?)),
            _ => Side::find(self.package.as_ref().expect(REQUIRED), &home)?,
        };
        let baseline = self.resolve_baseline(&home)?;
        check_apart(&candidate, baseline.as_ref())?;
        check_traffic(gates.traffic.is_some(), [Some(&candidate), baseline.as_ref()])?;
        let budget = self.cost.budget();
        let n_timed = if gates.latency.is_empty() { N_TIMED } else { N_TIMED_FOR_A_RULE };
        let how = |shards| How { answers: &self.answers, engine: &self.engine, shards };
        let (of_shards, baseline_of_shards) = (how(&self.answers_of_shards), how(&self.baseline_answers_of_shards));
        let mut of_candidate = candidate.answer(&of_shards, &golden, n_timed, "candidate", &budget)?;
        let answers = |baseline: &Side| baseline.answer(&baseline_of_shards, &golden, N_TIMED, "baseline", &budget);
        let mut of_baseline = baseline.as_ref().map(answers).transpose()?;
        let judges = ask_judges(
            &gates,
            &gates_path(self.files.gates.as_deref())?,
            &self.answers,
            &golden,
            [Some(&mut of_candidate), of_baseline.as_mut()],
            &budget,
        )?;
        let judged = Judged { golden: &golden, candidate: &of_candidate, baseline: of_baseline.as_ref() };
        let both = [Some(&of_candidate), of_baseline.as_ref()];
        let (given, custom) = run_custom(&gates, &gates_path(self.files.gates.as_deref())?, &golden, both)?;
        let now = Timestamp::now();
        let sides = [candidate.package(), baseline.as_ref().and_then(Side::package)];
        let (decision, traffic) = under_load(
            judge_with(&gates, &judged, &given, &judges)?,
            &self.files,
            self.answers.threads,
            &gates,
            &golden,
            sides,
        )?;
        let decision = self.accept(decision, now)?;
        let signature = Signature {
            gates: Digest::of(&rules),
            baseline_reference: baseline.as_ref().and_then(Side::reference),
            created_at: to_the_millisecond(now),
            created_by: self.by.clone().unwrap_or_else(tracking::whoami),
        };
        let pipeline = candidate.pipeline().map(Pipeline::evidence);
        let verdict = Verdict { traffic, judges, custom, pipeline, ..signature.bind(&judged, decision) };
        if let Some(package) = candidate.package().filter(|_| !self.answers.no_cache) {
            super::monitor::keep_of_golden(package, &golden, &of_candidate);
        }
        if let Some(hosted) = candidate.hosted().filter(|_| !self.answers.no_cache) {
            super::monitor::keep_of_hosted(hosted, &golden, &of_candidate);
        }
        let (digest, path) = keep(home.verdicts(), &of_candidate.package, &verdict)?;
        if let Some(pipeline) = candidate.pipeline() {
            pipelines::tell(&self.tracking, pipeline, &verdict, digest);
        }
        self.report(&verdict, &digest, &judged, Ruled { gates: &gates, given: &given })?;
        eprintln!("verdict {digest}\n{}", path.display());
        Ok(exit_code(verdict.outcome))
    }

    fn resolve_baseline(&self, home: &Home) -> anyhow::Result<Option<Side>> {
        let baseline = self.baseline.as_ref().expect(REQUIRED);
        if baseline.to_string() == TRIVIAL {
            return Ok(None);
        }
        if let Some(name) = &self.pipeline {
            return Ok(Some(Side::Pipeline(Box::new(Pipeline::connect(&baseline.to_string(), name)?))));
        }
        let resolved = Side::find(baseline, home);
        let hint = "cannot find the baseline\nhint: a first version is judged with `--baseline trivial`";
        resolved.context(hint).map(Some)
    }

    fn accept(&self, decision: Decision, now: Timestamp) -> anyhow::Result<Decision> {
        let cases = if self.accept_small_set { vec![String::new()] } else { self.accept.clone() };
        let (Some(by), Some(why)) = (&self.by, &self.why) else { return Ok(decision) };
        if cases.is_empty() {
            bail!("--by and --why accept something: name it with --accept CASE or --accept-small-set");
        }
        if by.trim().is_empty() || why.trim().is_empty() {
            bail!("--by and --why must not be empty");
        }
        let expires_at = whole_seconds(now.checked_add(SignedDuration::from_hours(24 * i64::from(self.expires)))?);
        let waiver = |case| Waiver { case, by: by.clone(), why: why.clone(), expires_at: expires_at.clone() };
        Ok(decision.accept(cases.into_iter().map(waiver).collect())?)
    }

    fn report(&self, verdict: &Verdict, digest: &Digest, judged: &Judged<'_>, ruled: Ruled<'_>) -> anyhow::Result<()> {
        let report = GateReport::of(verdict, digest, judged, ruled)?;
        if self.json {
            print_json(verdict)?;
        } else {
            print_gate(&report);
        }
        let charts = if self.reports.wants_charts() { charts_of(judged, ruled)? } else { Vec::new() };
        self.reports.write_gate(&report, &charts)
    }
}

/// Against itself a candidate holds every margin, so that such a verdict would say nothing and admit it.
fn check_apart(candidate: &Side, baseline: Option<&Side>) -> anyhow::Result<()> {
    match (candidate.digest(), baseline.and_then(Side::digest)) {
        (Some(own), Some(other)) if own == other => bail!(
            "the baseline is the candidate itself, {own}: nothing would be compared\nhint: name what it would replace, such as \
             `NAME@champion`; a first version is judged with `--baseline trivial`"
        ),
        _ => Ok(()),
    }
}

/// Charts of the candidate's answers.
fn charts_of(judged: &Judged<'_>, ruled: Ruled<'_>) -> anyhow::Result<Vec<Chart>> {
    let Judged { golden, candidate, .. } = *judged;
    let observed = candidate.observed(golden, &[])?;
    let mut summaries = summarise(&golden.cases(), &observed, &candidate.labels, RESAMPLES);
    add_given(ruled, &mut summaries, golden)?;
    Ok(charts(&observed, &summaries, &candidate.labels)?)
}

/// The rules at `told`, else those that `highroad.toml` of this directory names, else `gates.toml`; and their bytes.
pub fn read_gates(told: Option<&Path>) -> anyhow::Result<(Vec<u8>, Gates)> {
    let path = gates_path(told)?;
    let bytes = read(&path)?;
    let gates = parse_gates(&bytes).with_context(|| format!("cannot use `{}`", path.display()))?;
    Ok((bytes, gates))
}

/// Where these rules are; the files they name are beside them.
pub fn gates_path(told: Option<&Path>) -> anyhow::Result<PathBuf> {
    let standard = || Standard::find(Path::new(".")).map(|found| found.map(|standard| standard.evaluation.gates));
    Ok(match told {
        Some(path) => path.to_owned(),
        None => standard()?.unwrap_or_else(|| "gates.toml".to_owned()).into(),
    })
}

fn parse_gates(bytes: &[u8]) -> anyhow::Result<Gates> {
    Ok(Gates::parse(std::str::from_utf8(bytes)?)?)
}

fn parse_days(text: &str) -> Result<u32, String> {
    days_up_to(LONGEST_ACCEPTANCE_DAYS, text)
}

/// `90d` or `90`, at least 1 and at most `longest`.
pub(super) fn days_up_to(longest: u32, text: &str) -> Result<u32, String> {
    let days: u32 = text.strip_suffix('d').unwrap_or(text).parse().map_err(|_| "expected days, such as `7d`")?;
    let fits = (1..=longest).contains(&days);
    fits.then_some(days).ok_or_else(|| format!("expected 1 to {longest} days"))
}

/// RFC 3339 in UTC without a fraction, so that comparing text compares time.
pub fn whole_seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// RFC 3339 in UTC with milliseconds, so that of two verdicts in one second the later one is known.
pub fn to_the_millisecond(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// How a command ends whose outcome this is.
pub fn exit_code(outcome: Outcome) -> ExitCode {
    match outcome {
        Outcome::Pass => ExitCode::SUCCESS,
        Outcome::Fail => ExitCode::FAILURE,
        Outcome::Inconclusive => ExitCode::from(INCONCLUSIVE),
    }
}
