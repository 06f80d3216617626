//! What a person reads of a gate or an evaluation: one structure each, from which terminal, Markdown, HTML and JUnit are
//! rendered, so that they say the same.

mod charts;
mod evaluation;
mod gate;
mod github;
mod junit;
mod page;
mod shown;
mod traffic;

use highroad_eval::{Expected, Observed};
use serde::Serialize;

pub use charts::charts;
pub use evaluation::{EvalReport, MetricRow, WorstCase};
pub use gate::{CheckRow, FlipRow, GateReport, SliceFlips};
pub use github::{Annotation, Level, MOST_SUMMARY_BYTES, annotations};
pub use junit::{eval_junit, gate_junit};
pub use page::{eval_html, eval_markdown, gate_html, gate_markdown, review_html, review_markdown};
pub use shown::{asked, in_words, one_line, text};
pub use traffic::traffic_facts;

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
fn must_pass(results: &Results, golden: &GoldenSet, observed: &Observed) -> Result<Vec<MustPass>, AssessError> {
    let Some(right) = observed.right() else { return Ok(Vec::new()) };
    let pinned = golden.cases.iter().enumerate().filter(|(_, case)| case.case.must_pass);
    pinned
        .map(|(idx, case)| {
            Ok(MustPass {
                case: case.case.id.clone(),
                right: right[idx],
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
        Expected::References(references) => text(references.first().map_or("", String::as_str), shown::MOST_CHARS),
        Expected::Implied => "the positive text closer".to_owned(),
        Expected::Relevances(relevances) => format!("rank 1 of {}", relevances.len()),
    }
}

/// What a reader should know before the numbers: broken promises and cut texts.
fn remarks(results: &Results) -> Vec<String> {
    let n_truncated = results.cases.iter().filter(|case| case.truncated).count();
    let bits =
        (!results.batch_invariant).then(|| "answers in a batch differ in their bits from answers alone".to_owned());
    let cut =
        (n_truncated > 0).then(|| format!("{n_truncated} case(s) were longer than the model takes and lost their end"));
    bits.into_iter().chain(cut).collect()
}
