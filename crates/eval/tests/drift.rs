//! Baselines and alarms over replayed traffic: what is the same never alarms, what is shifted does, and hostile files are refused.

#![allow(clippy::unwrap_used)]

use highroad_eval::drift::{
    Baseline, BaselineBuilder, BaselineError, DriftPolicy, Observation, Pane, RowValues, SignalKind, SignalState,
    Source, Suffix, TensorRow, Verdict, judge_signals,
};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// One input: a length, tokens that a topic decides, a language, an answer, a vector.
fn draw(rng: &mut ChaCha8Rng, shift: f64) -> Observation {
    let length = (8.0 * (1.0 + shift) * (-rng.random::<f64>().ln()) + 3.0).floor();
    let topic: u32 = rng.random_range(0..20);
    let tokens = (0..length as u32).map(|_| topic * 50 + rng.random_range(0..50)).collect();
    let german = rng.random::<f64>() < 0.1 + 0.6 * shift;
    let score = rng.random::<f64>().powf(0.3 + shift);
    Observation {
        numbers: vec![("n_tokens", length), ("confidence", 0.5 + 0.5 * score)],
        classes: vec![
            ("language", if german { "deu" } else { "eng" }.to_owned()),
            ("label", if rng.random::<f64>() < 0.2 { "injection" } else { "benign" }.to_owned()),
        ],
        tokens,
        vector: (0..48).map(|at| rng.random::<f32>() + if at < 24 { shift as f32 } else { 0.0 }).collect(),
        ..Observation::default()
    }
}

fn source() -> Source {
    Source { kind: "data".to_owned(), name: "train".to_owned(), digest: "sha256:0".to_owned() }
}

fn baseline(rng: &mut ChaCha8Rng, n: usize) -> Baseline {
    let mut builder = BaselineBuilder::default();
    (0..n).for_each(|_| builder.add(draw(rng, 0.0)));
    builder.finish("sha256:p".to_owned(), source(), "2026-11-29T09:00:00Z".to_owned(), "ann".to_owned()).unwrap()
}

/// `n_panes` panes of `n` requests each, newest first, judged after each.
fn first_alarm(
    baseline: &Baseline,
    mut draw: impl FnMut() -> Observation,
    n_panes: i64,
    n: usize,
) -> Option<(i64, Vec<SignalState>)> {
    let policy = DriftPolicy::default();
    let mut panes: Vec<(i64, Pane)> = Vec::new();
    for minute in 0..n_panes {
        let mut pane = Pane::default();
        (0..n).for_each(|_| baseline.count(&draw(), &mut pane));
        panes.insert(0, (60 * minute, pane));
        let suffixes: Vec<Suffix<'_>> =
            panes.iter().map(|(since_s, pane)| Suffix { since_s: *since_s, pane }).collect();
        let states = judge_signals(baseline, &suffixes, 0, 1440.0, &policy);
        if states.iter().any(|state| state.verdict == Verdict::Drifted) {
            return Some((minute, states));
        }
    }
    None
}

#[test]
fn the_same_traffic_never_alarms_whether_the_baseline_is_small_or_large() {
    for seed in 0..20 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let n = if seed % 2 == 0 { 80 } else { 1500 };
        let baseline = baseline(&mut rng, n);
        let alarm = first_alarm(&baseline, || draw(&mut rng, 0.0), 60, 25);
        assert!(alarm.is_none(), "seed {seed}: {alarm:?}");
    }
}

#[test]
fn shifted_traffic_is_found_and_every_signal_that_moved_is_named() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let baseline = baseline(&mut rng, 1000);
    let (minute, states) = first_alarm(&baseline, || draw(&mut rng, 0.8), 60, 25).expect("it is shifted");
    assert!(minute < 12, "after {minute} panes of 25");
    let of = |name: &str| states.iter().find(|state| state.signal == name).unwrap();
    for name in ["language", "n_tokens", "embedding_distance"] {
        assert!(of(name).evidence > 5.0, "{:?}", of(name));
    }
    assert_eq!(of("label").verdict, Verdict::Same, "the mix of answers is as it was");
    assert!(of("language").p < 1e-6 && of("language").q >= of("language").p);
}

/// A row of a table: age, a mostly empty amount, a constant, and four more; what the model makes of it.
fn draw_row(rng: &mut ChaCha8Rng, shift: f64) -> Observation {
    let normal = |rng: &mut ChaCha8Rng| {
        let (u, v): (f64, f64) = (rng.random(), rng.random());
        (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    };
    let mut features = vec![40.0 + 12.0 * normal(rng), 0.0, 5.0];
    if rng.random::<f64>() < 0.2 {
        features[1] = normal(rng).exp();
    }
    features.extend((0..4).map(|_| normal(rng)));
    features[4] += shift;
    let score = features.iter().sum::<f64>() / 50.0;
    let row = |name: &str, values| TensorRow { name: name.to_owned(), values, missing: Some(0.0), size: None };
    let tensors = vec![row("input.x", RowValues::Features(features)), row("output.y", RowValues::Scalar(score))];
    Observation { tensors, ..Observation::default() }
}

fn table_baseline(rng: &mut ChaCha8Rng, n: usize) -> Baseline {
    let columns = ["age", "amount", "five", "a", "b", "c", "d"].map(str::to_owned).to_vec();
    let mut builder = BaselineBuilder::default().naming("input.x", columns);
    (0..n).for_each(|_| builder.add(draw_row(rng, 0.0)));
    let baseline = builder.finish("sha256:p".to_owned(), source(), String::new(), "ann".to_owned()).unwrap();
    Baseline::parse(&serde_json::to_vec(&baseline).unwrap()).unwrap()
}

#[test]
fn rows_like_those_of_the_training_never_alarm_over_many_seeds() {
    for seed in 0..40 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let baseline = table_baseline(&mut rng, if seed % 2 == 0 { 60 } else { 2000 });
        assert_eq!(baseline.signals.len(), 10, "{:?}", baseline.signals.keys());
        let alarm = first_alarm(&baseline, || draw_row(&mut rng, 0.0), 40, 25);
        assert!(alarm.is_none(), "seed {seed}: {alarm:?}");
    }
}

#[test]
fn a_feature_that_is_shifted_is_named_and_the_others_are_not() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let baseline = table_baseline(&mut rng, 1000);
    let (minute, states) = first_alarm(&baseline, || draw_row(&mut rng, 0.7), 60, 25).expect("it is shifted");
    assert!(minute < 20, "after {minute} panes of 25");
    let drifted = states.iter().filter(|state| state.verdict == Verdict::Drifted);
    assert_eq!(drifted.map(|state| state.signal.as_str()).collect::<Vec<_>>(), ["input.x[b]"]);
    let of = |name: &str| states.iter().find(|state| state.signal == name).unwrap();
    assert_eq!((of("input.x[b]").kind, of("output.y").kind), (SignalKind::Input, SignalKind::Prediction));
    assert!(of("input.x[b]").q < 1e-3 && of("input.x[a]").p > 1e-3);
}

#[test]
fn what_was_constant_or_mostly_zero_is_missed_neither_above_nor_below_nor_as_nan() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let baseline = table_baseline(&mut rng, 500);
    let names = baseline.signals["input.x[five]"].bin_names();
    assert_eq!(names, ["< 5", "5", "> 5"]);
    for (at, value, signal) in [
        (2, 4.0, "input.x[five]"),
        (2, 6.0, "input.x[five]"),
        (1, -1.0, "input.x[amount]"),
        (0, f64::INFINITY, "input.x[age]"),
        (0, f64::NAN, "input.x.missing"),
    ] {
        let changed = || {
            let mut seen = draw_row(&mut rng, 0.0);
            let row = &mut seen.tensors[0];
            if let RowValues::Features(features) = &mut row.values {
                features[at] = value;
            }
            row.missing = Some(if value.is_nan() { 1.0 / 7.0 } else { 0.0 });
            seen
        };
        let (_, states) = first_alarm(&baseline, changed, 20, 25).unwrap_or_else(|| panic!("{signal} {value}"));
        let drifted = states.iter().filter(|state| state.verdict == Verdict::Drifted);
        assert_eq!(drifted.map(|state| state.signal.as_str()).collect::<Vec<_>>(), [signal], "{value}");
    }
}

#[test]
fn what_is_over_is_no_alarm_any_more() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let baseline = baseline(&mut rng, 1000);
    let mut panes: Vec<(i64, Pane)> = Vec::new();
    for minute in 0..80 {
        let mut pane = Pane::default();
        let shift = if minute < 30 { 0.8 } else { 0.0 };
        (0..25).for_each(|_| baseline.count(&draw(&mut rng, shift), &mut pane));
        panes.insert(0, (60 * minute, pane));
    }
    let judged = |panes: &[(i64, Pane)]| {
        let suffixes: Vec<Suffix<'_>> =
            panes.iter().map(|(since_s, pane)| Suffix { since_s: *since_s, pane }).collect();
        judge_signals(&baseline, &suffixes, 0, 1440.0, &DriftPolicy::default())
    };
    let alarms = |states: &[SignalState]| states.iter().filter(|state| state.alarm.is_some()).count();
    assert!(alarms(&judged(&panes[50..])) > 0, "while it went on");
    assert_eq!(alarms(&judged(&panes)), 0, "after it was over");
}

#[test]
fn a_baseline_comes_back_as_it_was_and_holds_no_more_than_kilobytes() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let baseline = baseline(&mut rng, 400);
    let bytes = serde_json::to_vec(&baseline).unwrap();
    assert!(bytes.len() < 100_000, "{}", bytes.len());
    assert_eq!(Baseline::parse(&bytes).unwrap(), baseline);
    let unseen = baseline.signals["unseen_tokens"].counts().iter().sum::<u64>();
    assert_eq!(unseen, 400);
    let n_abstained: Vec<u64> = baseline.signals["abstained"].counts().to_vec();
    assert!(n_abstained.contains(&20), "one of twenty: {n_abstained:?}");
}

#[test]
fn hostile_baselines_are_refused() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let sound = serde_json::to_value(baseline(&mut rng, 100)).unwrap();
    let mut broken: Vec<serde_json::Value> = Vec::new();
    let mut with = |pointer: &str, value: serde_json::Value| {
        let mut copy = sound.clone();
        *copy.pointer_mut(pointer).unwrap() = value;
        broken.push(copy);
    };
    with("/highroad_baseline", 2.into());
    with("/signals/n_tokens/edges", serde_json::json!([3.0, 1.0]));
    with("/signals/n_tokens/counts", serde_json::json!([1]));
    with("/signals/language/counts/0", u64::MAX.into());
    with("/signals/language/names/0", "x".repeat(1000).into());
    with("/vocabulary", "zz".into());
    with("/space/cells/0", serde_json::json!([1.0]));
    with("/space/width", (1_u64 << 40).into());
    let mut named = sound.clone();
    named["features"] = serde_json::json!({ "input.x": vec!["a"; 10_000] });
    broken.push(named);
    for copy in broken {
        assert!(Baseline::parse(copy.to_string().as_bytes()).is_err(), "{copy}");
    }
    assert!(Baseline::parse(b"{}").is_err() && Baseline::parse(&vec![b' '; 3 << 20]).is_err());
    let small = BaselineBuilder::default().finish(String::new(), source(), String::new(), String::new());
    assert!(matches!(small, Err(BaselineError::Small { found: 0, .. })));
}
