use statrs::distribution::{Beta, Binomial, ContinuousCDF as _, Discrete as _, DiscreteCDF as _};

use crate::interval::{clopper_pearson, normal_cdf, normal_quantile};
use crate::paired::{AtLeastAsGood, bisect};

/// Whether a test looks for a drop only or for any change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Sides {
    One,
    Two,
}

/// What exact McNemar tests at level `alpha` can see on `n_cases` cases of which the two models are expected to differ
/// on the share `discordant`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct McNemarPower {
    pub n_cases: u64,
    pub discordant: f64,
    pub alpha: f64,
    pub sides: Sides,
}

impl McNemarPower {
    /// The probability that the test finds a true drop of `drop` (a share, at most `discordant`), exactly: over the
    /// number of discordant cases, then over how many of them are regressions.
    pub fn power(&self, drop: f64) -> f64 {
        self.power_over(&self.rejections(), drop)
    }

    /// The smallest true drop found with probability `power`, as a share; `None` if not even a model that loses every
    /// discordant case would be found that often.
    pub fn minimum_detectable_effect(&self, power: f64) -> Option<f64> {
        let rejections = self.rejections();
        let reachable = self.discordant > 0.0 && self.power_over(&rejections, self.discordant) >= power;
        reachable.then(|| bisect(0.0, self.discordant, |drop| self.power_over(&rejections, drop) >= power))
    }

    fn power_over(&self, rejections: &[Rejection], drop: f64) -> f64 {
        let regression = ((self.discordant + drop) / (2.0 * self.discordant)).clamp(0.0, 1.0);
        let of = |rejection: &Rejection| {
            let Rejection { n_discordant, probability, n_needed } = *rejection;
            let regressions = Binomial::new(regression, n_discordant).expect("clamped to a probability");
            let worse = 1.0 - n_needed.checked_sub(1).map_or(0.0, |below| regressions.cdf(below));
            let better = match self.sides {
                Sides::One => 0.0,
                Sides::Two => regressions.cdf(n_discordant - n_needed),
            };
            probability * (worse + better)
        };
        rejections.iter().map(of).sum()
    }

    /// Where the test can reject at all.
    fn rejections(&self) -> Vec<Rejection> {
        let Ok(discordant) = Binomial::new(self.discordant.clamp(0.0, 1.0), self.n_cases) else { return Vec::new() };
        let (mean, reach) = self.discordant_window();
        let (low, high) = ((mean - reach).max(0.0) as u64, ((mean + reach) as u64).min(self.n_cases));
        let at = |n_discordant: u64| {
            let n_needed = self.n_regressions_needed(n_discordant)?;
            Some(Rejection { n_discordant, probability: discordant.pmf(n_discordant), n_needed })
        };
        (low..=high).filter_map(at).collect()
    }

    /// The fewest regressions among `n_discordant` flips that the test calls significant.
    fn n_regressions_needed(&self, n_discordant: u64) -> Option<u64> {
        let level = match self.sides {
            Sides::One => self.alpha,
            Sides::Two => self.alpha / 2.0,
        };
        let coin = Binomial::new(0.5, n_discordant).expect("one half is a probability");
        // By symmetry P(regressions >= k) = P(improvements <= n - k).
        let mut improvements = coin.inverse_cdf(level);
        while coin.cdf(improvements) > level {
            improvements = improvements.checked_sub(1)?;
        }
        Some(n_discordant - improvements)
    }

    fn discordant_window(&self) -> (f64, f64) {
        let mean = self.n_cases as f64 * self.discordant;
        (mean, 9.0 * (mean * (1.0 - self.discordant)).sqrt() + 12.0)
    }
}

/// A number of flips and the fewest regressions among them that reject.
struct Rejection {
    n_discordant: u64,
    probability: f64,
    n_needed: u64,
}

/// A non-inferiority rule for a share of right answers: pass if the candidate is certainly not worse by `margin`. With a
/// margin below 0 it is one of superiority: pass if the candidate is certainly better by that much.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct NonInferiority {
    pub n_cases: u64,
    pub discordant: f64,
    pub margin: f64,
    pub alpha: f64,
}

/// Not quite 1, at which the odds of an improvement are no number.
const LARGEST_GAIN: f64 = 1.0 - 1e-6;
/// Beyond this many cases the score test stands in for the exact one, whose discreteness no longer shows.
const MOST_CASES_FOR_EXACT_POWER: u64 = 300;

impl NonInferiority {
    /// The probability that a candidate with a true difference of `difference` from the baseline passes.
    pub fn pass_power(&self, difference: f64) -> f64 {
        let regression = (self.discordant - difference) / 2.0;
        let improvement = (self.discordant + difference) / 2.0;
        if regression < 0.0 || improvement < 0.0 || regression + improvement > 1.0 {
            return f64::NAN;
        }
        self.passing(improvement).probability(regression, improvement)
    }

    /// About how many cases would let an equal candidate pass with probability `power`: the normal approximation,
    /// `discordant (z_alpha + z_power)^2 / margin^2`, rounded up. `None` for a margin of 0.
    pub fn cases_needed(&self, power: f64) -> Option<u64> {
        let z = normal_quantile(1.0 - self.alpha) + normal_quantile(power);
        (self.margin > 0.0).then(|| (self.discordant * (z / self.margin).powi(2)).ceil() as u64)
    }

    /// The smallest true gain at which a candidate passes with probability `power`; `None` if not even one that wins every case
    /// does. The models differ on the share `discordant` of the cases, or on as many as the gain needs.
    pub fn smallest_gain_passed(&self, power: f64) -> Option<f64> {
        let flips = |gain: f64| {
            let discordant = self.discordant.max(gain);
            [(discordant - gain) / 2.0, (discordant + gain) / 2.0]
        };
        let passes = |passing: &AtLeastAsGood, gain: f64| {
            let [regression, improvement] = flips(gain);
            passing.probability(regression, improvement) >= power
        };
        let least = (-self.margin).max(0.0);
        let by_score = self.passing_by_score();
        let found = |passing: &AtLeastAsGood, most: f64| {
            passes(passing, most).then(|| bisect(least, most, |gain| passes(passing, gain)))
        };
        let near = found(&by_score, LARGEST_GAIN)?;
        if self.n_cases > MOST_CASES_FOR_EXACT_POWER {
            return Some(near);
        }
        // The exact test asks for a little more than the score test; every outcome is looked at where that does not do.
        let most = (1.25 * near + 2.0 / self.n_cases as f64).min(LARGEST_GAIN);
        found(&self.passing(flips(most)[1]), most).or_else(|| found(&self.passing(1.0), LARGEST_GAIN))
    }

    fn passing_by_score(&self) -> AtLeastAsGood {
        AtLeastAsGood::new(self.n_cases, -self.margin, normal_quantile(1.0 - self.alpha))
    }

    fn passing(&self, improvement: f64) -> AtLeastAsGood {
        let Self { n_cases, margin, alpha, .. } = *self;
        if n_cases > MOST_CASES_FOR_EXACT_POWER {
            return self.passing_by_score();
        }
        // More improvements than this happen in one of 100,000 comparisons.
        let mean = n_cases as f64 * improvement;
        let most_improvements = ((mean + 4.5 * mean.sqrt() + 3.0) as u64).min(n_cases);
        AtLeastAsGood::passing(n_cases, most_improvements, margin, alpha)
    }
}

/// A floor under a share of right answers: fail if Clopper and Pearson's upper bound is below it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct FloorPower {
    pub n_cases: u64,
    pub floor: f64,
    pub alpha: f64,
}

impl FloorPower {
    /// The largest true share that fails with probability `power`, exactly; `None` if not even a candidate that is never
    /// right fails.
    pub fn largest_share_found(&self, power: f64) -> Option<f64> {
        let Self { n_cases, floor, alpha } = *self;
        let fails = |n_right: u64| clopper_pearson(n_right, n_cases, 1.0 - 2.0 * alpha)[1] < floor;
        if n_cases == 0 || !fails(0) {
            return None;
        }
        let (mut most, mut too_many) = (0, n_cases);
        while too_many - most > 1 {
            let middle = most + (too_many - most) / 2;
            if fails(middle) { most = middle } else { too_many = middle }
        }
        // P(at most k of n are right) = power where the share is the 1 - power quantile of Beta(k + 1, n - k).
        let share = Beta::new(most as f64 + 1.0, (n_cases - most) as f64).expect("fewer are right than there are");
        Some(share.inverse_cdf(1.0 - power))
    }
}

/// What a normal approximation with standard error `standard_error` can see: the smallest drop found with `power`, the
/// chance that an equal candidate passes with `margin`, and the factor by which the number of cases would have to grow.
pub(crate) struct NormalPower {
    pub minimum_detectable_effect: f64,
    pub pass_power: f64,
    pub growth_needed: Option<f64>,
}

pub(crate) fn normal_power(standard_error: f64, margin: f64, alpha: f64, power: f64) -> NormalPower {
    let z_alpha = normal_quantile(1.0 - alpha);
    let detectable = (z_alpha + normal_quantile(power)) * standard_error;
    NormalPower {
        minimum_detectable_effect: detectable,
        pass_power: if standard_error > 0.0 { normal_cdf(margin / standard_error - z_alpha) } else { 1.0 },
        growth_needed: (margin > 0.0).then(|| (detectable / margin).powi(2)),
    }
}
