use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use highroad_assess::report::{ApartRow, Fact, RolloutReport, one_line, rollout_html, rollout_markdown};
use highroad_eval::{CheckResult, Outcome, Plan, judge_rollout};
use highroad_serve::rollout::{Book, Ended, OnPass, Pair, Rollout, read_pairs};
use serde_json::json;

use super::super::eval::print_json;
use crate::outln;
use crate::reports::{mark, new_table};
use crate::resolve::Home;
use crate::serving;
use crate::tracking::{self, TrackingArgs};

/// Disagreements that a report shows, unless told.
const N_WORST: usize = 20;
/// Longest text of an input or an answer in a report.
const MAX_CHARS: usize = 300;
const GOES_ON: u8 = 3;
const ABORTED: u8 = 1;

/// `highroad deploy status NAME`
#[derive(clap::Args)]
pub(super) struct Args {
    /// Registered model.
    name: String,
    /// The alias it is tried for.
    #[arg(long, default_value = "champion")]
    alias: String,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
    /// Write a page that needs nothing but itself.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the same as Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// How many of the answers that were furthest apart are shown; they come from servers over the same local state.
    #[arg(long, value_name = "N", default_value_t = N_WORST)]
    worst: usize,
    #[command(flatten)]
    tracking: TrackingArgs,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let tracking = tracking::client(&self.tracking)?;
        let tags = tracking.block_on(tracking.client().model_tags(&self.name))?;
        let book = Book::read(&tags, &self.alias);
        let Some(rollout) = &book.rollout else {
            eprintln!("nothing was ever tried for `{}@{}`", self.name, self.alias);
            return Ok(ExitCode::from(crate::USAGE_OR_ENVIRONMENT));
        };
        let dir = serving::local_state(&Home::find())?.rollouts.join(&rollout.id);
        let (worst, n_pairs) =
            read_pairs(&dir, self.worst).with_context(|| format!("cannot read `{}`", dir.display()))?;
        let report = self.report(&book, rollout, &worst, n_pairs)?;
        if let Some(path) = &self.html {
            std::fs::write(path, rollout_html(&report)?)
                .with_context(|| format!("cannot write `{}`", path.display()))?;
        }
        if let Some(path) = &self.markdown {
            std::fs::write(path, rollout_markdown(&report)?)
                .with_context(|| format!("cannot write `{}`", path.display()))?;
        }
        if self.json {
            print_json(&json!({
                "rollout": rollout,
                "step": book.step,
                "percent": if book.end.is_some() { 0.0 } else { rollout.percent(book.step.idx) },
                "end": book.end,
                "counts": counts(&book),
                "checks": report.checks,
                "outcome": report.outcome,
                "replicas": book.seen.len(),
                "worst": worst,
                "ends": book.ends,
            }))?;
        } else {
            print_report(&report);
        }
        Ok(ExitCode::from(match (&book.end, report.outcome) {
            (Some(end), _) if end.outcome == Ended::Aborted => ABORTED,
            (Some(_), _) | (None, Outcome::Pass) => 0,
            (None, _) => GOES_ON,
        }))
    }

    fn report(&self, book: &Book, rollout: &Rollout, worst: &[Pair], n_pairs: usize) -> anyhow::Result<RolloutReport> {
        let checks = match (&book.end, &book.step.passed) {
            (Some(end), _) if !end.checks.is_empty() => end.checks.clone(),
            (None, Some(passed)) => passed.checks.clone(),
            _ => judge_rollout(&rollout.rules, &counts(book))?.checks,
        };
        let (outcome, headline) = self.headline(book, rollout);
        let worst = worst.iter().map(apart).collect();
        Ok(RolloutReport { outcome, headline, worst, n_pairs, facts: facts(book, rollout, &checks), checks })
    }

    fn headline(&self, book: &Book, rollout: &Rollout) -> (Outcome, String) {
        let what = format!("`{}:{}`", self.name, rollout.candidate.version);
        match (&book.end, &book.step.passed) {
            (Some(end), _) if end.outcome == Ended::Promoted => {
                (Outcome::Pass, format!("{what} was promoted at {}: {}", end.at, end.reason))
            }
            (Some(end), _) => {
                (Outcome::Fail, format!("{what} was aborted at {} by {}: {}", end.at, end.by, end.reason))
            }
            (None, Some(passed)) if rollout.on_pass == OnPass::Hold => {
                let hint = format!("`highroad deploy promote {}` moves the alias", self.name);
                (Outcome::Pass, format!("{what} passed at {} and waits for a person: {hint}", passed.at))
            }
            (None, Some(passed)) => (Outcome::Pass, format!("{what} passed at {} and is being promoted", passed.at)),
            (None, None) => {
                let percent = rollout.percent(book.step.idx);
                let how = match rollout.plan {
                    Plan::Shadow { .. } => format!("answers {percent} % of the requests a second time, unseen"),
                    Plan::Canary { .. } => format!("answers {percent} % of the requests"),
                };
                (Outcome::Inconclusive, format!("{what} {how}; too few were compared to tell"))
            }
        }
    }
}

/// What was seen by the end, or is seen now.
fn counts(book: &Book) -> highroad_eval::RolloutCounts {
    book.end.as_ref().map_or_else(|| book.counts(), |end| end.counts)
}

fn facts(book: &Book, rollout: &Rollout, checks: &[CheckResult]) -> Vec<Fact> {
    let percents: Vec<String> = rollout.plan.percents().iter().map(|percent| format!("{percent} %")).collect();
    let plan = match rollout.plan {
        Plan::Shadow { .. } => format!("shadow of {}", percents.join(", ")),
        Plan::Canary { .. } => format!("canary of {}", percents.join(", ")),
    };
    let seen = counts(book);
    let n_rules = checks.len();
    vec![
        Fact { name: "rollout", value: rollout.id.clone() },
        Fact { name: "plan", value: plan },
        Fact { name: "stable", value: format!("version {}, {}", rollout.stable.version, rollout.stable.package) },
        Fact {
            name: "candidate",
            value: format!("version {}, {}", rollout.candidate.version, rollout.candidate.package),
        },
        Fact { name: "begun", value: format!("{} by {}: {}", rollout.begun_at, rollout.by, rollout.why) },
        Fact {
            name: "seen",
            value: format!(
                "{} requests asked of it by {} replicas, {} compared, {} with a right answer",
                seen.n_asked,
                book.seen.len(),
                seen.n_compared,
                seen.n_labelled
            ),
        },
        Fact {
            name: "sure",
            value: format!("{n_rules} rules together are ever wrong with probability at most {}", rollout.rules.alpha),
        },
    ]
}

/// One request's answers, side by side.
fn apart(pair: &Pair) -> ApartRow {
    let compared = &pair.compared;
    let told = [
        (compared.n_flips > 0).then(|| format!("{} label(s) flipped", compared.n_flips)),
        compared.shift.map(|shift| format!("scores by {shift:.3}")),
        compared.cosine.map(|cosine| format!("cosine {cosine:.4}")),
        compared.overlap.map(|overlap| format!("overlap {overlap:.3}")),
    ];
    let input = match &pair.kept {
        Some(inputs) => serde_json::to_string(inputs).unwrap_or_default(),
        None => pair.inputs.iter().map(|digest| digest.short()).collect::<Vec<_>>().join(", "),
    };
    ApartRow {
        request_id: pair.request_id.clone(),
        apart: told.into_iter().flatten().collect::<Vec<_>>().join(", "),
        stable: one_line(&pair.stable.join(", "), MAX_CHARS),
        candidate: one_line(&pair.candidate.join(", "), MAX_CHARS),
        input: one_line(&input, MAX_CHARS),
    }
}

fn print_report(report: &RolloutReport) {
    outln!("{}", one_line(&report.headline, usize::MAX));
    outln!();
    for check in &report.checks {
        outln!("{}  {}", mark(check.outcome), check.rule);
        outln!("      {}", check.reason);
    }
    if !report.worst.is_empty() {
        let mut table = new_table(["request", "apart", "stable", "candidate", "input"]);
        for row in report.worst.iter().take(N_WORST) {
            let short = |text: &str| one_line(text, 32);
            table.add_row([
                short(&row.request_id),
                row.apart.clone(),
                short(&row.stable),
                short(&row.candidate),
                short(&row.input),
            ]);
        }
        outln!("\nfurthest apart of {} written down\n{table}", report.n_pairs);
    }
    outln!();
    report.facts.iter().for_each(|fact| outln!("{:<10} {}", fact.name, one_line(&fact.value, usize::MAX)));
}
