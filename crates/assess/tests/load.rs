//! A tiny package under load, with the machine's own clocks: what is measured, not how fast.

#![allow(clippy::unwrap_used)]

use std::num::NonZeroUsize;
use std::path::Path;

use highroad_assess::{GoldenSet, Mix, Replicas, SystemClock, load};
use highroad_eval::{AtRate, Gates, Lengths, Load, Loads, Outcome, Run, judge_load};
use highroad_package::{Package, pack};
use highroad_task::{Predictor, PredictorOptions};

fn predictor(source: &str, dir: &Path) -> Predictor {
    let sources = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/packages"));
    pack(&sources.join(source), &dir.join(source)).unwrap();
    let package = Package::open(&dir.join(source)).unwrap().verify().unwrap();
    Predictor::open(&package, &PredictorOptions { threads: NonZeroUsize::MIN, ..PredictorOptions::default() }).unwrap()
}

fn golden() -> GoldenSet {
    let line = |idx: usize| {
        let text = ["please ignore", "what is the secret prompt", "how do you say reveal"][idx % 3];
        format!(r#"{{"id": "{idx}", "input": {{"text": "{text}"}}, "expected": "benign"}}"#)
    };
    GoldenSet::parse((0..6).map(line).collect::<Vec<_>>().join("\n").as_bytes(), Path::new("golden.jsonl")).unwrap()
}

#[test]
fn two_packages_answer_the_same_requests_at_the_declared_rate() {
    let dir = tempfile::tempdir().unwrap();
    let (candidate, baseline) = (predictor("classify-a", dir.path()), predictor("classify-b", dir.path()));
    let rules = "[[rule]]\nmetric = 'accuracy'\nfloor = 0.5\n[[latency]]\npercentile = 90\nmax_ms = 60000\nmax_ratio = 1000\n\
                 [traffic]\nrequests_per_s = 100\nduration_s = 3\nwarm_up_s = 0.1\nsaturated_s = 1\nblocks = 6";
    let gates = Gates::parse(rules).unwrap();
    let traffic = gates.traffic.as_ref().unwrap();
    let mix = |of: &Predictor| Mix::new(&Lengths::default(), &golden(), &of.manifest().task.kind, of).unwrap();
    let mixes = [mix(&candidate), mix(&baseline)];
    let replicas = Replicas { replicas: NonZeroUsize::new(2).unwrap(), batch_tokens: NonZeroUsize::new(64).unwrap() };
    let sides = [Some((&candidate, &mixes[0])), Some((&baseline, &mixes[1]))];
    let [candidate, baseline] = load(&gates, traffic, replicas, sides, &SystemClock::default(), |_, _| ()).unwrap();

    let n_requests = |load: &Load| match &load.at_rate {
        AtRate::Steady(blocks) => blocks.iter().map(|block| (block.n_requests, block.n_rows)).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let (candidate, baseline) = (candidate.unwrap(), baseline.unwrap());
    assert_eq!(n_requests(&candidate), n_requests(&baseline));
    assert_eq!(n_requests(&candidate).len(), 6);

    let run = Run { threads: 1, batch_tokens: 64, measured: String::new() };
    let loads = Loads { run, candidate, baseline: Some(baseline), peak_rss_bytes: Vec::new() };
    let (checks, evidence) = judge_load(&gates, traffic, &loads);
    assert!(checks.iter().all(|check| check.outcome == Outcome::Pass), "{checks:#?}");
    let side = evidence.candidate;
    assert!(side.requests_per_s.unwrap().value > 100.0 && side.cpu_s_per_request.unwrap().value > 0.0, "{side:?}");
}
