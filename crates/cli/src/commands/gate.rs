use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use highroad_assess::{GoldenSet, Judged, Results, Signature, judge, keep};
use highroad_eval::{CheckResult, Decision, Flip, Gates, Outcome, Verdict, Waiver};
use highroad_package::{Digest, VerifiedPackage};
use jiff::{SignedDuration, Timestamp};

use super::eval::{asked, assess, new_table, print_json, read, read_golden, shorten};
use super::load::{Files, under_load};
use crate::resolve::{Home, Resolved, Target};
use crate::standard::Standard;
use crate::tracking;

/// Judge a candidate against a baseline, case by case. Exit code 0: pass, 1: fail, 3: the golden set is too small to tell.
#[derive(clap::Args)]
pub struct Args {
    /// The candidate: a package directory, a digest in the local store, or a reference such as `router:7`.
    package: Target,
    /// What it must not be worse than: a package like the candidate, or `trivial` for a first version.
    #[arg(long, value_name = "PACKAGE|trivial")]
    baseline: Target,
    #[command(flatten)]
    files: Files,
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
    expires: i64,
    /// Print the verdict as JSON.
    #[arg(long)]
    json: bool,
}

/// Exit code of a gate that cannot tell.
const INCONCLUSIVE: u8 = 3;

const LONGEST_ACCEPTANCE_DAYS: i64 = 365;

/// The baseline that needs no model.
const TRIVIAL: &str = "trivial";

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let (rules, gates) = read_gates(self.files.gates.as_deref())?;
        let golden = read_golden(self.files.golden.as_deref())?;
        let home = Home::find();
        let candidate = self.package.resolve(&home)?;
        let baseline = self.resolve_baseline(&home)?;
        let of_candidate = assess(&candidate.package, &golden, self.files.threads, "candidate")?;
        let of_baseline = baseline.as_ref().map(|baseline| self.answers_of(&baseline.package, &golden)).transpose()?;
        let judged = Judged { golden: &golden, candidate: &of_candidate, baseline: of_baseline.as_ref() };
        let now = Timestamp::now();
        let sides = [Some(&candidate.package), baseline.as_ref().map(|baseline| &baseline.package)];
        let (decision, traffic) = under_load(judge(&gates, &judged)?, &self.files, &gates, &golden, sides)?;
        let decision = self.accept(decision, now)?;
        let signature = Signature {
            gates: Digest::of(&rules),
            baseline_reference: baseline.and_then(|baseline| baseline.reference).map(|name| name.to_string()),
            created_at: whole_seconds(now),
            created_by: self.by.clone().unwrap_or_else(tracking::whoami),
        };
        let verdict = Verdict { traffic, ..signature.bind(&judged, decision) };
        self.report(&verdict, &judged)?;
        let (digest, path) = keep(home.verdicts(), &of_candidate.package, &verdict)?;
        eprintln!("verdict {digest}\n{}", path.display());
        Ok(exit_code(verdict.outcome))
    }

    fn resolve_baseline(&self, home: &Home) -> anyhow::Result<Option<Resolved>> {
        if self.baseline.to_string() == TRIVIAL {
            return Ok(None);
        }
        let resolved = self.baseline.resolve(home);
        let hint = "cannot find the baseline\nhint: a first version is judged with `--baseline trivial`";
        resolved.context(hint).map(Some)
    }

    fn answers_of(&self, package: &VerifiedPackage, golden: &GoldenSet) -> anyhow::Result<Results> {
        assess(package, golden, self.files.threads, "baseline ")
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
        let expires_at = whole_seconds(now.checked_add(SignedDuration::from_hours(24 * self.expires))?);
        let waiver = |case| Waiver { case, by: by.clone(), why: why.clone(), expires_at: expires_at.clone() };
        Ok(decision.accept(cases.into_iter().map(waiver).collect())?)
    }

    fn report(&self, verdict: &Verdict, judged: &Judged<'_>) -> anyhow::Result<()> {
        if self.json {
            print_json(verdict)
        } else {
            print_verdict(verdict, judged);
            Ok(())
        }
    }
}

/// The rules at `told`, else those that `highroad.toml` of this directory names, else `gates.toml`; and their bytes.
pub fn read_gates(told: Option<&Path>) -> anyhow::Result<(Vec<u8>, Gates)> {
    let standard = || Standard::find(Path::new(".")).map(|found| found.map(|standard| standard.evaluation.gates));
    let path: PathBuf = match told {
        Some(path) => path.to_owned(),
        None => standard()?.unwrap_or_else(|| "gates.toml".to_owned()).into(),
    };
    let bytes = read(&path)?;
    let gates = parse_gates(&bytes).with_context(|| format!("cannot use `{}`", path.display()))?;
    Ok((bytes, gates))
}

fn parse_gates(bytes: &[u8]) -> anyhow::Result<Gates> {
    Ok(Gates::parse(std::str::from_utf8(bytes)?)?)
}

fn parse_days(text: &str) -> Result<i64, String> {
    let days: i64 = text.strip_suffix('d').unwrap_or(text).parse().map_err(|_| "expected days, such as `90d`")?;
    let fits = (1..=LONGEST_ACCEPTANCE_DAYS).contains(&days);
    fits.then_some(days).ok_or_else(|| format!("expected 1 to {LONGEST_ACCEPTANCE_DAYS} days"))
}

/// RFC 3339 in UTC without a fraction, so that comparing text compares time.
fn whole_seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn exit_code(outcome: Outcome) -> ExitCode {
    match outcome {
        Outcome::Pass => ExitCode::SUCCESS,
        Outcome::Fail => ExitCode::FAILURE,
        Outcome::Inconclusive => ExitCode::from(INCONCLUSIVE),
    }
}

#[allow(clippy::print_stdout)]
fn print_verdict(verdict: &Verdict, judged: &Judged<'_>) {
    let set = &verdict.golden_set;
    println!("candidate  {}", verdict.package);
    match judged.baseline {
        Some(baseline) => println!("baseline   {}", baseline.package),
        None => println!("baseline   trivial, as a first version has no champion"),
    }
    println!("golden set {} ({} cases), {}\n", set.name, set.n_cases, set.digest);
    for check in &verdict.checks {
        println!("{}  {}", mark(check.outcome), check.rule);
        println!("      {}", check.reason);
        let facts = facts(check);
        if !facts.is_empty() {
            println!("      {facts}");
        }
    }
    if let Some(evidence) = &verdict.traffic {
        println!();
        super::load::print(evidence);
    }
    print_flips(&verdict.flips, judged.golden);
    for waiver in &verdict.waivers {
        let case = if waiver.case.is_empty() { "the small golden set" } else { &waiver.case };
        println!("accepted   {case} by {} until {}: {}", waiver.by, waiver.expires_at, waiver.why);
    }
    println!("\n{}", sentence(verdict));
}

fn mark(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "pass",
        Outcome::Fail => "FAIL",
        Outcome::Inconclusive => "????",
    }
}

/// The interval, the test, and what the check could have seen.
fn facts(check: &CheckResult) -> String {
    let test = check.p_value.map(|p| match p {
        p if p < 0.001 => "exact McNemar p < 0.001".to_owned(),
        p => format!("exact McNemar p = {p:.3}"),
    });
    test.into_iter().chain(check.power_note.clone()).collect::<Vec<_>>().join("; ")
}

/// How many flips of either kind are listed; the verdict holds all.
const MOST_FLIPS_SHOWN: usize = 20;

#[allow(clippy::print_stdout)]
fn print_flips(flips: &[Flip], golden: &GoldenSet) {
    let (regressions, improvements): (Vec<&Flip>, Vec<&Flip>) = flips.iter().partition(|flip| flip.regression);
    for (what, flips) in [("lost", regressions), ("won", improvements)] {
        if flips.is_empty() {
            continue;
        }
        println!("\n{} case(s) {what}", flips.len());
        let mut table = new_table(["case", "expected", "baseline", "candidate", "input"]);
        for flip in flips.iter().take(MOST_FLIPS_SHOWN) {
            let case = if flip.must_pass { format!("{} (must pass)", flip.case) } else { flip.case.clone() };
            table.add_row([&case, &flip.expected, &flip.baseline, &flip.candidate, &text_of(&flip.case, golden)]);
        }
        println!("{table}");
        if flips.len() > MOST_FLIPS_SHOWN {
            println!("and {} more in the verdict", flips.len() - MOST_FLIPS_SHOWN);
        }
    }
}

fn text_of(id: &str, golden: &GoldenSet) -> String {
    let case = golden.cases.iter().find(|case| case.case.id == id);
    case.map_or_else(String::new, |case| shorten(&asked(&case.input), 48))
}

/// The outcome in one sentence a person understands.
fn sentence(verdict: &Verdict) -> String {
    let named = |outcome| {
        let checks = verdict.checks.iter().filter(move |check| check.outcome == outcome);
        checks.map(|check| format!("{} ({})", check.rule, check.reason)).collect::<Vec<_>>()
    };
    match verdict.outcome {
        Outcome::Pass if verdict.waivers.is_empty() => format!("PASS: all {} checks hold", verdict.checks.len()),
        Outcome::Pass => format!(
            "PASS: {} accepted what the golden set is too small to tell, until {}",
            verdict.waivers[0].by, verdict.waivers[0].expires_at
        ),
        Outcome::Fail => match named(Outcome::Fail).as_slice() {
            [] => "FAIL: the candidate lost a case that must pass".to_owned(),
            [only] => format!("FAIL: {only}"),
            [first, rest @ ..] => format!("FAIL: {first}; and {} more", rest.len()),
        },
        Outcome::Inconclusive => {
            format!("INCONCLUSIVE: {}\n{}", named(Outcome::Inconclusive).join("; "), way_out(verdict))
        }
    }
}

fn way_out(verdict: &Verdict) -> String {
    let open = verdict.checks.iter().filter(|check| check.outcome == Outcome::Inconclusive);
    let n_regressions = verdict.flips.iter().filter(|flip| flip.regression).count();
    if !open.into_iter().all(|check| check.waivable) {
        return "hint: add cases to the golden set, or state a rule it can decide".to_owned();
    }
    match n_regressions {
        0 => "hint: add cases, or a named person accepts the small set: --accept-small-set --by NAME --why TEXT"
            .to_owned(),
        n => format!(
            "hint: add cases, or a named person accepts each of the {n} lost: --accept CASE … --by NAME --why TEXT"
        ),
    }
}
