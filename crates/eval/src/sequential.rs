use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use statrs::function::beta::ln_beta;

use crate::Outcome;

/// Paired comparison on live traffic that may be looked at after every request: the chance that a bound or the decision is
/// *ever* wrong, at any of all looks together, is at most alpha.
///
/// A bet against "the mean difference is at most m" multiplies its capital by `1 + bet (difference - m)`. While the claim
/// holds the capital is a nonnegative supermartingale, so it ever reaches 1 / alpha with probability at most alpha (Ville
/// 1939). The capital here is the mean over fixed bets of several sizes (Waudby-Smith and Ramdas, JRSS B 86, 2024, section
/// 5.6), so it depends on nothing but how often each difference was seen: that is the state, and states of several
/// replicas add up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "State", into = "State")]
pub struct Sequential {
    alpha: f64,
    margin: f64,
    /// How many differences fell into each cell; see [`cell`].
    counts: BTreeMap<i32, u64>,
}

/// A comparison on live traffic cannot be set up or continued like that.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum SequentialError {
    #[error("alpha is {0}, not between 0 and 1")]
    Alpha(f64),
    #[error("the margin is {0}, not at least 0 and below 1")]
    Margin(f64),
    #[error("a paired difference is {0}, not between -1 and 1")]
    Difference(f64),
    #[error("cell {0} holds no difference between -1 and 1")]
    Cell(i32),
    #[error("counts of different rules do not add up")]
    OtherRule,
}

/// Differences are kept to a thousandth: bounds take the end of a cell that is worse for them.
const CELLS_TO_ONE: f64 = 1_000.0;
/// The largest bet risks this share of the capital on one request; others are smaller by [`BET_RATIO`] each. The largest
/// suits large drops and rare flips, the smallest drops of a thousandth.
const LARGEST_BET: f64 = 0.95;
const BET_RATIO: f64 = 1.6;
const N_BETS: i32 = 12;
/// How finely bounds are searched.
const BOUND_STEP: f64 = 1e-6;

impl Sequential {
    /// Decides whether the candidate is worse by `margin` on average; a margin of 0 demands a gain.
    pub fn new(alpha: f64, margin: f64) -> Result<Self, SequentialError> {
        if !(alpha > 0.0 && alpha < 1.0) {
            return Err(SequentialError::Alpha(alpha));
        }
        if !(0.0..1.0).contains(&margin) {
            return Err(SequentialError::Margin(margin));
        }
        Ok(Self { alpha, margin, counts: BTreeMap::new() })
    }

    /// Takes in one request: candidate minus baseline, -1 to 1, larger being better; 1, 0 or -1 for right and wrong.
    pub fn observe(&mut self, difference: f64) -> Result<(), SequentialError> {
        self.observe_times(difference, 1)
    }

    /// Takes in `n` requests of one difference.
    pub fn observe_times(&mut self, difference: f64, n: u64) -> Result<(), SequentialError> {
        let cell = cell(difference).ok_or(SequentialError::Difference(difference))?;
        if n > 0 {
            self.add(cell, n);
        }
        Ok(())
    }

    /// Takes in what another replica has seen under the same rule.
    pub fn merge(&mut self, other: &Self) -> Result<(), SequentialError> {
        if (self.alpha, self.margin) != (other.alpha, other.margin) {
            return Err(SequentialError::OtherRule);
        }
        other.counts.iter().for_each(|(&cell, &n)| self.add(cell, n));
        Ok(())
    }

    fn add(&mut self, cell: i32, n: u64) {
        let count = self.counts.entry(cell).or_default();
        *count = count.saturating_add(n);
    }

    /// How many requests were compared.
    pub fn n_observed(&self) -> u64 {
        self.counts.values().fold(0, |sum, &n| sum.saturating_add(n))
    }

    /// Mean difference; 0 before the first request.
    pub fn mean(&self) -> f64 {
        let total: f64 = self.counts.iter().map(|(&cell, &n)| f64::from(cell) / 2.0 / CELLS_TO_ONE * n as f64).sum();
        total / self.n_observed().max(1) as f64
    }

    /// Bounds of the true mean difference, each ever wrong with probability at most alpha.
    pub fn bounds(&self) -> [f64; 2] {
        let needed = -self.alpha.ln();
        let lower = |side| {
            let (mut low, mut high) = (-1.0, 1.0);
            while high - low > BOUND_STEP {
                let middle = 0.5 * (low + high);
                if self.log_capital(side, middle) >= needed { low = middle } else { high = middle }
            }
            low
        };
        [lower(Side::Above), -lower(Side::Below)]
    }

    /// Pass once the mean difference is above -margin for certain, fail once it is below; asked as often as wanted.
    pub fn decision(&self) -> Outcome {
        let needed = -self.alpha.ln();
        if self.log_capital(Side::Below, self.margin) >= needed {
            Outcome::Fail
        } else if self.log_capital(Side::Above, -self.margin) >= needed {
            Outcome::Pass
        } else {
            Outcome::Inconclusive
        }
    }

    /// Logarithm of the evidence against "the mean is at most `mean`", of differences or of their opposites. Decreases in
    /// `mean`, as each bet is a fixed share of what it may lose.
    fn log_capital(&self, side: Side, mean: f64) -> f64 {
        let bets = (0..N_BETS).map(|idx| LARGEST_BET / BET_RATIO.powi(idx));
        let of_bet = |bet: f64| {
            let gain = |(&cell, &n): (&i32, &u64)| n as f64 * (bet * (side.least(cell) - mean) / (1.0 + mean)).ln_1p();
            self.counts.iter().map(gain).sum::<f64>()
        };
        let logs: Vec<f64> = bets.map(of_bet).collect();
        let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        most + (logs.iter().map(|log| (log - most).exp()).sum::<f64>() / f64::from(N_BETS)).ln()
    }
}

/// Whether evidence is looked for that the mean is above a value, or below the opposite of one.
#[derive(Clone, Copy)]
enum Side {
    Above,
    Below,
}

impl Side {
    /// The least difference, or opposite of a difference, in a cell.
    fn least(self, cell: i32) -> f64 {
        let cell = match self {
            Self::Above => cell,
            Self::Below => -cell,
        };
        f64::from(cell.div_euclid(2)) / CELLS_TO_ONE
    }
}

/// `2 k` for a difference of exactly k thousandths, `2 k + 1` between k and k + 1; `None` outside [-1, 1].
fn cell(difference: f64) -> Option<i32> {
    let scaled = difference * CELLS_TO_ONE;
    (difference.abs() <= 1.0).then(|| scaled.floor() as i32 + scaled.ceil() as i32)
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    alpha: f64,
    margin: f64,
    counts: BTreeMap<i32, u64>,
}

impl From<Sequential> for State {
    fn from(Sequential { alpha, margin, counts }: Sequential) -> Self {
        Self { alpha, margin, counts }
    }
}

impl TryFrom<State> for Sequential {
    type Error = SequentialError;

    fn try_from(State { alpha, margin, counts }: State) -> Result<Self, SequentialError> {
        let most = 2 * CELLS_TO_ONE as i32;
        match counts.keys().find(|cell| !(-most..=most).contains(cell)) {
            Some(&cell) => Err(SequentialError::Cell(cell)),
            None => Ok(Self { counts, ..Self::new(alpha, margin)? }),
        }
    }
}

/// Which way requests flip on live traffic, looked at after every one: whether more are lost than won, no matter how rare
/// flips are.
///
/// The evidence against "a flip is a loss with probability p" is the likelihood ratio of flips averaged over every other
/// probability alike, the beta-binomial mixture (Robbins 1970). It is exact: no approximation, and the chance that it ever
/// exceeds 1 / alpha is at most alpha.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SequentialFlips {
    /// Requests that only the baseline answered rightly.
    pub n_regressions: u64,
    /// Requests that only the candidate answered rightly.
    pub n_improvements: u64,
}

impl SequentialFlips {
    /// Logarithm of the evidence against "a flip is a regression with probability `share`".
    pub fn log_evidence(self, share: f64) -> f64 {
        let [lost, won] = [self.n_regressions, self.n_improvements].map(|n| n as f64);
        // 0 times the logarithm of 0 is 0 here.
        let power = |n: f64, p: f64| if n == 0.0 { 0.0 } else { n * p.ln() };
        ln_beta(lost + 1.0, won + 1.0) - power(lost, share) - power(won, 1.0 - share)
    }

    /// Bounds of the true share of regressions among flips, which together are ever wrong with probability at most `alpha`.
    pub fn share_bounds(self, alpha: f64) -> [f64; 2] {
        let [lost, won] = [self.n_regressions, self.n_improvements].map(|n| n as f64);
        if lost + won == 0.0 {
            return [0.0, 1.0];
        }
        let observed = lost / (lost + won);
        let bound = |end: f64| {
            let (mut outside, mut inside) = (end, observed);
            while (inside - outside).abs() > BOUND_STEP {
                let middle = 0.5 * (outside + inside);
                if self.log_evidence(middle) >= -alpha.ln() { outside = middle } else { inside = middle }
            }
            outside
        };
        [bound(0.0), bound(1.0)]
    }

    /// Fail once more flips are regressions than improvements for certain, pass once fewer are; ever wrong with probability
    /// at most `alpha`.
    pub fn decision(self, alpha: f64) -> Outcome {
        match self.n_regressions > self.n_improvements {
            _ if self.log_evidence(0.5) < -alpha.ln() => Outcome::Inconclusive,
            true => Outcome::Fail,
            false => Outcome::Pass,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn seen(differences: &[f64]) -> Sequential {
        let mut sequential = Sequential::new(0.05, 0.02).unwrap();
        differences.iter().for_each(|&difference| sequential.observe(difference).unwrap());
        sequential
    }

    #[test]
    fn a_difference_is_kept_by_its_worse_end() {
        for (difference, above, below) in [(1.0, 1.0, -1.0), (-1.0, -1.0, 1.0), (0.0, 0.0, 0.0), (0.5, 0.5, -0.5)] {
            let cell = cell(difference).unwrap();
            assert_eq!((Side::Above.least(cell), Side::Below.least(cell)), (above, below));
        }
        let between = cell(-0.0004).unwrap();
        assert_eq!((Side::Above.least(between), Side::Below.least(between)), (-0.001, 0.0));
    }

    #[test]
    fn what_is_no_paired_difference_is_refused() {
        let mut sequential = seen(&[]);
        assert_eq!(sequential.observe(1.5), Err(SequentialError::Difference(1.5)));
        assert!(sequential.observe(f64::NAN).is_err() && sequential.observe(f64::INFINITY).is_err());
        assert!(Sequential::new(0.0, 0.02).is_err() && Sequential::new(f64::NAN, 0.02).is_err());
        assert!(Sequential::new(0.05, 1.0).is_err() && Sequential::new(0.05, -0.01).is_err());
    }

    #[test]
    fn replicas_add_up_and_survive_a_restart() {
        let (left, right) = (seen(&[0.0, 1.0, -1.0, 0.25]), seen(&[0.0, 0.333]));
        let mut both = left.clone();
        both.merge(&right).unwrap();
        assert_eq!(both, seen(&[0.333, 0.25, -1.0, 1.0, 0.0, 0.0]));
        assert_eq!(both.n_observed(), 6);
        assert!((both.mean() - 0.583 / 6.0).abs() < 1e-3);
        let text = serde_json::to_string(&both).unwrap();
        assert_eq!(serde_json::from_str::<Sequential>(&text).unwrap(), both);
        assert!(serde_json::from_str::<Sequential>(&text.replace("2000", "2001")).is_err());
        let hostile = text.replace("\"2000\":1", "\"2000\":18446744073709551615");
        let mut full: Sequential = serde_json::from_str(&hostile).unwrap();
        full.observe(1.0).unwrap();
        assert_eq!((full.n_observed(), full.decision()), (u64::MAX, Outcome::Pass));
        assert_eq!(both.merge(&Sequential::new(0.05, 0.01).unwrap()), Err(SequentialError::OtherRule));
    }

    #[test]
    fn bounds_and_decision_agree() {
        let mut sequential = seen(&[]);
        assert_eq!(sequential.bounds(), [-1.0, 1.0]);
        for idx in 0..4_000 {
            sequential.observe([0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0][idx % 8] * f64::from(idx % 5 == 0)).unwrap();
            if idx % 100 == 0 {
                let [low, high] = sequential.bounds();
                let expected = match () {
                    () if high < -0.02 => Outcome::Fail,
                    () if low > -0.02 => Outcome::Pass,
                    () => Outcome::Inconclusive,
                };
                assert_eq!(sequential.decision(), expected, "{idx}: {low} to {high}");
            }
        }
        assert_eq!(sequential.decision(), Outcome::Pass);
    }

    #[test]
    fn a_share_bound_is_where_the_evidence_suffices() {
        let flips = SequentialFlips { n_regressions: 30, n_improvements: 9 };
        let [low, high] = flips.share_bounds(0.05);
        for share in [low, high] {
            assert!((flips.log_evidence(share) - 20.0_f64.ln()).abs() < 1e-3, "{share}");
        }
        assert_eq!(flips.decision(0.05), Outcome::Fail);
        assert_eq!(SequentialFlips { n_regressions: 9, n_improvements: 30 }.decision(0.05), Outcome::Pass);
        assert_eq!(SequentialFlips::default().decision(0.05), Outcome::Inconclusive);
        let only = SequentialFlips { n_regressions: 8, n_improvements: 0 };
        let [low, high] = only.share_bounds(0.05);
        assert!(low > 0.5 && high == 1.0, "{low} to {high}");
    }
}
