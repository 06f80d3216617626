//! What a person reads of a gate or an evaluation: one structure each, from which terminal, Markdown, HTML and JUnit are
//! rendered, so that they say the same.

mod charts;
mod evaluation;
mod gate;
mod github;
mod junit;
mod monitor;
mod page;
mod rollout;
mod shown;
mod traffic;
mod upgrade;

use highroad_eval::{CustomEvidence, Evidence, Expected, HostedEvidence, JudgeEvidence, Observed};
use serde::Serialize;

pub use charts::{charts, distribution_chart, effect_chart, ratio_chart};
pub use evaluation::{EvalReport, MetricRow, WorstCase};
pub use gate::{CheckRow, FlipRow, GateReport, SliceFlips};
pub use github::{Annotation, Level, MOST_SUMMARY_BYTES, annotations};
pub use junit::{eval_junit, gate_junit};
pub use monitor::{MonitorReport, MonitoredMember, SignalRow};
pub use page::{
    eval_html, eval_markdown, gate_html, gate_markdown, monitor_html, review_html, review_markdown, rollout_html,
    rollout_markdown, upgrade_html, upgrade_markdown,
};
pub use rollout::{ApartRow, RolloutReport, TimesReport, TimesRow};
pub(crate) use shown::tensors_in_words;
pub use shown::{asked, in_words, one_line, picture, text};
pub use traffic::traffic_facts;
pub use upgrade::{
    AdvisoryChange, AdvisoryKind, LatencyChange, MetricChange, PackageChange, UpgradeCheck, UpgradeReport, outcome_of,
};

use crate::{AssessError, GoldenSet, Results};

/// Why a report cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum ReportError {
    #[error("the chart `{0}` cannot be drawn: {1}")]
    Chart(String, String),
    #[error(transparent)]
    Template(#[from] minijinja::Error),
    #[error(transparent)]
    JUnit(#[from] quick_junit::SerializeError),
}

/// A named fact about what was judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// A word or two.
    pub name: &'static str,
    /// Its value, as text.
    pub value: String,
}

/// A picture with the numbers it shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Chart {
    /// What it shows, in a few words.
    pub title: String,
    /// How to read it, and what of it is cut, in a sentence or two.
    pub description: String,
    /// An SVG element without scripts, styles or links.
    pub svg: String,
    /// Names of the columns of `rows`.
    pub header: Vec<String>,
    /// The numbers.
    pub rows: Vec<Vec<String>>,
}

/// A case that must be answered rightly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct MustPass {
    pub case: String,
    pub right: bool,
    pub expected: String,
    pub answered: String,
}

fn fact(name: &'static str, value: impl Into<String>) -> Fact {
    Fact { name, value: value.into() }
}

/// Two clauses as one sentence; the second may be empty.
fn in_one(first: &str, second: &str) -> String {
    if second.is_empty() { first.to_owned() } else { format!("{first}; {second}") }
}

/// The must-pass cases of `golden` as `results` answer them.
fn must_pass(
    results: &Results,
    golden: &GoldenSet,
    observed: &Observed,
    right: &[Option<bool>],
) -> Result<Vec<MustPass>, AssessError> {
    let pinned = golden.cases.iter().enumerate().filter(|(_, case)| case.case.must_pass);
    let pinned = pinned.filter_map(|(idx, case)| Some((idx, case, right[idx]?)));
    pinned
        .map(|(idx, case, right)| {
            Ok(MustPass {
                case: case.case.id.clone(),
                right,
                expected: wanted(&case.case.expected),
                answered: in_words(results, &*golden.input(idx)?, observed, idx),
            })
        })
        .collect()
}

/// The right answer in a word.
fn wanted(expected: &Expected) -> String {
    match expected {
        Expected::Label(label) => label.clone(),
        Expected::Number(number) => format!("{number:.3}"),
        tensors @ Expected::Tensors { .. } => text(&crate::in_words(tensors), shown::MOST_CHARS),
        Expected::References(references) => text(references.first().map_or("", String::as_str), shown::MOST_CHARS),
        Expected::Labels(labels) if labels.is_empty() => "no label".to_owned(),
        Expected::Labels(labels) => text(&labels.join(", "), shown::MOST_CHARS),
        Expected::Implied => "the positive text closer".to_owned(),
        Expected::Relevances(relevances) => format!("rank 1 of {}", relevances.len()),
    }
}

/// What decided the bits, and what the answers are evidence of where that is less than bits.
fn numerics(id: &str, evidence: Evidence) -> Fact {
    match evidence {
        Evidence::BitExact => fact("numerics", id),
        weaker => fact("numerics", format!("{id} (evidence: {weaker})")),
    }
}

/// What a reader should know before the numbers: broken promises and cut texts.
fn remarks(results: &Results) -> Vec<String> {
    let n_truncated = results.cases.iter().filter(|case| case.truncated).count();
    let bits =
        (!results.batch_invariant).then(|| "answers in a batch differ in their bits from answers alone".to_owned());
    let cut =
        (n_truncated > 0).then(|| format!("{n_truncated} case(s) were longer than the model takes and lost their end"));
    let ended = results.hosted.as_ref().filter(|hosted| hosted.n_cut > 0);
    let ended = ended.map(|hosted| format!("{} answer(s) ended at the most tokens an answer may have", hosted.n_cut));
    bits.into_iter().chain(cut).chain(ended).collect()
}

/// Which hosted model was asked, and what that took.
fn hosted_facts(hosted: &HostedEvidence) -> Vec<Fact> {
    let HostedEvidence { n_questions, n_kept, n_retries, input_tokens, output_tokens, .. } = hosted;
    let served_by = match hosted.served_by.as_slice() {
        [] => String::new(),
        builds => format!(", served by {}", builds.join(" and ")),
    };
    let uncounted = match hosted.n_uncounted {
        0 => String::new(),
        n => format!(", {n} not counted by the host"),
    };
    let mut facts = vec![
        fact("hosted", format!("{} at {}{served_by}", hosted.model, hosted.base_url)),
        fact(
            "asked",
            format!(
                "{n_questions} questions ({n_kept} kept from earlier), {n_retries} retries; {input_tokens} tokens sent, \
                 {output_tokens} written{uncounted}"
            ),
        ),
    ];
    facts.extend(hosted.cost.as_ref().map(|cost| {
        let [of_answers, of_this_run] = [cost.of_answers, cost.of_this_run].map(money);
        fact("cost", format!("{of_answers} {0} for these answers, {of_this_run} {0} in this run", cost.currency))
    }));
    facts
}

/// Who judged, how far that can be relied on, and what it cost.
/// What a judge is worth, for people.
pub fn judge_fact(judge: &JudgeEvidence) -> Fact {
    let JudgeEvidence { name, n_judged, repeats, hosted, .. } = judge;
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let turned = judge.position_inconsistency.map(|share| format!("the order decided {}", percent(share)));
    let unreadable = (judge.n_unreadable > 0).then(|| format!("{} replies without a score", judge.n_unreadable));
    let agreement = judge.agreement.as_ref().map(|found| {
        let [low, high] = found.interval;
        let floor = found.floor.map(|floor| format!(", floor {floor}")).unwrap_or_default();
        let (measure, value, n) = (found.measure, found.value, found.n_labelled);
        format!("with people {measure} {value:.3} ({low:.3} to {high:.3}) on {n}{floor}")
    });
    let cost = hosted.cost.as_ref().map(|cost| format!("{} {}", money(cost.of_answers), cost.currency));
    let told = [
        Some(format!("`{name}` by {} at {}: {n_judged} judged {repeats} times", hosted.model, hosted.base_url)),
        Some(format!("disagrees with itself on {}", percent(judge.self_disagreement))),
        turned,
        unreadable,
        Some(agreement.unwrap_or_else(|| "never compared with people".to_owned())),
        cost,
    ];
    fact("judge", told.into_iter().flatten().collect::<Vec<_>>().join("; "))
}

/// What took a metric of the user's own, for people.
pub fn custom_fact(custom: &CustomEvidence) -> Fact {
    let files = custom.files.iter().map(|(file, digest)| format!("; {file} {digest}"));
    fact("own metric", format!("`{}` by {}{}", custom.name, custom.command.join(" "), files.collect::<String>()))
}

/// An amount with at least two digits after the point and three that count.
fn money(amount: f64) -> String {
    let digits = if amount > 0.0 && amount < 1.0 { (2.0 - amount.log10().floor()).min(12.0) as usize } else { 2 };
    format!("{amount:.digits$}")
}
