use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::interval::{normal_cdf, normal_quantile, quantile};

/// What is drawn with replacement. Cases drawn from one source are not independent, so their source is drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Units {
    n_units: usize,
    /// The one or two units each case belongs to.
    of_case: Vec<[usize; 2]>,
}

/// How many resamples, and the seed they are drawn with (ChaCha8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resamples {
    /// At least 10,000 for an interval that is shown to people.
    pub n: usize,
    /// The same seed gives the same resamples on every machine.
    pub seed: u64,
}

/// A statistic on the cases, on every resample of them, and with each unit left out once.
#[derive(Clone, Debug, PartialEq)]
pub struct Bootstrap {
    /// On the cases as they are.
    pub observed: f64,
    /// On the resamples, ascending; resamples on which the statistic is undefined are left out.
    pub resampled: Vec<f64>,
    /// With each unit left out, where that is defined.
    pub jackknife: Vec<f64>,
}

impl Units {
    /// Every case for itself.
    pub fn cases(n_cases: usize) -> Self {
        Self { n_units: n_cases, of_case: (0..n_cases).map(|idx| [idx, idx]).collect() }
    }

    /// Cases by source: two equal numbers put a case into a cluster; two different ones make it a pair of units, counted
    /// as often as both were drawn, the product of the two counts (the vertex bootstrap of Snijders and Borgatti 1999).
    pub fn sources(of_case: &[[usize; 2]]) -> Self {
        let mut names: Vec<usize> = of_case.iter().flatten().copied().collect();
        names.sort_unstable();
        names.dedup();
        let unit = |source: usize| names.binary_search(&source).expect("every source was collected");
        let of_case = of_case.iter().map(|&[left, right]| [unit(left), unit(right)]).collect();
        Self { n_units: names.len(), of_case }
    }

    /// Number of things drawn.
    pub fn len(&self) -> usize {
        self.n_units
    }

    /// Whether some cases share a unit, so that they are not independent.
    pub fn are_shared(&self) -> bool {
        self.n_units < self.of_case.len()
    }

    /// Whether there is nothing to draw.
    pub fn is_empty(&self) -> bool {
        self.n_units == 0
    }

    fn case_counts(&self, unit_counts: &[u32], case_counts: &mut [u32]) {
        for (count, &[left, right]) in case_counts.iter_mut().zip(&self.of_case) {
            *count = if left == right { unit_counts[left] } else { unit_counts[left] * unit_counts[right] };
        }
    }
}

impl Bootstrap {
    /// Takes `statistic`, a function of how often each case counts, over resamples of `units`.
    pub fn new(units: &Units, resamples: Resamples, statistic: impl Fn(&[u32]) -> f64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(resamples.seed);
        let mut unit_counts = vec![0; units.n_units];
        let mut case_counts = vec![0; units.of_case.len()];
        let mut resampled = Vec::with_capacity(resamples.n);
        for _ in 0..resamples.n {
            unit_counts.fill(0);
            (0..units.n_units).for_each(|_| unit_counts[rng.random_range(0..units.n_units)] += 1);
            units.case_counts(&unit_counts, &mut case_counts);
            resampled.push(statistic(&case_counts));
        }
        let mut without = |unit: usize| {
            unit_counts.fill(1);
            unit_counts[unit] = 0;
            units.case_counts(&unit_counts, &mut case_counts);
            statistic(&case_counts)
        };
        let jackknife: Vec<f64> = (0..units.n_units).map(&mut without).collect();
        Self::from_values(statistic(&vec![1; units.of_case.len()]), resampled, jackknife)
    }

    /// From values taken elsewhere, in any order.
    pub fn from_values(observed: f64, mut resampled: Vec<f64>, mut jackknife: Vec<f64>) -> Self {
        resampled.retain(|value| value.is_finite());
        resampled.sort_by(f64::total_cmp);
        jackknife.retain(|value| value.is_finite());
        Self { observed, resampled, jackknife }
    }

    /// The percentile interval at two-sided confidence `level` (Efron and Tibshirani 1993, chapter 13).
    pub fn percentile(&self, level: f64) -> [f64; 2] {
        let tail = (1.0 - level) / 2.0;
        [quantile(&self.resampled, tail), quantile(&self.resampled, 1.0 - tail)]
    }

    /// The bias-corrected and accelerated interval at two-sided confidence `level` (Efron 1987), computed as
    /// `scipy.stats.bootstrap(method="BCa")` does. Falls back to the percentile interval where the correction is
    /// undefined: every resample on one side of the observed value, or too skewed a jackknife.
    pub fn bca(&self, level: f64) -> [f64; 2] {
        let tail = (1.0 - level) / 2.0;
        let ends = [tail, 1.0 - tail].map(|p| quantile(&self.resampled, self.adjusted(p)));
        if ends.iter().all(|end| end.is_finite()) { ends } else { self.percentile(level) }
    }

    /// Standard deviation of the resampled values: the bootstrap standard error. 0 where they never vary.
    pub fn standard_error(&self) -> f64 {
        let n = self.resampled.len() as f64;
        let varies = self.resampled.first() != self.resampled.last();
        if !varies || n < 2.0 {
            return 0.0;
        }
        let mean = self.resampled.iter().sum::<f64>() / n;
        (self.resampled.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt()
    }

    /// The share of resamples at which BCa reads the `p` quantile.
    fn adjusted(&self, p: f64) -> f64 {
        let n_below = self.resampled.partition_point(|&value| value < self.observed);
        let n_up_to = self.resampled.partition_point(|&value| value <= self.observed);
        let share_below = (n_below + n_up_to) as f64 / (2 * self.resampled.len()) as f64;
        if share_below <= 0.0 || share_below >= 1.0 {
            return f64::NAN;
        }
        let (bias, z) = (normal_quantile(share_below), normal_quantile(p));
        let shifted = bias + z;
        let denominator = 1.0 - self.acceleration() * shifted;
        // Beyond the pole the map from `p` is no longer increasing.
        if denominator <= 0.0 { f64::NAN } else { normal_cdf(bias + shifted / denominator) }
    }

    fn acceleration(&self) -> f64 {
        let mean = self.jackknife.iter().sum::<f64>() / self.jackknife.len() as f64;
        let moment = |power| self.jackknife.iter().map(|value| (mean - value).powi(power)).sum::<f64>();
        let (squares, cubes) = (moment(2), moment(3));
        if squares == 0.0 { 0.0 } else { cubes / (6.0 * squares.powf(1.5)) }
    }
}
