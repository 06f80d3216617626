use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::runs::at_most;
use crate::api::{Args, Edge};
use crate::store::{History, Window};
use crate::{TrackError, Tracker};

/// Lines in one answer; a chart with more tells nothing.
const MAX_SERIES: usize = 200;
/// A screen has no more pixel columns.
const MAX_BUCKETS: i64 = 4000;

/// Which histories, and how finely.
#[derive(Deserialize, ToSchema)]
pub struct SeriesQuery {
    run_ids: Vec<String>,
    /// Every one of these metrics of every run; at most 200 histories.
    keys: Vec<String>,
    /// Parts that a history of more than 2000 points is cut into: the width of the chart in pixels.
    #[serde(default = "default_buckets")]
    buckets: i64,
    /// The part shown; all of it without.
    #[serde(default)]
    window: Option<SeriesWindow>,
}

fn default_buckets() -> i64 {
    800
}

/// Both ends are included.
#[derive(Deserialize, ToSchema)]
pub struct SeriesWindow {
    by: XAxis,
    from: i64,
    to: i64,
}

/// What `from` and `to` count: steps, milliseconds since 1970, or milliseconds since the run began.
#[derive(Deserialize, ToSchema, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub enum XAxis {
    Step,
    Time,
    Relative,
}

#[derive(Serialize, ToSchema)]
pub struct SeriesList {
    /// Only histories that have a point.
    series: Vec<Series>,
}

/// One metric of one run, by step.
#[derive(Serialize, ToSchema)]
pub struct Series {
    run_id: String,
    key: String,
    /// When the run began.
    run_started: i64,
    /// Points in the database that these stand for.
    n_points: i64,
    steps: Vec<i64>,
    times: Vec<i64>,
    /// The value, null for NaN; where there are `lows`, the mean of a bucket.
    values: Vec<Option<f64>>,
    /// The smallest value of each bucket; empty where every point is here.
    lows: Vec<f64>,
    highs: Vec<f64>,
}

/// Histories of metrics, at most one point for each pixel column.
#[utoipa::path(post, operation_id = "query_series", path = "/series", request_body = SeriesQuery, responses((status = OK, body = SeriesList)))]
pub async fn query(State(tracker): State<Tracker>, Args(query): Args<SeriesQuery>) -> Result<Json<SeriesList>, Edge> {
    at_most("run_ids x keys", query.run_ids.len().saturating_mul(query.keys.len()), MAX_SERIES)?;
    if !(1..=MAX_BUCKETS).contains(&query.buckets) {
        return Err(TrackError::Invalid(format!("`buckets` must be 1 to {MAX_BUCKETS}")).into());
    }
    let mut series = Vec::new();
    for run_id in &query.run_ids {
        let run_started = tracker.store.run_start(run_id).await?;
        let window = query.window.as_ref().map_or(Window::Whole, |window| window.of_run(run_started));
        for key in &query.keys {
            let history = tracker.store.history(run_id, key, window, query.buckets).await?;
            if !history.steps.is_empty() {
                series.push(shown(run_id, key, run_started, history));
            }
        }
    }
    Ok(Json(SeriesList { series }))
}

impl SeriesWindow {
    fn of_run(&self, started: i64) -> Window {
        match self.by {
            XAxis::Step => Window::Steps(self.from, self.to),
            XAxis::Time => Window::Times(self.from, self.to),
            XAxis::Relative => Window::Times(started.saturating_add(self.from), started.saturating_add(self.to)),
        }
    }
}

fn shown(run_id: &str, key: &str, run_started: i64, history: History) -> Series {
    let (lows, highs) = history.bands.into_iter().unzip();
    Series {
        run_id: run_id.to_owned(),
        key: key.to_owned(),
        run_started,
        n_points: history.n_points,
        steps: history.steps,
        times: history.times,
        values: history.values,
        lows,
        highs,
    }
}
