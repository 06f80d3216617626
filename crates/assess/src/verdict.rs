use std::collections::BTreeMap;
use std::path::PathBuf;

use highroad_eval::{
    Baseline, Comparison, Decision, Gates, Given, JudgeEvidence, Observed, Side, Verdict, decide_with,
};
use highroad_package::{Digest, PackageError, Verdicts};

use crate::{AssessError, GoldenSet, Results};

/// Most flips that a verdict holds: its file may have 16 MiB.
const MOST_FLIPS: usize = 20_000;

/// What a gate judges: a candidate, and a baseline package or `None` for the trivial one.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// The golden set both answered.
    pub golden: &'a GoldenSet,
    /// The candidate's answers.
    pub candidate: &'a Results,
    /// The champion's answers.
    pub baseline: Option<&'a Results>,
}

/// The rules, and what programs of the user's own [gave](crate::give): beside what the golden set's kind says they decide which cases
/// are right.
#[derive(Clone, Copy, Debug)]
pub struct Ruled<'a> {
    /// The rules.
    pub gates: &'a Gates,
    /// By what they call the program.
    pub given: &'a BTreeMap<String, Given>,
}

/// Who ran the gate, when, by which rules and against what.
#[derive(Clone, Debug)]
pub struct Signature {
    /// Digest of `gates.toml`.
    pub gates: Digest,
    /// The reference the baseline was found by.
    pub baseline_reference: Option<String>,
    /// RFC 3339 in UTC, with milliseconds.
    pub created_at: String,
    /// A name.
    pub created_by: String,
}

/// Applies the rules to the answers of both sides.
///
/// Errors if either side did not answer exactly the cases of the golden set, or if the candidate does not know a label
/// that is expected; a label that only the baseline lacks counts as one it never answers.
pub fn judge(gates: &Gates, judged: &Judged<'_>) -> Result<Decision, AssessError> {
    judge_with(gates, judged, &BTreeMap::new(), &[])
}

/// The same with what programs of the user's own [gave](crate::give) each case, and with what is known of the judges of texts.
pub fn judge_with(
    gates: &Gates,
    judged: &Judged<'_>,
    given: &BTreeMap<String, Given>,
    judges: &[JudgeEvidence],
) -> Result<Decision, AssessError> {
    let Judged { golden, candidate, baseline } = *judged;
    let observed = candidate.observed(golden, baseline.map_or(&[], |baseline| &baseline.labels))?;
    let of_baseline = baseline.map(|baseline| baseline.observed(golden, &candidate.labels)).transpose()?;
    let comparison = Comparison {
        cases: &golden.cases(),
        candidate: &observed,
        baseline: of_baseline.as_ref().map_or(Side::Trivial, Side::Package),
        latencies_ms: &candidate.speed.single_ms,
    };
    Ok(decide_with(gates, &comparison, given, judges)?)
}

/// Whether each case of `golden` is answered rightly by the candidate; `None` where nothing decides.
pub(crate) fn right(ruled: Option<Ruled<'_>>, golden: &GoldenSet, observed: &Observed) -> Vec<Option<bool>> {
    let given = ruled.iter().flat_map(|ruled| ruled.given);
    let values = given.map(|(name, given)| (name.as_str(), given.candidate.as_slice())).collect();
    highroad_eval::right(ruled.map(|ruled| ruled.gates), &golden.cases(), observed, &values)
}

impl Signature {
    /// Binds a decision to the bytes it is about.
    pub fn bind(self, judged: &Judged<'_>, decision: Decision) -> Verdict {
        let Decision { outcome, checks, mut flips, waivers } = decision;
        let flips_left_out = flips.len().saturating_sub(MOST_FLIPS);
        flips.truncate(MOST_FLIPS);
        let baseline = match judged.baseline {
            Some(baseline) => {
                Baseline::Package { package: baseline.package.to_string(), reference: self.baseline_reference }
            }
            None => Baseline::Trivial { name: "majority".to_owned() },
        };
        Verdict {
            highroad_verdict: 1,
            outcome,
            package: judged.candidate.package.to_string(),
            baseline,
            golden_set: judged.candidate.golden_set.clone(),
            gates: self.gates.to_string(),
            numerics_id: judged.candidate.numerics_id.clone(),
            evidence: judged.candidate.evidence,
            answers: judged.candidate.answers.to_string(),
            checks,
            flips,
            flips_left_out,
            waivers,
            latency: Some(judged.candidate.latency()),
            traffic: None,
            hosted: judged.candidate.hosted.clone(),
            judges: Vec::new(),
            custom: Vec::new(),
            pipeline: None,
            created_at: self.created_at,
            created_by: self.created_by,
        }
    }
}

/// Writes a verdict on `package` under `root` (`<package hex>/<verdict hex>.json`); gives its digest and path.
pub fn keep(root: PathBuf, package: &Digest, verdict: &Verdict) -> Result<(Digest, PathBuf), PackageError> {
    let bytes = serde_json::to_vec_pretty(verdict).expect("a verdict is plain data with text keys");
    let digest = Verdicts::open(&root)?.put(package, &bytes)?;
    let path = root.join(package.hex()).join(format!("{}.json", digest.hex()));
    Ok((digest, path))
}
