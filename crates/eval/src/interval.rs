use statrs::distribution::{Beta, Binomial, ContinuousCDF as _, DiscreteCDF as _, Normal};

/// Wilson's score interval for `k` successes of `n` at two-sided confidence `level`; `[0, 1]` for `n = 0`.
///
/// Coverage is close to `level` on average even for small `n` (Brown, Cai and DasGupta 2001): what reports show.
pub fn wilson(k: u64, n: u64, level: f64) -> [f64; 2] {
    if n == 0 {
        return [0.0, 1.0];
    }
    let (k, n, z) = (k as f64, n as f64, normal_quantile(0.5 + level / 2.0));
    let centre = (k + z * z / 2.0) / (n + z * z);
    let half = z / (n + z * z) * (k * (n - k) / n + z * z / 4.0).sqrt();
    [if k == 0.0 { 0.0 } else { centre - half }, if k == n { 1.0 } else { centre + half }]
}

/// Clopper and Pearson's exact interval for `k` successes of `n` at two-sided confidence `level`.
///
/// Each end errs with probability at most `(1 - level) / 2`, for every true share: what floors are judged by.
pub fn clopper_pearson(k: u64, n: u64, level: f64) -> [f64; 2] {
    let tail = (1.0 - level) / 2.0;
    let quantile = |a: u64, b: u64, p: f64| {
        let beta = Beta::new(a as f64, b as f64).expect("both counts are at least 1");
        beta.inverse_cdf(p)
    };
    let low = if k == 0 { 0.0 } else { quantile(k, n - k + 1, tail) };
    let high = if k == n { 1.0 } else { quantile(k + 1, n - k, 1.0 - tail) };
    [low, high]
}

/// Fisher's z interval for a correlation `r` of `n` independent pairs at two-sided confidence `level`; `[-1, 1]` for
/// `n < 4`. Exact in the limit for jointly normal values, and steadier than a bootstrap on a few dozen pairs.
pub fn fisher_z(r: f64, n: usize, level: f64) -> [f64; 2] {
    if n < 4 {
        return [-1.0, 1.0];
    }
    let half = normal_quantile(0.5 + level / 2.0) / ((n - 3) as f64).sqrt();
    [(r.atanh() - half).tanh(), (r.atanh() + half).tanh()]
}

/// The `q` quantile of ascending `sorted` values, interpolated linearly as `numpy.quantile` does. NaN if empty.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    if sorted.is_empty() {
        return f64::NAN;
    }
    let position = q * (sorted.len() - 1) as f64;
    let (low, high) = (position.floor() as usize, position.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (position - position.floor())
}

/// A distribution-free interval for the `q` quantile from ascending `sorted` independent samples: the number of samples
/// below the quantile is binomial, so two order statistics hold it with at least two-sided confidence `level`.
/// An end is infinite where there are too few samples for it.
pub fn quantile_interval(sorted: &[f64], q: f64, level: f64) -> [f64; 2] {
    let n = sorted.len() as u64;
    let Ok(below) = Binomial::new(q, n) else { return [f64::NEG_INFINITY, f64::INFINITY] };
    let tail = (1.0 - level) / 2.0;
    let low = (0..n).take_while(|&k| below.cdf(k) <= tail).last();
    let high = (0..n).find(|&k| 1.0 - below.cdf(k) <= tail);
    [low.map_or(f64::NEG_INFINITY, |k| sorted[k as usize]), high.map_or(f64::INFINITY, |k| sorted[k as usize])]
}

pub(crate) fn normal_quantile(p: f64) -> f64 {
    Normal::standard().inverse_cdf(p)
}

pub(crate) fn normal_cdf(z: f64) -> f64 {
    Normal::standard().cdf(z)
}
