use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;
use toml::de::{DeTable, DeValue};

/// Something wrong with a `portfolio.toml`, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ConfigProblem {
    /// Line, from 1, where one can be told.
    pub line: Option<usize>,
    /// What, in words.
    pub reason: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

/// Tables whose entries problems call by their name alone.
const NAMED: [&str; 3] = ["members", "indexes", "pipelines"];

/// Where in `text` the problem is that `reason` words: at the table that it begins with, as `[members.chat]`, there at the first key it
/// quotes; else at the first key or name that it quotes.
///
/// The words know their place already, so places are not carried beside them through everything that checks a file.
pub fn locate(text: &str, reason: &str) -> ConfigProblem {
    let document = match DeTable::parse(text) {
        Ok(document) => document,
        // What is on the line may be a secret that somebody put where it does not belong: it is not told.
        Err(error) => {
            let line = error.span().map(|span| line_at(text, span.start));
            return ConfigProblem { line, reason: error.message().to_owned() };
        }
    };
    let root = document.get_ref();
    let found = match reason.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((place, rest)) => table_at(root, place).map(|(at, table)| {
            let key = quoted(rest).find_map(|key| table.and_then(|table| key_at(table, key)));
            key.unwrap_or(at)
        }),
        None => quoted(reason).find_map(|name| {
            let named = NAMED.iter().filter_map(|table| inner(root, table));
            key_at(root, name).or_else(|| named.into_iter().find_map(|table| key_at(table, name)))
        }),
    };
    // Keys may hold anything: nothing of them reaches a log or a terminal but what can be seen.
    let reason = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    ConfigProblem { line: found.map(|at| line_at(text, at)), reason }
}

fn line_at(text: &str, at: usize) -> usize {
    1 + text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count()
}

/// What stands between backticks.
fn quoted(reason: &str) -> impl Iterator<Item = &str> {
    reason.split('`').skip(1).step_by(2)
}

fn inner<'a, 'i>(table: &'a DeTable<'i>, key: &str) -> Option<&'a DeTable<'i>> {
    match table.get(key)?.get_ref() {
        DeValue::Table(table) => Some(table),
        _ => None,
    }
}

fn key_at(table: &DeTable<'_>, key: &str) -> Option<usize> {
    table.keys().find(|known| known.get_ref().as_ref() == key).map(|known| known.span().start)
}

/// Where the table `place` begins, and the table. Names may have dots in them; a place that is not at the top is one of a member.
fn table_at<'a, 'i>(root: &'a DeTable<'i>, place: &str) -> Option<(usize, Option<&'a DeTable<'i>>)> {
    let parts: Vec<&str> = place.split('.').collect();
    descend(root, &parts).or_else(|| descend(inner(root, "members")?, &parts))
}

fn descend<'a, 'i>(table: &'a DeTable<'i>, parts: &[&str]) -> Option<(usize, Option<&'a DeTable<'i>>)> {
    (1..=parts.len()).rev().find_map(|n| {
        let key = parts[..n].join(".");
        let at = key_at(table, &key)?;
        match (inner(table, &key), &parts[n..]) {
            (inner, []) => Some((at, inner)),
            (Some(inner), rest) => descend(inner, rest),
            (None, _) => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::PortfolioConfig;

    const TEXT: &str = r#"poll_interval_ms = 1
[limits]
inputs = 3
colour = 1
[members.ok]
model = "m:1"
batch_token = 3
[members."a.b"]
model = "m:x"
[members.zero]
threads = 0
model = "m:1"
[pipelines.p]
steps = [{ name = "s", classify = "nobody" }]
"#;

    #[test]
    fn every_problem_has_the_line_it_is_about() {
        let problems = PortfolioConfig::parse(TEXT, Path::new("")).unwrap_err().0;
        let located: Vec<ConfigProblem> = problems.iter().map(|problem| locate(TEXT, problem)).collect();
        let mut lines: Vec<usize> = located.iter().map(|problem| problem.line.unwrap()).collect();
        lines.sort_unstable();
        assert_eq!(lines, [1, 4, 7, 9, 11, 13], "{located:?}");
    }

    #[test]
    fn what_loads_not_is_at_its_member() {
        assert_eq!(locate(TEXT, "[members.zero] package x has no verdict").line, Some(10));
        assert_eq!(locate(TEXT, "[members.zero] `model` means nothing").line, Some(12));
        assert_eq!(locate(TEXT, "pipeline `p`, step `s`: `ok` is for another task").line, Some(13));
        assert_eq!(locate(TEXT, "something else").line, None);
        assert_eq!(locate(TEXT, "[budgets] cannot be opened").line, None);
    }

    #[test]
    fn a_key_that_is_no_text_does_not_reach_a_terminal() {
        let text = "\"a\\u001b[31m\\nb\" = 1\n[members.a]\nmodel = 'm:1'\n";
        let problems = PortfolioConfig::parse(text, Path::new("")).unwrap_err().0;
        let problem = locate(text, &problems[0]);
        assert!(!problem.reason.contains(char::is_control) && problem.line == Some(1), "{problem:?}");
    }

    #[test]
    fn a_text_that_is_no_toml_is_told_without_its_words() {
        let problem = locate("a = 1\nkey = hunter2\n", "TOML parse error");
        assert_eq!(problem.line, Some(2));
        assert!(!problem.reason.contains("hunter2"), "{problem}");
    }
}
