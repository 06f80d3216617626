//! Agreement of raters against scikit-learn and `krippendorff`; see conformance/make_agreement.py.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use highroad_eval::{AgreementMeasure, Resamples};
use serde::Deserialize;

#[derive(Deserialize)]
struct Goldens {
    goldens: Vec<Golden>,
}

#[derive(Deserialize)]
struct Golden {
    ratings: Vec<Vec<f64>>,
    values: BTreeMap<AgreementMeasure, f64>,
}

fn goldens() -> Vec<Golden> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/agreement.json");
    serde_json::from_slice::<Goldens>(&std::fs::read(path).unwrap()).unwrap().goldens
}

#[test]
fn kappa_and_alpha_are_those_of_scikit_learn_and_krippendorff() {
    let mut n_compared = 0;
    for golden in goldens() {
        for (measure, reference) in golden.values {
            let ours = measure.of(&golden.ratings).unwrap();
            assert!((ours - reference).abs() < 1e-12, "{measure}: {ours} is not {reference}");
            n_compared += 1;
        }
    }
    assert_eq!(n_compared, 21);
}

#[test]
fn the_interval_holds_the_value_and_narrows_with_more_answers() {
    let width = |golden: &Golden| {
        let resamples = Resamples { n: 2000, seed: 1 };
        let (value, [low, high]) = AgreementMeasure::Kappa.with_interval(&golden.ratings, resamples).unwrap();
        assert!(low <= value && value <= high, "{low} {value} {high}");
        high - low
    };
    let pairs: Vec<Golden> = goldens()
        .into_iter()
        .filter(|golden| {
            golden.values.len() == 3
                && golden.ratings[0].len() == 2
                && golden.values.contains_key(&AgreementMeasure::Kappa)
        })
        .collect();
    assert!(width(&pairs[2]) < width(&pairs[0]));
}
