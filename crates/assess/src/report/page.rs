//! HTML and Markdown from templates. Every value is escaped unless a template says otherwise, which only drawn charts do.

use std::collections::BTreeMap;
use std::fmt;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, HtmlEscape, Output, State, Value, context, escape_formatter};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::gate::word;
use super::shown::MOST_CHARS;
use super::{
    Chart, EvalReport, GateReport, MonitorReport, ReportError, RolloutReport, UpgradeReport, one_line, ratio_chart,
};
use crate::review::{Review, Status};

const STYLE: &str = include_str!("templates/style.css");
const MARKDOWN: &str = "markdown";

const TEMPLATES: [(&str, &str); 13] = [
    ("base.html", include_str!("templates/base.html")),
    ("parts.html", include_str!("templates/parts.html")),
    ("gate.html", include_str!("templates/gate.html")),
    ("eval.html", include_str!("templates/eval.html")),
    ("gate.md", include_str!("templates/gate.md")),
    ("eval.md", include_str!("templates/eval.md")),
    ("review.html", include_str!("templates/review.html")),
    ("review.md", include_str!("templates/review.md")),
    ("upgrade.html", include_str!("templates/upgrade.html")),
    ("upgrade.md", include_str!("templates/upgrade.md")),
    ("rollout.html", include_str!("templates/rollout.html")),
    ("rollout.md", include_str!("templates/rollout.md")),
    ("monitor.html", include_str!("templates/monitor.html")),
];

/// A page that needs nothing but itself: no script, and a policy that lets a browser load nothing.
pub fn gate_html(report: &GateReport, charts: &[Chart]) -> Result<String, ReportError> {
    render(
        "gate.html",
        context! { report => of(report), charts => of(&charts), word => word(report.outcome), ..style()? },
    )
}

/// The same of an evaluation.
pub fn eval_html(report: &EvalReport, charts: &[Chart]) -> Result<String, ReportError> {
    render("eval.html", context! { report => of(report), charts => of(&charts), ..style()? })
}

/// GitHub's Markdown, in which no text of a case is markup.
pub fn gate_markdown(report: &GateReport) -> Result<String, ReportError> {
    render("gate.md", context! { report => of(report) })
}

/// The same of an evaluation.
pub fn eval_markdown(report: &EvalReport) -> Result<String, ReportError> {
    render("eval.md", context! { report => of(report) })
}

fn of(value: &impl Serialize) -> Value {
    Value::from(minijinja::value::Serde(value))
}

/// What an upgrade changes, as a page.
pub fn upgrade_html(report: &UpgradeReport) -> Result<String, ReportError> {
    render("upgrade.html", context! { report => of(report), word => word(report.outcome), ..style()? })
}

/// The same as GitHub's Markdown.
pub fn upgrade_markdown(report: &UpgradeReport) -> Result<String, ReportError> {
    render("upgrade.md", context! { report => of(report) })
}

/// A rollout as a page, with the answers that were furthest apart side by side.
pub fn rollout_html(report: &RolloutReport) -> Result<String, ReportError> {
    let ratios = report.times.as_ref().map(|times| &times.ratios).filter(|ratios| !ratios.is_empty());
    let charts: Vec<Chart> = ratios.map(|ratios| ratio_chart(ratios)).transpose()?.into_iter().collect();
    render(
        "rollout.html",
        context! { report => of(report), charts => of(&charts), word => word(report.outcome), ..style()? },
    )
}

/// What members meet, as a page.
pub fn monitor_html(report: &MonitorReport) -> Result<String, ReportError> {
    render("monitor.html", context! { report => of(report), word => word(report.outcome), ..style()? })
}

/// The same as GitHub's Markdown.
pub fn rollout_markdown(report: &RolloutReport) -> Result<String, ReportError> {
    render("rollout.md", context! { report => of(report) })
}

/// A review as a page.
pub fn review_html(review: &Review) -> Result<String, ReportError> {
    render("review.html", context! { ..of_review(review), ..style()? })
}

/// The same as GitHub's Markdown, for a pull request.
pub fn review_markdown(review: &Review) -> Result<String, ReportError> {
    render("review.md", of_review(review))
}

fn of_review(review: &Review) -> Value {
    let statuses = [Status::Pass, Status::Fail, Status::Evidence, Status::Attested, Status::NotEvidenced];
    let words: BTreeMap<String, &str> = statuses.map(|status| (of(&status).to_string(), status.in_words())).into();
    let facts: Vec<[String; 2]> = review.facts().map(|(name, value)| [name.to_owned(), value]).collect();
    // The number of its section in the document, which is all that a link needs.
    let numbers = review.sources.iter().zip(1..).map(|(source, number)| (source.name.clone(), number));
    let numbers: BTreeMap<String, usize> = numbers.collect();
    context! {
        review => of(review), words => of(&words), facts => of(&facts), headline => review.headline(),
        score => review.ml_test_score.score, numbers => of(&numbers)
    }
}

/// The style and the digest by which the page's policy knows it.
fn style() -> Result<Value, ReportError> {
    let style_hash = format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(STYLE)));
    Ok(context! { style => STYLE, style_hash })
}

fn render(name: &str, values: Value) -> Result<String, ReportError> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    environment
        .set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true).build()?);
    environment.add_filter("quoted", quoted);
    environment.set_auto_escape_callback(|name| match name.ends_with(".md") {
        true => AutoEscape::Custom(MARKDOWN.into()),
        false => AutoEscape::Html,
    });
    environment.set_formatter(format_value);
    for (name, source) in TEMPLATES {
        environment.add_template(name, source)?;
    }
    Ok(environment.get_template(name)?.render(values)?)
}

fn format_value(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), minijinja::Error> {
    if *state.auto_escape() != AutoEscape::Custom(MARKDOWN.into()) {
        return escape_formatter(out, state, value);
    }
    write_markdown(out, &one_line(&value.to_string(), MOST_CHARS)).map_err(minijinja::Error::from)
}

/// Writes a line so that Markdown shows it as it is, whatever stands in it.
fn write_markdown(out: &mut impl fmt::Write, line: &str) -> fmt::Result {
    let mut chars = line.chars().peekable();
    let mut before = ' ';
    while let Some(c) = chars.next() {
        let is_markup = match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '#' | '!' | '|' | '~' | '$' => true,
            // An address, which would become a link, or a short code, which would become a picture.
            ':' => chars.peek().is_some_and(|&next| next != ' '),
            '.' => matches!(before, 'w' | 'W'),
            _ => false,
        };
        match c {
            '<' => out.write_str("&lt;")?,
            '>' => out.write_str("&gt;")?,
            '&' => out.write_str("&amp;")?,
            // GitHub looks for people in the finished page, where a backslash is gone: a word joiner stays.
            '@' => out.write_str("@\u{2060}")?,
            c if is_markup => write!(out, "\\{c}")?,
            c => out.write_char(c)?,
        }
        before = c;
    }
    Ok(())
}
/// A sentence as HTML: what it quotes between backticks stands as code. A backtick without a second one stays as it is.
fn quoted(text: &str) -> Value {
    let parts: Vec<&str> = text.split('`').collect();
    let part = |(idx, part): (usize, &&str)| match (idx % 2 == 1, idx + 1 < parts.len()) {
        (true, true) => format!("<code>{}</code>", HtmlEscape(part)),
        (true, false) => format!("`{}", HtmlEscape(part)),
        (false, _) => HtmlEscape(part).to_string(),
    };
    Value::from_safe_string(parts.iter().enumerate().map(part).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_stands_as_code_and_nothing_escapes() {
        let html = |text| quoted(text).to_string();
        assert_eq!(html("`a:2` was <b>aborted</b>"), "<code>a:2</code> was &lt;b&gt;aborted&lt;&#x2f;b&gt;");
        assert_eq!(html("`<i>` and ` alone"), "<code>&lt;i&gt;</code> and ` alone");
        assert_eq!(html("nothing"), "nothing");
    }
}
