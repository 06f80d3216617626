use super::runs::listed;
use super::{QueryBuilder, Store};
use crate::TrackError;
use crate::filter::{self, Clause, Comparator, Direction, Entity, Order, Test, Value};
use crate::limits;
use crate::wire::{ExperimentId, Run};

pub(super) const ESCAPE: &str = r" ESCAPE '\'";

/// Which lifecycle stages are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum View {
    #[default]
    Active,
    Deleted,
    All,
}

impl View {
    /// From MLflow's `ACTIVE_ONLY`, `DELETED_ONLY`, `ALL`; nothing said means active.
    pub fn parse(text: &str) -> Result<Self, TrackError> {
        match text {
            "" | "ACTIVE_ONLY" | "1" => Ok(Self::Active),
            "DELETED_ONLY" | "2" => Ok(Self::Deleted),
            "ALL" | "3" => Ok(Self::All),
            _ => Err(TrackError::Invalid(format!("Invalid value '{text}' for parameter 'view_type' supplied."))),
        }
    }

    pub(super) fn sql(self) -> &'static str {
        match self {
            Self::Active => "lifecycle_stage = 'active'",
            Self::Deleted => "lifecycle_stage = 'deleted'",
            Self::All => "1 = 1",
        }
    }

    pub(super) fn stage(self) -> &'static str {
        if self == Self::Deleted { "deleted" } else { "active" }
    }
}

/// One page of results and how to ask for the next.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub next_page_token: Option<String>,
}

/// What `runs/search` asks.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct RunSearch {
    pub experiment_ids: Vec<ExperimentId>,
    pub filter: String,
    pub view: View,
    pub max_results: i64,
    pub order_by: Vec<String>,
    pub page_token: String,
}

impl Store {
    /// Runs that match, newest first unless ordered otherwise.
    pub async fn search_runs(&self, search: &RunSearch) -> Result<Page<Run>, TrackError> {
        let (limit, offset) = page_bounds(search.max_results, 1000, limits::MAX_RUNS_PER_PAGE, &search.page_token)?;
        if search.experiment_ids.is_empty() {
            return Ok(Page { items: Vec::new(), next_page_token: None });
        }
        let orders = search.order_by.iter().map(|text| filter::parse_order(text)).collect::<Result<Vec<_>, _>>()?;
        let mut query = QueryBuilder::default();
        query.push(self.database.select_list("run_id")).push(" FROM (SELECT r.run_id FROM runs r");
        for (n, order) in orders.iter().enumerate() {
            push_order_join(&mut query, n, order);
        }
        query.push(" WHERE r.").push(search.view.sql().replace("1 = 1", "run_id IS NOT NULL"));
        query.push(" AND r.experiment_id IN ");
        push_ids(&mut query, &search.experiment_ids);
        for clause in filter::parse(&search.filter)? {
            query.push(" AND ");
            push_run_clause(&mut query, &clause)?;
        }
        query.push(" ORDER BY ");
        for (n, order) in orders.iter().enumerate() {
            push_order(&mut query, n, order)?;
        }
        query.push("r.start_time DESC, r.run_id LIMIT ").push_bind(limit + 1).push(" OFFSET ").push_bind(offset);
        query.push(") page");
        let ids: Vec<(String,)> = listed(query.build_query_scalar().fetch_one(&self.reads).await?)?;
        let page = page_of(ids.into_iter().map(|(id,)| id).collect(), limit, offset);
        Ok(Page { items: self.runs(&page.items).await?, next_page_token: page.next_page_token })
    }
}

/// Limit and offset of a page; `default` if `max_results` is 0, an error if it is over `most`.
pub(super) fn page_bounds(max_results: i64, default: i64, most: i64, token: &str) -> Result<(i64, i64), TrackError> {
    if !(0..=most).contains(&max_results) {
        return Err(TrackError::Invalid(format!(
            "Invalid value {max_results} for parameter 'max_results' supplied. It must be at most {most}."
        )));
    }
    let limit = if max_results == 0 { default } else { max_results };
    let offset = match token.strip_prefix("from-") {
        _ if token.is_empty() => Some(0),
        Some(n) => n.parse().ok().filter(|n| (0..=i64::from(i32::MAX)).contains(n)),
        None => None,
    };
    let offset = offset.ok_or_else(|| TrackError::Invalid(format!("Invalid page token '{token}'")))?;
    Ok((limit, offset))
}

/// The first `limit` of `items`, which were asked for with one more to learn whether there is a next page.
pub(super) fn page_of<T>(mut items: Vec<T>, limit: i64, offset: i64) -> Page<T> {
    let limit_len = usize::try_from(limit).unwrap_or(usize::MAX);
    let next_page_token = (items.len() > limit_len).then(|| format!("from-{}", offset + limit));
    items.truncate(limit_len);
    Page { items, next_page_token }
}

/// `column` tested as text.
pub(super) fn compare_text(query: &mut QueryBuilder, column: &'static str, clause: &Clause) -> Result<(), TrackError> {
    match &clause.test {
        Test::Compare(Comparator::Ilike, Value::Text(value)) => {
            query.push("LOWER(").push(column).push(") LIKE ");
            query.push_bind(literal_backslashes(&value.to_ascii_lowercase())).push(ESCAPE);
        }
        Test::Compare(Comparator::Like, Value::Text(value)) => {
            query.push(column).push(" LIKE ").push_bind(literal_backslashes(value)).push(ESCAPE);
        }
        Test::Compare(comparator @ (Comparator::Equal | Comparator::NotEqual), Value::Text(value)) => {
            query.push(column).push(comparator.sql()).push_bind(value.clone());
        }
        Test::Compare(_, Value::Number(_)) => {
            return Err(TrackError::Invalid(format!(
                "Expected a quoted string value for '{}', but it is compared with a number",
                clause.key.name
            )));
        }
        Test::Compare(..) => {
            return Err(TrackError::Invalid(format!(
                "Invalid comparator for '{}': text is compared with =, !=, LIKE, ILIKE, IN or NOT IN",
                clause.key.name
            )));
        }
        Test::In(values) => push_list(query, column, " IN (", values),
        Test::NotIn(values) => push_list(query, column, " NOT IN (", values),
        Test::IsNull => {
            query.push(column).push(" IS NULL");
        }
        Test::IsNotNull => {
            query.push(column).push(" IS NOT NULL");
        }
    }
    Ok(())
}

/// A pattern in which a backslash means itself, as it does in SQLite but not in PostgreSQL.
fn literal_backslashes(pattern: &str) -> String {
    pattern.replace('\\', r"\\")
}

/// `column` tested as a number.
pub(super) fn compare_number(
    query: &mut QueryBuilder,
    column: &'static str,
    clause: &Clause,
) -> Result<(), TrackError> {
    match clause.test {
        Test::Compare(Comparator::Like | Comparator::Ilike, _) | Test::In(_) | Test::NotIn(_) => {
            Err(TrackError::Invalid(format!(
                "Invalid comparator for '{}': a number is compared with =, !=, <, <=, > or >=",
                clause.key.name
            )))
        }
        Test::Compare(comparator, Value::Number(value)) => {
            query.push(column).push(comparator.sql()).push_bind(value);
            Ok(())
        }
        Test::Compare(_, Value::Text(_)) => Err(TrackError::Invalid(format!(
            "Expected a numeric value for '{}', but it is compared with text",
            clause.key.name
        ))),
        Test::IsNull => {
            query.push(column).push(" IS NULL");
            Ok(())
        }
        Test::IsNotNull => {
            query.push(column).push(" IS NOT NULL");
            Ok(())
        }
    }
}

fn push_list(query: &mut QueryBuilder, column: &'static str, operator: &'static str, values: &[String]) {
    query.push(column).push(operator).push_binds(values.iter().map(String::as_str)).push(")");
}

/// Column of an attribute of a run, and whether it is text.
fn run_column(name: &str) -> Option<(&'static str, bool)> {
    Some(match name {
        "run_id" => ("r.run_id", true),
        "run_name" | "run name" | "Run name" | "Run Name" => ("r.run_name", true),
        "user_id" | "User" => ("r.user_id", true),
        "status" => ("r.status", true),
        "artifact_uri" => ("r.artifact_uri", true),
        "start_time" | "created" | "Created" => ("r.start_time", false),
        "end_time" => ("r.end_time", false),
        _ => return None,
    })
}

fn invalid_attribute(name: &str) -> TrackError {
    TrackError::Invalid(format!(
        "Invalid attribute key '{name}' specified. Valid keys are 'run_id', 'run_name', 'user_id', 'status', \
         'artifact_uri', 'start_time' and 'end_time'"
    ))
}

pub(super) fn push_run_clause(query: &mut QueryBuilder, clause: &Clause) -> Result<(), TrackError> {
    let name = &clause.key.name;
    let from = match clause.key.entity {
        Entity::Attribute => {
            let (column, is_text) = run_column(name).ok_or_else(|| invalid_attribute(name))?;
            return if is_text { compare_text(query, column, clause) } else { compare_number(query, column, clause) };
        }
        Entity::Metric => "SELECT 1 FROM latest_metrics x WHERE x.run_id = r.run_id AND x.key = ",
        Entity::Param => "SELECT 1 FROM params x WHERE x.run_id = r.run_id AND x.key = ",
        Entity::Tag => "SELECT 1 FROM tags x WHERE x.run_id = r.run_id AND x.key = ",
        Entity::Dataset => {
            let column = match name.as_str() {
                "name" => "x.name",
                "digest" => "x.digest",
                "context" => "x.context",
                _ => return Err(TrackError::Invalid(format!("Invalid dataset key '{name}' specified."))),
            };
            query.push("EXISTS (SELECT 1 FROM run_datasets x WHERE x.run_id = r.run_id AND ");
            compare_text(query, column, clause)?;
            query.push(")");
            return Ok(());
        }
        Entity::Metadata | Entity::Span | Entity::Feedback | Entity::Expectation => {
            return Err(TrackError::Invalid(format!("Invalid entity of '{name}': runs have no traces' keys")));
        }
    };
    query.push(if matches!(clause.test, Test::IsNull) { "NOT EXISTS (" } else { "EXISTS (" });
    query.push(from).push_bind(name.clone());
    if !matches!(clause.test, Test::IsNull | Test::IsNotNull) {
        query.push(" AND ");
        if clause.key.entity == Entity::Metric {
            query.push("x.is_nan = 0 AND ");
            compare_number(query, "x.value", clause)?;
        } else {
            compare_text(query, "x.value", clause)?;
        }
    }
    query.push(")");
    Ok(())
}

/// `($1, $2, …)`
pub(super) fn push_ids(query: &mut QueryBuilder, ids: &[ExperimentId]) {
    query.push("(").push_binds(ids.iter().copied()).push(")");
}

/// The table an order key lives in, joined as `o0`, `o1`, ….
pub(super) fn push_order_join(query: &mut QueryBuilder, n: usize, order: &Order) {
    let table = match order.key.entity {
        Entity::Metric => "latest_metrics",
        Entity::Param => "params",
        Entity::Tag => "tags",
        _ => return,
    };
    query.push(format!(" LEFT JOIN {table} o{n} ON o{n}.run_id = r.run_id AND o{n}.key = "));
    query.push_bind(order.key.name.clone());
}

/// Runs that lack the key come last in either direction, NaN just before them.
pub(super) fn push_order(query: &mut QueryBuilder, n: usize, order: &Order) -> Result<(), TrackError> {
    let direction = if order.direction == Direction::Ascending { " ASC, " } else { " DESC, " };
    match order.key.entity {
        Entity::Attribute => {
            let (column, _) = run_column(&order.key.name).ok_or_else(|| invalid_attribute(&order.key.name))?;
            query.push(format!("CASE WHEN {column} IS NULL THEN 1 ELSE 0 END, {column}{direction}"));
        }
        Entity::Metric => {
            query.push(format!(
                "CASE WHEN o{n}.value IS NULL THEN 2 WHEN o{n}.is_nan = 1 THEN 1 ELSE 0 END, o{n}.value{direction}"
            ));
        }
        Entity::Param | Entity::Tag => {
            query.push(format!("CASE WHEN o{n}.value IS NULL THEN 1 ELSE 0 END, o{n}.value{direction}"));
        }
        _ => return Err(TrackError::Invalid(format!("Invalid order_by entity of '{}'", order.key.name))),
    }
    Ok(())
}
