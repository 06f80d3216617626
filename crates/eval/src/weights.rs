//! Cases that count more or less than others.

use std::collections::BTreeMap;

/// How much each case counts; `None` where all count alike, and no weight says anything.
pub(crate) fn uneven(weights: impl Iterator<Item = f64>) -> Option<Vec<f64>> {
    let weights: Vec<f64> = weights.collect();
    weights.iter().any(|weight| weight.to_bits() != weights[0].to_bits()).then_some(weights)
}

/// How many cases that count alike leave a mean the variance that these leave it: Kish (1965), the square of the sum of the
/// weights over the sum of their squares.
pub(crate) fn kish(weights: impl Iterator<Item = f64>) -> f64 {
    let [sum, squares] = weights.fold([0.0, 0.0], |[sum, squares], weight| [sum + weight, squares + weight * weight]);
    if squares == 0.0 { 0.0 } else { sum * sum / squares }
}

/// How many cases that count alike cases of these weights amount to; `None` where all of them count alike.
pub fn effective_size(weights: impl Iterator<Item = f64>) -> Option<f64> {
    uneven(weights).map(|weights| kish(weights.into_iter()))
}

/// The smallest [`kish`] of the cases of one label, over the labels that occur.
pub(crate) fn effective_size_of_rarest(weights: &[f64], labels: &[usize]) -> f64 {
    let mut of_label: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    labels.iter().zip(weights).for_each(|(&label, &weight)| of_label.entry(label).or_default().push(weight));
    let sizes = of_label.into_values().map(|weights| kish(weights.into_iter()));
    sizes.fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_heavy_case_counts_as_little_more_than_one() {
        let size = |weights: &[f64]| kish(weights.iter().copied());
        assert_eq!([size(&[2.0; 7]), size(&[1.0, 0.0, 0.0]), size(&[])], [7.0, 1.0, 0.0]);
        assert!((size(&[100.0, 1.0, 1.0]) - 1.04).abs() < 0.01);
        assert_eq!(effective_size_of_rarest(&[1.0, 1.0, 3.0, 3.0, 3.0], &[0, 0, 1, 1, 1]), 2.0);
    }

    #[test]
    fn equal_weights_are_none() {
        assert_eq!(uneven([3.0; 4].into_iter()), None);
        assert_eq!(uneven(std::iter::empty()), None);
        assert_eq!(uneven([1.0, 2.0].into_iter()), Some(vec![1.0, 2.0]));
    }
}
