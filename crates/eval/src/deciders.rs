//! What decides whether a case is answered rightly: what its kind says, and programs of the user's own.

use std::collections::BTreeMap;

use crate::metric::decided;
use crate::{Case, Gates, Observed, Rule};

/// One that says right or wrong.
pub(crate) struct Decider<'a> {
    /// The program; `None` for what the kind of the golden set says.
    pub name: Option<&'a str>,
    /// In file order; `None` for a case that it is not about.
    pub right: Vec<Option<bool>>,
}

/// Whether each case is answered rightly: by what its kind says, and by every program that [decides](crate::CustomRule::decides) and
/// that some rule is about on this case. A text that such a program decides need not equal a reference. `None` where nothing
/// decides.
///
/// `values` are those of the programs of `gates` that ran, by their names, one a case. Without rules only the kind decides.
pub fn right(
    gates: Option<&Gates>,
    cases: &[Case],
    observed: &Observed,
    values: &BTreeMap<&str, &[f64]>,
) -> Vec<Option<bool>> {
    let deciders = deciders(gates, cases, observed, values);
    let of_case = |idx: usize| deciders.iter().filter_map(|decider| decider.right[idx]).reduce(|all, one| all && one);
    (0..cases.len()).map(of_case).collect()
}

/// All of them, what the kind says first.
pub(crate) fn deciders<'g>(
    gates: Option<&'g Gates>,
    cases: &[Case],
    observed: &Observed,
    values: &BTreeMap<&str, &[f64]>,
) -> Vec<Decider<'g>> {
    let programs = gates.into_iter().flat_map(|gates| gates.custom.iter().map(move |(name, rule)| (gates, name, rule)));
    let programs = programs.filter(|(_, _, rule)| rule.decides);
    let decider =
        |(gates, name, _): (&'g Gates, &'g String, _)| Some(program(gates, cases, name, values.get(name.as_str())?));
    let mut all: Vec<Decider<'g>> = programs.filter_map(decider).collect();
    let is_decided = |idx: usize| all.iter().any(|decider| decider.right[idx].is_some());
    let of_kind = observed.right().map(|right| {
        let counts = |idx: usize| match observed {
            Observed::Texts(texts) => !texts.references(idx).is_empty() && !is_decided(idx),
            _ => true,
        };
        let right = right.into_iter().enumerate().map(|(idx, right)| right.filter(|_| counts(idx)));
        Decider { name: None, right: right.collect() }
    });
    all.splice(0..0, of_kind);
    all
}

fn program<'g>(gates: &'g Gates, cases: &[Case], name: &'g str, values: &[f64]) -> Decider<'g> {
    let rules: Vec<&Rule> = gates.rules.iter().filter(|rule| rule.custom.as_deref() == Some(name)).collect();
    let is_about = |case: &Case| rules.iter().any(|rule| is_about(rule, case));
    let of_case = |(idx, case)| values.get(idx).filter(|_| is_about(case)).copied().and_then(decided);
    Decider { name: Some(name), right: cases.iter().enumerate().map(of_case).collect() }
}

fn is_about(rule: &Rule, case: &Case) -> bool {
    match rule.slice.as_deref() {
        None => true,
        Some("*") => !case.slices.is_empty(),
        Some(slice) => case.slices.iter().any(|name| name == slice),
    }
}
