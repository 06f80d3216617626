use statrs::distribution::{Binomial, Discrete as _, DiscreteCDF as _};
use statrs::function::beta::beta_reg;

use crate::interval::{normal_cdf, normal_quantile};

/// Two models on the same `n` cases, reduced to what a paired comparison of shares rests on.
///
/// The difference is always candidate minus baseline, so a regression counts against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Discordance {
    n_cases: u64,
    n_regressions: u64,
    n_improvements: u64,
}

/// Beyond this many cases the exact bounds are taken as the score bounds: they differ by less than 0.0002 there (see
/// the test `score_and_exact_bounds_meet`), and the exact ones would take seconds.
const MOST_CASES_FOR_EXACT_BOUNDS: u64 = 4_000;

impl Discordance {
    /// Counts cases where exactly one side is right. Both slices are one flag a case, in the same order.
    ///
    /// # Panics
    /// If the two lengths differ: the sides must have answered the same cases.
    pub fn of(baseline_right: &[bool], candidate_right: &[bool]) -> Self {
        assert_eq!(baseline_right.len(), candidate_right.len(), "paired comparison of different cases");
        let pairs = || baseline_right.iter().zip(candidate_right);
        Self {
            n_cases: baseline_right.len() as u64,
            n_regressions: pairs().filter(|&(&baseline, &candidate)| baseline && !candidate).count() as u64,
            n_improvements: pairs().filter(|&(&baseline, &candidate)| !baseline && candidate).count() as u64,
        }
    }

    /// From counts; `None` if more cases flipped than there are.
    pub fn from_counts(n_cases: u64, n_regressions: u64, n_improvements: u64) -> Option<Self> {
        let fits = n_regressions.checked_add(n_improvements).is_some_and(|flipped| flipped <= n_cases);
        fits.then_some(Self { n_cases, n_regressions, n_improvements })
    }

    /// Number of cases.
    pub fn n_cases(self) -> u64 {
        self.n_cases
    }

    /// Cases the candidate lost.
    pub fn n_regressions(self) -> u64 {
        self.n_regressions
    }

    /// Cases the candidate won.
    pub fn n_improvements(self) -> u64 {
        self.n_improvements
    }

    /// Share of right answers, candidate minus baseline; 0 for no cases.
    pub fn difference(self) -> f64 {
        (self.n_improvements as f64 - self.n_regressions as f64) / self.n_cases.max(1) as f64
    }

    /// The share of cases on which the sides differ, with one case added to either kind (Laplace), so that a set
    /// without flips does not claim that flips are impossible.
    pub fn share(self) -> f64 {
        (self.n_regressions + self.n_improvements + 1) as f64 / (self.n_cases + 2) as f64
    }

    /// Exact McNemar test, two-sided: the p-value of "both sides are equally often right". 1 without any flip.
    pub fn mcnemar(self) -> f64 {
        let fewer = self.n_regressions.min(self.n_improvements);
        (2.0 * self.fair_coin().cdf(fewer)).min(1.0)
    }

    /// Exact McNemar test, one-sided: the p-value of "the candidate is not worse"; small means it is worse.
    pub fn mcnemar_worse(self) -> f64 {
        self.fair_coin().cdf(self.n_improvements)
    }

    /// Exact McNemar test, one-sided: the p-value of "the candidate is not better"; small means it is better.
    pub fn mcnemar_better(self) -> f64 {
        self.swapped().mcnemar_worse()
    }

    /// Tango's score bounds of the difference (Statistics in Medicine 17, 1998), each missing the true difference with
    /// probability about `alpha`: the values at which the score test does not reject.
    pub fn score_bounds(self, alpha: f64) -> [f64; 2] {
        [self.score_lower(alpha), -self.swapped().score_lower(alpha)]
    }

    /// Exact unconditional bounds of the difference, each missing the true difference with probability at most `alpha`,
    /// for every true share of flips.
    ///
    /// Buehler's bounds (1957) for the ordering by Tango's score bound: among bounds that err that rarely and agree with
    /// that ordering none is tighter (Lloyd and Kabaila 2003). The lower one is the difference at which outcomes at least
    /// as good as the observed have probability `alpha` under the least favourable share of flips.
    pub fn exact_bounds(self, alpha: f64) -> [f64; 2] {
        if self.n_cases > MOST_CASES_FOR_EXACT_BOUNDS {
            return self.score_bounds(alpha);
        }
        [self.exact_lower(alpha), -self.swapped().exact_lower(alpha)]
    }

    /// The p-value of "the true difference is at most `difference`": small means that the candidate is better by more.
    ///
    /// Exact and unconditional (Hsueh, Liu and Chen 2001): the probability of outcomes whose Tango score for that difference is at
    /// least the observed one, under the least favourable share of flips.
    pub fn p_better_by(self, difference: f64) -> f64 {
        let score = self.score(difference);
        if self.n_cases == 0 {
            return 1.0;
        }
        if self.n_cases > MOST_CASES_FOR_EXACT_BOUNDS {
            return normal_cdf(-score);
        }
        AtLeastAsGood::new(self.n_cases, difference, score).largest_probability(difference).min(1.0)
    }

    fn swapped(self) -> Self {
        Self { n_regressions: self.n_improvements, n_improvements: self.n_regressions, ..self }
    }

    fn fair_coin(self) -> Binomial {
        Binomial::new(0.5, self.n_regressions + self.n_improvements).expect("one half is a probability")
    }

    fn score_lower(self, alpha: f64) -> f64 {
        if self.n_cases == 0 || self.n_regressions == self.n_cases {
            return -1.0;
        }
        let z = normal_quantile(1.0 - alpha);
        bisect(-1.0, self.difference(), |difference| self.score(difference) < z)
    }

    fn exact_lower(self, alpha: f64) -> f64 {
        if self.n_cases == 0 || self.n_regressions == self.n_cases {
            return -1.0;
        }
        let at = self.score_lower(alpha);
        let as_good = AtLeastAsGood::new(self.n_cases, at, normal_quantile(1.0 - alpha));
        let excess = |difference: f64| as_good.largest_probability(difference) - alpha;
        // The score bound is close: walk from there until the exact one is inside, rather than search all of [-1, 1].
        let mut step = 0.25 / self.n_cases as f64;
        let (mut low, mut high) = (at, at);
        let (mut at_low, mut at_high) = (excess(at), excess(at));
        while at_low > 0.0 && low > -1.0 {
            (high, at_high) = (low, at_low);
            low = (low - step).max(-1.0);
            (at_low, step) = (excess(low), step * 2.0);
        }
        while at_high <= 0.0 && high < 1.0 {
            (low, at_low) = (high, at_high);
            high = (high + step).min(1.0);
            (at_high, step) = (excess(high), step * 2.0);
        }
        root_below((low, at_low), (high, at_high), excess)
    }

    /// Tango's statistic for "the true difference is `difference`": the observed difference less that, over its standard
    /// deviation under the maximum-likelihood shares that have it. Decreases in `difference`.
    fn score(self, difference: f64) -> f64 {
        score(self.n_cases as f64, self.n_regressions as f64, self.n_improvements as f64, difference)
    }
}

fn score(n: f64, n_regressions: f64, n_improvements: f64, difference: f64) -> f64 {
    if difference < 0.0 {
        return -score(n, n_improvements, n_regressions, -difference);
    }
    // With P(regression) = q and P(improvement) = q + difference the likelihood is largest at the upper root of
    // 2n q^2 + linear q - n_regressions difference (1 - difference) = 0.
    let linear = difference * (2.0 * n + n_regressions - n_improvements) - (n_regressions + n_improvements);
    let constant = -n_regressions * difference * (1.0 - difference);
    let q = ((linear * linear - 8.0 * n * constant).max(0.0).sqrt() - linear) / (4.0 * n);
    let variance = n * (2.0 * q + difference * (1.0 - difference));
    let excess = n_improvements - n_regressions - n * difference;
    if variance <= 0.0 {
        return if excess == 0.0 { 0.0 } else { excess.signum() * f64::INFINITY };
    }
    excess / variance.sqrt()
}

/// The outcomes of `n` cases whose score for one difference reaches a critical value. With more improvements an outcome
/// stays in the set, with more regressions it leaves it, so one number a column describes it.
pub(crate) struct AtLeastAsGood {
    n: u64,
    /// The most regressions an outcome with `index` improvements may have; `None` if even 0 are too many.
    most_regressions: Vec<Option<u64>>,
}

impl AtLeastAsGood {
    pub(crate) fn new(n: u64, difference: f64, critical: f64) -> Self {
        // Outcomes with exactly the observed score must be in; bisection found the bound to about 1e-15.
        Self::of(n, n, |b, c| score(n as f64, b as f64, c as f64, difference) >= critical - 1e-9)
    }

    /// The outcomes whose exact lower bound lies above `-margin`, up to `most_improvements`; all others count as out.
    pub(crate) fn passing(n: u64, most_improvements: u64, margin: f64, alpha: f64) -> Self {
        Self::of(n, most_improvements, |b, c| {
            let pairs = Discordance { n_cases: n, n_regressions: b, n_improvements: c };
            let as_good = Self::new(n, pairs.score_lower(alpha), normal_quantile(1.0 - alpha));
            b < n && as_good.largest_probability(-margin) < alpha
        })
    }

    fn of(n: u64, most_improvements: u64, holds: impl Fn(u64, u64) -> bool) -> Self {
        let mut next = 0;
        let column = |c: u64| {
            while c <= most_improvements && next <= n - c && holds(next, c) {
                next += 1;
            }
            if c <= most_improvements { next.min(n - c + 1).checked_sub(1) } else { None }
        };
        Self { n, most_regressions: (0..=n).map(column).collect() }
    }

    /// The largest probability of the set over all shares of flips with that true difference.
    pub(crate) fn largest_probability(&self, difference: f64) -> f64 {
        const GRID: usize = 32;
        let smaller_most = (1.0 - difference.abs()) / 2.0;
        // Finer near 0, where few flips make the probability jump.
        let smaller = |step: f64| smaller_most * (step / GRID as f64).powi(2);
        let at = |step: f64| self.probability_with(difference, smaller(step));
        let values: Vec<f64> = (0..=GRID).map(|step| at(step as f64)).collect();
        let best = (0..=GRID).max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap_or(0);
        let (low, high) = (best.saturating_sub(1) as f64, (best + 1).min(GRID) as f64);
        golden_section_maximum(low, high, at).max(values[best])
    }

    /// The probability of the set if the less likely kind of flip has probability `smaller`.
    fn probability_with(&self, difference: f64, smaller: f64) -> f64 {
        let larger = smaller + difference.abs();
        if difference < 0.0 { self.probability(larger, smaller) } else { self.probability(smaller, larger) }
    }

    /// The probability of the set under these shares of regressions and improvements.
    pub(crate) fn probability(&self, regression: f64, improvement: f64) -> f64 {
        let (n, mean) = (self.n, self.n as f64 * improvement);
        let Ok(improvements) = Binomial::new(improvement.clamp(0.0, 1.0), n) else { return 0.0 };
        // Columns further than 7.5 standard deviations off carry less than 1e-12.
        let reach = 7.5 * (mean * (1.0 - improvement)).sqrt() + 12.0;
        let (low, high) = ((mean - reach).max(0.0) as u64, ((mean + reach) as u64).min(n));
        let given = if improvement < 1.0 { (regression / (1.0 - improvement)).clamp(0.0, 1.0) } else { 0.0 };
        let odds = improvement / (1.0 - improvement);
        let (mut total, mut weight) = (0.0, improvements.pmf(low));
        for c in low..=high {
            if let Some(most) = self.most_regressions[c as usize]
                && weight > 1e-16
            {
                total += weight * binomial_cdf(most, n - c, given);
            }
            weight *= (n - c) as f64 / (c + 1) as f64 * odds;
        }
        total
    }
}

fn binomial_cdf(k: u64, n: u64, p: f64) -> f64 {
    if k >= n || p == 0.0 {
        1.0
    } else if p == 1.0 {
        0.0
    } else {
        beta_reg((n - k) as f64, k as f64 + 1.0, 1.0 - p)
    }
}

/// The point in `[low, high]` from which on `holds`, to the last bit that matters; `high` if it never does.
pub(crate) fn bisect(mut low: f64, mut high: f64, holds: impl Fn(f64) -> bool) -> f64 {
    while high - low > 1e-14_f64.max(1e-12 * high.abs()) {
        let middle = 0.5 * (low + high);
        if holds(middle) { high = middle } else { low = middle }
    }
    0.5 * (low + high)
}

/// A point at most 1e-9 below the root of an increasing function, by regula falsi in the Illinois form. The points are
/// given with their values; the first one's is at most 0, the second one's above.
fn root_below((mut low, mut at_low): (f64, f64), (mut high, mut at_high): (f64, f64), of: impl Fn(f64) -> f64) -> f64 {
    while high - low > 1e-9 {
        let slope = (at_high - at_low).max(f64::MIN_POSITIVE);
        let inner = (low - at_low * (high - low) / slope).clamp(low, high);
        // An end that stays put, or a guess that barely leaves it, must not stall the search.
        let middle = if (inner - low).min(high - inner) < 1e-10 { 0.5 * (low + high) } else { inner };
        let value = of(middle);
        if value > 0.0 {
            (high, at_high, at_low) = (middle, value, at_low * 0.5);
        } else {
            (low, at_low, at_high) = (middle, value, at_high * 0.5);
        }
    }
    low
}

/// The largest value of a function with one peak in `[low, high]`.
fn golden_section_maximum(mut low: f64, mut high: f64, of: impl Fn(f64) -> f64) -> f64 {
    const RATIO: f64 = 0.618_033_988_749_894_9;
    let (mut left, mut right) = (high - RATIO * (high - low), low + RATIO * (high - low));
    let (mut at_left, mut at_right) = (of(left), of(right));
    for _ in 0..10 {
        if at_left > at_right {
            (high, right, at_right) = (right, left, at_left);
            left = high - RATIO * (high - low);
            at_left = of(left);
        } else {
            (low, left, at_left) = (left, right, at_right);
            right = low + RATIO * (high - low);
            at_right = of(right);
        }
    }
    at_left.max(at_right)
}
