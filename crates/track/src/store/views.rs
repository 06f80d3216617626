//! What the dashboard reads: pages of a table with only the columns shown, and histories no finer than a screen.

use std::collections::HashMap;

use futures_util::future::try_join_all;
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::experiments::no_experiment;
use super::query::QueryBuilder;
use super::runs::{among, no_run};
use super::search::{ESCAPE, View, push_ids, push_order, push_order_join, push_run_clause};
use super::{PARALLEL_READS, Store};
use crate::TrackError;
use crate::filter::{self, Entity, Key, Order};
use crate::wire::{ExperimentId, Float};

/// A history of at most this many points is returned as it is.
const MAX_EXACT_POINTS: i64 = 2000;

/// An experiment and how much is in it.
#[derive(Debug, Clone, sqlx::FromRow)]
#[allow(missing_docs)]
pub struct ExperimentSummary {
    pub experiment_id: ExperimentId,
    pub name: String,
    pub artifact_location: String,
    pub lifecycle_stage: String,
    pub creation_time: i64,
    /// Active runs.
    pub n_runs: i64,
    /// Of them, those under way.
    pub n_running: i64,
    pub last_start: Option<i64>,
}

/// What a table of runs shows.
#[derive(Debug, Default)]
pub struct TableSearch {
    /// Whose runs.
    pub experiment_ids: Vec<ExperimentId>,
    /// In MLflow's search language.
    pub filter: String,
    /// Part of a run's name, id or user, in any case.
    pub text: String,
    /// Which lifecycle stages.
    pub view: View,
    /// Most important first; newest runs first after that.
    pub orders: Vec<Order>,
    /// What is read of each run besides its attributes.
    pub columns: Vec<Key>,
    /// Rows to pass over.
    pub offset: i64,
    /// Rows to return.
    pub limit: i64,
}

/// One run in a table.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct TableRow {
    pub run_id: String,
    pub experiment_id: ExperimentId,
    pub run_name: String,
    pub user_id: String,
    pub status: String,
    pub start_time: i64,
    pub end_time: Option<i64>,
    pub lifecycle_stage: String,
    /// One for each column asked for.
    pub cells: Vec<Option<CellValue>>,
}

/// What stands in a cell.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum CellValue {
    Number(Float),
    Text(String),
}

/// Rows and how many there are in all.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Table {
    pub rows: Vec<TableRow>,
    pub n_rows: i64,
}

/// A key that runs of an experiment logged.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct KeyInUse {
    pub key: String,
    pub n_runs: i64,
    /// Whether two runs have different values.
    pub varies: bool,
}

/// Which part of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Window {
    Whole,
    /// Steps, both ends included.
    Steps(i64, i64),
    /// Milliseconds since 1970, both ends included.
    Times(i64, i64),
}

/// Points of one metric of one run, by step: all of them, or one for each bucket.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// Step of each point; of a bucket, where it begins.
    pub steps: Vec<i64>,
    /// When it was logged; of a bucket, the first of it.
    pub times: Vec<i64>,
    /// Value, `None` for NaN; of a bucket, the mean.
    pub values: Vec<Option<f64>>,
    /// Smallest and largest value of each bucket; empty where points are exact.
    pub bands: Vec<(f64, f64)>,
    /// Points that were read to make these.
    pub n_points: i64,
}

/// Number of points; smallest, largest and mean value; first step and time.
type Bucket = (i64, Option<f64>, Option<f64>, Option<f64>, Option<i64>, Option<i64>);

/// The axis along which a history is cut into buckets.
#[derive(Clone, Copy)]
enum Axis {
    Step,
    /// Every point has this step, so time is the only order there is.
    TimeAt(i64),
}

impl Store {
    /// Every active experiment (`Some(id)`: that one, deleted or not), the one with the newest run first.
    pub async fn experiment_summaries(&self, id: Option<ExperimentId>) -> Result<Vec<ExperimentSummary>, TrackError> {
        let mut query = QueryBuilder::new(
            "SELECT e.experiment_id, e.name, e.artifact_location, e.lifecycle_stage, e.creation_time,
             (SELECT COUNT(*) FROM runs r WHERE r.experiment_id = e.experiment_id AND r.lifecycle_stage = 'active')
                 AS n_runs,
             (SELECT COUNT(*) FROM runs r WHERE r.experiment_id = e.experiment_id AND r.lifecycle_stage = 'active'
                 AND r.status = 'RUNNING') AS n_running,
             (SELECT MAX(r.start_time) FROM runs r WHERE r.experiment_id = e.experiment_id
                 AND r.lifecycle_stage = 'active') AS last_start
             FROM experiments e WHERE ",
        );
        match id {
            Some(id) => query.push("e.experiment_id = ").push_bind(id),
            None => query.push("e.lifecycle_stage = 'active'"),
        };
        let mut found: Vec<ExperimentSummary> = query.build_query_as().fetch_all(&self.reads).await?;
        if let Some(id) = id
            && found.is_empty()
        {
            return Err(no_experiment(id));
        }
        found.sort_by_key(|experiment| std::cmp::Reverse(experiment.last_start.unwrap_or(experiment.creation_time)));
        Ok(found)
    }

    /// Rows `offset..offset + limit` of the runs that match, and how many match.
    pub async fn run_table(&self, search: &TableSearch) -> Result<Table, TrackError> {
        if search.experiment_ids.is_empty() {
            return Ok(Table { rows: Vec::new(), n_rows: 0 });
        }
        let mut count = QueryBuilder::new("SELECT COUNT(*) FROM runs r");
        push_where(&mut count, search)?;
        let n_rows: i64 = count.build_query_scalar().fetch_one(&self.reads).await?;

        let mut query = QueryBuilder::new(
            "SELECT r.run_id, r.experiment_id, r.run_name, r.user_id, r.status, r.start_time, r.end_time,
             r.lifecycle_stage FROM runs r",
        );
        for (n, order) in search.orders.iter().enumerate() {
            push_order_join(&mut query, n, order);
        }
        push_where(&mut query, search)?;
        query.push(" ORDER BY ");
        for (n, order) in search.orders.iter().enumerate() {
            push_order(&mut query, n, order)?;
        }
        query.push("r.start_time DESC, r.run_id LIMIT ").push_bind(search.limit);
        query.push(" OFFSET ").push_bind(search.offset);
        let found = query.build().fetch_all(&self.reads).await?;
        let mut rows = Vec::with_capacity(found.len());
        for row in &found {
            rows.push(TableRow {
                run_id: row.try_get("run_id")?,
                experiment_id: ExperimentId(row.try_get("experiment_id")?),
                run_name: row.try_get("run_name")?,
                user_id: row.try_get("user_id")?,
                status: row.try_get("status")?,
                start_time: row.try_get("start_time")?,
                end_time: row.try_get("end_time")?,
                lifecycle_stage: row.try_get("lifecycle_stage")?,
                cells: vec![None; search.columns.len()],
            });
        }
        self.fill_cells(&search.columns, &mut rows).await?;
        Ok(Table { rows, n_rows })
    }

    async fn fill_cells(&self, columns: &[Key], rows: &mut [TableRow]) -> Result<(), TrackError> {
        let ids: Vec<String> = rows.iter().map(|row| row.run_id.clone()).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let row_of: HashMap<String, usize> = ids.iter().cloned().zip(0..).collect();
        for (entity, head) in [
            (Entity::Metric, "SELECT run_id, key, value, is_nan FROM latest_metrics WHERE run_id IN ("),
            (Entity::Param, "SELECT run_id, key, value FROM params WHERE run_id IN ("),
            (Entity::Tag, "SELECT run_id, key, value FROM tags WHERE run_id IN ("),
        ] {
            let wanted = columns.iter().enumerate().filter(|(_, column)| column.entity == entity);
            let column_of: HashMap<&str, usize> = wanted.map(|(n, column)| (column.name.as_str(), n)).collect();
            if column_of.is_empty() {
                continue;
            }
            let mut query = among(head, &ids, ") AND key IN (");
            query.push_binds(column_of.keys().copied()).push(")");
            for found in query.build().fetch_all(&self.reads).await? {
                let row = row_of.get(found.try_get::<&str, _>("run_id")?);
                let column = column_of.get(found.try_get::<&str, _>("key")?);
                let (Some(row), Some(column)) = (row, column) else { continue };
                rows[*row].cells[*column] = Some(match entity {
                    Entity::Metric => CellValue::Number(metric_value(&found)?),
                    _ => CellValue::Text(found.try_get("value")?),
                });
            }
        }
        Ok(())
    }

    /// The keys of metrics, params or tags that active runs of an experiment have.
    pub async fn keys_in_use(&self, id: ExperimentId, of: Entity) -> Result<Vec<KeyInUse>, TrackError> {
        let table = match of {
            Entity::Metric => "latest_metrics",
            Entity::Param => "params",
            Entity::Tag => "tags",
            // The rest are no columns of a table of runs.
            _ => return Ok(Vec::new()),
        };
        let mut query = QueryBuilder::new("SELECT x.key, COUNT(*) AS n_runs, ");
        query.push("CASE WHEN MIN(x.value) <> MAX(x.value) THEN 1 ELSE 0 END AS varies FROM ").push(table);
        query.push(" x JOIN runs r ON r.run_id = x.run_id WHERE r.lifecycle_stage = 'active' AND r.experiment_id = ");
        query.push_bind(id).push(" GROUP BY x.key ORDER BY x.key");
        let found: Vec<(String, i64, i64)> = query.build_query_as().fetch_all(&self.reads).await?;
        Ok(found.into_iter().map(|(key, n_runs, varies)| KeyInUse { key, n_runs, varies: varies == 1 }).collect())
    }

    /// One metric of one run, cut into at most `n_buckets` where it has more than 2000 points.
    ///
    /// A bucket keeps its smallest, its largest and its mean value, so that no spike is lost at any zoom: the min/max
    /// aggregation per pixel column of Jugel et al., "M4: A Visualization-Oriented Time Series Data Aggregation" (VLDB
    /// 2014), with the mean in place of the first and last value. Buckets are equally wide in steps, or in time where
    /// all steps are the same. NaN counts only where points are exact.
    pub async fn history(
        &self,
        run_id: &str,
        key: &str,
        window: Window,
        n_buckets: i64,
    ) -> Result<History, TrackError> {
        let (from, to) = match window {
            Window::Whole => (i64::MIN, i64::MAX),
            Window::Steps(from, to) => (from, to),
            Window::Times(from, to) => match self.steps_between(run_id, key, from, to).await? {
                Some(steps) => steps,
                None => return Ok(History::default()),
            },
        };
        let exact = self.exact_points(run_id, key, from, to, window).await?;
        if i64::try_from(exact.steps.len()).is_ok_and(|n| n <= MAX_EXACT_POINTS) {
            return Ok(exact);
        }
        let (axis, first, last) = self.extent(run_id, key, from, to, window).await?;
        self.buckets(run_id, key, axis, first, last, n_buckets.max(1)).await
    }

    async fn steps_between(
        &self,
        run_id: &str,
        key: &str,
        from: i64,
        to: i64,
    ) -> Result<Option<(i64, i64)>, TrackError> {
        let (first, last): (Option<i64>, Option<i64>) = sqlx::query_as(
            "SELECT MIN(step), MAX(step) FROM metrics
             WHERE run_id = $1 AND key = $2 AND timestamp >= $3 AND timestamp <= $4",
        )
        .bind(run_id)
        .bind(key)
        .bind(from)
        .bind(to)
        .fetch_one(&self.reads)
        .await?;
        Ok(first.zip(last))
    }

    /// Up to one point more than [`MAX_EXACT_POINTS`].
    async fn exact_points(
        &self,
        run_id: &str,
        key: &str,
        from: i64,
        to: i64,
        window: Window,
    ) -> Result<History, TrackError> {
        let (earliest, latest) = if let Window::Times(from, to) = window { (from, to) } else { (i64::MIN, i64::MAX) };
        let rows: Vec<(i64, i64, f64, i64)> = sqlx::query_as(
            "SELECT step, timestamp, value, CAST(is_nan AS BIGINT) FROM metrics
             WHERE run_id = $1 AND key = $2 AND step >= $3 AND step <= $4 AND timestamp >= $5 AND timestamp <= $6
             ORDER BY step, timestamp, value LIMIT $7",
        )
        .bind(run_id)
        .bind(key)
        .bind(from)
        .bind(to)
        .bind(earliest)
        .bind(latest)
        .bind(MAX_EXACT_POINTS + 1)
        .fetch_all(&self.reads)
        .await?;
        let mut history = History { n_points: rows.len() as i64, ..History::default() };
        for (step, time, value, is_nan) in rows {
            history.steps.push(step);
            history.times.push(time);
            history.values.push((is_nan == 0).then_some(value));
        }
        Ok(history)
    }

    /// The axis to cut and its first and last place within these steps.
    async fn extent(
        &self,
        run_id: &str,
        key: &str,
        from: i64,
        to: i64,
        window: Window,
    ) -> Result<(Axis, i64, i64), TrackError> {
        let (first, last) = self.ends(Axis::Step, run_id, key, from, to).await?;
        if first < last {
            return Ok((Axis::Step, first, last));
        }
        let axis = Axis::TimeAt(first);
        let (from, to) = if let Window::Times(from, to) = window { (from, to) } else { (i64::MIN, i64::MAX) };
        let (first, last) = self.ends(axis, run_id, key, from, to).await?;
        Ok((axis, first, last))
    }

    /// The first and last place between `from` and `to`; two steps down the index.
    async fn ends(&self, axis: Axis, run_id: &str, key: &str, from: i64, to: i64) -> Result<(i64, i64), TrackError> {
        let mut ends = [0; 2];
        for (end, direction) in ends.iter_mut().zip(["ASC", "DESC"]) {
            let mut query = QueryBuilder::new("SELECT ");
            query.push(axis.column());
            axis.push_where(&mut query, run_id, key);
            query.push(" AND ").push(axis.column()).push(" >= ").push_bind(from);
            query.push(" AND ").push(axis.column()).push(" <= ").push_bind(to);
            query.push(" ORDER BY ").push(axis.column()).push(" ").push(direction).push(" LIMIT 1");
            *end = query.build_query_scalar().fetch_one(&self.reads).await?;
        }
        Ok((ends[0], ends[1]))
    }

    async fn buckets(
        &self,
        run_id: &str,
        key: &str,
        axis: Axis,
        first: i64,
        last: i64,
        n_buckets: i64,
    ) -> Result<History, TrackError> {
        let bounds: Vec<_> = bucket_bounds(first, last, n_buckets).collect();
        let parts = bounds.chunks(bounds.len().div_ceil(PARALLEL_READS).max(1));
        let parts: Vec<_> = parts.map(|bounds| self.some_buckets(run_id, key, axis, bounds)).collect();
        let mut history = History::default();
        for bucket in try_join_all(parts).await?.into_iter().flatten() {
            let (n_points, Some(low), Some(high), Some(mean), Some(step), Some(time)) = bucket else { continue };
            history.steps.push(step);
            history.times.push(time);
            history.values.push(Some(mean));
            history.bands.push((low, high));
            history.n_points += n_points;
        }
        Ok(history)
    }

    // One range of the primary key for each bucket is half the work of one GROUP BY, which would sort every point first.
    async fn some_buckets(
        &self,
        run_id: &str,
        key: &str,
        axis: Axis,
        bounds: &[(i64, i64)],
    ) -> Result<Vec<Bucket>, TrackError> {
        let mut buckets = Vec::with_capacity(bounds.len());
        let mut connection = self.reads.acquire().await?;
        for (from, to) in bounds {
            let mut query: QueryBuilder =
                QueryBuilder::new("SELECT COUNT(*), MIN(value), MAX(value), AVG(value), MIN(step), MIN(timestamp)");
            axis.push_where(&mut query, run_id, key);
            query.push(" AND ").push(axis.column()).push(" >= ").push_bind(*from);
            query.push(" AND ").push(axis.column()).push(" <= ").push_bind(*to).push(" AND is_nan = 0");
            buckets.push(query.build_query_as().fetch_one(&mut *connection).await?);
        }
        Ok(buckets)
    }

    /// When a run began.
    pub async fn run_start(&self, run_id: &str) -> Result<i64, TrackError> {
        let found: Option<i64> = sqlx::query_scalar("SELECT start_time FROM runs WHERE run_id = $1")
            .bind(run_id)
            .fetch_optional(&self.reads)
            .await?;
        found.ok_or_else(|| no_run(run_id))
    }
}

impl Axis {
    fn column(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::TimeAt(_) => "timestamp",
        }
    }

    fn push_where(self, query: &mut QueryBuilder, run_id: &str, key: &str) {
        query.push(" FROM metrics WHERE run_id = ").push_bind(run_id.to_owned());
        query.push(" AND key = ").push_bind(key.to_owned());
        if let Self::TimeAt(step) = self {
            query.push(" AND step = ").push_bind(step);
        }
    }
}

/// `first..=last` in at most `n` equal parts, both ends of each included.
fn bucket_bounds(first: i64, last: i64, n: i64) -> impl Iterator<Item = (i64, i64)> {
    // Steps may lie anywhere in 64 bits, so their distance needs more.
    let (first, last) = (i128::from(first), i128::from(last));
    let n = i128::from(n);
    let width = (last - first + n) / n;
    let starts = (0..n).map(move |i| first + i * width).take_while(move |start| *start <= last);
    starts.map(move |start| (start as i64, (start + width - 1).min(last) as i64))
}

fn push_where(query: &mut QueryBuilder, search: &TableSearch) -> Result<(), TrackError> {
    query.push(" WHERE r.").push(search.view.sql().replace("1 = 1", "run_id IS NOT NULL"));
    query.push(" AND r.experiment_id IN ");
    push_ids(query, &search.experiment_ids);
    for clause in filter::parse(&search.filter)? {
        query.push(" AND ");
        push_run_clause(query, &clause)?;
    }
    let text = search.text.trim();
    if !text.is_empty() {
        let pattern = contains(text);
        for (n, column) in ["r.run_name", "r.run_id", "r.user_id"].into_iter().enumerate() {
            query.push(if n == 0 { " AND (" } else { " OR " });
            query.push("LOWER(").push(column).push(") LIKE ").push_bind(pattern.clone()).push(ESCAPE);
        }
        query.push(")");
    }
    Ok(())
}

/// A `LIKE` pattern for lowered texts that hold `text`, whatever characters it has.
fn contains(text: &str) -> String {
    let mut pattern = String::from("%");
    for c in text.chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        // SQLite's LOWER knows ASCII alone.
        pattern.push(c.to_ascii_lowercase());
    }
    pattern + "%"
}

fn metric_value(row: &AnyRow) -> Result<Float, sqlx::Error> {
    let is_nan: i64 = row.try_get("is_nan")?;
    Ok(Float(if is_nan == 1 { f64::NAN } else { row.try_get("value")? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_every_step_once() {
        let bounds = |first, last, n| bucket_bounds(first, last, n).collect::<Vec<_>>();
        assert_eq!(bounds(0, 9, 3), [(0, 3), (4, 7), (8, 9)]);
        assert_eq!(bounds(5, 6, 800), [(5, 5), (6, 6)]);
        assert_eq!(bounds(7, 7, 4), [(7, 7)]);
        let all = bounds(i64::MIN, i64::MAX, 2);
        assert_eq!(all, [(i64::MIN, -1), (0, i64::MAX)]);
    }

    #[test]
    fn a_quick_text_is_taken_literally() {
        assert_eq!(contains("50%_A\\"), r"%50\%\_a\\%");
    }
}
