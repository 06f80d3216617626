//! What GitHub Actions shows beside a step: annotations, and a summary that is the Markdown report.

use std::fmt;

use highroad_eval::Outcome;

use super::{GateReport, one_line};

/// Largest step summary; GitHub takes 1 MiB of a step and drops all of it when it is larger.
pub const MOST_SUMMARY_BYTES: usize = 1_000_000;
/// Annotations of one kind that GitHub shows of a step.
const MOST_OF_A_KIND: usize = 10;
/// Longest message.
const MOST_CHARS: usize = 1000;

/// One line that the runner turns into an annotation, on whichever of the two streams it reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotation {
    /// How bad it is.
    pub level: Level,
    /// A few words.
    pub title: String,
    /// What happened.
    pub message: String,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Level {
    Error,
    Warning,
    Notice,
}

impl fmt::Display for Annotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Notice => "notice",
        };
        let (title, message) = (property(&one_line(&self.title, MOST_CHARS)), data(&self.message));
        write!(f, "::{level} title={title}::{message}")
    }
}

/// The verdict, each broken or undecided check, and each lost case that must pass; at most 10 of a kind.
pub fn annotations(report: &GateReport) -> Vec<Annotation> {
    let level = |outcome| match outcome {
        Outcome::Pass => Level::Notice,
        Outcome::Fail => Level::Error,
        Outcome::Inconclusive => Level::Warning,
    };
    let annotation =
        |level, title: &str, message: &str| Annotation { level, title: title.to_owned(), message: message.to_owned() };
    let verdict = annotation(level(report.outcome), "highroad gate", &report.headline);
    let open = report.checks.iter().filter(|check| check.outcome != Outcome::Pass && !check.accepted);
    let checks = open.map(|check| annotation(level(check.outcome), &check.rule, &check.reason));
    let wrong = report.must_pass.iter().filter(|case| !case.right);
    let cases = wrong.map(|case| {
        let message = format!("expected {}, answered {}", case.expected, case.answered);
        annotation(Level::Error, &format!("must-pass case {}", case.case), &message)
    });
    let all: Vec<Annotation> = std::iter::once(verdict).chain(checks).chain(cases).collect();
    let of = |level| all.iter().filter(move |annotation| annotation.level == level).take(MOST_OF_A_KIND);
    [Level::Error, Level::Warning, Level::Notice].into_iter().flat_map(of).cloned().collect()
}

/// Escapes as the runner's `ActionCommand` undoes it; a line break would end the command.
fn data(text: &str) -> String {
    let bounded: String = text.chars().take(MOST_CHARS).collect();
    bounded.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_ends_an_annotation_or_begins_another() {
        let hostile = "50 %\r\n::error::mine, all: of it";
        let annotation = Annotation { level: Level::Warning, title: hostile.to_owned(), message: hostile.to_owned() };
        assert_eq!(
            annotation.to_string(),
            "::warning title=50 %25  %3A%3Aerror%3A%3Amine%2C all%3A of it::50 %25%0D%0A::error::mine, all: of it"
        );
    }
}
