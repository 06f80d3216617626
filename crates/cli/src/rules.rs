//! Rules that `doctor` holds a repo to and `standard report` a registered model.

use serde::Serialize;

/// The owner of a repo that was made where nobody was known.
pub const UNASSIGNED: &str = "unassigned";

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    #[value(skip)]
    Ok,
    /// Worth a look.
    Warning,
    /// Against the standard.
    Error,
}

/// A rule that is broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// How bad it is.
    pub level: Level,
    /// What is the case, in one clause.
    pub found: String,
    /// What helps.
    pub help: String,
}

impl Broken {
    /// A rule that is broken.
    pub fn new(level: Level, found: impl Into<String>, help: impl Into<String>) -> Self {
        Self { level, found: found.into(), help: help.into() }
    }
}

/// Somebody answers for the model, and is one of `known` where that names anybody.
pub fn owner(owner: &str, known: &[String]) -> Option<Broken> {
    if owner.is_empty() || owner == UNASSIGNED {
        return Some(Broken::new(
            Level::Warning,
            "nobody answers for it",
            "name a team or an address as `model.owner`",
        ));
    }
    let is_known = |entry: &String| entry == owner || (entry.starts_with('@') && owner.ends_with(entry.as_str()));
    if !known.is_empty() && !known.iter().any(is_known) {
        let help = format!("`owners.known` has: {}", known.join(", "));
        return Some(Broken::new(Level::Error, format!("`{owner}` is no owner that the standard knows"), help));
    }
    None
}

/// The licence is an SPDX expression that `accepted` satisfies where it lists any.
pub fn licence(licence: &str, accepted: &[String]) -> Option<Broken> {
    let expression = match spdx::Expression::parse(licence) {
        Ok(expression) => expression,
        Err(error) => {
            let help = "name one of https://spdx.org/licenses, or LicenseRef-NAME for your own";
            let found = format!("`{licence}` is no SPDX expression: {}", error.reason);
            return Some(Broken::new(Level::Warning, found, help));
        }
    };
    let is_accepted = |one: &spdx::LicenseReq| accepted.iter().any(|name| *name == one.to_string());
    if !accepted.is_empty() && !expression.evaluate(is_accepted) {
        let help = format!("`packaging.licences` has: {}", accepted.join(", "));
        return Some(Broken::new(Level::Error, format!("the standard does not accept `{licence}`"), help));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(broken: Option<Broken>) -> Level {
        broken.map_or(Level::Ok, |broken| broken.level)
    }

    #[test]
    fn owners_are_those_that_the_standard_knows() {
        let known = ["search".to_owned(), "@example.com".to_owned()];
        assert_eq!(level(owner("anybody", &[])), Level::Ok);
        for (name, expected) in
            [("search", Level::Ok), ("ann@example.com", Level::Ok), ("o", Level::Error), (UNASSIGNED, Level::Warning)]
        {
            assert_eq!(level(owner(name, &known)), expected, "{name}");
        }
    }

    #[test]
    fn licences_are_spdx_expressions_that_the_standard_accepts() {
        for (text, accepted, expected) in [
            ("MIT", "", Level::Ok),
            ("ours alone", "", Level::Warning),
            ("MIT OR GPL-3.0-only", "MIT", Level::Ok),
            ("MIT AND GPL-3.0-only", "MIT", Level::Error),
            ("LicenseRef-ours", "LicenseRef-ours", Level::Ok),
        ] {
            let accepted: Vec<String> = accepted.split_terminator(',').map(str::to_owned).collect();
            assert_eq!(level(licence(text, &accepted)), expected, "{text}");
        }
    }
}
