use highroad_package::registry::dependents;
use highroad_package::registry::trail::targets;
use sqlx::{AnyConnection, Row as _};

use super::search::{Page, compare_number, compare_text, page_bounds, page_of};
use super::{Millis, QueryBuilder, Store, required};
use crate::TrackError;
use crate::filter::{self, Clause, Comparator, Direction, Entity, Test, Value};
use crate::gate::{self, Admission, Asked, Gate, Moments};
use crate::limits;
use crate::source::Source;
use crate::wire::{Alias, AliasMove, ModelParam, ModelVersion, Pair, RegisteredModel};

/// The tag that makes a registered model a prompt, which searches for models leave out.
/// What servers tell every few seconds of where they stand: no change of the model that somebody looks for by its time.
const STANDING_PREFIX: &str = "highroad.serving.";
const IS_PROMPT: &str = "mlflow.prompt.is_prompt";
const STAGES: [&str; 4] = ["None", "Staging", "Production", "Archived"];
/// Most names that a model's trail is followed through.
const MAX_RENAMES: usize = 1000;
/// `models:/a/1` may point to another registered version; a longer chain is a mistake or a trap.
const MAX_SOURCE_HOPS: usize = 8;

/// A model version to be made.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct NewVersion {
    pub name: String,
    pub source: String,
    pub run_id: String,
    pub run_link: String,
    pub description: String,
    pub user_id: String,
    pub model_id: Option<String>,
    pub tags: Vec<Pair>,
}

/// Who moves an alias, and why.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Mover {
    pub by: String,
    pub why: String,
    /// The rehearsal of the way back, as JSON.
    pub rehearsal: Option<String>,
}

/// Where an alias moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// To a version, with all that a promotion records.
    Promote(i64),
    /// To a version, by a client that knows nothing of Highroad.
    Set(i64),
    /// To where it was before its current version; away if it was nowhere.
    Back,
    /// Away.
    Away,
}

impl Store {
    /// Registers a name.
    pub async fn create_registered_model(
        &self,
        name: &str,
        description: &str,
        tags: &[Pair],
        now: Millis,
    ) -> Result<RegisteredModel, TrackError> {
        limits::model_name(name)?;
        let mut tx = self.write().await?;
        let made = sqlx::query(
            "INSERT INTO registered_models (name, creation_timestamp, last_updated_timestamp, description)
             VALUES ($1, $2, $2, $3) ON CONFLICT DO NOTHING",
        )
        .bind(name)
        .bind(now.0)
        .bind(description)
        .execute(&mut *tx)
        .await?;
        if made.rows_affected() == 0 {
            return Err(TrackError::Exists(format!("Registered Model (name={name}) already exists.")));
        }
        for tag in tags {
            put_model_tag(&mut tx, name, tag).await?;
        }
        let model = model(&mut tx, name).await?;
        tx.commit().await?;
        Ok(model)
    }

    /// The registered model of this name.
    pub async fn registered_model(&self, name: &str) -> Result<RegisteredModel, TrackError> {
        required("name", name)?;
        let mut connection = self.reads.acquire().await?;
        model(&mut connection, name).await
    }

    /// Registered models that match, by name unless ordered otherwise. Prompts are left out unless asked for.
    pub async fn search_registered_models(
        &self,
        text: &str,
        order_by: &[String],
        max_results: i64,
        page_token: &str,
    ) -> Result<Page<RegisteredModel>, TrackError> {
        let (limit, offset) = page_bounds(max_results, 100, limits::MAX_MODELS_PER_PAGE, page_token)?;
        let clauses = filter::parse(text)?;
        let mut query = QueryBuilder::new("SELECT m.name FROM registered_models m WHERE ");
        push_prompt_rule(&mut query, &clauses);
        for clause in clauses.iter().filter(|clause| clause.key.name != IS_PROMPT) {
            query.push(" AND ");
            match (clause.key.entity, clause.key.name.as_str()) {
                (Entity::Attribute, "name") => compare_text(&mut query, "m.name", clause)?,
                (Entity::Tag, key) => {
                    query.push("EXISTS (SELECT 1 FROM registered_model_tags x WHERE x.name = m.name AND x.key = ");
                    query.push_bind(key.to_owned()).push(" AND ");
                    compare_text(&mut query, "x.value", clause)?;
                    query.push(")");
                }
                (_, key) => return Err(invalid_key("registered models", key)),
            }
        }
        query.push(" ORDER BY ");
        for text in order_by {
            let order = filter::parse_order(text)?;
            query.push(match order.key.name.as_str() {
                "name" => "m.name",
                "timestamp" | "last_updated_timestamp" => "m.last_updated_timestamp",
                "creation_timestamp" => "m.creation_timestamp",
                key => return Err(invalid_key("registered models", key)),
            });
            query.push(if order.direction == Direction::Ascending { " ASC, " } else { " DESC, " });
        }
        query.push("m.name ASC LIMIT ").push_bind(limit + 1).push(" OFFSET ").push_bind(offset);
        let names: Vec<String> = query.build_query_scalar().fetch_all(&self.reads).await?;
        let page = page_of(names, limit, offset);
        let mut connection = self.reads.acquire().await?;
        let mut items = Vec::with_capacity(page.items.len());
        for name in &page.items {
            items.push(model(&mut connection, name).await?);
        }
        Ok(Page { items, next_page_token: page.next_page_token })
    }

    /// Changes the description.
    pub async fn update_registered_model(
        &self,
        name: &str,
        description: &str,
        now: Millis,
    ) -> Result<RegisteredModel, TrackError> {
        let mut tx = self.write().await?;
        touch(&mut tx, name, now).await?;
        sqlx::query("UPDATE registered_models SET description = $1 WHERE name = $2")
            .bind(description)
            .bind(name)
            .execute(&mut *tx)
            .await?;
        let model = model(&mut tx, name).await?;
        tx.commit().await?;
        Ok(model)
    }

    /// Gives a model another name. Versions, tags and aliases follow; the trail keeps its rows as they are and gets one that
    /// ties both names together, and one for each alias.
    pub async fn rename_registered_model(
        &self,
        name: &str,
        new_name: &str,
        mover: &Mover,
        now: Millis,
    ) -> Result<RegisteredModel, TrackError> {
        limits::model_name(new_name)?;
        let mut tx = self.write().await?;
        touch(&mut tx, name, now).await?;
        let taken: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM registered_models WHERE name = $1")
            .bind(new_name)
            .fetch_optional(&mut *tx)
            .await?;
        if taken.is_some() && new_name != name {
            return Err(TrackError::Exists(format!("Registered Model (name={new_name}) already exists.")));
        }
        sqlx::query("UPDATE registered_models SET name = $1 WHERE name = $2")
            .bind(new_name)
            .bind(name)
            .execute(&mut *tx)
            .await?;
        if new_name != name {
            let entry = Entry { action: "rename", renamed_from: Some(name), ..Entry::default() };
            let why = format!("renamed from `{name}`; {}", mover.why);
            record(&mut tx, new_name, "", entry, &Mover { why, ..mover.clone() }, now).await?;
        }
        let renamed = model(&mut tx, new_name).await?;
        for alias in &renamed.aliases {
            let version = version_number(&alias.version)?;
            let why = format!("renamed from `{name}`; {}", mover.why);
            let entry = Entry { action: "rename", from: Some(version), to: Some(version), ..Entry::default() };
            record(&mut tx, new_name, &alias.alias, entry, &Mover { why, ..mover.clone() }, now).await?;
        }
        tx.commit().await?;
        Ok(renamed)
    }

    /// Removes a model, its versions, tags and aliases. The audit trail stays and says so.
    pub async fn delete_registered_model(&self, name: &str, mover: &Mover, now: Millis) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        let gone = model(&mut tx, name).await?;
        for alias in &gone.aliases {
            let from = Some(version_number(&alias.version)?);
            let entry = Entry { action: "delete-model", from, ..Entry::default() };
            record(&mut tx, name, &alias.alias, entry, mover, now).await?;
        }
        sqlx::query("DELETE FROM registered_models WHERE name = $1").bind(name).execute(&mut *tx).await?;
        Ok(tx.commit().await?)
    }

    /// Sets a tag of a registered model.
    pub async fn set_registered_model_tag(&self, name: &str, tag: &Pair, now: Millis) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        touch_for_tag(&mut tx, name, &tag.key, now).await?;
        put_model_tag(&mut tx, name, tag).await?;
        Ok(tx.commit().await?)
    }

    /// Removes a tag of a registered model; a tag that is not there is fine.
    pub async fn delete_registered_model_tag(&self, name: &str, key: &str, now: Millis) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        touch_for_tag(&mut tx, name, key, now).await?;
        sqlx::query("DELETE FROM registered_model_tags WHERE name = $1 AND key = $2")
            .bind(name)
            .bind(key)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    /// Adds the next version to a registered model.
    pub async fn create_model_version(&self, new: NewVersion, now: Millis) -> Result<ModelVersion, TrackError> {
        required("source", &new.source)?;
        let package = new.tags.iter().find(|tag| tag.key == gate::PACKAGE_TAG).map(|tag| tag.value.as_str());
        gate::check_package_tag(&new.source, package)?;
        let mut tx = self.write().await?;
        touch(&mut tx, &new.name, now).await?;
        let (number,): (i64,) = sqlx::query_as(
            "UPDATE registered_models SET last_version = last_version + 1 WHERE name = $1 RETURNING last_version",
        )
        .bind(&new.name)
        .fetch_one(&mut *tx)
        .await?;
        sqlx::query(
            "INSERT INTO model_versions (name, version, creation_timestamp, last_updated_timestamp, description, user_id,
                                         source, run_id, run_link, model_id)
             VALUES ($1, $2, $3, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(&new.name)
        .bind(number)
        .bind(now.0)
        .bind(&new.description)
        .bind(&new.user_id)
        .bind(&new.source)
        .bind(&new.run_id)
        .bind(&new.run_link)
        .bind(&new.model_id)
        .execute(&mut *tx)
        .await?;
        for tag in &new.tags {
            put_version_tag(&mut tx, &new.name, number, tag).await?;
        }
        let version = version(&mut tx, &new.name, number).await?;
        tx.commit().await?;
        Ok(version)
    }

    /// One version.
    pub async fn model_version(&self, name: &str, number: i64) -> Result<ModelVersion, TrackError> {
        let mut connection = self.reads.acquire().await?;
        let mut version = version(&mut connection, name, number).await?;
        drop(connection);
        if let Some(model_id) = &version.model_id {
            let data = self.logged_model_data(model_id).await?;
            version.model_metrics = data.metrics;
            version.model_params =
                data.params.into_iter().map(|Pair { key, value }| ModelParam { name: key, value }).collect();
        }
        Ok(version)
    }

    /// The version an alias names.
    pub async fn version_by_alias(&self, name: &str, alias: &str) -> Result<ModelVersion, TrackError> {
        let mut connection = self.reads.acquire().await?;
        exists(&mut connection, name).await?;
        let number = aliased(&mut connection, name, alias).await?;
        let number = number.ok_or_else(|| TrackError::Invalid(format!("Registered model alias {alias} not found.")))?;
        drop(connection);
        self.model_version(name, number).await
    }

    /// Versions that match, most recently changed first unless ordered otherwise.
    pub async fn search_model_versions(
        &self,
        text: &str,
        order_by: &[String],
        max_results: i64,
        page_token: &str,
    ) -> Result<Page<ModelVersion>, TrackError> {
        let (limit, offset) = page_bounds(max_results, 10_000, limits::MAX_VERSIONS_PER_PAGE, page_token)?;
        let clauses = filter::parse(text)?;
        let mut query = QueryBuilder::new("SELECT v.name, v.version FROM model_versions v, registered_models m WHERE ");
        query.push("m.name = v.name AND ");
        push_prompt_rule(&mut query, &clauses);
        for clause in clauses.iter().filter(|clause| clause.key.name != IS_PROMPT) {
            query.push(" AND ");
            push_version_clause(&mut query, clause)?;
        }
        query.push(" ORDER BY ");
        for text in order_by {
            let order = filter::parse_order(text)?;
            let key = &order.key.name;
            query.push(version_column(key).ok_or_else(|| invalid_key("model versions", key))?.0);
            query.push(if order.direction == Direction::Ascending { " ASC, " } else { " DESC, " });
        }
        query.push("v.last_updated_timestamp DESC, v.name ASC, v.version DESC LIMIT ").push_bind(limit + 1);
        query.push(" OFFSET ").push_bind(offset);
        let found: Vec<(String, i64)> = query.build_query_as().fetch_all(&self.reads).await?;
        let page = page_of(found, limit, offset);
        let mut connection = self.reads.acquire().await?;
        let mut items = Vec::with_capacity(page.items.len());
        for (name, number) in &page.items {
            items.push(version(&mut connection, name, *number).await?);
        }
        Ok(Page { items, next_page_token: page.next_page_token })
    }

    /// The newest version in each of `stages`, or in every stage there is.
    pub async fn latest_versions(&self, name: &str, stages: &[String]) -> Result<Vec<ModelVersion>, TrackError> {
        let wanted = |stage: &str| stages.is_empty() || stages.iter().any(|s| s.eq_ignore_ascii_case(stage));
        for stage in stages {
            canonical_stage(stage)?;
        }
        let model = self.registered_model(name).await?;
        Ok(model.latest_versions.into_iter().filter(|version| wanted(&version.current_stage)).collect())
    }

    /// Changes a version's description.
    pub async fn update_model_version(
        &self,
        name: &str,
        number: i64,
        description: &str,
        now: Millis,
    ) -> Result<ModelVersion, TrackError> {
        let mut tx = self.write().await?;
        touch_version(&mut tx, name, number, now).await?;
        sqlx::query("UPDATE model_versions SET description = $1 WHERE name = $2 AND version = $3")
            .bind(description)
            .bind(name)
            .bind(number)
            .execute(&mut *tx)
            .await?;
        let version = version(&mut tx, name, number).await?;
        tx.commit().await?;
        Ok(version)
    }

    /// Moves a version to an MLflow stage. `Production` is a promotion by another name, so the gate holds there too.
    pub async fn set_stage(
        &self,
        name: &str,
        number: i64,
        stage: &str,
        archive_others: ArchiveOthers,
        gate: &Gate,
        now: Millis,
    ) -> Result<ModelVersion, TrackError> {
        let stage = canonical_stage(stage)?;
        let mut tx = self.write().await?;
        touch_version(&mut tx, name, number, now).await?;
        if stage == "Production" {
            let version = version(&mut tx, name, number).await?;
            let source = leads_to(&mut tx, &version.source).await?;
            gate.admit(Asked { version: &version, source: &source, alias: None, admitted_by: None, at: now.into() })
                .await?;
        }
        if archive_others == ArchiveOthers::Yes {
            sqlx::query(
                "UPDATE model_versions SET current_stage = 'Archived', last_updated_timestamp = $1
                 WHERE name = $2 AND current_stage = $3 AND version <> $4",
            )
            .bind(now.0)
            .bind(name)
            .bind(stage)
            .bind(number)
            .execute(&mut *tx)
            .await?;
        }
        sqlx::query("UPDATE model_versions SET current_stage = $1 WHERE name = $2 AND version = $3")
            .bind(stage)
            .bind(name)
            .bind(number)
            .execute(&mut *tx)
            .await?;
        let version = version(&mut tx, name, number).await?;
        tx.commit().await?;
        Ok(version)
    }

    /// Removes a version and the aliases that name it; the trail says so. Its number is never given again.
    pub async fn delete_model_version(
        &self,
        name: &str,
        number: i64,
        mover: &Mover,
        now: Millis,
    ) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        touch_version(&mut tx, name, number, now).await?;
        for alias in version(&mut tx, name, number).await?.aliases {
            let entry = Entry { action: "delete-version", from: Some(number), ..Entry::default() };
            record(&mut tx, name, &alias, entry, mover, now).await?;
        }
        sqlx::query("DELETE FROM model_versions WHERE name = $1 AND version = $2")
            .bind(name)
            .bind(number)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    /// Sets a tag of a version. The package a version holds never changes.
    pub async fn set_version_tag(&self, name: &str, number: i64, tag: &Pair, now: Millis) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        touch_version(&mut tx, name, number, now).await?;
        if tag.key == gate::PACKAGE_TAG {
            let version = version(&mut tx, name, number).await?;
            gate::check_package_tag(&version.source, Some(&tag.value))?;
            if version.tag(gate::PACKAGE_TAG).is_some_and(|package| package != tag.value) {
                return Err(immutable_package(name, number));
            }
        }
        put_version_tag(&mut tx, name, number, tag).await?;
        Ok(tx.commit().await?)
    }

    /// Removes a tag of a version; a tag that is not there is fine.
    pub async fn delete_version_tag(&self, name: &str, number: i64, key: &str, now: Millis) -> Result<(), TrackError> {
        if key == gate::PACKAGE_TAG {
            return Err(immutable_package(name, number));
        }
        let mut tx = self.write().await?;
        touch_version(&mut tx, name, number, now).await?;
        sqlx::query("DELETE FROM model_version_tags WHERE name = $1 AND version = $2 AND key = $3")
            .bind(name)
            .bind(number)
            .bind(key)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    /// Where a version's artifacts are: its source, or what its source refers to.
    pub async fn download_uri(&self, name: &str, number: i64) -> Result<String, TrackError> {
        let mut connection = self.reads.acquire().await?;
        let mut source = version(&mut connection, name, number).await?.source;
        for _ in 0..MAX_SOURCE_HOPS {
            let Some(target) = source.strip_prefix("models:/") else { return Ok(source) };
            source = match target.split_once('/') {
                Some((name, number)) => version(&mut connection, name, version_number(number)?).await?.source,
                None => logged_model_uri(&mut connection, target).await?,
            };
        }
        Err(TrackError::Invalid(format!("the source of {name} version {number} refers to itself")))
    }

    /// Moves an alias and records it: one transaction, and none of it if the gate refuses.
    pub async fn move_alias(
        &self,
        name: &str,
        alias: &str,
        target: Target,
        mover: &Mover,
        gate: &Gate,
        now: Millis,
    ) -> Result<AliasMove, TrackError> {
        required("name", name)?;
        required("alias", alias)?;
        limits::alias(alias)?;
        let mut tx = self.write().await?;
        exists(&mut tx, name).await?;
        let from = aliased(&mut tx, name, alias).await?;
        let (action, to, before) = match target {
            Target::Promote(number) => ("promote", Some(number), None),
            Target::Set(number) => ("set", Some(number), None),
            Target::Away => ("remove", None, None),
            Target::Back => {
                let before = previous(&mut tx, name, alias, from).await?;
                ("rollback", before.as_ref().map(|before| before.to), before)
            }
        };
        let at = before.as_ref().map_or(now.into(), |before| Moments { verdict: before.at, now });
        let admitted_by = before.as_ref().and_then(|before| before.verdict.as_deref());
        let admitted = match to {
            Some(number) => {
                let version = version(&mut tx, name, number).await?;
                let source = leads_to(&mut tx, &version.source).await?;
                let asked = Asked { version: &version, source: &source, alias: Some(alias), admitted_by, at };
                gate.admit(asked).await?
            }
            None => None,
        };
        let caution = match (target, &admitted) {
            (Target::Promote(_) | Target::Set(_), Some(admitted)) => caution(&mut tx, name, from, admitted).await?,
            _ => None,
        };
        // The way back is never shut: servers keep an embedder and its index together themselves.
        if let Target::Promote(number) | Target::Set(number) = target {
            check_dependents(&mut tx, [name, alias], number, admitted.as_ref()).await?;
        }
        let is_overridden = admitted.as_ref().is_some_and(|admitted| matches!(admitted.on, Admission::Override(_)));
        let action = if is_overridden && action == "promote" { "override" } else { action };
        put_alias(&mut tx, name, alias, to).await?;
        let entry = Entry { action, from, to, admitted, caution, renamed_from: None };
        let moved = record(&mut tx, name, alias, entry, mover, now).await?;
        tx.commit().await?;
        Ok(moved)
    }

    /// Moves of aliases, newest first; of every model if `name` is empty. Of a model that was renamed they are those under its
    /// earlier names too. Of a name that no model has now they are all that tell of it.
    pub async fn audit(&self, name: &str, max_results: i64, page_token: &str) -> Result<Page<AliasMove>, TrackError> {
        let (limit, offset) = page_bounds(max_results, 1000, limits::MAX_RUNS_PER_PAGE, page_token)?;
        let mut connection = self.reads.acquire().await?;
        let mut query = QueryBuilder::new("SELECT * FROM alias_moves");
        if !name.is_empty() {
            query.push(" WHERE ");
            match exists(&mut connection, name).await {
                Ok(()) => push_stretches(&mut query, &stretches(&mut connection, name).await?),
                Err(TrackError::Missing(_)) => {
                    query.push("model = ").push_bind(name.to_owned());
                    query.push(" OR renamed_from = ").push_bind(name.to_owned());
                }
                Err(error) => return Err(error),
            }
        }
        query.push(" ORDER BY move_id DESC LIMIT ").push_bind(limit + 1).push(" OFFSET ").push_bind(offset);
        let moves = query.build_query_as().fetch_all(&mut *connection).await?;
        Ok(page_of(moves, limit, offset))
    }
}

/// Whether a stage change archives the versions that were in that stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ArchiveOthers {
    Yes,
    No,
}

/// A version number as MLflow writes it.
pub fn version_number(text: &str) -> Result<i64, TrackError> {
    text.trim()
        .parse()
        .ok()
        .ok_or_else(|| TrackError::Invalid(format!("Parameter 'version' must be an integer, got '{text}'.")))
}

#[derive(Default)]
struct Entry<'a> {
    action: &'static str,
    from: Option<i64>,
    to: Option<i64>,
    admitted: Option<gate::Admitted>,
    caution: Option<String>,
    renamed_from: Option<&'a str>,
}

/// Where a rollback leads, when that target was admitted, and by which verdict.
struct Before {
    to: i64,
    at: Millis,
    verdict: Option<String>,
}

/// Rows of the trail that are about one model, whose name may have changed: those under `name` from `since` to before `until`.
struct Stretch {
    name: String,
    since: i64,
    until: i64,
}

async fn model(db: &mut AnyConnection, name: &str) -> Result<RegisteredModel, TrackError> {
    let row =
        sqlx::query("SELECT * FROM registered_models WHERE name = $1").bind(name).fetch_optional(&mut *db).await?;
    let row = row.ok_or_else(|| no_model(name))?;
    let tags = sqlx::query_as("SELECT key, value FROM registered_model_tags WHERE name = $1 ORDER BY key")
        .bind(name)
        .fetch_all(&mut *db)
        .await?;
    let aliases: Vec<(String, i64)> =
        sqlx::query_as("SELECT alias, version FROM registered_model_aliases WHERE name = $1 ORDER BY alias")
            .bind(name)
            .fetch_all(&mut *db)
            .await?;
    let latest: Vec<(i64,)> = sqlx::query_as(
        "SELECT MAX(version) FROM model_versions WHERE name = $1 GROUP BY current_stage ORDER BY current_stage",
    )
    .bind(name)
    .fetch_all(&mut *db)
    .await?;
    let mut latest_versions = Vec::with_capacity(latest.len());
    for (number,) in latest {
        latest_versions.push(version(db, name, number).await?);
    }
    Ok(RegisteredModel {
        name: name.to_owned(),
        creation_timestamp: row.try_get("creation_timestamp")?,
        last_updated_timestamp: row.try_get("last_updated_timestamp")?,
        description: row.try_get("description")?,
        latest_versions,
        tags,
        aliases: aliases.into_iter().map(|(alias, version)| Alias { alias, version: version.to_string() }).collect(),
    })
}

async fn version(db: &mut AnyConnection, name: &str, number: i64) -> Result<ModelVersion, TrackError> {
    let row = sqlx::query("SELECT * FROM model_versions WHERE name = $1 AND version = $2")
        .bind(name)
        .bind(number)
        .fetch_optional(&mut *db)
        .await?;
    let row = row.ok_or_else(|| no_version(name, number))?;
    let tags =
        sqlx::query_as("SELECT key, value FROM model_version_tags WHERE name = $1 AND version = $2 ORDER BY key")
            .bind(name)
            .bind(number)
            .fetch_all(&mut *db)
            .await?;
    let aliases = sqlx::query_scalar(
        "SELECT alias FROM registered_model_aliases WHERE name = $1 AND version = $2 ORDER BY alias",
    )
    .bind(name)
    .bind(number)
    .fetch_all(&mut *db)
    .await?;
    Ok(ModelVersion {
        name: name.to_owned(),
        version: number.to_string(),
        creation_timestamp: row.try_get("creation_timestamp")?,
        last_updated_timestamp: row.try_get("last_updated_timestamp")?,
        user_id: row.try_get("user_id")?,
        current_stage: row.try_get("current_stage")?,
        description: row.try_get("description")?,
        source: row.try_get("source")?,
        run_id: row.try_get("run_id")?,
        status: "READY",
        tags,
        run_link: row.try_get("run_link")?,
        aliases,
        model_id: row.try_get("model_id")?,
        model_params: Vec::new(),
        model_metrics: Vec::new(),
    })
}

async fn aliased(db: &mut AnyConnection, name: &str, alias: &str) -> Result<Option<i64>, TrackError> {
    Ok(sqlx::query_scalar("SELECT version FROM registered_model_aliases WHERE name = $1 AND alias = $2")
        .bind(name)
        .bind(alias)
        .fetch_optional(db)
        .await?)
}

/// Where a rollback leads; `None` if that is away.
///
/// A rollback returns to what was admitted once: neither an acceptance that has expired since nor a later verdict must block
/// the way back. So the gate is asked about the moment and the verdict of that promotion. Versions deleted since are passed
/// over.
async fn previous(
    db: &mut AnyConnection,
    name: &str,
    alias: &str,
    current: Option<i64>,
) -> Result<Option<Before>, TrackError> {
    if current.is_none() {
        return Err(TrackError::Missing(format!(
            "`{name}@{alias}` names no version, so there is nothing to roll back"
        )));
    }
    let mut query = QueryBuilder::new("SELECT action, to_version, at, verdict FROM alias_moves WHERE alias = ");
    query.push_bind(alias.to_owned()).push(" AND (");
    push_stretches(&mut query, &stretches(db, name).await?);
    query.push(") ORDER BY move_id");
    let trail: Vec<(String, Option<i64>, i64, Option<String>)> = query.build_query_as().fetch_all(&mut *db).await?;
    let moves = trail.iter().map(|(action, to, at, verdict)| (action.as_str(), *to, (*at, verdict)));
    let mut stack = targets(moves);
    stack.pop();
    while let Some((target, (at, verdict))) = stack.pop() {
        let Some(number) = target else { return Ok(None) };
        let there: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM model_versions WHERE name = $1 AND version = $2")
            .bind(name)
            .bind(number)
            .fetch_optional(&mut *db)
            .await?;
        if there.is_some() && current != Some(number) {
            return Ok(Some(Before { to: number, at: Millis(at), verdict: verdict.clone() }));
        }
    }
    Ok(None)
}

/// Where the trail tells of the model called `name` now, the present first: rows keep the name that the model had.
async fn stretches(db: &mut AnyConnection, name: &str) -> Result<Vec<Stretch>, TrackError> {
    let (mut found, mut name, mut until) = (Vec::new(), name.to_owned(), i64::MAX);
    loop {
        // A rename away ends what was of another model, which had the name before.
        let (left,): (Option<i64>,) =
            sqlx::query_as("SELECT MAX(move_id) FROM alias_moves WHERE renamed_from = $1 AND move_id < $2")
                .bind(&name)
                .bind(until)
                .fetch_one(&mut *db)
                .await?;
        let since = left.map_or(0, |left| left + 1);
        let came: Option<(i64, String)> = sqlx::query_as(
            "SELECT move_id, renamed_from FROM alias_moves
             WHERE model = $1 AND renamed_from IS NOT NULL AND move_id >= $2 AND move_id < $3 ORDER BY move_id DESC LIMIT 1",
        )
        .bind(&name)
        .bind(since)
        .bind(until)
        .fetch_optional(&mut *db)
        .await?;
        let Some((move_id, before)) = came else {
            found.push(Stretch { name, since, until });
            return Ok(found);
        };
        found.push(Stretch { name, since: move_id, until });
        if found.len() == MAX_RENAMES {
            return Ok(found);
        }
        (name, until) = (before, move_id);
    }
}

fn push_stretches(query: &mut QueryBuilder, stretches: &[Stretch]) {
    for (idx, Stretch { name, since, until }) in stretches.iter().enumerate() {
        query.push(if idx == 0 { "(model = " } else { " OR (model = " }).push_bind(name.clone());
        query.push(" AND move_id >= ").push_bind(*since).push(" AND move_id < ").push_bind(*until).push(")");
    }
}

/// What has to be told of a move although the gate admits it: its verdict compared the package with something else than what
/// the alias names now.
async fn caution(
    tx: &mut AnyConnection,
    name: &str,
    from: Option<i64>,
    admitted: &gate::Admitted,
) -> Result<Option<String>, TrackError> {
    let (Some(baseline), Some(from)) = (&admitted.baseline, from) else { return Ok(None) };
    let champion = version(tx, name, from).await?;
    // What holds no package cannot be a baseline.
    let Ok(Some(package)) = gate::package_of(&champion) else { return Ok(None) };
    Ok(baseline.caution(&admitted.package, &format!("{name}:{from}"), &package.to_string()))
}

/// Where a source leads in the end, as clients follow it: through versions, logged models and runs.
///
/// Errors if it names a version that is not here or may be another tomorrow; a run that is not here holds nothing.
async fn leads_to(db: &mut AnyConnection, source: &str) -> Result<String, TrackError> {
    let refuse = |why: &str| TrackError::Refused(format!("the source `{source}` may not go to production: {why}"));
    let mut found = source.to_owned();
    for _ in 0..MAX_SOURCE_HOPS {
        let Source { scheme, parts, climbs, .. } = Source::read(&found);
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (next, below) = match (scheme.as_str(), parts.as_slice()) {
            ("models" | "runs", _) if climbs => return Err(refuse("it leads out of what it names")),
            ("models", [name, number, below @ ..]) => match version_number(number) {
                Ok(number) => (version(db, name, number).await.map(|version| version.source), below),
                Err(_) => return Err(refuse("name a version by its number: others change what they mean")),
            },
            ("models", [id]) => (logged_model_uri(db, id).await, &[] as &[&str]),
            ("runs", [id, below @ ..]) => (run_uri(db, id).await, below),
            _ => return Ok(found),
        };
        found = match next {
            Ok(next) if below.is_empty() => next,
            Ok(next) => format!("{}/{}", next.trim_end_matches('/'), below.join("/")),
            Err(TrackError::Missing(_)) if scheme == "runs" => return Ok(found),
            Err(TrackError::Missing(_)) => return Err(refuse("what it names is not here")),
            Err(error) => return Err(error),
        };
    }
    Err(refuse("it refers to itself"))
}

async fn logged_model_uri(db: &mut AnyConnection, id: &str) -> Result<String, TrackError> {
    let uri = sqlx::query_scalar("SELECT artifact_uri FROM logged_models WHERE model_id = $1")
        .bind(id)
        .fetch_optional(db)
        .await?;
    uri.ok_or_else(|| TrackError::Missing(format!("Logged model with ID '{id}' not found.")))
}

async fn run_uri(db: &mut AnyConnection, id: &str) -> Result<String, TrackError> {
    let uri = sqlx::query_scalar("SELECT artifact_uri FROM runs WHERE run_id = $1").bind(id).fetch_optional(db).await?;
    uri.ok_or_else(|| TrackError::Missing(format!("Run with id={id} not found")))
}

/// Refuses a move after which queries would be embedded by another package than the documents of an index.
async fn check_dependents(
    tx: &mut AnyConnection,
    [name, alias]: [&str; 2],
    number: i64,
    admitted: Option<&gate::Admitted>,
) -> Result<(), TrackError> {
    let tags: Vec<(String, String)> =
        sqlx::query_as("SELECT key, value FROM registered_model_tags WHERE name = $1").bind(name).fetch_all(tx).await?;
    let tags = tags.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let package = admitted.and_then(|admitted| admitted.package.parse().ok());
    match dependents::forbids(tags, [name, alias], number.unsigned_abs(), package.as_ref()) {
        Some(dependence) => Err(TrackError::Refused(dependence.to_string())),
        None => Ok(()),
    }
}

async fn put_alias(tx: &mut AnyConnection, name: &str, alias: &str, to: Option<i64>) -> Result<(), TrackError> {
    let query = match to {
        Some(number) => sqlx::query(
            "INSERT INTO registered_model_aliases (name, alias, version) VALUES ($1, $2, $3)
             ON CONFLICT (name, alias) DO UPDATE SET version = excluded.version",
        )
        .bind(name)
        .bind(alias)
        .bind(number),
        None => {
            sqlx::query("DELETE FROM registered_model_aliases WHERE name = $1 AND alias = $2").bind(name).bind(alias)
        }
    };
    query.execute(tx).await?;
    Ok(())
}

async fn record(
    tx: &mut AnyConnection,
    model: &str,
    alias: &str,
    entry: Entry<'_>,
    mover: &Mover,
    now: Millis,
) -> Result<AliasMove, TrackError> {
    let (package, on) = entry.admitted.map(|admitted| (admitted.package, admitted.on)).unzip();
    let (verdict, overridden) = match on {
        Some(Admission::Verdict(digest)) => (Some(digest), None),
        Some(Admission::Override(document)) => (None, Some(document)),
        None => (None, None),
    };
    Ok(sqlx::query_as(
        "INSERT INTO alias_moves (at, model, alias, action, from_version, to_version, moved_by, why, package, verdict,
                                  overridden, rehearsal, caution, renamed_from)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) RETURNING *",
    )
    .bind(now.0)
    .bind(model)
    .bind(alias)
    .bind(entry.action)
    .bind(entry.from)
    .bind(entry.to)
    .bind(&mover.by)
    .bind(&mover.why)
    .bind(package)
    .bind(verdict)
    .bind(overridden)
    .bind(&mover.rehearsal)
    .bind(entry.caution)
    .bind(entry.renamed_from)
    .fetch_one(tx)
    .await?)
}

fn no_model(name: &str) -> TrackError {
    TrackError::Missing(format!("Registered Model with name={name} not found"))
}

fn no_version(name: &str, number: i64) -> TrackError {
    TrackError::Missing(format!("Model Version (name={name}, version={number}) not found"))
}

fn immutable_package(name: &str, number: i64) -> TrackError {
    TrackError::Refused(format!(
        "the package of `{name}:{number}` never changes: `{}` cannot be set anew or removed; push a new version",
        gate::PACKAGE_TAG
    ))
}

fn invalid_key(of: &str, key: &str) -> TrackError {
    TrackError::Invalid(format!("Invalid key '{key}' for a search of {of}"))
}

fn canonical_stage(stage: &str) -> Result<&'static str, TrackError> {
    STAGES.into_iter().find(|known| known.eq_ignore_ascii_case(stage)).ok_or_else(|| {
        TrackError::Invalid(format!(
            "Invalid Model Version stage: {stage}. Value must be one of None, Staging, Production, Archived."
        ))
    })
}

async fn exists(db: &mut AnyConnection, name: &str) -> Result<(), TrackError> {
    let found: Option<(i64,)> =
        sqlx::query_as("SELECT 1 FROM registered_models WHERE name = $1").bind(name).fetch_optional(db).await?;
    found.map(|_| ()).ok_or_else(|| no_model(name))
}

async fn touch(tx: &mut AnyConnection, name: &str, now: Millis) -> Result<(), TrackError> {
    required("name", name)?;
    let changed = sqlx::query("UPDATE registered_models SET last_updated_timestamp = $1 WHERE name = $2")
        .bind(now.0)
        .bind(name)
        .execute(tx)
        .await?;
    if changed.rows_affected() == 0 { Err(no_model(name)) } else { Ok(()) }
}

async fn touch_for_tag(tx: &mut AnyConnection, name: &str, key: &str, now: Millis) -> Result<(), TrackError> {
    if !key.starts_with(STANDING_PREFIX) {
        return touch(tx, name, now).await;
    }
    required("name", name)?;
    exists(tx, name).await
}

async fn touch_version(tx: &mut AnyConnection, name: &str, number: i64, now: Millis) -> Result<(), TrackError> {
    touch(tx, name, now).await?;
    let changed = sqlx::query("UPDATE model_versions SET last_updated_timestamp = $1 WHERE name = $2 AND version = $3")
        .bind(now.0)
        .bind(name)
        .bind(number)
        .execute(tx)
        .await?;
    if changed.rows_affected() == 0 { Err(no_version(name, number)) } else { Ok(()) }
}

async fn put_model_tag(tx: &mut AnyConnection, name: &str, tag: &Pair) -> Result<(), TrackError> {
    check_tag(tag)?;
    sqlx::query(
        "INSERT INTO registered_model_tags (name, key, value) VALUES ($1, $2, $3)
         ON CONFLICT (name, key) DO UPDATE SET value = excluded.value",
    )
    .bind(name)
    .bind(&tag.key)
    .bind(&tag.value)
    .execute(tx)
    .await?;
    Ok(())
}

pub(super) async fn put_version_tag(
    tx: &mut AnyConnection,
    name: &str,
    number: i64,
    tag: &Pair,
) -> Result<(), TrackError> {
    check_tag(tag)?;
    sqlx::query(
        "INSERT INTO model_version_tags (name, version, key, value) VALUES ($1, $2, $3, $4)
         ON CONFLICT (name, version, key) DO UPDATE SET value = excluded.value",
    )
    .bind(name)
    .bind(number)
    .bind(&tag.key)
    .bind(&tag.value)
    .execute(tx)
    .await?;
    Ok(())
}

fn check_tag(tag: &Pair) -> Result<(), TrackError> {
    required("key", &tag.key)?;
    limits::length("key", &tag.key, limits::MAX_KEY)?;
    limits::length("value", &tag.value, limits::MAX_REGISTRY_TAG_VALUE)
}

/// The filter clause that MLflow's client adds by itself, which must also match models without the tag.
fn push_prompt_rule(query: &mut QueryBuilder, clauses: &[Clause]) {
    let asks_for_prompts = clauses.iter().any(|clause| {
        clause.key.name == IS_PROMPT
            && matches!(&clause.test, Test::Compare(comparator, Value::Text(value))
                if (*comparator == Comparator::Equal && value.eq_ignore_ascii_case("true"))
                    || (*comparator == Comparator::NotEqual && value.eq_ignore_ascii_case("false")))
    });
    query.push(if asks_for_prompts { "EXISTS (" } else { "NOT EXISTS (" });
    query.push("SELECT 1 FROM registered_model_tags p WHERE p.name = m.name AND p.value = 'true' AND p.key = ");
    query.push_bind(IS_PROMPT).push(")");
}

fn version_column(name: &str) -> Option<(&'static str, bool)> {
    Some(match name {
        "name" => ("v.name", true),
        "run_id" => ("v.run_id", true),
        "source_path" | "source" => ("v.source", true),
        "user_id" => ("v.user_id", true),
        "current_stage" | "stage" => ("v.current_stage", true),
        "version_number" | "version" => ("v.version", false),
        "creation_timestamp" => ("v.creation_timestamp", false),
        "last_updated_timestamp" => ("v.last_updated_timestamp", false),
        _ => return None,
    })
}

fn push_version_clause(query: &mut QueryBuilder, clause: &Clause) -> Result<(), TrackError> {
    let key = &clause.key.name;
    match clause.key.entity {
        Entity::Attribute => {
            let (column, is_text) = version_column(key).ok_or_else(|| invalid_key("model versions", key))?;
            if is_text { compare_text(query, column, clause) } else { compare_number(query, column, clause) }
        }
        Entity::Tag => {
            query.push("EXISTS (SELECT 1 FROM model_version_tags x WHERE x.name = v.name AND x.version = v.version");
            query.push(" AND x.key = ").push_bind(key.clone()).push(" AND ");
            compare_text(query, "x.value", clause)?;
            query.push(")");
            Ok(())
        }
        _ => Err(invalid_key("model versions", key)),
    }
}
