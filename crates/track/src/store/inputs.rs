use sqlx::AnyConnection;

use super::runs::active_run;
use super::{Store, required};
use crate::TrackError;
use crate::limits;
use crate::wire::{Dataset, DatasetInput, ExperimentId, ModelInput, ModelOutput, RunInputs, RunOutputs};

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
}

/// A dataset that a run read, for [`of_run`].
pub(super) const DATASET_COLUMNS: &str = "x.tags, d.name, d.digest, d.source_type, d.source, d.schema, d.profile";
pub(super) const DATASETS_OF_RUN: &str = "run_datasets x JOIN datasets d
     ON d.experiment_id = x.experiment_id AND d.name = x.name AND d.digest = x.digest WHERE x.run_id = r.run_id";

pub(super) type DatasetRow = (String, String, String, String, String, Option<String>, Option<String>);
/// `model_id, direction, step`.
pub(super) type ModelRow = (String, String, i64);

/// What a run read and made, by name.
pub(super) fn of_run(datasets: Vec<DatasetRow>, mut models: Vec<ModelRow>) -> (RunInputs, RunOutputs) {
    let mut inputs =
        RunInputs { dataset_inputs: datasets.into_iter().map(dataset_input).collect(), ..RunInputs::default() };
    inputs
        .dataset_inputs
        .sort_by(|a, b| (&a.dataset.name, &a.dataset.digest).cmp(&(&b.dataset.name, &b.dataset.digest)));
    let mut outputs = RunOutputs::default();
    models.sort_unstable_by(|a, b| (a.2, &a.0).cmp(&(b.2, &b.0)));
    for (model_id, direction, step) in models {
        match direction.as_str() {
            "input" => inputs.model_inputs.push(ModelInput { model_id }),
            _ => outputs.model_outputs.push(ModelOutput { model_id, step }),
        }
    }
    (inputs, outputs)
}

fn dataset_input((tags, name, digest, source_type, source, schema, profile): DatasetRow) -> DatasetInput {
    let dataset = Dataset { name, digest, source_type, source, schema, profile };
    DatasetInput { tags: serde_json::from_str(&tags).unwrap_or_default(), dataset }
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
