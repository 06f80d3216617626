use statrs::distribution::{ChiSquared, ContinuousCDF as _};

/// The largest distance of two cumulative distributions, and how likely a larger one is by chance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kolmogorov {
    /// 0 to 1.
    pub distance: f64,
    /// Two-sided.
    pub p: f64,
}

/// A test of whether two lists of counts come from one distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChiSquare {
    /// Pearson's X² or the likelihood ratio's G.
    pub statistic: f64,
    /// Degrees of freedom: bins that either holds, less one.
    pub freedom: u64,
    /// Of at least this statistic by chance.
    pub p: f64,
}

/// Up to this many pairs every path is counted; beyond, the limit is close.
const MOST_PAIRS_COUNTED: u64 = 250_000;
/// Distances closer than this are equal but for rounding.
const TIE: f64 = 1e-9;

/// Two-sample Kolmogorov-Smirnov over counts in ordered bins. With one value a bin it is that of the values; with coarser bins the
/// distance, and so the evidence, is only ever smaller. Exact for small samples without ties (as `scipy.stats.ks_2samp`'s `exact`, which
/// ties make cautious), Kolmogorov's limit for larger ones. A distance of 0 and p of 1 if either is empty.
pub fn kolmogorov_smirnov(baseline: &[u64], live: &[u64]) -> Kolmogorov {
    let (n, m) = (baseline.iter().sum::<u64>(), live.iter().sum::<u64>());
    if n == 0 || m == 0 {
        return Kolmogorov { distance: 0.0, p: 1.0 };
    }
    let (mut below, mut distance) = ([0_u64; 2], 0.0_f64);
    for (&of_baseline, &of_live) in baseline.iter().zip(live) {
        below = [below[0] + of_baseline, below[1] + of_live];
        distance = distance.max((below[0] as f64 / n as f64 - below[1] as f64 / m as f64).abs());
    }
    let p = if n.saturating_mul(m) <= MOST_PAIRS_COUNTED {
        exact_p(n, m, distance)
    } else {
        limit_p((n as f64 * m as f64 / (n + m) as f64).sqrt() * distance)
    };
    Kolmogorov { distance, p }
}

/// The chance that a random path from (0, 0) to (n, m) ever strays by at least `distance`.
fn exact_p(n: u64, m: u64, distance: f64) -> f64 {
    let strays = |i: u64, j: u64| (i as f64 / n as f64 - j as f64 / m as f64).abs() >= distance - TIE;
    // The chance to have reached (i, j) without straying, row by row.
    let mut within: Vec<f64> = Vec::with_capacity(m as usize + 1);
    within.push(1.0);
    for j in 1..=m {
        let before = within[j as usize - 1];
        within.push(if strays(0, j) { 0.0 } else { before });
    }
    for i in 1..=n {
        within[0] = if strays(i, 0) { 0.0 } else { within[0] };
        for j in 1..=m {
            let at = j as usize;
            let reached = (i as f64 * within[at] + j as f64 * within[at - 1]) / (i + j) as f64;
            within[at] = if strays(i, j) { 0.0 } else { reached };
        }
    }
    (1.0 - within[m as usize]).clamp(0.0, 1.0)
}

/// Survival function of Kolmogorov's distribution, as `scipy.special.kolmogorov`.
fn limit_p(x: f64) -> f64 {
    if x <= 0.0 {
        return 1.0;
    }
    if x < 1.0 {
        // The other series converges where this one's terms are large.
        let scale = (2.0 * std::f64::consts::PI).sqrt() / x;
        let term = |k: i32| (-(f64::from(2 * k - 1) * std::f64::consts::PI / x).powi(2) / 8.0).exp();
        return (1.0 - scale * (1..=20).map(term).sum::<f64>()).clamp(0.0, 1.0);
    }
    let term = |k: i32| f64::from(if k % 2 == 1 { 2 } else { -2 }) * (-2.0 * f64::from(k * k) * x * x).exp();
    (1..=20).map(term).sum::<f64>().clamp(0.0, 1.0)
}

/// Pearson's test of homogeneity, as `scipy.stats.chi2_contingency` without Yates' correction.
pub fn chi_square(baseline: &[u64], live: &[u64]) -> ChiSquare {
    homogeneity(baseline, live, |observed, expected| (observed - expected).powi(2) / expected)
}

/// The likelihood-ratio test of the same, as with `lambda_="log-likelihood"`.
pub fn g_test(baseline: &[u64], live: &[u64]) -> ChiSquare {
    let term =
        |observed: f64, expected: f64| if observed > 0.0 { 2.0 * observed * (observed / expected).ln() } else { 0.0 };
    homogeneity(baseline, live, term)
}

fn homogeneity(baseline: &[u64], live: &[u64], term: impl Fn(f64, f64) -> f64) -> ChiSquare {
    let (n, m) = (baseline.iter().sum::<u64>() as f64, live.iter().sum::<u64>() as f64);
    let held = baseline.iter().zip(live).filter(|&(&a, &b)| a + b > 0);
    let freedom = (held.clone().count() as u64).saturating_sub(1);
    if n == 0.0 || m == 0.0 || freedom == 0 {
        return ChiSquare { statistic: 0.0, freedom, p: 1.0 };
    }
    let of_bin = |(&a, &b): (&u64, &u64)| {
        let both = (a + b) as f64 / (n + m);
        term(a as f64, n * both) + term(b as f64, m * both)
    };
    let statistic: f64 = held.map(of_bin).sum();
    let chi = ChiSquared::new(freedom as f64).expect("there is at least one degree of freedom");
    ChiSquare { statistic, freedom, p: chi.sf(statistic) }
}
