//! Curves against scikit-learn's; see conformance/make_curves.py.

#![allow(clippy::unwrap_used)]

use highroad_eval::{CurvePoint, precision_recall_curve, reliability, roc_curve, thin};
use serde::Deserialize;

#[derive(Deserialize)]
struct Goldens {
    curves: Vec<Golden>,
}

#[derive(Deserialize)]
struct Golden {
    is_label: Vec<bool>,
    scores: Vec<f64>,
    n_bins: usize,
    reliability: Vec<[f64; 2]>,
    roc: Vec<[f64; 2]>,
    precision_recall: Vec<[f64; 2]>,
}

fn goldens() -> Vec<Golden> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/curves.json");
    serde_json::from_str::<Goldens>(&std::fs::read_to_string(path).unwrap()).unwrap().curves
}

#[track_caller]
fn assert_points(ours: &[[f64; 2]], reference: &[[f64; 2]]) {
    assert_eq!(ours.len(), reference.len(), "{ours:?}\n{reference:?}");
    for (ours, reference) in ours.iter().flatten().zip(reference.iter().flatten()) {
        assert!((ours - reference).abs() < 1e-12, "{ours} is not {reference}");
    }
}

fn pairs(points: Vec<CurvePoint>) -> Vec<[f64; 2]> {
    points.into_iter().map(|point| [point.x, point.y]).collect()
}

#[test]
fn reliability_is_that_of_scikit_learn_and_counts_every_case() {
    for golden in goldens() {
        let bins = reliability(&golden.is_label, &golden.scores, golden.n_bins);
        let points: Vec<[f64; 2]> = bins.iter().map(|bin| [bin.confidence, bin.right]).collect();
        assert_points(&points, &golden.reliability);
        assert_eq!(bins.iter().map(|bin| bin.n_cases).sum::<usize>(), golden.scores.len());
    }
}

#[test]
fn roc_and_precision_recall_curves_are_those_of_scikit_learn() {
    for golden in goldens() {
        assert_points(&pairs(roc_curve(&golden.is_label, &golden.scores)), &golden.roc);
        assert_points(&pairs(precision_recall_curve(&golden.is_label, &golden.scores)), &golden.precision_recall);
    }
}

#[test]
fn a_curve_of_one_kind_of_case_is_empty() {
    assert!(roc_curve(&[true, true], &[0.1, 0.2]).is_empty() && roc_curve(&[false], &[0.1]).is_empty());
    assert!(precision_recall_curve(&[false], &[0.1]).is_empty() && roc_curve(&[], &[]).is_empty());
    assert!(reliability(&[], &[], 10).is_empty());
}

#[test]
fn thinning_keeps_both_ends_and_the_limit() {
    let points: Vec<usize> = (0..1000).collect();
    let thinned = thin(&points, 7);
    assert_eq!((thinned.len(), thinned[0], thinned[6]), (7, 0, 999));
    assert_eq!(thin(&points, 0), [0, 999]);
    assert_eq!(thin(&points, 1000), points);
    assert!(thin::<usize>(&[], 5).is_empty());
}
