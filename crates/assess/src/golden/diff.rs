use std::collections::BTreeMap;

use highroad_eval::Expected;
use serde::Serialize;

use super::lint::in_words;
use super::{GoldenCase, GoldenSet};
use crate::GoldenError;

/// How one golden set differs from another, by ids.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Difference {
    /// Only in the new one, in its order.
    pub added: Vec<String>,
    /// Only in the old one, in its order.
    pub removed: Vec<String>,
    /// In both, and not saying the same.
    pub edited: Vec<Edited>,
    /// Number of cases that say the same.
    pub n_same: usize,
    /// Number of cases of each slice before and after, where they differ.
    pub slices: BTreeMap<String, [usize; 2]>,
}

/// What changed in a case.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Edited {
    /// Its id.
    pub id: String,
    /// The keys whose values differ.
    pub changed: Vec<&'static str>,
    /// The right answer before and after, where it changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<[String; 2]>,
    /// Slices it joined.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub slices_joined: Vec<String>,
    /// Slices it left.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub slices_left: Vec<String>,
}

impl Difference {
    /// Whether both sets say the same.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.edited.is_empty()
    }

    /// Cases whose right answer is another label.
    pub fn label_flips(&self) -> impl Iterator<Item = (&str, &[String; 2])> {
        self.edited.iter().filter_map(|edited| Some((edited.id.as_str(), edited.expected.as_ref()?)))
    }
}

/// What changed from `old` to `new`. The order of the cases and the spacing of their lines do not count.
/// Errors if the texts of a large set can no longer be read.
pub fn diff(old: &GoldenSet, new: &GoldenSet) -> Result<Difference, GoldenError> {
    let by_id = |set: &'_ GoldenSet| -> BTreeMap<String, usize> {
        set.cases.iter().enumerate().map(|(idx, case)| (case.case.id.clone(), idx)).collect()
    };
    let (old_ids, new_ids) = (by_id(old), by_id(new));
    let only = |set: &GoldenSet, other: &BTreeMap<String, usize>| {
        set.ids().into_iter().filter(|id| !other.contains_key(id)).collect::<Vec<_>>()
    };
    let mut changed = Vec::new();
    for (idx, case) in new.cases.iter().enumerate() {
        let Some(&old_idx) = old_ids.get(&case.case.id) else { continue };
        if old.cases[old_idx].digest != case.digest {
            let asks_another = old.input(old_idx)? != new.input(idx)?;
            changed.push(edited(&old.cases[old_idx], case, asks_another));
        }
    }
    let edited = changed;
    let (added, removed) = (only(new, &old_ids), only(old, &new_ids));
    let n_same = new.cases.len() - added.len() - edited.len();
    Ok(Difference { added, removed, edited, n_same, slices: slice_sizes(old, new) })
}

fn edited(old: &GoldenCase, new: &GoldenCase, asks_another: bool) -> Edited {
    let changed = [
        ("input", asks_another),
        ("expected", old.case.expected != new.case.expected),
        ("slices", old.case.slices != new.case.slices),
        ("must_pass", old.case.must_pass != new.case.must_pass),
        ("tags", old.tags != new.tags),
        ("source", old.source != new.source),
        ("provenance", old.provenance != new.provenance),
        ("weight", old.case.weight != new.case.weight),
    ];
    let less = |left: &[String], right: &[String]| left.iter().filter(|name| !right.contains(name)).cloned().collect();
    let word = |expected: &Expected| match expected {
        Expected::Label(label) => label.clone(),
        Expected::Relevances(relevances) => format!("{relevances:?}"),
        other => in_words(other),
    };
    Edited {
        id: new.case.id.clone(),
        changed: changed.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect(),
        expected: (old.case.expected != new.case.expected)
            .then(|| [&old.case, &new.case].map(|case| word(&case.expected))),
        slices_joined: less(&new.case.slices, &old.case.slices),
        slices_left: less(&old.case.slices, &new.case.slices),
    }
}

fn slice_sizes(old: &GoldenSet, new: &GoldenSet) -> BTreeMap<String, [usize; 2]> {
    let mut sizes: BTreeMap<String, [usize; 2]> = BTreeMap::new();
    for (side, set) in [old, new].into_iter().enumerate() {
        for slice in set.cases.iter().flat_map(|case| &case.case.slices) {
            sizes.entry(slice.clone()).or_default()[side] += 1;
        }
    }
    sizes.retain(|_, [before, after]| before != after);
    sizes
}
