use std::collections::HashMap;

use sqlx::{AnyConnection, Row as _};

use super::runs::{active_run, among};
use super::{Store, required};
use crate::TrackError;
use crate::limits;
use crate::wire::{Dataset, DatasetInput, ExperimentId, ModelInput, ModelOutput, Run};

/// The tag of a dataset input that says what it was used for: `training`, `evaluation`.
const CONTEXT_TAG: &str = "mlflow.data.context";

impl Store {
    /// Datasets and models an active run reads. A dataset is known by experiment, name and digest.
    pub async fn log_inputs(
        &self,
        run_id: &str,
        datasets: &[DatasetInput],
        models: &[ModelInput],
    ) -> Result<(), TrackError> {
        if datasets.len() > limits::MAX_DATASETS {
            return Err(TrackError::Invalid(format!(
                "at most {} datasets can be logged at once",
                limits::MAX_DATASETS
            )));
        }
        let mut tx = self.write().await?;
        let experiment_id = active_run(&mut tx, run_id).await?;
        for input in datasets {
            put_dataset(&mut tx, run_id, experiment_id, input).await?;
        }
        for model in models {
            put_model(&mut tx, run_id, &model.model_id, "input", 0).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Logged models an active run makes.
    pub async fn log_outputs(&self, run_id: &str, models: &[ModelOutput]) -> Result<(), TrackError> {
        let mut tx = self.write().await?;
        active_run(&mut tx, run_id).await?;
        for model in models {
            put_model(&mut tx, run_id, &model.model_id, "output", model.step).await?;
        }
        Ok(tx.commit().await?)
    }

    /// The datasets that runs of these experiments read: experiment, name, digest, context.
    pub async fn search_datasets(
        &self,
        experiment_ids: &[ExperimentId],
    ) -> Result<Vec<(ExperimentId, String, String, Option<String>)>, TrackError> {
        let mut found = Vec::new();
        for id in experiment_ids {
            let rows = sqlx::query_as(
                "SELECT DISTINCT experiment_id, name, digest, context FROM run_datasets WHERE experiment_id = $1
                 ORDER BY name, digest, context LIMIT 1000",
            )
            .bind(*id)
            .fetch_all(&self.reads)
            .await?;
            found.extend(rows);
        }
        Ok(found)
    }

    pub(super) async fn read_inputs(&self, ids: &[String], runs: &mut HashMap<String, Run>) -> Result<(), TrackError> {
        let query = among(
            "SELECT u.run_id, u.tags, d.name, d.digest, d.source_type, d.source, d.schema, d.profile
             FROM run_datasets u JOIN datasets d
             ON d.experiment_id = u.experiment_id AND d.name = u.name AND d.digest = u.digest WHERE u.run_id IN (",
            ids,
            ") ORDER BY u.run_id, d.name, d.digest",
        );
        for row in query.build().fetch_all(&self.reads).await? {
            if let Some(run) = runs.get_mut(row.try_get::<&str, _>("run_id")?) {
                let tags = serde_json::from_str(row.try_get("tags")?).unwrap_or_default();
                run.inputs.dataset_inputs.push(DatasetInput { tags, dataset: dataset_of(&row)? });
            }
        }
        let query = among(
            "SELECT run_id, model_id, direction, step FROM run_models WHERE run_id IN (",
            ids,
            ") ORDER BY run_id, step, model_id",
        );
        let rows = query.build_query_as::<(String, String, String, i64)>().fetch_all(&self.reads).await?;
        for (run_id, model_id, direction, step) in rows {
            let Some(run) = runs.get_mut(&run_id) else { continue };
            match direction.as_str() {
                "input" => run.inputs.model_inputs.push(ModelInput { model_id }),
                _ => run.outputs.model_outputs.push(ModelOutput { model_id, step }),
            }
        }
        Ok(())
    }
}

fn dataset_of(row: &sqlx::any::AnyRow) -> Result<Dataset, sqlx::Error> {
    Ok(Dataset {
        name: row.try_get("name")?,
        digest: row.try_get("digest")?,
        source_type: row.try_get("source_type")?,
        source: row.try_get("source")?,
        schema: row.try_get("schema")?,
        profile: row.try_get("profile")?,
    })
}

async fn put_dataset(
    tx: &mut AnyConnection,
    run_id: &str,
    experiment_id: ExperimentId,
    input: &DatasetInput,
) -> Result<(), TrackError> {
    let dataset = &input.dataset;
    required("datasets.dataset.name", &dataset.name)?;
    required("datasets.dataset.digest", &dataset.digest)?;
    limits::length("datasets.dataset.name", &dataset.name, limits::MAX_DATASET_NAME)?;
    limits::length("datasets.dataset.digest", &dataset.digest, limits::MAX_DATASET_DIGEST)?;
    sqlx::query(
        "INSERT INTO datasets (experiment_id, name, digest, source_type, source, schema, profile)
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
    )
    .bind(experiment_id)
    .bind(&dataset.name)
    .bind(&dataset.digest)
    .bind(&dataset.source_type)
    .bind(&dataset.source)
    .bind(&dataset.schema)
    .bind(&dataset.profile)
    .execute(&mut *tx)
    .await?;
    let context = input.tags.iter().find(|tag| tag.key == CONTEXT_TAG).map(|tag| tag.value.clone());
    let tags = serde_json::to_string(&input.tags).map_err(|error| TrackError::Invalid(error.to_string()))?;
    sqlx::query(
        "INSERT INTO run_datasets (run_id, experiment_id, name, digest, tags, context) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (run_id, name, digest) DO NOTHING",
    )
    .bind(run_id)
    .bind(experiment_id)
    .bind(&dataset.name)
    .bind(&dataset.digest)
    .bind(tags)
    .bind(context)
    .execute(tx)
    .await?;
    Ok(())
}

async fn put_model(
    tx: &mut AnyConnection,
    run_id: &str,
    model_id: &str,
    direction: &'static str,
    step: i64,
) -> Result<(), TrackError> {
    required("model_id", model_id)?;
    sqlx::query(
        "INSERT INTO run_models (run_id, model_id, direction, step) VALUES ($1, $2, $3, $4)
         ON CONFLICT (run_id, model_id, direction) DO UPDATE SET step = excluded.step",
    )
    .bind(run_id)
    .bind(model_id)
    .bind(direction)
    .bind(step)
    .execute(tx)
    .await?;
    Ok(())
}
