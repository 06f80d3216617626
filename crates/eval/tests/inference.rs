//! Tests of many swaps, of many slices and of live traffic against SciPy, statsmodels and direct computation; see
//! conformance/make_inference.py.

#![allow(clippy::unwrap_used)]

use highroad_eval::{
    Case, Comparison, Expected, FloorPower, Gates, Numbers, Observed, Resamples, Sequential, SequentialFlips, Side,
    SignFlips, Test, benjamini_hochberg, clopper_pearson, decide, holm,
};
use serde::Deserialize;

const ALPHA: f64 = 0.05;
const RESAMPLES: Resamples = Resamples { n: 20_000, seed: 1 };

#[track_caller]
fn assert_close(ours: f64, reference: f64, tolerance: f64) {
    assert!((ours - reference).abs() <= tolerance, "{ours} is not within {tolerance} of {reference}");
}

#[derive(Deserialize)]
struct Goldens {
    permutations: Vec<Permutation>,
    shifted: Vec<Shifted>,
    drawn_permutations: Vec<DrawnPermutation>,
    multiple: Vec<Multiple>,
    sequences: Vec<Sequence>,
    flips: Vec<Flips>,
}

fn goldens() -> Goldens {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/inference.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[derive(Deserialize)]
struct Permutation {
    differences: Vec<f64>,
    below: f64,
    above: f64,
    two_sided: f64,
}

#[test]
fn counted_swaps_are_those_of_scipy() {
    for golden in goldens().permutations {
        let found = SignFlips::of(&golden.differences, RESAMPLES);
        assert!(found.is_exact);
        assert_close(found.below, golden.below, 1e-12);
        assert_close(found.above, golden.above, 1e-12);
        assert_close(found.two_sided(), golden.two_sided, 1e-12);
    }
}

#[derive(Deserialize)]
struct Shifted {
    differences: Vec<f64>,
    gain: f64,
    p: f64,
}

#[test]
fn a_required_improvement_of_a_mean_is_tested_as_scipy_tests_what_is_left_of_it() {
    for Shifted { differences, gain, p } in goldens().shifted {
        let case = |idx: usize| Case {
            id: idx.to_string(),
            expected: Expected::Number(0.0),
            slices: Vec::new(),
            must_pass: false,
            sources: [idx; 2],
            weight: 1.0,
        };
        let cases: Vec<Case> = (0..differences.len()).map(case).collect();
        // Errors of 1, and of less by the difference: a smaller error is a gain.
        let numbers = |of: &dyn Fn(&f64) -> f64| {
            let predicted = differences.iter().map(of).collect();
            Observed::Numbers(Numbers::new(vec![0.0; differences.len()], predicted).unwrap())
        };
        let (candidate, baseline) = (numbers(&|difference| 1.0 - difference), numbers(&|_| 1.0));
        let gates = Gates::parse(&format!("[[rule]]\nmetric = 'mae'\nimprovement = {gain}")).unwrap();
        let baseline = Side::Package(&baseline);
        let comparison = Comparison { cases: &cases, candidate: &candidate, baseline, latencies_ms: &[] };
        let check = decide(&gates, &comparison).unwrap().checks.pop().unwrap();
        assert_eq!(check.test, Some(Test::ExactSignFlips));
        assert_close(check.p_value.unwrap(), p, 1e-12);
    }
}

#[derive(Deserialize)]
struct DrawnPermutation {
    differences: Vec<f64>,
    below: f64,
    above: f64,
}

#[test]
fn drawn_swaps_agree_with_those_scipy_draws() {
    for golden in goldens().drawn_permutations {
        let found = SignFlips::of(&golden.differences, RESAMPLES);
        assert!(!found.is_exact);
        // Four standard errors of the difference of two shares of 20,000.
        let tolerance = |p: f64| 4.0 * (2.0 * p * (1.0 - p) / 20_000.0).sqrt() + 2e-4;
        assert_close(found.below, golden.below, tolerance(golden.below));
        assert_close(found.above, golden.above, tolerance(golden.above));
    }
}

#[derive(Deserialize)]
struct Multiple {
    p: Vec<f64>,
    holm: Vec<f64>,
    benjamini_hochberg: Vec<f64>,
}

#[test]
fn adjusted_p_values_are_those_of_statsmodels() {
    for golden in goldens().multiple {
        for (ours, reference) in
            [(holm(&golden.p), golden.holm), (benjamini_hochberg(&golden.p), golden.benjamini_hochberg)]
        {
            assert_eq!(ours.len(), reference.len());
            ours.iter().zip(&reference).for_each(|(&ours, &reference)| assert_close(ours, reference, 1e-12));
        }
    }
    assert!(holm(&[]).is_empty() && benjamini_hochberg(&[]).is_empty());
}

#[derive(Deserialize)]
struct Sequence {
    differences: Vec<f64>,
    bounds: [f64; 2],
}

#[test]
fn bounds_of_a_sequence_are_where_its_capital_suffices() {
    for golden in goldens().sequences {
        let mut sequential = Sequential::new(ALPHA, 0.02).unwrap();
        golden.differences.iter().for_each(|&difference| sequential.observe(difference).unwrap());
        let [low, high] = sequential.bounds();
        // Bounds are searched to 1e-6, from outside.
        assert_close(low, golden.bounds[0], 2e-6);
        assert_close(high, golden.bounds[1], 2e-6);
        assert!(low <= golden.bounds[0] && high >= golden.bounds[1]);
    }
}

#[derive(Deserialize)]
struct Flips {
    regressions: u64,
    improvements: u64,
    share: f64,
    log_evidence: f64,
    bounds: [f64; 2],
}

#[test]
fn evidence_of_flips_is_beta_binomial_over_binomial() {
    for golden in goldens().flips {
        let flips = SequentialFlips { n_regressions: golden.regressions, n_improvements: golden.improvements };
        assert_close(flips.log_evidence(golden.share), golden.log_evidence, 1e-9);
        let [low, high] = flips.share_bounds(ALPHA);
        assert_close(low, golden.bounds[0], 2e-6);
        assert_close(high, golden.bounds[1], 2e-6);
    }
}

#[test]
fn the_largest_share_that_a_floor_catches_fails_with_the_power_asked_for() {
    for (n_cases, floor) in [(40, 0.9), (100, 0.95), (200, 0.9), (500, 0.5)] {
        let share = FloorPower { n_cases, floor, alpha: ALPHA }.largest_share_found(0.8).unwrap();
        // Term by term: the probability of every number of right answers that fails.
        let (mut fails, mut probability) = (0.0, (1.0 - share).powf(n_cases as f64));
        for n_right in 0..=n_cases {
            if clopper_pearson(n_right, n_cases, 1.0 - 2.0 * ALPHA)[1] < floor {
                fails += probability;
            }
            probability *= (n_cases - n_right) as f64 / (n_right + 1) as f64 * share / (1.0 - share);
        }
        assert!(share < floor);
        assert_close(fails, 0.8, 1e-6);
    }
    assert_eq!(FloorPower { n_cases: 20, floor: 0.05, alpha: ALPHA }.largest_share_found(0.8), None);
}
