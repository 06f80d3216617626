mod server;
mod times;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use highroad_assess::report::{ApartRow, Fact, RolloutReport, one_line, rollout_html, rollout_markdown};
use highroad_eval::{CheckResult, Outcome, Plan, judge_rollout};
use highroad_serve::hosted::Preferred;
use highroad_serve::rollout::{Book, Ended, Latencies, OnPass, Pair, Rollout, Spent, Written, read_pairs};
use serde_json::json;

use super::super::eval::print_json;
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
    /// Registered model; of `--server` a member, or all of them without a name.
    #[arg(required_unless_present = "server")]
    name: Option<String>,
    /// Ask this server, not the registry: where its members stand and what it has seen. A key in `$HIGHROAD_API_KEY` is sent along.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Look again and again until the rollout has ended; with `--json` a line each time that something has changed.
    #[arg(long)]
    watch: bool,
    /// Seconds between two looks.
    #[arg(long, value_name = "S", default_value_t = 2.0, requires = "watch", value_parser = parse_seconds)]
    every: f64,
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

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    if (0.05..=86_400.0).contains(&seconds) { Ok(seconds) } else { Err("expected 0.05 to 86400 seconds".to_owned()) }
}

/// One look.
struct Look {
    /// For people.
    text: String,
    /// For programs.
    json: serde_json::Value,
    code: u8,
    /// Whether nothing more is to be waited for.
    is_over: bool,
}

/// A rollout as somebody knows it.
struct Known {
    book: Book,
    /// The requests whose answers were furthest apart, and of how many.
    worst: Vec<Pair>,
    n_pairs: usize,
    /// What both versions took, and what the answers of the requests that were timed counted.
    latency: Option<Latencies>,
    spent: Spent,
    /// Whether a server told it, which adds up what replicas tell it.
    of_server: bool,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut shown: Option<Look> = None;
        loop {
            let looked = self.look();
            let look = match (looked, &shown) {
                (Ok(look), _) => look,
                // What was there a moment ago comes back: a server is restarted, a registry has an outage.
                (Err(error), Some(_)) if self.watch => {
                    eprintln!("{error:#}; looking again");
                    std::thread::sleep(Duration::from_secs_f64(self.every));
                    continue;
                }
                (Err(error), _) => return Err(error),
            };
            if shown.as_ref().is_none_or(|shown| shown.json != look.json) {
                self.show(&look)?;
            }
            if !self.watch || look.is_over {
                return Ok(ExitCode::from(look.code));
            }
            shown = Some(look);
            std::thread::sleep(Duration::from_secs_f64(self.every));
        }
    }

    fn show(&self, look: &Look) -> anyhow::Result<()> {
        let mut stdout = std::io::stdout();
        match (self.json, self.watch) {
            (true, true) => writeln!(stdout, "{}", look.json)?,
            (true, false) => print_json(&look.json)?,
            (false, watch) => {
                if watch && stdout.is_terminal() {
                    // Home, then everything below: what was shown before is overwritten.
                    write!(stdout, "\x1b[H\x1b[J")?;
                }
                write!(stdout, "{}", look.text)?;
            }
        }
        Ok(stdout.flush()?)
    }

    fn look(&self) -> anyhow::Result<Look> {
        match (&self.server, &self.name) {
            (Some(server), None) => server::all(server),
            (Some(server), Some(name)) => match server::one(server, name, self.worst)? {
                Some(known) => self.told(&known, name),
                None => Ok(nothing(format!("nothing was tried for `{name}` on {server}"))),
            },
            (None, name) => {
                let name = name.as_deref().unwrap_or_default();
                match self.of_registry(name)? {
                    Some(known) => self.told(&known, name),
                    None => Ok(nothing(format!("nothing was ever tried for `{name}@{}`", self.alias))),
                }
            }
        }
    }

    fn of_registry(&self, name: &str) -> anyhow::Result<Option<Known>> {
        let tracking = tracking::client(&self.tracking)?;
        let tags = tracking.block_on(tracking.client().model_tags(name))?;
        let book = Book::read(&tags, &self.alias);
        let Some(rollout) = &book.rollout else { return Ok(None) };
        let dir = serving::local_state(&Home::find())?.rollouts.join(&rollout.id);
        let Written { worst, n_pairs, timed, spent } =
            read_pairs(&dir, self.worst).with_context(|| format!("cannot read `{}`", dir.display()))?;
        Ok(Some(Known { book, worst, n_pairs, latency: Latencies::of(&timed), spent, of_server: false }))
    }

    fn told(&self, known: &Known, name: &str) -> anyhow::Result<Look> {
        let Known { book, worst, latency, spent, .. } = known;
        let rollout = book.rollout.as_ref().context("a known rollout is there")?;
        let report = report(known, rollout, name)?;
        if let Some(path) = &self.html {
            std::fs::write(path, rollout_html(&report)?)
                .with_context(|| format!("cannot write `{}`", path.display()))?;
        }
        if let Some(path) = &self.markdown {
            std::fs::write(path, rollout_markdown(&report)?)
                .with_context(|| format!("cannot write `{}`", path.display()))?;
        }
        let json = json!({
            "rollout": rollout,
            "step": book.step,
            "percent": if book.end.is_some() { 0.0 } else { rollout.percent(book.step.idx) },
            "end": book.end,
            "counts": counts(book),
            "checks": report.checks,
            "outcome": report.outcome,
            "replicas": book.seen.len(),
            "latency": latency,
            "spent": spent,
            "worst": worst,
            "ends": book.ends,
        });
        let code = code(book, report.outcome);
        // A pass that waits for a person may wait for ever.
        let waits = book.step.passed.is_some() && rollout.on_pass == OnPass::Hold;
        Ok(Look { text: in_words(&report), json, code, is_over: book.end.is_some() || waits })
    }
}

fn nothing(told: String) -> Look {
    eprintln!("{told}");
    Look { text: String::new(), json: serde_json::Value::Null, code: crate::USAGE_OR_ENVIRONMENT, is_over: true }
}

fn code(book: &Book, outcome: Outcome) -> u8 {
    match (&book.end, outcome) {
        (Some(end), _) if end.outcome == Ended::Aborted => ABORTED,
        (Some(_), _) | (None, Outcome::Pass) => 0,
        (None, _) => GOES_ON,
    }
}

fn report(known: &Known, rollout: &Rollout, name: &str) -> anyhow::Result<RolloutReport> {
    let Known { book, worst, n_pairs, latency, spent, .. } = known;
    let checks = match (&book.end, &book.step.passed) {
        (Some(end), _) if !end.checks.is_empty() => end.checks.clone(),
        (None, Some(passed)) => passed.checks.clone(),
        _ => judge_rollout(&rollout.rules, &counts(book))?.checks,
    };
    let (outcome, headline) = headline(book, rollout, name);
    let worst = worst.iter().map(apart).collect();
    let times = times::report(latency.as_ref(), spent, times::declared_price().as_ref());
    let facts = facts(known, rollout, &checks);
    Ok(RolloutReport { outcome, headline, worst, n_pairs: *n_pairs, times, facts, checks })
}

fn headline(book: &Book, rollout: &Rollout, name: &str) -> (Outcome, String) {
    let what = format!("`{name}:{}`", rollout.candidate.version);
    match (&book.end, &book.step.passed) {
        (Some(end), _) if end.outcome == Ended::Promoted => {
            (Outcome::Pass, format!("{what} was promoted at {}: {}", end.at, end.reason))
        }
        (Some(end), _) => (Outcome::Fail, format!("{what} was aborted at {} by {}: {}", end.at, end.by, end.reason)),
        (None, Some(passed)) if rollout.on_pass == OnPass::Hold => {
            let hint = format!("`highroad deploy promote {name}` moves the alias");
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

/// What was seen by the end, or is seen now.
fn counts(book: &Book) -> highroad_eval::RolloutCounts {
    book.end.as_ref().map_or_else(|| book.counts(), |end| end.counts)
}

/// `canary of 5 %, 25 %`
pub(in crate::commands) fn plan_in_words(plan: &Plan) -> String {
    let percents: Vec<String> = plan.percents().iter().map(|percent| format!("{percent} %")).collect();
    match plan {
        Plan::Shadow { .. } => format!("shadow of {}", percents.join(", ")),
        Plan::Canary { .. } => format!("canary of {}", percents.join(", ")),
    }
}

fn facts(known: &Known, rollout: &Rollout, checks: &[CheckResult]) -> Vec<Fact> {
    let book = &known.book;
    let plan = plan_in_words(&rollout.plan);
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
                "{} asked of it{}, {} compared, {} with a right answer",
                plural(seen.n_asked, "request"),
                replicas(known),
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

/// By how many replicas. Once a rollout has ended they take back what they told, and a server does not say how many tell it.
fn replicas(known: &Known) -> String {
    match known.book.seen.len() as u64 {
        _ if known.of_server || known.book.end.is_some() => String::new(),
        n => format!(" by {}", plural(n, "replica")),
    }
}

fn plural(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// One request's answers, side by side.
fn apart(pair: &Pair) -> ApartRow {
    let compared = &pair.compared;
    let told = [
        (compared.n_flips > 0).then(|| format!("{} label(s) flipped", compared.n_flips)),
        compared.shift.map(|shift| format!("scores by {shift:.3}")),
        compared.cosine.map(|cosine| format!("cosine {cosine:.4}")),
        compared.relative.map(|relative| format!("relative difference {relative:.4}")),
        compared.absolute.map(|absolute| format!("by {absolute:.4} at most")),
        compared.overlap.map(|overlap| format!("overlap {overlap:.3}")),
        compared.similarity.map(|similarity| format!("{:.0} % alike", 100.0 * similarity)),
        // Those of an input are one question's to both.
        compared.similarity.and(compared.tokens).map(|[stable, candidate]| format!("{stable} and {candidate} tokens")),
        compared.cost.map(|[stable, candidate]| format!("cost {stable:.6} and {candidate:.6}")),
        compared.preferred.map(|preferred| match preferred {
            Preferred::Stable => "judged worse".to_owned(),
            Preferred::Candidate => "judged better".to_owned(),
            Preferred::Neither => "judged equal".to_owned(),
        }),
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

fn in_words(report: &RolloutReport) -> String {
    let mut lines = vec![one_line(&report.headline, usize::MAX), String::new()];
    for check in &report.checks {
        lines.push(format!("{}  {}", mark(check.outcome), check.rule));
        lines.push(format!("      {}", check.reason));
    }
    if let Some(times) = &report.times {
        let mut table = new_table(["", "stable", "candidate", "candidate / stable"]);
        for row in &times.rows {
            table.add_row([&row.what, &row.stable, &row.candidate, &row.ratio]);
        }
        lines.push(format!("\n{}\n{table}", times.how));
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
        lines.push(format!("\nfurthest apart of {} written down\n{table}", report.n_pairs));
    }
    lines.push(String::new());
    lines.extend(report.facts.iter().map(|fact| format!("{:<10} {}", fact.name, one_line(&fact.value, usize::MAX))));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use highroad_eval::{Pace, RolloutCounts, RolloutRules};
    use highroad_package::Digest;
    use highroad_serve::rollout::{End, Limits, Release};

    use super::*;

    fn known(n_replicas: usize, n_asked: u64) -> Known {
        let release = |version: u64| Release { version, package: Digest::of(&version.to_le_bytes()) };
        let rollout = Rollout {
            highroad_rollout: 1,
            id: "00000000000000aa".to_owned(),
            stable: release(1),
            candidate: release(2),
            plan: Plan::Shadow { percent: 20.0 },
            rules: RolloutRules::default(),
            pace: Pace { requests: 10, seconds: 0.0 },
            limits: Limits::default(),
            on_pass: OnPass::Promote,
            by: "ann".to_owned(),
            why: "better".to_owned(),
            begun_at: "2026-11-29T09:00:00Z".to_owned(),
        };
        let counts = RolloutCounts { n_asked, ..RolloutCounts::default() };
        let seen = (0..n_replicas).map(|at| (format!("{at}"), counts)).collect();
        let book = Book { rollout: Some(rollout), seen, ..Book::default() };
        let (latency, spent) = (None, Spent::default());
        Known { book, worst: Vec::new(), n_pairs: 0, latency, spent, of_server: false }
    }

    fn seen(known: &Known) -> String {
        let rollout = known.book.rollout.as_ref().expect("it is there");
        let facts = facts(known, rollout, &[]);
        facts.into_iter().find(|fact| fact.name == "seen").expect("it is told").value
    }

    #[test]
    fn replicas_are_counted_while_they_tell_and_one_is_one() {
        assert_eq!(seen(&known(1, 1)), "1 request asked of it by 1 replica, 0 compared, 0 with a right answer");
        assert!(seen(&known(2, 11)).starts_with("22 requests asked of it by 2 replicas, "));
        assert!(seen(&Known { of_server: true, ..known(1, 3) }).starts_with("3 requests asked of it, "));
        let mut ended = known(0, 0);
        ended.book.end = Some(End {
            rollout: "00000000000000aa".to_owned(),
            outcome: Ended::Aborted,
            candidate: 2,
            reason: "worse".to_owned(),
            by: "rollout".to_owned(),
            at: "2026-11-29T09:00:00Z".to_owned(),
            counts: RolloutCounts { n_asked: 22, ..RolloutCounts::default() },
            checks: Vec::new(),
        });
        assert!(seen(&ended).starts_with("22 requests asked of it, "), "{}", seen(&ended));
    }
}
