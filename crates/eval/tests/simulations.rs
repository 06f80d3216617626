//! How often intervals, tests and gates err, by simulation with fixed seeds. The bounds leave room for the error of
//! the simulation itself: 0.01 is two standard errors of a rate of 5 % over 2,000 trials.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use highroad_eval::{Discordance, McNemarPower, NonInferiority, Sides};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const N_TRIALS: usize = 2_000;

/// One golden set of `n` cases answered by two models: lost with probability `lost`, won with probability `won`.
fn draw(rng: &mut ChaCha8Rng, n: u64, lost: f64, won: f64) -> Discordance {
    let (mut n_lost, mut n_won) = (0, 0);
    for _ in 0..n {
        let u: f64 = rng.random();
        n_lost += u64::from(u < lost);
        n_won += u64::from((lost..lost + won).contains(&u));
    }
    Discordance::from_counts(n, n_lost, n_won).unwrap()
}

/// The share of trials in which `event` happens; bounds are remembered, as few outcomes make up most trials.
fn rate(n: u64, lost: f64, won: f64, event: impl Fn([f64; 2], Discordance) -> bool) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut known = HashMap::new();
    let mut happens = |_| {
        let pairs = draw(&mut rng, n, lost, won);
        let key = (pairs.n_regressions(), pairs.n_improvements());
        let bounds = *known.entry(key).or_insert_with(|| pairs.exact_bounds(0.05));
        event(bounds, pairs)
    };
    (0..N_TRIALS).filter(|trial| happens(*trial)).count() as f64 / N_TRIALS as f64
}

const MARGIN: f64 = 0.05;

#[test]
fn a_true_drop_of_one_margin_passes_in_at_most_alpha_of_all_gates() {
    for (n, discordant) in [(50, 0.06), (50, 0.2), (80, 0.1)] {
        let (lost, won) = ((discordant + MARGIN) / 2.0, (discordant - MARGIN) / 2.0);
        let passes = rate(n, lost, won, |[low, _], _| low > -MARGIN);
        println!("n = {n}, {discordant} discordant: a drop of one margin passes in {passes}");
        assert!(passes <= 0.06, "n = {n}, {discordant} discordant: {passes}");
    }
}

#[test]
fn an_equal_candidate_fails_in_at_most_alpha_of_all_gates() {
    for (n, discordant) in [(50, 0.1), (80, 0.1)] {
        for margin in [0.0, 0.02] {
            let fails = rate(n, discordant / 2.0, discordant / 2.0, |[_, high], _| high < -margin);
            println!("n = {n}, {discordant} discordant, margin {margin}: an equal candidate fails in {fails}");
            assert!(fails <= 0.06, "n = {n}, {discordant} discordant, margin {margin}: {fails}");
        }
    }
}

#[test]
fn an_equal_candidate_passes_as_often_as_the_gate_says() {
    for (n, discordant, margin) in [(60, 0.1, 0.05), (100, 0.05, 0.05)] {
        let passes = rate(n, discordant / 2.0, discordant / 2.0, |[low, _], _| low > -margin);
        let told = NonInferiority { n_cases: n, discordant, margin, alpha: 0.05 }.pass_power(0.0);
        println!("n = {n}, {discordant} discordant, margin {margin}: passes {passes}, told {told}");
        assert!((passes - told).abs() <= 0.03, "n = {n}, {discordant}, margin {margin}: {passes}, but told {told}");
    }
}

#[test]
fn a_drop_of_the_minimum_detectable_effect_is_detected_as_often_as_told() {
    for (n, discordant) in [(100, 0.2), (200, 0.1), (400, 0.05)] {
        let test = McNemarPower { n_cases: n, discordant, alpha: 0.05, sides: Sides::One };
        let drop = test.minimum_detectable_effect(0.8).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let detected = (0..N_TRIALS)
            .filter(|_| draw(&mut rng, n, (discordant + drop) / 2.0, (discordant - drop) / 2.0).mcnemar_worse() <= 0.05)
            .count() as f64;
        let share = detected / N_TRIALS as f64;
        assert!((share - 0.8).abs() <= 0.03, "n = {n}, {discordant} discordant: {share}");
    }
}

#[test]
fn both_bounds_together_hold_the_true_difference_in_nine_of_ten_trials() {
    for (n, lost, won) in [(30, 0.1, 0.05), (60, 0.05, 0.05)] {
        let held = rate(n, lost, won, |[low, high], _| low <= won - lost && won - lost <= high);
        println!("n = {n}, lost {lost}, won {won}: held in {held}");
        assert!((0.885..=0.99).contains(&held), "n = {n}, lost {lost}, won {won}: {held}");
    }
}

/// A gate that ignores pairing, swaps the sides or forgets the margin is caught by the rates above.
#[test]
fn broken_gates_are_caught_by_these_simulations() {
    let (n, discordant) = (60, 0.2);
    let (lost, won) = ((discordant + MARGIN) / 2.0, (discordant - MARGIN) / 2.0);
    let swapped = rate(n, lost, won, |[_, high], _| -high > -MARGIN);
    let without_margin = rate(n, discordant / 2.0, discordant / 2.0, |[_, high], _| high < MARGIN);
    let only_the_estimate = rate(n, lost, won, |_, pairs| pairs.difference() > -MARGIN);
    assert!(swapped > 0.06 && without_margin > 0.06 && only_the_estimate > 0.06);
}

#[test]
fn score_and_exact_bounds_meet() {
    let gap = |n: u64| {
        let pairs = Discordance::from_counts(n, n / 25, n / 20).unwrap();
        let (exact, score) = (pairs.exact_bounds(0.05), pairs.score_bounds(0.05));
        (exact[0] - score[0]).abs().max((exact[1] - score[1]).abs())
    };
    assert!(gap(4_000) < 2e-4, "{}", gap(4_000));
    assert!(gap(100) < 0.01 && gap(4_000) < gap(100));
}
