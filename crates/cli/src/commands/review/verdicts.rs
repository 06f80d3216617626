//! Which of the kept verdicts a review is about.

use highroad_assess::GoldenSet;
use highroad_eval::{Baseline, Verdict};
use highroad_package::Digest;

use crate::verdicts::KeptVerdict;

/// The newest verdict on `package` against `baseline`, or against the trivial one, on this golden set.
pub fn newest<'a>(
    kept: &'a [KeptVerdict],
    package: &Digest,
    baseline: Option<&Digest>,
    golden: &GoldenSet,
) -> Option<&'a KeptVerdict> {
    let fits = |verdict: &Verdict| match (&verdict.baseline, baseline) {
        (Baseline::Package { package, .. }, Some(baseline)) => *package == baseline.to_string(),
        (Baseline::Trivial { .. }, None) => true,
        _ => false,
    };
    let about = |kept: &&KeptVerdict| kept.package == *package && is_of(kept, golden) && fits(&kept.verdict);
    kept.iter().rev().find(about)
}

/// Other packages that answered this golden set, each with its newest verdict.
pub fn of_others(kept: &[KeptVerdict], package: &Digest, golden: &GoldenSet) -> Vec<(String, Digest)> {
    let mut others: Vec<(String, Digest)> = Vec::new();
    for kept in kept.iter().rev().filter(|kept| kept.package != *package && is_of(kept, golden)) {
        let name = kept.package.to_string();
        if !others.iter().any(|(known, _)| *known == name) {
            others.push((name, kept.digest));
        }
    }
    others
}

/// What `package` answered to this golden set on a kind of machine, as its own newest verdict says.
pub fn answers_of(kept: &[KeptVerdict], package: &Digest, golden: &GoldenSet, numerics_id: &str) -> Option<Digest> {
    let is_its_own = |kept: &&KeptVerdict| {
        kept.package == *package && is_of(kept, golden) && kept.verdict.numerics_id == numerics_id
    };
    kept.iter().rev().find(is_its_own).and_then(|kept| kept.verdict.answers.parse().ok())
}

fn is_of(kept: &KeptVerdict, golden: &GoldenSet) -> bool {
    kept.verdict.golden_set.digest == golden.digest.to_string()
}
