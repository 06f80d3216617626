//! Rows that come from another server as they are: with their ids, times and states.

use super::Store;
use crate::TrackError;
use crate::wire::Pair;

/// The end of a run as the other server has it.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct RunEnd {
    pub status: String,
    pub end_time: Option<i64>,
    pub lifecycle_stage: String,
    /// Where its artifacts stay, if not here.
    pub artifact_uri: Option<String>,
}

/// A model version as the other server has it.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct ImportedVersion {
    pub name: String,
    pub number: i64,
    pub creation_timestamp: i64,
    pub description: String,
    pub user_id: String,
    pub current_stage: String,
    pub source: String,
    pub run_id: String,
    pub run_link: String,
    pub model_id: Option<String>,
    pub tags: Vec<Pair>,
}

impl Store {
    /// Ends an imported run; what is written here last tells that all of it was taken.
    pub async fn end_imported_run(&self, run_id: &str, end: &RunEnd) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        sqlx::query(
            "UPDATE runs SET status = $1, end_time = $2, lifecycle_stage = $3, artifact_uri = COALESCE($4, artifact_uri)
             WHERE run_id = $5",
        )
        .bind(&end.status)
        .bind(end.end_time)
        .bind(&end.lifecycle_stage)
        .bind(&end.artifact_uri)
        .bind(run_id)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// A version under its own number; one that is here already stays as it is, and false comes back.
    pub async fn import_model_version(&self, version: &ImportedVersion) -> Result<bool, TrackError> {
        let mut tx = self.write().await?;
        let made = sqlx::query(
            "INSERT INTO model_versions (name, version, creation_timestamp, last_updated_timestamp, description, user_id,
                                         current_stage, source, run_id, run_link, model_id)
             VALUES ($1, $2, $3, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING",
        )
        .bind(&version.name)
        .bind(version.number)
        .bind(version.creation_timestamp)
        .bind(&version.description)
        .bind(&version.user_id)
        .bind(&version.current_stage)
        .bind(&version.source)
        .bind(&version.run_id)
        .bind(&version.run_link)
        .bind(&version.model_id)
        .execute(&mut *tx)
        .await?;
        if made.rows_affected() == 0 {
            return Ok(false);
        }
        sqlx::query("UPDATE registered_models SET last_version = $1 WHERE name = $2 AND last_version < $1")
            .bind(version.number)
            .bind(&version.name)
            .execute(&mut *tx)
            .await?;
        for tag in &version.tags {
            super::registry::put_version_tag(&mut tx, &version.name, version.number, tag).await?;
        }
        tx.commit().await?;
        Ok(true)
    }
}
