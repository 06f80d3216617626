//! Whether a version that has just taken another's place should give it back: the same requests, asked of both where the new one fails.

use serde::{Deserialize, Serialize};

use crate::{Counts, Outcome, Sequential, SequentialError};

/// What a version may do in its first minutes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbationRules {
    /// The chance of ever sending back a version within both limits is at most this.
    pub alpha: f64,
    /// Largest share of requests that it fails and the version before answers.
    pub max_errors: f64,
    /// Largest share of requests that are slow, where there is a limit of time.
    pub max_slow: Option<f64>,
}

/// What was seen since a version took over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbationCounts {
    /// Requests that it was asked.
    pub n_asked: u64,
    /// Those that it failed and the version before answered. What both fail says nothing about either.
    pub n_failed: u64,
    /// Those that took longer than the objective allows.
    pub n_slow: u64,
    /// What the version before had of slow requests, when it still served.
    pub before: Counts,
}

/// Why a version should go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Regression {
    Errors,
    Slow,
}

/// Whether the version should go back, asked as often as wanted: each limit is a bet against the claim that it is kept, see [`Sequential`],
/// with half of alpha each. Nothing is said where the version before was beyond the limit itself.
pub fn regression(rules: &ProbationRules, counts: &ProbationCounts) -> Result<Option<Regression>, SequentialError> {
    let breaks = |limit: f64, n_bad: u64| {
        let mut test = Sequential::new(rules.alpha / 2.0, limit)?;
        let n_bad = n_bad.min(counts.n_asked);
        test.observe_times(-1.0, n_bad)?;
        test.observe_times(0.0, counts.n_asked - n_bad)?;
        Ok(test.decision() == Outcome::Fail)
    };
    if breaks(rules.max_errors, counts.n_failed)? {
        return Ok(Some(Regression::Errors));
    }
    let Some(max_slow) = rules.max_slow.filter(|limit| counts.before.bad_share() <= *limit) else { return Ok(None) };
    Ok(breaks(max_slow, counts.n_slow)?.then_some(Regression::Slow))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const RULES: ProbationRules = ProbationRules { alpha: 0.01, max_errors: 0.01, max_slow: Some(0.144) };

    fn judged(n_asked: u64, n_failed: u64, n_slow: u64, before: [u64; 2]) -> Option<Regression> {
        let before = Counts { n: before[0], n_bad: before[1] };
        regression(&RULES, &ProbationCounts { n_asked, n_failed, n_slow, before }).unwrap()
    }

    #[test]
    fn a_version_that_fails_everything_goes_back_after_a_dozen_requests() {
        let first = (1..100).find(|&n| judged(n, n, 0, [0, 0]).is_some()).unwrap();
        assert!((8..=16).contains(&first), "{first}");
        assert_eq!(judged(first, first, 0, [0, 0]), Some(Regression::Errors));
    }

    #[test]
    fn what_both_fail_and_rare_errors_keep_it() {
        assert_eq!(judged(10_000, 0, 0, [0, 0]), None);
        assert_eq!(judged(1000, 10, 0, [0, 0]), None);
        assert_eq!(judged(1000, 60, 0, [0, 0]), Some(Regression::Errors));
    }

    #[test]
    fn a_slow_version_goes_back_unless_the_one_before_was_slow_as_well() {
        assert_eq!(judged(200, 0, 100, [1000, 10]), Some(Regression::Slow));
        assert_eq!(judged(200, 0, 100, [1000, 400]), None);
        assert_eq!(judged(200, 0, 20, [1000, 10]), None);
    }

    #[test]
    fn counts_that_cannot_be_are_no_panic() {
        assert_eq!(judged(1, u64::MAX, u64::MAX, [0, u64::MAX]), None);
    }
}
