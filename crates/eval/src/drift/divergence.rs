use statrs::distribution::{ChiSquared, ContinuousCDF as _};

/// Added to every bin, so that an empty one has a logarithm (Jeffreys' prior).
const SMOOTHING: f64 = 0.5;

/// Population stability index of `live` counts against `baseline` counts of the same bins: the sum of (p - q) ln(p / q), 0 where shares
/// are equal. Each bin counts half an observation more than it holds.
pub fn psi(baseline: &[u64], live: &[u64]) -> f64 {
    let (baseline, live) = (shares(baseline), shares(live));
    baseline.iter().zip(&live).map(|(q, p)| (p - q) * (p / q).ln()).sum()
}

/// What [`psi`] exceeds with probability 1 - `level` although both samples come from one distribution over `n_bins` bins: about
/// (1/n + 1/m) times a chi-square of `n_bins` - 1 degrees of freedom (Yurdakul and Naranjo, Journal of Risk Model Validation 2020). A
/// fixed 0.2 is exceeded by chance with small samples and is deaf with large ones.
pub fn psi_under_null(n_bins: usize, n_baseline: u64, n_live: u64, level: f64) -> f64 {
    let freedom = n_bins.saturating_sub(1) as f64;
    if freedom == 0.0 || n_baseline == 0 || n_live == 0 {
        return 0.0;
    }
    let chi_square = ChiSquared::new(freedom).expect("there is at least one degree of freedom");
    chi_square.inverse_cdf(level) * noise(n_baseline, n_live)
}

/// [`psi`] without what chance alone contributes on average, at least 0: what is compared with a smallest effect that matters.
pub fn psi_excess(baseline: &[u64], live: &[u64]) -> f64 {
    let (n, m) = (baseline.iter().sum::<u64>(), live.iter().sum::<u64>());
    if n == 0 || m == 0 {
        return 0.0;
    }
    let freedom = baseline.len().saturating_sub(1) as f64;
    (psi(baseline, live) - freedom * noise(n, m)).max(0.0)
}

/// Jensen-Shannon distance of two lists of counts in base 2, as `scipy.spatial.distance.jensenshannon`: 0 for equal shares, 1 where no
/// bin is shared. 0 if either is empty.
pub fn jensen_shannon(baseline: &[u64], live: &[u64]) -> f64 {
    let share = |counts: &[u64]| {
        let total = counts.iter().sum::<u64>() as f64;
        counts.iter().map(|&n| n as f64 / total).collect::<Vec<f64>>()
    };
    if baseline.iter().all(|&n| n == 0) || live.iter().all(|&n| n == 0) {
        return 0.0;
    }
    let term = |p: f64, middle: f64| if p > 0.0 { p * (p / middle).log2() } else { 0.0 };
    let divergence: f64 = share(baseline)
        .into_iter()
        .zip(share(live))
        .map(|(q, p)| 0.5 * (term(p, 0.5 * (p + q)) + term(q, 0.5 * (p + q))))
        .sum();
    divergence.max(0.0).sqrt()
}

fn noise(n_baseline: u64, n_live: u64) -> f64 {
    1.0 / n_baseline as f64 + 1.0 / n_live as f64
}

fn shares(counts: &[u64]) -> Vec<f64> {
    let total = counts.iter().sum::<u64>() as f64 + SMOOTHING * counts.len() as f64;
    counts.iter().map(|&n| (n as f64 + SMOOTHING) / total).collect()
}
