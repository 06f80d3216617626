use std::sync::Arc;

use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::interval::{normal_cdf, normal_quantile, quantile};

/// What is drawn with replacement. Cases drawn from one source are not independent, so their source is drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Units {
    n_units: usize,
    /// The one or two units each case belongs to.
    of_case: Vec<[usize; 2]>,
    drawn: Option<Arc<Draws>>,
}

/// What the resamples of so many units with one seed draw, for who takes many bootstraps of such: drawing takes longer than a mean.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Draws {
    n_units: usize,
    seed: u64,
    /// `[n_resamples, n_units]`, row-major.
    units: Vec<u32>,
}

/// How many resamples, and the seed they are drawn with (ChaCha8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resamples {
    /// At least 10,000 for an interval that is shown to people. Of more than 100,000 units fewer are taken: see
    /// [`Resamples::of_units`].
    pub n: usize,
    /// The same seed gives the same resamples on every machine, with any number of threads.
    pub seed: u64,
}

/// Most draws of a bootstrap, as long as that leaves …
const MOST_DRAWS: usize = 1_000_000_000;

/// … so many resamples.
const FEWEST_RESAMPLES: usize = 1_000;

impl Resamples {
    /// How many are taken of `n_units`: as many as are asked for of up to 100,000, fewer of more, 1,000 of a million.
    ///
    /// What resampling leaves undecided is a part of the standard error (a tenth of it at 1,000), which shrinks as the units
    /// grow: at a million, a tenth of at most 0.0005 for a share.
    pub fn of_units(self, n_units: usize) -> usize {
        self.n.min((MOST_DRAWS / n_units.max(1)).max(FEWEST_RESAMPLES))
    }
}

/// A statistic on the cases, on every resample of them, and with each unit left out once.
#[derive(Clone, Debug, PartialEq)]
pub struct Bootstrap {
    /// On the cases as they are.
    pub observed: f64,
    /// On the resamples, ascending; resamples on which the statistic is undefined are left out.
    pub resampled: Vec<f64>,
    /// With each unit, or each group of units, left out, where that is defined.
    pub jackknife: Vec<f64>,
}

/// Leaving out more units than this one by one would cost more than the resamples, and the square of the number of units.
/// As many random groups of units are left out instead: their third moment is that of single units up to noise, which
/// moves a bound by less than 0.002 standard errors, a tenth of what 10,000 resamples leave undecided.
const MOST_LEFT_OUT: usize = 1_000;

impl Units {
    /// Every case for itself.
    pub fn cases(n_cases: usize) -> Self {
        Self { n_units: n_cases, of_case: (0..n_cases).map(|idx| [idx, idx]).collect(), drawn: None }
    }

    /// Cases by source: two equal numbers put a case into a cluster; two different ones make it a pair of units, counted
    /// as often as both were drawn, the product of the two counts (the vertex bootstrap of Snijders and Borgatti 1999).
    pub fn sources(of_case: &[[usize; 2]]) -> Self {
        let mut names: Vec<usize> = of_case.iter().flatten().copied().collect();
        names.sort_unstable();
        names.dedup();
        let unit = |source: usize| names.binary_search(&source).expect("every source was collected");
        let of_case = of_case.iter().map(|&[left, right]| [unit(left), unit(right)]).collect();
        Self { n_units: names.len(), of_case, drawn: None }
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

    /// The sum of `of_case`, times its weight, over the cases of each unit; `None` if cases are pairs of units.
    pub(crate) fn sums(&self, of_case: &[f64], weights: Option<&[f64]>) -> Option<Vec<f64>> {
        (!self.are_paired()).then(|| self.totals(of_case, weights).into_iter().map(|total| total.sum).collect())
    }

    /// The same with draws that are known already; they change no bit.
    pub(crate) fn with_draws(self, drawn: Option<Arc<Draws>>) -> Self {
        Self { drawn, ..self }
    }

    /// Hands the draws of a resample to `take`.
    fn draw(&self, seed: u64, resample: usize, mut take: impl FnMut(usize)) {
        match self.drawn.as_ref().and_then(|drawn| drawn.of(self.n_units, seed, resample)) {
            Some(units) => units.iter().for_each(|&unit| take(unit as usize)),
            None => draw(seed, resample, self.n_units, take),
        }
    }

    fn are_paired(&self) -> bool {
        self.of_case.iter().any(|[left, right]| left != right)
    }

    /// What each unit adds to a mean: a case of a pair of units is in the totals of both.
    fn totals(&self, of_case: &[f64], weights: Option<&[f64]>) -> Vec<Total> {
        let mut totals = vec![Total::default(); self.n_units];
        for (idx, (&[left, right], &value)) in self.of_case.iter().zip(of_case).enumerate() {
            let total = Total::of(value, weight(weights, idx));
            totals[left].add(total);
            if left != right {
                totals[right].add(total);
            }
        }
        totals
    }

    fn case_counts(&self, unit_counts: &[u32], case_counts: &mut [u32]) {
        case_counts.iter_mut().zip(&self.of_case).for_each(|(count, &units)| *count = case_count(units, unit_counts));
    }

    /// The units of each group that a jackknife leaves out: one unit each, or random groups of about one size.
    fn groups(&self, seed: u64) -> Vec<Vec<usize>> {
        let mut units: Vec<usize> = (0..self.n_units).collect();
        if self.n_units > MOST_LEFT_OUT {
            units.shuffle(&mut stream(seed, JACKKNIFE_STREAM));
        }
        let n_groups = self.n_units.min(MOST_LEFT_OUT);
        let group = |idx| units[idx..].iter().step_by(n_groups).copied().collect();
        (0..n_groups).map(group).collect()
    }
}

/// Most draws that are kept: 64 MiB of them.
const MOST_DRAWS_KEPT: usize = 1 << 24;

impl Draws {
    /// `None` where they are too many to keep.
    pub(crate) fn of_units(n_units: usize, resamples: Resamples) -> Option<Self> {
        let n_resamples = resamples.of_units(n_units);
        let n_draws = n_resamples.checked_mul(n_units).filter(|&n| (1..=MOST_DRAWS_KEPT).contains(&n))?;
        let mut units = Vec::with_capacity(n_draws);
        for resample in 0..n_resamples {
            draw(resamples.seed, resample, n_units, |unit| units.push(unit as u32));
        }
        Some(Self { n_units, seed: resamples.seed, units })
    }

    fn of(&self, n_units: usize, seed: u64, resample: usize) -> Option<&[u32]> {
        let start = resample.checked_mul(n_units)?;
        let units = self.units.get(start..start.checked_add(n_units)?);
        units.filter(|_| (self.n_units, self.seed) == (n_units, seed))
    }
}

/// How often a case of these units counts.
fn case_count([left, right]: [usize; 2], unit_counts: &[u32]) -> u32 {
    if left == right { unit_counts[left] } else { unit_counts[left] * unit_counts[right] }
}

fn weight(weights: Option<&[f64]>, idx: usize) -> f64 {
    weights.map_or(1.0, |weights| weights[idx])
}

/// Sum and number of values, or of their weights.
#[derive(Clone, Copy, Debug, Default)]
struct Total {
    sum: f64,
    n: f64,
}

impl Total {
    fn of(value: f64, weight: f64) -> Self {
        Self { sum: weight * value, n: weight }
    }

    fn add(&mut self, other: Self) {
        self.sum += other.sum;
        self.n += other.n;
    }

    fn mean(self) -> f64 {
        self.sum / self.n
    }
}

/// Each resample has a ChaCha8 stream of its own, numbered from 0: which thread takes it does not matter.
pub(crate) fn stream(seed: u64, number: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(number);
    rng
}

const JACKKNIFE_STREAM: u64 = u64::MAX;

/// Words of a stream that are made at once.
const N_WORDS: usize = 256;

/// Hands `n_units` draws with replacement from as many units to `take`.
fn draw(seed: u64, resample: usize, n_units: usize, mut take: impl FnMut(usize)) {
    let n = u32::try_from(n_units).expect("more than four billion units do not fit in memory");
    let mut rng = stream(seed, resample as u64);
    let mut bytes = [0; 4 * N_WORDS];
    // The high half of word * n is a draw; the first 2^32 mod n low halves would favour some units (Lemire 2019).
    let first_fair = n.wrapping_neg() % n.max(1);
    let mut n_left = n_units;
    while n_left > 0 {
        rng.fill_bytes(&mut bytes);
        for word in bytes.chunks_exact(4) {
            let word = u32::from_le_bytes(word.try_into().expect("a chunk has four bytes"));
            let product = u64::from(word) * u64::from(n);
            if product as u32 >= first_fair && n_left > 0 {
                take((product >> 32) as usize);
                n_left -= 1;
            }
        }
    }
}

impl Bootstrap {
    /// Takes `statistic`, a function of how often each case counts, over resamples of `units`.
    pub fn new(units: &Units, resamples: Resamples, statistic: impl Fn(&[u32]) -> f64 + Sync) -> Self {
        let mut all = Self::each(units, resamples, 1, |counts| vec![statistic(counts)]);
        all.pop().expect("one statistic gives one sample")
    }

    /// Takes `n` statistics over the same resamples, each of them drawn once.
    ///
    /// # Panics
    /// If `statistics` gives more or fewer values.
    pub(crate) fn each(
        units: &Units,
        resamples: Resamples,
        n: usize,
        statistics: impl Fn(&[u32]) -> Vec<f64> + Sync,
    ) -> Vec<Self> {
        if n == 0 {
            return Vec::new();
        }
        let (n_units, n_cases) = (units.n_units, units.of_case.len());
        let counted = |(unit_counts, case_counts): &mut Counts| {
            units.case_counts(unit_counts, case_counts);
            statistics(case_counts)
        };
        let scratch = || (vec![0; n_units], vec![0; n_cases]);
        let resample = |counts: &mut Counts, idx: usize| {
            counts.0.fill(0);
            units.draw(resamples.seed, idx, |unit| counts.0[unit] += 1);
            counted(counts)
        };
        let without = |counts: &mut Counts, group: &Vec<usize>| {
            counts.0.fill(1);
            group.iter().for_each(|&unit| counts.0[unit] = 0);
            counted(counts)
        };
        let n_resamples = if units.is_empty() { 0 } else { resamples.of_units(n_units) };
        let resampled: Vec<Vec<f64>> = (0..n_resamples).into_par_iter().map_init(scratch, resample).collect();
        let groups = units.groups(resamples.seed);
        let jackknife: Vec<Vec<f64>> = groups.par_iter().map_init(scratch, without).collect();
        let observed = statistics(&vec![1; n_cases]);
        assert_eq!(observed.len(), n, "values of other statistics");
        let column = |of: &[Vec<f64>], idx: usize| of.iter().map(|values| values[idx]).collect();
        let sample = |(idx, &observed)| Self::from_values(observed, column(&resampled, idx), column(&jackknife, idx));
        observed.iter().enumerate().map(sample).collect()
    }

    /// Takes the mean of `of_case`, one value a case, over resamples of `units`: the same resamples as [`Bootstrap::new`]
    /// draws, without counting cases, and with every unit left out once in linear time.
    ///
    /// # Panics
    /// If there are more or fewer values than cases.
    pub fn of_mean(units: &Units, resamples: Resamples, of_case: &[f64]) -> Self {
        Self::of_weighted_mean(units, resamples, of_case, None)
    }

    /// The same of a mean in which case `i` counts `weights[i]`; a resample that draws it twice counts it twice as much.
    pub(crate) fn of_weighted_mean(
        units: &Units,
        resamples: Resamples,
        of_case: &[f64],
        weights: Option<&[f64]>,
    ) -> Self {
        assert_eq!(of_case.len(), units.of_case.len(), "values of other cases");
        // Sums of differences from one value: where all values are equal, so are all means, to the last bit.
        let origin = of_case.first().copied().unwrap_or(0.0);
        let shifted: Vec<f64> = of_case.iter().map(|value| value - origin).collect();
        let totals = units.totals(&shifted, weights);
        let mean = Mean { units, seed: resamples.seed, shifted: &shifted, weights, totals: &totals };
        let n_resamples = if units.is_empty() { 0 } else { resamples.of_units(units.n_units) };
        let resampled: Vec<f64> = if units.are_paired() {
            let scratch = || vec![0; units.n_units];
            (0..n_resamples).into_par_iter().map_init(scratch, |counts, idx| mean.of_pairs(counts, idx)).collect()
        } else {
            (0..n_resamples).into_par_iter().map(|idx| mean.of_clusters(idx)).collect()
        };
        let add_origin = |values: Vec<f64>| values.into_iter().map(|value| origin + value).collect();
        Self::from_values(origin + mean.observed().mean(), add_origin(resampled), add_origin(mean.jackknife()))
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

/// How often each unit was drawn, and how often each case counts.
type Counts = (Vec<u32>, Vec<u32>);

/// A mean to be taken over resamples of units.
struct Mean<'a> {
    units: &'a Units,
    seed: u64,
    shifted: &'a [f64],
    weights: Option<&'a [f64]>,
    totals: &'a [Total],
}

impl Mean<'_> {
    fn observed(&self) -> Total {
        let mut all = Total::default();
        self.each().for_each(|total| all.add(total));
        all
    }

    fn each(&self) -> impl Iterator<Item = Total> {
        self.shifted.iter().enumerate().map(|(idx, &value)| Total::of(value, weight(self.weights, idx)))
    }

    fn of_clusters(&self, resample: usize) -> f64 {
        let mut total = Total::default();
        self.units.draw(self.seed, resample, |unit| total.add(self.totals[unit]));
        total.mean()
    }

    fn of_pairs(&self, unit_counts: &mut [u32], resample: usize) -> f64 {
        unit_counts.fill(0);
        self.units.draw(self.seed, resample, |unit| unit_counts[unit] += 1);
        let mut total = Total::default();
        for (&units, of_case) in self.units.of_case.iter().zip(self.each()) {
            let n = f64::from(case_count(units, unit_counts));
            total.add(Total { sum: n * of_case.sum, n: n * of_case.n });
        }
        total.mean()
    }

    fn jackknife(&self) -> Vec<f64> {
        let all = self.observed();
        self.totals.iter().map(|unit| Total { sum: all.sum - unit.sum, n: all.n - unit.n }.mean()).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rand::distr::{Distribution as _, Uniform};

    use super::*;

    const RESAMPLES: Resamples = Resamples { n: 500, seed: 7 };

    fn drawn(n_units: usize) -> Vec<usize> {
        let mut drawn = Vec::new();
        draw(5, 3, n_units, |unit| drawn.push(unit));
        drawn
    }

    #[test]
    fn draws_that_are_kept_change_no_bit() {
        let sources: Vec<[usize; 2]> = (0..90).map(|idx| [idx / 2, idx / if idx % 3 == 0 { 3 } else { 2 }]).collect();
        for units in [Units::cases(60), Units::sources(&sources)] {
            let n_cases = units.of_case.len();
            let values = values(n_cases);
            let kept = units.clone().with_draws(Draws::of_units(units.len(), RESAMPLES).map(Arc::new));
            assert!(kept.drawn.is_some());
            let [fresh, again] = [&units, &kept].map(|units| Bootstrap::of_mean(units, RESAMPLES, &values));
            assert_eq!(fresh, again);
            let [fresh, again] = [&units, &kept].map(|units| Bootstrap::new(units, RESAMPLES, mean_of(&values)));
            assert_eq!(fresh, again);
            // Of another seed or number of units they are not taken.
            let other = Resamples { seed: 8, ..RESAMPLES };
            let [fresh, again] = [&units, &kept].map(|units| Bootstrap::of_mean(units, other, &values));
            assert_eq!(fresh, again);
        }
        assert_eq!(Draws::of_units(1 << 22, RESAMPLES), None);
    }

    /// Skewed values without a pattern.
    fn values(n: usize) -> Vec<f64> {
        (0..n).map(|idx| ((idx * 7919 % 1013) as f64 / 1013.0).powi(3) - 0.2).collect()
    }

    fn mean_of<'a>(values: &'a [f64]) -> impl Fn(&[u32]) -> f64 + Sync + 'a {
        |counts| {
            let total: f64 = values.iter().zip(counts).map(|(value, &count)| value * f64::from(count)).sum();
            total / f64::from(counts.iter().sum::<u32>())
        }
    }

    #[test]
    fn draws_are_those_of_a_uniform_distribution() {
        for n in [1, 2, 3, 255, 256, 257, 10_000, 99_999] {
            let below = Uniform::new(0, n as u32).unwrap();
            let mut rng = stream(5, 3);
            let expected: Vec<usize> = (0..n).map(|_| below.sample(&mut rng) as usize).collect();
            assert_eq!(drawn(n), expected, "n = {n}");
        }
    }

    #[test]
    fn a_mean_without_counts_is_the_mean_with_counts() {
        let n = 120;
        let clusters: Vec<[usize; 2]> = (0..n).map(|idx| [idx * idx % 31; 2]).collect();
        let pairs: Vec<[usize; 2]> = (0..16).flat_map(|a| (0..a).map(move |b| [a, b])).collect();
        for units in [Units::cases(n), Units::sources(&clusters), Units::sources(&pairs)] {
            let values = values(units.of_case.len());
            let fast = Bootstrap::of_mean(&units, RESAMPLES, &values);
            let slow = Bootstrap::new(&units, RESAMPLES, mean_of(&values));
            assert!((fast.observed - slow.observed).abs() < 1e-12);
            assert_eq!((fast.resampled.len(), fast.jackknife.len()), (slow.resampled.len(), slow.jackknife.len()));
            let all = |sample: &Bootstrap| [sample.resampled.clone(), sample.jackknife.clone()].concat();
            assert!(all(&fast).iter().zip(all(&slow)).all(|(fast, slow)| (fast - slow).abs() < 1e-12), "{units:?}");
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (units, values) = (Units::cases(300), values(300));
        let with = |n_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| {
                let mean = Bootstrap::of_mean(&units, RESAMPLES, &values);
                (mean, Bootstrap::new(&units, RESAMPLES, mean_of(&values)))
            })
        };
        assert_eq!(with(1), with(5));
    }

    #[test]
    fn equal_values_leave_no_error_however_they_are_clustered() {
        let clusters: Vec<[usize; 2]> = (0..100).map(|idx| [idx * idx % 31; 2]).collect();
        let sample = Bootstrap::of_mean(&Units::sources(&clusters), RESAMPLES, &[0.1; 100]);
        assert_eq!((sample.observed, sample.standard_error()), (0.1, 0.0));
    }

    #[test]
    fn leaving_out_groups_accelerates_as_leaving_out_units_does() {
        let n = 5_000;
        let (units, values) = (Units::cases(n), values(n));
        let groups = Bootstrap::new(&units, RESAMPLES, mean_of(&values));
        let single = Bootstrap::of_mean(&units, RESAMPLES, &values);
        assert_eq!((groups.jackknife.len(), single.jackknife.len()), (MOST_LEFT_OUT, n));
        let gap = groups.acceleration() - single.acceleration();
        assert!(gap.abs() < 0.002 && single.acceleration() > 0.001, "{gap}, {}", single.acceleration());
    }

    #[test]
    fn of_very_many_units_fewer_resamples_are_taken() {
        let of = |n_units| Resamples { n: 10_000, seed: 1 }.of_units(n_units);
        assert_eq!([1, 100_000, 200_000, 1_000_000, 20_000_000].map(of), [10_000, 10_000, 5_000, 1_000, 1_000]);
        assert_eq!(Resamples { n: 500, seed: 1 }.of_units(1_000_000), 500);
    }

    #[test]
    fn nothing_to_draw_leaves_nothing() {
        let units = Units::cases(0);
        assert!(Bootstrap::of_mean(&units, RESAMPLES, &[]).resampled.is_empty());
        assert!(Bootstrap::new(&units, RESAMPLES, |_| 1.0).resampled.is_empty());
    }
}
