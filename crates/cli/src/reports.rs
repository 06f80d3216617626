//! What a gate and an evaluation show to a person: on the terminal, in files, and on GitHub Actions.

use crate::outln;
use std::env;
use std::fs::OpenOptions;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use comfy_table::{Table, presets};
use highroad_assess::report::{
    Chart, EvalReport, GateReport, MOST_SUMMARY_BYTES, SliceFlips, annotations, eval_html, eval_junit, eval_markdown,
    gate_html, gate_junit, gate_markdown, one_line,
};
use highroad_eval::Outcome;

/// Files that tell a person, or a CI system, what came out.
#[derive(Clone, Debug, clap::Args)]
pub struct ReportArgs {
    /// Write a page with tables and plots that needs nothing but itself.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the same as Markdown, without plots.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write checks and must-pass cases as JUnit XML.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

impl ReportArgs {
    /// Whether a page is asked for, which charts have to be drawn for.
    pub fn wants_charts(&self) -> bool {
        self.html.is_some()
    }

    /// Writes the files that are asked for and, on GitHub Actions, annotations and the step summary.
    pub fn write_gate(&self, report: &GateReport, charts: &[Chart]) -> anyhow::Result<()> {
        write(self.html.as_deref(), || gate_html(report, charts))?;
        write(self.markdown.as_deref(), || gate_markdown(report))?;
        write(self.junit.as_deref(), || gate_junit(report))?;
        if on_github() {
            annotations(report).iter().for_each(|annotation| eprintln!("{annotation}"));
            summarise(&gate_markdown(report)?)?;
        }
        Ok(())
    }

    /// The same of an evaluation, which has nothing to annotate.
    pub fn write_eval(&self, report: &EvalReport, charts: &[Chart]) -> anyhow::Result<()> {
        write(self.html.as_deref(), || eval_html(report, charts))?;
        write(self.markdown.as_deref(), || eval_markdown(report))?;
        write(self.junit.as_deref(), || eval_junit(report))?;
        if on_github() {
            summarise(&eval_markdown(report)?)?;
        }
        Ok(())
    }
}

fn write<E>(path: Option<&Path>, content: impl FnOnce() -> Result<String, E>) -> anyhow::Result<()>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, content()?).with_context(|| format!("cannot write `{}`", path.display()))
}

/// Whether GitHub Actions runs this.
fn on_github() -> bool {
    env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true")
}

/// Appends to the summary of the step, as long as GitHub takes all of it.
fn summarise(markdown: &str) -> anyhow::Result<()> {
    let Some(path) = env::var_os("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty()).map(PathBuf::from) else {
        return Ok(());
    };
    let context = || format!("cannot append to the step summary `{}`", path.display());
    let mut file = OpenOptions::new().create(true).append(true).open(&path).with_context(context)?;
    let n_before = file.metadata().with_context(context)?.len();
    if n_before + markdown.len() as u64 > MOST_SUMMARY_BYTES as u64 {
        eprintln!(
            "warning: the report is too long for the step summary, of which GitHub shows {MOST_SUMMARY_BYTES} bytes"
        );
        return Ok(());
    }
    file.write_all(markdown.as_bytes()).with_context(context)
}

/// Prints `tell` where the runner of GitHub Actions takes no line of it for a command, whatever a case is called.
fn as_text(tell: impl FnOnce()) {
    if !on_github() {
        return tell();
    }
    // The runner listens again at a word that no case can have foreseen.
    let word = || std::hash::RandomState::new().build_hasher().finish();
    let token = format!("{:016x}{:016x}", word(), word());
    line(&format!("::stop-commands::{token}"));
    tell();
    line(&format!("::{token}::"));
}

/// Prints text, of which a terminal obeys nothing but the ends of lines.
fn line(text: &str) {
    text.split('\n').for_each(|line| outln!("{}", one_line(line, usize::MAX)));
}

/// Prints the verdict, then the flips by slice, then the numbers.
pub fn print_gate(report: &GateReport) {
    as_text(|| {
        line(&report.headline);
        report.way_out.iter().for_each(|hint| line(&format!("hint: {hint}")));
        print_remarks(&report.remarks);
        for waiver in &report.waivers {
            let case = if waiver.case.is_empty() { "the small golden set" } else { &waiver.case };
            line(&format!("accepted   {case} by {} until {}: {}", waiver.by, waiver.expires_at, waiver.why));
        }
        if report.n_lost + report.n_won > 0 {
            line(&format!("\n{} case(s) lost, {} won", report.n_lost, report.n_won));
        }
        report.slices.iter().for_each(print_slice);
        line("");
        for check in &report.checks {
            line(&format!("{}  {}", mark(check.outcome), check.rule));
            line(&format!("      {}", check.reason));
            if !check.note.is_empty() {
                line(&format!("      {}", check.note));
            }
        }
        line("");
        report.facts.iter().for_each(|fact| line(&format!("{:<10} {}", fact.name, fact.value)));
    });
}

fn print_slice(slice: &SliceFlips) {
    let name = slice.slice.as_deref().map_or_else(|| "without a slice".to_owned(), |name| format!("slice `{name}`"));
    line(&format!("\n{name}: {} lost, {} won of {} cases", slice.n_lost, slice.n_won, slice.n_cases));
    if slice.flips.is_empty() {
        return;
    }
    let mut table = new_table(["", "case", "input", "expected", "before", "after"]);
    for flip in &slice.flips {
        let must_pass = if flip.must_pass { " (must pass)" } else { "" };
        let accepted = flip.accepted_by.as_ref().map(|by| format!(" (accepted by {by})")).unwrap_or_default();
        table.add_row([
            if flip.regression { "lost" } else { "won" },
            &format!("{}{must_pass}{accepted}", flip.case),
            &one_line(&flip.input, 48),
            &flip.expected,
            &one_line(&flip.before, 32),
            &one_line(&flip.after, 32),
        ]);
    }
    line(&table.to_string());
    if slice.n_more > 0 {
        line(&format!("and {} more in the verdict", slice.n_more));
    }
}

/// Four letters for an outcome.
pub fn mark(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "pass",
        Outcome::Fail => "FAIL",
        Outcome::Inconclusive => "????",
    }
}

/// Prints the main number, the worst cases and the metrics.
pub fn print_eval(report: &EvalReport) {
    as_text(|| {
        line(&report.headline);
        print_remarks(&report.remarks);
        let mut metrics = new_table(["cases", "n", "metric", "value", "95 % interval"]);
        for row in &report.metrics {
            let n_cases = row.n_cases.to_string();
            let [place, n_cases] = if row.first { [row.cases.as_str(), &n_cases] } else { ["", ""] };
            metrics.add_row([place, n_cases, &row.metric, &row.value, &row.interval]);
        }
        line(&format!("\n{metrics}"));
        if !report.worst.is_empty() {
            let mut table = new_table(["case", "input", "expected", "answered"]);
            for case in &report.worst {
                table.add_row([
                    &case.case,
                    &one_line(&case.input, 60),
                    &one_line(&case.expected, 40),
                    &one_line(&case.answered, 40),
                ]);
            }
            line(&format!("\nworst cases\n{table}"));
        }
        line("");
        report.facts.iter().for_each(|fact| line(&format!("{:<10} {}", fact.name, fact.value)));
    });
}

fn print_remarks(remarks: &[String]) {
    remarks.iter().for_each(|remark| line(&format!("warning: {remark}")));
}

/// A table that reads well on a terminal and in a log.
pub fn new_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}
