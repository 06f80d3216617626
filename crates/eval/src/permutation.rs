use rand::Rng as _;
use rayon::prelude::*;

use crate::Resamples;
use crate::bootstrap::stream;

/// How a sum of paired differences compares with the sums that any swap of the two sides in any unit would have given
/// (Fisher's randomisation test). Valid where the sides are exchangeable under the null hypothesis; it has no other
/// assumption, and one extreme difference does not make it err.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignFlips {
    /// The p-value of "the sum is not below 0": small where the differences are mostly negative.
    pub below: f64,
    /// The p-value of "the sum is not above 0": small where the differences are mostly positive.
    pub above: f64,
    /// Whether every swap was counted; otherwise the swaps were drawn, the observed one counted among them, which keeps
    /// the p-value valid (Phipson and Smyth 2010).
    pub is_exact: bool,
}

/// 2^32 swaps are counted in two halves of 2^16 sums.
const MOST_UNITS_COUNTED: usize = 32;
/// Streams of drawn swaps are numbered from here, far from those of the bootstrap.
const FIRST_STREAM: u64 = 1 << 63;
/// Sums closer than this, as a share of the sum of all sizes, are taken as equal: they differ by rounding.
const TIE: f64 = 1e-12;

impl SignFlips {
    /// Of one difference for each unit that is swapped as a whole: of a case, or the sum over the cases of a cluster.
    /// Differences of 0 change nothing and are left out. Counts every swap of up to 32 others; draws [`Resamples::of_units`] beyond.
    pub fn of(differences: &[f64], resamples: Resamples) -> Self {
        let differences: Vec<f64> = differences.iter().copied().filter(|&difference| difference != 0.0).collect();
        let observed: f64 = differences.iter().sum();
        let tie = TIE * differences.iter().map(|difference| difference.abs()).sum::<f64>();
        let as_extreme = AsExtreme { low: observed + tie, high: observed - tie };
        if differences.len() <= MOST_UNITS_COUNTED {
            as_extreme.counted(&differences)
        } else {
            as_extreme.drawn(&differences, resamples)
        }
    }

    /// The two-sided p-value: twice the smaller one, as `scipy.stats.permutation_test` takes it.
    pub fn two_sided(self) -> f64 {
        (2.0 * self.below.min(self.above)).min(1.0)
    }
}

/// Sums up to `low` are as small as the observed one, sums from `high` on as large.
struct AsExtreme {
    low: f64,
    high: f64,
}

impl AsExtreme {
    fn counted(&self, differences: &[f64]) -> SignFlips {
        let (left, right) = differences.split_at(differences.len() / 2);
        let (left, mut right) = (every_sum(left), every_sum(right));
        right.sort_unstable_by(f64::total_cmp);
        let n_low: usize = left.iter().map(|sum| right.partition_point(|other| sum + other <= self.low)).sum();
        let n_below_high: usize = left.iter().map(|sum| right.partition_point(|other| sum + other < self.high)).sum();
        let n_sums = left.len() * right.len();
        let share = |n: usize| n as f64 / n_sums as f64;
        SignFlips { below: share(n_low), above: share(n_sums - n_below_high), is_exact: true }
    }

    fn drawn(&self, differences: &[f64], resamples: Resamples) -> SignFlips {
        let scratch = || vec![0u8; differences.len().div_ceil(8)];
        let extreme = |signs: &mut Vec<u8>, idx: usize| {
            stream(resamples.seed, FIRST_STREAM + idx as u64).fill_bytes(signs);
            let sum = flipped_sum(differences, signs);
            [usize::from(sum <= self.low), usize::from(sum >= self.high)]
        };
        let add = |[a, b]: [usize; 2], [c, d]: [usize; 2]| [a + c, b + d];
        let n_drawn = resamples.of_units(differences.len());
        let counts = (0..n_drawn).into_par_iter().map_init(scratch, extreme).reduce(|| [0, 0], add);
        let [below, above] = counts.map(|n| (n + 1) as f64 / (n_drawn + 1) as f64);
        SignFlips { below, above, is_exact: false }
    }
}

/// The sums of `values` under every choice of signs; `[0]` for none.
fn every_sum(values: &[f64]) -> Vec<f64> {
    values.iter().fold(vec![0.0], |sums, value| sums.iter().flat_map(|sum| [sum + value, sum - value]).collect())
}

/// The sum of `values` with the signs of those flipped whose bit of `signs` is 1.
fn flipped_sum(values: &[f64], signs: &[u8]) -> f64 {
    let of_eight = |(values, signs): (&[f64], &u8)| {
        let flip = |(idx, value): (usize, &f64)| f64::from_bits(value.to_bits() ^ (u64::from(signs >> idx & 1) << 63));
        values.iter().enumerate().map(flip).sum::<f64>()
    };
    values.chunks(8).zip(signs).map(of_eight).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const RESAMPLES: Resamples = Resamples { n: 20_000, seed: 1 };

    /// The slow, obvious version.
    fn by_enumeration(differences: &[f64]) -> [f64; 2] {
        let observed: f64 = differences.iter().sum();
        let sums = every_sum(differences);
        let share = |n: usize| n as f64 / sums.len() as f64;
        [
            share(sums.iter().filter(|&&sum| sum <= observed + 1e-12).count()),
            share(sums.iter().filter(|&&sum| sum >= observed - 1e-12).count()),
        ]
    }

    #[test]
    fn halves_count_what_enumeration_counts() {
        for n in 0..14 {
            let differences: Vec<f64> = (0..n).map(|idx| f64::from(idx * 7 % 5) / 3.0 - 0.5).collect();
            let found = SignFlips::of(&differences, RESAMPLES);
            assert!(found.is_exact);
            assert_eq!([found.below, found.above], by_enumeration(&differences), "n = {n}");
        }
    }

    #[test]
    fn flips_of_one_size_make_it_mcnemars_test() {
        let differences: Vec<f64> = (0..30).map(|idx| if idx < 9 { 1.0 } else { -1.0 }).collect();
        let pairs = crate::Discordance::from_counts(1_000, 21, 9).unwrap();
        let found = SignFlips::of(&differences, RESAMPLES);
        assert!((found.below - pairs.mcnemar_worse()).abs() < 1e-12);
        assert!((found.above - pairs.mcnemar_better()).abs() < 1e-12);
        assert!((found.two_sided() - pairs.mcnemar()).abs() < 1e-12);
    }

    #[test]
    fn drawn_swaps_agree_with_counted_ones() {
        let differences: Vec<f64> = (0..30).map(|idx| f64::from(idx * 7 % 11) - 4.0).collect();
        let counted = SignFlips::of(&differences, RESAMPLES);
        let observed: f64 = differences.iter().sum();
        let drawn = AsExtreme { low: observed + 1e-9, high: observed - 1e-9 }.drawn(&differences, RESAMPLES);
        assert!(!drawn.is_exact);
        // Four standard errors of a share of 20,000 swaps.
        assert!((drawn.below - counted.below).abs() < 0.015 && (drawn.above - counted.above).abs() < 0.015);
    }

    #[test]
    fn no_difference_shows_nothing() {
        let found = SignFlips::of(&[0.0; 50], RESAMPLES);
        assert_eq!((found.below, found.above, found.two_sided()), (1.0, 1.0, 1.0));
    }
}
