use rand::seq::SliceRandom as _;

use crate::Resamples;
use crate::bootstrap::stream;

/// Maximum mean discrepancy of two samples of vectors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mmd {
    /// Unbiased estimate of its square, with an RBF kernel; around 0 (below it too) where the distributions are one.
    pub squared: f64,
    /// Bandwidth of the kernel exp(-d² / (2 bandwidth²)): the median distance of two vectors of both samples together.
    pub bandwidth: f64,
    /// By permutation of the two samples.
    pub p: f64,
}

/// Of `left` and `right`, vectors of one width (Gretton et al., JMLR 13, 2012, lemma 6). `None` if either has fewer than 2 vectors.
///
/// Takes time quadratic in the number of vectors: samples of some hundreds are meant.
pub fn mmd(left: &[Vec<f32>], right: &[Vec<f32>], resamples: Resamples) -> Option<Mmd> {
    let (n, m) = (left.len(), right.len());
    if n < 2 || m < 2 {
        return None;
    }
    let all: Vec<&[f32]> = left.iter().chain(right).map(Vec::as_slice).collect();
    let squares = squared_distances(&all);
    let bandwidth = median_distance(&squares, all.len());
    if bandwidth == 0.0 {
        return Some(Mmd { squared: 0.0, bandwidth, p: 1.0 });
    }
    let kernel: Vec<f64> = squares.iter().map(|square| (-square / (2.0 * bandwidth * bandwidth)).exp()).collect();
    let mut order: Vec<usize> = (0..all.len()).collect();
    let squared = statistic(&kernel, &order, n);
    let mut rng = stream(resamples.seed, STREAM);
    let as_large = (0..resamples.n).filter(|_| {
        order.shuffle(&mut rng);
        statistic(&kernel, &order, n) >= squared - 1e-15
    });
    // The sample as it came is one of the permutations (Phipson and Smyth 2010).
    let p = (1 + as_large.count()) as f64 / (1 + resamples.n) as f64;
    Some(Mmd { squared, bandwidth, p })
}

/// Far from the streams of other tests.
const STREAM: u64 = 1 << 61;

/// All pairs, row by row.
fn squared_distances(all: &[&[f32]]) -> Vec<f64> {
    let square = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
    all.iter().flat_map(|a| all.iter().map(move |b| square(a, b))).collect()
}

fn median_distance(squares: &[f64], n: usize) -> f64 {
    let mut distances: Vec<f64> =
        (0..n).flat_map(|i| (0..i).map(move |j| i * n + j)).map(|at| squares[at].sqrt()).collect();
    distances.sort_unstable_by(f64::total_cmp);
    crate::quantile(&distances, 0.5)
}

/// The estimate where the first `n` of `order` are one sample and the rest the other.
fn statistic(kernel: &[f64], order: &[usize], n: usize) -> f64 {
    let n_all = order.len();
    let (left, right) = order.split_at(n);
    let within = |side: &[usize]| {
        let sum: f64 =
            side.iter().flat_map(|&i| side.iter().filter(move |&&j| j != i).map(move |&j| kernel[i * n_all + j])).sum();
        sum / (side.len() * (side.len() - 1)) as f64
    };
    let across: f64 = left.iter().flat_map(|&i| right.iter().map(move |&j| kernel[i * n_all + j])).sum();
    within(left) + within(right) - 2.0 * across / (left.len() * right.len()) as f64
}
