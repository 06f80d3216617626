/// Holm's step-down adjustment (1979): rejecting where the adjusted value is at most alpha makes one false rejection or
/// more with probability at most alpha, however the tests depend on each other. In the order of `p_values`; as
/// statsmodels' `multipletests(method="holm")`.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let n = p_values.len();
    let mut least = 0.0_f64;
    adjusted(ascending(p_values), |rank, idx| {
        least = least.max((n - rank) as f64 * p_values[idx]);
        least.min(1.0)
    })
}

/// Benjamini and Hochberg's step-up adjustment (1995): rejecting where the adjusted value is at most q keeps the expected
/// share of false rejections at or below q for independent or positively dependent tests. In the order of `p_values`; as
/// statsmodels' `multipletests(method="fdr_bh")`.
pub fn benjamini_hochberg(p_values: &[f64]) -> Vec<f64> {
    let n = p_values.len();
    let mut most = 1.0_f64;
    let descending = ascending(p_values).into_iter().rev().collect();
    adjusted(descending, |from_top, idx| {
        most = most.min(n as f64 / (n - from_top) as f64 * p_values[idx]);
        most
    })
}

fn ascending(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&left, &right| values[left].total_cmp(&values[right]));
    order
}

/// The values of `adjust(position, idx)`, called along `order`, at their own places.
fn adjusted(order: Vec<usize>, mut adjust: impl FnMut(usize, usize) -> f64) -> Vec<f64> {
    let mut values = vec![1.0; order.len()];
    order.into_iter().enumerate().for_each(|(position, idx)| values[idx] = adjust(position, idx));
    values
}
