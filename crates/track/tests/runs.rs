//! What a run logged comes back as it was, from either database.
#![allow(clippy::unwrap_used)]

use highroad_track::wire::{ExperimentId, Float, Metric, Pair};
use highroad_track::{Batch, Millis, NewRun, RunSearch, Tracker};
use rstest::rstest;

mod place;
use place::Kind;

const N_VALUES: u64 = 900;

fn metric(n: usize, value: f64) -> Metric {
    let key = format!("m{n:04}");
    let (timestamp, step) = (i64::MAX, -1);
    let value = Float(value);
    Metric { key, value, timestamp, step, dataset_name: None, dataset_digest: None, model_id: None, run_id: None }
}

/// Numbers of every size up to 10^±28, with all 53 bits in use.
fn ordinary() -> impl Iterator<Item = f64> {
    (0..N_VALUES).map(|n| {
        let bits = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let sign = if bits & 1 == 0 { 1.0 } else { -1.0 };
        sign * (1.0 + (bits >> 12) as f64 * f64::EPSILON) * 2f64.powi((bits % 186) as i32 - 93)
    })
}

fn new_run(run_id: &str) -> NewRun {
    NewRun {
        run_id: run_id.into(),
        experiment_id: ExperimentId(0),
        fallback_name: "name".into(),
        run_name: None,
        user_id: String::new(),
        start_time: Millis(1),
        tags: Vec::new(),
    }
}

#[rstest]
#[tokio::test]
async fn every_number_comes_back_bit_for_bit(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let (setup, _kept) = kind.place();
    let tracker = Tracker::open(setup).await.unwrap();
    let extreme = [f64::MAX, f64::MIN, f64::MIN_POSITIVE, 5e-324, 1.2345678901234567e-200, 3.025_137_338_155_139e240];
    let runs: [(&str, Vec<f64>); 3] =
        [("a", ordinary().collect()), ("b", extreme.to_vec()), ("c", vec![0.0, 0.1, -1e15, 1e30, f64::NAN])];
    for (run_id, values) in &runs {
        tracker.store().create_run(new_run(run_id)).await.unwrap();
        let metrics = values.iter().enumerate().map(|(n, value)| metric(n, *value)).collect();
        tracker.store().log_batch(run_id, &Batch { metrics, ..Batch::default() }).await.unwrap();
    }
    let order_by = vec!["attributes.run_id ASC".to_owned()];
    let search = RunSearch { experiment_ids: vec![ExperimentId(0)], order_by, ..RunSearch::default() };
    let found = tracker.store().search_runs(&search).await.unwrap().items;
    for (run, (run_id, values)) in found.iter().zip(&runs) {
        assert_eq!((run.info.run_id.as_str(), run.data.metrics.len()), (*run_id, values.len()));
        for (metric, value) in run.data.metrics.iter().zip(values) {
            assert_eq!(metric.value.0.to_bits(), value.to_bits(), "{} of {run_id}", metric.key);
            assert_eq!((metric.timestamp, metric.step), (i64::MAX, -1));
        }
    }
}

#[rstest]
#[tokio::test]
async fn every_text_comes_back_in_order(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let (setup, _kept) = kind.place();
    let tracker = Tracker::open(setup).await.unwrap();
    let texts = ["", "\"", "\\u0041", "[1, {", "\u{1}\t\n\u{7f}", "Größe 🛣️ \u{2028}", "null"];
    let params: Vec<Pair> =
        texts.iter().enumerate().map(|(n, text)| Pair { key: format!("p{n}"), value: (*text).into() }).collect();
    tracker.store().create_run(new_run("a")).await.unwrap();
    let reversed = params.iter().rev().cloned().collect();
    let batch = Batch { params: reversed, tags: params.clone(), ..Batch::default() };
    tracker.store().log_batch("a", &batch).await.unwrap();
    let data = tracker.store().run("a").await.unwrap().data;
    assert_eq!(data.params, params);
    assert_eq!(data.tags[1..], params, "after `mlflow.runName`");
}
