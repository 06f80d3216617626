//! What runs log, on its way to the disk: batches that wait at the same time are committed together.
//!
//! One task writes. While it waits for the disk the next batches gather, so the cost of a durable commit is shared by
//! whoever asks for one, and nobody waits for a timer.

use std::collections::HashMap;

use sqlx::{AnyConnection, AnyPool, AssertSqlSafe, SqlSafeStr as _, SqlStr};
use tokio::sync::{mpsc, oneshot};

use super::runs::{Batch, active_run, put_param, put_tag};
use super::{Database, logged_models};
use crate::TrackError;
use crate::wire::{Metric, Pair};

/// Most batches in one transaction.
const MAX_GROUP: usize = 64;
/// Batches that may wait; more wait in their connections.
const MAX_WAITING: usize = 256;
/// Rows of one statement, most first: any number of rows is made of few statements, each prepared once.
const POINTS_PER_STATEMENT: [usize; 4] = [1000, 100, 10, 1];
const SERIES_PER_STATEMENT: [usize; 3] = [100, 10, 1];

/// The way in. Cheap to clone; the writing task ends with the last of them.
#[derive(Debug, Clone)]
pub(super) struct Ingest(mpsc::Sender<Waiting>);

/// A batch and who waits for it.
#[derive(Debug)]
struct Waiting {
    batch: Prepared,
    done: oneshot::Sender<Result<(), TrackError>>,
}

/// A batch as it is written, made by the caller so that the writing task has the less to do.
#[derive(Debug)]
pub(super) struct Prepared {
    run_id: String,
    params: Vec<Pair>,
    tags: Vec<Pair>,
    /// The metrics' names, each once, with its newest point.
    series: Vec<(String, Point)>,
    /// Every point and the index of its series.
    points: Vec<(usize, Point)>,
    /// Metrics that were measured on a logged model.
    on_models: Vec<Metric>,
}

#[derive(Debug, Clone, Copy)]
struct Point {
    step: i64,
    timestamp: i64,
    value: f64,
    is_nan: i64,
}

impl Ingest {
    /// Starts the writing task over the only connection that writes.
    pub(super) fn start(database: Database, writes: AnyPool) -> Self {
        let (sender, waiting) = mpsc::channel(MAX_WAITING);
        tokio::spawn(Writer::new(database, writes).run(waiting));
        Self(sender)
    }

    /// Writes a batch; when this returns it is on the disk.
    pub(super) async fn commit(&self, batch: Prepared) -> Result<(), TrackError> {
        let closed = || TrackError::Database(sqlx::Error::PoolClosed);
        let (done, written) = oneshot::channel();
        self.0.send(Waiting { batch, done }).await.map_err(|_| closed())?;
        written.await.map_err(|_| closed())?
    }
}

impl Prepared {
    pub(super) fn new(run_id: &str, batch: &Batch) -> Self {
        let mut series: Vec<(String, Point)> = Vec::new();
        let mut index: HashMap<&str, usize> = HashMap::new();
        let mut points = Vec::with_capacity(batch.metrics.len());
        for metric in &batch.metrics {
            let point = Point::of(metric);
            let at = *index.entry(&metric.key).or_insert_with(|| {
                series.push((metric.key.clone(), point));
                series.len() - 1
            });
            series[at].1 = series[at].1.newer(point);
            points.push((at, point));
        }
        let on_model = |metric: &&Metric| metric.model_id.as_deref().is_some_and(|id| !id.is_empty());
        Self {
            run_id: run_id.to_owned(),
            params: batch.params.clone(),
            tags: batch.tags.clone(),
            series,
            points,
            on_models: batch.metrics.iter().filter(on_model).cloned().collect(),
        }
    }
}

impl Point {
    fn of(metric: &Metric) -> Self {
        let (value, is_nan) = if metric.value.0.is_nan() { (0.0, 1) } else { (metric.value.0, 0) };
        Self { step: metric.step, timestamp: metric.timestamp, value, is_nan }
    }

    /// The later of two by step, time and value; the other one where they are equal.
    fn newer(self, other: Self) -> Self {
        let key = |point: Self| (point.step, point.timestamp, point.value);
        if key(other) >= key(self) { other } else { self }
    }
}

/// The task that writes, and its statements by their number of rows.
struct Writer {
    database: Database,
    writes: AnyPool,
    points: Vec<(usize, SqlStr)>,
    series: Vec<(usize, SqlStr)>,
}

impl Writer {
    fn new(database: Database, writes: AnyPool) -> Self {
        let statement = |n_rows: usize, text: &dyn Fn(String) -> String, n_columns: usize| {
            (n_rows, AssertSqlSafe(text(rows(&database, n_rows, n_columns))).into_sql_str())
        };
        let points = POINTS_PER_STATEMENT.map(|n| statement(n, &insert_points, 5)).to_vec();
        let series = SERIES_PER_STATEMENT.map(|n| statement(n, &upsert_series, 6)).to_vec();
        Self { database, writes, points, series }
    }

    async fn run(self, mut waiting: mpsc::Receiver<Waiting>) {
        let mut group = Vec::with_capacity(MAX_GROUP);
        while waiting.recv_many(&mut group, MAX_GROUP).await > 0 {
            let (batches, who): (Vec<_>, Vec<_>) = group.drain(..).map(|each| (each.batch, each.done)).unzip();
            for (done, written) in who.into_iter().zip(self.write_each(&batches).await) {
                // Who no longer waits has hung up, and its batch is kept all the same.
                drop(done.send(written));
            }
        }
    }

    /// All in one transaction, or each in its own where that fails: one bad batch must not refuse the others.
    async fn write_each(&self, batches: &[Prepared]) -> Vec<Result<(), TrackError>> {
        match self.write(batches).await {
            Ok(()) => batches.iter().map(|_| Ok(())).collect(),
            Err(error) if batches.len() == 1 => vec![Err(error)],
            Err(_) => {
                let mut written = Vec::with_capacity(batches.len());
                for batch in batches {
                    written.push(self.write(std::slice::from_ref(batch)).await);
                }
                written
            }
        }
    }

    async fn write(&self, batches: &[Prepared]) -> Result<(), TrackError> {
        let mut tx = self.writes.begin_with(self.database.begin_write()).await?;
        for batch in batches {
            let experiment_id = active_run(&mut tx, &batch.run_id).await?;
            for param in &batch.params {
                put_param(&mut tx, &batch.run_id, param).await?;
            }
            for metric in &batch.on_models {
                logged_models::put_metric(&mut tx, &batch.run_id, experiment_id, metric).await?;
            }
            for tag in &batch.tags {
                put_tag(&mut tx, &batch.run_id, tag).await?;
            }
        }
        self.write_points(&mut tx, batches).await?;
        Ok(tx.commit().await?)
    }

    async fn write_points(&self, tx: &mut AnyConnection, batches: &[Prepared]) -> Result<(), TrackError> {
        let mut newest: HashMap<(&str, &str), Point> = HashMap::new();
        for batch in batches {
            for (key, point) in &batch.series {
                let kept = newest.entry((&batch.run_id, key)).or_insert(*point);
                *kept = kept.newer(*point);
            }
        }
        let newest: Vec<_> = newest.into_iter().collect();
        let numbers = self.write_series(tx, &newest).await?;
        let mut points = Vec::with_capacity(batches.iter().map(|batch| batch.points.len()).sum());
        for batch in batches {
            let of_batch: Vec<i64> =
                batch.series.iter().map(|(key, _)| numbers[&(batch.run_id.as_str(), key.as_str())]).collect();
            points.extend(batch.points.iter().map(|(at, point)| (of_batch[*at], *point)));
        }
        for (sql, points) in pieces(&self.points, &points) {
            let mut query = sqlx::query(sql.clone());
            for (series_id, point) in points {
                query = query.bind(*series_id).bind(point.step).bind(point.timestamp);
                query = query.bind(point.is_nan).bind(point.value);
            }
            query.execute(&mut *tx).await?;
        }
        Ok(())
    }

    /// Keeps the newest point of each series and tells its number.
    async fn write_series<'a>(
        &self,
        tx: &mut AnyConnection,
        newest: &[((&'a str, &'a str), Point)],
    ) -> Result<HashMap<(&'a str, &'a str), i64>, TrackError> {
        let mut numbers = HashMap::with_capacity(newest.len());
        for (sql, series) in pieces(&self.series, newest) {
            let mut query = sqlx::query_as(sql.clone());
            for ((run_id, key), point) in series {
                query = query.bind(*run_id).bind(*key).bind(point.step).bind(point.timestamp);
                query = query.bind(point.value).bind(point.is_nan);
            }
            let rows: Vec<(String, String, i64)> = query.fetch_all(&mut *tx).await?;
            let by_name: HashMap<_, _> =
                rows.iter().map(|(run_id, key, id)| ((run_id.as_str(), key.as_str()), *id)).collect();
            numbers.extend(series.iter().map(|(name, _)| (*name, by_name[name])));
        }
        Ok(numbers)
    }
}

/// `items` cut into as few pieces as there are statements for.
fn pieces<'a, T>(statements: &'a [(usize, SqlStr)], mut items: &'a [T]) -> impl Iterator<Item = (&'a SqlStr, &'a [T])> {
    std::iter::from_fn(move || {
        let (n_rows, sql) = statements.iter().find(|(n_rows, _)| *n_rows <= items.len())?;
        let (piece, rest) = items.split_at(*n_rows);
        items = rest;
        Some((sql, piece))
    })
}

/// `(…), (…)` with a placeholder for every value.
fn rows(database: &Database, n_rows: usize, n_columns: usize) -> String {
    let placeholder = |n: usize| match database {
        // Numbered ones are names to SQLite, which looks each up among all.
        Database::Sqlite(_) => "?".to_owned(),
        Database::Postgres(_) => format!("${}", n + 1),
    };
    let row = |row: usize| {
        let values: Vec<_> = (0..n_columns).map(|column| placeholder(row * n_columns + column)).collect();
        format!("({})", values.join(", "))
    };
    (0..n_rows).map(row).collect::<Vec<_>>().join(", ")
}

/// The same value at the same step and time is a retry, not a second measurement.
fn insert_points(rows: String) -> String {
    format!("INSERT INTO points (series_id, step, timestamp, is_nan, value) VALUES {rows} ON CONFLICT DO NOTHING")
}

fn upsert_series(rows: String) -> String {
    let newer = |column: &str| {
        format!(
            "{column} = CASE WHEN (excluded.step, excluded.timestamp, excluded.value)
                 >= (latest_metrics.step, latest_metrics.timestamp, latest_metrics.value)
                 THEN excluded.{column} ELSE latest_metrics.{column} END"
        )
    };
    format!(
        "INSERT INTO latest_metrics (run_id, key, step, timestamp, value, is_nan) VALUES {rows}
         ON CONFLICT (run_id, key) DO UPDATE SET {} RETURNING run_id, key, series_id",
        ["step", "timestamp", "value", "is_nan"].map(newer).join(", ")
    )
}
