//! How much of the exact search's answer an approximate search finds.

use serde::{Deserialize, Serialize};

/// Documents that are sought to measure recall, and how many neighbours of each.
pub(super) const N_QUERIES: usize = 256;
pub(super) const N_NEIGHBOURS: usize = 10;
/// Standard errors by which the measured recall has to be above what is wanted: so that what is wanted is found of other queries, too, with
/// a probability of 95 %.
const MARGIN: f64 = 1.645;

/// The share of the exact search's nearest documents that the approximate one finds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recall {
    /// Of so many nearest ones.
    pub at: usize,
    /// From 0 to 1.
    pub value: f64,
    /// Queries by which it was measured: those that were given, or documents of the index, each without itself.
    pub n_queries: usize,
}

/// Of one query: how many of its nearest documents were found, and how many there are.
pub(super) type Found = [usize; 2];

/// Whether so much was found that `wanted` will be of other queries, too; and how much.
pub(super) fn enough(found: &[Found], wanted: f64) -> (bool, Recall) {
    let shares: Vec<f64> =
        found.iter().filter(|[_, all]| *all > 0).map(|&[found, all]| found as f64 / all as f64).collect();
    let n = shares.len() as f64;
    let value = if shares.is_empty() { 1.0 } else { shares.iter().sum::<f64>() / n };
    let squares: f64 = shares.iter().map(|share| (share - value).powi(2)).sum();
    let error = if shares.len() > 1 { (squares / (n - 1.0) / n).sqrt() } else { 0.0 };
    (value - MARGIN * error >= wanted, Recall { at: N_NEIGHBOURS, value, n_queries: found.len() })
}

/// At most `n_most` of `n` positions, evenly spread.
pub(super) fn spread(n: usize, n_most: usize) -> Vec<usize> {
    let n_picked = n.min(n_most);
    (0..n_picked).map(|picked| picked * n / n_picked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_enough_is_enough_for_other_queries_too() {
        // 256 queries whose share is 0.9 or 1 by turns: 0.95 on average, with a standard error of 0.0031.
        let found: Vec<Found> = (0..256).map(|query| [9 + query % 2, 10]).collect();
        let (is_enough, recall) = enough(&found, 0.944);
        assert!(is_enough && recall.n_queries == 256 && (recall.value - 0.95).abs() < 1e-9);
        assert!(!enough(&found, 0.946).0 && !enough(&found, 0.95).0);
        assert!(enough(&[[10, 10]; 9], 1.0).0 && enough(&[], 1.0).0 && enough(&[[0, 0]], 1.0).0);
    }
}
