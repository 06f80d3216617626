use std::collections::{BTreeMap, HashMap};

use serde_json::Value as Json;
use sqlx::{AnyConnection, Row as _};

use super::experiments::active_experiment;
use super::query::QueryBuilder;
use super::runs::among;
use super::search::{Page, compare_number, compare_text, page_bounds, page_of, push_ids};
use super::{Millis, Store, required};
use crate::TrackError;
use crate::filter::{self, Clause, Direction, Entity, Test};
use crate::limits;
use crate::wire::ExperimentId;

/// The tag that carries a trace's name.
pub(crate) const NAME_TAG: &str = "mlflow.traceName";
/// The tag that tells clients where `traces.json` is.
const ARTIFACT_TAG: &str = "mlflow.artifactLocation";
/// The tag that tells clients that spans are kept here rather than in `traces.json`.
const SPANS_TAG: (&str, &str) = ("mlflow.trace.spansLocation", "TRACKING_STORE");
/// The metadata that says that the client has told the whole of a trace; spans that come later do not change it.
const FINALIZED: &str = "mlflow.trace.infoFinalized";
/// The metadata that names the run a trace was made in.
const RUN_METADATA: &str = "mlflow.sourceRun";

/// What a trace is.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct TraceInfo {
    pub trace_id: String,
    pub experiment_id: ExperimentId,
    pub request_time: i64,
    pub execution_duration: Option<i64>,
    pub state: String,
    pub client_request_id: Option<String>,
    pub request_preview: Option<String>,
    pub response_preview: Option<String>,
    pub tags: BTreeMap<String, String>,
    pub metadata: BTreeMap<String, String>,
    /// As clients sent them.
    pub assessments: Vec<Json>,
}

/// One span, and what searches ask of it.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Span {
    pub trace_id: String,
    pub span_id: String,
    pub start_ns: i64,
    pub end_ns: i64,
    pub name: String,
    pub kind: String,
    pub status: String,
    /// What a root span says of its whole trace; none for the others.
    pub root: Option<Previews>,
    /// As clients read it.
    pub content: Json,
}

/// The beginnings of what went into a trace and what came out.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Previews {
    pub request: Option<String>,
    pub response: Option<String>,
}

/// A feedback, an expectation or an issue about a trace.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Assessment {
    pub assessment_id: String,
    pub trace_id: String,
    pub name: String,
    pub kind: &'static str,
    /// Its value as text, which searches compare.
    pub value: String,
    pub overrides: Option<String>,
    pub created: Millis,
    pub content: Json,
}

/// What `traces/search` asks.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct TraceSearch {
    pub experiment_ids: Vec<ExperimentId>,
    pub filter: String,
    pub order_by: Vec<String>,
    pub max_results: i64,
    pub page_token: String,
}

/// Which traces of an experiment are deleted.
#[derive(Debug)]
pub enum TracesToDelete {
    /// These.
    Ids(Vec<String>),
    /// At most so many of those up to this moment, oldest first.
    Until(Millis, i64),
}

impl Store {
    /// What a client says of a whole trace, at its end. Spans may have come before.
    pub async fn put_trace(&self, info: TraceInfo) -> Result<TraceInfo, TrackError> {
        required("trace.trace_info.trace_id", &info.trace_id)?;
        let mut tx = self.write().await?;
        let location = active_experiment(&mut tx, info.experiment_id).await?;
        put_info(&mut tx, &info).await?;
        let artifacts = format!("{location}/traces/{}/artifacts", info.trace_id);
        put_text(&mut tx, "trace_tags", &info.trace_id, ARTIFACT_TAG, &artifacts).await?;
        put_text(&mut tx, "trace_metadata", &info.trace_id, FINALIZED, "true").await?;
        for (key, value) in &info.tags {
            put_tag(&mut tx, &info.trace_id, key, value).await?;
        }
        for (key, value) in &info.metadata {
            put_text(&mut tx, "trace_metadata", &info.trace_id, key, value).await?;
        }
        tx.commit().await?;
        self.trace_info(&info.trace_id).await
    }

    /// Keeps spans. A trace that no client has finished is told from its spans.
    pub async fn put_spans(&self, experiment_id: ExperimentId, spans: &[Span]) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        let location = active_experiment(&mut tx, experiment_id).await?;
        let mut traces: BTreeMap<&str, Vec<&Span>> = BTreeMap::new();
        for span in spans {
            traces.entry(&span.trace_id).or_default().push(span);
        }
        for (trace_id, spans) in traces {
            tell_from_spans(&mut tx, experiment_id, trace_id, &spans).await?;
            let artifacts = format!("{location}/traces/{trace_id}/artifacts");
            put_text(&mut tx, "trace_tags", trace_id, ARTIFACT_TAG, &artifacts).await?;
            put_text(&mut tx, "trace_tags", trace_id, SPANS_TAG.0, SPANS_TAG.1).await?;
            for span in spans {
                put_span(&mut tx, span).await?;
            }
        }
        Ok(tx.commit().await?)
    }

    /// One trace without its spans.
    pub async fn trace_info(&self, trace_id: &str) -> Result<TraceInfo, TrackError> {
        let found = self.trace_infos(&[trace_id.to_owned()]).await?.pop();
        found.ok_or_else(|| no_trace(trace_id))
    }

    /// The traces with these ids, in this order; unknown ids are left out.
    pub async fn trace_infos(&self, ids: &[String]) -> Result<Vec<TraceInfo>, TrackError> {
        let mut found = HashMap::with_capacity(ids.len());
        for ids in ids.chunks(super::runs::IDS_PER_QUERY) {
            for row in
                among("SELECT * FROM traces WHERE trace_id IN (", ids, ")").build().fetch_all(&self.reads).await?
            {
                let info = info_of(&row)?;
                found.insert(info.trace_id.clone(), info);
            }
            let tags = among("SELECT trace_id, key, value FROM trace_tags WHERE trace_id IN (", ids, ")");
            for (id, key, value) in tags.build_query_as::<(String, String, String)>().fetch_all(&self.reads).await? {
                found.entry(id).and_modify(|info| drop(info.tags.insert(key, value)));
            }
            let metadata = among("SELECT trace_id, key, value FROM trace_metadata WHERE trace_id IN (", ids, ")");
            for (id, key, value) in metadata.build_query_as::<(String, String, String)>().fetch_all(&self.reads).await?
            {
                found.entry(id).and_modify(|info| drop(info.metadata.insert(key, value)));
            }
            let assessments = among(
                "SELECT trace_id, content, valid FROM assessments WHERE trace_id IN (",
                ids,
                ") ORDER BY created, assessment_id",
            );
            for (id, content, valid) in
                assessments.build_query_as::<(String, String, i64)>().fetch_all(&self.reads).await?
            {
                let content = assessment_json(&content, valid)?;
                found.entry(id).and_modify(|info| info.assessments.push(content));
            }
        }
        Ok(ids.iter().filter_map(|id| found.remove(id)).collect())
    }

    /// The spans of a trace, in the order in which they began.
    pub async fn spans(&self, trace_id: &str) -> Result<Vec<Json>, TrackError> {
        let texts: Vec<String> =
            sqlx::query_scalar("SELECT content FROM spans WHERE trace_id = $1 ORDER BY start_ns, span_id")
                .bind(trace_id)
                .fetch_all(&self.reads)
                .await?;
        texts.iter().map(|text| stored_json(text)).collect()
    }

    /// Traces that match, newest first unless ordered otherwise.
    pub async fn search_traces(&self, search: &TraceSearch) -> Result<Page<TraceInfo>, TrackError> {
        let (limit, offset) = page_bounds(search.max_results, 100, limits::MAX_TRACES_PER_PAGE, &search.page_token)?;
        if search.experiment_ids.is_empty() {
            return Ok(Page { items: Vec::new(), next_page_token: None });
        }
        let mut query = QueryBuilder::new("SELECT t.trace_id FROM traces t WHERE t.experiment_id IN ");
        push_ids(&mut query, &search.experiment_ids);
        for clause in filter::parse(&search.filter)? {
            query.push(" AND ");
            push_clause(&mut query, &clause)?;
        }
        query.push(" ORDER BY ");
        for text in &search.order_by {
            let order = filter::parse_order(text)?;
            let column = column(&order.key.name).filter(|_| order.key.entity == Entity::Attribute);
            let (column, _) = column.ok_or_else(|| invalid_key("order_by", &order.key.name))?;
            let direction = if order.direction == Direction::Ascending { "ASC" } else { "DESC" };
            query.push(format_args!("CASE WHEN {column} IS NULL THEN 1 ELSE 0 END, {column} {direction}, "));
        }
        query.push("t.request_time DESC, t.trace_id LIMIT ").push_bind(limit + 1).push(" OFFSET ").push_bind(offset);
        let ids: Vec<String> = query.build_query_scalar().fetch_all(&self.reads).await?;
        let page = page_of(ids, limit, offset);
        Ok(Page { items: self.trace_infos(&page.items).await?, next_page_token: page.next_page_token })
    }

    /// Removes traces of one experiment; says how many. Their artifacts stay.
    pub async fn delete_traces(&self, of: ExperimentId, which: &TracesToDelete) -> Result<u64, TrackError> {
        let mut tx = self.write().await?;
        let ids: Vec<String> = match which {
            TracesToDelete::Ids(ids) => ids.clone(),
            TracesToDelete::Until(until, most) => {
                sqlx::query_scalar(
                    "SELECT trace_id FROM traces WHERE experiment_id = $1 AND request_time <= $2
                     ORDER BY request_time, trace_id LIMIT $3",
                )
                .bind(of.0)
                .bind(until.0)
                .bind(*most)
                .fetch_all(&mut *tx)
                .await?
            }
        };
        let mut n = 0;
        for ids in ids.chunks(super::runs::IDS_PER_QUERY) {
            let mut query = among("DELETE FROM traces WHERE trace_id IN (", ids, ")");
            query.push(" AND experiment_id = ").push_bind(of.0);
            n += query.build().execute(&mut *tx).await?.rows_affected();
        }
        tx.commit().await?;
        Ok(n)
    }

    /// Sets a tag of a trace.
    pub async fn set_trace_tag(&self, trace_id: &str, key: &str, value: &str) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        known(&mut tx, trace_id).await?;
        put_tag(&mut tx, trace_id, key, value).await?;
        Ok(tx.commit().await?)
    }

    /// Removes a tag of a trace.
    pub async fn delete_trace_tag(&self, trace_id: &str, key: &str) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        let gone = sqlx::query("DELETE FROM trace_tags WHERE trace_id = $1 AND key = $2")
            .bind(trace_id)
            .bind(key)
            .execute(&mut *tx)
            .await?;
        if gone.rows_affected() == 0 {
            return Err(TrackError::Missing(format!("No trace tag with key '{key}' for trace with ID '{trace_id}'")));
        }
        Ok(tx.commit().await?)
    }

    /// Notes that traces belong to a run or a prompt version.
    pub async fn link_traces(&self, trace_ids: &[String], kind: &'static str, target: &str) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        for trace_id in trace_ids {
            known(&mut tx, trace_id).await?;
            sqlx::query("INSERT INTO trace_links (trace_id, kind, target) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
                .bind(trace_id)
                .bind(kind)
                .bind(target)
                .execute(&mut *tx)
                .await?;
        }
        Ok(tx.commit().await?)
    }

    /// Adds or replaces an assessment. One that it overrides is no longer valid.
    pub async fn put_assessment(&self, new: &Assessment) -> Result<Json, TrackError> {
        let mut tx = self.write().await?;
        known(&mut tx, &new.trace_id).await?;
        if let Some(overridden) = &new.overrides {
            set_valid(&mut tx, &new.trace_id, overridden, false).await?;
        }
        let valid = i64::from(new.content.get("valid").and_then(Json::as_bool).unwrap_or(true));
        sqlx::query(
            "INSERT INTO assessments (assessment_id, trace_id, name, kind, value, valid, overrides, created, content)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
             ON CONFLICT (assessment_id) DO UPDATE SET name = excluded.name, kind = excluded.kind, value = excluded.value,
                 valid = excluded.valid, content = excluded.content",
        )
        .bind(&new.assessment_id)
        .bind(&new.trace_id)
        .bind(&new.name)
        .bind(new.kind)
        .bind(&new.value)
        .bind(valid)
        .bind(&new.overrides)
        .bind(new.created.0)
        .bind(new.content.to_string())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        self.assessment(&new.trace_id, &new.assessment_id).await
    }

    /// One assessment.
    pub async fn assessment(&self, trace_id: &str, assessment_id: &str) -> Result<Json, TrackError> {
        let row: Option<(String, i64)> =
            sqlx::query_as("SELECT content, valid FROM assessments WHERE trace_id = $1 AND assessment_id = $2")
                .bind(trace_id)
                .bind(assessment_id)
                .fetch_optional(&self.reads)
                .await?;
        let (content, valid) = row.ok_or_else(|| no_assessment(trace_id, assessment_id))?;
        assessment_json(&content, valid)
    }

    /// Removes an assessment; the one it overrode is valid again. One that is not there is fine.
    pub async fn delete_assessment(&self, trace_id: &str, assessment_id: &str) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        let gone: Option<(Option<String>,)> =
            sqlx::query_as("DELETE FROM assessments WHERE trace_id = $1 AND assessment_id = $2 RETURNING overrides")
                .bind(trace_id)
                .bind(assessment_id)
                .fetch_optional(&mut *tx)
                .await?;
        if let Some((Some(overridden),)) = gone {
            set_valid(&mut tx, trace_id, &overridden, true).await?;
        }
        Ok(tx.commit().await?)
    }
}

fn no_trace(trace_id: &str) -> TrackError {
    TrackError::Missing(format!("Trace with ID '{trace_id}' not found."))
}

fn no_assessment(trace_id: &str, assessment_id: &str) -> TrackError {
    TrackError::Missing(format!("Assessment with ID '{assessment_id}' not found for trace '{trace_id}'"))
}

fn stored_json(text: &str) -> Result<Json, TrackError> {
    serde_json::from_str(text).map_err(|error| sqlx::Error::Decode(Box::new(error)).into())
}

fn assessment_json(content: &str, valid: i64) -> Result<Json, TrackError> {
    let mut json = stored_json(content)?;
    json["valid"] = (valid == 1).into();
    Ok(json)
}

fn info_of(row: &sqlx::any::AnyRow) -> Result<TraceInfo, sqlx::Error> {
    Ok(TraceInfo {
        trace_id: row.try_get("trace_id")?,
        experiment_id: ExperimentId(row.try_get("experiment_id")?),
        request_time: row.try_get("request_time")?,
        execution_duration: row.try_get("execution_duration")?,
        state: row.try_get("state")?,
        client_request_id: row.try_get("client_request_id")?,
        request_preview: row.try_get("request_preview")?,
        response_preview: row.try_get("response_preview")?,
        ..TraceInfo::default()
    })
}

async fn known(tx: &mut AnyConnection, trace_id: &str) -> Result<(), TrackError> {
    let found: Option<(i64,)> = sqlx::query_as("SELECT experiment_id FROM traces WHERE trace_id = $1")
        .bind(trace_id)
        .fetch_optional(tx)
        .await?;
    found.map(|_| ()).ok_or_else(|| no_trace(trace_id))
}

async fn put_info(tx: &mut AnyConnection, info: &TraceInfo) -> Result<(), TrackError> {
    sqlx::query(
        "INSERT INTO traces (trace_id, experiment_id, request_time, execution_duration, state, client_request_id,
                             request_preview, response_preview)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (trace_id) DO UPDATE SET request_time = excluded.request_time,
             execution_duration = excluded.execution_duration, state = excluded.state,
             client_request_id = excluded.client_request_id, request_preview = excluded.request_preview,
             response_preview = excluded.response_preview",
    )
    .bind(&info.trace_id)
    .bind(info.experiment_id.0)
    .bind(info.request_time)
    .bind(info.execution_duration)
    .bind(&info.state)
    .bind(&info.client_request_id)
    .bind(&info.request_preview)
    .bind(&info.response_preview)
    .execute(tx)
    .await?;
    Ok(())
}

/// Begin, end, state and previews of a trace as its spans tell them, unless the client has told them itself.
async fn tell_from_spans(
    tx: &mut AnyConnection,
    experiment_id: ExperimentId,
    trace_id: &str,
    spans: &[&Span],
) -> Result<(), TrackError> {
    let row = sqlx::query("SELECT * FROM traces WHERE trace_id = $1").bind(trace_id).fetch_optional(&mut *tx).await?;
    let before = row.as_ref().map(info_of).transpose()?;
    let finalized: Option<(String,)> =
        sqlx::query_as("SELECT value FROM trace_metadata WHERE trace_id = $1 AND key = $2")
            .bind(trace_id)
            .bind(FINALIZED)
            .fetch_optional(&mut *tx)
            .await?;
    if finalized.is_some() {
        return Ok(());
    }
    let root = spans.iter().find(|span| span.root.is_some());
    let info = merged(before, experiment_id, trace_id, spans, root.copied());
    put_info(&mut *tx, &info).await?;
    match root {
        Some(root) => put_text(tx, "trace_tags", trace_id, NAME_TAG, &root.name).await,
        None => Ok(()),
    }
}

fn merged(
    before: Option<TraceInfo>,
    experiment_id: ExperimentId,
    trace_id: &str,
    spans: &[&Span],
    root: Option<&Span>,
) -> TraceInfo {
    const NS_PER_MS: i64 = 1_000_000;
    let begin = spans.iter().map(|span| span.start_ns / NS_PER_MS).min().unwrap_or_default();
    let end = spans.iter().map(|span| span.end_ns / NS_PER_MS).max().unwrap_or_default();
    let mut info = before.unwrap_or_else(|| TraceInfo {
        trace_id: trace_id.to_owned(),
        experiment_id,
        request_time: begin,
        state: "IN_PROGRESS".to_owned(),
        ..TraceInfo::default()
    });
    let known_end = info.request_time + info.execution_duration.unwrap_or_default();
    info.request_time = info.request_time.min(begin);
    info.execution_duration = Some(known_end.max(end) - info.request_time);
    if let Some(root) = root {
        let previews = root.root.clone().unwrap_or_default();
        info.state = if root.status == "ERROR" { "ERROR".to_owned() } else { "OK".to_owned() };
        info.request_preview = previews.request.or(info.request_preview);
        info.response_preview = previews.response.or(info.response_preview);
    }
    info
}

async fn put_span(tx: &mut AnyConnection, span: &Span) -> Result<(), TrackError> {
    sqlx::query(
        "INSERT INTO spans (trace_id, span_id, start_ns, name, type, status, content) VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (trace_id, span_id) DO UPDATE SET start_ns = excluded.start_ns, name = excluded.name,
             type = excluded.type, status = excluded.status, content = excluded.content",
    )
    .bind(&span.trace_id)
    .bind(&span.span_id)
    .bind(span.start_ns)
    .bind(&span.name)
    .bind(&span.kind)
    .bind(&span.status)
    .bind(span.content.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

async fn put_tag(tx: &mut AnyConnection, trace_id: &str, key: &str, value: &str) -> Result<(), TrackError> {
    limits::key("key", key)?;
    limits::length("value", value, limits::MAX_TAG_VALUE)?;
    put_text(tx, "trace_tags", trace_id, key, value).await
}

async fn put_text(
    tx: &mut AnyConnection,
    table: &'static str,
    trace_id: &str,
    key: &str,
    value: &str,
) -> Result<(), TrackError> {
    let mut query = QueryBuilder::new("INSERT INTO ");
    query.push(table).push(" (trace_id, key, value) VALUES (").push_binds([trace_id, key, value]);
    query.push(") ON CONFLICT (trace_id, key) DO UPDATE SET value = excluded.value");
    query.build().execute(tx).await?;
    Ok(())
}

async fn set_valid(tx: &mut AnyConnection, trace_id: &str, id: &str, valid: bool) -> Result<(), TrackError> {
    let changed = sqlx::query("UPDATE assessments SET valid = $1 WHERE trace_id = $2 AND assessment_id = $3")
        .bind(i64::from(valid))
        .bind(trace_id)
        .bind(id)
        .execute(tx)
        .await?;
    if changed.rows_affected() == 0 { Err(no_assessment(trace_id, id)) } else { Ok(()) }
}

/// Column and whether it is text.
fn column(name: &str) -> Option<(&'static str, bool)> {
    Some(match name {
        "timestamp" | "timestamp_ms" | "request_time" => ("t.request_time", false),
        "execution_time" | "execution_time_ms" | "execution_duration" => ("t.execution_duration", false),
        "end_time" | "end_time_ms" => ("(t.request_time + t.execution_duration)", false),
        "status" | "state" => ("t.state", true),
        "request_id" | "trace_id" | "id" => ("t.trace_id", true),
        "client_request_id" => ("t.client_request_id", true),
        _ => return None,
    })
}

fn push_clause(query: &mut QueryBuilder, clause: &Clause) -> Result<(), TrackError> {
    let name = clause.key.name.as_str();
    match clause.key.entity {
        Entity::Attribute => push_attribute(query, clause),
        Entity::Tag => push_keyed(query, "trace_tags x WHERE x.trace_id = t.trace_id AND x.key = ", name, clause),
        Entity::Metadata => {
            push_keyed(query, "trace_metadata x WHERE x.trace_id = t.trace_id AND x.key = ", name, clause)
        }
        Entity::Feedback => push_keyed(query, FEEDBACK, name, clause),
        Entity::Expectation => push_keyed(query, EXPECTATION, name, clause),
        Entity::Span => push_span(query, clause),
        Entity::Metric | Entity::Param | Entity::Dataset => Err(invalid_key("filter", name)),
    }
}

const FEEDBACK: &str =
    "assessments x WHERE x.trace_id = t.trace_id AND x.valid = 1 AND x.kind = 'feedback' AND x.name = ";
const EXPECTATION: &str =
    "assessments x WHERE x.trace_id = t.trace_id AND x.valid = 1 AND x.kind = 'expectation' AND x.name = ";

fn push_attribute(query: &mut QueryBuilder, clause: &Clause) -> Result<(), TrackError> {
    match clause.key.name.as_str() {
        "name" => push_keyed(query, "trace_tags x WHERE x.trace_id = t.trace_id AND x.key = ", NAME_TAG, clause),
        "run_id" => {
            query.push("(EXISTS (SELECT 1 FROM trace_links l WHERE l.trace_id = t.trace_id AND l.kind = 'run' AND ");
            compare_text(query, "l.target", clause)?;
            query.push(") OR ");
            push_keyed(query, "trace_metadata x WHERE x.trace_id = t.trace_id AND x.key = ", RUN_METADATA, clause)?;
            query.push(")");
            Ok(())
        }
        "prompt" => {
            query.push("EXISTS (SELECT 1 FROM trace_links l WHERE l.trace_id = t.trace_id AND l.kind = 'prompt' AND ");
            compare_text(query, "l.target", clause)?;
            query.push(")");
            Ok(())
        }
        "text" => {
            query.push("EXISTS (SELECT 1 FROM spans s WHERE s.trace_id = t.trace_id AND ");
            compare_text(query, "s.content", clause)?;
            query.push(")");
            Ok(())
        }
        name => {
            let (column, is_text) = column(name).ok_or_else(|| invalid_key("filter", name))?;
            if is_text { compare_text(query, column, clause) } else { compare_number(query, column, clause) }
        }
    }
}

/// A row of a table of keys and values; `IS NULL` asks that there is none.
fn push_keyed(query: &mut QueryBuilder, from: &'static str, key: &str, clause: &Clause) -> Result<(), TrackError> {
    query.push(if matches!(clause.test, Test::IsNull) { "NOT EXISTS (" } else { "EXISTS (" });
    query.push("SELECT 1 FROM ").push(from).push_bind(key.to_owned());
    if !matches!(clause.test, Test::IsNull | Test::IsNotNull) {
        query.push(" AND ");
        compare_text(query, "x.value", clause)?;
    }
    query.push(")");
    Ok(())
}

fn push_span(query: &mut QueryBuilder, clause: &Clause) -> Result<(), TrackError> {
    let column = match clause.key.name.as_str() {
        "name" => "s.name",
        "type" => "s.type",
        "status" => "s.status",
        "content" => "s.content",
        name => return Err(invalid_key("filter", name)),
    };
    query.push("EXISTS (SELECT 1 FROM spans s WHERE s.trace_id = t.trace_id AND ");
    compare_text(query, column, clause)?;
    query.push(")");
    Ok(())
}

fn invalid_key(place: &str, name: &str) -> TrackError {
    TrackError::Invalid(format!(
        "Invalid key '{name}' in {place} of a search of traces. Traces have timestamp_ms, execution_time_ms, end_time_ms, \
         status, name, trace_id, client_request_id, run_id, prompt, text, tags, metadata, feedback, expectation and span"
    ))
}
