//! How often intervals, tests and gates err, by simulation with fixed seeds. The bounds leave room for the error of
//! the simulation itself: 0.01 is two standard errors of a rate of 5 % over 2,000 trials.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use highroad_eval::{
    Bootstrap, Classes, Discordance, McNemarPower, Metric, NonInferiority, Observed, Outcome, Resamples, Sequential,
    SequentialFlips, Sides, SignFlips, Similarities, Statistic, Units,
};
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
        eprintln!("n = {n}, {discordant} discordant: a drop of one margin passes in {passes}");
        assert!(passes <= 0.06, "n = {n}, {discordant} discordant: {passes}");
    }
}

#[test]
fn an_equal_candidate_fails_in_at_most_alpha_of_all_gates() {
    for (n, discordant) in [(50, 0.1), (80, 0.1)] {
        for margin in [0.0, 0.02] {
            let fails = rate(n, discordant / 2.0, discordant / 2.0, |[_, high], _| high < -margin);
            eprintln!("n = {n}, {discordant} discordant, margin {margin}: an equal candidate fails in {fails}");
            assert!(fails <= 0.06, "n = {n}, {discordant} discordant, margin {margin}: {fails}");
        }
    }
}

#[test]
fn an_equal_candidate_passes_as_often_as_the_gate_says() {
    for (n, discordant, margin) in [(60, 0.1, 0.05), (100, 0.05, 0.05)] {
        let passes = rate(n, discordant / 2.0, discordant / 2.0, |[low, _], _| low > -margin);
        let told = NonInferiority { n_cases: n, discordant, margin, alpha: 0.05 }.pass_power(0.0);
        eprintln!("n = {n}, {discordant} discordant, margin {margin}: passes {passes}, told {told}");
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
        eprintln!("n = {n}, lost {lost}, won {won}: held in {held}");
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

/// Macro F1 of two classifiers that answer `n` cases, 40 % of them injections: the baseline errs on 7 %, the candidate
/// loses 6 % and wins 2 % of all cases.
fn classifiers(rng: &mut ChaCha8Rng, n: usize) -> [Observed; 2] {
    const LABELS: [&str; 2] = ["benign", "injection"];
    let mut expected = Vec::new();
    let mut answered = [Vec::new(), Vec::new()];
    for _ in 0..n {
        let label = usize::from(rng.random::<f64>() < 0.4);
        let u: f64 = rng.random();
        // Of the 7 % the baseline has wrong the candidate wins 2 points; of the 93 % it has right it loses 6.
        let (baseline_right, candidate_right) = (u >= 0.07, !(0.02..0.13).contains(&u));
        expected.push(LABELS[label]);
        answered[0].push(if candidate_right { label } else { 1 - label });
        answered[1].push(if baseline_right { label } else { 1 - label });
    }
    answered.map(|answered| {
        let answers = answered.iter().map(|&label| (LABELS[label], if label == 0 { &[1.0, 0.0] } else { &[0.0, 1.0] }));
        let answers = answers.map(|(label, scores): (&str, &[f32; 2])| (label, scores.as_slice()));
        Observed::Classes(Classes::new(&LABELS.map(str::to_owned), expected.iter().copied(), answers).unwrap())
    })
}

fn f1(sides: &[Observed; 2]) -> [Statistic; 2] {
    sides.each_ref().map(|side| Metric::F1Macro.of(side, None).unwrap())
}

fn bounds_of_difference(sides: &[Observed; 2]) -> [f64; 2] {
    let [candidate, baseline] = f1(sides);
    let of = |counts: &[u32]| candidate.value(counts) - baseline.value(counts);
    Bootstrap::new(&Units::cases(sides[0].n_cases()), Resamples { n: 1_000, seed: 3 }, of).bca(0.9)
}

#[test]
fn bootstrap_bounds_of_a_difference_in_f1_miss_it_about_as_often_as_asked() {
    let mut rng = ChaCha8Rng::seed_from_u64(17);
    let [candidate, baseline] = f1(&classifiers(&mut rng, 400_000)).map(|statistic| statistic.observed());
    let truth = candidate - baseline;
    for n in [100, 200] {
        let n_trials = 400;
        let (mut too_high, mut too_low) = (0, 0);
        for _ in 0..n_trials {
            let [low, high] = bounds_of_difference(&classifiers(&mut rng, n));
            (too_high, too_low) = (too_high + usize::from(low > truth), too_low + usize::from(high < truth));
        }
        let [too_high, too_low] = [too_high, too_low].map(|count| count as f64 / f64::from(n_trials));
        eprintln!("n = {n}: the lower bound of a difference in macro F1 misses {too_high}, the upper one {too_low}");
        assert!(too_high <= 0.08 && too_low <= 0.08, "n = {n}: {too_high}, {too_low}");
    }
}

/// 15 texts make 105 pairs; each text shifts all of its pairs, so pairs are far from independent.
#[test]
fn drawing_texts_rather_than_pairs_keeps_the_coverage_of_a_correlation() {
    const N_TEXTS: usize = 15;
    let mut rng = ChaCha8Rng::seed_from_u64(23);
    let pairs: Vec<[usize; 2]> = (0..N_TEXTS).flat_map(|a| (0..a).map(move |b| [a, b])).collect();
    let mut normal = move || normal(&mut rng);
    let mut trial = || {
        let of_text: Vec<[f64; 2]> = (0..N_TEXTS).map(|_| [normal(), normal()]).collect();
        let value = |[a, b]: [usize; 2], side: usize| of_text[a][side] + of_text[b][side];
        let expected = pairs.iter().map(|&pair| value(pair, 0) + 0.3 * normal()).collect();
        let predicted = pairs.iter().map(|&pair| value(pair, 1)).collect();
        let observed = Observed::Similarities(Similarities { expected, predicted });
        let statistic = Metric::Pearson.of(&observed, None).unwrap();
        // The two sides share nothing, so the true correlation is 0.
        let holds = |units: &Units| {
            let sample = Bootstrap::new(units, Resamples { n: 400, seed: 5 }, |counts| statistic.value(counts));
            let [low, high] = sample.percentile(0.9);
            low <= 0.0 && 0.0 <= high
        };
        [holds(&Units::sources(&pairs)), holds(&Units::cases(pairs.len()))]
    };
    let mut held = [0.0, 0.0];
    for _ in 0..300 {
        trial().into_iter().zip(&mut held).for_each(|(holds, count)| *count += f64::from(u8::from(holds)) / 300.0);
    }
    let [by_text, by_pair] = held;
    eprintln!("a 90 % interval holds the true correlation in {by_text} by text, in {by_pair} by pair");
    assert!(by_text >= 0.8 && by_pair < 0.7, "{by_text}, {by_pair}");
}

/// About standard normal: the sum of twelve uniform numbers.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
}

const N_PASSAGES: usize = 30;
const N_QUESTIONS: usize = 10;

/// Paired differences of 10 questions to each of 30 passages; what a passage does to all of its questions makes up 22 % of
/// the variance.
fn questions(rng: &mut ChaCha8Rng, mean: f64) -> Vec<f64> {
    let mut passage = |_| {
        let shift = mean + 0.22_f64.sqrt() * normal(rng);
        (0..N_QUESTIONS).map(|_| shift + 0.78_f64.sqrt() * normal(rng)).collect::<Vec<_>>()
    };
    (0..N_PASSAGES).flat_map(&mut passage).collect()
}

fn by_passage() -> Units {
    Units::sources(&(0..N_PASSAGES * N_QUESTIONS).map(|idx| [idx / N_QUESTIONS; 2]).collect::<Vec<_>>())
}

/// The published simulation of 30 passages with 10 questions: 95.1 % with clusters, 74.5 % without.
#[test]
fn drawing_passages_rather_than_questions_keeps_the_coverage_of_a_mean() {
    let (mut rng, n_trials) = (ChaCha8Rng::seed_from_u64(29), 1_000);
    let units = [by_passage(), Units::cases(N_PASSAGES * N_QUESTIONS)];
    let mut held = [0.0, 0.0];
    for _ in 0..n_trials {
        let differences = questions(&mut rng, 0.0);
        for (units, held) in units.iter().zip(&mut held) {
            let sample = Bootstrap::of_mean(units, Resamples { n: 1_000, seed: 5 }, &differences);
            let [low, high] = sample.bca(0.95);
            *held += f64::from(u8::from(low <= 0.0 && 0.0 <= high)) / f64::from(n_trials);
        }
    }
    let [by_passage, by_question] = held;
    eprintln!("a 95 % BCa interval holds the true mean in {by_passage} by passage, in {by_question} by question");
    assert!((0.915..=0.965).contains(&by_passage) && by_question < 0.8, "{by_passage}, {by_question}");
}

/// The share of trials in which swapping sides finds a drop at level 0.05.
fn detected(n_trials: usize, mut differences: impl FnMut() -> Vec<f64>) -> f64 {
    let mut found = || SignFlips::of(&differences(), Resamples { n: 999, seed: 31 }).below <= 0.05;
    (0..n_trials).filter(|_| found()).count() as f64 / n_trials as f64
}

#[test]
fn swapping_sides_finds_a_drop_that_is_not_there_in_at_most_alpha_of_all_trials() {
    let mut rng = ChaCha8Rng::seed_from_u64(31);
    // Reciprocal ranks of two models that are equally good: few values, many ties.
    let mut rank = move || 1.0 / f64::from(rng.random_range(1..5u8));
    for n in [8, 15, 60] {
        let rate = detected(1_000, || (0..n).map(|_| rank() - rank()).collect());
        eprintln!("{n} queries: a drop that is not there is found in {rate}");
        assert!(rate <= 0.065, "{n}: {rate}");
    }
    let mut rng = ChaCha8Rng::seed_from_u64(37);
    let sums = |questions: Vec<f64>| questions.chunks(N_QUESTIONS).map(|passage| passage.iter().sum()).collect();
    let by_passage = detected(1_000, || sums(questions(&mut rng, 0.0)));
    let by_question = detected(500, || questions(&mut rng, 0.0));
    eprintln!("clusters: found in {by_passage} by passage, in {by_question} by question");
    assert!(by_passage <= 0.065 && by_question > 0.1, "{by_passage}, {by_question}");
}

#[test]
fn swapping_sides_finds_a_real_drop_about_as_often_as_a_t_test() {
    let mut rng = ChaCha8Rng::seed_from_u64(41);
    // A t test of 60 normal differences finds a drop of 0.325 standard deviations with 80 % power, one-sided at 0.05.
    let power = detected(1_000, || (0..60).map(|_| normal(&mut rng) - 0.325).collect());
    eprintln!("60 cases: a drop of 0.325 standard deviations is found in {power}");
    assert!((0.76..=0.84).contains(&power), "{power}");
}

/// Live traffic of `n` requests at most, lost with probability `lost` and won with `won`: how it was decided and after how
/// many requests, looking after every `every`.
fn watch(rng: &mut ChaCha8Rng, n: usize, [lost, won]: [f64; 2], every: usize) -> (Outcome, usize) {
    let mut sequential = Sequential::new(0.05, LIVE_MARGIN).unwrap();
    for request in 1..=n {
        let u: f64 = rng.random();
        let difference = f64::from(u8::from((lost..lost + won).contains(&u))) - f64::from(u8::from(u < lost));
        sequential.observe(difference).unwrap();
        if request % every == 0 && sequential.decision() != Outcome::Inconclusive {
            return (sequential.decision(), request);
        }
    }
    (Outcome::Inconclusive, n)
}

const LIVE_MARGIN: f64 = 0.02;

#[test]
fn traffic_watched_after_every_request_is_decided_wrongly_in_at_most_alpha_of_all_rollouts() {
    let (n_rollouts, n_requests) = (400, 1_500);
    for discordant in [0.04, 0.2] {
        let mut rng = ChaCha8Rng::seed_from_u64(43);
        let at_the_margin = [(discordant + LIVE_MARGIN) / 2.0, (discordant - LIVE_MARGIN) / 2.0];
        let outcomes: Vec<_> = (0..n_rollouts).map(|_| watch(&mut rng, n_requests, at_the_margin, 1).0).collect();
        let rate = |outcome| outcomes.iter().filter(|&&found| found == outcome).count() as f64 / n_rollouts as f64;
        let [passes, fails] = [Outcome::Pass, Outcome::Fail].map(rate);
        eprintln!("{discordant} discordant: a drop of one margin ever passes in {passes}, ever fails in {fails}");
        // Two standard errors of a rate of 5 % over 400 rollouts.
        assert!(passes <= 0.072 && fails <= 0.072, "{discordant}: {passes}, {fails}");
    }
}

#[test]
fn traffic_is_decided_after_a_few_times_the_cases_that_one_look_would_take() {
    for (name, shares, expected, n_most) in [
        ("equal, 4 % discordant", [0.02, 0.02], Outcome::Pass, 3_000),
        ("equal, 10 % discordant", [0.05, 0.05], Outcome::Pass, 5_500),
        ("worse by 5 points, 10 % discordant", [0.075, 0.025], Outcome::Fail, 3_000),
        ("worse by 10 points, 20 % discordant", [0.15, 0.05], Outcome::Fail, 1_000),
    ] {
        let mut rng = ChaCha8Rng::seed_from_u64(47);
        let mut decided: Vec<_> = (0..200).map(|_| watch(&mut rng, 20_000, shares, 20)).collect();
        decided.sort_by_key(|&(_, n)| n);
        let [half, most] = [100, 160].map(|idx| decided[idx].1);
        let n_right = decided.iter().filter(|(outcome, _)| *outcome == expected).count();
        eprintln!(
            "{name}: half are decided after {half} requests, four of five after {most}; {n_right} of 200 rightly"
        );
        assert!(n_right >= 190 && most <= n_most, "{name}: {n_right}, {most}");
    }
}

/// A p-value of a test for one look, looked at after every flip, is what the sequences replace.
#[test]
fn flips_watched_one_by_one_alarm_falsely_in_at_most_alpha_of_all_rollouts() {
    let (mut rng, n_rollouts, n_flips) = (ChaCha8Rng::seed_from_u64(53), 1_000, 300);
    let (mut ever, mut ever_by_mcnemar) = (0.0, 0.0);
    for _ in 0..n_rollouts {
        let mut flips = SequentialFlips::default();
        let (mut alarmed, mut alarmed_by_mcnemar) = (false, false);
        for _ in 0..n_flips {
            *(if rng.random() { &mut flips.n_regressions } else { &mut flips.n_improvements }) += 1;
            let SequentialFlips { n_regressions, n_improvements } = flips;
            let once = Discordance::from_counts(n_flips, n_regressions, n_improvements).unwrap();
            alarmed |= flips.decision(0.05) != Outcome::Inconclusive;
            alarmed_by_mcnemar |= once.mcnemar() <= 0.05;
        }
        ever += f64::from(u8::from(alarmed)) / f64::from(n_rollouts);
        ever_by_mcnemar += f64::from(u8::from(alarmed_by_mcnemar)) / f64::from(n_rollouts);
    }
    eprintln!("300 flips: false alarms in {ever} of rollouts, in {ever_by_mcnemar} by McNemar after every flip");
    assert!(ever <= 0.065 && ever_by_mcnemar > 0.2, "{ever}, {ever_by_mcnemar}");
}
