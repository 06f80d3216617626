//! What the dashboard asks for, over HTTP and on both databases.
#![allow(clippy::unwrap_used)]

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use highroad_track::Tracker;
use rstest::rstest;
use serde_json::{Value, json};
use tower::ServiceExt as _;

mod place;
use place::{Kept, Kind};

const N_LONG: i64 = 3000;
const SPIKE_AT: i64 = 1234;

struct House {
    router: Router,
    runs: Vec<String>,
    _kept: Kept,
}

impl House {
    /// Three runs; the first has a long history with a spike, and one that never counted steps.
    async fn new(kind: Kind) -> Self {
        let (setup, _kept) = kind.place();
        let tracker = Tracker::open(setup).await.unwrap();
        let mut house = Self { router: tracker.server(), runs: Vec::new(), _kept };
        for n in 0..3 {
            let run = json!({ "experiment_id": "0", "run_name": format!("Run_{n}"), "start_time": 1000 + n });
            let made = house.post("/api/2.0/mlflow/runs/create", run).await;
            let id = made["run"]["info"]["run_id"].as_str().unwrap().to_owned();
            let params = json!([{ "key": "seed", "value": "7" }, { "key": "lr", "value": format!("0.{n}") }]);
            house.log(&id, json!({ "params": params, "metrics": [point("f1", f64::from(n), 5, 0)] })).await;
            house.runs.push(id);
        }
        let first = house.runs[0].clone();
        for start in (0..N_LONG).step_by(500) {
            let long = (start..start + 500).map(|n| point("long", if n == SPIKE_AT { 100.0 } else { 1.0 }, n, n));
            let stepless = (start..start + 500).map(|n| point("stepless", (n % 7) as f64, n * 10, 0));
            house.log(&first, json!({ "metrics": long.chain(stepless).collect::<Vec<_>>() })).await;
        }
        house
    }

    async fn log(&self, run_id: &str, mut batch: Value) {
        batch["run_id"] = json!(run_id);
        self.post("/api/2.0/mlflow/runs/log-batch", batch).await;
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let request = Request::post(path).header("content-type", "application/json");
        self.answer(request.body(Body::from(body.to_string())).unwrap()).await
    }

    async fn get(&self, path: &str) -> Value {
        self.answer(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn answer(&self, request: Request<Body>) -> Value {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = to_bytes(response.into_body(), 4 << 20).await.unwrap();
        assert!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&bytes));
        serde_json::from_slice(&bytes).unwrap()
    }

    async fn table(&self, over: Value) -> (Vec<String>, Value) {
        let mut query =
            json!({ "experiment_ids": ["0"], "limit": 10, "columns": ["params.lr", "metrics.f1", "tags.no"] });
        query.as_object_mut().unwrap().extend(over.as_object().unwrap().clone());
        let page = self.post("/ui/api/runs/table", query).await;
        let names = page["rows"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned());
        (names.collect(), page)
    }

    async fn series(&self, key: &str, window: Value) -> Value {
        let query = json!({ "run_ids": [self.runs[0]], "keys": [key], "buckets": 100, "window": window });
        self.post("/ui/api/series", query).await["series"][0].clone()
    }
}

fn point(key: &str, value: f64, timestamp: i64, step: i64) -> Value {
    json!({ "key": key, "value": value, "timestamp": timestamp, "step": step })
}

#[rstest]
#[tokio::test]
async fn a_table_is_sorted_filtered_and_cut(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let house = House::new(kind).await;
    let (names, page) = house.table(json!({})).await;
    assert_eq!((names, &page["n_rows"]), (vec!["Run_2".into(), "Run_1".into(), "Run_0".into()], &json!(3)));
    assert_eq!(page["rows"][0]["cells"], json!(["0.2", 2.0, null]));
    let by = json!([{ "column": "metrics.f1" }]);
    assert_eq!(house.table(json!({ "order_by": by, "offset": 1, "limit": 1 })).await.0, ["Run_1"]);
    assert_eq!(house.table(json!({ "filter": "metrics.f1 > 0 AND params.lr = '0.2'" })).await.0, ["Run_2"]);
    assert_eq!(house.table(json!({ "text": "RUN_1" })).await.0, ["Run_1"]);
    assert_eq!(house.table(json!({ "text": "%" })).await.0, Vec::<String>::new());
    assert_eq!(house.table(json!({ "view": "deleted" })).await.1["n_rows"], 0);
}

#[rstest]
#[tokio::test]
async fn experiments_tell_their_runs_and_keys(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let house = House::new(kind).await;
    let experiment = house.get("/ui/api/experiments").await["experiments"][0].clone();
    assert_eq!(
        (&experiment["n_runs"], &experiment["n_running"], &experiment["last_start"]),
        (&json!(3), &json!(3), &json!(1002))
    );
    let keys = house.get("/ui/api/experiments/0/keys").await;
    let expected =
        json!([{ "key": "lr", "n_runs": 3, "varies": true }, { "key": "seed", "n_runs": 3, "varies": false }]);
    assert_eq!(keys["params"], expected);
}

#[rstest]
#[tokio::test]
async fn a_long_history_is_cut_and_keeps_its_spike(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let house = House::new(kind).await;
    let highest = |series: &Value| {
        let highs = series["highs"].as_array().unwrap();
        (highs.len(), highs.iter().map(|high| high.as_f64().unwrap()).fold(f64::MIN, f64::max))
    };
    let cut = house.series("long", Value::Null).await;
    assert_eq!((highest(&cut), &cut["n_points"]), ((100, 100.0), &json!(N_LONG)));
    let near = house.series("long", json!({ "by": "step", "from": SPIKE_AT, "to": SPIKE_AT + 1 })).await;
    assert_eq!((&near["values"], &near["highs"]), (&json!([100.0, 1.0]), &json!([])));
    let timed = house.series("long", json!({ "by": "time", "from": SPIKE_AT - 1, "to": SPIKE_AT })).await;
    assert_eq!(timed["values"], json!([1.0, 100.0]));
    let stepless = house.series("stepless", Value::Null).await;
    assert_eq!((highest(&stepless), &stepless["n_points"]), ((100, 6.0), &json!(N_LONG)));
    assert!(house.series("unknown", Value::Null).await.is_null());
}
