//! What `benches/monitor.py` replays: traffic drawn from rows, looked at after every pane, against baselines drawn from other rows. JSON on
//! stdin; for each replay the requests until each signal alarmed, and how often single tests would have, on stdout.

#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;

use highroad_eval::drift::{Baseline, BaselineBuilder, DriftPolicy, Observation, Pane, Source, Suffix, judge_signals};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Replays {
    baseline: Vec<Row>,
    live: Vec<Row>,
    /// Rows of each baseline, drawn without order; requests of each replay and of each pane.
    n_baseline: usize,
    n_requests: usize,
    pane: usize,
    n_replays: u64,
    /// Requests of the traffic that single tests are taken of.
    window: usize,
}

#[derive(Clone, Deserialize)]
struct Row {
    numbers: BTreeMap<String, f64>,
    classes: BTreeMap<String, String>,
    tokens: Vec<u32>,
}

#[derive(Serialize)]
struct Replay {
    /// By signal, requests until it alarmed.
    alarms: BTreeMap<String, usize>,
    /// Windows of which a signal's index passed 0.2, of which a p-value was below 0.05, and all.
    n_index: usize,
    n_p: usize,
    n_windows: usize,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let replays: Replays = serde_json::from_reader(std::io::stdin())?;
    let one = |seed| replay(&replays, seed);
    let all = (0..replays.n_replays).map(one).collect::<Result<Vec<_>, _>>()?;
    println!("{}", serde_json::to_string(&all)?);
    Ok(())
}

fn replay(replays: &Replays, seed: u64) -> Result<Replay, Box<dyn std::error::Error>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut builder = BaselineBuilder::default();
    for _ in 0..replays.n_baseline {
        builder.add(observation(&replays.baseline[rng.random_range(0..replays.baseline.len())]));
    }
    let source = Source { kind: "data".to_owned(), name: String::new(), digest: String::new() };
    let baseline: Baseline = builder.finish(String::new(), source, String::new(), String::new())?;
    let (policy, mut panes, mut found) = (DriftPolicy::default(), Vec::<(i64, Pane)>::new(), BTreeMap::new());
    let (mut n_index, mut n_p, mut n_windows) = (0, 0, 0);
    for n_pane in 0..replays.n_requests / replays.pane {
        let mut pane = Pane::default();
        for _ in 0..replays.pane {
            baseline.count(&observation(&replays.live[rng.random_range(0..replays.live.len())]), &mut pane);
        }
        panes.insert(0, (60 * n_pane as i64, pane));
        let suffixes: Vec<Suffix<'_>> =
            panes.iter().map(|(since_s, pane)| Suffix { since_s: *since_s, pane }).collect();
        let n_done = (n_pane + 1) * replays.pane;
        let window_since_s = 60 * (n_pane as i64 + 1 - (replays.window / replays.pane) as i64);
        let states = judge_signals(&baseline, &suffixes, window_since_s, 1440.0, &policy);
        for state in states.iter().filter(|state| state.alarm.is_some()) {
            found.entry(state.signal.clone()).or_insert(n_done);
        }
        if n_done.is_multiple_of(replays.window) {
            n_windows += 1;
            n_index += usize::from(states.iter().any(|state| state.psi > 0.2));
            n_p += usize::from(states.iter().any(|state| state.p < 0.05));
        }
    }
    Ok(Replay { alarms: found, n_index, n_p, n_windows })
}

fn observation(row: &Row) -> Observation {
    // Names live as long as the program: there are a handful.
    let name = |name: &String| -> &'static str {
        ["n_chars", "n_tokens", "confidence", "label"].into_iter().find(|known| known == name).unwrap_or("other")
    };
    Observation {
        numbers: row.numbers.iter().map(|(of, value)| (name(of), *value)).collect(),
        classes: row.classes.iter().map(|(of, class)| (name(of), class.clone())).collect(),
        tokens: row.tokens.clone(),
        ..Observation::default()
    }
}
