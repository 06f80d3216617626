use statrs::function::gamma::ln_gamma;

/// Jeffreys' prior of a share.
const PRIOR: f64 = 0.5;
/// How many observations the alternatives are worth, in multiples of the number of bins: the first expects large shifts, the last small
/// ones.
const ALTERNATIVES: [f64; 4] = [1.0, 4.0, 16.0, 64.0];

/// Logarithm of the evidence that `live` counts do not come from the distribution of `baseline` counts of the same bins.
///
/// It may be looked at after every observation: were both from one distribution, it would *ever* exceed ln(1 / alpha) with probability
/// at most about alpha. The distribution itself is not known, only the baseline's sample of it, so a small baseline is no reason to alarm:
/// the live counts are predicted from it with its own uncertainty (the Dirichlet-multinomial predictive under Jeffreys' prior), and
/// the evidence is the likelihood ratio of alternatives that are mixed over how far away they are (Robbins 1970). The bound holds exactly
/// on average over distributions drawn from that prior, and closely for each.
pub fn drift_evidence(baseline: &[u64], live: &[u64]) -> f64 {
    let prior: Vec<f64> = baseline.iter().map(|&n| n as f64 + PRIOR).collect();
    let total: f64 = prior.iter().sum();
    let expected = log_predictive(&prior, live);
    let logs = ALTERNATIVES.map(|strength| {
        let weight = strength * baseline.len() as f64 / total;
        let alternative: Vec<f64> = prior.iter().map(|share| share * weight).collect();
        log_predictive(&alternative, live) - expected
    });
    log_mean_exp(&logs)
}

/// The same that right answers are rarer than in the baseline, of `[wrong, right]` counts; evidence that they are more frequent counts
/// as none.
pub fn worse_evidence(baseline: [u64; 2], live: [u64; 2]) -> f64 {
    let share = |[wrong, right]: [u64; 2]| right as f64 / ((wrong + right) as f64).max(1.0);
    if share(live) < share(baseline) { drift_evidence(&baseline, &live) } else { 0.0 }
}

/// Logarithm of the probability of observations in one order under a Dirichlet prior.
fn log_predictive(prior: &[f64], counts: &[u64]) -> f64 {
    let (all, n) = (prior.iter().sum::<f64>(), counts.iter().sum::<u64>() as f64);
    let of_bin = |(&a, &n): (&f64, &u64)| if n == 0 { 0.0 } else { ln_gamma(a + n as f64) - ln_gamma(a) };
    ln_gamma(all) - ln_gamma(all + n) + prior.iter().zip(counts).map(of_bin).sum::<f64>()
}

fn log_mean_exp(logs: &[f64]) -> f64 {
    let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    most + (logs.iter().map(|log| (log - most).exp()).sum::<f64>() / logs.len() as f64).ln()
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn draw(rng: &mut ChaCha8Rng, shares: &[f64]) -> usize {
        let mut left: f64 = rng.random();
        for (at, share) in shares.iter().enumerate() {
            left -= share;
            if left < 0.0 {
                return at;
            }
        }
        shares.len() - 1
    }

    /// How many of `n_runs` ever reach ln(1 / alpha), looked at after every request.
    fn ever(baseline_of: &[f64], live_of: &[f64], n_baseline: u64, alpha: f64, n_runs: u64) -> u64 {
        let mut n_alarms = 0;
        for seed in 0..n_runs {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let (mut baseline, mut live) = (vec![0; baseline_of.len()], vec![0; baseline_of.len()]);
            (0..n_baseline).for_each(|_| baseline[draw(&mut rng, baseline_of)] += 1);
            let alarm = (0..1500).any(|_| {
                live[draw(&mut rng, live_of)] += 1;
                drift_evidence(&baseline, &live) >= -alpha.ln()
            });
            n_alarms += u64::from(alarm);
        }
        n_alarms
    }

    #[test]
    fn looking_after_every_request_alarms_no_more_often_than_promised_even_with_a_small_baseline() {
        for (shares, n_baseline) in [(vec![0.125; 8], 100), (vec![0.9, 0.06, 0.03, 0.01], 200), (vec![0.97, 0.03], 60)]
        {
            let n_alarms = ever(&shares, &shares, n_baseline, 0.1, 200);
            // At 20 of 200 expected at most; 33 has a chance below 0.3 % at that.
            assert!(n_alarms <= 32, "{n_alarms} of 200 with {shares:?}");
        }
    }

    #[test]
    fn a_shift_is_found() {
        let n_alarms = ever(&[0.5, 0.3, 0.2], &[0.3, 0.3, 0.4], 300, 1e-5, 50);
        assert_eq!(n_alarms, 50);
    }

    #[test]
    fn an_evidence_is_a_martingale_given_the_baseline() {
        // The expected next evidence under the predictive is the present one.
        let (baseline, live) = ([30, 12, 3], [4, 4, 1]);
        let total: f64 = baseline.iter().zip(live).map(|(&a, b)| (a + b) as f64 + PRIOR).sum();
        let next: f64 = (0..3)
            .map(|at| {
                let mut more = live;
                more[at] += 1;
                (baseline[at] as f64 + live[at] as f64 + PRIOR) / total * drift_evidence(&baseline, &more).exp()
            })
            .sum();
        assert!((next - drift_evidence(&baseline, &live).exp()).abs() < 1e-9);
    }

    #[test]
    fn better_is_no_reason_to_alarm() {
        assert_eq!(worse_evidence([10, 90], [1, 900]), 0.0);
        assert!(worse_evidence([10, 90], [400, 600]) > 10.0);
        assert_eq!(worse_evidence([0, 0], [0, 0]), 0.0);
    }
}
