use sqlx::Row as _;

use super::search::{Page, View, compare_number, compare_text, page_of};
use super::{Millis, QueryBuilder, Store, required};
use crate::TrackError;
use crate::filter::{self, Clause, Direction, Entity, Test};
use crate::limits;
use crate::wire::{Experiment, ExperimentId, Pair, Workspace};

/// What `experiments/search` asks.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct ExperimentSearch {
    pub view: View,
    pub filter: String,
    pub order_by: Vec<String>,
    pub max_results: i64,
    pub page_token: String,
}

impl Store {
    /// Makes the experiment `Default` with id 0, where it does not exist.
    pub async fn ensure_default_experiment(&self, now: Millis) -> Result<(), TrackError> {
        sqlx::query(
            "INSERT INTO experiments (experiment_id, name, artifact_location, creation_time, last_update_time)
             VALUES (0, 'Default', 'mlflow-artifacts:/0', $1, $1) ON CONFLICT DO NOTHING",
        )
        .bind(now.0)
        .execute(&self.writes)
        .await?;
        Ok(())
    }

    /// A new experiment. Its artifacts go to the proxied store unless `artifact_location` says otherwise.
    pub async fn create_experiment(
        &self,
        name: &str,
        artifact_location: Option<&str>,
        tags: &[Pair],
        now: Millis,
    ) -> Result<ExperimentId, TrackError> {
        required("name", name)?;
        limits::length("name", name, limits::MAX_EXPERIMENT_NAME)?;
        let mut tx = self.write().await?;
        refuse_taken_name(&mut tx, name, None).await?;
        let row = sqlx::query(
            "INSERT INTO experiments (name, artifact_location, creation_time, last_update_time)
             VALUES ($1, '', $2, $2) RETURNING experiment_id",
        )
        .bind(name)
        .bind(now.0)
        .fetch_one(&mut *tx)
        .await?;
        let id = ExperimentId(row.get(0));
        let location = match artifact_location.filter(|location| !location.is_empty()) {
            Some(location) => location.trim_end_matches('/').to_owned(),
            None => format!("mlflow-artifacts:/{id}"),
        };
        sqlx::query("UPDATE experiments SET artifact_location = $1 WHERE experiment_id = $2")
            .bind(location)
            .bind(id)
            .execute(&mut *tx)
            .await?;
        for tag in tags {
            put_tag(&mut tx, id, tag).await?;
        }
        tx.commit().await?;
        Ok(id)
    }

    /// The experiment with this id, deleted or not.
    pub async fn experiment(&self, id: ExperimentId) -> Result<Experiment, TrackError> {
        let mut query = select();
        query.push(" WHERE experiment_id = ").push_bind(id);
        let found = self.read_experiments(query).await?.pop();
        found.ok_or_else(|| no_experiment(id))
    }

    /// The experiment of this name, deleted or not.
    pub async fn experiment_by_name(&self, name: &str) -> Result<Experiment, TrackError> {
        let mut query = select();
        query.push(" WHERE name = ").push_bind(name);
        let found = self.read_experiments(query).await?.pop();
        found.ok_or_else(|| TrackError::Missing(format!("Could not find experiment with name '{name}'")))
    }

    /// Experiments that match, newest first unless ordered otherwise.
    pub async fn search_experiments(&self, search: &ExperimentSearch) -> Result<Page<Experiment>, TrackError> {
        let (limit, offset) =
            super::search::page_bounds(search.max_results, 1000, limits::MAX_RUNS_PER_PAGE, &search.page_token)?;
        let mut query = select();
        query.push(" WHERE ").push(search.view.sql());
        for clause in filter::parse(&search.filter)? {
            query.push(" AND ");
            push_clause(&mut query, &clause)?;
        }
        query.push(" ORDER BY ");
        for text in &search.order_by {
            let order = filter::parse_order(text)?;
            let column = column(&order.key.name).filter(|_| order.key.entity == Entity::Attribute);
            let column = column.ok_or_else(|| invalid_key("order by", &order.key.name))?;
            query.push(column.0).push(if order.direction == Direction::Ascending { " ASC, " } else { " DESC, " });
        }
        query.push("last_update_time DESC, experiment_id DESC LIMIT ").push_bind(limit + 1);
        query.push(" OFFSET ").push_bind(offset);
        Ok(page_of(self.read_experiments(query).await?, limit, offset))
    }

    /// Gives an active experiment another name.
    pub async fn rename_experiment(&self, id: ExperimentId, name: &str, now: Millis) -> Result<(), TrackError> {
        required("new_name", name)?;
        limits::length("name", name, limits::MAX_EXPERIMENT_NAME)?;
        let mut tx = self.write().await?;
        active_experiment(&mut tx, id).await?;
        refuse_taken_name(&mut tx, name, Some(id)).await?;
        sqlx::query("UPDATE experiments SET name = $1, last_update_time = $2 WHERE experiment_id = $3")
            .bind(name)
            .bind(now.0)
            .bind(id)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    /// Moves an experiment and its runs between `active` and `deleted`.
    pub async fn set_experiment_stage(&self, id: ExperimentId, to: View, now: Millis) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        let stage = to.stage();
        let changed = sqlx::query(
            "UPDATE experiments SET lifecycle_stage = $1, last_update_time = $2
             WHERE experiment_id = $3 AND lifecycle_stage <> $1",
        )
        .bind(stage)
        .bind(now.0)
        .bind(id)
        .execute(&mut *tx)
        .await?;
        if changed.rows_affected() == 0 {
            return Err(TrackError::Missing(format!("No Experiment with id={id} exists")));
        }
        sqlx::query("UPDATE runs SET lifecycle_stage = $1 WHERE experiment_id = $2")
            .bind(stage)
            .bind(id)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    /// Sets one tag of an active experiment.
    pub async fn set_experiment_tag(&self, id: ExperimentId, tag: &Pair, now: Millis) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        active_experiment(&mut tx, id).await?;
        put_tag(&mut tx, id, tag).await?;
        touch(&mut tx, id, now).await?;
        Ok(tx.commit().await?)
    }

    /// Removes one tag of an active experiment.
    pub async fn delete_experiment_tag(&self, id: ExperimentId, key: &str, now: Millis) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        active_experiment(&mut tx, id).await?;
        let gone = sqlx::query("DELETE FROM experiment_tags WHERE experiment_id = $1 AND key = $2")
            .bind(id)
            .bind(key)
            .execute(&mut *tx)
            .await?;
        if gone.rows_affected() == 0 {
            return Err(TrackError::Missing(format!("No tag with name: {key} in experiment with id {id}")));
        }
        touch(&mut tx, id, now).await?;
        Ok(tx.commit().await?)
    }

    async fn read_experiments(&self, query: QueryBuilder) -> Result<Vec<Experiment>, TrackError> {
        let rows = query.build().fetch_all(&self.reads).await?;
        let mut experiments = Vec::with_capacity(rows.len());
        for row in rows {
            let experiment_id = ExperimentId(row.try_get("experiment_id")?);
            let tags = sqlx::query_as("SELECT key, value FROM experiment_tags WHERE experiment_id = $1 ORDER BY key")
                .bind(experiment_id)
                .fetch_all(&self.reads)
                .await?;
            experiments.push(Experiment {
                experiment_id,
                name: row.try_get("name")?,
                artifact_location: row.try_get("artifact_location")?,
                lifecycle_stage: row.try_get("lifecycle_stage")?,
                last_update_time: row.try_get("last_update_time")?,
                creation_time: row.try_get("creation_time")?,
                tags,
                workspace: Workspace::Default,
            });
        }
        Ok(experiments)
    }
}

/// The artifact location of an experiment that can be written to.
pub(super) async fn active_experiment(tx: &mut sqlx::AnyConnection, id: ExperimentId) -> Result<String, TrackError> {
    let row: Option<(String, String)> =
        sqlx::query_as("SELECT artifact_location, lifecycle_stage FROM experiments WHERE experiment_id = $1")
            .bind(id)
            .fetch_optional(tx)
            .await?;
    match row {
        Some((location, stage)) if stage == "active" => Ok(location),
        Some((_, stage)) => Err(TrackError::Invalid(format!(
            "The experiment {id} must be in the 'active' state. Current state is {stage}."
        ))),
        None => Err(no_experiment(id)),
    }
}

pub(super) fn no_experiment(id: ExperimentId) -> TrackError {
    TrackError::Missing(format!("No Experiment with id={id} exists"))
}

fn select() -> QueryBuilder {
    QueryBuilder::new(
        "SELECT experiment_id, name, artifact_location, lifecycle_stage, creation_time, last_update_time
         FROM experiments",
    )
}

/// Errors if another experiment than `own` has the name.
async fn refuse_taken_name(
    tx: &mut sqlx::AnyConnection,
    name: &str,
    own: Option<ExperimentId>,
) -> Result<(), TrackError> {
    let taken: Option<(i64, String)> =
        sqlx::query_as("SELECT experiment_id, lifecycle_stage FROM experiments WHERE name = $1")
            .bind(name)
            .fetch_optional(tx)
            .await?;
    match taken {
        None => Ok(()),
        Some((id, _)) if Some(ExperimentId(id)) == own => Ok(()),
        Some((_, stage)) if stage == "active" => {
            Err(TrackError::Exists(format!("Experiment '{name}' already exists.")))
        }
        Some(_) => Err(TrackError::Exists(format!(
            "Experiment '{name}' already exists in deleted state. You can restore the experiment, or permanently delete \
             it to create a new one."
        ))),
    }
}

async fn put_tag(tx: &mut sqlx::AnyConnection, id: ExperimentId, tag: &Pair) -> Result<(), TrackError> {
    limits::key("key", &tag.key)?;
    limits::length("value", &tag.value, limits::MAX_EXPERIMENT_TAG_VALUE)?;
    sqlx::query(
        "INSERT INTO experiment_tags (experiment_id, key, value) VALUES ($1, $2, $3)
         ON CONFLICT (experiment_id, key) DO UPDATE SET value = excluded.value",
    )
    .bind(id)
    .bind(&tag.key)
    .bind(&tag.value)
    .execute(tx)
    .await?;
    Ok(())
}

async fn touch(tx: &mut sqlx::AnyConnection, id: ExperimentId, now: Millis) -> Result<(), TrackError> {
    sqlx::query("UPDATE experiments SET last_update_time = $1 WHERE experiment_id = $2")
        .bind(now.0)
        .bind(id)
        .execute(tx)
        .await?;
    Ok(())
}

/// Column and whether it is text.
fn column(name: &str) -> Option<(&'static str, bool)> {
    match name {
        "name" => Some(("name", true)),
        "experiment_id" => Some(("CAST(experiment_id AS TEXT)", true)),
        "creation_time" => Some(("creation_time", false)),
        "last_update_time" => Some(("last_update_time", false)),
        _ => None,
    }
}

fn push_clause(query: &mut QueryBuilder, clause: &Clause) -> Result<(), TrackError> {
    match clause.key.entity {
        Entity::Attribute => {
            let (column, is_text) =
                column(&clause.key.name).ok_or_else(|| invalid_key("attribute", &clause.key.name))?;
            if is_text { compare_text(query, column, clause) } else { compare_number(query, column, clause) }
        }
        Entity::Tag => {
            let negated = matches!(clause.test, Test::IsNull);
            query.push(if negated { "NOT EXISTS (" } else { "EXISTS (" });
            query
                .push("SELECT 1 FROM experiment_tags t WHERE t.experiment_id = experiments.experiment_id AND t.key = ");
            query.push_bind(clause.key.name.clone());
            if !matches!(clause.test, Test::IsNull | Test::IsNotNull) {
                query.push(" AND ");
                compare_text(query, "t.value", clause)?;
            }
            query.push(")");
            Ok(())
        }
        _ => Err(invalid_key("entity", &clause.key.name)),
    }
}

fn invalid_key(what: &str, name: &str) -> TrackError {
    TrackError::Invalid(format!(
        "Invalid {what} key '{name}' specified; experiments have name, experiment_id, creation_time, last_update_time and tags"
    ))
}
